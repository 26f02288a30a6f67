"""Build the dataclasses of a configuration from plain dicts, with one clear line for a key or value that cannot work."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from oasis_monai.utils.errors import ConfigError

T = TypeVar("T")
RENAMED = {
    "estimator": "joint",
    "joint.slice_budget": "joint.slice_budget",
    "joint.volume_budget": "joint.volume_budget",
    "joint.slices_per_step": "joint.slices_per_step",
    "joint.empty_slice_weight": "joint.empty_slice_weight",
    "joint.tta_views": "joint.tta_views",
    "joint.tta_flip": "joint.tta_flip",
    "joint.estimate_weight": "joint.estimate_weight",
    "training.pairs": "training.nearest_partners",
    "data.only": "data.include",
}
"""Options that had another name before: old -> new. Within ``estimator`` the other keys kept their names."""


def check_renamed(key: str) -> None:
    """Refuse the old name of an option.

    Args:
        key: with its groups, as on the command line (``joint.slice_budget``).

    Raises:
        ConfigError: the key is an old name; the message tells the new one.
    """
    group, dot, name = key.partition(".")
    new = RENAMED.get(key) or (f"{RENAMED[group]}{dot}{name}" if group in RENAMED else None)
    if new is not None:
        raise ConfigError(key, f"{new}, as this option is called now", key, f"write {new}")


def make_group(kind: type[T], values: Any, group: str, **more: Any) -> T:
    """``kind(**values)``, with keys of the group checked and lists made tuples."""
    if not isinstance(values, Mapping):
        raise ConfigError(group, "a group of settings", values)
    known = {f.name for f in dataclasses.fields(kind) if f.init}  # type: ignore[arg-type]
    unknown = sorted(set(values) - known)
    if unknown:
        check_renamed(f"{group}.{unknown[0]}" if group else unknown[0])
        raise ConfigError(
            f"{group}.{unknown[0]}" if group else unknown[0], f"one of {sorted(known)}", "an unknown key", "correct or remove it"
        )
    made = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    hints = typing.get_type_hints(kind)
    for key, value in made.items():
        if (group, key) in IDS and isinstance(value, tuple):
            value = made[key] = tuple(str(v) if isinstance(v, int) and not isinstance(v, bool) else v for v in value)
        one_for_list = (group, key) in SCALARS and not isinstance(value, tuple)
        if not _fits((value,) if one_for_list else value, hints[key]):
            raise ConfigError(f"{group}.{key}" if group else key, _words(hints[key]), values[key])
    return kind(**made, **more)


SCALARS = {("", "n"), ("", "methods"), ("registration", "field_stride")}  # lists that a single value may stand for
IDS = {("data", "include")}  # texts that a YAML file reads as numbers
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
