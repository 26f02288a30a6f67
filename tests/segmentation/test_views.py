"""Where the parts disagree, a scan is also seen in other views."""

import dataclasses
import json
import math
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from oasis_monai.atlases.features import embedder, target_features
from oasis_monai.atlases.library import AtlasLibrary
from oasis_monai.data.io import read_volume
from oasis_monai.data.types import Case, Geometry, Volume
from oasis_monai.networks.slice_unet import JointSettings
from oasis_monai.segmentation import flags, views
from oasis_monai.segmentation.pipeline import Scan, segment_case
from oasis_monai.segmentation.segmenter import Segmenter
from oasis_monai.segmentation.views import (
    MARGIN,
    AtlasVolumes,
    Tried,
    ViewSearch,
    ViewSettings,
    _further,
    chosen,
    coarse_to_fine,
    networks_agreement,
    result_agreement,
    single_views,
)
from oasis_monai.transforms.preprocessing import Preprocessing
from oasis_monai.transforms.views import UNCHANGED, View, turned
from oasis_monai.workflows.crossval import crossval
from oasis_monai.workflows.library import add_atlas
from oasis_monai.workflows.model import load_model
from oasis_monai.workflows.segment import segment_scans
from oasis_monai.workflows.train import train_model
from tests.conftest import JOINT
from tests.helpers.runs import quiet

GRID = Preprocessing("physical", 3, (32, 32, 32), (1.0, 1.0, 1.0), intensity="zscore")


def shape():
    """A solid that has a hand: no rotation makes its mirror image of it."""
    mask = np.zeros((32, 32, 32), bool)
    mask[14:18, 14:18, 7:25] = True
    mask[14:28, 14:18, 19:25] = True
    mask[14:18, 14:23, 7:11] = True
    return torch.from_numpy(mask)


UPRIGHT = shape()
SINGLE = single_views()
ABOUT = [view for view in SINGLE if view.kinds == ("turn",) and "90 degrees about the long" in view.name]


def volume_of(mask, affine=None, inverted=False):
    image = mask.float() + 0.2 * torch.rand(mask.shape, generator=torch.Generator().manual_seed(1))
    image = image if not inverted else 1.2 - image
    geometry = Geometry(tuple(mask.shape), np.eye(4) if affine is None else affine)
    return Volume("c", image[None], mask[None].to(torch.uint8), geometry)


class KnowsUpright:
    """Two networks that find what is bright: the less of it lies where the atlas has the shape, the farther apart."""

    tta_views, volume_network = 0, True

    def __init__(self):
        self.looks = 0

    def quick(self):
        return self

    def network_probabilities(self, image):
        self.looks += 1
        bright = image[0] > image[0].mean() + image[0].std()
        fit = float(2 * (bright & UPRIGHT).sum() / (bright.sum() + UPRIGHT.sum()))
        apart = math.ceil(8 * max(0.0, 0.9 - fit))
        return torch.stack([torch.stack([~m, m]).float() for m in (bright, bright.roll(apart, 0))])


def segmenter(views="doubtful", estimator=None, atlases=(UPRIGHT,)):
    targets = [GRID.apply(volume_of(mask)) for mask in atlases]
    embed = embedder("intensity", None)
    features = torch.cat([target_features(dataclasses.replace(one, label=None), 3, embed) for one in targets])
    images, labels = (torch.stack([getattr(one, part) for one in targets]) for part in ("image", "label"))
    library = AtlasLibrary(images, labels, features, tuple("abcd"[: len(targets)]), torch.full((len(targets),), -1), 2)
    joint = JointSettings(recentre=False)
    return Segmenter(library, estimator=estimator or KnowsUpright(), joint=joint, views=ViewSettings(views)), embed


def segmented(volume, views="doubtful", **more):
    own, embed = segmenter(views, **more)
    return segment_case(own, Scan.of_volume(volume, GRID), embed, ("estimate",), (1,))


def dice(found, volume):
    label, truth = found.restore()["estimate", 0].label > 0, volume.label[0] > 0
    return float(2 * (label & truth).sum() / (label.sum() + truth.sum()))


def header(**sizes):
    return np.diag([sizes.get("x", 1.0), sizes.get("y", 1.0), sizes.get("z", 1.0), 1.0])


