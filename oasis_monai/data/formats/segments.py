"""Segments of a label file that names them, as 3D Slicer writes: a value, and a layer where some may overlap others."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np

from oasis_monai.data.formats.header import Segment, plain, shown
from oasis_monai.utils.errors import DataError, Fault

MAX_SEGMENTS = 65_535


def segments_of(keys: Mapping[str, str], channels: int) -> tuple[Segment, ...]:
    """The segments that the keys of a seg.nrrd header tell (``Segment0_Name``, ``Segment0_LabelValue``, ``Segment0_Layer``).

    Older files give every segment a layer of its own, in order, with the value 1, and say neither.
    """
    numbers = sorted({int(match[1]) for key in keys if (match := re.fullmatch(r"Segment(\d{1,6})_ID", key))})[:MAX_SEGMENTS]
    found = []
    for place, number in enumerate(numbers):
        name = keys.get(f"Segment{number}_Name", "").strip() or keys[f"Segment{number}_ID"].strip() or f"Segment{number}"
        value = _whole(keys.get(f"Segment{number}_LabelValue"), 1)
        found.append(Segment(name, value, _whole(keys.get(f"Segment{number}_Layer"), place if channels > 1 else 0)))
    return tuple(segment for segment in found if segment.layer < channels and segment.value > 0)


def _whole(text: str | None, default: int) -> int:
    return int(text) if text is not None and re.fullmatch(r"\d{1,9}", text.strip()) else default


def label_names(segments: Sequence[Segment]) -> dict[str, int]:
    """Name -> value in the label that :func:`merge_layers` gives; of two segments of one name the first has it."""
    names: dict[str, int] = {}
    for segment, value in zip(segments, _merged_values(segments), strict=True):
        names.setdefault(segment.name, value)
    return names


def _merged_values(segments: Sequence[Segment]) -> list[int]:
    """Their own values where these tell them apart, else 1, 2, 3 in order."""
    own = [segment.value for segment in segments]
    return own if len(set(own)) == len(own) else list(range(1, len(own) + 1))


def merge_layers(
    file: str, layers: np.ndarray, segments: Sequence[Segment], names: Mapping[str, int] | None = None
) -> np.ndarray:
    """One label of all layers.

    Args:
        file: its name, for a message.
        layers: (L, x, y, z) whole numbers.
        segments: what stands in them.
        names: name -> value in the label, whatever the value in the file; other segments are left out. None for all, with the
            values of :func:`label_names`.

    Returns:
        (x, y, z) of the type of ``layers``.

    Raises:
        DataError: two segments share voxels, or a layer holds a value that is no segment's.
    """
    merged = np.zeros_like(layers[0])
    owner = np.full(merged.shape, -1, np.int32)
    left = layers.astype(bool)
    wanted = None if names is None else {plain(name): value for name, value in names.items()}
    for number, (segment, own) in enumerate(zip(segments, _merged_values(segments), strict=True)):
        inside = layers[segment.layer] == segment.value
        left[segment.layer] &= ~inside
        value = own if wanted is None else wanted.get(plain(segment.name), 0)
        if value == 0:
            continue
        both = inside & (owner >= 0)
        if both.any():
            first = segments[int(owner[both][0])]
            found = f"{shown(first.name, 40)} and {shown(segment.name, 40)} share {int(both.sum())} voxels"
            remedy = "decide in 3D Slicer which one has them, or add data.overlap=true if several may"
            raise DataError(Fault(file, "segments", "each voxel in one of them", found, remedy))
        merged[inside], owner[inside] = value, number
    _refuse_others(file, left)
    return merged


def sets_in_layers(file: str, layers: np.ndarray, segments: Sequence[Segment], bits: Mapping[str, int]) -> np.ndarray:
    """The segments that each voxel is in: (x, y, z) int64, the sum of their ``bits`` (name -> a power of two); other segments are
    left out. Arguments and errors as for :func:`merge_layers`, but that segments may share voxels."""
    own = {plain(name): bit for name, bit in bits.items()}
    sets, left = np.zeros(layers.shape[1:], np.int64), layers.astype(bool)
    for segment in segments:
        inside = layers[segment.layer] == segment.value
        left[segment.layer] &= ~inside
        sets[inside] |= own.get(plain(segment.name), 0)
    _refuse_others(file, left)
    return sets


def _refuse_others(file: str, left: np.ndarray) -> None:
    """Refuse voxels that are in no segment."""
    if left.any():
        found = f"{int(left.sum())} of a value that is no segment's"
        raise DataError(Fault(file, "segments", "voxels of its segments alone", found, "save the segmentation again"))
