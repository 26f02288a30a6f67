"""A grid that follows the structures."""

import dataclasses
import json
import types

import numpy as np
import pandas as pd
import pytest
import torch

from oasis_monai.data.io import read_image
from oasis_monai.data.types import Geometry, Preprocessed, Selection, Volume
from oasis_monai.segmentation import pipeline
from oasis_monai.segmentation.estimate import Estimate, Estimator
from oasis_monai.segmentation.recentre import NO_OFFSET, AtlasPositions, recentre
from oasis_monai.segmentation.result import Result
from oasis_monai.segmentation.segmenter import Segmented
from oasis_monai.transforms.preprocessing import Preprocessing, restore
from oasis_monai.workflows.crossval import crossval
from oasis_monai.workflows.segment import segment_scans
from oasis_monai.workflows.train import train_model
from tests.conftest import CASES, JOINT
from tests.helpers.runs import pixels, quiet

GRID = (24, 20, 12)


def ball(centre, radius=3.0, shape=GRID):
    axes = np.meshgrid(*map(np.arange, shape), indexing="ij")
    return torch.from_numpy(sum((a - c) ** 2 for a, c in zip(axes, centre, strict=True)) <= radius**2)


def estimate(mask):
    return torch.stack([~mask, mask]).float()


ATLASES = torch.stack([ball(c)[None].to(torch.uint8) for c in ((10, 10, 6), (12, 9, 5), (14, 10, 5))])
PLACES = AtlasPositions.of(ATLASES)


def test_the_grid_stays_where_some_atlas_has_its_structures_and_moves_to_the_mean_from_beyond():
    assert PLACES.lowest == pytest.approx([10, 9, 5], abs=0.05)
    assert PLACES.highest == pytest.approx([14, 10, 6], abs=0.05)
    for centre in ((10, 10, 5), (14, 9, 6), (15, 11, 4), (9, 8, 7)):
        assert PLACES.offset(estimate(ball(centre))) == NO_OFFSET
    assert PLACES.offset(estimate(ball((18, 10, 5)))) == (6, 0, 0)
    assert PLACES.offset(estimate(ball((12, 5, 8)))) == (0, -5, 3)
    assert PLACES.offset(estimate(torch.zeros(GRID, dtype=torch.bool))) == NO_OFFSET
    assert AtlasPositions.of(torch.zeros(2, 1, *GRID)) is None
    several = torch.stack([~ball((19, 10, 5)), ball((19, 10, 5)), ball((19, 10, 5))]).float()
    assert PLACES.offset(several) == (7, 0, 0)  # of all structures together


