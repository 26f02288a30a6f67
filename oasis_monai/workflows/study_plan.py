"""A study's arms share the plan of its data set; an arm of other dimensions has one of its own, from the same measures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from oasis_monai.utils.errors import ConfigError
from oasis_monai.utils.planned import open_keys
from oasis_monai.workflows.plan import Planned, plan_for
from oasis_monai.workflows.study import Arm, Study, arm_config


def planned_study(study: Study, config: Mapping[str, Any], planned: Planned) -> Study:
    """The study with concrete values in the arms whose ``spatial_dims`` are not those of what they are laid over.

    The other arms have the values of ``planned.config``.

    Args:
        config: the plain configuration, null where the plan chooses.
        planned: the plan for it.
    """
    return replace(study, arms={name: _arm(study, name, config, planned) for name in study.arms})


def _arm(study: Study, name: str, config: Mapping[str, Any], planned: Planned) -> Arm:
    arm = study.arms[name]
    below = config if arm.base is None else arm_config(study, config, arm.base, (name,))
    own = arm_config(study, config, name) | {"folds": arm.protocols[0]}
    if planned.fingerprint is None or own.get("spatial_dims", 3) == below.get("spatial_dims", 3):
        return arm
    try:
        filled = plan_for(planned.fingerprint, own, kept=planned.kept).config
    except ConfigError as error:
        raise ConfigError(f"study.arms.{name}: {error.key}", error.expected, error.found, error.remedy) from None
    settings: dict[str, Any] = {key: dict(v) if isinstance(v, Mapping) else v for key, v in arm.settings.items()}
    for group, key in open_keys(own):
        settings.setdefault(group, {})[key] = filled[group][key]
    if isinstance(preprocessing := settings.setdefault("preprocessing", {}), dict):  # not among what is always planned
        preprocessing.setdefault("fine_factor", filled.get("preprocessing", {}).get("fine_factor"))
    return replace(arm, settings=settings)
