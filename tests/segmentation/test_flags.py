"""Every doubt is raised where there is reason and only there."""

import torch

from oasis_monai.atlases.library import AtlasLibrary
from oasis_monai.segmentation import flags


def library_of(features, cases, slices=None):
    count = len(cases)
    images = torch.zeros(count, 1, 4, 4) if slices is not None else torch.zeros(count, 1, 4, 4, 4)
    rows = torch.full((count,), -1) if slices is None else torch.tensor(slices)
    return AtlasLibrary(images, images.to(torch.uint8), torch.tensor(features).float(), tuple(cases), rows, 2)


def on_circle(*degrees):
    angle = torch.deg2rad(torch.tensor(degrees).float())
    return torch.stack([angle.cos(), angle.sin()], 1).tolist()


def chord(degrees):
    return 2 * float(torch.sin(torch.deg2rad(torch.tensor(degrees / 2))))


def test_reach_is_the_distance_of_the_loneliest_case_to_its_nearest():
    library = library_of(on_circle(0, 3, 5, 15), "abcd")
    assert abs(flags.typical_distance(library, "l2") - chord(10)) < 1e-6


def test_atlases_of_one_case_do_not_keep_each_other_company_and_the_median_of_its_slices_counts():
    degrees, cases = (0, 1, 80, 4, 6, 70), "aaabbb"
    library = library_of(on_circle(*degrees), cases, [0, 1, 2, 0, 1, 2])
    to_nearest = {"a": [4, 3, 10], "b": [3, 5, 10]}
    assert abs(flags.typical_distance(library, "l2") - chord(sorted(to_nearest["b"])[1])) < 1e-6


def test_a_single_case_says_nothing_of_others():
    assert flags.typical_distance(library_of(on_circle(0, 5), "aa", [0, 1]), "l2") is None
    assert flags.unlike_atlases(torch.tensor([9.0]), None) is None


def test_of_a_large_library_whole_cases_are_looked_at(monkeypatch):
    random = torch.Generator().manual_seed(0)
    cases = [f"c{i // 5}" for i in range(200)]
    library = library_of(torch.randn(200, 8, generator=random).tolist(), cases, list(range(5)) * 40)
    whole = flags.typical_distance(library, "l2")
    monkeypatch.setattr(flags, "IMAGES", 60)
    sample = flags.typical_distance(library, "l2")
    assert 0.5 * whole < sample <= whole
    monkeypatch.setattr(flags, "IMAGES", 200)
    assert flags.typical_distance(library, "l2") == whole


def test_a_scan_is_unlike_the_atlases_beyond_their_reach_times_the_margin():
    limit = 0.4
    assert flags.unlike_atlases(torch.tensor([limit * flags.MARGIN]), limit) is None
    found = flags.unlike_atlases(torch.tensor([limit * flags.MARGIN * 1.01]), limit)
    assert found.name == "unlike_atlases"
    assert "0.505" in found.text
    assert "0.4" in found.text
    slices = torch.tensor([0.1, 0.1, 9.0])  # one odd slice is not an odd scan
    assert flags.unlike_atlases(slices, limit) is None


def test_an_absent_structure_is_named():
    label = torch.zeros(3, 3, 3, dtype=torch.uint8)
    assert flags.empty(label, ["a", "b"]).text == "no voxel of a, b"
    label[1, 1, 1] = 2
    assert flags.empty(label, ["a", "b"]).text == "no voxel of a"
    label[0, 1, 1] = 1
    assert flags.empty(label, ["a", "b"]) is None


def test_a_structure_is_cut_where_it_touches_the_border_of_what_was_seen():
    seen = torch.zeros(8, 8, 8, dtype=torch.bool)
    seen[:, 1:7, 2:5] = True  # the grid is longer than the scan along two axes
    inner = torch.zeros(8, 8, 8, dtype=torch.uint8)
    inner[1:7, 2:6, 3] = 1
    assert flags.cut(inner, seen, ["gland"]) is None
    for place in ((0, 4, 3), (7, 4, 3), (4, 1, 3), (4, 6, 3), (4, 4, 2), (4, 4, 4)):
        label = inner.clone()
        label[place] = 1
        assert flags.cut(label, seen, ["gland"]).name == "cut"
        label[place] = 2
        assert flags.cut(label, seen, ["gland", "duct"]).text.startswith("duct at the border")


def test_folding_is_flagged_above_what_is_usual():
    assert flags.folding(400, 1000) is None
    assert flags.folding(401, 1000).text.startswith("40.1% of the voxels of the deformation fields fold")
    assert flags.folding(0, 0) is None
