"""Choose channels by the names or numbers of ``data.channels``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from oasis_monai.data.layouts.record import Survey
from oasis_monai.data.settings import DataSettings
from oasis_monai.data.types import Case
from oasis_monai.utils.errors import ConfigError


def chosen(names: Sequence[str], asked: Sequence[str]) -> list[int]:
    """The places among ``names`` of the channels that are asked for, by name (whatever its case) or number; empty: all.

    Raises:
        ConfigError: there is none of that name.
    """
    lower = [name.lower() for name in names]
    found = []
    for one in asked:
        if one.lower() in lower:
            found.append(lower.index(one.lower()))
        elif one.isdecimal() and int(one) < len(names):
            found.append(int(one))
        else:
            expected = f"some of {', '.join(names)}" if names else "none, as the images have no named channels"
            raise ConfigError("data.channels", expected, one, "correct or leave it out")
    return found or list(range(len(names)))


def with_channels(data: DataSettings, cases: list[Case], found: Survey) -> tuple[DataSettings, list[Case]]:
    """Channels by their names; of files that hold several, those to take."""
    if found.cut or not data.channels:
        return replace(data, channels=found.channels), cases
    if found.channels:
        take = chosen(found.channels, data.channels)
        names = tuple(found.channels[index] for index in take)
    elif all(name.isdecimal() for name in data.channels):
        take, names = [int(name) for name in data.channels], data.channels
    else:
        raise ConfigError("data.channels", "numbers (0, 1, ...), as the images' channels have no names", list(data.channels))
    if take == list(range(len(found.channels))):
        return replace(data, channels=names), cases
    return replace(data, channels=names), [replace(case, take=tuple(take)) for case in cases]
