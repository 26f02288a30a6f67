"""Fit the joint model's segmentation network on one library: single slices, the same augmentation and loss as its opponents."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from oasis_monai.atlases.library import AtlasLibrary
from oasis_monai.atlases.slices import _expected, _near, _slices, append_atlas_channels, slices_near_structure
from oasis_monai.networks.slice_unet import JointSettings, SliceUNet, SliceUNetEnsemble, check_size, make_slice_network
from oasis_monai.training.trainer import Trainer, TrainingSettings, fit, generator, load_weights
from oasis_monai.transforms.augmentation import Augmentation
from oasis_monai.transforms.labels import foreground
from oasis_monai.utils.device import use_bfloat16
from oasis_monai.utils.tensor_files import load_if_whole, save_tensors

FILE = "estimator.safetensors"
MEMBER_SEED = 1000  # between the members of a fold; folds are 1 apart


def train_slice_network(
    library: AtlasLibrary,
    spacing_mm: tuple[float, ...],
    settings: JointSettings,
    training: TrainingSettings,
    seed: int,
    folder: Path | None,
    device: str | torch.device = "cpu",
    augmentation: Augmentation | None = None,
    progress: bool = True,
    name: str = "slice network",
    same_case: bool = False,
) -> SliceUNet | SliceUNetEnsemble:
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
    part = training.part(settings.budgets(library.spatial_dims)[0] / members)
    budget = replace(part, lr=settings.lr, schedule="warm_cosine")

    def train(number: int, where: Path | None, called: str) -> SliceUNet:
        own = seed + MEMBER_SEED * number
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(own)  # the decoder's initial weights
            model = SliceUNet(library.classes, settings.atlases, settings.decoder, settings.pretrained, same_case).to(device)
        trainer = _SliceTrainer(library, model, settings, budget, own, augmentation, spacing_mm, same_case)
        fit(trainer, where, progress, called)
        return model

    if members == 1:
        return train(0, path, name)
    stored = load_if_whole(path) if path else None
    files = [path.parent / f"member{number}" / FILE if path else None for number in range(members)]
    if path and stored:
        together = make_slice_network(library.classes, settings, False, same_case)
        load_weights(together, stored[0], path)
        together = together.to(device).eval()
    else:
        together = SliceUNetEnsemble([train(i, file, f"{name} {i + 1} of {members}") for i, file in enumerate(files)]).eval()
        if path:
            save_tensors(path, {f"model.{k}": v for k, v in together.state_dict().items()}, {"done": True})
    for file in filter(None, files):  # their histories stay
        file.unlink(missing_ok=True)
    return together


class _SliceTrainer(Trainer):
    """One step of training on slices drawn from the whole library; see :class:`oasis_monai.training.trainer.Trainer`."""

    terms = ("loss",)
    knob = "joint.slices_per_step"

    def __init__(
        self,
        library: AtlasLibrary,
        model: SliceUNet,
        estimator: JointSettings,
        settings: TrainingSettings,
        seed: int,
        augmentation: Augmentation | None,
        spacing_mm: tuple[float, ...],
        same_case: bool,
    ) -> None:
        from monai.losses import DiceCELoss

        self.library, self.model, self.settings, self.seed, self.count = library, model, settings, seed, estimator.slices_per_step
        self.device = next(model.parameters()).device
        model.encoder.to(memory_format=torch.channels_last)  # the decoder's instance norms are faster with channels first
        own = {id(p) for p in model.encoder.parameters()}
        groups = [
            {"params": list(model.encoder.parameters()), "scale": estimator.encoder_lr},
            {"params": [p for p in model.parameters() if id(p) not in own], "scale": 1.0},
        ]
        self.optimiser = torch.optim.AdamW(groups, lr=settings.lr, weight_decay=1e-4, fused=True)
        self.half = settings.amp or use_bfloat16(self.device, None)
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
        near = slices_near_structure(library)
        if library.spatial_dims == 3:
            images = library.images
            self.places = (images.amax((1, 2, 3)) > images.amin((1, 2, 3))).nonzero()
            near = near[self.places[:, 0], self.places[:, 1]]
        self.chances = torch.where(near, 1.0, estimator.empty_slice_weight)

    def _draw(self, random: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, 3 + extra, x, y) slices and their (B, C-1, x, y) structures."""
        library = self.library
        if self.places is None:
            rows = torch.multinomial(self.chances, self.count, replacement=True, generator=random)
            shape = None if self.expected is None else self.expected[rows].float()
            image = append_atlas_channels(_slices(library, rows), library, self.near[rows], shape)
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
