"""The methods that are measured, in the order of the tables. What they are is in ours.py and peers.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple


class Entry(NamedTuple):
    """One method.

    Args:
        kind: ``pair`` or ``case``.
        dims: the grids it runs on.
        network: what has to be trained for it: ``plain`` or ``joint`` (models of ours), ``monai`` or ``voxelmorph`` (as shipped).
        batch: pairs at once.
    """

    kind: str
    dims: tuple[int, ...]
    network: str = ""
    batch: int = 1


ENTRIES = {
    "OASIS STM": Entry("pair", (3, 2), "plain"),
    "OASIS STM, batch of 6": Entry("pair", (3, 2), "plain", 6),
    "OASIS joint STM, batch of 6": Entry("pair", (3,), "joint", 6),
    "MONAI VoxelMorph": Entry("pair", (3, 2), "monai"),
    "voxelmorph": Entry("pair", (3,), "voxelmorph"),
    "ANTs SyN": Entry("pair", (3, 2)),
    "ANTs SyNQuick": Entry("pair", (3, 2)),
    "elastix": Entry("pair", (3, 2)),
    "Demons": Entry("pair", (3, 2)),
    "OASIS": Entry("case", (3,), "plain"),
    "OASIS-joint": Entry("case", (3,), "joint"),
    "ANTs SyN + voting": Entry("case", (3,)),
    "ANTs SyN + joint label fusion": Entry("case", (3,)),
    "platipy": Entry("case", (3,)),
}


def chosen(dims: int, model: Path | None, only: list[str] | None) -> dict[str, Entry]:
    """The methods of one grid. A model that was given takes the place of the one of its kind; the other kind is left out."""
    other = "" if model is None else "plain" if is_joint(model) else "joint"
    wanted = {name: entry for name, entry in ENTRIES.items() if dims in entry.dims and (not only or name in only)}
    return {name: entry for name, entry in wanted.items() if not other or entry.network != other}


def is_joint(model: Path) -> bool:
    """Whether a model folder holds a joint model."""
    return bool(json.loads((model / "model.json").read_text(encoding="utf-8"))["settings"]["registration"]["joint"])
