"""Let networks learn small structures: every structure is drawn as often, and what may lie anywhere is shown anywhere.

A lesion of 15 mm shows in five of a hundred slices. Drawn evenly, half of the batches hold none of it, and for these the Dice
loss asks for no voxel of it anywhere. Drawing what shows a structure more often is common (nnU-Net, Isensee et al. 2021).

A handful of scans shows a lesion in a handful of places, and a network learns these. Where a user knows that it may lie anywhere,
it is copied to other places with like surroundings (copy-paste, Ghiasi et al. 2021, arXiv 2012.07177; for lesions CarveMix, Zhang
et al. 2021, arXiv 2108.06883). Its intensities are moved by the difference of the surroundings, so its contrast stays.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch.nn import functional as F

from oasis_monai.data.types import IGNORE
from oasis_monai.transforms.labels import structures

ANYWHERE = 4  # every so many draws are of any place; the others show a structure
COPIED = 0.3  # of the slices or windows that are drawn get a copy, where a place for it is found
TRIES = 16  # places at random, of which the first one with like surroundings counts
ALIKE = 2.0  # surroundings may differ by so many times the structure's own contrast, and spread so many times as much
TOUCHED = 0.1  # of what lies round a structure: if more of it is of other structures, only these count
MOST_COPIES = 64  # slices of a structure in a scan that are kept to be copied


def even_chances(chances: torch.Tensor, shown: torch.Tensor) -> torch.Tensor:
    """How often images are drawn so that each structure is shown as often as the others.

    Args:
        chances: (P,) of the images as they would be drawn otherwise, 0 or more.
        shown: (P, m) bool, which of the structures each image shows.

    Returns:
        (P,) with the sum 1: of :data:`ANYWHERE` draws one is as before; the others take a structure first, each as often, and
        then one of the images that show it.

    Examples:
        >>> shown = torch.tensor([[True, False], [True, False], [True, False], [True, True], [False, False]])
        >>> even_chances(torch.ones(5), shown)
        tensor([0.1438, 0.1437, 0.1437, 0.5188, 0.0500])
    """
    usual = chances / chances.sum()
    own = chances[:, None] * shown
    own = own[:, own.sum(0) > 0]
    if not own.shape[1]:
        return usual
    return (1 - 1 / ANYWHERE) * (own / own.sum(0)).mean(1) + usual / ANYWHERE


def shown_in_slices(label: torch.Tensor, classes: int) -> torch.Tensor:
    """(z, classes - 1) bool: which structures the slices of a label (1, x, y, z) show."""
    found = [torch.bincount(one.flatten().long(), minlength=IGNORE + 1)[1:classes] > 0 for one in label[0].movedim(-1, 0)]
    return torch.stack(found)


class Donor(NamedTuple):
    """A structure in a slice, to be copied.

    Args:
        number: its class.
        image: (3c, h, w) the slice and its neighbours, less the median of what lies round the structure.
        share: (3, h, w) 0 to 1: what of them is copied.
        mask: (h, w) bool, the structure.
        around: (c,) the median of what lies round it.
        contrast, spread: (c,) how far the structure's own median is from that, and the median distance of what lies round it.
    """

    number: int
    image: torch.Tensor
    share: torch.Tensor
    mask: torch.Tensor
    around: torch.Tensor
    contrast: torch.Tensor
    spread: torch.Tensor


class Copies:
    """Copies structures that may lie anywhere to other places of slices that are drawn.

    Args:
        scans: (c, x, y, z) images with their (1, x, y, z) labels.
        classes: of these structures.
        most: voxels a side of what is copied; a larger structure is left where it is.
        random: chooses which slices are kept.
    """

    def __init__(
        self,
        scans: Iterable[tuple[torch.Tensor, torch.Tensor]],
        classes: Sequence[int],
        most: int,
        random: torch.Generator,
    ) -> None:
        found: dict[int, list[Donor]] = {index: [] for index in classes}
        for image, label in scans:
            for index, known in found.items():
                shown = (label[0] == index).flatten(0, 1).any(0).nonzero()[:, 0]
                chosen = shown[torch.randperm(len(shown), generator=random)[:MOST_COPIES]].sort().values
                made = (_donor(image, label[0], index, z) for z in chosen.tolist())
                known += [one for one in made if one is not None and max(one.mask.shape) <= most]
        self.donors = [_typical(known) for known in found.values() if known]

    def __call__(self, image: torch.Tensor, label: torch.Tensor, random: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, 3c + extra, x, y) slices with their neighbours and their (B, 1, x, y) labels, with copies in some of them."""
        if not self.donors:
            return image, label
        image, label = image.float().clone(), label.clone()
        for picture, classes in zip(image, label, strict=True):
            if float(torch.rand(1, generator=random)) < COPIED:
                known = self.donors[int(torch.randint(len(self.donors), (1,), generator=random))]
                _copy(known[int(torch.randint(len(known), (1,), generator=random))], picture, classes[0], random)
        return image, label


