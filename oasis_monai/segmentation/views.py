"""Search for the view of a scan in which networks and atlases agree, where they do not agree on the scan as it is.

A structure of twice the usual size, a scan that lies the wrong way round or an inverted contrast is unlike everything that the
networks know. They and the atlases then find different things, and their agreement is low. Such a scan is also seen in other
views (:mod:`oasis_monai.transforms.views`): larger, smaller, turned, with other intensities. The view of the highest agreement
is taken.

The search goes from coarse to fine. First the networks alone look, without copies for test-time augmentation: at single views,
then at combinations of the best one. The best few are segmented as any scan is, with the atlases. A view counts only if it shows
the structures in about the size that atlases have, so that no view wins in which both parts find nothing, or a scrap. The scan
as it is stays unless another view agrees more by a margin.

:data:`DOUBTFUL` comes from 122 results of twelve unseen PROMISE12 scans, untouched and corrupted: with 0.85 half of the scans
needed no search, and the mean Dice was that of a search for every scan. Parts that agree may still miss the same rim of a
structure that is larger than those they know. So of a structure larger or smaller than most the networks also look at two other
sizes, and where they agree more there, the scan is doubtful too.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from oasis_monai.data.types import Preprocessed
from oasis_monai.networks.structures import membership
from oasis_monai.segmentation.agreement import overlap_counts, overlaps
from oasis_monai.transforms.labels import decide
from oasis_monai.transforms.spatial import SLICE_AXES
from oasis_monai.transforms.views import UNCHANGED, View, scaled, turned

SEARCHES = ("none", "doubtful", "all")
"""For which scans other views are tried: none, those whose parts agree by less than :data:`DOUBTFUL`, or all."""
AS_IT_IS = "as it is"
"""What tables call the view without a name."""
DOUBTFUL = 0.85
BELOW_USUAL = 0.1
"""A scan is not doubtful unless its agreement is so much below what is usual on the model's own atlases. Where networks were
trained for a minute, or fields are too coarse for a thin structure, the parts agree on no scan, and a search for every scan would
find nothing. On PROMISE12 (20 minutes, folds 0 and 1) the atlases have 0.95 to 0.96, unseen scans 0.92: the limit stays 0.85."""
MOST_SEARCHED = 2**23
"""Voxels of the finest grid up to which doubtful scans are looked at in other views: the search sees a scan some forty times."""
VIEWS_VERSION = 3
"""Raise it with every change after which another view may be taken, so that what is known of others' results is not used."""
MARGIN = 0.04  # by how much more the parts must agree in another view: a header is mostly right, and less is chance
SIZE_MARGIN = 0.01
"""The same for a view of another size alone, as sizes differ between patients, not only between headers. Of 22 enlarged PROMISE12
scans whose parts agreed, this takes 20 in another view, and the mean Dice of the 22 gains 3.7 points; :data:`MARGIN` takes 8, and
it gains 2.0."""
SIMPLER = 0.01  # by how much more they must agree in a view that changes one thing more
SAME = -1.0  # what a quick look says of a view that changes nothing
FINALISTS = 3  # views that are segmented with the atlases
CONVINCING = 0.92  # overlap of the networks in a single view above which no combination is tried
COMMON = (10, 90)  # percentiles of the atlases between which a structure has a common size
OTHER_SIZE = 0.04
"""By how much more the networks must agree, at a quick look, on a scan in another size, for a scan to be doubtful whose parts
agree: all may miss the same rim of a structure that is larger than those they know. Of 34 PROMISE12 scans, enlarged 1.5 times,
26 exceed this; as they are, two do."""
SLACK = 1.5  # a structure may be so many times smaller or larger than in the smallest or largest atlas
UNUSUAL = 0.5  # what part of the agreement counts on a structure of another size, on the scan as it is
ALWAYS = 0.9  # fraction of the atlases that must have a structure for its absence to count

_SIZE = "check the voxel size in its header"
_HEADER = "check the orientation in its header"


def _size(size: float, axes: str = "xyz", where: str = "") -> View:
    looks = f"the structures look {'larger' if size < 1 else 'smaller'} than in the atlases{where}: {_SIZE}"
    return View(f"seen at {size:.2g} of its size{where}", scaled(size, axes), (), ("scale",), looks)


