"""Draw the slices of a training step on a GPU, from a library that lies there.

The host draws which slices, and sends their numbers. Volumes lie slice by slice, so that a slice and its neighbours are whole
pieces of memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from oasis_monai.atlases.library import AtlasLibrary
from oasis_monai.atlases.slices import append_atlas_channels, context_slices
from oasis_monai.networks.slice_unet import WINDOW
from oasis_monai.training.patches import cut_at_random
from oasis_monai.training.resident import hold, resident
from oasis_monai.transforms.labels import ignored, with_ignored
from oasis_monai.utils.transfer import upload

if TYPE_CHECKING:
    from oasis_monai.training.slices import SliceTrainer

Drawn = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class ResidentSlices:
    """The slices of a library on a GPU.

    Args:
        library: atlases that are slices, there; None for volumes.
        near, expected: of the trainer, there.
        images, labels: (N z, c, x, y) and (N z, 1, x, y) slices of volumes, volume after volume; empty for slices.
        depth: z.
        ignores: whether nobody labelled some of the voxels.
    """

    library: AtlasLibrary | None
    near: torch.Tensor
    expected: torch.Tensor | None
    images: torch.Tensor
    labels: torch.Tensor
    depth: int
    ignores: bool

    @classmethod
    def of(cls, trainer: SliceTrainer) -> ResidentSlices | None:
        """Those of a trainer; None where they do not fit on its device."""
        device, none = trainer.device, torch.empty(0)
        if trainer.places is None:
            library = resident(trainer.library, device)
            if library.images.device.type == "cpu":
                return None
            expected = None if trainer.expected is None else trainer.expected.to(device)
            ignores = bool(ignored(trainer.library.labels).any())
            return cls(library, trainer.near.to(device), expected, none, none, 0, ignores)
        images, labels = (
            torch.cat([volume[part].movedim(-1, 0).contiguous() for volume in trainer.volumes]) for part in range(2)
        )
        ignores, depth = bool(ignored(labels).any()), trainer.volumes[0].label.shape[-1]
        images, labels = hold([images, labels], device, "training slices")
        return None if images.device.type == "cpu" else cls(None, none, None, images, labels, depth, ignores)

    def draw(self, trainer: SliceTrainer, random: torch.Generator) -> Drawn:
        """What :meth:`oasis_monai.training.slices.SliceTrainer.draw` gives, on the GPU but for the rows."""
        chosen = torch.multinomial(trainer.chances, trainer.count, replacement=True, generator=random)
        classes = trainer.library.classes
        if self.library is not None:
            (rows,) = upload(trainer.device, chosen)
            shape = None if self.expected is None else self.expected[rows].float()
            image = append_atlas_channels(context_slices(self.library, rows), self.library, self.near[rows], shape)
            return image, with_ignored(self.library.labels[rows], classes, self.ignores), chosen
        assert trainer.places is not None
        rows, z = trainer.places[chosen].unbind(1)
        around = torch.stack([(z - 1).clamp_min(0), z, (z + 1).clamp_max(self.depth - 1)], 1)
        (numbers,) = upload(trainer.device, rows[:, None] * self.depth + around)
        image = self.images[numbers].transpose(1, 2).flatten(1, 2).float()
        label = with_ignored(self.labels[numbers[:, 1]], classes, self.ignores)
        if trainer.library.fine and max(image.shape[2:]) > WINDOW:
            patch = [min(side, WINDOW) for side in image.shape[2:]]
            image, label = cut_at_random(image, label, patch, classes, random)
        return image, label, rows
