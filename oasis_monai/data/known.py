"""Public data sets that are recognised by the names of their files, and what ``conf/data`` says of them."""

from __future__ import annotations

import re
from dataclasses import fields, replace
from typing import Any

from oasis_monai.data.layouts.record import Survey
from oasis_monai.data.settings import DataSettings
from oasis_monai.utils.presets import preset_values

PROMISE12 = re.compile(r"(?:training_data_)?Case[0-4]\d")
NOT_TAKEN = ("root", "layout", "include")


def known_values(found: Survey, data: DataSettings) -> dict[str, Any]:
    """What ``conf/data`` says of a public data set that lies there; nothing where it is another, or the settings name another.

    Whoever names the files of a set of their own as PROMISE12 has them gives it a name, or labels.
    """
    if not found.known:
        return {}
    values = {key: value for key, value in preset_values("data", found.known).items() if key not in NOT_TAKEN}
    if data.name and data.name != values["name"]:
        return {}
    if found.known == "promise12":
        own = all(PROMISE12.fullmatch(case.id) for case in found.cases)
        return values if own and dict(data.labels) in ({}, values["labels"]) else {}
    return values


def with_known(data: DataSettings, values: dict[str, Any]) -> DataSettings:
    """Settings with these values where they say nothing themselves."""
    empty = {f.name for f in fields(data) if getattr(data, f.name) in ("", (), {}, None)}
    return replace(data, **{key: value for key, value in values.items() if key in empty})
