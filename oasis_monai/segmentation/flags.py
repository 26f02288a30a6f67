"""Warning flags: signs of a doubtful segmentation, found without a reference. Each has a short name and a sentence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import torch

from oasis_monai.atlases.library import AtlasLibrary
from oasis_monai.atlases.selection import nearest
from oasis_monai.segmentation.anatomy import AnatomyStatistics, StructureShape
from oasis_monai.segmentation.views import Tried, chosen
from oasis_monai.transforms.labels import belongs_to

UNLIKE_ATLASES, EMPTY, CUT, FOLDING, UNSURE, VIEW = "unlike_atlases", "empty", "cut", "folding", "unsure", "view"
PIECES, HOLES, VOLUME, NEIGHBOURS = "pieces", "holes", "volume", "neighbours"
MARGIN = 1.25
"""A scan is flagged when the distance to its nearest atlas exceeds :func:`typical_distance` times this factor.

Measured with EfficientNet features on random libraries of 34 prostates (MR of five centres): with 6, 10, 20 atlases 1.7 %, 0.3 %
and none of the held-out prostates are flagged, and 99.4 %, 100 % and 100 % of 12 hippocampi. It sees another part of the body,
noise and mostly an inverted contrast; not a scan turned by 90 degrees or upside down.
"""
FOLDED = 0.4
"""Fraction of folding voxels in all fields above which a result is flagged. With a smoothness weight of 0.01 (eq. 1), a model
trained for a few minutes folds a quarter of them (five prostates, models of 0.7 and 3 minutes: 23 to 27 %)."""
IMAGES = 4096  # most atlases whose distances to each other are computed; beyond that, a sample of whole cases


@dataclass(frozen=True)
class Flag:
    """One doubt: ``name`` is one of this module's constants, ``text`` says what was found."""

    name: str
    text: str

    def to_json(self) -> dict[str, str]:
        """Plain values."""
        return asdict(self)


