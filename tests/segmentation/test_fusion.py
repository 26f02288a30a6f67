"""Weights, votes and STAPLE against literal loops of the paper's formulas, an EM of our own and ITK called directly."""

import itertools

import numpy as np
import pytest
import torch

from oasis_monai.segmentation import fusion
from oasis_monai.segmentation.fusion import (
    agreement_with_estimate,
    conditioned_weights,
    equal_weights,
    fuse,
    image_weights,
    loa_weights,
    normalise,
    overlap,
    staple,
)
from oasis_monai.transforms.labels import decide, decide_streamed


def seeded(seed, *shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def one_hot(index, classes):
    """(*S) class indices -> (C, *S)."""
    return torch.stack([index == c for c in range(classes)]).float()


def one_hots(indices, classes):
    """(n, *S) -> (n, C, *S)."""
    return torch.stack([one_hot(index, classes) for index in indices])


# --- overlap
def test_an_atlas_that_is_rightly_empty_is_not_one_that_missed():
    """A softmax is never 0: by its Dice alone one wrong atlas took all the weight of a slice without the structure."""
    atlases = torch.zeros(4, 3, 8, 8)
    atlases[3, 1, 2:5, 2:5] = 1
    atlases[:, 2, :4] = 1
    nothing = torch.stack([torch.full((8, 8), 0.9), torch.full((8, 8), 0.1), torch.zeros(8, 8)])
    nothing[2, :4] = 0.9
    found = agreement_with_estimate(atlases, nothing)
    both = overlap(atlases[:, [0, 2]], nothing[[0, 2]].expand(4, -1, -1, -1))  # of the second structure alone
    assert found[:3].tolist() == pytest.approx([(0.9 + float(both[0])) / 2] * 3, abs=1e-5)
    assert found[3] < found[0] - 0.3
    there = nothing.clone()
    there[1, 2:5, 2:5] = 1
    assert agreement_with_estimate(atlases, there)[3] > agreement_with_estimate(atlases, there)[0] + 0.25
    for size in ((8, 8), (6, 5, 4)):  # of atlases that have all structures the mean of the Dice values
        labels = one_hots((seeded(0, 5, *size) * 3).long(), 3)
        estimate = torch.softmax(seeded(1, 3, *size), 0)
        assert torch.allclose(agreement_with_estimate(labels, estimate), overlap(labels, estimate.expand_as(labels)), atol=1e-6)


def test_overlap_is_the_mean_dice_of_the_structures_that_are_there():
    """Six voxels, classes 1 to 3; class 3 is nowhere, class 2 only in the reference of the second pair."""
    warped = one_hots(torch.tensor([[1, 1, 1, 0, 2, 2], [1, 1, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0]]), 4)
    reference = one_hots(torch.tensor([[1, 1, 0, 0, 0, 2], [1, 1, 0, 0, 2, 2], [0, 0, 0, 0, 0, 0]]), 4)
    want = [(2 * 2 / 5 + 2 * 1 / 3) / 2, (1 + 0) / 2, 1.0]
    np.testing.assert_allclose(overlap(warped, reference), want, atol=1e-5)


def test_background_does_not_count_as_overlap():
    warped, reference = torch.zeros(1, 2, 50, 50), torch.zeros(1, 2, 50, 50)
    warped[:, 1, 0, 0], reference[:, 1, 9, 9] = 1, 1
    warped[:, 0], reference[:, 0] = 1 - warped[:, 1], 1 - reference[:, 1]
    assert overlap(warped, reference).item() < 1e-4


# --- weights


@pytest.mark.parametrize("n", [2, 3, 7])
def test_loa_weights_are_the_papers_double_loop(n):
    o = seeded(n, n, n)
    mean = [sum(float(o[j, k]) for j in range(n) if j != k) / (n - 1) for k in range(n)]
    want = [m / sum(mean) for m in mean]
    np.testing.assert_allclose(loa_weights(o), want, atol=1e-6)
    other = o.clone()
    other.fill_diagonal_(123.0)  # an atlas says nothing about itself
    torch.testing.assert_close(loa_weights(other), loa_weights(o))
    assert torch.equal(other.diagonal(), torch.full((n,), 123.0))  # the table is not changed


def test_loa_reads_columns_a_row_of_misses_hurts_the_others():
    o = torch.ones(3, 3)
    o[0, 1] = o[0, 2] = 0  # nothing warps onto atlas 0; atlas 0 warps onto everything
    np.testing.assert_allclose(loa_weights(o), [0.5, 0.25, 0.25], atol=1e-6)


@pytest.mark.parametrize("temperature", [0.02, 0.3, 5.0])
def test_conditioned_weights_are_the_formula_in_a_loop(temperature):
    n = 4
    o, d = seeded(3, n, n), seeded(4, n)
    trust = np.exp(-d.double().numpy() / temperature)
    raw = [sum(trust[j] * (1 if j == k else float(o[j, k])) for j in range(n)) for k in range(n)]
    np.testing.assert_allclose(conditioned_weights(o, d, temperature), np.array(raw) / sum(raw), atol=1e-6)


def test_conditioned_weights_at_the_ends_of_temperature():
    o, d = seeded(5, 4, 4), torch.tensor([0.3, 0.1, 0.4, 0.2])
    o.fill_diagonal_(1)
    np.testing.assert_allclose(conditioned_weights(o, d, 1e-6), o[1] / o[1].sum(), atol=1e-6)  # the nearest alone
    columns = o.sum(0)
    np.testing.assert_allclose(conditioned_weights(o, d, 1e9), columns / columns.sum(), atol=1e-6)  # nobody in particular


def test_conditioned_weights_trust_near_atlases_more():
    alike = torch.full((3, 3), 0.5)
    weights = conditioned_weights(alike, torch.tensor([0.1, 0.2, 0.3]), 0.1)
    assert weights[0] > weights[1] > weights[2]


@pytest.mark.parametrize(
    ("raw", "want"),
    [
        ([2.0, 6.0], [0.25, 0.75]),
        ([-3.0, 1.0, 1.0], [0.0, 0.5, 0.5]),
        ([0.0, 0.0], [0.5, 0.5]),
        ([-1.0, -2.0, -0.5, 0.0], [0.25] * 4),
        ([1e-30, 3e-30], [0.25, 0.75]),
        ([float("nan"), 1.0], [0.5, 0.5]),
        ([0.3], [1.0]),
        ([0.0], [1.0]),
    ],
)
def test_normalise(raw, want):
    np.testing.assert_allclose(normalise(torch.tensor(raw)), want, atol=1e-6)


def test_image_weights_are_clipped_correlations():
    target = seeded(0, 1, 9, 8)
    noise = seeded(1, 1, 9, 8)
    atlases = torch.stack([3 * target + 1, target + noise, -target, torch.full_like(target, 2.0)])
    r = np.corrcoef((target + noise).flatten(), target.flatten())[0, 1]
    np.testing.assert_allclose(image_weights(atlases, target), np.array([1, r, 0, 0]) / (1 + r), atol=1e-3)
    np.testing.assert_allclose(image_weights(-atlases[:1].repeat(3, 1, 1, 1), target), [1 / 3] * 3, atol=1e-6)


@pytest.mark.parametrize("distance", [0.0, 7.0])
def test_one_atlas_has_all_the_weight(distance):
    target = seeded(0, 1, 5, 5)
    for weights in (
        loa_weights(torch.zeros(1, 1)),
        conditioned_weights(torch.zeros(1, 1), torch.tensor([distance])),
        image_weights(-target[None], target),
        equal_weights(1),
    ):
        assert weights.tolist() == [1.0]


# --- fusing


def test_fuse_against_a_loop_and_the_sum_of_probabilities():
    labels = torch.softmax(4 * seeded(0, 5, 3, 4, 6), 1)
    weights = normalise(seeded(1, 5))
    want = np.zeros((3, 4, 6))
    for k, c, x, y in itertools.product(range(5), range(3), range(4), range(6)):
        want[c, x, y] += float(weights[k]) * float(labels[k, c, x, y])
    fused = fuse(labels, weights)
    np.testing.assert_allclose(fused, want, atol=1e-6)
    torch.testing.assert_close(fused.sum(0), torch.ones(4, 6))


@pytest.mark.slow
def test_the_order_of_the_atlases_changes_nothing():
    n, order = 6, torch.tensor([3, 0, 5, 1, 4, 2])
    labels, o, d = one_hots((3 * seeded(0, n, 12, 12)).long(), 3), seeded(1, n, n), seeded(2, n)
    o2 = o[order][:, order]
    for weights, moved in (
        (loa_weights(o), loa_weights(o2)),
        (conditioned_weights(o, d), conditioned_weights(o2, d[order])),
        (equal_weights(n), equal_weights(n)),
    ):
        torch.testing.assert_close(moved, weights[order])
        torch.testing.assert_close(fuse(labels[order], moved), fuse(labels, weights))
        assert torch.equal(decide(fuse(labels[order], moved)), decide(fuse(labels, weights)))
    votes = torch.stack([decide(one) for one in labels])
    torch.testing.assert_close(staple(votes[order], 3), staple(votes, 3), atol=1e-5, rtol=0)


# --- the tie rule


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 6, 7, 12, 30])
def test_half_of_the_atlases_is_enough_for_any_n(n):
    """Voxel v: v of the n atlases vote for the structure. P >= 1/2 decides, however the float sum of 1/n falls."""
    votes = (torch.arange(n)[:, None] < torch.arange(n + 1)).long()
    labels = torch.stack([1 - votes, votes], 1).float()
    decided = decide(fuse(labels, equal_weights(n)))
    assert decided.tolist() == [int(2 * v >= n and v > 0) for v in range(n + 1)]
    summed = torch.stack([fuse(labels[k : k + 1], equal_weights(n)[k : k + 1]) for k in range(n)]).sum(0)  # one by one
    assert torch.equal(decide(summed), decided)


