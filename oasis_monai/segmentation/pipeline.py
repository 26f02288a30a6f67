"""The steps from a scan to its label: preprocess, estimate, recentre, select, align, weigh, fuse, restore.

Cross-validation, corrupted copies, ``segment``, the bundle and the Python library all use these functions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch

from oasis_monai.atlases.features import Embedder, target_features
from oasis_monai.data.types import Geometry, Preprocessed, Segmentation, Selection, Volume
from oasis_monai.segmentation.alignment import FieldCache
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
from oasis_monai.segmentation.segmenter import Key, Result, Segmenter
from oasis_monai.transforms.preprocessing import Preprocessing, restore_all
from oasis_monai.utils.errors import ConfigError


@dataclass(frozen=True)
class Scan:
    """A scan to segment, on the working grid round its centre.

    Args:
        target: the preprocessed scan, without a label.
        preprocess_at: the same scan on a grid moved by so many voxels; None where the grid has to stay.
        features: (T, F) of the target, where they are known.
    """

    target: Preprocessed
    preprocess_at: Callable[[Offset], Preprocessed] | None = None
    features: torch.Tensor | None = None

    @classmethod
    def of_volume(cls, volume: Volume, preprocessing: Preprocessing) -> Scan:
        """A scan in memory; its label, if any, is dropped."""
        bare = replace(volume, label=None)
        return cls(preprocessing.apply(bare), lambda offset: preprocessing.apply(bare, offset))


class UsedAtlas(NamedTuple):
    """An atlas selected for an image: its case, its slice (-1 for a volume) and its feature distance."""

    case: str
    slice: int
    distance: float


@dataclass
class CaseResult:
    """The results of all methods for one scan.

    Args:
        target: the preprocessed scan; if the grid was moved, on the moved grid that methods with an estimate used.
        offset: by how many voxels the grid was moved.
        results: by method and n, on the working grids.
        grids: the working grid of each result.
        selection: the atlases selected, as rows of the segmenter's library.
        atlases: the same by name, for every image of the target (1, or its slices), nearest first.
        fields: (T, n, D, *s) of the atlases, or None.
    """

    target: Preprocessed
    offset: Offset
    results: dict[Key, Result]
    grids: dict[Key, Geometry]
    selection: Selection | None = None
    atlases: list[list[UsedAtlas]] = field(default_factory=list)
    fields: torch.Tensor | None = None

    def restore(self, keep_probability: bool = False) -> dict[Key, Segmentation]:
        """Every result as a label (and probability) on the scan's own grid."""
        made: dict[Key, Segmentation] = {}
        for grid in {id(grid): grid for grid in self.grids.values()}.values():
            keys = [key for key in self.results if self.grids[key] is grid]
            maps = [self.results[key].probability for key in keys]
            restored = restore_all(maps, grid, self.target.native, keep_probability, self.target.case)
            made |= zip(keys, restored, strict=True)
        return {key: made[key] for key in self.results}


def segment_case(
    segmenter: Segmenter,
    scan: Scan,
    embed: Embedder,
    methods: Sequence[str],
    ns: Sequence[int],
    fields: FieldCache | None = None,
    exclude_patient: str | None = None,
    only: torch.Tensor | None = None,
) -> CaseResult:
    """Segment one scan by every method at every number of atlases.

    Where a joint model finds the structures farther out than in every atlas, the methods with an estimate see the scan on a
    grid that is moved there (:mod:`.recentre`); the others stay round the scan's centre.

    Args:
        segmenter: the model.
        scan: the scan.
        embed: gives the features of the target, as those of the atlases.
        methods, ns: names of :data:`.METHODS`, and numbers of atlases.
        fields: where fields of this scan are kept.
        exclude_patient: no atlas of this person is taken.
        only: (m,) the slices to segment, for folds over slices.
    """
    target, seen, offset, probabilities = scan.target, scan.target, NO_OFFSET, None
    if segmenter.atlas_positions is not None and scan.preprocess_at is not None and uses_estimate(methods):
        image = torch.arange(1)
        seen, found, offset = recentre(
            segmenter.atlas_positions, target, lambda one: segmenter.estimate(one, image)[0], scan.preprocess_at
        )
        probabilities = found[None]
    moved = any(offset)

    def features_of(one: Preprocessed) -> torch.Tensor:
        known = scan.features if one is target else None
        return target_features(one, segmenter.spatial_dims, embed) if known is None else known

    following = [m for m in methods if not moved or uses_estimate([m])]
    cache = fields.moved(offset) if fields is not None else None
    results, selection, aligned = segmenter(seen, features_of(seen), following, ns, cache, exclude_patient, only, probabilities)
    grids = dict.fromkeys(results, seen.geometry)
    staying = [m for m in methods if m not in following]
    if staying:  # with other atlases than those reported
        still = segmenter(target, features_of(target), staying, ns, None, exclude_patient, only).results
        results |= {key: result._replace(weights=None) for key, result in still.items()}
        grids |= dict.fromkeys(still, target.geometry)
    library = segmenter.library
    atlases = [
        [UsedAtlas(library.cases[row], int(library.slices[row]), distance) for row, distance in zip(rows, distances, strict=True)]
        for rows, distances in zip(selection.indices.tolist(), selection.distances.tolist(), strict=True)
    ]
    ordered = {key: results[key] for key in result_keys(methods, ns)}
    return CaseResult(seen, offset, ordered, grids, selection, atlases, aligned)


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
        weights = [result.weights for result in found if result.weights is not None]
        counts = [result.agreement for result in found if result.agreement is not None]
        results[key] = Result(
            whole.probability,
            torch.cat(weights)[order] if weights else None,
            torch.stack(counts).sum(0) if counts else None,
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
