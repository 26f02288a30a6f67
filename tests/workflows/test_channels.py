"""From files to labels with two channels: T2 and an ADC map, all labels or a part of them."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch

import oasis_monai
from oasis_monai.data.io import read_image, read_volume
from oasis_monai.data.types import IGNORE, Geometry
from oasis_monai.settings import build
from oasis_monai.utils.errors import DataError
from oasis_monai.workflows import prepare as preparing
from oasis_monai.workflows.bundle import write_bundle
from oasis_monai.workflows.crossval import crossval
from oasis_monai.workflows.library import add_atlas, list_atlases
from oasis_monai.workflows.prepare import find_and_check, prepare
from oasis_monai.workflows.segment import segment_scans
from oasis_monai.workflows.train import train_model
from tests.conftest import CASES, JOINT, TINY, merged
from tests.helpers.channels import NAMES, UNKNOWN, write_two_channels
from tests.helpers.runs import quiet, scores_of

PARTLY = ("Case01", "Case04")


@pytest.fixture(scope="module")
def folder(tmp_path_factory, phantom):
    base = tmp_path_factory.mktemp("channels")
    return base, write_two_channels(base, phantom, CASES, PARTLY)


@pytest.fixture
def found(folder, monkeypatch):
    """The cases of the folder, whatever the layout."""
    cases = folder[1]
    monkeypatch.setattr(preparing, "find_selected_cases", lambda data, part="train": (cases, []))
    return cases


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def settings(folder, cache, *more):
    data = {"root": str(folder[0]), "labels": {"gland": 1}, "channels": list(NAMES), "ignore": UNKNOWN}
    return build(merged(TINY, JOINT, {"data": data, "cache": str(cache), "n": 2, "methods": None, "k": 2}, *more))


@pytest.fixture(scope="module")
def model(folder, cache):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(preparing, "find_selected_cases", lambda data, part="train": (folder[1], []))
        return oasis_monai.load_model(train_model(settings(folder, cache), cache / "model", quiet), device="cpu")


def test_a_data_set_of_two_channels_is_prepared_channel_by_channel(folder, found, cache):
    made = settings(folder, cache)
    dataset = prepare(made, find_and_check(made, cache, quiet), cache, quiet)
    library = dataset.library
    assert library.images.shape[1] == library.channels == 2
    half = library.features.shape[1] // 2
    for channel in (0, 1):
        alone = [dataclasses.replace(c, take=(channel,)) for c in found]
        one = prepare(made, alone, None, quiet).library
        torch.testing.assert_close(one.images[:, 0], library.images[:, channel], atol=1e-5, rtol=1e-4)
        own = library.features[:, channel * half : (channel + 1) * half]
        torch.testing.assert_close(one.features, own, atol=1e-5, rtol=1e-4)
    unknown = {case: bool((label == IGNORE).any()) for case, label in zip(library.cases, library.labels, strict=True)}
    assert {case for case, some in unknown.items() if some} == set(PARTLY)


def test_selection_depends_on_the_second_channel(folder, found):
    """Of two atlases that are equal in T2, the one with the target's ADC is nearer."""
    made = settings(folder, "unused")
    dataset = prepare(made, found[:3], None, quiet)
    target, first, second = dataset.library.images
    twin = torch.stack([first[0], target[1]]), torch.stack([first[0], second[1]])
    from oasis_monai.atlases.features import embedder, volume_features

    embed = embedder("intensity")
    own, *others = (volume_features(image, embed) for image in (torch.stack([first[0], target[1]]), *twin))
    assert torch.dist(own, others[0]) < torch.dist(own, others[1])


def test_the_model_tells_its_channels_and_refuses_other_scans(model, folder, tmp_path):
    cases = folder[1]
    assert model.record.values["channels"] == list(NAMES)
    result = model.segment([cases[0].image, cases[0].channels[0][0]], n=2)
    image = read_volume(cases[0].without_label(), (0, 1)).image
    again = model.segment(image.numpy(), affine=result.geometry.affine, n=2)
    assert torch.equal(again.label, result.label)
    assert result.is_atlas == "Case00"
    one_line = r"^Case00_0000: channels: expected the model's 2 \(T2, ADC\), found 1; give all of these, in this order, or train"
    with pytest.raises(DataError, match=one_line):
        model.segment(cases[0].image)
    scans = tmp_path / "scans"
    scans.mkdir()
    shutil.copy(cases[0].image, scans / "scan.nii.gz")
    (fault,) = segment_scans(model.folder, scans, tmp_path / "out", quiet, n=2)
    assert fault.field == "channels"
    with pytest.raises(DataError, match=r"new: channels: expected the model's 2 \(T2, ADC\), found 1"):
        add_atlas(model.folder, cases[0].image, cases[0].label, "new", "cpu", log=quiet)


