"""The steps from a scan to its label: preprocess, estimate, recentre, select, align, weigh, fuse, restore.

Where the parts of a joint model disagree, the same steps are taken in other views of the scan (:mod:`.views`).
Cross-validation, corrupted copies, ``segment``, the bundle and the Python library all use these functions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch

from oasis_monai.atlases.features import Embedder, target_features
from oasis_monai.data.types import Geometry, Preprocessed, Segmentation, Selection, Volume
from oasis_monai.segmentation.alignment import FieldCache
from oasis_monai.segmentation.boxes import BoxResult, restore_boxes
from oasis_monai.segmentation.estimate import Estimate
from oasis_monai.segmentation.methods import (
    ESTIMATE,
    INTERPOLATION,
    USUAL_ATLASES,
    check_methods,
    methods_that_need,
    needs_atlases,
    result_keys,
    uses_estimate,
)
from oasis_monai.segmentation.recentre import NO_OFFSET, Offset, recentre
from oasis_monai.segmentation.result import Key, Result
from oasis_monai.segmentation.segmenter import Segmenter
from oasis_monai.segmentation.uncertainty import restore_uncertainty
from oasis_monai.segmentation.views import Tried, ViewSearch, chosen
from oasis_monai.transforms.boxes import Box, images_in_boxes
from oasis_monai.transforms.preprocessing import Preprocessing, restore_all
from oasis_monai.transforms.views import UNCHANGED, View
from oasis_monai.utils.errors import ConfigError


@dataclass(frozen=True)
class Scan:
    """A scan to segment, on the working grid round its centre.

    Args:
        target: the preprocessed scan, without a label.
        preprocess_at: the same scan on a grid moved by so many voxels, in a view; None where the grid has to stay.
        features: (T, F) of the target, where they are known.
        in_boxes: the scan in boxes of its working grid moved by so many voxels, in a view
            (:func:`oasis_monai.transforms.boxes.images_in_boxes`); None: it is not looked at again.
    """

    target: Preprocessed
    preprocess_at: Callable[[Offset, View], Preprocessed] | None = None
    features: torch.Tensor | None = None
    in_boxes: Callable[[Sequence[Box], Offset, View], Sequence[torch.Tensor]] | None = None

    @classmethod
    def of_volume(cls, volume: Volume, preprocessing: Preprocessing) -> Scan:
        """A scan in memory; its label, if any, is dropped."""
        bare = replace(volume, label=None)
        return cls(
            preprocessing.apply(bare),
            lambda offset, view: preprocessing.apply(bare, offset, view),
            in_boxes=lambda boxes, offset, view: images_in_boxes(preprocessing, bare, boxes, offset, view),
        )

    def seen(self, view: View) -> Preprocessed:
        """The scan in a view, on the grid round its centre."""
        if not view:
            return self.target
        if self.preprocess_at is None:
            raise ValueError(f"{self.target.case}: a grid that has to stay shows no other view")
        return self.preprocess_at(NO_OFFSET, view)


class UsedAtlas(NamedTuple):
    """An atlas selected for an image: its case, its slice (-1 for a volume) and its feature distance."""

    case: str
    slice: int
    distance: float


@dataclass
class CaseResult:
    """The results of all methods for one scan.

    Args:
        target: the preprocessed scan; if the grid was moved, or in another view, as methods with an estimate saw it.
        offset: by how many voxels the grid was moved.
        results: by method and n, on the working grids, or on the fine ones where there are any.
        grids: the grid of each result.
        selection: the atlases selected, as rows of the segmenter's library.
        atlases: the same by name, for every image of the target (1, or its slices), nearest first.
        fields: (T, n, D, *s) of the atlases, or None.
        unchanged: the preprocessed scan as it is, round its centre; None where that is the target.
        tried: the views of the scan that were segmented, the scan as it is first; empty where none was looked for.
        view: the one that was taken.
        coarse: (V, C, x, y, z) what the networks say on the working grid, where boxes may be laid from it.
        boxes: what the box network says, which counts for ``estimate`` and ``OASIS-joint``; empty where nothing was likely, None
            where the model does not look again.
    """

    target: Preprocessed
    offset: Offset
    results: dict[Key, Result]
    grids: dict[Key, Geometry]
    selection: Selection | None = None
    atlases: list[list[UsedAtlas]] = field(default_factory=list)
    fields: torch.Tensor | None = None
    unchanged: Preprocessed | None = None
    tried: tuple[Tried, ...] = ()
    view: View = UNCHANGED
    coarse: torch.Tensor | None = None
    boxes: tuple[BoxResult, ...] | None = None

    def restore(self, keep_probability: bool = False) -> dict[Key, Segmentation]:
        """Every result as a label (and probability) on the scan's own grid."""
        made: dict[Key, Segmentation] = {}
        for grid in {id(grid): grid for grid in self.grids.values()}.values():
            keys = [key for key in self.results if self.grids[key] is grid]
            maps = [self.results[key].probability for key in keys]
            restored = restore_all(maps, grid, self.target.native, keep_probability, self.target.case)
            made |= zip(keys, restored, strict=True)
        for key in made:
            if self.boxes and methods_that_need(ESTIMATE, [key[0]]):
                made[key] = restore_boxes(made[key], self.boxes)
        return {key: made[key] for key in self.results}

    def uncertainty(self, key: Key) -> torch.Tensor:
        """(x, y, z) float32, 0 to 1: where a result is uncertain, on the scan's own grid; see :mod:`.uncertainty`."""
        return restore_uncertainty(self.results[key].uncertain, self.grids[key], self.target.native)


