"""Draw the slices of a training step on a GPU, from a library that lies there.

The host draws which slices, and sends their numbers. Volumes lie slice by slice, so that a slice and its neighbours are whole
pieces of memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from oasis_monai.atlases.library import AtlasLibrary, FineAtlas
from oasis_monai.atlases.slices import append_atlas_channels, context_slices
from oasis_monai.networks.slice_unet import WINDOW
from oasis_monai.training.patches import cut_at_random
from oasis_monai.training.resident import hold, resident
from oasis_monai.transforms.labels import ignored, with_ignored
from oasis_monai.utils.transfer import upload


@dataclass(frozen=True)
class ResidentSlices:
    """The slices of a library on a GPU.

    Args:
        library: atlases that are slices, there; of volumes as it was.
        device: the GPU.
        near, expected: (N, k) atlases beside every slice and (N, C-1, x, y) its expected shape, there; None for volumes.
        images, labels: (N z, c, x, y) and (N z, 1, x, y) slices of volumes, volume after volume, there; None for slices.
        ignores: whether nobody labelled some of the voxels.
    """

    library: AtlasLibrary
    device: torch.device
    ignores: bool
    near: torch.Tensor | None = None
    expected: torch.Tensor | None = None
    images: torch.Tensor | None = None
    labels: torch.Tensor | None = None

    @classmethod
    def of(
        cls,
        library: AtlasLibrary,
        volumes: Sequence[FineAtlas],
        near: torch.Tensor,
        expected: torch.Tensor | None,
        device: torch.device,
    ) -> ResidentSlices | None:
        """Those of the ``volumes``, or of a library of slices where there are none; None where they do not fit on the device."""
        if not volumes:
            there = resident(library, device)
            if there.images.device.type == "cpu":
                return None
            ignores, shapes = bool(ignored(library.labels).any()), None if expected is None else expected.to(device)
            return cls(there, device, ignores, near.to(device), shapes)
        parts = [torch.cat([volume[part].movedim(-1, 0).contiguous() for volume in volumes]) for part in range(2)]
        ignores = bool(ignored(parts[1]).any())
        images, labels = hold(parts, device, "training slices")
        return None if images.device.type == "cpu" else cls(library, device, ignores, images=images, labels=labels)

    def of_slices(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, 3c + extra, x, y) the slices ``rows`` with what is shown beside them, and their (B, m, x, y) label channels."""
        assert self.near is not None
        (there,) = upload(self.device, rows)
        shape = None if self.expected is None else self.expected[there].float()
        image = append_atlas_channels(context_slices(self.library, there), self.library, self.near[there], shape)
        return image, with_ignored(self.library.labels[there], self.library.classes, self.ignores)

    def of_volumes(self, places: torch.Tensor, random: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, 3c, x, y) the slices at (B, 2) ``places``, the volume and z of each, with their neighbours, and their (B, m, x, y)
        label channels; of a fine grid windows of them."""
        assert self.images is not None
        assert self.labels is not None
        depth = len(self.images) // len(self.library)
        rows, z = places.unbind(1)
        around = torch.stack([(z - 1).clamp_min(0), z, (z + 1).clamp_max(depth - 1)], 1)
        (numbers,) = upload(self.device, rows[:, None] * depth + around)
        image = self.images[numbers].transpose(1, 2).flatten(1, 2).float()
        label = with_ignored(self.labels[numbers[:, 1]], self.library.classes, self.ignores)
        if self.library.fine and max(image.shape[2:]) > WINDOW:
            patch = [min(side, WINDOW) for side in image.shape[2:]]
            return cut_at_random(image, label, patch, self.library.classes, random)
        return image, label
