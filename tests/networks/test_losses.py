"""Eq. 1 to 4 against numpy, literal loops and fields whose derivatives are known."""

import itertools
import math

import numpy as np
import pytest
import torch

from oasis_monai.networks.losses import (
    RegistrationLoss,
    SegmentationLoss,
    bending_energy,
    dice_loss,
    local_ncc_loss,
    mse_loss,
    ncc,
    ncc_loss,
    smoothness,
    soft_dice,
)
from oasis_monai.utils.errors import ConfigError

GRIDS = [(7, 6), (5, 6, 4)]
grid = pytest.mark.parametrize("size", GRIDS, ids=["2D", "3D"])


def seeded(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def linear_field(matrix, size, shift=0.0):
    """u(p) = A p + shift as a field (1, D, *S)."""
    points = torch.stack(torch.meshgrid(*[torch.arange(float(s)) for s in size], indexing="ij"))
    return (torch.einsum("ij,j...->i...", torch.as_tensor(matrix, dtype=torch.float32), points) + shift)[None]


# --- eq. 2


@grid
def test_ncc_is_pearsons_correlation_of_each_image(size):
    a, b = seeded(0, 3, 1, *size), seeded(1, 3, 1, *size)
    b[1] += 3 * a[1]  # one pair alike,
    b[2] -= 3 * a[2]  # one opposite: a squared correlation would not tell
    want = [np.corrcoef(x.flatten(), y.flatten())[0, 1] for x, y in zip(a.numpy(), b.numpy(), strict=True)]
    assert want[1] > 0.8
    assert want[2] < -0.8
    np.testing.assert_allclose(ncc(a, b), want, atol=1e-5)
    # the mean of the images' correlations, not the correlation of the batch
    a, b = a * torch.tensor([1.0, 30, 5]).view(3, *[1] * (len(size) + 1)), b + 40
    np.testing.assert_allclose(float(ncc_loss(a, b)), -np.mean(want), atol=1e-5)


@pytest.mark.parametrize(("gain", "offset"), [(0.2, 0.0), (35.0, 0.0), (1.0, -900.0), (7.0, 300.0)])
def test_ncc_does_not_see_brightness_and_contrast(gain, offset):
    a, b = seeded(0, 2, 1, 8, 9), seeded(1, 2, 1, 8, 9)
    b = b + a
    torch.testing.assert_close(ncc(gain * a + offset, b), ncc(a, b), atol=1e-4, rtol=0)
    torch.testing.assert_close(ncc(-gain * a + offset, b), -ncc(a, b), atol=1e-4, rtol=0)


@pytest.mark.parametrize("constant", ["moved", "fixed", "both"])
def test_a_constant_image_correlates_with_nothing_and_leaves_the_gradient_finite(constant):
    moved, fixed = seeded(0, 2, 1, 12, 12), seeded(1, 2, 1, 12, 12)
    if constant != "fixed":
        moved = torch.full_like(moved, 3.0)
    if constant != "moved":
        fixed = torch.full_like(fixed, -2.0)
    moved.requires_grad_()
    value = ncc_loss(moved, fixed)
    value.backward()
    assert abs(value.item()) < 1e-3
    assert torch.isfinite(moved.grad).all()
    moved.grad = None
    local_ncc_loss(moved, fixed).backward()
    assert torch.isfinite(moved.grad).all()


def test_the_gradient_of_ncc_is_the_textbook_one():
    """d corr / d a = (b^ - corr a^) / |a - mean|, with a^ and b^ centred and of length 1."""
    a, b = seeded(0, 1, 1, 6, 5).double(), seeded(1, 1, 1, 6, 5).double()
    unit_a, unit_b = ((x - x.mean()) / (x - x.mean()).norm() for x in (a, b))
    want = -(unit_b - (unit_a * unit_b).sum() * unit_a) / (a - a.mean()).norm()
    moved = a.float().requires_grad_()
    ncc_loss(moved, b.float()).backward()
    torch.testing.assert_close(moved.grad.double(), want, atol=1e-6, rtol=1e-4)


def test_local_ncc_is_squared_and_local():
    """Contrast that turns over half of the image and is noisy nowhere: no global correlation, a perfect local one."""
    a = seeded(0, 1, 1, 60, 30)
    b = a.clone()
    b[:, :, 30:] *= -1
    assert abs(ncc_loss(a, b).item()) < 0.1
    assert local_ncc_loss(a, b).item() < -0.8
    assert local_ncc_loss(a, seeded(1, 1, 1, 60, 30)).item() > -0.1


def test_mse_is_the_mean_squared_difference():
    a, b = seeded(0, 2, 1, 4, 5), seeded(1, 2, 1, 4, 5)
    np.testing.assert_allclose(float(mse_loss(a, b)), np.mean((a.numpy() - b.numpy()) ** 2), rtol=1e-6)


# --- eq. 3


@grid
def test_soft_dice_against_a_loop_over_voxels(size):
    a, b = seeded(0, 2, 3, *size).sigmoid(), (seeded(1, 2, 3, *size) > 0.3).float()
    want = np.zeros((2, 3))
    for item, c in itertools.product(range(2), range(3)):
        both = single = 0.0
        for p in itertools.product(*map(range, size)):
            x, y = float(a[item, c][p]), float(b[item, c][p])
            both, single = both + x * y, single + x + y
        want[item, c] = 2 * both / single
    np.testing.assert_allclose(soft_dice(a, b), want, atol=1e-5)
    np.testing.assert_allclose(float(dice_loss(a, b)), -want.mean(), atol=1e-5)


def test_dice_of_empty_structures():
    full, empty = torch.ones(1, 1, 6, 6), torch.zeros(1, 1, 6, 6)
    cases = torch.cat([full, full, empty, empty], 1), torch.cat([full, empty, full, empty], 1)
    values = soft_dice(*cases)[0]
    assert values[0] == 1
    assert (values[1:3] < 1e-6).all()
    assert values[3] == 1


def test_dice_counts_every_class_alike_whatever_its_size():
    a = torch.zeros(1, 2, 10, 10)
    a[0, 0, :8], a[0, 1, 9, :2] = 1, 1
    b = a.clone()
    b[0, 1] = b[0, 1].roll(1, dims=1)  # the small one half off, the large one exact
    assert float(dice_loss(a, b)) == pytest.approx(-(1 + 0.5) / 2, abs=1e-5)


# --- eq. 4


@grid
@pytest.mark.parametrize("batch", [1, 3])
def test_smoothness_sum_against_a_loop_and_the_mean_of_voxelmorph(size, batch):
    dims = len(size)
    field = seeded(0, batch, dims, *size)
    total, averages = 0.0, []
    for axis in range(dims):
        squares = []
        for item, i, p in itertools.product(range(batch), range(dims), itertools.product(*map(range, size))):
            if p[axis] + 1 < size[axis]:
                ahead = tuple(x + (a == axis) for a, x in enumerate(p))
                squares.append(float(field[item, i][ahead] - field[item, i][p]) ** 2)
        total += sum(squares)
        averages.append(np.mean(squares))
    assert float(smoothness(field, "sum")) == pytest.approx(total / batch, rel=1e-5)
    assert float(smoothness(field)) == pytest.approx(np.mean(averages), rel=1e-5)  # VoxelMorph's Grad("l2")


@grid
def test_smoothness_of_a_linear_field_is_its_matrix(size):
    from monai.losses import DiffusionLoss

    dims = len(size)
    matrix = seeded(2, dims, dims)
    field = linear_field(matrix, size, shift=1.7).repeat(2, *[1] * (dims + 1))
    mean = float(matrix.square().mean())
    assert float(smoothness(field)) == pytest.approx(mean, rel=1e-4)
    # MONAI adds the axes up where VoxelMorph and we take their mean
    assert float(DiffusionLoss()(field)) == pytest.approx(dims * mean, rel=1e-4)
    steps = [np.prod([s - (a == axis) for a, s in enumerate(size)]) for axis in range(dims)]
    want = sum(n * float(matrix[:, axis].square().sum()) for axis, n in enumerate(steps))
    assert float(smoothness(field, "sum")) == pytest.approx(want, rel=1e-4)


@grid
def test_bending_energy_leaves_affine_motion_free_and_sees_a_bend(size):
    field = linear_field(seeded(3, len(size), len(size)), size, shift=-2.0)
    assert float(bending_energy(field)) < 1e-8
    assert float(smoothness(field)) > 0.1
    points = torch.arange(float(size[0])).view(-1, *[1] * (len(size) - 1))
    field[0, 0] += 0.5 * points**2  # second derivative 1 of one component
    assert float(bending_energy(field)) == pytest.approx(1 / len(size), rel=1e-3)


# --- eq. 1


def arguments():
    return (
        seeded(0, 2, 1, 9, 9),
        seeded(1, 2, 1, 9, 9),
        seeded(2, 2, 2, 9, 9).sigmoid(),
        (seeded(3, 2, 2, 9, 9) > 0).float(),
        seeded(4, 2, 2, 9, 9),
    )


SIMILAR = {"ncc": ncc_loss, "local_ncc": local_ncc_loss, "mse": mse_loss}
SMOOTH = {"mean": smoothness, "sum": lambda f: smoothness(f, "sum"), "bending": bending_energy}


@pytest.mark.parametrize("weights", [(1.0, 1.0, 0.01), (0.5, 0.0, 2.0), (0.0, 3.0, 0.0)])
@pytest.mark.parametrize(("similarity", "smooth"), [("ncc", "mean"), ("local_ncc", "sum"), ("mse", "bending")])
def test_the_total_is_the_weighted_sum_of_the_named_parts(weights, similarity, smooth):
    image, target, label, truth, field = arguments()
    alpha, beta, gamma = weights
    terms = RegistrationLoss(alpha, beta, gamma, similarity, smooth)(image, target, label, truth, field)
    parts = SIMILAR[similarity](image, target), dice_loss(label, truth), SMOOTH[smooth](field)
    torch.testing.assert_close(torch.stack(terms[1:]), torch.stack(parts))
    want = sum(w * float(p) for w, p in zip(weights, parts, strict=True))
    assert float(terms.total) == pytest.approx(want, rel=1e-5)


def test_the_default_is_the_papers_but_for_a_smoother_field():
    loss = RegistrationLoss()
    assert (loss.alpha, loss.beta, loss.gamma, loss.similarity, loss.smooth) == (1, 1, 0.1, "ncc", "mean")


def test_without_beta_no_label_reaches_the_gradient():
    image, target, label, truth, field = arguments()
    label.requires_grad_()
    field.requires_grad_()
    RegistrationLoss(beta=0)(image, target, label, truth, field).total.backward()
    assert not label.grad.any()
    assert field.grad.any()


@pytest.mark.parametrize("similarity", ["ncc", "local_ncc"])  # the local one is made of convolutions, which autocast halves
def test_half_precision_batches_are_computed_in_float32(similarity):
    args, loss = [a.bfloat16() for a in arguments()], RegistrationLoss(similarity=similarity)
    plain = loss(*[a.float() for a in args])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        halves = loss(*args)
    assert halves.total.dtype == torch.float32
    torch.testing.assert_close(torch.stack(halves), torch.stack(plain), rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"similarity": "mi"}, r"loss\.similarity: expected one of \['local_ncc', 'mse', 'ncc'\], found 'mi'"),
        ({"smooth": "l2"}, r"loss\.smooth: expected one of \['bending', 'mean', 'sum'\], found 'l2'"),
        ({"alpha": -1}, r"loss\.alpha: expected a weight of 0 or more, found -1"),
        ({"beta": float("nan")}, r"loss\.beta: .* found nan"),
        ({"gamma": -0.01}, r"loss\.gamma: .* found -0\.01"),
    ],
)
def test_settings_that_cannot_work(settings, message):
    with pytest.raises(ConfigError, match=message):
        RegistrationLoss(**settings)


