"""Find scans to segment: in every form in which labelled data may lie, with the channels that a trained model has."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from oasis_monai.data.cases import survey
from oasis_monai.data.layouts.channels import with_channels
from oasis_monai.data.layouts.record import Survey
from oasis_monai.data.settings import DataSettings
from oasis_monai.data.types import Case
from oasis_monai.utils.errors import ConfigError, DataError, Fault

LABELLED = ("promise12", "msd", "nnunet", "table", "datalist")
"""Layouts of a labelled data set's own, which say nothing of how new scans lie."""


def find_scans(
    root: str | Path,
    data: DataSettings | None = None,
    channels: Sequence[str] = (),
    warn: Callable[[Fault], None] | None = None,
) -> list[Case]:
    """The scans of a folder, a file, a table or a list, without labels.

    Args:
        root: one scan, a DICOM series, a folder (``imagesTs`` of nnU-Net too), a CSV or TSV with a line for each scan, a data
            list of MONAI (its ``test``), or a labelled data set whose labels do not count.
        data: how the scans lie, such as templates of their names, and ``data.channels``.
        channels: the names of a model's channels. Where scans have more channels, or in another order, these are taken.
        warn: is told of what is left out.

    Raises:
        DataError: no scan, or a fault of the folder.
        ConfigError: the scans' channels are named, more or fewer than the model's, and have other names.

    Examples:
        >>> from oasis_monai.data.scans import find_scans
        >>> [case.id for case in find_scans("scans")]
        ['first', 'second']
    """
    asked = data or DataSettings()
    asked = replace(asked, layout="auto") if asked.layout in LABELLED else asked

    def look(how: DataSettings) -> Survey:
        return survey(root, how.layout, how, labelled=False)

    found, asked = for_model(look(asked), asked, channels, look)
    if errors := [fault for fault in found.faults if fault.severity == "error"]:
        raise DataError(errors)
    for fault in found.faults:
        if warn is not None:
            warn(fault)
    return [replace(case, label=None) for case in with_channels(asked, found.cases, found)[1]]


def one_scan(paths: Sequence[Path], channels: Sequence[str] = (), warn: Callable[[Fault], None] | None = None) -> Case:
    """The scan of one path, or of several that are a channel each, in the order of the model's channels.

    Raises:
        DataError: a path holds none or several.
    """
    found = []
    for path in paths:
        cases = find_scans(path, None, channels if len(paths) == 1 else (), warn)
        if len(cases) != 1:
            remedy = "give one file or series, or use oasis_monai.segment"
            raise DataError(Fault(str(path), "scan", "one scan", f"{len(cases)} scans", remedy))
        found += cases
    return replace(found[0], channels=tuple(source for one in found for source in one.sources)[1:])


def for_model(
    found: Survey, data: DataSettings, channels: Sequence[str], again: Callable[[DataSettings], Survey]
) -> tuple[Survey, DataSettings]:
    """A survey with the channels of a model, and the settings that name them.

    Args:
        found: of the settings ``data``.
        channels: the model's; empty: whatever there is.
        again: surveys with other settings.

    Raises:
        ConfigError: the data set names its channels otherwise, and has not as many.
    """
    names = found.channels
    if data.channels or not channels or not names:
        return found, data
    lower = [name.lower() for name in names]
    if all(name.lower() in lower for name in channels) or (_numbers(channels) and int(max(channels, key=int)) < len(names)):
        chosen = replace(data, channels=tuple(channels))
        return (again(chosen) if found.cut and lower != [c.lower() for c in channels] else found), chosen
    remedy = f"name them in the model's order, such as data.channels=[{','.join(names[: len(channels)])}]"
    if len(names) != len(channels):
        remedy = remedy if len(names) > len(channels) else "add the images of the others"
        raise ConfigError("data.channels", f"the model's channels {', '.join(channels)}", ", ".join(names), remedy)
    if len(names) > 1 and not _numbers(names):
        told = f"{', '.join(names)}, taken in this order"
        fault = Fault("", "channels", f"the model's {', '.join(channels)}", told, remedy, "warning")
        return replace(found, faults=[*found.faults, fault]), data
    return found, data


def _numbers(names: Sequence[str]) -> bool:
    return all(name.isdecimal() for name in names)
