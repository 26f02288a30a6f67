"""Compose a configuration from the YAML files of ``conf/`` as the command line does, without Hydra.

Defaults are stated only in ``conf/``. This module supports what these files use of Hydra's defaults lists: a preset of a group
(``- loss: default``), a preset to start from (``defaults: [default, _self_]``), a choice for another group
(``- override /joint: fine``) and the package ``_global_``.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any

from oasis_monai.utils.config import check_gone
from oasis_monai.utils.errors import ConfigError

CONF = "oasis_monai.conf"
OWN = "_self_"  # entry of a defaults list that stands for the file's own values
OVERRIDE = "override /"
REPLACED = ("labels", "image", "centre")  # a data set has its own classes and names, and none of the default's


def compose(*options: Mapping[str, Any]) -> dict[str, Any]:
    """``conf/config.yaml`` with options laid over it, as a plain dict: the same as the command line composes.

    Args:
        options: values by key; those of later mappings count more. A key may have dots (``training.minutes``), and a value may be
            a dict of further keys. A text for a group of ``conf/`` chooses a preset by its name, as ``registration=unet3d`` does
            on the command line. A dict for ``data`` describes a data set of the caller's own: nothing of the default one stays.

    Raises:
        ConfigError: a group has no preset of that name.
    """
    groups = {group for group, _ in _defaults("", "config") if group}
    choices: dict[str, str | None] = {}
    values: dict[str, Any] = {}
    for part in options:
        presets = {key: value for key, value in part.items() if key in groups and isinstance(value, str | None)}
        choices |= presets | ({"data": None} if isinstance(part.get("data"), Mapping) else {})
        lay_over(values, nested({key: value for key, value in part.items() if key not in presets}))
    config: dict[str, Any] = {}
    for layer in _layers("", "config", choices):
        lay_over(config, layer)
    config.pop("hydra", None)
    return lay_over(config, values)


def nested(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options with dots in their keys as dicts in dicts. Where a key comes twice, the later value counts."""
    result: dict[str, Any] = {}
    for key, value in options.items():
        *groups, last = str(key).split(".")
        inside = {last: nested(value) if isinstance(value, Mapping) and last not in REPLACED else value}
        for group in reversed(groups):
            inside = {group: inside}
        lay_over(result, inside)
    return result


def lay_over(config: dict[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """``config`` with values laid over it, key by key in every dict but :data:`REPLACED`; changed in place."""
    for key, value in values.items():
        if key not in REPLACED and isinstance(value, Mapping) and isinstance(config.get(key), dict):
            lay_over(config[key], value)
        else:
            config[key] = copy.deepcopy(value)
    return config


def preset_names(group: str) -> list[str]:
    """The presets of a group of ``conf/``."""
    found = files(CONF).joinpath(group)
    return sorted(path.name.removesuffix(".yaml") for path in found.iterdir() if path.name.endswith(".yaml"))


def preset_values(group: str, name: str) -> dict[str, Any]:
    """What a preset of a group says of that group by itself, without what it asks of others.

    Raises:
        ConfigError: there is none of that name.
    """
    content = _read(group, name)
    own = content.get(group, {}) if re.match(r"#\s*@package _global_", _text(group, name)) else content
    return {key: copy.deepcopy(value) for key, value in own.items() if key != "defaults"}


def _layers(group: str, name: str, choices: dict[str, str | None]) -> list[dict[str, Any]]:
    """What a file brings, in the order in which it is laid over each other; ``choices`` gains the presets it asks for."""
    content = {key: value for key, value in _read(group, name).items() if key != "defaults"}
    own = content if not group or re.match(r"#\s*@package _global_", _text(group, name)) else {group: content}
    entries = _defaults(group, name)
    for other, preset in entries:
        if other.startswith(OVERRIDE):
            choices.setdefault(other.removeprefix(OVERRIDE), preset)
    parts: list[list[dict[str, Any]]] = []
    for other, preset in reversed(entries):  # from the end, as Hydra does: an experiment chooses before a data set does
        if preset == OWN:
            parts.append([own])
        elif not other:
            parts.append(_layers(group, str(preset), choices))
        elif not other.startswith(OVERRIDE) and (chosen := choices.get(other, preset)) is not None:
            parts.append(_layers(other, chosen, choices))
    return [layer for part in reversed(parts) for layer in part]


def _defaults(group: str, name: str) -> list[tuple[str, str | None]]:
    """The defaults list of a file as (group, preset); the group is empty for a preset of the file's own group."""
    listed = _read(group, name).get("defaults", [])
    entries = [next(iter(entry.items())) if isinstance(entry, Mapping) else ("", entry) for entry in listed]
    return entries if ("", OWN) in entries else [*entries, ("", OWN)]


def _read(group: str, name: str) -> dict[str, Any]:
    """The values of a file of ``conf/``."""
    import yaml  # settings that are complete need no file

    return yaml.safe_load(_text(group, name)) or {}


@cache
def _text(group: str, name: str) -> str:
    check_gone(group, name)
    if group and name not in preset_names(group):
        raise ConfigError(group, f"a preset, one of {preset_names(group)}", name)
    return files(CONF).joinpath(group, f"{name}.yaml").read_text(encoding="utf-8")