def segment_case(
    segmenter: Segmenter,
    scan: Scan,
    embed: Embedder,
    methods: Sequence[str],
    ns: Sequence[int],
    fields: FieldCache | None = None,
    exclude_patient: str | None = None,
    only: torch.Tensor | None = None,
    keep_opinions: bool = False,
) -> CaseResult:
    """Segment one scan by every method at every number of atlases.

    Where a joint model finds the structures farther out than in every atlas, the methods with an estimate see the scan on a
    grid that is moved there (:mod:`.recentre`); the others stay round the scan's centre. Where its parts disagree, the methods
    with an estimate see the scan in the view in which they agree most (:mod:`.views`); the others see it as it is.

    Args:
        segmenter: the model.
        scan: the scan.
        embed: gives the features of the target, as those of the atlases.
        methods, ns: names of :data:`.METHODS`, and numbers of atlases.
        fields: where fields of this scan are kept.
        exclude_patient: no atlas of this person is taken.
        only: (m,) the slices to segment, for folds over slices.
        keep_opinions: keep what ``OASIS-joint`` is fused of, see :class:`.Result`.
    """
    asked = _Asked(segmenter, scan, embed, tuple(methods), tuple(ns), fields, exclude_patient, only, keep_opinions)
    result = asked.in_view(UNCHANGED, methods)
    search = segmenter.view_search
    if search is not None and scan.preprocess_at is not None and uses_estimate(methods):
        result = asked.in_best_view(result, search)
    return asked.with_boxes(result)


@dataclass(frozen=True)
class _Asked:
    """The arguments of :func:`segment_case`."""

    segmenter: Segmenter
    scan: Scan
    embed: Embedder
    methods: tuple[str, ...]
    ns: tuple[int, ...]
    fields: FieldCache | None
    exclude_patient: str | None
    only: torch.Tensor | None
    keep_opinions: bool

    def in_view(self, view: View, methods: Sequence[str]) -> CaseResult:
        """The results of some methods in one view of the scan."""
        segmenter, scan, ns = self.segmenter, self.scan, self.ns
        target = scan.seen(view)
        seen, offset, known, preprocess_at = target, NO_OFFSET, None, scan.preprocess_at
        if segmenter.atlas_positions is not None and preprocess_at is not None and uses_estimate(methods):
            image, looked = torch.arange(1), list[tuple[torch.Tensor, Estimate]]()

            def look(one: Preprocessed) -> torch.Tensor:
                if one.fine is not None:
                    looked.clear()  # of a large scan two estimates on the fine grid would not fit
                estimate = segmenter.estimate(one, image)
                looked.append((estimate.networks[0], estimate))
                return looked[-1][0]

            seen, found, offset = recentre(segmenter.atlas_positions, target, look, lambda move: preprocess_at(move, view))
            held = [estimate for probabilities, estimate in looked if probabilities is found]
            looked.clear()
            known = held.pop() if held else segmenter.estimate(seen, image)  # the same once more where another was seen since
        if known is None and self.looks_again:
            known = segmenter.estimate(seen, torch.arange(1), self.exclude_patient)
        moved = any(offset)
        following = [m for m in methods if not moved or uses_estimate([m])]
        cache = self.fields.seen(view, offset) if self.fields is not None else None
        features, exclude = self._features(seen), self.exclude_patient
        results, selection, aligned = segmenter(
            seen, features, following, ns, cache, exclude, self.only, known, self.keep_opinions
        )
        grids = _grids(results, seen)
        staying = [m for m in methods if m not in following]
        if staying:  # with other atlases than those reported
            still = segmenter(target, self._features(target), staying, ns, None, exclude, self.only).results
            results |= {key: result._replace(weights=None) for key, result in still.items()}
            grids |= _grids(still, target)
        ordered = {key: results[key] for key in result_keys(methods, ns)}
        unchanged = None if seen is scan.target else scan.target
        coarse = known.networks[0] if known is not None and self.looks_again else None
        used = self._used(selection)
        return CaseResult(seen, offset, ordered, grids, selection, used, aligned, unchanged, view=view, coarse=coarse)

    @property
    def looks_again(self) -> bool:
        """Whether the model looks again in boxes, can do so of this scan, and a method is asked for that takes part."""
        wanted = methods_that_need(ESTIMATE, self.methods)
        return bool(wanted) and self.segmenter.boxes is not None and self.scan.in_boxes is not None

    def with_boxes(self, result: CaseResult) -> CaseResult:
        """The result, looked at again in boxes round what was found."""
        look, coarse, in_boxes = self.segmenter.boxes, result.coarse, self.scan.in_boxes
        if look is None or coarse is None or in_boxes is None:
            return result
        made = look(coarse, result.target.geometry, lambda boxes: in_boxes(boxes, result.offset, result.view))
        return replace(result, coarse=None, boxes=made)

    def in_best_view(self, untouched: CaseResult, search: ViewSearch) -> CaseResult:
        """The results in the view in which the parts agree most; of methods without an estimate, those of the scan as it is."""
        methods = [m for m in self.methods if uses_estimate([m])]
        before = search.agreement(untouched.results, unchanged=True)
        so_far, kept = [Tried(UNCHANGED, before)], list[CaseResult]()

        def segment(view: View) -> float:
            made = self.in_view(view, methods)
            so_far.append(Tried(view, search.agreement(made.results)))
            if chosen(so_far) is so_far[-1]:  # no other result is held: of a large scan they would fill the memory
                kept[:] = [made]
            return so_far[-1].agreement

        tried = search(self.scan.seen, segment, before, search.voxels(untouched.results))
        if not tried or not chosen(tried).view:
            return replace(untouched, tried=tried)
        (found,) = kept
        results = {k: found.results.get(k) or own._replace(weights=None) for k, own in untouched.results.items()}
        grids = {key: found.grids.get(key) or grid for key, grid in untouched.grids.items()}
        return replace(found, results=results, grids=grids, tried=tried)

    def _features(self, one: Preprocessed) -> torch.Tensor:
        known = self.scan.features if one is self.scan.target else None
        return target_features(one, self.segmenter.spatial_dims, self.embed) if known is None else known

    def _used(self, selection: Selection) -> list[list[UsedAtlas]]:
        library = self.segmenter.library
        return [
            [
                UsedAtlas(library.cases[row], int(library.slices[row]), distance)
                for row, distance in zip(rows, distances, strict=True)
            ]
            for rows, distances in zip(selection.indices.tolist(), selection.distances.tolist(), strict=True)
        ]


