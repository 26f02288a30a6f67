"""Train a segmentation network on the atlases of one library: same images, augmentation and budget as the STM."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn

from oasis_monai.atlases.library import AtlasLibrary
from oasis_monai.data.types import IGNORE
from oasis_monai.networks.fast_training import speed_up_training
from oasis_monai.networks.losses import make_segmentation_loss
from oasis_monai.networks.segmentation import NetworkSettings, Predictor, make_network
from oasis_monai.networks.slice_unet import JointSettings
from oasis_monai.training.patches import PatchDrawer, cut_at_random
from oasis_monai.training.resident import gather, hold, resident
from oasis_monai.training.tracking import mean_dice
from oasis_monai.training.trainer import FitContext, Trainer, draw_rows, fit, generator, load_finished
from oasis_monai.transforms.labels import ignored, one_hot, split_ignored, structures, with_ignored
from oasis_monai.utils.device import use_bfloat16
from oasis_monai.utils.interpolation import pool
from oasis_monai.utils.transfer import onto


def train_segmentation(context: FitContext, network: str, settings: NetworkSettings | None = None) -> nn.Module:
    """Train a segmentation network on a library, or load it when the folder already holds the finished one.

    A step sees ``training.batch`` images; the loss is MONAI's Dice + cross-entropy (of structures that share voxels,
    :class:`.StructureLoss`), over the voxels that somebody labelled. Where the library has a fine grid the images are patches of
    that (:class:`.PatchDrawer`).

    Args:
        context: ``network.safetensors`` (resumable checkpoint) and ``history.csv`` go to its folder.
        network: a name of :data:`oasis_monai.networks.segmentation.NETWORKS`.
        settings: its channels and patch; None: the default ones.

    Raises:
        ConfigError: the grid is not one the network can take.
        OasisError: the loss is no longer finite; the last good checkpoint stays.
    """
    settings = settings or NetworkSettings()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(context.seed)  # the initial weights
        library = context.library
        model = make_network(network, library.classes, settings, library.channels, library.structures).to(context.device)
    path = context.path("network.safetensors")
    if not load_finished(model, path):
        context.begin(model)
        fit(SegmentationTrainer(context, network, model, settings), path, context.progress, context.name, context.watch)
    return model


class SegmentationTrainer(Trainer):
    """One step of training; see :class:`oasis_monai.training.trainer.Trainer`."""

    terms = ("loss", "main")

    def __init__(self, context: FitContext, name: str, model: nn.Module, network: NetworkSettings) -> None:
        self.library, self.model = context.library, speed_up_training(model)
        self.spacings_mm = context.spacings_mm / torch.tensor(self.library.fine_factor or (1,))
        self.settings, self.seed, self.chances = context.training, context.seed, context.chances
        self.shares, self.predictor = context.shares, (name, network)
        self.size = tuple(self.library.fine[0].label.shape[1:] if self.library.fine else self.library.images.shape[2:])
        self.patch = network.window(self.size, name)
        self.fine = PatchDrawer(self.library, self.patch, context.seed) if self.library.fine else None
        if self.fine is not None:
            self.memory_setting = "network.patch"  # of fewer images a step the patches would be larger
        self.weights = (1.0, *network.deep_supervision)
        self.optimiser = torch.optim.Adam(model.parameters(), lr=self.settings.lr, fused=True)
        self.augmentation = context.augmented()
        self.loss = make_segmentation_loss(self.library.structures, self.library.classes)
        self.device = next(model.parameters()).device
        # full-size convolutions take half of the time in bfloat16 on a CPU that is made for it; a U-Net3D gains less, and
        # may lose accuracy (docs/results/accuracy.md)
        self.bfloat16 = self.settings.amp or (network.kind(name) == "dynunet" and use_bfloat16(self.device, None))
        self.hold()

    def hold(self) -> None:
        self.data, self.held_shares, self.ignores = self.library, self.shares, None
        if self.fine is not None:
            self.fine.hold(self.device)
        elif self.device.type != "cpu":
            self.data = resident(self.library, self.device)
            if self.shares is not None:
                (self.held_shares,) = hold([self.shares], self.device, "shares of structures")
            # looking at a batch's labels for voxels that nobody labelled is free on a CPU alone
            self.ignores = bool(ignored(self.library.labels).any())

    def step(self, number: int) -> torch.Tensor:
        """(2,) the loss, and its part of the finest output."""
        image, label = self.draw(number)
        label, counts = split_ignored(label, self.library.classes)
        target = torch.cat([(1 - label.sum(1, keepdim=True)).clamp(0, 1), label], 1)
        self.model.train()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16):
            outputs = self.team.forward(self.runs, image)
        outputs = outputs if isinstance(outputs, list) else [outputs]
        parts = [self.loss(output.float(), target, counts) for output in outputs]
        total = torch.stack([w * part for w, part in zip(self.weights, parts, strict=False)]).sum()
        self.descend(total)
        return torch.stack([total.detach(), parts[0].detach()])

    def validate(self, images: AtlasLibrary) -> float | None:
        """That of the whole images; on a fine grid, of one patch in the middle of each image's structures."""
        name, network = self.predictor
        predict = Predictor(self.model, name, network, self.device, self.settings.batch)
        if self.fine is None:
            return mean_dice(predict(images.images).argmax(1), images.labels[:, 0], images.classes, images.cases)
        boxes = [self._middle(one.label) for one in images.fine]
        predicted = [predict(one.image[box][None]).argmax(1)[0] for one, box in zip(images.fine, boxes, strict=True)]
        labels = [one.label[box][0] for one, box in zip(images.fine, boxes, strict=True)]
        return mean_dice(predicted, labels, images.classes, images.cases)

    def _middle(self, label: torch.Tensor) -> tuple[slice, ...]:
        """The patch of a (1, x, y, z) label in the middle of its structures, or of the image where there is none."""
        size, patch = torch.tensor(label.shape[1:]), torch.tensor(self.patch)
        inside = structures(label[0]).nonzero()
        middle = inside.float().mean(0) if len(inside) else size / 2
        start = (middle - patch / 2).round().long().clamp_min(0).minimum(size - patch)
        return (slice(None), *(slice(a, a + n) for a, n in zip(start.tolist(), self.patch, strict=True)))

    def draw(self, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, c, \\*P) what a step shows, changed at random, and its (B, m, \\*P) label channels."""
        random = generator(self.seed, number)
        rows = draw_rows(len(self.library), self.settings.batch, random, self.chances)
        margin = None
        if self.fine is None:
            image, label = gather(self.data.images, rows, self.device), self._label(rows)
        else:
            margin = (0, 0, 0) if self.augmentation is None else self.fine.margin()
            image, label = self.fine.draw(rows, number, random, margin)
        image, label = onto(image, self.device).float(), onto(label, self.device)
        if self.augmentation is not None:
            flip, channels = self.augmentation.flips(len(rows), random), self.library.channels
            image, label = self.augmentation(image, label, flip, self.spacings_mm[rows], random, channels, margin)
        return (image, label) if self.fine is not None else self._cut(image, label, random)

    def _label(self, rows: torch.Tensor) -> torch.Tensor:
        """(B, m, \\*S) float32 label channels, see :func:`oasis_monai.transforms.labels.with_ignored`."""
        if self.held_shares is not None:
            return gather(self.held_shares, rows, self.device).float()
        return with_ignored(gather(self.data.labels, rows, self.device), self.library.classes, self.ignores)

    def _cut(self, image: torch.Tensor, label: torch.Tensor, random: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """A patch of each image at random; every second one holds some of a structure, where there is any."""
        if self.patch == self.size:
            return image, label
        if self.device.type != "cpu":
            return cut_at_random(image, label, self.patch, self.library.classes, random)
        images, labels = [], []
        for number in range(len(image)):
            start = torch.tensor(
                [int(torch.randint(s - p + 1, (1,), generator=random)) for s, p in zip(self.size, self.patch, strict=True)]
            )
            inside = label[number, : self.library.classes - 1].sum(0).cpu().nonzero()
            if number % 2 == 0 and len(inside):
                shift = torch.tensor([int(torch.randint(p, (1,), generator=random)) for p in self.patch])
                chosen = inside[int(torch.randint(len(inside), (1,), generator=random))] - shift
                start = chosen.clamp_min(0).minimum(torch.tensor(self.size) - torch.tensor(self.patch))
            where = (slice(None), *(slice(a, a + p) for a, p in zip(start.tolist(), self.patch, strict=True)))
            images.append(image[number][where])
            labels.append(label[number][where])
        return torch.stack(images), torch.stack(labels)


def coarsen_library(library: AtlasLibrary, stride: Sequence[int]) -> AtlasLibrary:
    """A library of volumes on the volume network's grid: images averaged over blocks of ``stride`` voxels, labels by majority (a
    block that is mostly ignored is ignored)."""
    labels = torch.stack([_by_majority(label, library.classes, stride) for label in library.labels])
    return replace(library, images=pool(library.images.float(), stride), labels=labels, estimates=None, fine=())


def _by_majority(label: torch.Tensor, classes: int, stride: Sequence[int]) -> torch.Tensor:
    """(1, x, y, z) class indices -> those of blocks; a tie goes to the lower class, and last to ignored."""
    unknown = ignored(label)[None]
    hot = one_hot(label[None], classes)
    if not bool(unknown.any()):
        return pool(hot, stride)[0].argmax(0, keepdim=True).to(torch.uint8)
    chosen = pool(torch.cat([hot, unknown.float()], 1), stride)[0].argmax(0, keepdim=True)
    return torch.where(chosen == classes, IGNORE, chosen).to(torch.uint8)


def shares_of_blocks(library: AtlasLibrary, stride: Sequence[int]) -> torch.Tensor | None:
    """(N, m, x, y, z) float16 shares of the structures (and of what nobody labelled, if there is any) in blocks of ``stride``
    working voxels, counted on the fine grid; None without one.

    The label of a coarse voxel says which structure is most of it. Its shares say how much of each, which is what the slice
    network's detail has to add up to.
    """
    if library.fine_factor is None:
        return None
    blocks = [s * f for s, f in zip(stride, library.fine_factor, strict=True)]
    parts = [pool(with_ignored(one.label[None], library.classes), blocks)[0].half() for one in library.fine]
    most = max(map(len, parts))  # an atlas that is labelled everywhere has no channel for what is not
    return torch.stack([torch.cat([one, one.new_zeros(most - len(one), *one.shape[1:])]) for one in parts])


def train_volume_network(context: FitContext, joint: JointSettings, network: NetworkSettings | None = None) -> nn.Module:
    """Train a joint model's network on whole volumes, on its part of the budget, as :func:`train_segmentation`; where there is a
    fine grid, on :func:`shares_of_blocks`.

    Args:
        context: a library of volumes, with the budget of the whole joint model.
        joint: the kind of network, its grid and its part of the budget.
        network: its channels.
    """
    coarse = replace(
        context,
        library=coarsen_library(context.library, joint.volume_stride),
        spacing_mm=context.spacings_mm * torch.tensor(joint.volume_stride),
        training=context.training.part(joint.budgets(3)[1]),
        shares=shares_of_blocks(context.library, joint.volume_stride),
        watch=context.watch and context.watch.changed(lambda images: coarsen_library(images, joint.volume_stride)),
    )
    return train_segmentation(coarse, joint.volume_network, replace(network or NetworkSettings(), patch=None))
