"""What a layout is, and what it finds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from oasis_monai.data.settings import DataSettings
from oasis_monai.data.types import Case
from oasis_monai.utils.errors import Fault

SPLITS = {"train": "train", "training": "train", "tr": "train", "val": "train", "valid": "train", "validation": "train"}
SPLITS |= {"test": "test", "testing": "test", "ts": "test"}
"""Words for ``split``. Cross-validation deals its own validation cases, so those of a data set are training cases here."""


@dataclass(frozen=True)
class Survey:
    """What there is in a data set's folder.

    Args:
        cases: those found, by id.
        faults: what is wrong with how its files lie there.
        layout: how it is laid out.
        labels: structure -> value in the label files, where the data set's own files name them.
        channels: names of the images of a case, in order, where the data set's own files or its layout name them.
        cut: whether images and names are those of ``data.channels`` already; else they are those of the files.
        ignore: value of voxels that nobody labelled, where the data set's own files say so.
        name: what the data set calls itself; empty where it does not.
        known: the file of ``conf/data`` that describes this data set; empty where none does.
        parts: case id -> what a table or a template says of it, by column or part.
        regions: structures that share voxels, each with its values; empty where each voxel is in one.
        order: the value that stands for each of them where several could, see :func:`oasis_monai.data.overlap.classes_of`.
        structures: names of the structures whose masks the cases have, in order.
    """

    cases: list[Case]
    faults: list[Fault]
    layout: str = ""
    labels: Mapping[str, int] = field(default_factory=dict)
    channels: tuple[str, ...] = ()
    cut: bool = False
    ignore: int | None = None
    name: str = ""
    known: str = ""
    parts: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    regions: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    order: tuple[int, ...] = ()
    structures: tuple[str, ...] = ()


@dataclass(frozen=True)
class Request:
    """What a layout is asked for.

    Args:
        root: the folder or file.
        data: the settings of the data set.
        labelled: whether a case must have a label.
    """

    root: Path
    data: DataSettings
    labelled: bool = True


@dataclass(frozen=True)
class Layout:
    """One way in which a data set may lie on disk.

    Args:
        name: what ``data.layout`` calls it.
        description: what a reader is told when it is recognised.
        expected: what must be in the root.
        recognise: whether a root looks like it.
        find: looks for the cases.
    """

    name: str
    description: str
    expected: str
    recognise: Callable[[Path], bool]
    find: Callable[[Request], Survey]
