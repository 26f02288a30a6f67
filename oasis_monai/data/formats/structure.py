"""Structures to be written by name (.seg.nrrd, DICOM SEG, RTSTRUCT): each a mask with a name, a number, a colour and codes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from oasis_monai.utils.errors import ConfigError

Colour = tuple[int, int, int]
PALETTE: tuple[Colour, ...] = (
    *((230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0), (204, 121, 167)),
    *((136, 34, 85), (68, 170, 153), (221, 204, 119), (51, 34, 136), (170, 68, 153), (153, 153, 51), (136, 204, 238)),
)
"""Colours of structures that have none: those of Okabe and Ito, then of Tol, which colour-blind readers can tell apart."""


@dataclass(frozen=True)
class Code:
    """A coded concept of DICOM (PS3.16), such as one of SNOMED CT.

    Args:
        value: the code, up to 16 characters.
        scheme: who gives it, such as ``SCT``.
        meaning: in words, up to 64 characters.
    """

    value: str
    scheme: str
    meaning: str


ANATOMICAL = Code("123037004", "SCT", "Anatomical Structure")
"""The category of a structure whose user names none."""
TISSUE = Code("85756007", "SCT", "Tissue")
"""The type of a structure whose user names none: that of a segment in 3D Slicer."""


@dataclass(frozen=True)
class Look:
    """What is told of a structure beside its name.

    Args:
        color: red, green, blue, 0 to 255; None: the next one of :data:`PALETTE`.
        code: what it is.
        category: of what kind that is.
    """

    color: Colour | None = None
    code: Code = TISSUE
    category: Code = ANATOMICAL


@dataclass(frozen=True)
class Structure:
    """One structure of a result.

    Args:
        name: what it is called.
        number: in the file where the format has numbers of the user's own (.seg.nrrd); 1 or more.
        inside: gives its mask, (x, y, z) bool, when it is written: of many structures one is in memory at a time.
        color: red, green, blue, 0 to 255.
        look: colour and codes as they were asked for.
    """

    name: str
    number: int
    inside: Callable[[], np.ndarray] = field(repr=False)
    color: Colour
    look: Look = Look()


@dataclass(frozen=True)
class Algorithm:
    """What made the structures.

    Args:
        name: such as ``oasis-monai OASIS-joint``.
        version: of the software.
        model: of the trained model; empty where nobody knows.
    """

    name: str
    version: str
    model: str = ""


def structures_of(
    masks: Sequence[tuple[str, int, np.ndarray | Callable[[], np.ndarray]]], looks: Mapping[str, Look] | None = None
) -> list[Structure]:
    """Structures that may overlap.

    Args:
        masks: name, number, and (x, y, z) bool or what gives it.
        looks: name -> what is told of it.

    Raises:
        ConfigError: a look of a structure that is not there.
    """
    looks = dict(looks or {})
    check_looks(looks, [name for name, *_ in masks])
    made = []
    for place, (name, number, mask) in enumerate(masks):
        look = looks.get(name, Look())
        inside = mask if callable(mask) else (lambda mask=mask: np.asarray(mask, bool))  # type: ignore[misc]
        made.append(Structure(name, number, inside, look.color or PALETTE[place % len(PALETTE)], look))
    return made


def check_looks(looks: Mapping[str, Look], names: Sequence[str]) -> None:
    """Refuse what is told of a structure that is none of ``names``.

    Raises:
        ConfigError: naming it.
    """
    if unknown := sorted(set(looks) - set(names)):
        raise ConfigError(f"segments.{unknown[0]}", f"one of {', '.join(names)}", "another name", "correct the name")


def structures_in(
    classes: np.ndarray, names: Sequence[str], values: Sequence[int], looks: Mapping[str, Look] | None = None
) -> list[Structure]:
    """The structures of a label, one for each class but the background.

    Args:
        classes: (x, y, z) class indices 0..C-1.
        names: of the classes 1..C-1.
        values: their numbers.
        looks: name -> what is told of it.
    """

    def inside(index: int) -> Callable[[], np.ndarray]:
        return lambda: np.asarray(classes == index)

    numbered = enumerate(zip(names, values, strict=True), 1)
    return structures_of([(name, value, inside(index)) for index, (name, value) in numbered], looks)


@dataclass(frozen=True)
class Layers:
    """Structures in as few labels as hold them without a voxel in two structures of one label.

    Args:
        labels: (x, y, z) each, the values of ``places``; background 0.
        places: of each structure, the index of its label and its value there.
        boxes: of each structure, the slices along the three axes that hold it; None for one that is empty.
    """

    labels: tuple[np.ndarray, ...]
    places: tuple[tuple[int, int], ...]
    boxes: tuple[tuple[slice, slice, slice] | None, ...]


def layers_of(structures: Sequence[Structure], shape: Sequence[int], values: Sequence[int]) -> Layers:
    """Put structures into labels, each into the first where it meets no other.

    Args:
        structures: in order.
        shape: of their masks.
        values: of each structure in its label, all different.

    Raises:
        ValueError: a mask has another shape.
    """
    dtype = np.uint8 if max(values, default=0) < 256 else np.uint16 if max(values, default=0) < 65_536 else np.int32
    labels: list[np.ndarray] = [np.zeros(tuple(shape), dtype)]
    places, boxes = [], []
    for structure, value in zip(structures, values, strict=True):
        mask = structure.inside()
        if mask.shape != tuple(shape):
            raise ValueError(f"{structure.name}: expected shape {tuple(shape)}, found {mask.shape}")
        box = box_of(mask)
        boxes.append(box)
        if box is None:
            places.append((0, value))
            continue
        own = mask[box]
        layer = next((i for i, label in enumerate(labels) if not (label[box][own]).any()), len(labels))
        if layer == len(labels):
            labels.append(np.zeros(tuple(shape), dtype))
        labels[layer][box][own] = value
        places.append((layer, value))
    return Layers(tuple(labels), tuple(places), tuple(boxes))


def box_of(mask: np.ndarray) -> tuple[slice, slice, slice] | None:
    """The smallest box that holds all voxels of a mask; None where there are none."""
    sides = []
    for axis in range(3):
        filled = np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis)))
        if not filled.size:
            return None
        sides.append(slice(int(filled[0]), int(filled[-1]) + 1))
    return sides[0], sides[1], sides[2]
