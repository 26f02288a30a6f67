"""Fit and use a segmentation network on the atlases of one library: the same images, augmentation and budget as the STM."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from oasis_monai.atlases.library import AtlasLibrary
from oasis_monai.networks.segmentation import NetworkSettings, make_network
from oasis_monai.networks.slice_unet import JointSettings
from oasis_monai.training.trainer import Trainer, TrainingSettings, fit, generator
from oasis_monai.transforms.augmentation import Augmentation
from oasis_monai.transforms.labels import foreground, one_hot
from oasis_monai.utils.device import use_bfloat16
from oasis_monai.utils.interpolation import pool


def train_network(
    name: str,
    library: AtlasLibrary,
    spacing_mm: tuple[float, ...],
    network: NetworkSettings,
    settings: TrainingSettings,
    seed: int,
    folder: Path | None,
    device: str | torch.device = "cpu",
    augmentation: Augmentation | None = None,
    progress: bool = True,
    label: str | None = None,
) -> nn.Module:
    """Train the network ``name`` of :data:`.segmentation.NETWORKS` on a library, or load it when ``folder`` already
    holds the finished one.

    A step sees ``settings.batch`` images; the loss is MONAI's Dice + cross-entropy.

    Args:
        library: training images (N, 1, *S) with labels.
        spacing_mm: voxel size of the working grid, for the augmentation's rotations.
        folder: where ``network.safetensors`` (resumable checkpoint) and ``history.csv`` go; None keeps nothing.
        label: what the progress bar and messages call it.

    Raises:
        ConfigError: the grid is not one the network can take.
        OasisError: the loss is no longer finite; the last good checkpoint stays.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # the initial weights
        model = make_network(name, library.classes, network).to(device)
    trainer = _NetworkTrainer(name, library, spacing_mm, model, network, settings, seed, augmentation)
    return fit(trainer, folder / "network.safetensors" if folder else None, progress, label or name)


class _NetworkTrainer(Trainer):
    """One step of training; see :class:`oasis_monai.training.trainer.Trainer`."""

    terms = ("loss", "main")

    def __init__(
        self,
        name: str,
        library: AtlasLibrary,
        spacing_mm: tuple[float, ...],
        model: nn.Module,
        network: NetworkSettings,
        settings: TrainingSettings,
        seed: int,
        augmentation: Augmentation | None,
    ) -> None:
        from monai.losses import DiceCELoss

        self.library, self.spacing_mm, self.model, self.settings, self.seed = library, spacing_mm, model, settings, seed
        self.size = tuple(library.images.shape[2:])
        self.patch = network.window(self.size, name)
        self.weights = (1.0, *network.deep_supervision)
        self.optimiser = torch.optim.Adam(model.parameters(), lr=settings.lr, fused=True)
        self.augmentation = (augmentation or Augmentation()) if settings.augment else None
        self.loss = DiceCELoss(softmax=True, include_background=False)
        self.device = next(model.parameters()).device
        # full-size convolutions take half of the time in bfloat16 on a CPU that is made for it; others gain little
        self.half = settings.amp or (network.kind(name) == "dynunet" and use_bfloat16(self.device, None))

    def step(self, number: int) -> torch.Tensor:
        """(2,) the loss, and its part of the finest output."""
        random, settings = generator(self.seed, number), self.settings
        rows = torch.randint(len(self.library.cases), (settings.batch,), generator=random)
        image = self.library.images[rows].to(self.device, torch.float32)
        label = foreground(self.library.labels[rows].to(self.device), self.library.classes)
        if self.augmentation is not None:
            flip = self.augmentation.flips(len(rows), random)
            image, label = self.augmentation(image, label, flip, self.spacing_mm, random)
        image, label = self._cut(image, label, random)
        target = torch.cat([(1 - label.sum(1, keepdim=True)).clamp(0, 1), label], 1)
        self.model.train()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.half):
            outputs = self.team.forward(self.model, image)
        outputs = outputs if isinstance(outputs, list) else [outputs]
        parts = [self.loss(output.float(), target) for output in outputs]
        total = torch.stack([w * part for w, part in zip(self.weights, parts, strict=False)]).sum()
        self.descend(total)
        return torch.stack([total.detach(), parts[0].detach()])

    def _cut(self, image: torch.Tensor, label: torch.Tensor, random: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """A patch of each image at random; every second one holds some of a structure, where there is any."""
        if self.patch == self.size:
            return image, label
        images, labels = [], []
        for number in range(len(image)):
            start = torch.tensor(
                [int(torch.randint(s - p + 1, (1,), generator=random)) for s, p in zip(self.size, self.patch, strict=True)]
            )
            inside = label[number].sum(0).cpu().nonzero()
            if number % 2 == 0 and len(inside):
                shift = torch.tensor([int(torch.randint(p, (1,), generator=random)) for p in self.patch])
                chosen = inside[int(torch.randint(len(inside), (1,), generator=random))] - shift
                start = chosen.clamp_min(0).minimum(torch.tensor(self.size) - torch.tensor(self.patch))
            where = (slice(None), *(slice(a, a + p) for a, p in zip(start.tolist(), self.patch, strict=True)))
            images.append(image[number][where])
            labels.append(label[number][where])
        return torch.stack(images), torch.stack(labels)


def coarsen_library(library: AtlasLibrary, stride: Sequence[int]) -> AtlasLibrary:
    """A library of volumes on the volume network's grid: images averaged over blocks of ``stride`` voxels, labels by majority."""
    hot = torch.stack([pool(one_hot(label[None], library.classes), stride)[0] for label in library.labels])
    labels = hot.argmax(1, keepdim=True).to(torch.uint8)
    return replace(library, images=pool(library.images.float(), stride), labels=labels, estimates=None)


def train_volume_network(
    library: AtlasLibrary,
    spacing_mm: tuple[float, ...],
    settings: JointSettings,
    network: NetworkSettings,
    training: TrainingSettings,
    seed: int,
    folder: Path | None,
    device: str | torch.device = "cpu",
    augmentation: Augmentation | None = None,
    progress: bool = True,
    name: str = "volume network",
) -> nn.Module:
    """Train the U-Net on whole volumes on its share of the budget, as :func:`oasis_monai.training.segmentation.train_network`."""
    coarse_mm = tuple(mm * s for mm, s in zip(spacing_mm, settings.volume_stride, strict=True))
    budget = training.part(settings.budgets(3)[1])
    library, network = coarsen_library(library, settings.volume_stride), replace(network, patch=None)
    kind = settings.volume_network
    return train_network(kind, library, coarse_mm, network, budget, seed, folder, device, augmentation, progress, name)
