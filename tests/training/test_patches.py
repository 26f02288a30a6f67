"""Patches of the fine grid: where they are cut, what is read, and how networks are trained on them."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from oasis_monai.atlases.library import AtlasLibrary, FineAtlas
from oasis_monai.data.types import IGNORE
from oasis_monai.networks.segmentation import NetworkSettings
from oasis_monai.training import segmentation as module
from oasis_monai.training.patches import KNOWN_PLACES, PatchDrawer
from oasis_monai.training.segmentation import train_segmentation
from oasis_monai.training.trainer import FitContext, TrainingSettings
from tests.training.test_registration import Killed, same

FINE, WORKING = (24, 20, 16), (12, 10, 8)
PATCH = (12, 8, 16)
SHORT = TrainingSettings(iterations=5, minutes=None, lr=5e-3, batch=2, checkpoint_minutes=1e-12)
TINY = NetworkSettings(convnet=(4, 8), unet=(4, 8), dynunet=(4, 8), patch=PATCH)


def atlas(seed, channels=3):
    """A voxel's channels are its own coordinates and 1; one small structure, and a corner that nobody labelled."""
    where = torch.stack(torch.meshgrid(*(torch.arange(n) for n in FINE), indexing="ij"))
    label = torch.zeros(1, *FINE, dtype=torch.uint8)
    at = torch.randint(4, 14, (2,), generator=torch.Generator().manual_seed(seed)).tolist()
    label[0, at[0] : at[0] + 3, at[1] : at[1] + 2, 6:9] = 1 + seed % 2
    label[0, :2, :2, :2] = IGNORE
    return FineAtlas(torch.cat([where + 1, where[:1] * 0 + 1])[-channels:].half(), label)


def library(count=3, channels=4):
    fine = tuple(atlas(seed, channels) for seed in range(count))
    images = torch.rand(count, channels, *WORKING, generator=torch.Generator().manual_seed(0))
    labels = torch.zeros(count, 1, *WORKING, dtype=torch.uint8)
    cases = tuple(f"c{i}" for i in range(count))
    return AtlasLibrary(images, labels, torch.rand(count, 4), cases, torch.full((count,), -1), classes=3, fine=fine)


@pytest.mark.parametrize("margin", [(0, 0, 0), (3, 2, 4)])
def test_a_patch_is_what_lies_at_its_place_and_nothing_beyond_the_grid(margin):
    atlases = library()
    drawer, places = PatchDrawer(atlases, PATCH, seed=1), set()
    inner = (slice(None), *(slice(m, m + p) for m, p in zip(margin, PATCH, strict=True)))
    for step in range(12):
        rows = torch.tensor([step % 3, 2])
        images, labels = drawer.draw(rows, step, torch.Generator().manual_seed(step), margin)
        assert images.shape == (2, 4, *(p + 2 * m for p, m in zip(PATCH, margin, strict=True)))
        for row, image, label in zip(rows.tolist(), images, labels, strict=True):
            corner = [int(image[inner][axis].min()) - 1 for axis in range(3)]
            places.add(tuple(corner))
            assert bool((image[inner][3] == 1).all())  # the patch itself lies within the grid
            for voxel in torch.rand(60, 3, generator=torch.Generator().manual_seed(step)):
                here = (voxel * torch.tensor(image.shape[1:])).long().tolist()
                there = [a - m + h for a, m, h in zip(corner, margin, here, strict=True)]
                within = all(0 <= t < n for t, n in zip(there, FINE, strict=True))
                assert image[(slice(None), *here)].tolist() == ([*(t + 1.0 for t in there), 1.0] if within else [0.0] * 4)
                truth = int(atlases.fine[row].label[(0, *there)]) if within else 0
                assert label[(slice(None), *here)].tolist()[:2] == [float(truth == 1), float(truth == 2)]
                if len(label) == 3:
                    assert bool(label[(2, *here)]) == (truth == IGNORE)
    assert len(places) > 12  # all over the grid, not at a few places


def test_every_second_patch_holds_some_of_a_structure_also_where_a_step_has_one():
    drawer = PatchDrawer(library(), (4, 4, 4), seed=1)
    held = []
    for step in range(40):
        _, labels = drawer.draw(torch.tensor([step % 3]), step, torch.Generator().manual_seed(step), (0, 0, 0))
        held.append(bool(labels[:, :2].any()))
    assert all(held[::2])
    assert sum(held[1::2]) < 10
    for step in range(10):
        _, labels = drawer.draw(torch.tensor([0, 1, 2, 0]), step, torch.Generator().manual_seed(step), (0, 0, 0))
        assert labels[::2, :2].flatten(1).any(1).all()