# --- several channels, voxels that do not count


@grid
def test_of_several_channels_the_mean_similarity_counts(size):
    a, b = seeded(0, 3, 2, *size), seeded(1, 3, 2, *size)
    each = torch.stack([ncc(a[:, c : c + 1], b[:, c : c + 1]) for c in (0, 1)]).mean(0)
    torch.testing.assert_close(ncc(a, b), each)
    a[:, 1] *= 1000  # a channel's scale gives it no more say
    torch.testing.assert_close(ncc(a, b), each)


def slow_dice_ce(logits, target, counts, batch):
    """MONAI's definition, a voxel at a time, over those that count."""
    p, t, m = (x.double().numpy() for x in (torch.softmax(logits, 1), target, counts))
    classes, total, cross, voxels = p.shape[1], {}, 0.0, 0
    for b, *where in np.ndindex(p.shape[0], *p.shape[2:]):
        if not m[(b, 0, *where)]:
            continue
        voxels += 1
        for c in range(classes):
            mine, truth = p[(b, c, *where)], t[(b, c, *where)]
            cross -= truth * math.log(mine)
            key = (0 if batch else b, c)
            both, sums = total.get(key, (0, 0))
            total[key] = both + mine * truth, sums + mine + truth
    dice = [1 - (2 * both + 1e-5) / (sums + 1e-5) for (_, c), (both, sums) in total.items() if c]
    return sum(dice) / len(dice) + cross / voxels