def scan(centre):
    """A wide scan with a bright ball; -> how it looks on a grid moved by so many voxels."""
    wide = ball(centre, shape=(80, 80, 40)).float()
    start = np.array([(80 - 24) // 2, (80 - 20) // 2, (40 - 12) // 2])

    def again(move):
        x, y, z = start + move
        image = wide[x : x + 24, y : y + 20, z : z + 12][None]
        return Preprocessed("c", image, None, Geometry(GRID, np.eye(4)), Geometry((80, 80, 40), np.eye(4)))

    return again


def look(target):
    return torch.stack([estimate(target.image[0] > 0.5)] * 2)


def test_a_structure_at_the_edge_is_shown_whole_where_atlases_have_it():
    again = scan((28 + 24, 30 + 10, 14 + 5))  # two thirds of it beyond the edge
    target, voices, moved = recentre(PLACES, again(NO_OFFSET), look, again)
    assert (moved[0] in (11, 12), *moved[1:]) == (True, 0, 0)  # as far out as some atlas is near enough
    assert torch.equal(voices[0, 1] > 0, ball((24 - moved[0], 10, 5)))
    assert torch.equal(look(target), voices)


@pytest.mark.parametrize("aside", [(14, 0, 0), (-13, 2, 0), (0, 16, 1), (1, -15, 0), (0, 1, 9), (12, 9, 0)])
def test_what_the_first_grid_does_not_show_is_looked_for_on_every_side(aside):
    again = scan(np.array([28 + 12, 30 + 10, 14 + 5]) + aside)
    shown = int((again(NO_OFFSET).image > 0).sum())
    assert shown < PLACES.smallest / 2
    _, voices, moved = recentre(PLACES, again(NO_OFFSET), look, again)
    assert np.abs(np.array(moved) - aside).max() <= 5
    assert int((voices[0, 1] > 0).sum()) == int(ball((10, 10, 6)).sum())


def test_nothing_is_looked_for_beyond_the_scan():
    asked = []

    def again(move):
        asked.append(move)
        return dataclasses.replace(blank, image=torch.zeros(1, *GRID))

    native = Geometry((24, 50, 12), np.array([[1.0, 0, 0, 0], [0, 1, 0, -15], [0, 0, 1, 0], [0, 0, 0, 1]]))
    blank = Preprocessed("c", torch.zeros(1, *GRID), None, Geometry(GRID, np.eye(4)), native)
    assert recentre(PLACES, blank, look, again)[2] == NO_OFFSET
    assert asked == [(-12, 0, 0), (12, 0, 0), (0, -10, 0), (0, 10, 0), (0, 0, -6), (0, 0, 6)]
    asked.clear()
    narrow = dataclasses.replace(blank, native=Geometry((20, 50, 8), native.affine))
    recentre(PLACES, narrow, look, again)
    assert asked == [(-12, 0, 0), (0, -10, 0), (0, 10, 0), (0, 0, -6)]


def test_a_scan_as_the_atlases_is_looked_at_once():
    again = scan((28 + 12, 30 + 10, 14 + 5))
    seen = []
    _, _, moved = recentre(PLACES, again(NO_OFFSET), lambda t: seen.append(t) or look(t), lambda move: pytest.fail("moved"))
    assert (moved, len(seen)) == (NO_OFFSET, 1)


def test_a_grid_that_loses_most_of_what_was_seen_is_left_again():
    there = scan((28 + 20, 30 + 10, 14 + 5))
    hardly = dataclasses.replace(there(NO_OFFSET), image=ball((12, 10, 5), 1)[None].float())
    _, voices, moved = recentre(PLACES, there(NO_OFFSET), look, lambda move: hardly)
    assert moved == NO_OFFSET
    assert torch.equal(voices, look(there(NO_OFFSET)))


def test_a_small_structure_is_not_left_for_a_scrap_elsewhere():
    own = ball((12, 10, 5), 2)  # 27 % of the smallest atlas
    here = Preprocessed("c", own[None].float(), None, Geometry(GRID, np.eye(4)), Geometry((80, 80, 40), np.eye(4)))
    scrap = dataclasses.replace(here, image=ball((12, 10, 5), 2.3)[None].float())
    assert own.sum() < (scrap.image > 0).sum() < PLACES.smallest / 2
    _, voices, moved = recentre(PLACES, here, look, lambda move: scrap)
    assert moved == NO_OFFSET
    assert torch.equal(voices[0, 1] > 0, own)


def test_a_moved_grid_on_which_the_networks_do_not_agree_is_left_again():
    again = scan((28 + 20, 30 + 10, 14 + 5))

    def heard(here, there):
        """Two networks that agree so well on the first grid and on moved ones."""

        def two(target):
            own = look(target)[0]
            aside = here if torch.equal(target.image, again(NO_OFFSET).image) else there
            return torch.stack([own, own.roll(aside, 2)])

        return two

    assert recentre(PLACES, again(NO_OFFSET), heard(1, 1), again)[2] != NO_OFFSET
    assert recentre(PLACES, again(NO_OFFSET), heard(2, 1), again)[2] != NO_OFFSET
    assert recentre(PLACES, again(NO_OFFSET), heard(1, 2), again)[2] == NO_OFFSET  # less than before
    assert recentre(PLACES, again(NO_OFFSET), heard(5, 4), again)[2] == NO_OFFSET  # more, but little
    target, voices, _ = recentre(PLACES, again(NO_OFFSET), heard(5, 4), again)
    assert torch.equal(target.image, again(NO_OFFSET).image)
    assert torch.equal(voices, heard(5, 4)(target))


def test_a_grid_that_shows_nothing_is_left_again():
    there = scan((28 + 20, 30 + 10, 14 + 5))
    blank = dataclasses.replace(there(NO_OFFSET), image=torch.zeros(1, *GRID))
    _, voices, moved = recentre(PLACES, there(NO_OFFSET), look, lambda move: blank)
    assert moved == NO_OFFSET
    assert (voices[0, 1] > 0).any()


@pytest.mark.parametrize("flip", [False, True])
def test_a_moved_grid_shows_the_same_scan_and_results_come_back_from_it(flip):
    affine = np.diag([-0.5 if flip else 0.5, 0.5, 3.0, 1.0])
    label = ball((50, 20, 9), 6, (80, 60, 20)).to(torch.uint8)[None]
    volume = Volume("c", torch.rand(1, 80, 60, 20), label, Geometry((80, 60, 20), affine))
    setting = Preprocessing("physical", 3, (48, 40, 24), (0.5, 0.5, 3.0))
    plain, moved = setting.apply(volume), setting.apply(volume, (5, -3, 1))
    assert torch.allclose(plain.label[:, 5:, :-3, 1:], moved.label[:, :-5, 3:, :-1])
    assert moved.geometry.affine[:3, 3] - plain.geometry.affine[:3, 3] == pytest.approx([2.5, -1.5, 3])
    back = restore(torch.stack([moved.label[0] == 0, moved.label[0] == 1]).float(), moved.geometry, moved.native)
    both = (back.label > 0) & (label[0] > 0)
    assert 2 * both.sum() / (back.label.sum() + label.sum()) == 1  # the same voxels


@pytest.mark.parametrize("take", [0, 1])
@pytest.mark.parametrize("fine", [False, True])
def test_what_is_fused_is_the_estimate_of_the_grid_that_is_taken(fine, take, monkeypatch):
    """On a fine grid one estimate is held at a time: an earlier one is made once more."""
    grid = Geometry((4, 4, 4), np.eye(4))
    plain = [Preprocessed("c", torch.full((1, 4, 4, 4), value), None, grid, grid) for value in (0.2, 0.6)]
    seen = [dataclasses.replace(one, fine=one) if fine else one for one in plain]
    looked, fused = [], []

    def estimated(one, which):
        looked.append(one)
        maps = one.image.expand(2, 4, 4, 4)[None, None].clone()
        return Estimate(maps, maps[0] if fine else None)

    def segment(one, features, methods, ns, fields, exclude, only, known, keep):
        fused.append((one, known))
        result = {("estimate", 0): Result(torch.ones(2, 4, 4, 4), None)}
        return Segmented(result, Selection(torch.zeros(1, 1).long(), torch.zeros(1, 1)), None)

    def moving(positions, target, look, preprocess_at):
        found = [(one, look(one), move) for one, move in zip(seen, (NO_OFFSET, (1, 0, 0)), strict=True)]
        return found[take]

    class Stub:
        atlas_positions, view_search, spatial_dims, boxes = PLACES, None, 3, None
        library = types.SimpleNamespace(cases=("a",), slices=torch.tensor([-1]))
        estimate = staticmethod(estimated)
        __call__ = staticmethod(segment)

    monkeypatch.setattr(pipeline, "recentre", moving)
    scan = pipeline.Scan(seen[0], lambda move, view: seen[1], torch.zeros(1, 3))
    found = pipeline.segment_case(Stub(), scan, lambda images, size: torch.zeros(len(images), 3), ("estimate",), (1,))
    ((target, known),) = fused
    assert target is found.target is seen[take]
    assert torch.equal(known.networks, plain[take].image.expand(2, 4, 4, 4)[None, None])
    assert len(looked) == (3 if fine and take == 0 else 2)


def bright(self, image):
    """An estimate that depends on what is seen alone."""
    mask = image[0] > image[0].mean() + image[0].std()
    return torch.stack([estimate(mask), estimate(mask)])


def once(move):
    """Every target is moved once."""
    steps = []

    def step(self, seen):
        steps.append(seen)
        return move if len(steps) % 2 else NO_OFFSET

    return step


@pytest.mark.slow
def test_a_cross_validation_puts_results_of_a_moved_grid_where_they_belong(settings, tmp_path, monkeypatch, aligned):
    methods = {"methods": ["FwoW", "estimate", "OASIS-joint", "U-Net3D"], "n": [1, 2], "k": 2}
    asked = settings(methods, JOINT, {"save_segmentations": True})
    monkeypatch.setattr(Estimator, "network_probabilities", bright)
    monkeypatch.setattr(AtlasPositions, "offset", lambda *_: NO_OFFSET)
    crossval(asked, tmp_path / "a", quiet)
    before = sum(aligned)
    monkeypatch.setattr(AtlasPositions, "offset", once((3, -2, 0)))
    crossval(asked, tmp_path / "b", quiet)
    assert sum(aligned) == 2 * before  # other fields
    plain, moved = (pd.read_csv(tmp_path / run / "scores.csv").query("region == 'whole'") for run in "ab")
    for method in ("FwoW", "U-Net3D"):  # no estimate to follow
        assert plain[plain.method == method].dsc.to_list() == moved[moved.method == method].dsc.to_list()
    before_and_after = pixels(tmp_path / "a"), pixels(tmp_path / "b")
    names = [name for name in before_and_after[0] if "__estimate" in name]
    assert len(names) == CASES
    for name in names:  # nothing moved but the edges of what is seen
        one, other = (run[name] > 0 for run in before_and_after)
        common = {shift: int((one & np.roll(other, shift, 0)).sum()) for shift in range(-9, 10)}
        assert (one != other).any()
        assert abs(max(common, key=common.get)) <= 1, name
    crossval(asked, tmp_path / "c", quiet)
    assert sum(aligned) == 2 * before
    assert (tmp_path / "c" / "scores.csv").read_bytes() == (tmp_path / "b" / "scores.csv").read_bytes()
    still = dataclasses.replace(asked, joint=dataclasses.replace(asked.joint, recentre=False))
    crossval(still, tmp_path / "d", quiet)
    assert (tmp_path / "d" / "scores.csv").read_bytes() == (tmp_path / "a" / "scores.csv").read_bytes()


@pytest.mark.slow
def test_segment_follows_and_tells_by_how_much(settings, phantom, tmp_path, monkeypatch):
    monkeypatch.setattr("oasis_monai.evaluation.contours.overlay", lambda *a, **k: None)
    model = train_model(settings(JOINT), tmp_path / "m", quiet)
    found = {}
    for name, step in (("still", lambda *_: NO_OFFSET), ("moved", once((1, 0, 0)))):
        monkeypatch.setattr(AtlasPositions, "offset", step)
        monkeypatch.setattr(Estimator, "network_probabilities", bright)
        assert segment_scans(model, phantom / "Case01.mhd", tmp_path / name, n=1, method="estimate", log=quiet) == []
        found[name] = json.loads((tmp_path / name / "Case01.json").read_text())
    spacing = settings(JOINT).preprocessing.spacing_mm
    assert found["still"]["moved_mm"] is None
    assert found["moved"]["moved_mm"] == pytest.approx([spacing[0], 0, 0])
    one, other = (read_image(tmp_path / name / told["label"])[0] > 0 for name, told in found.items())
    assert float(2 * (one & other).sum() / (one.sum() + other.sum())) > 0.9
    again = json.loads((tmp_path / "moved" / "Case01.json").read_text())["asked"]
    assert again["recentre"] is True
