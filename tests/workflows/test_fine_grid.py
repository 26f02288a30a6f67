"""Models with a fine grid, from training to the scan's own grid, and the edits of their library."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from oasis_monai.atlases.library import AtlasLibrary
from oasis_monai.data.io import read_volume
from oasis_monai.data.types import Case
from oasis_monai.networks.segmentation import Predictor
from oasis_monai.segmentation.estimate import see_atlas
from oasis_monai.segmentation.fine_fusion import warp_slab
from oasis_monai.segmentation.pipeline import CaseResult, Scan, segment_case
from oasis_monai.settings import build
from oasis_monai.training.slices import SliceTrainer
from oasis_monai.training.trainer import FitContext, TrainingSettings, generator
from oasis_monai.utils.errors import ConfigError, DataError
from oasis_monai.workflows.adapt import adapt_model
from oasis_monai.workflows.cross_fit import cross_fitted
from oasis_monai.workflows.crossval import crossval
from oasis_monai.workflows.library import add_atlas, remove_atlas
from oasis_monai.workflows.model import load_model
from oasis_monai.workflows.prepare import find_and_check, prepare
from oasis_monai.workflows.self_training import Labeller
from oasis_monai.workflows.train import train_model
from tests.conftest import FINE, JOINT, TINY, merged
from tests.helpers.runs import quiet, scores_of
from tests.networks.test_slice_unet import net
from tests.training.test_slices import SMALL

OLD, NEW = [f"Case{i:02d}" for i in range(4)], "Case04"
METHODS = ["FwoW", "FWAL", "majority", "OASIS", "STAPLE", "estimate", "OASIS-joint"]


@pytest.fixture(scope="module")
def trained(phantom, tmp_path_factory):
    """The settings and the model folder."""
    base = tmp_path_factory.mktemp("fine")
    data = {"data": {"root": str(phantom), "include": OLD}, "cache": str(base / "cache")}
    settings = build(merged(TINY, JOINT, FINE, data))
    return settings, train_model(settings, base / "model", quiet)


def scan_of(phantom, case):
    return Case(case, phantom / f"{case}.mhd", phantom / f"{case}_segmentation.mhd")


def test_folds_are_scored_and_repeat_themselves(settings, tmp_path):
    some = {"methods": ["majority", "OASIS-joint"], "n": 2, "k": 2, "corruptions": 1, "browser": False}
    asked = settings(JOINT, FINE, some, {"data": {"include": OLD}})
    first = crossval(asked, tmp_path / "a", quiet)
    assert set(scores_of(tmp_path / "a").method) == {"majority", "OASIS-joint"}
    fresh = replace(asked, cache=str(tmp_path / "fresh"))
    assert crossval(fresh, tmp_path / "b", quiet).read_bytes() == first.read_bytes()


def test_the_slice_network_learns_from_the_fine_grid(trained, phantom):
    settings, _ = trained
    library = prepare(settings, find_and_check(settings, None, quiet), None, quiet).library
    context = FitContext(library, (5.0, 5.0, 8.0), TrainingSettings(iterations=1, minutes=None))
    trainer = SliceTrainer(context, net(pretrained=False), SMALL)
    assert trainer.spacings_mm[0].tolist() == [2.5, 2.5]
    images, labels, rows = trainer.draw(generator(0, 0))
    assert images.shape[2:] == labels.shape[2:] == (32, 32)
    for image, label, row in zip(images, labels, rows, strict=True):
        own = library.fine[row]
        (z,) = (z for z in range(8) if torch.equal(own.image[0, ..., z].float(), image[1]))
        assert torch.equal((own.label[0, ..., z] == 1).float(), label[0])


def test_a_model_segments_on_the_fine_grid(trained, phantom):
    """What it says is the vote of labels warped there, and its result has the grid of the scan."""
    settings, folder = trained
    model = load_model(folder)
    volume = replace(read_volume(scan_of(phantom, NEW), (0, 1)), label=None)
    scan = Scan.of_volume(volume, settings.preprocessing)
    found = segment_case(model.segmenter, scan, model.embed, METHODS, (3,))
    library, rows = model.segmenter.library, found.selection.indices[0]
    for key, grid in found.grids.items():
        assert tuple(grid.shape) == (32, 32, 8), key
    weights = found.results["OASIS", 3].weights[0]
    moved = [warp_slab(library.fine[row].label, field, slice(0, 32), 2) for row, field in zip(rows, found.fields[0], strict=True)]
    wanted = sum(weight * label for weight, label in zip(weights, moved, strict=True))
    torch.testing.assert_close(found.results["OASIS", 3].probability, wanted, atol=1e-5, rtol=0)
    restored = found.restore()
    assert all(one.label.shape == volume.image.shape[1:] for one in restored.values())
    assert torch.equal(model.segment(volume, method="majority", n=3).label, restored["majority", 3].label)


def test_estimates_of_atlases_are_of_what_the_slice_network_sees(trained):
    segmenter = load_model(trained[1]).segmenter
    estimator, library = segmenter.estimator.without_views(), segmenter.library
    for row in range(2):
        seen = see_atlas(estimator, library, row)
        torch.testing.assert_close(library.estimates[row].float(), seen.networks.mean(0)[1:], atol=2e-3, rtol=0)
        by_slices = estimator.quick(estimator.tta_flip)
        by_slices.volume_network = None
        pooled = torch.nn.functional.avg_pool3d(by_slices.volume(library.fine[row].image)[None], (2, 2, 1))[0]
        torch.testing.assert_close(seen.networks[0], pooled, atol=1e-4, rtol=0)


def test_views_are_looked_for(trained, phantom):
    """Of atlases as of scans, by their fine grids."""
    model = load_model(trained[1], views="all")
    volume = replace(read_volume(scan_of(phantom, NEW), (0, 1)), label=None)
    found = model.find(volume, "OASIS-joint", 2)
    assert len(found.tried) > 1
    assert 0 <= model.segmenter.usual_agreement <= 1


def test_an_added_case_has_a_fine_grid_and_removed_leaves_no_trace(trained, phantom):
    settings, folder = trained
    before = (folder / "library.safetensors").read_bytes()
    add_atlas(folder, phantom / f"{NEW}.mhd", phantom / f"{NEW}_segmentation.mhd", log=quiet)
    library = load_model(folder).segmenter.library
    made = settings.preprocessing.apply(read_volume(scan_of(phantom, NEW), (0, 1))).fine
    assert library.fine_factor == (2, 2, 1)
    assert torch.equal(library.fine[-1].label, made.label)
    assert torch.equal(library.fine[-1].image, made.image)
    remove_atlas(folder, NEW, log=quiet)
    assert (folder / "library.safetensors").read_bytes() == before
    assert len(load_model(folder).segmenter.library.fine) == len(OLD)


def test_a_model_is_adapted_with_the_fine_grid(trained, phantom, tmp_path):
    data = {"data": {"root": str(phantom), "include": [NEW]}, "cache": str(tmp_path / "cache")}
    options = build(merged(TINY, {"training": {"iterations": 2}}, data))
    adapt_model(trained[1], tmp_path / "adapted", options, quiet)
    assert len(load_model(tmp_path / "adapted").segmenter.library.fine) == len(OLD) + 1


def test_pseudo_labels_are_on_both_grids_and_stay_what_they_were(trained, phantom, tmp_path, monkeypatch):
    settings, folder = trained
    model = load_model(folder)
    kept = replace(settings.self_training, least_agreement=0.0)
    labeller = Labeller(model.segmenter, replace(settings, self_training=kept), model.embed, tmp_path)
    _, first = labeller.label(NEW, scan_of(phantom, NEW))
    monkeypatch.setattr(Labeller, "make_label", None)  # it is there already
    _, again = labeller.label(NEW, scan_of(phantom, NEW))
    assert first.fine.label.shape == (1, 32, 32, 8)
    assert torch.equal(again.label, first.label)
    assert torch.equal(again.fine.label, first.fine.label)
    assert torch.equal(again.fine.image, first.fine.image)


def test_atlases_are_estimated_by_networks_of_others_on_the_fine_grid(trained):
    settings, _ = trained
    library = prepare(settings, find_and_check(settings, None, quiet), None, quiet).library
    context = FitContext(library, (5.0, 5.0, 8.0), TrainingSettings(iterations=4, minutes=None))
    made = cross_fitted(context, replace(SMALL, slice_budget=0.4, volume_budget=0.0, cross_fit_budget=0.5))
    assert made.estimates.shape == (4, 1, 16, 16, 8)
    assert made.estimates.float().std() > 0


def test_a_library_is_kept_with_its_fine_grid_and_joined_to_no_other(trained, tmp_path):
    library = load_model(trained[1]).segmenter.library
    library.subset([2, 0]).save(tmp_path / "library")
    found = AtlasLibrary.load(tmp_path / "library")
    for one, row in zip(found.fine, (2, 0), strict=True):
        assert torch.equal(one.label, library.fine[row].label)
        assert torch.equal(one.image, library.fine[row].image)
        assert len(np.unique(one.label)) == 2
    with pytest.raises(DataError, match="build both with the same settings"):
        library.subset([0]).merge(replace(library.subset([1]), fine=()))
    with pytest.raises(DataError, match="atlas library, fine"):
        replace(library, fine=library.fine[:1])


def test_slices_may_be_too_small_on_the_working_grid_alone():
    """They are seen on the fine one."""
    with pytest.raises(ConfigError, match="slices of at least 32 voxels"):
        build(merged(TINY, JOINT, FINE, {"data": {"root": "nowhere"}, "preprocessing": {"fine_factor": None}}))
    assert build(merged(TINY, JOINT, FINE, {"data": {"root": "nowhere"}})).preprocessing.fine_size == (32, 32, 8)


def test_comparison_networks_work_on_the_fine_grid(settings, tmp_path, monkeypatch):
    """Their results come back to the scan's grid from there, and so do their windows."""
    seen, results = [], []
    call, restored = Predictor.__call__, CaseResult.restore
    monkeypatch.setattr(Predictor, "__call__", lambda self, images: seen.append((self.batch, images.shape)) or call(self, images))
    monkeypatch.setattr(CaseResult, "restore", lambda self, *more: results.append(self) or restored(self, *more))
    some = {"methods": ["U-Net3D", "DynU-Net3D"], "k": 2, "fold": 0, "browser": False, "network": {"convnet": [4, 8]}}
    asked = settings(JOINT, FINE, some, {"data": {"include": OLD}, "network": {"patch": [16, 32, 8]}})
    crossval(asked, tmp_path / "run", quiet)
    assert set(scores_of(tmp_path / "run").method) == {"U-Net3D", "DynU-Net3D"}
    assert set(seen) == {(1, (1, 1, 32, 32, 8))}
    for one in results:
        for key, result in one.results.items():
            assert result.probability.shape == (2, 32, 32, 8)
            assert one.grids[key].spacing_mm == (2.5, 2.5, 8.0)