def _grids(results: Mapping[Key, Result], seen: Preprocessed) -> dict[Key, Geometry]:
    """The grid of each result: the working or the fine one."""
    return {key: seen.grid_of(result.probability.shape[1:]) for key, result in results.items()}


@torch.inference_mode()  # inference tensors cannot be changed outside it
def merge_slices(parts: Sequence[tuple[CaseResult, torch.Tensor | None]]) -> CaseResult:
    """The results of one scan from those of several folds, each of some of its slices.

    Args:
        parts: each result with its (m,) slices; None for all. Together they contain every slice once.
    """
    first, _ = parts[0]
    if len(parts) == 1:
        return first
    slices = torch.cat([only for _, only in parts if only is not None])
    order = slices.argsort()
    results = {}
    for key, whole in first.results.items():
        found = [part.results[key] for part, _ in parts]
        for (_, only), result in zip(parts[1:], found[1:], strict=True):
            whole.probability[..., only] = result.probability[..., only]
            if whole.uncertainty is not None and result.uncertainty is not None:
                whole.uncertainty[..., only] = result.uncertainty[..., only]
        weights = [result.weights for result in found if result.weights is not None]
        counts = [result.agreement for result in found if result.agreement is not None]
        results[key] = Result(
            whole.probability,
            torch.cat(weights)[order] if weights else None,
            torch.stack(counts).sum(0) if counts else None,
            whole.uncertainty,
        )
    rows = [row for part, _ in parts for row in part.atlases]
    atlases = [rows[i] for i in order.tolist()] if rows else []
    return replace(first, results=results, atlases=atlases, selection=None, fields=None)


def number_of_atlases(segmenter: Segmenter, n: int | None) -> int:
    """``n``, or where nobody says it :data:`.USUAL_ATLASES`, or all where there are fewer."""
    return min(USUAL_ATLASES, len(segmenter.library)) if n is None else n


def check_choice(segmenter: Segmenter, method: str | None, n: int) -> str:
    """Check that a model can run a method with n atlases; returns the method (for None the model's default).

    Raises:
        ConfigError: it cannot.
    """
    if method is None:
        method = "OASIS" if segmenter.estimator is None else "OASIS-joint"
    check_methods([method])
    if method == INTERPOLATION:
        raise ConfigError("methods", "a method for new scans", method, "it needs labelled slices of the scan: folds=slice")
    if methods_that_need(ESTIMATE, [method]) and segmenter.estimator is None:
        raise ConfigError("methods", "a method that needs no joint model", method, "add methods=OASIS")
    if needs_atlases([method]) and not 1 <= n <= len(segmenter.library):
        raise ConfigError("n", f"1 to {len(segmenter.library)}, the model's atlases", n)
    return method
