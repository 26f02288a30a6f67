"""What a run is told of its data set: the group ``data`` of the settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from oasis_monai.data.types import REGIONS
from oasis_monai.utils.config import require

LABELLED = ("promise12", "msd")
"""Layouts of :func:`oasis_monai.data.cases.find_cases` that have labels."""


@dataclass(frozen=True)
class DataSettings:
    """A labelled data set. The fields are the keys of ``conf/data``.

    Args:
        name: what reports call it.
        root: its folder.
        layout: ``promise12`` or ``msd``, see :func:`oasis_monai.data.cases.find_cases`.
        labels: class name -> value in the label files, 1 to 255; 0 is the background. Other values in a file are an error.
            Classes are numbered by these values in rising order, whatever their order here.
        ignore: value in the label files of voxels that nobody labelled; None: there are none.
        channels: names of the images of a case to use, in order; empty for all.
        regions: parts of a structure to score: ``whole``, and any of ``apex``, ``mid``, ``base`` (thirds along the axial axis).
        include: ids of the cases to use; empty for all.
        citation, licence: printed in the report.
        source: what ``oasis-monai download`` fetches for it, see :func:`oasis_monai.data.download.find_source`.

    Raises:
        ConfigError: naming ``data.<key>``.
    """

    name: str = "dataset"
    root: str = ""
    layout: str = "promise12"
    labels: Mapping[str, int] = field(default_factory=lambda: {"prostate": 1})
    ignore: int | None = None
    channels: tuple[str, ...] = ()
    regions: tuple[str, ...] = ("whole", "apex", "mid", "base")
    include: tuple[str, ...] = ()
    citation: str = ""
    licence: str = ""
    source: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "regions", tuple(self.regions))
        object.__setattr__(self, "include", tuple(str(case) for case in self.include))
        object.__setattr__(self, "labels", dict(self.labels))
        regions, values = set(self.regions), list(self.labels.values())
        # the whole structure is what is compared, drawn and predicted
        known = "whole" in regions and len(regions) == len(self.regions) and regions <= set(REGIONS)
        apart = len(values) > 0 and len(set(values)) == len(values)
        remedy = "name every value in the label files but 0, the background"
        require(
            self,
            "data",
            ("layout", self.layout in LABELLED, f"one of {list(LABELLED)}"),
            ("regions", known, f"whole and any others of {list(REGIONS)}, each once"),
            (
                "labels",
                apart and all(isinstance(v, int) and 0 < v < 256 for v in values),
                "names with different values of 1 to 255",
                remedy,
            ),
        )
        # a JSON file, where a model keeps the labels, has an order of its own
        object.__setattr__(self, "labels", dict(sorted(self.labels.items(), key=lambda pair: pair[1])))

    @property
    def label_values(self) -> tuple[int, ...]:
        """The file's value of every class, background first."""
        return (0, *self.labels.values())

    @property
    def classes(self) -> int:
        return len(self.labels) + 1
