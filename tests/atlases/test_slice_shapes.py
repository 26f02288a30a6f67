"""Shape-based interpolation between labelled slices."""

import pytest
import torch

from oasis_monai.atlases.library import AtlasLibrary
from oasis_monai.atlases.slices import interpolate_shape, neighbours, signed_distance
from oasis_monai.networks.slice_unet import MAX_DISTANCE


def discs(radii, cases, slices, classes=2, index=1, size=40):
    """Slices with a disc of each radius in their middle (0: none) as a library."""
    grid = torch.stack(torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")).float() - size // 2
    far = grid.square().sum(0).sqrt()
    labels = torch.stack([index * (far < r).to(torch.uint8)[None] for r in radii])
    count = len(radii)
    return AtlasLibrary(
        torch.rand(count, 1, size, size), labels, torch.rand(count, 3), tuple(cases), torch.tensor(slices), classes
    )


def radius(distance):
    """Of the disc that a distance map describes."""
    return float((distance > 0).sum() / torch.pi) ** 0.5


def test_distances_are_positive_inside_and_end_at_the_reach():
    library = discs([8], "a", [0])
    found = signed_distance(library.labels, 2)
    assert found.shape == (1, 1, 40, 40)
    assert torch.equal(found[0, 0] > 0, library.labels[0, 0] == 1)
    assert float(found.min()) == -MAX_DISTANCE
    assert float(found[0, 0, 20, 20]) == pytest.approx(8, abs=0.5)
    assert float(found[0, 0, 20, 31]) == pytest.approx(-4, abs=0.5)


def test_a_structure_that_is_not_there_is_far_everywhere():
    library = discs([0, 8], "aa", [0, 1], classes=4, index=3)
    found = signed_distance(library.labels, 4)
    assert bool((found[0] == -MAX_DISTANCE).all())
    assert bool((found[1, :2] == -MAX_DISTANCE).all())
    assert bool((found[1, 2] > 0).any())


def test_neighbours_are_the_next_ones_of_the_same_scan_weighted_by_distance():
    library = discs([5] * 6, ["a", "b", "a", "a", "b", "a"], [7, 4, 1, 2, 5, 3])
    rows, weights = neighbours(library, [("a", 4), ("a", 3), ("a", 1), ("a", 9), ("b", 4), ("c", 0)])
    assert rows.tolist() == [[5, 0], [3, 0], [-1, 3], [0, -1], [-1, 4], [-1, -1]]
    torch.testing.assert_close(weights[:2], torch.tensor([[0.75, 0.25], [0.8, 0.2]]))
    half = [0.5, 0.5]  # a neighbour that is not there is one slice beyond
    torch.testing.assert_close(weights[2:], torch.tensor([half, [1 / 3, 2 / 3], half, half]))


def test_a_place_never_sees_its_own_label():
    library = discs([4, 12, 6], "aaa", [0, 1, 2])
    assert radius(interpolate_shape(library, [("a", 1)])[0, 0]) == pytest.approx(5, abs=0.4)


def test_the_shape_between_two_discs_is_a_disc_between():
    library = discs([6, 14], "aa", [0, 4])
    between = interpolate_shape(library, [("a", 1), ("a", 2), ("a", 3)])
    # outside the reach the smaller disc no longer tells how far away it is: the disc is a little larger than linear
    assert [radius(one[0]) for one in between] == pytest.approx([8, 10, 12], abs=0.8)


def test_beyond_the_last_labelled_slice_the_shape_shrinks():
    between = interpolate_shape(discs([12], "a", [3]), [("a", 4), ("a", 5), ("a", 30)])
    assert radius(between[0, 0]) == pytest.approx(12 - MAX_DISTANCE, abs=0.6)
    assert radius(between[1, 0]) == pytest.approx(12 - 2 * MAX_DISTANCE, abs=0.6)
    assert not (between[2] > 0).any()


def test_a_scan_without_labelled_slices_has_no_shape():
    library, places = discs([6, 10, 6], "abb", [0, 0, 1]), [("a", 0), ("c", 1), ("b", 0)]
    assert bool((interpolate_shape(library, places)[:2] == -MAX_DISTANCE).all())
    between = interpolate_shape(library, places, torch.tensor([[1, 2], [1, 1], [0, 0]]))  # but what is between two others
    assert [radius(one[0]) for one in between[:2]] == pytest.approx([8, 10], abs=0.6)
    assert torch.equal(between[2], interpolate_shape(library, places)[2])


def test_a_structure_that_fills_the_slice_has_no_edge_in_it():
    full = signed_distance(torch.ones(1, 1, 24, 32, dtype=torch.uint8), 2)
    assert bool((full == 32).all())


def test_every_structure_has_a_shape_of_its_own():
    one, two = discs([8], "a", [0], classes=3), discs([5], "a", [2], classes=3, index=2)
    between = interpolate_shape(one.merge(two), [("a", 1)])
    assert between.shape == (1, 2, 40, 40)
    assert radius(between[0, 0]) == pytest.approx(8 - MAX_DISTANCE, abs=0.8)
    assert not (between[0, 1, 20, 30:] > 0).any()
