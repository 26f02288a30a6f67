"""Measure the labelled scans of a data set: what the plan (:mod:`.plan`) is made from. One scan is in memory at a time."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from oasis_monai.data.io import read_volume, to_canonical
from oasis_monai.data.types import IGNORE, Case, Volume
from oasis_monai.transforms.spatial import SLICE_AXES
from oasis_monai.utils.config import make_group
from oasis_monai.utils.errors import ConfigError, DataError
from oasis_monai.utils.files import digest, write_json

N = TypeVar("N", int, float)
VERSION = 2  # part of every measured scan's cache name; raise it when a measure changes
FEW_VOXELS = 50  # a structure of fewer voxels in a scan says nothing about a coil's field
DRAWN = 5000  # voxels of a structure that the field is fitted to
BIAS_UNIT_MM = 50.0  # keeps the fit's numbers near 1
DARK = 0.05  # added before the logarithm, as a fraction of the mean: as oasis_monai.transforms.intensity


@dataclass(frozen=True)
class Structure:
    """One structure in one scan, along the scan's axes closest to right, anterior, superior.

    Args:
        volume_ml: its volume.
        centre_mm: its centre of gravity from the image's centre.
        width_mm: its extent along each axis.
        thickness_mm: 2 volume / surface: the thickness of a sheet, and about a fifth of a ball's diameter.
        low, high: percentiles 0.5 and 99.5 of the first image's intensities within it.
    """

    volume_ml: float
    centre_mm: tuple[float, ...]
    width_mm: tuple[float, ...]
    thickness_mm: float
    low: float
    high: float

    def along(self, axes: Sequence[int]) -> Structure:
        """The same along ``axes`` in the place of 0, 1, 2."""
        return replace(self, centre_mm=_ordered(self.centre_mm, axes), width_mm=_ordered(self.width_mm, axes))


@dataclass(frozen=True)
class ScanMeasures:
    """One labelled scan along its axes closest to right, anterior, superior.

    Args:
        spacing_mm: its voxels.
        shape: their number.
        label_extent_mm: the farthest outer edge of a foreground voxel from the image's centre; empty without foreground.
        lowest: percentile 0.5 of the first image.
        constant: fraction of voxels that have exactly the lowest value: a large part where the surroundings were cut away.
        bias: how much the brightness of one tissue changes smoothly with place: the standard deviation of a quadratic polynomial
            of the position fitted to the logarithm of the intensity within a structure (the smallest over the structures, as
            one that holds several tissues changes by itself). 0.2 is 20 %. 0 where no structure is large enough.
        channels: images of the scan.
        structures: by class index, those that are there.
    """

    spacing_mm: tuple[float, ...]
    shape: tuple[int, ...]
    label_extent_mm: tuple[float, ...]
    lowest: float
    constant: float
    bias: float
    channels: int
    structures: Mapping[int, Structure]

    @property
    def size_mm(self) -> tuple[float, ...]:
        """Its field of view."""
        return tuple(n * mm for n, mm in zip(self.shape, self.spacing_mm, strict=True))

    def along(self, axes: Sequence[int]) -> ScanMeasures:
        """The same along ``axes`` in the place of 0, 1, 2."""
        return replace(
            self,
            spacing_mm=_ordered(self.spacing_mm, axes),
            shape=_ordered(self.shape, axes),
            label_extent_mm=_ordered(self.label_extent_mm, axes),
            structures={index: one.along(axes) for index, one in self.structures.items()},
        )


@dataclass(frozen=True)
class Fingerprint:
    """What is known of a data set and the machine before training.

    Args:
        scans: the labelled scans that could be read.
        names: of the structures; class 1 first.
        patients: number of persons among the scans' cases.
        memory_gb: of the machine.
        cores: that this process may use.
    """

    scans: tuple[ScanMeasures, ...]
    names: tuple[str, ...]
    patients: int
    memory_gb: float
    cores: int

    @property
    def labelled(self) -> tuple[ScanMeasures, ...]:
        """The scans with some foreground."""
        return tuple(scan for scan in self.scans if scan.label_extent_mm)

    @property
    def present(self) -> list[int]:
        """The classes that some scan has."""
        return sorted({index for scan in self.labelled for index in scan.structures})

    def along(self, slice_axis: str) -> Fingerprint:
        """The same scans along their working axes (:data:`oasis_monai.transforms.spatial.SLICE_AXES`)."""
        axes = SLICE_AXES[slice_axis]
        return self if slice_axis == "axial" else replace(self, scans=tuple(scan.along(axes) for scan in self.scans))

    def name_of(self, index: int) -> str:
        """What a class is called."""
        return self.names[index - 1] if index <= len(self.names) else f"structure {index}"


def _ordered(values: tuple[N, ...], axes: Sequence[int]) -> tuple[N, ...]:
    return tuple(values[axis] for axis in axes) if values else ()


def measure(volume: Volume) -> ScanMeasures | None:
    """Measure one scan; None without a label.

    Examples:
        >>> import numpy as np
        >>> import torch
        >>> from oasis_monai.data.types import Geometry, Volume
        >>> label = torch.zeros(1, 10, 10, 10, dtype=torch.uint8)
        >>> label[0, 2:6, 4:6, 4:6] = 1
        >>> grid = Geometry((10, 10, 10), np.diag([1.0, 1.0, 2.0, 1.0]))
        >>> found = measure(Volume("one", torch.rand(1, 10, 10, 10), label, grid))
        >>> found.label_extent_mm, found.structures[1].volume_ml
        ((3.0, 1.0, 2.0), 0.032)
    """
    if volume.label is None:
        return None
    image, spacing = to_canonical(volume.image[0].numpy(), volume.geometry.affine)
    label, _ = to_canonical(volume.label[0].numpy(), volume.geometry.affine)
    label = np.where(label == IGNORE, 0, label)
    lowest, mean = float(np.percentile(image, 0.5)), float(image.mean())
    structures: dict[int, Structure] = {}
    biases: list[float] = []
    for index, box in enumerate(_boxes(label), start=1):
        if box is None:
            continue
        inside, corner = label[box] == index, [side.start for side in box]
        values = image[box][inside]
        structures[index] = _structure(inside, corner, label.shape, spacing, values)
        if len(values) >= FEW_VOXELS:
            biases.append(_smooth_change(inside, values, spacing, lowest, mean))
    return ScanMeasures(
        spacing_mm=tuple(spacing),
        shape=tuple(int(n) for n in label.shape),
        label_extent_mm=_extent(label, spacing),
        lowest=lowest,
        constant=float((image == image.min()).mean()),
        bias=min(biases, default=0.0),
        channels=len(volume.image),
        structures=structures,
    )


def _boxes(label: np.ndarray) -> list[tuple[slice, ...] | None]:
    from scipy import ndimage

    found: list[tuple[slice, ...] | None] = ndimage.find_objects(label)
    return found


def _extent(label: np.ndarray, spacing: Sequence[float]) -> tuple[float, ...]:
    found = []
    for axis, (length, mm) in enumerate(zip(label.shape, spacing, strict=True)):
        along = np.flatnonzero(label.any(axis=tuple(a for a in range(3) if a != axis)))
        if not len(along):
            return ()
        found.append(float(max(length / 2 - along[0], along[-1] + 1 - length / 2) * mm))
    return tuple(found)


def _structure(
    inside: np.ndarray, corner: Sequence[int], shape: Sequence[int], spacing: Sequence[float], values: np.ndarray
) -> Structure:
    """Measures of one structure within its bounding box, which begins at ``corner`` of an image of ``shape``."""
    mm = np.asarray(spacing)
    from_middle = (np.asarray(corner) + _centre(inside) + 0.5 - np.asarray(shape) / 2) * mm
    padded = np.pad(inside, 1)
    # an image of one slice has no surface above and below it
    faces = [int((padded != np.roll(padded, 1, axis)).sum()) if shape[axis] > 1 else 0 for axis in range(3)]
    surface = sum(count * math.prod(mm) / mm[axis] for axis, count in enumerate(faces))
    volume = int(inside.sum()) * math.prod(mm)
    low, high = np.percentile(values, (0.5, 99.5))
    width = tuple(float(n * step) for n, step in zip(inside.shape, mm, strict=True))
    place = tuple(float(v) for v in from_middle)
    return Structure(volume / 1000, place, width, float(2 * volume / surface), float(low), float(high))


def _centre(inside: np.ndarray) -> np.ndarray:
    """The centre of gravity in voxels of the box."""
    total = inside.sum()
    sums = [inside.sum(axis=tuple(a for a in range(3) if a != axis)) for axis in range(3)]
    return np.array([float((along * np.arange(len(along))).sum() / total) for along in sums])


def _smooth_change(inside: np.ndarray, values: np.ndarray, spacing: Sequence[float], lowest: float, mean: float) -> float:
    """Standard deviation of the quadratic polynomial of the position that suits the log intensities of one structure best."""
    places = np.argwhere(inside) * np.asarray(spacing) / BIAS_UNIT_MM
    step = max(1, len(places) // DRAWN)
    x, y, z = (places[::step] - places.mean(0)).T
    lifted = np.maximum(values[::step].astype(np.float64) - lowest, 0) + DARK * max(mean - lowest, 0)
    if not lifted.min() > 0:
        return 0.0
    terms = np.column_stack([np.ones_like(x), x, y, z, x * x, y * y, z * z, x * y, y * z, x * z])
    logarithm = np.log(lifted)
    return float((terms @ np.linalg.lstsq(terms, logarithm, rcond=None)[0]).std())


class Measured:
    """Measured scans, kept in a folder by the stamps of their files.

    Args:
        folder: of the cache; None keeps nothing.
        data: anything else that decides what is read (label values, chosen channels), plain JSON values.
    """

    def __init__(self, folder: Path | None, data: Any) -> None:
        self.folder, self.data = folder, data

    def get(self, case: Case, stamp: Any, read: Callable[[Case], Volume]) -> ScanMeasures | None:
        """The measures of a case; None without a label or if it cannot be read (a check tells why)."""
        path = None if self.folder is None else self.folder / f"{digest([VERSION, self.data, stamp], 24)}.json"
        if path is None or (known := _read(path)) is None:
            try:
                known = measure(read(case))
            except DataError:
                return None
            if path is not None and known is not None:
                write_json(path, asdict(known))
        return known


def _read(path: Path) -> ScanMeasures | None:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        values["structures"] = {int(k): make_group(Structure, v, "") for k, v in values["structures"].items()}
        return make_group(ScanMeasures, values, "")
    except (OSError, ValueError, TypeError, KeyError, AttributeError, ConfigError):
        return None


def take_fingerprint(
    cases: Iterable[Case],
    label_values: Sequence[int],
    names: Sequence[str],
    cache: Path | None = None,
    stamp: Callable[[Case], Any] = str,
    more: Mapping[str, Any] | None = None,
) -> Fingerprint:
    """Measure all labelled cases, or find their measures in the cache.

    Args:
        label_values: value in the file of each class, the background first.
        names: of the structures, class 1 first.
        cache: folder of measured scans; None keeps nothing.
        stamp: what tells whether the files of a case have changed.
        more: further arguments of :func:`oasis_monai.data.io.read_volume`.
    """
    options = dict(more or {})
    store = Measured(cache, [list(label_values), options])
    scans, patients = [], set()
    for case in cases:
        if case.label is None:
            continue
        found = store.get(case, stamp(case), lambda one: read_volume(one, label_values, **options))
        if found is not None:
            scans.append(found)
            patients.add(case.patient)
    return Fingerprint(tuple(scans), tuple(names), len(patients), memory_gb(), cores())


def memory_gb() -> float:
    """Memory of this machine in GiB; of the control group where that has less."""
    total = float("inf")
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text(encoding="utf-8").strip()
        total = min(total, float(limit)) if limit.isdecimal() else total
    except OSError:
        pass
    return total / 2**30


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
