"""What a run is told of its data set: the group ``data`` of the settings."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from oasis_monai.data.types import REGIONS
from oasis_monai.utils.config import make_tuples, require

LAYOUTS = (
    *("auto", "promise12", "msd", "nnunet", "case_folders", "paired_folders", "paired_files"),
    *("templates", "table", "datalist", "dicom", "folder"),
)
"""Names of the ways in which a data set may lie on disk, see :mod:`oasis_monai.data.layouts`."""
CONSECUTIVE_PAIRS = "consecutive_pairs"
"""A rule for ``data.patient``: the case numbers 2k-1 and 2k are one person's."""
TOLERANCE_MM = 2.0
"""Tolerance of the normalised surface Dice where none is given, as of the FLARE and MedSAM challenges."""
MOST_VALUE = 65535
MOST_LABELS = 254  # class indices are bytes, and one of them is that of unlabelled voxels


@dataclass(frozen=True)
class DataSettings:
    """A data set. The fields are the keys of ``conf/data``. What is empty is found in the data set's own files, and completed by
    :func:`oasis_monai.data.found.complete`.

    Args:
        name: what reports call it.
        root: its folder, or the CSV, TSV or JSON file that lists it.
        layout: how its files lie there, one of :data:`LAYOUTS`; ``auto`` recognises it.
        image: where the images are, as a template of paths below ``root`` (``{patient}/{scan}_t2.nii.gz``), or the columns of a
            table. Several channels: one for each, as a list or by name.
        label: the same for the labels; of a mask file for each structure: structure -> template or column.
        channels: names (or numbers) of the images of a case to use, in order; empty for all.
        labels: class name -> value in the label files, 1 to 65535; 0 is the background. Needed only to choose or to rename.
            Classes are numbered by these values in rising order, whatever their order here.
        structures: structures that share voxels: name -> the values of ``labels`` that it consists of, as the regions of nnU-Net.
            They are what is learned, scored and shown in the place of the labels. Empty: each label is a structure.
        overlap: the label files have structures one by one, which may share voxels: several masks in the folder of a case, DICOM
            SEG, RTSTRUCT, layers of a seg.nrrd. Every set of structures that occurs becomes one of ``labels``.
        background: values in the label files that count as background, such as other structures.
        ignore: value in the label files of voxels that nobody labelled; None: there are none.
        patient: who a case is of: a regular expression with one group, looked for in the id, then in the path below ``root``; a
            column of the table; a part of the template; or ``consecutive_pairs`` (numbers 2k-1 and 2k are one person).
        centre: where a case was scanned: as ``patient``, or a map of each centre to a regular expression of its ids.
        anonymous: name no case by what DICOM files say of the person.
        regions: parts of a structure to score: ``whole``, and any of ``apex``, ``mid``, ``base`` (thirds along the axial axis).
        tolerance_mm: structure -> tolerance of its normalised surface Dice in mm; :data:`TOLERANCE_MM` of others.
        include: ids of the cases to use; empty for all.
        citation, licence: printed in the report.
        source: what ``oasis-monai download`` fetches for it, see :func:`oasis_monai.data.download.find_source`.

    Raises:
        ConfigError: naming ``data.<key>``.
    """

    name: str = ""
    root: str = ""
    layout: str = "auto"
    image: str | tuple[str, ...] | Mapping[str, str] = ""
    label: str | Mapping[str, str] = ""
    channels: tuple[str, ...] = ()
    labels: Mapping[str, int] = field(default_factory=dict)
    background: tuple[int, ...] = ()
    ignore: int | None = None
    patient: str = ""
    centre: str | Mapping[str, str] = ""
    anonymous: bool = False
    regions: tuple[str, ...] = ()
    include: tuple[str, ...] = ()
    citation: str = ""
    licence: str = ""
    source: str = ""
    tolerance_mm: Mapping[str, float] = field(default_factory=dict)
    structures: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    overlap: bool = False

    def __post_init__(self) -> None:
        make_tuples(self, "regions", "channels", "include", "background")
        for key in ("include", "channels"):
            object.__setattr__(self, key, tuple(str(value) for value in getattr(self, key)))
        object.__setattr__(self, "labels", dict(self.labels))
        object.__setattr__(self, "tolerance_mm", dict(self.tolerance_mm))
        object.__setattr__(self, "structures", {k: _as_values(v) for k, v in self.structures.items()})
        object.__setattr__(self, "overlap", self.overlap or isinstance(self.label, Mapping))
        regions, values = set(self.regions), list(self.labels.values())
        # the whole structure is what is compared, drawn and predicted
        known = not regions or ("whole" in regions and len(regions) == len(self.regions) and regions <= set(REGIONS))
        others = [*self.background, *(() if self.ignore is None else (self.ignore,))]
        apart = len({*values, *others}) == len(values) + len(others)
        remedy = "name the values of the structures to segment, or leave it out: the values in the label files are found"
        require(
            self,
            "data",
            ("layout", self.layout in LAYOUTS, f"one of {list(LAYOUTS)}"),
            ("regions", known, f"whole and any others of {list(REGIONS)}, each once"),
            (
                "labels",
                apart and len(values) <= MOST_LABELS and all(_is_value(v) for v in values),
                f"names with different values of 1 to {MOST_VALUE}, at most {MOST_LABELS}, others than data.ignore and"
                " data.background",
                remedy,
            ),
            ("background", all(_is_value(v) for v in self.background), f"values of 1 to {MOST_VALUE}"),
            ("ignore", self.ignore is None or 0 < self.ignore <= MOST_VALUE, f"a value of 1 to {MOST_VALUE}, or null"),
            ("tolerance_mm", all(_is_length(mm) for mm in self.tolerance_mm.values()), "a map of structures to mm of 0 or more"),
            (
                "structures",
                all(own and len(set(own)) == len(own) and all(_is_value(v) for v in own) for own in self.structures.values()),
                f"names with lists of different values of 1 to {MOST_VALUE}",
            ),
            (
                "structures",
                not (self.labels and self.structures) or self._covers(),
                "the values of data.labels, each in one or more",
            ),
            ("channels", len(set(self.channels)) == len(self.channels), "each channel once"),
        )
        # a JSON file, where a model keeps the labels, has an order of its own
        object.__setattr__(self, "labels", dict(sorted(self.labels.items(), key=lambda pair: pair[1])))

    @property
    def images(self) -> dict[str, str]:
        """``image`` by channel; a channel of a list has its number for a name, a single one none."""
        if isinstance(self.image, str):
            return {"": self.image} if self.image else {}
        if isinstance(self.image, Mapping):
            return dict(self.image)
        return {str(index): one for index, one in enumerate(self.image)} if len(self.image) > 1 else {"": self.image[0]}

    @property
    def label_parts(self) -> dict[str, str]:
        """``label`` by structure; a single one has no name."""
        if isinstance(self.label, str):
            return {"": self.label} if self.label else {}
        return dict(self.label)

    @property
    def label_values(self) -> tuple[int, ...]:
        """The file's value of every class, background first."""
        return (0, *self.labels.values())

    @property
    def classes(self) -> int:
        return len(self.labels) + 1

    @property
    def scored(self) -> dict[str, tuple[int, ...]]:
        """Structure -> the classes that it consists of: what is scored and shown."""
        if not self.structures:
            return {name: (index,) for index, name in enumerate(self.labels, 1)}
        index_of = {value: index for index, value in enumerate(self.labels.values(), 1)}
        return {name: tuple(sorted(index_of[v] for v in own if v in index_of)) for name, own in self.structures.items()}

    @property
    def shared(self) -> dict[str, tuple[int, ...]]:
        """:attr:`scored` where structures share voxels; empty where each class is one."""
        return self.scored if self.structures else {}

    @property
    def members(self) -> tuple[tuple[int, ...], ...]:
        """The classes of every structure where structures share voxels; empty where each class is one."""
        return tuple(self.shared.values())

    def _covers(self) -> bool:
        """Whether every label is part of a structure, and every structure has a label."""
        within = {value for own in self.structures.values() for value in own}
        return set(self.labels.values()) <= within and all(
            set(own) & set(self.labels.values()) for own in self.structures.values()
        )


def _is_length(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf


def _is_value(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= MOST_VALUE


def _as_values(values: object) -> tuple[int, ...]:
    return tuple(values) if isinstance(values, list | tuple) else (values,)  # type: ignore[return-value]  # checked after
