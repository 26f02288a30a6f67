"""Fit the joint model's segmentation network on one library: single slices, the same augmentation and loss as its opponents."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from oasis_monai.beside import beside_atlases, flanking
from oasis_monai.between import shape_between
from oasis_monai.estimator import Estimator
from oasis_monai.fitting import Trainer, TrainingSettings, fit, generator, load_weights
from oasis_monai.library import AtlasLibrary
from oasis_monai.networks.segmentation import NetworkSettings, Predictor
from oasis_monai.networks.slice_unet import EstimatorSettings, SliceNet, SliceNets, check_size, make_estimator
from oasis_monai.supervised import train_network
from oasis_monai.transforms.augmentation import Augmentation
from oasis_monai.transforms.labels import foreground, one_hot
from oasis_monai.utils.device import halved
from oasis_monai.utils.interpolation import pool
from oasis_monai.utils.tensor_files import load_if_whole, save_tensors

FILE = "estimator.safetensors"
MEMBER_SEED = 1000  # between the members of a fold; folds are 1 apart


def train_estimator(
    library: AtlasLibrary,
    spacing_mm: tuple[float, ...],
    settings: EstimatorSettings,
    training: TrainingSettings,
    seed: int,
    folder: Path | None,
    device: str | torch.device = "cpu",
    augmentation: Augmentation | None = None,
    progress: bool = True,
    name: str = "slice network",
    same_case: bool = False,
) -> SliceNet | SliceNets:
    """Train the network on its share of the budget, or load it when ``folder`` already holds the finished one. Several members
    are trained one after the other, each with its own random numbers and an equal part of the share.

    Args:
        library: training atlases, slices or volumes, with labels.
        folder: where ``estimator.safetensors`` (resumable checkpoint) and ``history.csv`` go; of several members those of each
            go to a folder of its own below; when all are finished only the histories stay there. None keeps nothing.
        spacing_mm: voxel size of the working grid, for the augmentation's rotations.
        same_case: whether a slice's neighbours may be of its own case (slice folds). With atlases beside it, a slice is then
            also shown the shape between its case's other slices, by a network with channels for it.

    Raises:
        ConfigError: the grid is too small.
        OasisError: the loss is no longer finite; the last good checkpoint stays.
    """
    check_size(tuple(library.images.shape[2:]))
    path, members = folder / FILE if folder else None, settings.members
    part = training.part(settings.shares(library.spatial_dims)[0] / members)
    budget = replace(part, lr=settings.lr, schedule="warm_cosine")

    def train(number: int, where: Path | None, called: str) -> SliceNet:
        own = seed + MEMBER_SEED * number
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(own)  # the decoder's initial weights
            model = SliceNet(library.classes, settings.atlases, settings.decoder, settings.pretrained, same_case).to(device)
        trainer = _EstimatorTrainer(library, model, settings, budget, own, augmentation, spacing_mm, same_case)
        fit(trainer, where, progress, called)
        return model

    if members == 1:
        return train(0, path, name)
    stored = load_if_whole(path) if path else None
    files = [path.parent / f"member{number}" / FILE if path else None for number in range(members)]
    if path and stored:
        together = make_estimator(library.classes, settings, False, same_case)
        load_weights(together, stored[0], path)
        together = together.to(device).eval()
    else:
        together = SliceNets([train(i, file, f"{name} {i + 1} of {members}") for i, file in enumerate(files)]).eval()
        if path:
            save_tensors(path, {f"model.{k}": v for k, v in together.state_dict().items()}, {"done": True})
    for file in filter(None, files):  # their histories stay
        file.unlink(missing_ok=True)
    return together


def coarser(library: AtlasLibrary, stride: Sequence[int]) -> AtlasLibrary:
    """A library of volumes on the volume network's grid: images averaged over blocks of ``stride`` voxels, labels by majority."""
    hot = torch.stack([pool(one_hot(label[None], library.classes), stride)[0] for label in library.labels])
    labels = hot.argmax(1, keepdim=True).to(torch.uint8)
    return replace(library, images=pool(library.images.float(), stride), labels=labels, estimates=None)