@pytest.mark.fast
def test_the_name_of_a_comparison_network_tells_its_grid():
    base = merged(TINY, JOINT, FINE, {"data": {"root": "nowhere"}, "methods": ["U-Net3D"], "network": {"convnet": [4, 8]}})
    fine = build(base)
    assert fine.identity("U-Net3D")["network"] == {"name": "U-Net3D", "unet": [4, 8], "patch": [32, 32, 8], "grid": "fine"}
    given = build(merged(base, {"network": {"patch": [16, 16, 8]}}))
    assert given.identity("U-Net3D")["network"] == {"name": "U-Net3D", "unet": [4, 8], "patch": [16, 16, 8], "grid": "fine"}
    working = build(merged(base, {"preprocessing": {"fine_factor": None}}))
    assert working.identity("U-Net3D")["network"] == {"name": "U-Net3D", "unet": [4, 8], "patch": None}
    assert working.compared_network() is working.network
    # those of a joint model see what they saw
    assert fine.identity("volume")["network"] == working.identity("volume")["network"]


@pytest.mark.fast
def test_a_patch_beyond_the_fine_grid_is_refused_and_one_beyond_the_working_grid_is_not():
    base = merged(TINY, JOINT, FINE, {"data": {"root": "nowhere"}, "methods": ["U-Net3D"]})
    assert build(merged(base, {"network": {"patch": [32, 32, 8]}})).compared_network().patch == (32, 32, 8)
    with pytest.raises(ConfigError, match=r"network\.patch: expected 3 numbers, none above the grid \(32, 32, 8\)"):
        build(merged(base, {"network": {"patch": [34, 32, 8]}}))
    with pytest.raises(ConfigError, match=r"preprocessing\.size: expected a fine grid of 16 voxels or more"):
        build(merged(base, {"network": {"unet": [4, 4, 4, 4, 8]}}))
