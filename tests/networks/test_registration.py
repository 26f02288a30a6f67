"""The STM: identity at the start, learns a known motion, composes and resizes as its field says."""

import itertools
import math

import pytest
import torch

from oasis_monai.networks.losses import RegistrationLoss
from oasis_monai.networks.registration import BODIES, RegistrationSettings, SpatialTransformModel
from oasis_monai.networks.warp import compose, jacobian_determinant, resize_ddf, warp, warp_pair
from oasis_monai.utils.errors import ConfigError

SIZES = {2: (16, 24), 3: (16, 8, 8)}
STRIDES = {2: (2, 1), 3: (2, 2, 1)}
kinds = pytest.mark.parametrize(
    ("dims", "body", "affine", "diffeomorphic"), list(itertools.product((2, 3), BODIES, (False, True), (False, True)))
)


def seeded(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def model_of(dims=2, body="unet", affine=False, diffeomorphic=False, size=None, channels=(4, 6, 8), stride=None):
    torch.manual_seed(0)
    settings = RegistrationSettings(body, channels, stride or STRIDES[dims], affine, diffeomorphic)
    return SpatialTransformModel(size or SIZES[dims], settings)


def wake(model, strength=0.1):
    """Random numbers where training starts from zeros, so that the model predicts a field."""
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not parameter.any():
                parameter.normal_(0, strength)
            elif name.endswith("fc.bias"):
                parameter += 0.5 * torch.randn_like(parameter)
    return model


def blob(size, centre, radii):
    axes = torch.meshgrid(*[torch.arange(float(s)) for s in size], indexing="ij")
    r = sum(((x - c) / radius) ** 2 for x, c, radius in zip(axes, centre, radii, strict=True))
    return (r <= 1).float()[None, None], torch.exp(-r)[None, None]


@kinds
def test_every_kind_starts_at_the_identity_and_all_of_it_learns(dims, body, affine, diffeomorphic):
    model = model_of(dims, body, affine, diffeomorphic)
    atlas, target = seeded(0, 2, 1, *SIZES[dims]), seeded(1, 2, 1, *SIZES[dims])
    optimiser = torch.optim.Adam(model.parameters(), 1e-3)
    for step in range(2):
        ddf = model(atlas, target)
        assert ddf.shape == (2, dims, *SIZES[dims])
        if step == 0:
            assert not ddf.any()
        optimiser.zero_grad()
        (warp(atlas, ddf) - target).square().mean().backward()
        if step == 0:
            optimiser.step()  # layers before the zero ones hear of the loss only now
    assert ddf.any()
    # biases in front of a normalisation cancel; every kernel must move
    deaf = [n for n, p in model.named_parameters() if p.grad is None or (p.ndim > 1 and not p.grad.any())]
    assert not deaf


@pytest.mark.parametrize(
    ("dims", "body", "affine", "diffeomorphic"),
    [(3, "unet", False, False), (2, "localnet", False, True), (2, "voxelmorph", False, False), (2, "unet", True, False)],
)
def test_it_learns_to_move_one_ellipsoid_onto_another(dims, body, affine, diffeomorphic):
    size = (24, 24, 12)[:dims]
    channels, stride = (8, 12, 16), (2, 2, 1)[:dims]
    model = model_of(dims, body, affine, diffeomorphic, size, channels, stride).train()
    label, image = blob(size, (9.0, 11.0, 5.0)[:dims], (4.5, 6.0, 3.0)[:dims])
    truth, target = blob(size, (13.0, 12.0, 6.0)[:dims], (6.0, 4.5, 3.0)[:dims])
    pair = [x.repeat(2, *[1] * (dims + 1)) for x in (image, label, target, truth)]
    loss, optimiser = RegistrationLoss(), torch.optim.Adam(model.parameters(), 5e-3)
    history = []
    for _ in range(40):
        ddf = model(pair[0], pair[2])
        moved, moved_label = warp_pair(pair[0], pair[1], ddf)
        terms = loss(moved, pair[2], moved_label, pair[3], ddf)
        history.append(-terms.dice.item())
        optimiser.zero_grad()
        terms.total.backward()
        optimiser.step()
    assert history[0] < 0.7
    assert history[-1] > 0.85


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("affine", [False, True])
def test_forward_is_the_coarse_field_resized(dims, affine):
    model = wake(model_of(dims, affine=affine)).eval()
    atlas, target = seeded(0, 1, 1, *SIZES[dims]), seeded(1, 1, 1, *SIZES[dims])
    field = model.field(atlas, target)
    assert field.shape[2:] == tuple(s // k for s, k in zip(SIZES[dims], STRIDES[dims], strict=True)) == model.field_size
    assert field.any()
    torch.testing.assert_close(model(atlas, target), resize_ddf(field, SIZES[dims]))


def test_the_affine_part_is_a_whole_affine_map_about_the_centre_and_goes_first():
    """Its matrix acts on coordinates in units of the field of view, from the centre: -1/2 at one edge, 1/2 at the other."""
    size = (16, 24)
    model = wake(model_of(affine=True, size=size)).eval()
    atlas, target = seeded(0, 1, 1, *size), seeded(1, 1, 1, *size)
    start = model.affine(atlas, target)
    head = model.affine.net.output_block
    head.save_theta = True
    model.affine(atlas, target)
    theta = head.theta.reshape(2, 3) - torch.eye(2, 3)
    axes = torch.meshgrid(*[(torch.arange(s) + 0.5) / s - 0.5 for s in size], indexing="ij")
    units = torch.einsum("ij,j...->i...", model.affine.gain * theta, torch.stack([*axes, torch.ones(size)]))
    want = units * torch.tensor(size).view(2, 1, 1)
    assert want.abs().max() > 0.1
    torch.testing.assert_close(start[0, :, 1:-1, 1:-1], want[:, 1:-1, 1:-1], atol=1e-4, rtol=0)  # half a coarse voxel is flat
    moved = model.body(model.stem(torch.cat([warp(atlas, start), target], 1)))
    torch.testing.assert_close(model.field(atlas, target), compose(resize_ddf(start, model.field_size), moved))


@pytest.mark.parametrize("dims", [2, 3])
def test_a_diffeomorphic_model_does_not_fold_where_the_plain_one_does(dims):
    """The body's output replaced by smooth waves, steep enough to fold when taken as displacements."""
    size = (32, 32, 16)[:dims]
    found = {}
    for diffeomorphic in (False, True):
        model = model_of(dims, diffeomorphic=diffeomorphic, size=size, channels=(4, 4, 4), stride=(1,)).eval()
        axes = torch.meshgrid(*[torch.arange(float(s)) for s in size], indexing="ij")
        waves = torch.stack([2.5 * torch.sin(2 * math.pi * x / 8 + 0.7 * i) for i, x in enumerate(reversed(axes))])
        waves = waves + torch.stack([2.0 * torch.sin(2 * math.pi * x / 8) for x in axes])
        model.body = torch.nn.Module()
        model.body.forward = lambda _, waves=waves: waves[None]
        ddf = model(seeded(0, 1, 1, *size), seeded(1, 1, 1, *size))
        found[diffeomorphic] = jacobian_determinant(ddf)[(..., *[slice(3, -3)] * dims)].min()
    assert found[False] < -0.1
    assert found[True] > 0


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("affine", [False, True])
def test_a_pair_is_aligned_alike_in_any_batch(body, affine):
    model = wake(model_of(2, body, affine)).eval()
    atlas, target = seeded(0, 3, 1, *SIZES[2]), seeded(1, 3, 1, *SIZES[2])
    alone = torch.cat([model.field(atlas[i : i + 1], target[i : i + 1]) for i in range(3)])
    together = model.field(atlas, target)
    assert together.abs().max() > 1e-3
    assert (together[0] - together[1]).abs().max() > 1e-4
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("size", "settings", "message"),
    [
        ((20, 16), {}, r"preprocessing\.size: expected axis 0 divisible by 8 .*found \(20, 16\); take 16 or 24 there"),
        ((16, 30), {}, r"axis 1 divisible by 4 .*; take 28 or 32 there"),
        ((5, 16), {}, r"axis 0 divisible by 8 .*; take 8 there"),
        ((16, 16), {"channels": (4, 4, 4, 4)}, None),
        ((16, 12), {"channels": (4, 4, 4, 4)}, r"axis 1 divisible by 8 .*; take 8 or 16 there"),
        ((8, 4), {}, r"more than \(8, 4\) along some axis .*found \(8, 4\); take a larger size or fewer registration\.channels"),
        ((8, 4), {"body": "voxelmorph"}, None),
        ((16, 16, 8), {}, r"registration\.field_stride: expected one number, or one per axis of spatial_dims=3, found \(2, 1\)"),
        ((16, 16, 8), {"field_stride": (1,)}, None),
    ],
)
def test_sizes_are_checked_before_training(size, settings, message):
    settings = RegistrationSettings(**{"channels": (4, 4, 4), "field_stride": (2, 1)} | settings)
    if message is not None:
        with pytest.raises(ConfigError, match=message):
            SpatialTransformModel(size, settings)
        return
    divisor = settings.divisor(len(size))
    assert not any(s % d for s, d in zip(size, divisor, strict=True))
    ddf = SpatialTransformModel(size, settings)(seeded(0, 2, 1, *size), seeded(1, 2, 1, *size))
    assert ddf.shape == (2, len(size), *size)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"body": "resnet"}, r"registration\.body: expected one of \['unet', 'voxelmorph', 'localnet'\], found 'resnet'"),
        ({"channels": (8,)}, r"registration\.channels: expected two or more"),
        ({"channels": (8, 0)}, r"registration\.channels: .*found \[8, 0\]"),
        ({"field_stride": (2, 0)}, r"registration\.field_stride: expected whole numbers of 1 or more, found \[2, 0\]"),
        ({"squarings": -1}, r"registration\.squarings: expected 0 or more, found -1"),
    ],
)
def test_settings_that_cannot_work(settings, message):
    with pytest.raises(ConfigError, match=message):
        RegistrationSettings(**settings)


def test_lists_from_a_configuration_are_the_same_settings():
    assert RegistrationSettings(channels=[8, 16], field_stride=[2]) == RegistrationSettings(channels=(8, 16), field_stride=(2,))
    assert RegistrationSettings(channels=(8, 16, 16), field_stride=(2,)).divisor(3) == (8, 8, 8)