LYING = {
    "turned by 90 degrees about the long axis": volume_of(UPRIGHT.rot90(1, (0, 1)).contiguous()),
    "turned by 180 degrees about the front-back axis": volume_of(UPRIGHT.rot90(2, (2, 0)).contiguous()),
    "turned by 270 degrees about the left-right axis": volume_of(UPRIGHT.rot90(3, (1, 2)).contiguous()),
    "seen at 0.65 of its size": volume_of(UPRIGHT, header(x=1.5, y=1.5, z=1.5)),
    "seen at 1.6 of its size": volume_of(UPRIGHT, header(x=0.6, y=0.6, z=0.6)),
    "seen at 0.67 of its size in plane": volume_of(UPRIGHT, header(x=1.5, y=1.5)),
    "with inverted intensities": volume_of(UPRIGHT, inverted=True),
}


@pytest.mark.parametrize("name", LYING)
def test_the_view_in_which_a_network_recognises_the_shape_is_found_and_its_label_comes_back(name):
    before, after = segmented(LYING[name], "none"), segmented(LYING[name])
    assert after.view.name == name
    assert dice(after, LYING[name]) > max(0.9, dice(before, LYING[name]))
    assert after.tried[0] == Tried(UNCHANGED, pytest.approx(after.tried[0].agreement))
    assert after.tried[0].agreement < 0.85 < max(one.agreement for one in after.tried)
    assert (before.tried, before.view) == ((), UNCHANGED)
    doubt = flags.view(after.tried)
    assert doubt.name == "view"
    assert name in doubt.text


def test_two_faults_at_once_are_mended_together():
    both = volume_of(UPRIGHT.rot90(1, (0, 1)).contiguous(), header(x=1.5, y=1.5, z=1.5))
    found = segmented(both)
    assert set(found.view.kinds) == {"turn", "scale"}
    assert dice(found, both) > 0.85


def test_a_mirror_image_is_never_taken():
    mirrored = volume_of(UPRIGHT.flip(0))
    found = segmented(mirrored)
    assert found.tried  # it was looked for
    assert max(one.agreement for one in found.tried) < 0.9
    every = [*SINGLE, *(view for one in SINGLE for view in _further(one, SINGLE))]
    assert min(np.linalg.det(np.array(view.matrix)) for view in every) > 0


def test_all_24_rotations_of_the_axes_can_be_reached():
    right = [view for view in SINGLE if view.kinds == ("turn",) and "20" not in view.name]
    found = {UNCHANGED.matrix, *(view.matrix for view in right)}
    found |= {view.matrix for one in right for view in _further(one, right)}
    assert len(found) == 24


def test_turns_are_named_after_the_axes_of_the_body():
    """A turn by 180 degrees about the working grid's second axis, whatever that is."""
    for slice_axis, axis, looks in (("axial", "front-back", "upside down"), ("coronal", "long", "back to front")):
        (over,) = (view for view in single_views(slice_axis) if view.matrix == turned(180, "y"))
        assert axis in over.name
        assert looks in over.meaning
    (flat,) = (view for view in single_views("sagittal") if view.matrix == turned(90, "z"))
    assert "left-right" in flat.name


def test_a_scan_that_is_not_doubtful_is_looked_at_once():
    networks = KnowsUpright()
    found = segmented(volume_of(UPRIGHT), estimator=networks)
    assert (networks.looks, found.view, found.tried) == (1, UNCHANGED, ())
    networks = KnowsUpright()
    found = segmented(volume_of(UPRIGHT), "all", estimator=networks)
    assert networks.looks > len(SINGLE) - 2
    assert found.view == UNCHANGED
    assert found.tried[0].agreement > 0.99


@pytest.mark.parametrize(
    ("voxels", "quick", "wanted"),
    [
        (400, 0.95, True),  # larger than most, and the networks agree more on a smaller one
        (400, 0.93, False),  # by no more than 0.04
        (130, 0.95, False),  # of common size: nobody looks
        (60, 0.95, False),  # smaller than most: looked at larger
    ],
)
def test_a_scan_on_whose_wrong_size_the_parts_agree_is_seen_in_the_right_one(monkeypatch, voxels, quick, wanted):
    smaller, looked = "seen at 0.65 of its size", []
    said = {"": 0.9, smaller: quick}
    monkeypatch.setattr(views, "networks_agreement", lambda found, _: found)

    def seen(view):
        looked.append(view.name)
        return SimpleNamespace(name=view.name, image=torch.zeros(1) if view.name else torch.ones(1))

    atlases = volumes(4, 4, 4, 4, 4, 5, 5, 5, 5, 7)
    search = ViewSearch(ViewSettings("doubtful"), atlases, lambda scan: said.get(scan.name, 0.5))
    tried = search(seen, lambda view: 0.93 if view.name == smaller else 0.5, 0.91, np.array([voxels]))
    assert bool(tried) == wanted
    if wanted:
        assert chosen(tried).view.name == smaller
    sizes = {400: [smaller, "seen at 0.8 of its size"], 130: [], 60: ["seen at 1.2 of its size", "seen at 1.6 of its size"]}
    assert looked[: len(sizes[voxels])] == sizes[voxels]
    assert (smaller in looked) == (voxels == 400)


