"""Post-processing of a result: pieces that no training label has are removed, holes that none has are filled.

The training labels say what is implausible (:mod:`.anatomy`). A cross-validation decides for which structures it helps
(:mod:`oasis_monai.evaluation.postprocessing`), as nnU-Net decides whether to keep the largest component only (Isensee et al.,
Nature Methods 2021).

:func:`oasis_monai.segmentation.fusion.remove_unsupported_components` is something else: a part of OASIS-joint that removes what
this scan's aligned atlases do not support, whatever its shape. It comes first, on the working grid.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch

from oasis_monai.data.types import Segmentation
from oasis_monai.segmentation.anatomy import AnatomyStatistics, StructureStatistics
from oasis_monai.transforms.components import Part, bounding_box, grown, holes, pieces, widened

PIECES, HOLES = "remove_pieces", "fill_holes"
OPERATIONS = (PIECES, HOLES)
AUTO, NONE, ALL = "auto", "none", "all"
MODES = (AUTO, NONE, ALL)
"""``auto``: what a cross-validation has shown to help; ``none``: nothing; ``all``: every operation for every structure."""
Choice = Mapping[str, Sequence[str]]
"""Structure -> the operations to do, of :data:`OPERATIONS`."""


@dataclass(frozen=True)
class Change:
    """What an operation has done to a structure.

    Args:
        structure: its name.
        operation: of :data:`OPERATIONS`.
        parts: how many pieces were removed or holes filled.
        volume_ml: of these together.
    """

    structure: str
    operation: str
    parts: int
    volume_ml: float

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "volume_ml": round(self.volume_ml, 3)}

    def __str__(self) -> str:
        what = {PIECES: ("piece", "removed"), HOLES: ("hole", "filled")}[self.operation]
        return f"{self.parts} {what[0]}{'s' if self.parts > 1 else ''} of {self.structure} {what[1]} ({self.volume_ml:.2g} ml)"


def every_operation(anatomy: AnatomyStatistics) -> Choice:
    """All operations for all structures that the training labels show often enough."""
    return dict.fromkeys(anatomy.structures, OPERATIONS)


def postprocess(
    result: Segmentation, anatomy: AnatomyStatistics, choice: Choice, names: Sequence[str]
) -> tuple[Segmentation, tuple[Change, ...]]:
    """A result without implausible pieces and holes, on its own grid.

    - Of a structure the ``most_pieces`` largest pieces stay, as many as any training label has; of these the largest, and the
      others if they are as large as the ``smallest_piece_ml`` of the training labels. A removed piece becomes what most of its
      border is: background as a rule, another structure where it lies inside that.
    - A hole is filled if the training labels have none, or none as small as it.

    A probability is set to 1 or 0 where the label changes.

    Args:
        result: a method's.
        anatomy: of the training labels.
        choice: what to do for which structure.
        names: ``names[i]`` is class i + 1.

    Returns:
        The result, the same object where nothing changes; and what was done.
    """
    whole, voxel_ml = result.label.detach().cpu().numpy(), result.geometry.voxel_ml
    around = bounding_box(whole != 0)
    if around is None or not choice:
        return result, ()
    around = grown(around, whole.shape)  # one voxel of what is beside each piece
    label, changes = whole[around], list[Change]()
    for operation, edit in ((PIECES, _remove_pieces), (HOLES, _fill_holes)):
        limits = {
            number: anatomy.structures[name]
            for number, name in enumerate(names, 1)
            if operation in choice.get(name, ()) and name in anatomy.structures
        }
        label, done = edit(label, limits, voxel_ml)
        for number, parts in done.items():
            volume_ml = sum(part.voxels for part in parts) * voxel_ml
            changes.append(Change(names[number - 1], operation, len(parts), volume_ml))
    if not changes:
        return result, ()
    whole = whole.copy()
    whole[around] = label
    edited = torch.from_numpy(whole).to(result.label.device)
    probability = result.probability
    if probability is not None:
        changed = edited != result.label
        probability = probability.clone()
        probability[:, changed] = torch.nn.functional.one_hot(edited[changed].long(), len(probability)).T.to(probability)
    return replace(result, label=edited, probability=probability), tuple(changes)


Limits = Mapping[int, StructureStatistics]
"""By class."""


def _remove_pieces(label: np.ndarray, limits: Limits, voxel_ml: float) -> tuple[np.ndarray, dict[int, list[Part]]]:
    """The label without implausible pieces, and those by class; all are found before any is removed."""
    removed = {number: implausible_pieces(label, number, limit, voxel_ml) for number, limit in limits.items()}
    removed = {number: parts for number, parts in removed.items() if parts}
    if not removed:
        return label, {}
    gone = np.zeros(label.shape, bool)
    for part in (part for parts in removed.values() for part in parts):
        gone[part.box] |= part.mask
    result = label.copy()
    for part in pieces(gone):  # removed pieces that touch each other are one gap
        result[part.box][part.mask] = _most_of_border(label, part)
    return result, removed


def implausible_pieces(label: np.ndarray, number: int, limit: StructureStatistics, voxel_ml: float) -> list[Part]:
    """The pieces of class ``number`` that no training label has, see :func:`postprocess`."""
    return [
        part
        for rank, part in enumerate(pieces(label == number))
        if rank >= max(1, limit.most_pieces) or (rank > 0 and part.voxels * voxel_ml < limit.smallest_piece_ml)
    ]


def _most_of_border(label: np.ndarray, part: Part) -> int:
    """The class that most of the voxels beside a part have, by their faces; of equal ones the background."""
    from scipy import ndimage

    box, mask = widened(part, label.shape)
    around = ndimage.binary_dilation(mask) & ~mask
    return int(np.bincount(label[box][around]).argmax()) if around.any() else 0


def _fill_holes(label: np.ndarray, limits: Limits, voxel_ml: float) -> tuple[np.ndarray, dict[int, list[Part]]]:
    """The label without implausible holes, and those by class."""
    filled: dict[int, list[Part]] = {}
    for number, part in holes(label) if limits else ():
        if number in limits and part.voxels * voxel_ml < limits[number].smallest_hole_ml:
            filled.setdefault(number, []).append(part)
    if not filled:
        return label, {}
    result = label.copy()
    for number, parts in filled.items():
        for part in parts:
            result[part.box][part.mask] = number
    return result, filled