SIZES: dict[View, tuple[View, ...]] = {
    _size(size, axes, where): tuple(_size(size * finer, axes, where) for finer in (0.8, 1.25))
    for axes, where, sizes in (
        ("xyz", "", (0.65, 0.8, 1.25, 1.6)),
        ("xy", " in plane", (0.67, 1.5)),
        ("z", " across the slices", (0.6, 1.6)),
    )
    for size in sizes
}
"""The sizes that are tried, each with those next to it."""
SMALLER, LARGER = (tuple(_size(size) for size in sizes) for sizes in ((0.65, 0.8), (1.25, 1.6)))
IN_PLANE = tuple(turned(degrees, "z") for degrees in (90, 180, 270))
WORLD_AXES = ("left-right", "front-back", "long")
INTENSITIES: tuple[View, ...] = (
    View("with lost slices filled in", intensities=("filled",), kinds=("intensity",), meaning="some slices have no signal"),
    View("with inverted intensities", intensities=("inverted",), kinds=("intensity",), meaning="dark and bright look exchanged"),
    View("with noise removed", intensities=("denoised",), kinds=("intensity",), meaning="the scan looks noisy"),
)


def single_views(slice_axis: str = "axial") -> tuple[View, ...]:
    """What is tried first. With the turns in the plane of the slices, the others make up all 24 rotations of the axes.

    Args:
        slice_axis: how the slices lie, of :data:`oasis_monai.transforms.spatial.SLICE_AXES`: it names the axes.
    """
    names = dict(zip("xyz", (WORLD_AXES[axis] for axis in SLICE_AXES[slice_axis]), strict=True))
    over = "turned back to front" if names["y"] == "long" else "upside down"

    def turn(degrees: int, axis: str, looks: str) -> View:
        name = f"turned by {degrees} degrees about the {names[axis]} axis"
        return View(name, turned(degrees, axis), (), ("turn",), looks)

    return (
        *SIZES,
        *(turn(degrees, "z", f"the scan looks turned in the plane of its slices: {_HEADER}") for degrees in (90, 180, 270)),
        turn(180, "y", f"the scan looks {over}: {_HEADER}"),
        *(turn(d, axis, f"the slices look as if cut in another direction: {_HEADER}") for axis in "xy" for d in (90, 270)),
        *(turn(degrees, "z", "the patient looks turned in the plane of the slices") for degrees in (-20, 20)),
        *INTENSITIES,
    )


@dataclass(frozen=True)
class Tried:
    """A view that was segmented, and the agreement of the parts there, 0 to 1."""

    view: View
    agreement: float


def rows_of(tried: Sequence[Tried]) -> list[dict[str, Any]]:
    """A row for each view that was segmented: its name, the agreement, and whether it was taken."""
    best = chosen(tried) if tried else None
    return [{"view": one.view.name or AS_IT_IS, "agreement": one.agreement, "taken": one is best} for one in tried]


@dataclass(frozen=True)
class AtlasVolumes:
    """How large the atlases have their structures on the working grid.

    Args:
        lowest, highest: (C-1,) voxels of each structure in the atlases that have it.
        always: (C-1,) bool, whether nearly every atlas has it.
        common: (2, C-1) between how many voxels :data:`COMMON` of the atlases that have it lie.
        grid: voxels of that grid; 0 where results are on no other.
        structures: the classes of each, where structures share voxels; the numbers above are then of K structures, not of C - 1.
    """

    lowest: np.ndarray
    highest: np.ndarray
    always: np.ndarray
    common: np.ndarray
    grid: int = 0
    structures: tuple[tuple[int, ...], ...] = ()

    @classmethod
    def of(cls, labels: torch.Tensor, classes: int, structures: tuple[tuple[int, ...], ...] = ()) -> AtlasVolumes:
        """Of (N, 1, x, y, z) labels."""
        counts = np.array([torch.bincount(label.flatten().int(), minlength=classes)[1:classes].numpy() for label in labels])
        counts = _of_structures(counts, structures)
        there = counts > 0
        lowest = np.where(there, counts, np.inf).min(0)
        own = [counts[has, index] for index, has in enumerate(there.T)]
        common = np.array([np.percentile(one, COMMON) if len(one) else (0, np.inf) for one in own]).reshape(-1, 2).T
        return cls(lowest, counts.max(0).astype(float), there.mean(0) >= ALWAYS, common, labels[0].numel(), structures)

    def voxels(self, probability: torch.Tensor) -> np.ndarray:
        """(C-1,) how large a result (C, x, y, z) has the structures, in voxels of the atlases' grid."""
        counts = torch.bincount(decide(probability).flatten().int(), minlength=len(probability))[1:]
        return _of_structures(counts.numpy(), self.structures) * (
            self.grid / probability[0].numel() if self.grid else 1.0
        )  # it may be on the fine grid

    def other_sizes(self, voxels: np.ndarray) -> list[View]:
        """In which sizes a scan would have the structures as most atlases have them, so many ``voxels`` were found of; none where
        they are of common size."""
        found, (low, high) = voxels > 0, self.common
        too_large, too_small = (found & (voxels > high)).any(), (found & (voxels < low)).any()
        return [*(SMALLER if too_large else ()), *(LARGER if too_small else ())]

    def agreement(self, dice: np.ndarray, voxels: np.ndarray, implausible: float = 0.0) -> float:
        """The mean agreement over the structures, 0 to 1.

        Args:
            dice: (C-1,) agreement on each structure.
            voxels: (C-1,) how large it was found, 0 where no part found any.
            implausible: what part of the agreement counts on a structure that is far smaller or larger than in the atlases.
        """
        plausible = (voxels >= self.lowest / SLACK) & (voxels <= self.highest * SLACK)
        counts = self.always | (voxels > 0)  # what not every atlas has may be absent
        values = (np.where(plausible, 1.0, implausible) * np.nan_to_num(dice))[counts]
        return float(values.mean()) if len(values) else 0.0