def test_networks_that_agree_on_nothing_ask_for_no_other_size(monkeypatch):
    """After a minute of training another size may agree more by chance."""
    monkeypatch.setattr(views, "networks_agreement", lambda found, _: found)
    search = ViewSearch(ViewSettings("doubtful"), volumes(4, 5), lambda view: 0.84 if view.name else 0.5)
    assert search(lambda view: view, lambda view: 1.0, 0.86, np.array([400])) == ()


def test_what_is_larger_or_smaller_than_most_may_have_another_size():
    atlases = volumes(4, 4, 4, 4, 4, 5, 5, 5, 5, 7)  # 64, 125 and 343 voxels
    assert atlases.common[:, 0].tolist() == pytest.approx([64, 125 + 0.1 * 218])
    sizes = {voxels: [view.name for view in atlases.other_sizes(np.array([voxels]))] for voxels in (0, 63, 64, 146, 147)}
    assert sizes[0] == sizes[64] == sizes[146] == []
    assert sizes[147] == ["seen at 0.65 of its size", "seen at 0.8 of its size"]
    assert sizes[63] == ["seen at 1.2 of its size", "seen at 1.6 of its size"]
    fine = torch.stack([~box(5), box(5)]).float().repeat_interleave(2, 1).repeat_interleave(2, 2)  # a fine grid
    assert atlases.voxels(fine).tolist() == [125]


def test_where_the_parts_do_not_even_agree_on_the_atlases_no_scan_is_doubtful():
    """A network that knows none of the model's own atlases: their agreement is as low as that of the scan."""
    lying = LYING["turned by 90 degrees about the long axis"]
    known, _ = segmenter(atlases=(UPRIGHT, UPRIGHT, UPRIGHT))
    strange, _ = segmenter(atlases=(lying.label[0] > 0, lying.label[0] > 0, UPRIGHT))
    assert known.usual_agreement > 0.99
    assert strange.usual_agreement < 0.7
    assert segmenter()[0].usual_agreement == 1.0  # one patient tells nothing
    assert segmented(lying, atlases=(UPRIGHT, UPRIGHT, UPRIGHT)).view
    assert segmented(lying, atlases=(lying.label[0] > 0, lying.label[0] > 0, UPRIGHT)).tried == ()
    assert segmented(lying, "all", atlases=(lying.label[0] > 0, lying.label[0] > 0, UPRIGHT)).tried


def test_a_grid_that_has_to_stay_shows_no_other_view():
    own, embed = segmenter("all")
    target = dataclasses.replace(GRID.apply(LYING["with inverted intensities"]), label=None)
    assert segment_case(own, Scan(target), embed, ("estimate",), (1,)).tried == ()
    with pytest.raises(ValueError, match="has to stay"):
        Scan(target).seen(SINGLE[0])


def test_a_model_that_cannot_disagree_looks_for_no_view():
    own, _ = segmenter()
    assert own.view_search is not None
    assert Segmenter(own.library, views=ViewSettings("all")).view_search is None
    assert segmenter("none")[0].view_search is None


def maps(*masks):
    """(2, C, ...) of two networks, each a list of structures."""
    one = [torch.stack([~torch.stack(list(own)).any(0), *own]).float() for own in masks]
    return torch.stack(one)


def box(size, at=0):
    mask = torch.zeros(12, 12, 12, dtype=torch.bool)
    mask[at : at + size, :size, :size] = True
    return mask


def volumes(*sizes, absent=0):
    labels = torch.stack([box(size)[None].to(torch.uint8) for size in sizes] + [torch.zeros(1, 12, 12, 12).byte()] * absent)
    return AtlasVolumes.of(labels, 2)


