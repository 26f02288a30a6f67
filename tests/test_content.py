"""What of a volume a network sees: the scan, not the zeros around it."""

import pytest
import torch

from oasis_monai.content import content_box
from oasis_monai.segnets import NetworkSettings, make_network
from oasis_monai.supervised import Predictor

SETTINGS = NetworkSettings(dynunet=(4, 8, 8))


def shown(size, where, seed=0):
    """(1, 1, *size) with noise at the slices ``where``."""
    volume = torch.zeros(1, 1, *size)
    inside = volume[(..., *where)]
    volume[(..., *where)] = 1 + torch.rand(inside.shape, generator=torch.Generator().manual_seed(seed))
    return volume


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ((slice(3, 14), slice(8, 16), slice(0, 5)), (slice(0, 16), slice(8, 16), slice(0, 8))),  # rounded outwards, kept inside
        ((slice(5, 13), slice(0, 16), slice(19, 24)), (slice(5, 13), slice(0, 16), slice(16, 24))),
        ((slice(0, 16), slice(0, 16), slice(0, 24)), (slice(0, 16), slice(0, 16), slice(0, 24))),
        (
            (slice(7, 8), slice(7, 8), slice(7, 8)),
            (slice(3, 11), slice(3, 11), slice(0, 16)),
        ),  # one axis with two on the lowest level
    ],
)
def test_box_has_sides_a_network_can_take(where, expected):
    assert content_box(shown((16, 16, 24), where), 8) == (slice(None), slice(None), *expected)


def test_box_of_a_batch_holds_all_of_them():
    both = torch.cat([shown((16, 16, 24), (slice(0, 4), slice(0, 4), slice(0, 4))), shown((16, 16, 24), (slice(8, 9),) * 3)])
    assert content_box(both, 4)[2:] == (slice(0, 12),) * 3
    cut = both[content_box(both, 4)]
    assert cut.count_nonzero() == both.count_nonzero()


def test_box_where_nothing_is_shown_is_the_grid():
    nothing = torch.zeros(2, 1, 8, 8, 8)
    assert nothing[content_box(nothing, 4)].shape == nothing.shape


def test_a_volume_is_seen_the_same_on_a_larger_grid_and_beside_others():
    torch.manual_seed(0)
    model = make_network("DynU-Net3D", 3, SETTINGS).eval()
    predictor = Predictor(model, "DynU-Net3D", SETTINGS)
    scan = shown((16, 12, 8), (slice(None),) * 3)
    large, other = torch.zeros(1, 1, 32, 32, 24), shown((32, 32, 24), (slice(0, 30), slice(4, 28), slice(2, 20)), 1)
    place = (slice(None), slice(None), slice(8, 24), slice(9, 21), slice(4, 12))
    large[place] = scan
    alone, beside = predictor(scan), predictor(torch.cat([other, large]))[1:]
    torch.testing.assert_close(beside[place], alone)
    beside = beside.clone()
    beside[place] = torch.tensor([1.0, 0, 0])[None, :, None, None, None]
    assert torch.equal(beside[:, 0], torch.ones_like(beside[:, 0]))  # beyond it is background
    assert not beside[:, 1:].any()
    torch.testing.assert_close(predictor(scan).sum(1), torch.ones(1, 16, 12, 8))


def test_training_is_given_the_box(monkeypatch):
    from oasis_monai import supervised
    from oasis_monai.fitting import TrainingSettings
    from tests import test_estimator

    library = test_estimator.discs(3)
    library.images[:, :, :8] = 0
    library.labels[:, :, :8] = 0
    seen = []

    class Watched(torch.nn.Conv3d):
        def forward(self, image):
            seen.append(tuple(image.shape[2:]))
            return super().forward(image)

    training = TrainingSettings(iterations=2, minutes=None, batch=2)
    trainer = supervised._NetworkTrainer(
        "DynU-Net3D", library, (1.0,) * 3, Watched(1, library.classes, 1), SETTINGS, training, 0, None
    )
    trainer.step(0)
    whole = tuple(library.images.shape[2:])
    assert seen == [(whole[0] - 8, *whole[1:])]