@pytest.mark.parametrize(("hair", "winner"), [(0.0, 1), (3e-7, 1), (-3e-7, 1), (1e-4, 0), (-1e-4, 1)])
def test_half_but_for_rounding_is_half(hair, winner):
    assert decide(torch.tensor([[0.5 + hair], [0.5 - hair]])).tolist() == [winner]


def test_a_tie_among_structures_does_not_hang_on_rounding():
    """Three against three of six and one of another mind: whoever they are, the lower class."""
    weights = normalise(torch.tensor([0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.05]))
    for ones in itertools.combinations(range(6), 3):
        index = torch.tensor([1 if k in ones else 2 for k in range(6)] + [0])[:, None]
        labels = one_hots(index, 3)
        for parts in ([7], [2, 2, 2, 1], [1] * 7):  # batches of atlases are summed one after the other
            pieces = zip(labels.split(parts), weights.split(parts), strict=True)
            assert decide(sum(fuse(some, share) for some, share in pieces)).tolist() == [1]
    for hair in (0.0, 3e-8, -3e-8):
        assert decide(torch.tensor([[0.3], [0.35], [0.35 + hair]])).tolist() == [1]
    assert decide(torch.tensor([[0.3], [0.35 - 1e-4], [0.35 + 1e-4]])).tolist() == [2]  # a real majority is no tie