def test_what_both_find_nothing_of_or_a_scrap_is_no_agreement():
    atlases = volumes(4, 6)
    nothing, scrap = torch.zeros(12, 12, 12, dtype=torch.bool), box(3)
    assert networks_agreement(maps([box(5)], [box(5)]), atlases) == 1
    assert networks_agreement(maps([nothing], [nothing]), atlases) == 0
    assert networks_agreement(maps([scrap], [scrap]), atlases) == 0  # 27 voxels, the smallest atlas has 64
    assert networks_agreement(maps([box(10)], [box(10)]), atlases) == 0
    half = networks_agreement(maps([box(4)], [box(4, 2)]), atlases)
    assert half == pytest.approx(0.5)
    assert networks_agreement(maps([nothing], [nothing]), volumes(4, absent=3)) == 0  # nothing is found at all
    several = torch.tensor([[[8.0, 8], [0, 0]], [[6, 8], [0, 0]]])  # two structures, of which only some atlases have the second
    result = torch.stack([~box(4), box(4), torch.zeros(12, 12, 12).bool()]).float()
    often = AtlasVolumes(np.array([60.0, 9]), np.array([70.0, 9]), np.array([True, False]), np.array([[60.0, 9], [70, 9]]))
    assert result_agreement(several, result, often) == pytest.approx((1 + 0.75) / 2)
    always = dataclasses.replace(often, always=np.array([True, True]))
    assert result_agreement(several, result, always) == pytest.approx((1 + 0.75) / 4)
    small = dataclasses.replace(often, lowest=np.array([900.0, 9]))
    assert result_agreement(several, result, small) == 0
    assert result_agreement(several, result, small, 0.5) == pytest.approx((1 + 0.75) / 4)


def test_the_scan_as_it_is_wins_unless_another_view_agrees_more_by_a_margin():
    other = View("o", intensities=("inverted",))
    first = Tried(UNCHANGED, 0.7)
    assert chosen([first, Tried(other, 0.7 + MARGIN)]) is first
    assert chosen([first, Tried(other, 0.71 + MARGIN)]).view == other
    assert chosen([first]) is first
    both = Tried(View("b", kinds=("scale", "intensity")), 0.905)
    assert chosen([first, both, Tried(View("s", kinds=("scale",)), 0.9)]).view.name == "s"
    assert chosen([first, both, Tried(View("s", kinds=("scale",)), 0.89)]) is both
    size = Tried(View("s", kinds=("scale",)), 0.715)
    assert chosen([first, size, Tried(other, 0.73)]) is size  # another size needs less
    assert chosen([first, size, Tried(other, 0.75)]).view == other
    assert chosen([first, Tried(size.view, 0.705)]) is first
    assert flags.view([first, Tried(other, 0.71)]) is None
    assert flags.view([]) is None


def test_from_coarse_to_fine():
    values = {view: 0.1 for view in SINGLE}
    values[ABOUT[0]] = 0.6
    best = next(view for view in SINGLE if view.name == "seen at 0.65 of its size")
    looked = []

    def look(view):
        looked.append(view)
        return 0.8 if view.matrix == ABOUT[0].with_view(best).matrix else 0.0 if "noise" in view.name else values.get(view, 0.2)

    ranked = coarse_to_fine(look, SINGLE)
    assert ranked[0].matrix == ABOUT[0].with_view(best).matrix
    assert ranked[1] == ABOUT[0]
    assert ranked[2] in SINGLE  # not a third that rests on the same guess
    assert len(ranked) == 3
    assert len(looked) == len(set(looked)) == len(SINGLE) + len([v for v in SINGLE if v.kinds != ("turn",)])
    looked.clear()
    values[ABOUT[0]] = 0.95  # convincing
    assert coarse_to_fine(look, SINGLE)[0] == ABOUT[0]
    assert len(looked) == len(SINGLE)
    assert coarse_to_fine(lambda view: 0.0, SINGLE) == []
    only = coarse_to_fine(lambda view: 0.4 if view.intensities == ("inverted",) else -1.0, SINGLE)
    assert [view.intensities for view in only] == [("inverted",)]


