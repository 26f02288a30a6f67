"""Local intensity normalisation, against SciPy's Gaussian filter and against what it is for: a coil's field."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from oasis_monai.transforms.intensity import (
    FLOOR,
    OFFSET,
    check_windows,
    clip_windows,
    local_z_score,
    scale_windows,
    windows_of,
    z_score,
)

SIGMA = (3.0, 2.0, 1.5)


def scan(seed=0, size=(24, 20, 12)):
    """Smooth tissue with edges, positive."""
    random = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 1, 8, 7, 5, generator=random)
    tissue = torch.nn.functional.interpolate(coarse, size=size, mode="trilinear")[0]
    return 100 + 400 * (tissue > 0.5).float() + 40 * tissue


EVERYWHERE = torch.ones(1, 24, 20, 12, dtype=torch.bool)


def part(where):
    inside = EVERYWHERE.clone()
    if where == "part":
        inside[:, :5] = False
        inside[..., 9:] = False
    return inside


@pytest.mark.parametrize("where", ["all", "part"])
def test_it_is_scipys_gaussian_inside_and_zero_outside(where):
    image, inside = scan(), part(where)
    m = inside[0].double().numpy()
    values = image[0].double().numpy()
    low, high = np.percentile(values[m > 0], [0.5, 99.5])
    lifted = (np.clip(values, low, high) - low) * m
    logarithm = np.log(lifted + OFFSET * lifted[m > 0].mean())

    def local(x):
        blurred = [gaussian_filter(y, SIGMA, mode="constant", truncate=12) for y in (x * m, m)]
        return blurred[0] / np.maximum(blurred[1], 1e-12)

    centred = logarithm - local(logarithm)
    want = centred / (np.sqrt(local(centred**2)) + FLOOR) * m
    got = local_z_score(image, inside, SIGMA)
    torch.testing.assert_close(got[0], torch.from_numpy(want).float(), atol=2e-3, rtol=1e-3)
    assert not got[~inside].any()


def test_scale_and_offset_change_nothing():
    image = scan()
    got, again = (local_z_score(x, EVERYWHERE, SIGMA) for x in (image, 7 * image - 300))
    torch.testing.assert_close(got, again, atol=1e-3, rtol=1e-3)


def test_a_coils_field_is_taken_out():
    """The same anatomy with and without a field that falls off eightfold: after normalisation they are nearly one image."""
    image = scan()
    field = torch.exp(torch.linspace(0, 2.1, 24))[None, :, None, None]
    plain, coil = (local_z_score(x, EVERYWHERE, SIGMA, 0, 100) for x in (image, image * field))
    raw = np.corrcoef(image.flatten(), (image * field).flatten())[0, 1]
    after = np.corrcoef(plain.flatten(), coil.flatten())[0, 1]
    assert after > 0.9 > 0.8 > raw


def test_channels_do_not_mix():
    both = torch.cat([scan(0), scan(1)])
    got = local_z_score(both, EVERYWHERE, SIGMA)
    torch.testing.assert_close(got[1:], local_z_score(both[1:], EVERYWHERE, SIGMA))


@pytest.mark.parametrize("image", [torch.full((1, 24, 20, 12), 3.0), torch.zeros(1, 24, 20, 12)])
def test_no_contrast_is_zero(image):
    assert not local_z_score(image, EVERYWHERE, SIGMA).any()


def test_nothing_seen_is_zero():
    assert not local_z_score(scan(), ~EVERYWHERE, SIGMA).any()


def test_values_that_are_not_finite():
    image = scan()
    image[0, 7, 7, 7] = float("nan")
    with pytest.raises(ValueError, match="NaN or infinite"):
        local_z_score(image, EVERYWHERE, SIGMA)
    inside = EVERYWHERE.clone()
    inside[0, 7, 7, 7] = False  # marked as padding
    assert bool(torch.isfinite(local_z_score(image, inside, SIGMA)).all())


# --- several channels, windows


def two():
    """Channels of other scale and another pattern."""
    return torch.cat([scan(0), 5 - 0.01 * scan(3)])


@pytest.mark.parametrize("score", [z_score, lambda i, w: local_z_score(i, w, SIGMA)], ids=["zscore", "local"])
def test_a_channel_is_normalised_by_itself(score):
    both, inside = two(), part("part")
    got = score(both, inside)
    for channel in (0, 1):
        assert torch.equal(got[channel], score(both[channel : channel + 1], inside)[0])


def test_a_window_is_a_straight_line_between_its_ends():
    image, inside = 40 * scan() - 8000, part("part")
    got = scale_windows(image, inside, [(-160.0, 240.0)])
    clipped = np.clip(image.double().numpy(), -160, 240)
    want = np.where(inside.numpy(), -2 + 4 * (clipped + 160) / 400, 0)
    np.testing.assert_allclose(got.numpy(), want, atol=1e-5)
    assert got.min() == -2
    assert got.max() == 2


def test_mr_beside_ct_has_no_window():
    both = two()
    got = scale_windows(both, EVERYWHERE, [None, (0.0, 4.0)], 0.5, 99.5)
    assert torch.equal(got[0], z_score(both[:1], EVERYWHERE, 0.5, 99.5)[0])
    clipped = clip_windows(both, windows_of((None, (1.0, 2.0)), 2))
    assert torch.equal(clipped[0], both[0])
    assert (float(clipped[1].min()), float(clipped[1].max())) == (1, 2)


@pytest.mark.parametrize("bad", [(5, 5), (2, 1), "ct", [1], [1, 2, 3], [None, None], [[1, 2], [3]], [True, 2]])
def test_what_is_no_window_is_refused(bad):
    with pytest.raises(ValueError, match=r"\[low, high\]"):
        check_windows(bad)


def test_windows_of_another_number_of_channels_are_refused():
    assert windows_of((0.0, 1.0), 3) == [(0.0, 1.0)] * 3
    with pytest.raises(ValueError, match="3, one per channel"):
        windows_of(((0.0, 1.0), None), 3)
