"""Options that the plan of a data set chooses: null in the presets ``auto`` of ``conf/``, and what they are without data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

UNPLANNED: Mapping[int, Mapping[str, Mapping[str, Any]]] = {
    3: {
        "preprocessing": {"size": [96, 96, 32], "spacing_mm": [1.0, 1.0, 3.0], "intensity": "local", "slice_axis": "axial"},
        "registration": {"field_stride": [4, 4, 1]},
        "joint": {
            "atlases": 0,
            "slice_budget": 0.5,
            "volume_budget": 0.35,
            "box_budget": 0.0,
            "even_draws": False,
            "volume_network": "U-Net3D",
            "volume_stride": [2, 2, 1],
            "tta_flip": True,
            "recentre": True,
            "estimate_weight": 0.75,
        },
        "augmentation": {"flip": 0.5},
        "training": {"batch": 2},
    },
    2: {
        "preprocessing": {"size": [96, 96], "spacing_mm": [1.0, 1.0], "intensity": "local", "slice_axis": "axial"},
        "registration": {"field_stride": [4, 4]},
        "joint": {
            "atlases": 2,
            "slice_budget": 0.9,
            "volume_budget": 0.0,
            "box_budget": 0.0,
            "even_draws": False,
            "volume_network": "U-Net3D",
            "volume_stride": [2, 2, 1],
            "tta_flip": True,
            "recentre": False,
            "estimate_weight": 0.75,
        },
        "augmentation": {"flip": 0.5},
        "training": {"batch": 2},
    },
}
"""Values by ``spatial_dims``, group and key, where nobody looked at any data: those of a prostate in T2 MR."""


def open_keys(config: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The options (group, key) of a plain configuration that are left to the plan."""
    known = UNPLANNED[3]
    found = [(group, key) for group, keys in known.items() for key in keys if _is_null(config, group, key)]
    return [one for one in found if one[0] != "preprocessing" or not _is_paper(config)]


def fill(config: Mapping[str, Any], values: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The configuration with ``values`` (by group and key) in the place of its nulls; what is given stays."""
    made = {key: dict(value) if isinstance(value, Mapping) else value for key, value in config.items()}
    for group, keys in values.items():
        for key, value in keys.items():
            if _is_null(made, group, key):
                made[group][key] = value
    return made


def without_nulls(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration with :data:`UNPLANNED` in the place of what is left to the plan."""
    dims = config.get("spatial_dims", 3)
    values = UNPLANNED.get(dims if dims in (2, 3) else 3, {})
    if _is_paper(config):
        made = fill(config, {group: keys for group, keys in values.items() if group != "preprocessing"})
        made["preprocessing"] = {k: v for k, v in made["preprocessing"].items() if v is not None}  # it has defaults of its own
        return made
    return fill(config, values)


def _is_null(config: Mapping[str, Any], group: str, key: str) -> bool:
    values = config.get(group)
    return isinstance(values, Mapping) and key in values and values[key] is None


def _is_paper(config: Mapping[str, Any]) -> bool:
    group = config.get("preprocessing")
    return isinstance(group, Mapping) and group.get("name") == "paper"
