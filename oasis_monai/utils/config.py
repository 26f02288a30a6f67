"""Groups of settings as dataclasses: build them from plain dicts, check values, and derive cache names.

A key or value that cannot work raises an error of one line. What a trained network depends on is every field that is not marked
otherwise: :data:`INFERENCE_ONLY`, or :func:`not_used_by` some kinds of network. A new field therefore counts until someone
marks it, so a network trained without it is never mistaken for one trained with it.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from oasis_monai.utils.errors import ConfigError

T = TypeVar("T")


def absent_as(value: Any) -> dict[str, Any]:
    """Metadata of a field that came later than the others and whose ``value`` is what was before: no name holds that value."""
    return {"absent_as": value}


INFERENCE_ONLY = {"inference_only": True}
"""Metadata of a field that changes no trained weight: ``field(default=4, metadata=INFERENCE_ONLY)``."""
RENAMED = {
    "estimator": "joint",
    "estimator.share": "joint.slice_budget",
    "estimator.volume_share": "joint.volume_budget",
    "estimator.slices": "joint.slices_per_step",
    "estimator.empty": "joint.empty_slice_weight",
    "estimator.views": "joint.tta_views",
    "estimator.mirror": "joint.tta_flip",
    "estimator.vote": "joint.estimate_weight",
    "training.pairs": "training.nearest_partners",
    "data.only": "data.include",
}
"""Options that had another name before: old -> new. Within ``estimator`` the other keys kept their names."""


GONE = {("preprocessing", "hippocampus"): "auto"}
"""Presets that are no more: (group, name) -> the one to take."""


def check_gone(group: str, preset: str) -> None:
    """Refuse a preset that is no more.

    Raises:
        ConfigError: the message tells what to take.
    """
    if (new := GONE.get((group, preset))) is not None:
        remedy = f"leave it out or write {group}={new}: the plan of the data set chooses these values now"
        raise ConfigError(group, f"the preset {new}", f"{preset}, which is no more", remedy)


def check_renamed(key: str) -> None:
    """Refuse the old name of an option.

    Args:
        key: with its groups, as on the command line (``estimator.share``).

    Raises:
        ConfigError: the key is an old name; the message tells the new one.
    """
    group, dot, name = key.partition(".")
    new = RENAMED.get(key) or (f"{RENAMED[group]}{dot}{name}" if group in RENAMED else None)
    if new is not None:
        raise ConfigError(key, f"its new name {new}", key, f"write {new}")


def not_used_by(*networks: str) -> dict[str, tuple[str, ...]]:
    """Metadata of a field that the training of these kinds of network never reads.

    Args:
        networks: of ``registration``, ``slices``, ``volume`` (a joint model's networks) and ``segmentation`` (those of
            ``methods``), see :meth:`oasis_monai.settings.Settings.identity`.
    """
    return {"not_used_by": networks}


def identity_of(settings: Any, network: str) -> dict[str, Any]:
    """What the training of one kind of network depends on, as plain JSON values.

    Args:
        settings: a dataclass; fields that are dataclasses themselves are gone through in the same way.
        network: the kind, see :func:`not_used_by`.
    """
    return {
        field.name: identity_of(value, network) if dataclasses.is_dataclass(value) else plain(value)
        for field in dataclasses.fields(settings)
        if not field.metadata.get("inference_only") and network not in field.metadata.get("not_used_by", ())
        for value in [getattr(settings, field.name)]
        if not _absent(field, value)
    }


def without_absent(settings: Any) -> dict[str, Any]:
    """The fields of a dataclass as a dict, but those with the value of :func:`absent_as`."""
    return {
        field.name: value
        for field in dataclasses.fields(settings)
        for value in [getattr(settings, field.name)]
        if not _absent(field, value)
    }


def _absent(field: dataclasses.Field[Any], value: Any) -> bool:
    return "absent_as" in field.metadata and bool(field.metadata["absent_as"] == value)


def plain(value: Any) -> Any:
    """A setting as JSON has it: dataclasses and maps as dicts, tuples as lists, paths as texts."""
    if dataclasses.is_dataclass(value):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [plain(v) for v in value]
    return str(value) if isinstance(value, Path) else value


def require(settings: Any, group: str, *checks: tuple[str, bool, str] | tuple[str, bool, str, str]) -> None:
    """Refuse settings of which a check failed.

    Args:
        settings: the dataclass, whose values the message shows.
        group: its key in the configuration; empty for the top level.
        checks: key, whether its value is fine, what is expected, and what to do about it where that is not plain.

    Raises:
        ConfigError: the first check that failed.
    """
    for key, fine, expected, *remedy in checks:
        if not fine:
            found = getattr(settings, key)
            found = list(found) if isinstance(found, tuple) else found  # as it is written in YAML
            raise ConfigError(f"{group}.{key}" if group else key, expected, found, *remedy)


def make_tuples(settings: Any, *keys: str) -> None:
    """Turn these fields of a frozen dataclass into tuples, so that lists may be given; a single number becomes a tuple of one."""
    for key in keys:
        value = getattr(settings, key)
        object.__setattr__(settings, key, (value,) if isinstance(value, int | str) else tuple(value))


def make_group(kind: type[T], values: Any, group: str, **more: Any) -> T:
    """``kind(**values)``, with keys of the group checked and lists made tuples."""
    if not isinstance(values, Mapping):
        raise ConfigError(group, "a group of settings", values)
    known = {f.name for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    unknown = sorted(set(values) - known)
    if unknown:
        check_renamed(f"{group}.{unknown[0]}" if group else unknown[0])
        raise ConfigError(
            f"{group}.{unknown[0]}" if group else unknown[0], f"one of {sorted(known)}", "an unknown key", "correct or remove it"
        )
    options = {k: _with_tuples(v) for k, v in values.items()}
    hints = typing.get_type_hints(kind)
    for key, value in options.items():
        if (group, key) in IDS and isinstance(value, tuple):
            value = options[key] = tuple(str(v) if isinstance(v, int) and not isinstance(v, bool) else v for v in value)
        one_for_list = (group, key) in SCALARS and not isinstance(value, tuple)
        if not _fits((value,) if one_for_list else value, hints[key]):
            raise ConfigError(f"{group}.{key}" if group else key, _words(hints[key]), values[key])
    return kind(**options, **more)


def _with_tuples(value: Any) -> Any:
    """Lists of a YAML file as tuples, those in a map too."""
    if isinstance(value, Mapping):
        return {k: tuple(v) if isinstance(v, list) else v for k, v in value.items()}
    return tuple(value) if isinstance(value, list) else value


SCALARS = {
    ("", "n"),
    ("", "methods"),
    ("registration", "field_stride"),
    ("data", "channels"),
    ("data", "background"),
}  # lists that a single value may stand for
IDS = {("data", "include"), ("data", "channels")}  # texts that a YAML file reads as numbers
_NAMES = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", types.NoneType: "null"}


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value out of a YAML file is of a field's type. A whole number is a number; true and false are neither."""
    arguments = typing.get_args(hint)
    origin = typing.get_origin(hint)
    if hint is Any:
        return True
    if origin in (types.UnionType, typing.Union):
        return any(_fits(value, a) for a in arguments)
    if origin is tuple:
        return isinstance(value, tuple) and all(_fits(v, arguments[0]) for v in value)
    if origin is Mapping:
        return isinstance(value, Mapping) and all(_fits(k, arguments[0]) and _fits(v, arguments[1]) for k, v in value.items())
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return isinstance(value, hint) and isinstance(value, bool) == (hint is bool)


def _words(hint: Any) -> str:
    """A field's type, for a message."""
    arguments = typing.get_args(hint)
    origin = typing.get_origin(hint)
    if origin in (types.UnionType, typing.Union):
        return " or ".join(_words(a) for a in arguments)
    if origin is tuple:
        return f"a list, each {_words(arguments[0])}"
    if origin is Mapping:
        return f"a map of {_words(arguments[0])} to {_words(arguments[1])}"
    return _NAMES.get(hint, "a group of settings")