def _of_structures(counts: np.ndarray, structures: tuple[tuple[int, ...], ...]) -> np.ndarray:
    """Voxels (..., C-1) of the classes -> (..., K) of structures."""
    return counts @ membership(structures, counts.shape[-1] + 1)[:, 1:].numpy().T.astype(counts.dtype) if structures else counts


def networks_agreement(probabilities: torch.Tensor, atlases: AtlasVolumes) -> float:
    """How much two networks agree: (2, C, x, y, z) probabilities of one view."""
    one, other = (decide(probability).cpu() for probability in probabilities)
    classes = probabilities.shape[1]
    common, both = overlap_counts(one, other, classes, atlases.structures).numpy().T
    return atlases.agreement(common / np.maximum(both, 1), both / 2)


def result_agreement(counts: torch.Tensor, probability: torch.Tensor, atlases: AtlasVolumes, implausible: float = 0.0) -> float:
    """How much the parts of a result agree: the mean of networks and atlases.

    Args:
        counts: (2, C-1, 2) of :func:`.agreement.agreement`.
        probability: (C, x, y, z) of the result.
        implausible: see :meth:`AtlasVolumes.agreement`.
    """
    dice = overlaps(counts)
    compared = ~np.isnan(dice).all(0)
    means = dice[:, compared].mean(1) if compared.any() else np.zeros(len(dice))
    return atlases.agreement(means, atlases.voxels(probability), implausible)


@dataclass(frozen=True)
class ViewSettings:
    """For which scans other views are tried.

    Args:
        views: one of :data:`SEARCHES`.
        below: the agreement below which a scan is doubtful, 0 to 1.
        slice_axis: how the slices lie, which names the axes.
    """

    views: str = "doubtful"
    below: float = DOUBTFUL
    slice_axis: str = "axial"