@pytest.mark.parametrize("batch", [False, True])
@grid
def test_the_segmentation_loss_is_that_of_the_voxels_that_count(size, batch):
    logits = seeded(0, 2, 3, *size)
    target = (
        torch.nn.functional.one_hot((seeded(1, 2, *size) > 0).long() + (seeded(2, 2, *size) > 0).long(), 3).movedim(-1, 1).float()
    )
    counts = seeded(3, 2, 1, *size) > -0.3
    loss = SegmentationLoss(batch=batch)
    assert float(loss(logits, target, counts)) == pytest.approx(slow_dice_ce(logits, target, counts, batch), rel=1e-5)
    everywhere = torch.ones_like(counts)
    torch.testing.assert_close(loss(logits, target, everywhere), loss(logits, target))


def test_garbage_where_nobody_labelled_changes_no_loss_and_no_gradient():
    size = (7, 6, 5)
    counts = seeded(3, 2, 1, *size) > 0

    def run(seed):
        """Labels that differ where they do not count."""
        logits, moved, ddf = (
            x.requires_grad_() for x in (seeded(0, 2, 2, *size), seeded(4, 2, 1, *size), seeded(5, 2, 3, *size))
        )
        garbage = (seeded(seed, 2, 1, *size) > 0).float()
        label = torch.where(counts, (seeded(1, 2, 1, *size) > 0).float(), garbage)
        first = SegmentationLoss()(logits, torch.cat([1 - label, label], 1), counts)
        terms = RegistrationLoss()(seeded(6, 2, 1, *size), seeded(7, 2, 1, *size), moved, label, ddf, counts)
        (first + terms.total).backward()
        return first.detach(), terms.total.detach(), logits.grad, moved.grad, ddf.grad

    for one, other in zip(run(10), run(11), strict=True):
        assert torch.equal(one, other)
    _, _, logits, moved, _ = run(10)
    assert not (logits * ~counts).any()
    assert not (moved * ~counts).any()
    assert (logits * counts).any()


def test_where_nothing_counts_the_loss_is_finite():
    logits = seeded(0, 1, 2, 4, 4).requires_grad_()
    loss = SegmentationLoss()(logits, torch.zeros(1, 2, 4, 4), torch.zeros(1, 1, 4, 4, dtype=torch.bool))
    loss.backward()
    assert torch.isfinite(loss)
    assert not logits.grad.any()


@pytest.mark.parametrize("size", [(4, 5), (3, 4, 5)])
def test_the_gradient_of_smoothness_is_that_of_differences(size):
    field = torch.randn(2, len(size), *size, dtype=torch.float64, requires_grad=True)
    squares = [torch.diff(field, dim=axis).square().mean() for axis in range(2, field.ndim)]
    (expected,) = torch.autograd.grad(3 * torch.stack(squares).mean(), field)
    (found,) = torch.autograd.grad(3 * smoothness(field), field)
    torch.testing.assert_close(found, expected.to(found.dtype), rtol=1e-5, atol=1e-7)