@pytest.mark.parametrize("classes", [2, 3, 50])
def test_no_label_is_invented(classes):
    """Six atlases of equal weight: the winner by counted votes, a tie by the rule, never a class nobody voted for."""
    n = 6
    index = (seeded(classes, n, 20, 20).square() * classes).long()
    index[:, :, :5] = index[:1, :, :5]  # and a strip where all agree
    found = decide(fuse(one_hots(index, classes), equal_weights(n))).long()
    for x, y in itertools.product(range(20), range(20)):
        count = np.bincount(index[:, x, y].numpy(), minlength=classes)
        structures = count[1:].max(initial=0)
        want = int(count[1:].argmax()) + 1 if structures and structures >= count[0] else 0
        assert int(found[x, y]) == want
    assert torch.equal(found[:, :5], index[0, :, :5])


@pytest.mark.parametrize("mass", [1e-9, 1e-6, 1e-4])
def test_what_warping_leaves_of_a_label_is_no_label(mass):
    """Beside an empty label it agrees, beside a structure it does not, however little is left: 1e-6 of a voxel once had 0.91."""
    left = torch.zeros(1, 2, 6, 6)
    left[0, 0], left[0, 1, 2, 2] = 1, mass
    empty, full = torch.zeros(1, 2, 6, 6), torch.zeros(1, 2, 6, 6)
    empty[0, 0] = 1
    full[0, 1] = 1
    assert fusion.overlap(left, empty).item() == fusion.overlap(empty, empty).item() == 1
    assert fusion.overlap(left, full).item() < 1e-3
    sure = fusion.agreement_with_estimate(left, torch.tensor([0.9, 0.1]).view(2, 1, 1).expand(2, 6, 6))
    assert sure.item() == pytest.approx(0.9)


