"""Draw patches of atlases on the fine grid, whose voxels stay on disk: only those of a patch are read."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from oasis_monai.atlases.library import AtlasLibrary, FineAtlas
from oasis_monai.training.resident import hold
from oasis_monai.training.trainer import generator
from oasis_monai.transforms.labels import ignored, structures, with_ignored
from oasis_monai.utils.transfer import upload

KNOWN_PLACES = 10_000
"""Voxels of structures of every atlas that a patch may be laid round, as many as nnU-Net keeps of a class. A whole label is read
once to find them."""
MARGIN = 0.25
"""Of a patch's side: what is read on each side of it, so that a patch that is turned, scaled and moved shows the scan in its
corners. Where it reaches farther there is nothing, as beyond the grid."""


class PatchDrawer:
    """Draws patches of the atlases of a library.

    Args:
        library: with a fine grid.
        patch: voxels along x, y, z, none above those of the grid.
        seed: of the places that are known of every atlas.
    """

    def __init__(self, library: AtlasLibrary, patch: Sequence[int], seed: int) -> None:
        self.atlases, self.classes, self.seed = library.fine, library.classes, seed
        self.patch = torch.tensor(patch)
        self.size = torch.tensor(self.atlases[0].label.shape[1:])
        self._places: dict[int, torch.Tensor] = {}
        self.shown: Sequence[FineAtlas] = self.atlases
        self._device = torch.device("cpu")
        self._ignores: bool | None = None

    def hold(self, device: torch.device) -> None:
        """Read patches from a GPU's memory, if all atlases fit there."""
        self.shown, self._ignores, self._device = self.atlases, None, torch.device("cpu")
        if device.type != "cpu":
            parts = hold([part for one in self.atlases for part in one], device, "training images on the fine grid")
            self.shown = [FineAtlas(*pair) for pair in zip(parts[::2], parts[1::2], strict=True)]
            self._device = self.shown[0].image.device
            self._ignores = any(bool(ignored(one.label).any()) for one in self.atlases)

    def margin(self) -> tuple[int, ...]:
        """Voxels that augmentation needs on each side of a patch; none along an axis that the patch shows whole: it reads beyond
        the grid there, as networks that see all do."""
        needed = torch.where(self.patch < self.size, (MARGIN * self.patch).ceil().long(), 0)
        return tuple(needed.tolist())

    def draw(
        self, rows: torch.Tensor, step: int, random: torch.Generator, margin: Sequence[int]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """A patch of each of the atlases ``rows``, at random; every second one holds some of a structure, where there is any.

        Args:
            step: its number; where a step has one patch, every second step is of a structure.
            margin: voxels on each side that are read as well; 0 and background beyond the grid.

        Returns:
            (B, c, *P) float32 images and the (B, m, *P) label channels of :func:`oasis_monai.transforms.labels.with_ignored`,
            ``P`` the patch with its margins.
        """
        images, labels = [], []
        for number, row in enumerate(rows.tolist(), step * len(rows)):
            corner = (torch.rand(3, generator=random) * (self.size - self.patch + 1)).long()
            known = self.places(row) if number % 2 == 0 else self.size.new_zeros(0)
            if len(known):
                shift = (torch.rand(3, generator=random) * self.patch).long()
                place = known[int(torch.randint(len(known), (1,), generator=random))]
                corner = (place - shift).clamp_min(0).minimum(self.size - self.patch)
            image, label = _read(self.shown[row], corner.tolist(), self.patch.tolist(), margin, self._device)
            images.append(image)
            labels.append(label)
        return torch.stack(images), with_ignored(torch.stack(labels), self.classes, self._ignores)

    def places(self, row: int) -> torch.Tensor:
        """(k, 3) int64: voxels of any structure of an atlas, :data:`KNOWN_PLACES` at most, the same in every process."""
        if row not in self._places:
            found = structures(self.atlases[row].label[0]).flatten().nonzero()[:, 0]
            if len(found) > KNOWN_PLACES:
                found = found[torch.randint(len(found), (KNOWN_PLACES,), generator=generator(self.seed, row))]
            self._places[row] = torch.stack(torch.unravel_index(found, tuple(self.size.tolist())), 1)
        return self._places[row]


def _read(
    atlas: FineAtlas, corner: Sequence[int], patch: Sequence[int], margin: Sequence[int], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """(c, *P) float32 image and (1, *P) label of the patch at ``corner``, with its margins."""
    first = [a - m for a, m in zip(corner, margin, strict=True)]
    sides = [n + 2 * m for n, m in zip(patch, margin, strict=True)]
    there = [slice(max(a, 0), min(a + n, whole)) for a, n, whole in zip(first, sides, atlas.label.shape[1:], strict=True)]
    here = [slice(part.start - a, part.stop - a) for part, a in zip(there, first, strict=True)]
    image = torch.zeros(len(atlas.image), *sides, device=device)
    label = torch.zeros(1, *sides, dtype=torch.uint8, device=device)
    image[(slice(None), *here)] = atlas.image[(slice(None), *there)].float()
    label[(slice(None), *here)] = atlas.label[(slice(None), *there)]
    return image, label


def cut_at_random(
    image: torch.Tensor, label: torch.Tensor, patch: Sequence[int], classes: int, random: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """A patch of each image of a batch on a GPU, at random; every second one holds some of a structure, where there is any. The
    host does not look at the labels: which voxel of a structure a patch is laid round is found on the GPU.

    Args:
        image: (B, c, *S).
        label: (B, m, *S) channels of :func:`oasis_monai.transforms.labels.with_ignored`.
        patch: P, voxels along each axis.

    Returns:
        (B, c, *P) and (B, m, *P).
    """
    size, sides = torch.tensor(image.shape[2:]), torch.tensor(patch)
    batch, dims, room = len(image), len(size), size - sides
    start = (torch.rand(batch, dims, generator=random) * (room + 1)).long()
    shift = (torch.rand(batch, dims, generator=random) * sides).long()
    wanted = torch.arange(batch) % 2 == 0
    start, shift, which, wanted, room = upload(image.device, start, shift, torch.rand(batch, generator=random), wanted, room)
    inside = (label[:, : classes - 1].sum(1) > 0).flatten(1)
    count = inside.sum(1)
    number = (which * count).long() + 1  # of the voxels of structures, in their order
    place = torch.searchsorted(inside.cumsum(1), number[:, None])[:, 0].clamp_max(inside.shape[1] - 1)
    coordinates = []
    for n in reversed(image.shape[2:]):  # torch's own unravel_index sends the shape to the GPU, and waits for it
        coordinates.append(place % n)
        place = place // n
    at = torch.stack(coordinates[::-1], 1)
    start = torch.where((wanted & (count > 0))[:, None], (at - shift).clamp_min(0).minimum(room), start)
    where = [
        (start[:, axis, None] + torch.arange(n, device=image.device)).view(batch, *[n if axis == a else 1 for a in range(dims)])
        for axis, n in enumerate(patch)
    ]
    row = torch.arange(batch, device=image.device).view(batch, *[1] * dims)
    return tuple(values.movedim(1, -1)[(row, *where)].movedim(-1, 1) for values in (image, label))  # type: ignore[return-value]