@pytest.mark.slow
def test_results_tell_the_view_and_are_made_again_where_it_may_be_another(settings, phantom, tmp_path, monkeypatch):
    monkeypatch.setattr("oasis_monai.evaluation.contours.overlay", lambda *a, **k: None)
    model = train_model(settings(JOINT), tmp_path / "m", quiet)
    taken = View("turned", ABOUT[0].matrix, (), ("turn",), "the scan looks turned")
    monkeypatch.setattr("oasis_monai.segmentation.views.coarse_to_fine", lambda look, singles: [taken])
    monkeypatch.setattr(ViewSearch, "agreement", lambda self, results, unchanged=False: 0.5 - unchanged)
    monkeypatch.setattr(Segmenter, "usual_agreement", 1.0)
    told = {}

    def record(**options):
        assert segment_scans(model, phantom / "Case01.mhd", tmp_path / "o", n=1, log=quiet, **options) == []
        return json.loads((tmp_path / "o" / "Case01.json").read_text())

    told["as trained"] = record()
    assert told["as trained"]["view"] is None
    assert told["as trained"]["views_tried"] == {}
    assert "views" not in told["as trained"]["asked"]
    told["all"] = record(views="all")
    assert told["all"]["view"] == "turned"
    assert told["all"]["views_tried"] == {"as it is": -0.5, "turned": 0.5}
    assert "view" in [flag["name"] for flag in told["all"]["flags"]]
    (tmp_path / "o" / "Case01.json").touch()
    stamp = (tmp_path / "o" / "Case01.json").stat().st_mtime_ns
    record(views="all")
    assert (tmp_path / "o" / "Case01.json").stat().st_mtime_ns == stamp  # finished before
    assert record(views="doubtful", views_below=0.0)["view"] == "turned"  # -0.5 is below it
    monkeypatch.setattr(ViewSearch, "agreement", lambda self, results, unchanged=False: 0.5)
    assert record(views="doubtful", views_below=0.4)["view"] is None
    assert record(views="none")["asked"] == told["as trained"]["asked"]


@pytest.mark.slow
def test_an_atlas_is_added_in_the_view_in_which_it_looks_like_the_others(settings, phantom, tmp_path, monkeypatch):
    model = train_model(
        settings(JOINT, {"views": "all", "data": {"include": [f"Case0{i}" for i in range(5)]}}), tmp_path / "m", quiet
    )
    monkeypatch.setattr("oasis_monai.segmentation.views.coarse_to_fine", lambda look, singles: [ABOUT[0]])
    monkeypatch.setattr(ViewSearch, "agreement", lambda self, results, unchanged=False: 1.0 - unchanged)
    scan, label = phantom / "Case05.mhd", phantom / "Case05_segmentation.mhd"
    said = []
    add_atlas(model, scan, label, log=said.append)
    assert any("looks turned" in line and "as it is seen there" in line for line in said)
    loaded = load_model(model, "cpu")
    volume = read_volume(Case("Case05", scan, label), (0, 1))
    seen = loaded.settings.preprocessing.apply(volume, (0, 0, 0), ABOUT[0])
    assert torch.allclose(loaded.segmenter.library.images[-1].float(), seen.image, atol=1e-2)
    assert torch.equal(loaded.segmenter.library.labels[-1], seen.label)
    found = loaded.segment(scan, n=1)
    assert (found.is_atlas, found.view) == ("Case05", ABOUT[0].name)
    assert load_model(model, "cpu", views="none").segment(phantom / "Case00.mhd", n=1).is_atlas == "Case00"
    assert loaded.segment(phantom / "Case00.mhd", n=1).is_atlas == "Case00"  # however it is seen


@pytest.mark.slow
def test_a_cross_validation_lists_the_views_and_keeps_their_fields_apart(settings, tmp_path, monkeypatch, aligned):
    asked = settings(JOINT, {"methods": ["FwoW", "estimate", "OASIS-joint"], "n": [2], "k": 2})
    crossval(asked, tmp_path / "none", quiet)
    before = sum(aligned)
    monkeypatch.setattr("oasis_monai.segmentation.views.coarse_to_fine", lambda look, singles: [ABOUT[0]])
    monkeypatch.setattr(ViewSearch, "agreement", lambda self, results, unchanged=False: 1.0 - unchanged)
    searching = dataclasses.replace(asked, views="all")
    crossval(searching, tmp_path / "all", quiet)
    assert sum(aligned) == 2 * before
    plain, seen = (pd.read_csv(tmp_path / run / "scores.csv").query("region == 'whole'") for run in ("none", "all"))
    for method, same in (("FwoW", True), ("OASIS-joint", False)):
        assert (plain[plain.method == method].dsc.to_list() == seen[seen.method == method].dsc.to_list()) is same
    views = pd.read_csv(tmp_path / "all" / "views.csv")
    assert set(views.columns) == {"protocol", "fold", "case", "view", "agreement", "taken"}
    assert views[views.taken].view.unique().tolist() == [ABOUT[0].name]
    assert not (tmp_path / "none" / "views.csv").exists()
    crossval(searching, tmp_path / "again", quiet)
    assert sum(aligned) == 2 * before
    for name in ("scores.csv", "views.csv"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "all" / name).read_bytes()