def test_nothing_anywhere_is_background_and_the_rule_is_the_grids():
    empty = torch.zeros(4, 3, 3)
    empty[0] = 1
    assert not decide(empty).any()
    assert not decide(torch.ones(1, 3, 3)).any()  # no structure at all
    assert decide(empty).dtype == torch.uint8
    probability = torch.softmax(6 * seeded(8, 5, 9, 9, 3), 0)
    want = decide_streamed(enumerate(probability[1:], 1), torch.zeros(9, 9, 3))
    assert torch.equal(decide(probability), want)
    assert not hasattr(fusion, "TIE")  # one constant, one home


# --- STAPLE


def raters_of(truth, rates, seed=0):
    """Raters who see a true voxel with probability p and leave a false one out with probability q."""
    random = torch.Generator().manual_seed(seed)
    votes = []
    for p, q in rates:
        draw = torch.rand(truth.shape, generator=random)
        votes.append(torch.where(truth, draw < p, draw > q))
    return torch.stack(votes)


def own_staple(votes, iterations):
    """Warfield 2004, eqs. 14 to 19, with a flat prior: the mean of the votes at the start, fixed thereafter."""
    d = votes.double().flatten(1).numpy()
    w, prior = d.mean(0), d.mean()
    for _ in range(iterations):
        p, q = (d * w).sum(1) / w.sum(), ((1 - d) * (1 - w)).sum(1) / (1 - w).sum()
        yes = prior * np.where(d == 1, p[:, None], 1 - p[:, None]).prod(0)
        no = (1 - prior) * np.where(d == 0, q[:, None], 1 - q[:, None]).prod(0)
        w = yes / (yes + no)
    return torch.tensor(w.reshape(votes.shape[1:])).float()


def ball(size, radius):
    axes = torch.meshgrid(*[torch.arange(s) - (s - 1) / 2 for s in size], indexing="ij")
    return sum(a.square() for a in axes) < radius**2


RATES = [(0.95, 0.95), (0.85, 0.9), (0.7, 0.97), (0.9, 0.6), (0.55, 0.8)]
WORLDS = pytest.mark.parametrize(("size", "radius"), [((25, 20), 7), ((13, 12, 10), 4)], ids=["2D", "3D"])


@WORLDS
@pytest.mark.parametrize("iterations", [3, 50])
def test_staple_is_expectation_maximisation(size, radius, iterations):
    truth = ball(size, radius)
    votes = raters_of(truth, RATES)  # noisy to the edges: the box round the votes is the whole grid
    found = staple(votes.long(), 2, iterations)
    torch.testing.assert_close(found[1], own_staple(votes, iterations), atol=2e-4, rtol=0)
    torch.testing.assert_close(found.sum(0), torch.ones(size))


def test_staple_finds_the_one_good_rater_where_counting_heads_does_not():
    truth = ball((25, 20), 7)
    votes = raters_of(truth, [(0.6, 0.7), (0.7, 0.6), (0.97, 0.98), (0.65, 0.65), (0.6, 0.6)])
    wrong = (decide(staple(votes.long(), 2)).bool() != truth).float().mean()
    heads = ((votes.float().mean(0) >= 0.5) != truth).float().mean()
    assert wrong < 0.05 < 0.1 < heads


