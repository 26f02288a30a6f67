"""Models that look again in boxes, from training to the scan's own grid."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from oasis_monai.data.io import read_volume
from oasis_monai.data.types import Case
from oasis_monai.segmentation.boxes import BoxSegmenter, lay_boxes, restore_boxes
from oasis_monai.segmentation.expected import Expected
from oasis_monai.segmentation.pipeline import Scan, segment_case
from oasis_monai.settings import build
from oasis_monai.training.boxes import train_box_network
from oasis_monai.transforms.boxes import box_grid, images_in_boxes, labelled_part, places_in_box
from oasis_monai.transforms.preprocessing import PreprocessCache
from oasis_monai.utils.errors import ConfigError
from oasis_monai.workflows.adapt import adapt_model
from oasis_monai.workflows.bundle.write import write_bundle
from oasis_monai.workflows.crossval import crossval
from oasis_monai.workflows.further_training import networks_of, train_further
from oasis_monai.workflows.model import load_model
from oasis_monai.workflows.train import train_model
from tests.conftest import JOINT, TINY, merged
from tests.helpers.runs import quiet, scores_of

OLD, NEW = [f"Case{i:02d}" for i in range(4)], "Case04"
BOXES = {"preprocessing": {"intensity": "zscore", "box_factor": [2, 2, 1]}, "joint": {"box_budget": 0.1}}
METHODS = ["majority", "estimate", "OASIS-joint"]


@pytest.fixture(scope="module")
def trained(phantom, tmp_path_factory):
    """The settings and the model folder."""
    base = tmp_path_factory.mktemp("boxes")
    data = {"data": {"root": str(phantom), "include": OLD}, "cache": str(base / "cache")}
    settings = build(merged(TINY, JOINT, BOXES, data))
    return settings, train_model(settings, base / "model", quiet)


@pytest.fixture(scope="module")
def scan(trained, phantom):
    """A scan that the model does not know."""
    case = Case(NEW, phantom / f"{NEW}.mhd", phantom / f"{NEW}_segmentation.mhd")
    return replace(read_volume(case, (0, 1)), label=None)


class Sure:
    """A box network that calls everything of some brightness a structure."""

    def __call__(self, slices):
        inside = (slices[:, 1] > 0).float()
        return torch.stack([1 - inside, inside], 1)


def found(model, scan, boxes, monkeypatch, methods=METHODS, preprocessing=None):
    monkeypatch.setattr(model.segmenter, "boxes", boxes)
    asked = Scan.of_volume(scan, preprocessing or model.settings.preprocessing)
    return segment_case(model.segmenter, asked, model.embed, methods, (2,))


def test_methods_with_an_estimate_are_looked_at_again(trained, scan, monkeypatch):
    """Within the boxes; the others, and the rest of the scan, stay as they are."""
    model = load_model(trained[1])
    monkeypatch.setattr("oasis_monai.segmentation.boxes.SURE", 0.3)
    before = found(model, scan, None, monkeypatch)
    assert before.boxes is None
    assert before.coarse is None
    after = found(model, scan, BoxSegmenter(Sure(), (2, 2, 1)), monkeypatch)
    assert after.boxes
    assert after.coarse is None, "it is not kept"
    plain, again = before.restore(), after.restore()
    assert torch.equal(plain["majority", 2].label, again["majority", 2].label)
    for key in (("estimate", 0), ("OASIS-joint", 2)):
        assert torch.equal(before.results[key].probability, after.results[key].probability)
        wanted = restore_boxes(plain[key], after.boxes)
        assert torch.equal(again[key].label, wanted.label)
        assert not torch.equal(again[key].label, plain[key].label)


def test_boxes_lie_where_the_coarse_pass_says_and_see_the_scan(trained, scan, monkeypatch):
    """The same steps one by one; whatever the reference says, which nobody has."""
    settings, folder = trained
    model = load_model(folder)
    monkeypatch.setattr("oasis_monai.segmentation.boxes.SURE", 0.3)
    segmenter, target = model.segmenter, settings.preprocessing.apply(scan)
    result = found(model, scan, segmenter.boxes, monkeypatch, ["estimate"])
    assert result.offset == (0, 0, 0)
    networks = segmenter.estimate(target, torch.arange(1)).networks[0]
    laid = lay_boxes((1 - networks[:, 0]).amax(0), target.geometry, (2, 2, 1))
    assert len(laid.boxes) == len(result.boxes) > 0
    images = images_in_boxes(settings.preprocessing, scan, laid.boxes)
    grids = [box_grid(target.geometry, box, (2, 2, 1)) for box in laid.boxes]
    seen = zip(images, grids, strict=True)
    said = [segmenter.boxes.label_box(image.float(), places_in_box(target.geometry, grid)) for image, grid in seen]
    if len(said) == 1:
        torch.testing.assert_close(result.boxes[0].probability, said[0])
    assert [tuple(one.probability.shape[1:]) for one in result.boxes] == [tuple(image.shape[1:]) for image in images]


def test_nothing_likely_is_said(trained, scan, monkeypatch):
    model = load_model(trained[1])
    monkeypatch.setattr("oasis_monai.segmentation.boxes.STRICTER", (1.1,))
    result = model.segment_volume(scan, "estimate", 2)
    assert "no_box" in [flag.name for flag in result.flags]
    monkeypatch.setattr(model.segmenter, "boxes", None)
    assert "no_box" not in [flag.name for flag in model.segment_volume(scan, "estimate", 2).flags]


def test_the_model_folder_holds_the_box_network(trained, scan):
    _, folder = trained
    model = load_model(folder)
    assert "boxes.safetensors" in model.record.checksums
    assert model.segmenter.boxes.factor == (2, 2, 1)
    assert model.segmenter.boxes.estimator.model.classes == 2
    first, second = (load_model(folder).segment_volume(scan, "OASIS-joint", 2).classes for _ in range(2))
    assert torch.equal(first, second)


def test_folds_are_scored_and_repeat_themselves(settings, tmp_path):
    some = {"methods": ["majority", "OASIS-joint"], "n": 2, "k": 2, "corruptions": 0, "browser": False}
    asked = settings(JOINT, BOXES, some, {"data": {"include": OLD}})
    first = crossval(asked, tmp_path / "a", quiet)
    assert set(scores_of(tmp_path / "a").method) == {"majority", "OASIS-joint"}
    fresh = replace(asked, cache=str(tmp_path / "fresh"))
    assert crossval(fresh, tmp_path / "b", quiet).read_bytes() == first.read_bytes()


def weights_of(segmenter):
    return [weight.clone() for weight in networks_of(segmenter).boxes.parameters()]


def test_without_new_scans_at_their_resolution_the_box_network_stays(trained):
    settings, folder = trained
    segmenter = load_model(folder).segmenter
    library = segmenter.library
    new = replace(library.subset([0]), cases=("new",), patients=("new",), estimates=None)
    made = train_further(segmenter, replace(settings, training=replace(settings.training, iterations=1)), new)
    assert all(torch.equal(a, b) for a, b in zip(weights_of(segmenter), weights_of(made), strict=True))


def test_adapting_trains_the_box_network_on(trained, phantom, tmp_path, monkeypatch):
    """From its weights, on the new scan at the boxes' resolution, with the model's classes."""
    settings, folder = trained
    learned = []

    def remembered(context, parts, joint, start):
        learned.append((context.library.cases, dict(parts), joint.lr, [w.clone() for w in start.parameters()]))
        return train_box_network(context, parts, joint, start)

    monkeypatch.setattr("oasis_monai.workflows.further_training.train_box_network", remembered)
    more = {"data": {"root": str(phantom), "include": [NEW]}, "cache": str(tmp_path / "cache")}
    options = build(merged(TINY, JOINT, BOXES, more))
    adapted = load_model(adapt_model(folder, tmp_path / "adapted", options, quiet))
    before = weights_of(load_model(folder).segmenter)
    ((cases, parts, lr, start),) = learned
    assert (cases, list(parts)) == ((NEW,), [NEW])
    assert lr < settings.joint.lr
    assert all(torch.equal(a, b) for a, b in zip(before, start, strict=True))
    store = PreprocessCache(None, settings.preprocessing, (0, 1), None)
    wanted = labelled_part(store, Case(NEW, phantom / f"{NEW}.mhd", phantom / f"{NEW}_segmentation.mhd"))
    assert torch.equal(parts[NEW].image, wanted.image)
    assert torch.equal(parts[NEW].label, wanted.label)
    after = weights_of(adapted.segmenter)
    assert not all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_a_bundle_of_it_is_refused(trained, tmp_path):
    with pytest.raises(ConfigError, match=r"^model: expected a model without boxes"):
        write_bundle(trained[1], tmp_path / "bundle", log=quiet)


def test_structures_that_may_lie_anywhere_are_named(config):
    made = build(config(JOINT, BOXES, {"joint": {"anywhere": ["prostate"]}}))
    assert made.anywhere == (1,)
    plain = build(config(JOINT, BOXES))
    for network, same in (("slices", False), ("boxes", False), ("registration", False), ("volume", True)):
        assert (made.identity(network) == plain.identity(network)) is same, network
    assert not {"anywhere", "even_draws"} & {*plain.to_json()["joint"], *plain.identity("slices")["joint"]}
    assert build(made.to_json()) == made
    with pytest.raises(ConfigError, match=r"^joint\.anywhere: expected names of structures: prostate, found 'lesion'"):
        build(config(JOINT, BOXES, {"joint": {"anywhere": ["lesion"]}}))


def test_what_training_labels_show_is_expected(trained):
    segmenter = load_model(trained[1]).segmenter
    assert segmenter.boxes.expected == Expected.of(segmenter.library)
    assert segmenter.boxes.expected.one_place == {1}


def test_the_budget_goes_with_the_boxes(config):
    with pytest.raises(ConfigError, match=r"^joint\.box_budget: expected above 0 where preprocessing\.box_factor is set"):
        build(config(JOINT, BOXES, {"joint": {"box_budget": 0.0}}))
    with pytest.raises(ConfigError, match=r"^joint\.box_budget: expected above 0 where"):
        build(config(JOINT, {"joint": {"box_budget": 0.1}}))
    made = build(config(JOINT, BOXES))
    assert np.isclose(sum(made.joint.budgets(3)), 0.9)
    plain = build(config(JOINT, {"preprocessing": {"intensity": "zscore"}}))
    for network in ("slices", "volume"):
        assert made.identity(network) == plain.identity(network), "they are the same networks"
    assert made.identity("registration") != plain.identity("registration")
    assert made.identity("boxes") != replace(made, joint=replace(made.joint, box_budget=0.05)).identity("boxes")
    assert "box_factor" not in plain.identity("boxes")["preprocessing"]
    told = plain.to_json()
    assert not {"box_factor", "box_budget"} & {*told["preprocessing"], *told["joint"]}, "records stay what they were"
    assert build(told) == plain
    assert build(made.to_json()) == made