def test_places_are_voxels_of_structures_and_known_to_every_process():
    full = torch.ones(1, 40, 40, 40, dtype=torch.uint8)
    full[0, 20:] = 0
    full[0, 0] = IGNORE
    big = replace(library(1), fine=(FineAtlas(torch.zeros(4, 40, 40, 40).half(), full),))
    places = PatchDrawer(big, (8, 8, 8), seed=3).places(0)
    assert len(places) == KNOWN_PLACES
    assert bool((full[0][tuple(places.T)] == 1).all())
    assert torch.equal(places, PatchDrawer(big, (8, 8, 8), seed=3).places(0))
    assert not torch.equal(places, PatchDrawer(big, (8, 8, 8), seed=4).places(0))


def test_an_atlas_without_structures_is_drawn_from_anywhere():
    plain = atlas(0)
    bare = replace(library(1), fine=(FineAtlas(plain.image, torch.zeros_like(plain.label)),))
    image, label = PatchDrawer(bare, (4, 4, 4), 0).draw(torch.tensor([0, 0]), 0, torch.Generator().manual_seed(0), (1, 1, 1))
    assert image.shape == (2, 3, 6, 6, 6)
    assert not label.any()


class Watched:
    """A volume that tells which part of it is read."""

    def __init__(self, volume):
        self.volume, self.shape, self.read = volume, volume.shape, []

    def __len__(self):
        return len(self.volume)

    def __getitem__(self, part):
        self.read.append(self.volume[part].numel())
        return self.volume[part]


def test_only_the_patch_and_its_margin_are_read():
    drawer = PatchDrawer(library(1), (4, 4, 4), 0)
    drawer.places(0)
    images, labels = Watched(drawer.atlases[0].image), Watched(drawer.atlases[0].label)
    drawer.shown = (FineAtlas(images, labels),)
    for step in range(10):
        drawer.draw(torch.tensor([0]), step, torch.Generator().manual_seed(step), (1, 2, 0))
    assert len(images.read) == len(labels.read) == 10
    assert max(images.read) <= 4 * 6 * 8 * 4
    assert max(labels.read) <= 6 * 8 * 4


def test_no_margin_along_an_axis_that_is_seen_whole():
    assert PatchDrawer(library(1), PATCH, 0).margin() == (3, 2, 0)


def trainer_of(settings=SHORT, network=TINY, **more):
    context = FitContext(library(), (2.0, 2.0, 4.0), settings, **more)
    return module.SegmentationTrainer(context, "U-Net3D", nn.Conv3d(4, 3, 1), network)


def test_a_step_shows_patches_in_the_fine_voxels():
    trainer = trainer_of(replace(SHORT, augment=False))
    assert trainer.memory_setting == "network.patch"
    assert trainer.spacings_mm.tolist() == [[1.0, 1.0, 2.0]] * 3
    image, label = trainer.draw(0)
    assert image.shape == (2, 4, *PATCH)
    assert label.shape[2:] == PATCH
    assert bool((image[:, 3] == 1).all())


def test_a_patch_that_is_moved_shows_the_scan_in_its_corners():
    """A patch inside the grid, turned by some degrees: with its margin it has no voxel from nowhere."""
    from oasis_monai.transforms.augmentation import Augmentation

    turned = Augmentation(rotation_deg=10, scale=0.05, shear=0, shift=0, flip=0.5)
    network = replace(TINY, patch=(8, 8, 4))
    trainer = trainer_of(augmentation=turned, network=network)
    trainer.fine.size = trainer.fine.size - torch.tensor([8, 8, 8])  # corners from where a margin fits
    shift = [4, 4, 4]
    trainer.fine.atlases = tuple(
        FineAtlas(one.image.roll([-s for s in shift], (1, 2, 3)), one.label) for one in trainer.fine.atlases
    )
    trainer.fine._places = {row: torch.tensor([[9, 8, 5]]) for row in range(3)}
    away = torch.stack([trainer.draw(step)[0][:, 3] for step in range(0, 30, 2)])[:, 0]
    assert away.shape[1:] == (8, 8, 4)
    assert float((away > 0.99).float().mean()) > 0.99
    without = trainer.fine.margin
    trainer.fine.margin = lambda: (0, 0, 0)
    bare = torch.stack([trainer.draw(step)[0][:, 3] for step in range(0, 30, 2)])[:, 0]
    trainer.fine.margin = without
    assert float((bare > 0.99).float().mean()) < 0.9


@pytest.mark.parametrize("name", ["U-Net3D", "DynU-Net3D", "ConvNet3D"])
def test_killed_and_resumed_on_patches_is_bitwise_never_killed(tmp_path, monkeypatch, name):
    def train(folder):
        context = FitContext(library(), (2.0, 2.0, 4.0), SHORT, 3, folder, progress=False, name=name)
        return train_segmentation(context, name, TINY)

    whole = train(tmp_path / "whole")
    original = module.SegmentationTrainer.step

    def dies(self, number):
        if number == 3:
            raise Killed
        return original(self, number)

    monkeypatch.setattr(module.SegmentationTrainer, "step", dies)
    with pytest.raises(Killed):
        train(tmp_path / "killed")
    monkeypatch.setattr(module.SegmentationTrainer, "step", original)
    assert same(train(tmp_path / "killed"), whole)
