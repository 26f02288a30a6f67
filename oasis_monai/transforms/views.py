"""Views of a scan: the same scan seen larger, smaller, turned, or with other intensities.

A header may tell a wrong voxel size or orientation, a patient may be larger than all training patients, a coil may fail. In the
right view such a scan looks like the scans that the networks know. A geometric view is another place of the working grid in the
scan (:meth:`View.placed`), so a label comes back onto the scan's own grid as from any working grid. The others change
intensities.

Only rotations are here, no mirror images. Networks for structures without a side have learned from mirrored scans too, so every
order and direction of axes that a header can get wrong is one of 24 rotations to them. For structures with a side, left must
not become right.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch

from oasis_monai.data.types import Geometry

Matrix = tuple[tuple[float, float, float], ...]
IDENTITY: Matrix = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
LOST = 0.25  # a slice whose brightness is below this fraction of its neighbours' has lost its signal
CLIPPED = (0.5, 99.5)  # percentiles between which intensities are inverted: one bright voxel must not decide what is dark


@dataclass(frozen=True)
class View:
    """One way to see a scan.

    Args:
        name: for people; empty for the scan as it is.
        matrix: (3, 3) of the working grid's axes in mm: column i says where its axis i runs, and how much longer its voxels are.
        intensities: names of :data:`NATIVE_CHANGES` and :data:`WORKING_CHANGES`, in this order.
        kinds: ``scale``, ``turn`` or ``intensity`` of each change.
        meaning: what it says of a scan that it looks right in this view.

    Examples:
        >>> View("seen at half its size", scaled(0.5), kinds=("scale",)).matrix[0]
        (2.0, 0.0, 0.0)
    """

    name: str = ""
    matrix: Matrix = IDENTITY
    intensities: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()
    meaning: str = ""

    def __bool__(self) -> bool:
        """False for the scan as it is."""
        return self.matrix != IDENTITY or bool(self.intensities)

    def placed(self, grid: Geometry) -> Geometry:
        """The working grid of this view: turned and scaled about the centre of ``grid``, with as many voxels."""
        if self.matrix == IDENTITY:
            return grid
        linear, middle = grid.affine[:3, :3], (np.array(grid.shape) - 1) / 2
        centre = linear @ middle + grid.affine[:3, 3]
        mm = np.array(grid.spacing_mm)
        affine = np.eye(4)
        affine[:3, :3] = (linear / mm) @ np.array(self.matrix) * mm
        affine[:3, 3] = centre - affine[:3, :3] @ middle
        return Geometry(grid.shape, affine)

    def with_view(self, other: View) -> View:
        """Both at once: ``other`` in the grid of this one."""
        both = np.array(self.matrix) @ np.array(other.matrix)
        names, meanings = (
            joint.join(filter(None, words))
            for joint, words in ((", ", (self.name, other.name)), ("; ", (self.meaning, other.meaning)))
        )
        return View(names, _plain(both), (*self.intensities, *other.intensities), (*self.kinds, *other.kinds), meanings)

    def of_native(self, image: torch.Tensor, spacing_mm: Iterable[float]) -> torch.Tensor:
        """The scan's voxels (c, x, y, z) as this view has them before they are put on the working grid."""
        for name in self.intensities:
            if name in NATIVE_CHANGES:
                image = NATIVE_CHANGES[name](image, int(np.argmax(list(spacing_mm))))
        return image

    def of_working(self, image: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
        """The voxels on the working grid (c, x, y, z) as this view has them; ``inside`` (x, y, z) bool are those of the scan."""
        for name in self.intensities:
            if name in WORKING_CHANGES:
                image = WORKING_CHANGES[name](image, inside)
        return image


UNCHANGED = View()


def scaled(size: float, axes: str = "xyz") -> Matrix:
    """The matrix with which a scan is seen at ``size`` times its size along ``axes``."""
    return _plain(np.diag([1 / size if axis in axes else 1.0 for axis in "xyz"]))


def turned(degrees: float, axis: str) -> Matrix:
    """The matrix with which a scan is seen turned by ``degrees`` about the working grid's ``axis``."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    first, second = ((1, 2), (2, 0), (0, 1))["xyz".index(axis)]
    matrix = np.eye(3)
    matrix[first, first] = matrix[second, second] = cos
    matrix[second, first], matrix[first, second] = sin, -sin
    return _plain(matrix)


def _plain(matrix: np.ndarray) -> Matrix:
    a, b, c = ((float(x), float(y), float(z)) for x, y, z in np.round(matrix, 12) + 0.0)  # no -0
    return a, b, c


def inverted(image: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
    """Dark becomes bright: a contrast of another sequence, or a header whose grey scale runs the other way."""
    made = []
    for channel in image:
        low, high = np.percentile(channel[inside].numpy(force=True), CLIPPED) if bool(inside.any()) else (0.0, 0.0)
        made.append(float(low + high) - channel.clamp(float(low), float(high)))
    return torch.stack(made)


def denoised(image: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
    """The median of 3 x 3 voxels of each slice."""
    from scipy.ndimage import median_filter

    return torch.from_numpy(median_filter(image.numpy(force=True), (1, 3, 3, 1), mode="nearest")).to(image)


def filled(image: torch.Tensor, axis: int) -> torch.Tensor:
    """Slices along ``axis`` that have lost their signal are interpolated between the nearest that have it."""
    stack = image.movedim(1 + axis, 0)
    lost = lost_slices(image, axis)
    kept = np.flatnonzero(~lost)
    if not lost.any() or not len(kept):
        return image
    stack = stack.clone()
    for z in np.flatnonzero(lost):
        place = int(np.searchsorted(kept, z))
        below, above = kept[max(place - 1, 0)], kept[min(place, len(kept) - 1)]
        part = (z - below) / (above - below) if above > below else 0.0
        stack[z] = torch.lerp(stack[below], stack[above], float(part)) if above > below else stack[below]
    return stack.movedim(0, 1 + axis)


def lost_slices(image: torch.Tensor, axis: int) -> np.ndarray:
    """(n,) bool: the slices of (c, x, y, z) along ``axis`` that have lost their signal in some channel.

    Its mean, counted from the channel's lowest value, is below a quarter of that of the median slice within two of it.
    """
    means = (image - image.amin((1, 2, 3), keepdim=True)).double().movedim(1 + axis, 1).flatten(2).mean(2).numpy(force=True)
    lost = np.zeros(means.shape[1], bool)
    for own in means:
        for z, mean in enumerate(own):
            near = np.delete(own[max(z - 2, 0) : z + 3], min(z, 2))
            lost[z] |= len(near) > 0 and mean < LOST * np.median(near)
    return lost


NATIVE_CHANGES: dict[str, Callable[[torch.Tensor, int], torch.Tensor]] = {"filled": filled}
"""What is done to the scan's own voxels: (c, x, y, z) and the axis along which its slices follow each other."""
WORKING_CHANGES: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {"inverted": inverted, "denoised": denoised}
"""What is done to the voxels on the working grid, before they are normalised."""