def test_a_file_of_two_channels_is_a_scan(model, folder, tmp_path):
    import nibabel

    case = folder[1][2]
    images = [nibabel.load(path) for path in (case.image, case.channels[0][0])]
    (tmp_path / "scans").mkdir()
    both = np.stack([np.asarray(i.dataobj, np.float32) for i in images], -1)
    nibabel.save(nibabel.Nifti1Image(both, images[0].affine), tmp_path / "scans" / "both.nii.gz")
    assert segment_scans(model.folder, tmp_path / "scans", tmp_path / "out", quiet, n=2) == []
    record = json.loads((tmp_path / "out" / "both.json").read_text())
    assert record["is_atlas"] == case.id
    label, _ = read_image(tmp_path / "out" / "both_segmentation.nii.gz")
    expected = model.segment([case.image, case.channels[0][0]], n=2).label
    assert torch.equal(label[0].to(torch.uint8), expected)


def test_a_result_depends_on_the_second_channel(model, folder):
    volume = read_volume(folder[1][3].without_label(), (0, 1))
    noise = volume.image.clone()
    noise[1] = torch.randn(noise[1].shape, generator=torch.Generator().manual_seed(0))
    results = [model.segment(dataclasses.replace(volume, image=image), n=2).probability for image in (volume.image, noise)]
    assert not torch.allclose(*results, atol=1e-3)


def test_the_bundle_has_the_channels(model, tmp_path):
    from oasis_monai.workflows.bundle.network import OasisNetwork

    bundle = write_bundle(model.folder, tmp_path / "bundle", n=2, log=quiet)
    meta = json.loads((bundle / "configs" / "metadata.json").read_text())
    image = meta["network_data_format"]["inputs"]["image"]
    assert image["num_channels"] == 2
    assert image["channel_def"] == {"0": "T2", "1": "ADC"}
    arguments = json.loads((bundle / "configs" / "train.json").read_text())["network_def"]
    network = OasisNetwork(**{k: v for k, v in arguments.items() if k != "_target_"})
    network.load_state_dict(torch.load(bundle / "models" / "model.pt", weights_only=True))
    image = model.segmenter.library.images[:1]
    assert network(image).shape == (1, 2, *image.shape[2:])
    with pytest.raises(ValueError, match=r"expected \(B, 2, "):
        network(image[:, :1])


def test_a_cross_validation_scores_what_somebody_labelled(folder, found, cache, tmp_path):
    """Every method on two channels, corrupted copies and pictures included; scores against those of the cut masks."""
    methods = ["FwoW", "OASIS", "STAPLE", "OASIS-joint", "U-Net3D"]
    more = {"methods": methods, "corruptions": 1, "overlays": 2, "save_segmentations": True}
    crossval(settings(folder, cache, more), tmp_path, quiet)
    rows = scores_of(tmp_path)
    assert set(rows["case"]) == {case.id for case in found}
    assert set(rows["method"]) == set(methods)
    whole = rows[(rows["region"] == "whole") & (rows["method"] == "FwoW")].set_index("case")
    for case in found:
        label = read_image(case.label)[0][0]
        result = read_image(tmp_path / "segmentations" / f"{case.id}__FwoW-2.nii.gz")[0][0]
        known = label != UNKNOWN
        assert bool(known.all()) == (case.id not in PARTLY)
        both = float(((label == 1) & (result == 1) & known).sum())
        sums = float(((label == 1) & known).sum() + ((result == 1) & known).sum())
        assert whole.loc[case.id, "dsc"] == pytest.approx(2 * both / sums)
    assert (tmp_path / "overlays").is_dir()


def test_cases_of_other_channels_are_told_by_the_check(folder, found, cache, monkeypatch):
    odd = [*found[:-1], dataclasses.replace(found[-1], channels=())]
    monkeypatch.setattr(preparing, "find_selected_cases", lambda data, part="train": (odd, []))
    with pytest.raises(DataError, match=r"^channels: expected as many in every case, found 2 in Case00, 1 in Case06; give every"):
        find_and_check(settings(folder, cache), cache, quiet)


def test_the_library_lists_volumes_of_what_is_labelled(model):
    table = list_atlases(model.folder)
    assert "Case01" in table
    library = model.segmenter.library
    row = library.cases.index("Case01")
    grid = Geometry(tuple(library.images.shape[2:]), np.diag([2.5, 2.5, 8.0, 1.0]))
    expected = int((library.labels[row] == 1).sum()) * grid.voxel_ml
    assert model.record.values["atlases"]["Case01"]["volume_ml"]["gland"] == pytest.approx(expected, abs=1e-3)
