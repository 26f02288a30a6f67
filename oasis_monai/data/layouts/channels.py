"""Choose channels by the names or numbers of ``data.channels``."""

from __future__ import annotations

from collections.abc import Sequence

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
