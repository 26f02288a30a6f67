"""Boxes: a coarse pass finds the structures, and a network looks again round them at the scan's own resolution.

Where structures are small in a large field of view (kidneys, a vessel's wall, a lesion in CT of the whole abdomen), a fine grid
over all of it is mostly spent on what nobody asks for. Here the estimate on the working grid says where something may be; boxes
are laid round these places, as many as there are, and the box network labels them slice by slice. Its labels take the place of
the coarse ones within the boxes. (Cascades: Roth et al. 2018, arXiv 1803.04953; nnU-Net, Isensee et al. 2021.)

In use a box is laid where the estimate says so, and never where a reference does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import torch

from oasis_monai.data.types import Geometry, Segmentation
from oasis_monai.networks.slice_unet import BOX_WINDOW, with_neighbours
from oasis_monai.segmentation.box_places import keep_one_place, missed_places
from oasis_monai.segmentation.estimate import MOST_PIXELS, Estimator
from oasis_monai.segmentation.expected import Expected
from oasis_monai.transforms.boxes import Box, box_grid, covering_box, places_in_box
from oasis_monai.transforms.spatial import inside, restore, shifted_grid

LIKELY = 0.25
"""A voxel whose structures together have this probability, for any of the networks, gets a box. A box that shows nothing costs
seconds; a structure without a box stays as coarse as it is."""
SURE = 0.5  # of the most probable voxel of a place, in all of the networks' mean or in one: a fainter place gets no box
STRICTER = (LIKELY, SURE, 0.75, 0.9)
"""Probabilities for a box, of which the first counts whose boxes fit into the memory: an estimate that is vague all over the scan
would get one box as large as that."""
MARGIN_MM = 12.0
"""Round such voxels: what the coarse pass cuts off is mostly thinner."""
MOST_VOXELS = 2**24
"""Voxels of all boxes of a scan: 64 MiB for every class. Less likely places give way."""
WORTH = 1.05  # two boxes become one where that has no more than so many times their voxels


class BoxResult(NamedTuple):
    """What the box network says of a box.

    Args:
        grid: of the box.
        probability: (C, \\*B) float32.
    """

    grid: Geometry
    probability: torch.Tensor


class Laid(NamedTuple):
    """The boxes of a scan.

    Args:
        boxes: the most likely place first.
        left: number of likely places that were left out, so that the boxes stay within :data:`MOST_VOXELS`.
    """

    boxes: tuple[Box, ...]
    left: int


def lay_boxes(
    likely: torch.Tensor,
    working: Geometry,
    factor: Sequence[int],
    most_voxels: int = MOST_VOXELS,
    window: int = BOX_WINDOW,
    missed: Sequence[Box] = (),
) -> Laid:
    """Boxes round the connected places that are likely to belong to a structure.

    Args:
        likely: (x, y, z) 0 to 1, on the working grid.
        working: that grid.
        factor: voxels of a box for each working voxel.
        most_voxels: of all boxes together.
        window: the network's: in plane a box is as large, so that it shows what the network has learned from; smaller only where
            the working grid is.
        missed: further places, of structures that are not likely anywhere (:func:`.missed_places`); a box round each of them
            while there is room.
    """
    least = [min(math.ceil(window / f), n) for f, n in zip(factor[:2], working.shape, strict=False)] + [1]
    further = [_round(box, working, least) for box in missed]
    boxes = list[Box]()
    for probability in STRICTER:
        boxes = _joined(_places(likely.cpu().numpy(), probability, working, least))
        if sum(map(_voxels, boxes)) * math.prod(factor) <= most_voxels:
            return Laid(tuple(_with_room(boxes, further, most_voxels / math.prod(factor))), 0)
    kept, room = list[Box](), float(most_voxels)
    for box in boxes:
        voxels = _voxels(box) * math.prod(factor)
        if voxels <= room:
            kept.append(box)
            room -= voxels
    return Laid(tuple(kept), len(boxes) - len(kept))


def _places(values: np.ndarray, probability: float, working: Geometry, least: Sequence[int]) -> list[Box]:
    """A box round every connected place of such a probability, the likeliest first."""
    from scipy.ndimage import find_objects, label

    places, _ = label(values >= probability, np.ones((3, 3, 3)))
    found: list[tuple[float, Box]] = []
    for number, around in enumerate(find_objects(places), 1):
        own = values[around] * (places[around] == number)
        if own.max() < SURE:
            continue
        found.append((float(own.sum()), _round(around, working, least)))
    return [box for _, box in sorted(found, key=lambda one: -one[0])]


def _round(place: Box, working: Geometry, least: Sequence[int]) -> Box:
    """The box round a place."""
    corner, shape = [s.start for s in place], [s.stop - s.start for s in place]
    return _at_least(covering_box(working, corner, shape, working, MARGIN_MM), least, working.shape)


def _with_room(boxes: list[Box], further: Sequence[Box], most: float) -> list[Box]:
    """The boxes with as many further ones as have no more than ``most`` working voxels together, the first ones first."""
    for box in further:
        together = _joined([*boxes, box])
        if sum(map(_voxels, together)) <= most:
            boxes = together
    return boxes


def _at_least(box: Box, least: Sequence[int], shape: Sequence[int]) -> Box:
    """The box made as large as ``least``, within a grid of ``shape``."""
    sides = []
    for side, wanted, n in zip(box, least, shape, strict=True):
        more = max(0, wanted - (side.stop - side.start))
        start = min(max(side.start - more // 2, 0), n - (side.stop - side.start) - more)
        sides.append(slice(start, start + side.stop - side.start + more))
    return sides[0], sides[1], sides[2]


def _joined(boxes: list[Box]) -> list[Box]:
    """Boxes of which no two would be cheaper as one; the first of two keeps its place."""
    made: list[Box] = []
    for box in boxes:
        while True:
            number = next((i for i, other in enumerate(made) if _worth_joining(other, box)), None)
            if number is None:
                made.append(box)
                break
            box = _union(made.pop(number), box)
    return made


def _worth_joining(one: Box, other: Box) -> bool:
    return _voxels(_union(one, other)) <= WORTH * (_voxels(one) + _voxels(other))


def _union(one: Box, other: Box) -> Box:
    x, y, z = (slice(min(a.start, b.start), max(a.stop, b.stop)) for a, b in zip(one, other, strict=True))
    return x, y, z


def _voxels(box: Box) -> int:
    return math.prod(s.stop - s.start for s in box)


@dataclass(frozen=True)
class BoxSegmenter:
    """Looks again in boxes.

    Args:
        estimator: the box network.
        factor: voxels of a box for each working voxel along x, y, z.
        expected: what training labels show of the structures.
    """

    estimator: Estimator
    factor: tuple[int, ...]
    expected: Expected = field(default_factory=Expected)

    @torch.inference_mode()
    def __call__(
        self, networks: torch.Tensor, working: Geometry, images: Callable[[Sequence[Box]], Sequence[torch.Tensor]]
    ) -> tuple[BoxResult, ...]:
        """Label the boxes of a scan; none where nothing is likely.

        Args:
            networks: (V, C, x, y, z) what the networks of the coarse pass say on the working grid.
            working: that grid.
            images: gives the scan in boxes, see :func:`oasis_monai.transforms.boxes.images_in_boxes`.
        """
        missed = missed_places(networks, self.expected)
        boxes = lay_boxes((1 - networks[:, 0]).amax(0), working, self.factor, missed=missed).boxes
        if not boxes:
            return ()
        grids = [box_grid(working, box, self.factor) for box in boxes]
        seen = zip(images(boxes), grids, strict=True)
        said = [self.label_box(image.float(), places_in_box(working, grid)) for image, grid in seen]
        kept = keep_one_place(blend(said, boxes, self.factor), boxes, self.factor, working.shape, self.expected)
        return tuple(BoxResult(*one) for one in zip(grids, kept, strict=True))

    def label_box(self, image: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        """(C, \\*B) what the network makes of a box (c, \\*B) whose voxels lie at (3, \\*B) places; slices a few at a time."""
        slices, where = with_neighbours(image), places.movedim(-1, 0)
        at_once = max(1, MOST_PIXELS // (image.shape[1] * image.shape[2]))
        parts = zip(slices.split(at_once), where.split(at_once), strict=True)
        return torch.cat([self.estimator(torch.cat(part, 1)) for part in parts]).permute(1, 2, 3, 0).contiguous()


def blend(said: Sequence[torch.Tensor], boxes: Sequence[Box], factor: Sequence[int]) -> list[torch.Tensor]:
    """Let boxes agree where they overlap: the mean of what they say, each weighted by the distance to its own faces, beside which
    it sees less of what lies round a voxel.

    Args:
        said: (C, \\*B) of each box.
        boxes: in working voxels.
        factor: voxels of a box for each of these.

    Returns:
        (C, \\*B) of each box: the same values for the same voxel in all of them.
    """
    depths = [_depth(one.shape[1:]) for one in said]
    made = []
    for number, (own, box) in enumerate(zip(said, boxes, strict=True)):
        sums: torch.Tensor | None = None
        weights = depths[number]
        for other, there in enumerate(boxes):
            common = [(max(a.start, b.start), min(a.stop, b.stop)) for a, b in zip(box, there, strict=True)]
            if other == number or any(start >= stop for start, stop in common):
                continue
            here, their = (
                tuple(slice((a - s.start) * f, (b - s.start) * f) for (a, b), s, f in zip(common, sides, factor, strict=True))
                for sides in (box, there)
            )
            if sums is None:
                sums, weights = own * weights, weights.clone()
            sums[(slice(None), *here)] += said[other][(slice(None), *their)] * depths[other][their]
            weights[here] += depths[other][their]
        made.append(own if sums is None else sums / weights)
    return made


def _depth(shape: Sequence[int]) -> torch.Tensor:
    """(\\*B) float32: voxels to the nearest face, 1 beside it."""
    x, y, z = (torch.minimum(torch.arange(1, n + 1), torch.arange(n, 0, -1)).float() for n in shape)
    return torch.minimum(torch.minimum(x[:, None, None], y[:, None]), z)


def restore_boxes(coarse: Segmentation, results: Sequence[BoxResult]) -> Segmentation:
    """A result on the scan's own grid with what the box network says within the boxes."""
    label, probability = coarse.label.clone(), coarse.probability
    for one in reversed(results):  # the most likely place last
        corner = [0, 0, 0]
        part = covering_box(one.grid, corner, one.grid.shape, coarse.geometry)
        if any(side.start == side.stop for side in part):
            continue
        native = shifted_grid(coarse.geometry, [s.start for s in part], [s.stop - s.start for s in part])
        own, kept = restore(one.probability, one.grid, native, probability is not None)
        seen = inside(one.grid, native)
        label[part] = torch.where(seen, own, label[part])
        if probability is not None and kept is not None:
            where = (slice(None), *part)
            probability[where] = torch.where(seen, kept, probability[where])
    return replace(coarse, label=label, probability=probability)
