"""The part of a volume that shows something: a scan that is smaller than the working grid is zeros around, which take as long."""

from __future__ import annotations

import torch


def content_box(images: torch.Tensor, multiple: int) -> tuple[slice, ...]:
    """The smallest box round all that is not 0 in any of the images, with sides a network can take.

    Args:
        images: (B, 1, \\*S), sides multiples of ``multiple``.
        multiple: of which every side of the box is one, and one side at least twice it where ``S`` allows (instance norms need
            two voxels on the lowest level).

    Returns:
        What cuts it out of any (B, c, \*S): the content in its middle where the grid allows; the whole grid where nothing is
        shown.
    """
    shown, sizes = (images != 0).flatten(0, 1).any(0), images.shape[2:]
    if not shown.any():
        return (slice(None),) * images.ndim
    ends = []
    for axis in range(shown.ndim):
        planes = shown.movedim(axis, 0).flatten(1).any(1).nonzero()
        ends.append((int(planes[0]), int(planes[-1]) + 1))
    sides = [-(-(last - first) // multiple) * multiple for first, last in ends]
    if all(side == multiple for side in sides):
        longest = max(range(len(sizes)), key=lambda axis: sizes[axis])
        sides[longest] = min(2 * multiple, sizes[longest])
    starts = [(first + last - side) // 2 for (first, last), side in zip(ends, sides, strict=True)]
    inside = [max(0, min(start, size - side)) for start, side, size in zip(starts, sides, sizes, strict=True)]
    return slice(None), slice(None), *(slice(start, start + side) for start, side in zip(inside, sides, strict=True))