@WORLDS
def test_staple_is_itks_on_the_box_round_the_votes(size, radius):
    import itk

    votes = raters_of(ball(size, radius), RATES)
    large = tuple(s + 9 for s in size)
    placed = torch.zeros(len(votes), *large, dtype=torch.bool)
    placed[(slice(None), *[slice(4, 4 + s) for s in size])] = votes
    found = staple(placed.long(), 2)[1]
    kind = itk.Image[itk.F, len(size)]
    direct = itk.STAPLEImageFilter[kind, kind].New(ForegroundValue=1, MaximumIterations=50)
    box = (slice(None), *[slice(2, 6 + s) for s in size])  # two voxels of margin
    for number, rater in enumerate(placed[box]):
        direct.SetInput(number, itk.image_from_array(np.ascontiguousarray(rater.numpy().astype(np.float32))))
    direct.Update()
    torch.testing.assert_close(found[box[1:]], torch.from_numpy(itk.array_from_image(direct.GetOutput())), atol=1e-6, rtol=0)
    found[box[1:]] = 0
    assert not found.any()


def test_the_field_of_view_does_not_change_staple():
    votes = raters_of(ball((14, 14), 5), RATES)
    wide = torch.zeros(len(votes), 90, 80, dtype=torch.bool)
    middle = torch.zeros(len(votes), 22, 22, dtype=torch.bool)
    wide[:, 30:44, 40:54], middle[:, 4:18, 4:18] = votes, votes
    torch.testing.assert_close(staple(wide.long(), 2)[1, 26:48, 36:58], staple(middle.long(), 2)[1])


def test_staple_of_several_structures_is_one_estimate_each():
    index = torch.stack([(4 * seeded(k, 16, 16)).long() for k in range(3)])
    found = staple(index, 4)
    alone = torch.stack([staple((index == c).long(), 2)[1] for c in (1, 2, 3)])
    torch.testing.assert_close(found[1:], alone / alone.sum(0).clamp_min(1))
    torch.testing.assert_close(found.sum(0), torch.ones(16, 16))
    assert found.min() >= 0


@pytest.mark.parametrize("n", [1, 2, 5])
def test_raters_who_agree_are_believed(n):
    truth = ball((12, 12), 4).long() * 2
    found = staple(truth.expand(n, -1, -1), 3)
    torch.testing.assert_close(found, one_hot(truth, 3))
    nothing = staple(torch.zeros(n, 6, 6, dtype=torch.long), 3)
    assert torch.equal(nothing, one_hot(torch.zeros(6, 6, dtype=torch.long), 3))


def test_raters_who_share_nothing_still_give_probabilities():
    votes = torch.zeros(2, 10, 10, dtype=torch.long)
    votes[0, :5], votes[1, 5:] = 1, 1  # everything is claimed, by one each
    lonely = torch.zeros(3, 10, 10, dtype=torch.long)
    lonely[0, 5, 5] = 1
    for found in (staple(votes, 2), staple(lonely, 2)):
        assert torch.isfinite(found).all()
        assert found.min() >= 0
        assert found.max() <= 1
        torch.testing.assert_close(found.sum(0), torch.ones(10, 10))


def volume_with(*boxes: tuple[slice, ...], classes: int = 2) -> torch.Tensor:
    """(C, 12, 12, 6) one-hot probability with structure i + 1 in box i."""
    label = torch.zeros(12, 12, 6)
    for i, box in enumerate(boxes):
        label[box] = min(i + 1, classes - 1)
    return torch.nn.functional.one_hot(label.long(), classes).movedim(-1, 0).float()


NEAR, FAR = np.s_[2:6, 2:6, 1:4], np.s_[9:12, 9:12, 4:6]


def test_a_piece_without_any_atlas_is_background():
    result = fusion.remove_unsupported_components(0.9 * volume_with(NEAR, FAR) + 0.05, volume_with(NEAR))
    assert torch.equal(decide(result), decide(volume_with(NEAR)))
    assert torch.equal(result.sum(0), torch.ones(12, 12, 6))


def test_a_piece_one_voxel_of_which_an_atlas_supports_stays():
    result = volume_with(NEAR, FAR)
    assert fusion.remove_unsupported_components(result, volume_with(NEAR, np.s_[9:10, 9:10, 4:5])) is result


def test_structures_that_touch_are_one_piece():
    result = volume_with(NEAR, np.s_[6:8, 2:6, 1:4], classes=3)
    assert fusion.remove_unsupported_components(result, volume_with(NEAR, classes=3)) is result


def test_atlases_that_meet_nothing_remove_nothing():
    result = volume_with(NEAR)
    assert fusion.remove_unsupported_components(result, volume_with(FAR)) is result
    assert fusion.remove_unsupported_components(result, volume_with()) is result