def _donor(image: torch.Tensor, label: torch.Tensor, index: int, z: int) -> Donor | None:
    """Class ``index`` in slice ``z`` of a scan (c, x, y, z) with its (x, y, z) label; None where nothing lies round it.

    Where it touches another structure, that is what lies round it: of a lesion at the surface of a kidney not the fat beyond.
    """
    from scipy.ndimage import binary_dilation

    near = [max(z - 1, 0), z, min(z + 1, label.shape[2] - 1)]
    masks = (label[..., near] == index).movedim(-1, 0)
    hits = masks.any(0).nonzero()
    first, last = (hits.amin(0) - 3).clamp_min(0), (hits.amax(0) + 4).minimum(torch.tensor(label.shape[:2]))
    x, y = (slice(int(a), int(b)) for a, b in zip(first, last, strict=True))
    own, parts = masks[1, x, y], masks[:, x, y]
    array, square = own.numpy(), np.ones((3, 3))
    ring = binary_dilation(array, square, iterations=3) & ~binary_dilation(array, square)
    other = structures(label[x, y, z]).numpy() & ring
    ring = other if other.sum() > TOUCHED * ring.sum() else ring
    values = image[:, x, y, near].float()  # (c, h, w, 3)
    around = values[:, torch.from_numpy(ring), 1]
    if not around.shape[1]:
        return None
    middle = around.median(1).values
    spread = (around - middle[:, None]).abs().median(1).values
    contrast = (values[:, own, 1].median(1).values - middle).abs()
    moved = (values - middle[:, None, None, None]).movedim(-1, 1).flatten(0, 1)
    share = F.avg_pool2d(parts[None].float(), 3, 1, 1)[0]
    return Donor(index, moved, share, own.clone(), middle, contrast, spread)


def _typical(donors: Sequence[Donor]) -> list[Donor]:
    """Those with the usual contrast to what lies round them: others are mostly the end of a structure, with what lies beyond."""
    usual = torch.stack([one.contrast for one in donors]).median(0).values
    kept = [one for one in donors if bool((one.contrast <= ALIKE * usual + one.spread).all())]
    return [one._replace(contrast=usual) for one in kept]


def _copy(donor: Donor, image: torch.Tensor, label: torch.Tensor, random: torch.Generator) -> None:
    """Copy a structure into a slice (3c + extra, x, y) with its (x, y) label, in place; turned, where there is a like place."""
    donor = _turned(donor, random)
    (h, w), channels = donor.mask.shape, len(donor.around)
    if h > label.shape[0] or w > label.shape[1]:
        return
    for _ in range(TRIES):
        x, y = (torch.rand(2, generator=random) * (torch.tensor(label.shape) - torch.tensor([h, w]) + 1)).long().tolist()
        box = (slice(x, x + h), slice(y, y + w))
        under = label[box][donor.mask]
        if int(under[0]) in (IGNORE, donor.number) or bool((under != under[0]).any()):
            continue
        seen = image[1 : 3 * channels : 3][(slice(None), *box)][:, donor.mask]
        middle = seen.median(1).values
        alike = (middle - donor.around).abs() <= ALIKE * torch.maximum(donor.contrast, donor.spread)
        even = (seen - middle[:, None]).abs().median(1).values <= ALIKE * donor.spread
        if not bool((alike & even).all()):
            continue
        moved = donor.image + middle.repeat_interleave(3)[:, None, None]
        share = donor.share.repeat(channels, 1, 1)
        place = image[: 3 * channels][(slice(None), *box)]
        place += share * (moved - place)
        label[box][donor.mask] = donor.number
        return


def _turned(donor: Donor, random: torch.Generator) -> Donor:
    """Mirrored and turned by quarters at random."""
    quarters, mirrored = int(torch.randint(4, (1,), generator=random)), bool(torch.randint(2, (1,), generator=random))

    def turn(one: torch.Tensor) -> torch.Tensor:
        turned = torch.rot90(one, quarters, (-2, -1))
        return turned.flip(-1) if mirrored else turned

    return donor._replace(image=turn(donor.image), share=turn(donor.share), mask=turn(donor.mask))