@dataclass(frozen=True)
class ViewSearch:
    """Looks for the view of a scan in which the parts of a joint model agree.

    Args:
        settings: for which scans.
        atlases: how large their structures are.
        networks: scan -> (2, C, x, y, z) what the two networks make of it at a quick look, on the working grid.
        usual: the agreement that is usual on the model's own atlases; asked for where a scan falls below the limit.
    """

    settings: ViewSettings
    atlases: AtlasVolumes
    networks: Callable[[Preprocessed], torch.Tensor]
    usual: Callable[[], float] = lambda: 1.0

    def __call__(
        self, seen: Callable[[View], Preprocessed], segment: Callable[[View], float], untouched: float, voxels: np.ndarray
    ) -> tuple[Tried, ...]:
        """The scan as it is, then the views that were segmented; :func:`chosen` takes one. Empty where none was looked for.

        Args:
            seen: the preprocessed scan in a view.
            segment: the agreement of the result in a view.
            untouched: that of the scan as it is.
            voxels: (C-1,) how large its structures were found, see :meth:`AtlasVolumes.voxels`.
        """

        @functools.cache
        def look(view: View) -> float:
            there = seen(view)
            # no slice was lost, for example
            same = view.kinds == ("intensity",) and torch.equal(there.image, seen(UNCHANGED).image)
            return SAME if same else networks_agreement(self.networks(there), self.atlases)

        if not self._is_wanted(untouched, voxels, look):
            return ()
        finalists = coarse_to_fine(look, single_views(self.settings.slice_axis))
        return Tried(UNCHANGED, untouched), *(Tried(view, segment(view)) for view in finalists)

    def _is_wanted(self, untouched: float, voxels: np.ndarray, look: Callable[[View], float]) -> bool:
        """Whether other views are looked for, given the agreement on the scan as it is and the sizes of its structures."""
        if self.settings.views != "doubtful":
            return self.settings.views == "all"
        if untouched < self.settings.below:
            return untouched < self.usual() - BELOW_USUAL
        best = max(map(look, self.atlases.other_sizes(voxels)), default=0.0)
        return best >= self.settings.below and best > look(UNCHANGED) + OTHER_SIZE

    def voxels(self, results: Mapping[tuple[str, int], Any]) -> np.ndarray:
        """(C-1,) how large a scan's results have the structures, see :meth:`AtlasVolumes.voxels`."""
        key = self.judged(results)
        return np.zeros(len(self.atlases.lowest)) if key is None else self.atlases.voxels(results[key].probability)

    def judged(self, results: Mapping[tuple[str, int], Any]) -> tuple[str, int] | None:
        """The method and n whose result chooses the view for all: OASIS-joint where it is asked for, with the most atlases."""
        known = [key for key, result in results.items() if result.agreement is not None]
        return max(known, key=lambda key: (key[0] == "OASIS-joint", key[1]), default=None)

    def agreement(self, results: Mapping[tuple[str, int], Any], unchanged: bool = False) -> float:
        """How much the parts of a scan's results agree: the mean of networks and atlases, then of the structures; 0 to 1.

        Structures of a size that no atlas has count nothing in a view. On the scan ``unchanged`` they count half: it is in doubt,
        but may have such structures.
        """
        key = self.judged(results)
        if key is None:
            return 0.0
        implausible = UNUSUAL if unchanged else 0.0
        return result_agreement(results[key].agreement, results[key].probability, self.atlases, implausible)


def coarse_to_fine(look: Callable[[View], float], singles: Iterable[View]) -> list[View]:
    """The few views to segment, of those that show something: the best single one or combinations of it, and the best of the
    other single ones, so that not all of them rest on one guess.

    Args:
        look: the agreement at a quick look, 0 to 1; :data:`SAME` for a view that changes nothing.
        singles: the views to try first.
    """
    others = {view: look(view) for view in singles}
    first = max(others, key=lambda view: others[view])
    own, known = {first: others.pop(first)}, [first, *(view for view in others if others[view] > SAME)]
    if 0 < own[first] < CONVINCING:
        own |= {view: look(view) for view in _further(first, known) if view not in others}
    best = _ranked(own)[: FINALISTS - 1]
    return [*best, *_ranked(others)[: FINALISTS - len(best)]]


def _ranked(looked: Mapping[View, float]) -> list[View]:
    return sorted((view for view in looked if looked[view] > 0), key=lambda view: -_worth(view, looked[view]))


def _worth(view: View, agreement: float) -> float:
    """The agreement in a view, less for each further change: of two views that are as good the simpler one tells more."""
    return agreement - SIMPLER * max(0, len(view.kinds) - 1)


def _further(first: View, singles: Sequence[View]) -> list[View]:
    """The combinations of the best view with those of other kinds; also the sizes next to it, and of a turn of the slices' axis
    the turns about it."""
    others = [view for view in singles if view.kinds != first.kinds]
    if first.kinds == ("turn",) and first.matrix not in IN_PLANE:
        others += [view for view in singles if view.matrix in IN_PLANE]
    return [*map(first.with_view, others), *SIZES.get(first, ())]


def chosen(tried: Sequence[Tried]) -> Tried:
    """The view to take: of those in which the parts agree more by a margin than on the scan as it is, the first, the one in which
    they agree most."""
    better = [one for one in tried[1:] if one.agreement > tried[0].agreement + _margin(one.view)]
    return max(better, key=lambda one: _worth(one.view, one.agreement), default=tried[0])


def _margin(view: View) -> float:
    return SIZE_MARGIN if view.kinds == ("scale",) else MARGIN
