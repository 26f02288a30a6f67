"""Draws that show each structure as often, and copies of structures that may lie anywhere."""

import numpy as np
import pytest
import torch

from oasis_monai.data.types import IGNORE
from oasis_monai.training import small_structures
from oasis_monai.training.small_structures import ANYWHERE, MOST_COPIES, Copies, even_chances, shown_in_slices

pytestmark = pytest.mark.fast


def test_every_structure_is_drawn_as_often():
    """Formula, written image by image; weights of the images keep their meaning within a structure."""
    chances = torch.tensor([1.0, 2.0, 0.5, 1.0, 3.0, 1.0])
    shown = torch.tensor([[1, 0, 0], [1, 0, 0], [1, 1, 0], [0, 0, 0], [1, 0, 0], [0, 0, 0]], dtype=torch.bool)
    wanted = []
    for i in range(6):
        found = []
        for s in range(2):  # nobody shows the third
            total = sum(float(chances[j]) for j in range(6) if shown[j, s])
            found.append(float(chances[i]) / total if shown[i, s] else 0.0)
        wanted.append((1 - 1 / ANYWHERE) * sum(found) / 2 + float(chances[i] / chances.sum()) / ANYWHERE)
    torch.testing.assert_close(even_chances(chances, shown), torch.tensor(wanted))
    nothing = even_chances(chances, torch.zeros(6, 3, dtype=torch.bool))
    torch.testing.assert_close(nothing, chances / chances.sum())


def test_slices_show_what_is_in_them():
    label = torch.zeros(1, 5, 4, 3, dtype=torch.uint8)
    label[0, 1, 1, 0], label[0, 2, 2, 2], label[0, 3, 3, 2], label[0, 0, 0, 1] = 1, 3, 1, IGNORE
    assert shown_in_slices(label, 4).tolist() == [[True, False, False], [False, False, False], [True, False, True]]


def scan(organ=0.9, other=0.6, lesion=-0.4):
    """An organ with a dark ball at its edge, another organ without any, and air."""
    random = torch.Generator().manual_seed(1)
    x, y, z = torch.meshgrid(*(torch.arange(n).float() for n in (60, 50, 20)), indexing="ij")
    image, label = torch.full((60, 50, 20), -2.0), torch.zeros(60, 50, 20, dtype=torch.uint8)
    label[4:28, 4:46, 2:18] = 1
    image[label == 1] = organ
    image[32:58, 4:46, 2:18] = other
    ball = ((x - 26) ** 2 + (y - 25) ** 2 + (z - 10) ** 2) < 4.5**2
    image[ball], label[ball] = organ + lesion, 2
    return (image + 0.02 * torch.randn(image.shape, generator=random))[None], label[None]


def stack(image, label, z):
    """A slice with its neighbours, as it is drawn, with a further channel behind."""
    slices = image[..., [z - 1, z, z + 1]].movedim(-1, 1).flatten(0, 1)
    return torch.cat([slices, torch.full((1, *slices.shape[1:]), 7.0)])[None], label[..., z][None]


@pytest.fixture
def always(monkeypatch):
    monkeypatch.setattr(small_structures, "COPIED", 1.0)


def test_copies_keep_their_contrast_in_like_surroundings(always):
    """The lesion lies at its organ's edge, beside air, yet it is as dark against the other organ as against its own."""
    image, label = scan()
    copies = Copies([(image, label)], [2], 30, torch.Generator())
    assert 5 < len(copies.donors[0]) <= 9
    before, classes = stack(image, label, 4)  # without the lesion
    places = np.zeros(2)
    for seed in range(60):
        after, named = copies(before, classes, torch.Generator().manual_seed(seed))
        new = (named == 2)[0, 0]
        if not new.any():
            continue
        assert torch.equal(named[~(named == 2)], classes[~(named == 2)]), "nothing else is called otherwise"
        assert torch.equal(after[0, 3], before[0, 3]), "where voxels lie does not change"
        under = before[0, 1][new]
        assert under.median() > -1, "never in air"
        inner = torch.nn.functional.avg_pool2d(new[None, None].float(), 3, 1, 1)[0, 0] > 0.99
        torch.testing.assert_close(after[0, 1][inner].median(), under.median() - 0.4, atol=0.05, rtol=0)
        far = torch.nn.functional.max_pool2d(new[None, None].float(), 7, 1, 3)[0, 0] == 0
        assert torch.equal(after[0, :3][:, far], before[0, :3][:, far])
        places += [bool(under.median() > 0.75), bool(under.median() <= 0.75)]
    assert places.min() > 3, "in either organ"


def test_what_nobody_labelled_and_what_is_given_stays(always):
    image, label = scan()
    copies = Copies([(image, label)], [2], 30, torch.Generator())
    before, classes = stack(image, label, 4)
    unknown = torch.full_like(classes, IGNORE)
    after, named = copies(before, unknown, torch.Generator())
    assert torch.equal(after, before)
    assert torch.equal(named, unknown)
    kept, told = before.clone(), classes.clone()
    copies(before, classes, torch.Generator().manual_seed(2))
    assert torch.equal(before, kept)
    assert torch.equal(classes, told)


def test_only_the_structures_named_and_no_large_ones_are_copied(monkeypatch):
    image, label = scan()
    assert Copies([(image, label)], [], 30, torch.Generator()).donors == []
    assert Copies([(image, label)], [1], 30, torch.Generator()).donors == [], "larger than what may be copied"
    assert Copies([(image, label)], [3], 30, torch.Generator()).donors == [], "in no scan"
    before = stack(image, label, 4)
    none = Copies([(image, label)], [], 30, torch.Generator())(*before, torch.Generator())
    assert none[0] is before[0]
    monkeypatch.setattr(small_structures, "COPIED", 0.0)
    copies = Copies([(image, label)], [2], 30, torch.Generator())
    assert torch.equal(copies(*before, torch.Generator())[0], before[0])
    assert MOST_COPIES > 9
    monkeypatch.setattr(small_structures, "MOST_COPIES", 3)
    assert len(Copies([(image, label)], [2], 30, torch.Generator()).donors[0]) <= 3