def train_volume_network(
    library: AtlasLibrary,
    spacing_mm: tuple[float, ...],
    settings: EstimatorSettings,
    network: NetworkSettings,
    training: TrainingSettings,
    seed: int,
    folder: Path | None,
    device: str | torch.device = "cpu",
    augmentation: Augmentation | None = None,
    progress: bool = True,
    name: str = "volume network",
) -> nn.Module:
    """Train the U-Net on whole volumes on its share of the budget, as :func:`oasis_monai.supervised.train_network`."""
    coarse_mm = tuple(mm * s for mm, s in zip(spacing_mm, settings.volume_stride, strict=True))
    budget = training.part(settings.shares(3)[1])
    library, network = coarser(library, settings.volume_stride), replace(network, patch=None)
    kind = settings.volume_network
    return train_network(kind, library, coarse_mm, network, budget, seed, folder, device, augmentation, progress, name)


def make_whole(
    network: nn.Module, name: str, settings: NetworkSettings, device: str | torch.device = "cpu"
) -> Callable[[torch.Tensor], torch.Tensor]:
    """The trained volume network, ``name`` of the estimator's settings, as :class:`oasis_monai.estimator.Estimator` wants it."""
    return Predictor(network, name, replace(settings, patch=None), device)


def estimate_library(
    estimator: Estimator,
    library: AtlasLibrary,
    atlases: int = 0,
    same_case: bool = False,
    rows: torch.Tensor | None = None,
) -> torch.Tensor:
    """What the network makes of the atlases ``rows`` (default all) of its own library: (R, C-1, \\*S) float16. A slice never sees
    itself as an atlas."""
    rows = torch.arange(len(library)) if rows is None else rows
    estimator = estimator.plain()  # the STM is trained to doubt it anyway
    if library.spatial_dims == 3:
        return torch.stack([estimator.volume(library.images[row])[1:].half() for row in rows.tolist()])
    near = _near(library, atlases, same_case, rows)
    found = []
    for part, of in zip(rows.split(64), near.split(64), strict=True):
        slices = _slices(library, part)
        shape = _expected(library, part, of) if atlases and same_case else None
        slices = beside_atlases(slices, library, of, shape)
        found.append(estimator(slices)[:, 1:].half())
    return torch.cat(found)


def _slices(library: AtlasLibrary, rows: torch.Tensor) -> torch.Tensor:
    """(B, 3, x, y) atlases of a library of slices between their neighbours."""
    if library.context is None:
        raise ValueError("a library of slices without their neighbours; build it again")
    below, above = library.context[rows].split(1, 1)
    return torch.cat([below, library.images[rows], above], 1).float()


def _near(library: AtlasLibrary, count: int, same_case: bool, rows: torch.Tensor) -> torch.Tensor:
    """(R, count) the atlases shown beside the atlases ``rows``."""
    if not count:
        return torch.empty((len(rows), 0), dtype=torch.int64)
    own = library.groups(same_case)
    parts = rows.split(1024)  # all slices with their neighbours are three libraries
    return torch.cat([flanking(_slices(library, part), library, (own[part], own)) for part in parts])


def _expected(library: AtlasLibrary, rows: torch.Tensor, near: torch.Tensor) -> torch.Tensor:
    """(R, C-1, x, y) the shape expected of the atlases ``rows``, their own label not looked at; ``near``: see :func:`_near`."""
    return shape_between(library, [(library.cases[row], int(library.slices[row])) for row in rows.tolist()], near)


def near_structure(library: AtlasLibrary, reach: int = 2) -> torch.Tensor:
    """Whether a structure is within ``reach`` slices: (N, z) bool of volumes, (N,) of slices, whose neighbours are those of their
    case that are in the library."""
    there = (library.labels > 0).flatten(1, 3).any(1) if library.spatial_dims == 3 else (library.labels > 0).flatten(1).any(1)
    if library.spatial_dims == 3:
        spread = F.max_pool1d(there[:, None].float(), 2 * reach + 1, stride=1, padding=reach)
        return spread[:, 0] > 0
    known = {(case, int(z)) for case, z, fg in zip(library.cases, library.slices, there.tolist(), strict=True) if fg}
    around = range(-reach, reach + 1)
    near = [any((case, int(z) + d) in known for d in around) for case, z in zip(library.cases, library.slices, strict=True)]
    return torch.tensor(near)


