"""What the networks of a joint model say of many structures on the fine grid, held in two bytes a voxel and class.

With a hundred structures the probabilities of both networks on the fine grid are gigabytes. Only the slice network has seen that
grid: what the volume network says there is made of its map on the working grid (:func:`.estimate.add_detail`). So the slice
network's probabilities are all that is held, as fourth roots in 16 bits, and the rest is made again slab by slab.

A probability p comes back within 3.1e-5, and above 1e-6 within 0.1 % of p: half precision would miss 2.4e-4, and plain steps of
1/65535 say nothing of what is rare. But the volume network's map is a sum in which values cancel and errors do not, and its
logarithm can then be far off (results by 0.004): a learned fusion takes logarithms, and gets float32. Up to :data:`.MANY` classes
the maps are held as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from oasis_monai.utils.interpolation import enlarge_rows, pool, rows_near

STEPS = 65535
HALF = 32768  # torch does little with numbers without a sign


def pack(probability: torch.Tensor) -> torch.Tensor:
    """Probabilities 0 to 1 -> int16 of the same shape.

    Examples:
        >>> import torch
        >>> unpack(pack(torch.tensor([0.0, 0.5, 1.0])))
        tensor([0.0000, 0.5000, 1.0000])
    """
    return probability.clamp(0, 1).sqrt_().sqrt_().mul_(STEPS).round_().sub_(HALF).to(torch.int16)


def unpack(packed: torch.Tensor) -> torch.Tensor:
    """What :func:`pack` made -> float32, in order of its axes; floats stay as they are."""
    made = torch.empty(packed.shape, device=packed.device).copy_(packed)
    return made if packed.is_floating_point() else made.add_(HALF).div_(STEPS).square_().square_()


@dataclass(frozen=True)
class PackedNetworks:
    """(V, C, \\*F) probabilities of the networks on the fine grid, in the place of a tensor.

    Args:
        packed: (z, C, x, y) int16, or float32 where it is to be exact, of the slice network, by slices, as they were made.
        networks: (V, C, \\*S) of each network on the working grid, the slice network's pooled.
    """

    packed: torch.Tensor
    networks: torch.Tensor

    def __len__(self) -> int:
        return len(self.networks)

    @property
    def shape(self) -> torch.Size:
        """(V, C, x, y, z)."""
        z, classes, x, y = self.packed.shape
        return torch.Size((len(self), classes, x, y, z))

    def slab(self, slab: slice) -> torch.Tensor:
        """(V, C, \\*slab) float32, for a part of the voxels along x."""
        by_slices = unpack(self.packed[:, :, slab].permute(1, 2, 3, 0))
        by_slices /= by_slices.sum(0, keepdim=True)  # rounding has moved the sum
        if len(self) == 1:
            return by_slices[None]
        size, coarse = self.shape[2:], self.networks.shape[2:]
        if size == coarse:
            return torch.stack([by_slices, self.networks[1, :, slab]])
        rows = rows_near(coarse[0], size[0], slab)
        moved = self.networks[1, :, rows] - self.networks[0, :, rows]
        by_volume = enlarge_rows(moved[None], coarse[0], rows, size, slab)[0].add_(by_slices).clamp_min_(0)
        return torch.stack([by_slices, by_volume.div_(by_volume.sum(0, keepdim=True))])


class SlicePacker:
    """Takes the probabilities of slices, a few at a time, and holds them packed, and pooled to the working grid.

    Args:
        classes: C.
        fine: x, y, z of the fine grid.
        factor: voxels of the fine grid in one of the working grid along x, y, z.
        exact: hold float32.
    """

    def __init__(self, classes: int, fine: Sequence[int], factor: Sequence[int], exact: bool = False) -> None:
        x, y, z = fine
        self.factor = tuple(factor)
        self.packed = torch.empty(z, classes, x, y, dtype=torch.float32 if exact else torch.int16)
        self.pooled = torch.empty(classes, *(n // f for n, f in zip(fine, factor, strict=True)))

    def add(self, first: int, slices: torch.Tensor) -> None:
        """(b, C, x, y) probabilities of the slices from ``first`` on: whole voxels of the working grid."""
        deep = self.factor[2]
        rows = slice(first // deep, (first + len(slices)) // deep)
        blocks = slices.unflatten(0, (-1, deep)).mean(1) if deep > 1 else slices
        self.pooled[..., rows] = pool(blocks[:, :, None], (1, *self.factor[:2]))[:, :, 0].permute(1, 2, 3, 0)
        self.packed[first : first + len(slices)] = slices if self.packed.is_floating_point() else pack(slices)


Networks = torch.Tensor | PackedNetworks
"""(V, C, \\*F) probabilities of the networks of a joint model."""


def slab_of(networks: Networks, slab: slice) -> torch.Tensor:
    """(V, C, \\*slab) float32."""
    return networks.slab(slab) if isinstance(networks, PackedNetworks) else networks[:, :, slab]


def mean_of(networks: Networks) -> torch.Tensor:
    """(C, \\*F) their mean, as a whole."""
    if isinstance(networks, torch.Tensor):
        return networks.mean(0)
    parts = (slice(x, x + 1) for x in range(networks.shape[2]))
    made = torch.empty(networks.shape[1:])
    for part in parts:
        made[:, part] = networks.slab(part).mean(0)
    return made