def typical_distance(library: AtlasLibrary, distance: str) -> float | None:
    """How far apart scans of the library's kind lie: the largest distance of its cases to their nearest atlas of another person.

    Of a case of several slices the median over the slices counts, as for a scan in :func:`unlike_atlases`. With more than
    :data:`IMAGES` atlases the cases are a sample, evenly taken.

    Returns:
        None when there is only one patient to measure.
    """
    cases = list(dict.fromkeys(library.cases))
    if len(set(library.patients)) < 2:
        return None
    step = -(-len(library) // IMAGES)
    sample = {case: i for i, case in enumerate(cases[::step])}
    rows = torch.tensor([i for i, case in enumerate(library.cases) if case in sample], dtype=torch.int64)
    groups = library.groups()
    _, distances = nearest(library.features[rows], library.features, 1, distance, exclude=(groups[rows], groups))
    owner = torch.tensor([sample[library.cases[i]] for i in rows.tolist()])
    return max(float(distances[owner == i, 0].median()) for i in range(len(sample)))


def unlike_atlases(distances: torch.Tensor, limit: float | None) -> Flag | None:
    """Whether a scan is of another kind than the atlases (another part of the body, another modality).

    Args:
        distances: (T,) of the scan's images to their nearest atlas.
        limit: :func:`typical_distance` of the library; None: nothing is known, nothing is flagged.
    """
    own = float(distances.median())
    if limit is None or own <= MARGIN * limit:
        return None
    found = f"feature distance to the nearest {own:.3g}, between atlases of different patients at most {limit:.3g}"
    return Flag(UNLIKE_ATLASES, f"the scan differs from all atlases ({found}): does it show the body part of the training scans?")


def empty(label: torch.Tensor, names: Sequence[str], structures: Sequence[Sequence[int]] = ()) -> Flag | None:
    """Whether a structure was not found: ``label`` holds class indices; ``names[i]`` is class i + 1, or of the classes
    ``structures[i]``."""
    absent = [name for name, own in _members(names, structures) if not bool(belongs_to(label, own).any())]
    return Flag(EMPTY, f"no voxel of {', '.join(absent)}") if absent else None


def _members(names: Sequence[str], structures: Sequence[Sequence[int]]) -> list[tuple[str, Sequence[int]]]:
    """The classes of each structure."""
    return list(zip(names, structures or [(index,) for index in range(1, len(names) + 1)], strict=True))


def cut(label: torch.Tensor, seen: torch.Tensor, names: Sequence[str], structures: Sequence[Sequence[int]] = ()) -> Flag | None:
    """Whether a structure touches the border of what was looked at.

    Args:
        label: (x, y, z) class indices on the working grid.
        seen: (x, y, z) bool, the part of that grid that lies in the scan (a box).
        names, structures: as for :func:`empty`.
    """
    touching: set[int] = set()
    for axis in range(3):
        others = [a for a in range(3) if a != axis]
        along = seen.any(others[1]).any(others[0]).nonzero()[:, 0]
        if len(along):
            for end in (int(along[0]), int(along[-1])):
                touching |= set(label.select(axis, end).unique().tolist())
    cut_off = [name for name, own in _members(names, structures) if touching.intersection(own)]
    if not cut_off:
        return None
    return Flag(CUT, f"{', '.join(cut_off)} at the border of the model's field of view: part may lie outside")


def view(tried: Sequence[Tried]) -> Flag | None:
    """Whether a scan is segmented in another view, and what that says of it; ``tried``: see :func:`.views.chosen`."""
    best = chosen(tried) if tried else None
    if best is None or not best.view:
        return None
    found = f"the parts of the result overlap by {100 * best.agreement:.0f} % {best.view.name}"
    return Flag(VIEW, f"{best.view.meaning} ({found}, by {100 * tried[0].agreement:.0f} % in the scan as it is)")


def folding(voxels: int, total: int) -> Flag | None:
    """Whether more than :data:`FOLDED` of the ``total`` voxels of all fields have |J| <= 0."""
    if not total or voxels <= FOLDED * total:
        return None
    return Flag(
        FOLDING,
        f"{voxels / total:.1%} of the voxels of the deformation fields fold (a quarter is usual after minutes of training): "
        "the aligned atlases may not fit",
    )


def unsure(predicted: Mapping[str, float], names: Sequence[str], calibrated: bool) -> Flag | None:
    """Whether a failure is likely: ``names`` are the structures whose ``predicted`` DSC says so."""
    if not names:
        return None
    predictions = ", ".join(f"{name} {100 * predicted[name]:.0f} %" for name in names)
    how = "predicted DSC" if calibrated else "the parts of the result overlap by"
    return Flag(UNSURE, f"{how} {predictions}: check the result before using it")


def implausible(found: Mapping[str, StructureShape], anatomy: AnatomyStatistics) -> tuple[Flag, ...]:
    """What no training label shows: more pieces, more holes, a volume out of reach, a neighbour that is not touched.

    Args:
        found: a result, measured like a training label (:func:`.measure_anatomy`).
        anatomy: of the training labels. A structure that it does not know, or that was not found (:func:`empty`), is not flagged.
    """
    texts: dict[str, list[str]] = {PIECES: [], HOLES: [], VOLUME: [], NEIGHBOURS: []}
    apart = set()
    for name, shape in found.items():
        known = anatomy.structures.get(name)
        if known is None or not shape.volume_ml:
            continue
        if len(shape.pieces_ml) > known.most_pieces:
            texts[PIECES].append(f"{name} in {len(shape.pieces_ml)} pieces ({_ml(shape.pieces_ml)}), {_most(known.most_pieces)}")
        if len(shape.holes_ml) > known.most_holes:
            holes = f"{len(shape.holes_ml)} hole{'s' if len(shape.holes_ml) > 1 else ''} in {name}"
            texts[HOLES].append(f"{holes} ({_ml(shape.holes_ml)}), {_most(known.most_holes)}")
        low, high = known.likely_ml
        if not low <= shape.volume_ml <= high:
            seen, reach = (f"{a:.3g} to {_ml([b])}" for a, b in (known.volume_ml, known.likely_ml))
            own = f"{name} has {_ml([shape.volume_ml])}"
            texts[VOLUME].append(f"{own}, in the training labels {seen} (of others {reach} can be expected)")
        lost = [other for other in known.neighbours if other not in shape.touches and found[other].volume_ml]
        apart |= {tuple(sorted((name, other), key=list(found).index)) for other in lost}
    texts[NEIGHBOURS] = [f"{one} and {other} do not touch, as they do in all training labels" for one, other in sorted(apart)]
    return tuple(Flag(name, "; ".join(own)) for name, own in texts.items() if own)


def _ml(volumes: Sequence[float]) -> str:
    """Volumes for people: "41.2 and 3.1 ml"."""
    *first, last = (f"{one:.3g}" for one in volumes)
    return f"{', '.join(first)}{' and ' if first else ''}{last} ml"


def _most(count: int) -> str:
    return f"in the training labels {f'at most {count}' if count else 'none'}"
