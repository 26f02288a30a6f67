"""A decision of the plan, and what the user's configuration leaves open for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

GRID = ("preprocessing.size", "preprocessing.spacing_mm")


@dataclass(frozen=True)
class Choice:
    """One decision of the plan.

    Args:
        values: option (with its group) -> value, plain JSON values.
        reason: why.
        given: those of the options whose values the user has set.
    """

    values: Mapping[str, Any]
    reason: str
    given: tuple[str, ...] = ()


@dataclass(frozen=True)
class Asked:
    """What the user's configuration says.

    Args:
        config: the plain configuration, null where the plan is to choose.
        dims: ``spatial_dims``.
    """

    config: Mapping[str, Any]
    dims: int

    def value(self, option: str) -> Any:
        """The value of ``group.key``; None where the plan is to choose."""
        group, _, key = option.partition(".")
        return (self.config.get(group) or {}).get(key)

    def choice(self, reason: str, **values: Any) -> Choice:
        """A choice of ``group__key=value``, in whose place the user's values are taken."""
        named = {name.replace("__", "."): value for name, value in values.items()}
        given = tuple(option for option in named if self.value(option) is not None)
        return Choice({o: self.value(o) if o in given else v for o, v in named.items()}, reason, given)


def mm_text(values: Sequence[float] | np.ndarray) -> str:
    return " x ".join(f"{v:.3g}" for v in values) + " mm"