class _EstimatorTrainer(Trainer):
    """One step of training on slices drawn from the whole library; see :class:`oasis_monai.fitting.Trainer`."""

    terms = ("loss",)
    knob = "estimator.slices"

    def __init__(
        self,
        library: AtlasLibrary,
        model: SliceNet,
        estimator: EstimatorSettings,
        settings: TrainingSettings,
        seed: int,
        augmentation: Augmentation | None,
        spacing_mm: tuple[float, ...],
        same_case: bool,
    ) -> None:
        from monai.losses import DiceCELoss

        self.library, self.model, self.settings, self.seed, self.count = library, model, settings, seed, estimator.slices
        self.device = next(model.parameters()).device
        model.encoder.to(memory_format=torch.channels_last)  # the decoder's instance norms are faster with channels first
        own = {id(p) for p in model.encoder.parameters()}
        groups = [
            {"params": list(model.encoder.parameters()), "scale": estimator.encoder_lr},
            {"params": [p for p in model.parameters() if id(p) not in own], "scale": 1.0},
        ]
        self.optimiser = torch.optim.AdamW(groups, lr=settings.lr, weight_decay=1e-4, fused=True)
        self.half = settings.amp or halved(self.device, None)
        self.augmentation = (augmentation or Augmentation()) if settings.augment else None
        self.spacing_mm = spacing_mm[:2]
        # over the batch, not per slice: a slice without the structure has no Dice of its own
        self.loss = DiceCELoss(softmax=True, include_background=False, batch=True)
        rows = torch.arange(len(library))
        self.near = _near(library, estimator.atlases, same_case, rows)
        self.expected: torch.Tensor | None = None
        if estimator.atlases and same_case:
            self.expected = torch.cat([_expected(library, part, self.near[part]).half() for part in rows.split(256)])
        # volumes: (row, z) of every slice that shows something; padding beyond the scan teaches nothing
        self.places: torch.Tensor | None = None
        near = near_structure(library)
        if library.spatial_dims == 3:
            images = library.images
            self.places = (images.amax((1, 2, 3)) > images.amin((1, 2, 3))).nonzero()
            near = near[self.places[:, 0], self.places[:, 1]]
        self.chances = torch.where(near, 1.0, estimator.empty)

    def _draw(self, random: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, 3 + extra, x, y) slices and their (B, C-1, x, y) structures."""
        library = self.library
        if self.places is None:
            rows = torch.multinomial(self.chances, self.count, replacement=True, generator=random)
            shape = None if self.expected is None else self.expected[rows].float()
            image = beside_atlases(_slices(library, rows), library, self.near[rows], shape)
            return image, foreground(library.labels[rows], library.classes)
        chosen = self.places[torch.multinomial(self.chances, self.count, replacement=True, generator=random)].tolist()
        last = library.images.shape[-1] - 1
        around = [[max(z - 1, 0), z, min(z + 1, last)] for _, z in chosen]
        image = torch.stack([library.images[row, 0][..., zs].movedim(-1, 0) for (row, _), zs in zip(chosen, around, strict=True)])
        label = torch.stack([library.labels[row, :, :, :, z] for row, z in chosen])
        return image.float(), foreground(label, library.classes)

    def step(self, number: int) -> torch.Tensor:
        """(1,) the loss."""
        random = generator(self.seed, number)
        image, label = (part.to(self.device) for part in self._draw(random))
        if self.augmentation is not None:
            flip = self.augmentation.flips(self.count, random)
            slices, rest = self.augmentation(image[:, :3], torch.cat([image[:, 3:], label], 1), flip, self.spacing_mm, random)
            atlases, label = rest.split([image.shape[1] - 3, label.shape[1]], 1)
            image = torch.cat([slices, atlases], 1)
        self.model.train()
        on_cpu = self.device.type == "cpu"
        image = image.contiguous(memory_format=torch.channels_last)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.half and not on_cpu):
            output = self.team.forward(self.model, image, half=self.half and on_cpu)
        target = torch.cat([(1 - label.sum(1, keepdim=True)).clamp(0, 1), label], 1)
        loss = self.loss(output.float(), target)
        self.descend(loss)
        return loss.detach()[None]
