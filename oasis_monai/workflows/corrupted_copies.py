"""Corrupted copies of a cross-validation's test cases, segmented and scored: what the predicted DSC learns failures from."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from oasis_monai.atlases.features import Embedder, embedder, target_features
from oasis_monai.data.folds import Fold
from oasis_monai.data.io import read_volume
from oasis_monai.data.types import Preprocessed, Segmentation, Selection, Volume
from oasis_monai.segmentation.agreement import overlap_counts
from oasis_monai.segmentation.alignment import FieldCache
from oasis_monai.segmentation.methods import INTERPOLATION
from oasis_monai.segmentation.recentre import STAY
from oasis_monai.segmentation.segmenter import Result, Segmenter
from oasis_monai.settings import Settings
from oasis_monai.transforms.corruptions import CORRUPTIONS, CORRUPTIONS_VERSION, drawn, left
from oasis_monai.transforms.preprocessing import restore_all
from oasis_monai.utils.device import resolve_device
from oasis_monai.utils.errors import with_case_in_errors
from oasis_monai.utils.files import digest
from oasis_monai.workflows.fold_models import STM, FoldModel, FoldModels
from oasis_monai.workflows.prepare import Dataset

Rows = list[tuple[dict[str, Any], torch.Tensor]]
"""Score rows with their ``corruption``, each with the counts of :func:`oasis_monai.segmentation.agreement.agreement`."""
Key = tuple[str, int]
WITHOUT_PREDICTED_DICE = ("FwoW", "STAPLE", INTERPOLATION)
"""Methods whose parts are not compared, so that nothing is predicted of them."""


def methods_with_predicted_dice(settings: Settings) -> tuple[str, ...]:
    """Those of the methods whose parts are compared."""
    alone = ("estimate",) if not settings.has_volume_network else ()  # a slice network with nobody to disagree with
    return tuple(m for m in settings.atlas_methods if m not in (*WITHOUT_PREDICTED_DICE, *alone))


def copies(settings: Settings) -> int:
    """Corrupted copies of each test case that a cross-validation makes. None where nothing is predicted: of methods that are not
    told, in a job of one fold (a case is predicted from the other folds), and under slice folds, where a scan's neighbouring
    slices would be as they were."""
    useful = settings.folds == "patient" and settings.fold is None and methods_with_predicted_dice(settings)
    return settings.corruptions if useful else 0


@dataclass(frozen=True)
class Segmented:
    """A labelled scan, segmented as one without a label would be.

    Args:
        target: what the methods saw.
        chosen: the atlases.
        results, labels, dsc: by method and n; labels on the scan's own grid, DSC per structure (NaN where neither has it).
    """

    target: Preprocessed
    chosen: Selection
    results: dict[Key, Result]
    labels: dict[Key, Segmentation]
    dsc: dict[Key, list[float]]


def segment_labelled(
    settings: Settings,
    segmenter: Segmenter,
    embed: Embedder,
    volume: Volume,
    methods: Sequence[str],
    fields: FieldCache | None = None,
) -> Segmented:
    """Preprocess, segment and score a labelled scan; no atlas of its own case is taken."""
    assert volume.label is not None
    again = settings.preprocessing.elsewhere(lambda: replace(volume, label=None))
    target, voices, moved = segmenter.follow(again(STAY), methods, again)
    features = target_features(target, settings.spatial_dims, embed)
    kept = fields.moved(moved) if fields is not None else None
    results, chosen = segmenter(target, features, methods, settings.n, kept, volume.case, voices=voices)
    restored = restore_all([r.probability for r in results.values()], target.geometry, target.native, False, volume.case)
    labels = dict(zip(results, restored, strict=True))
    truth, classes = volume.label[0], len(settings.data.label_values)
    dsc = {
        key: [float(common / both) if both else math.nan for common, both in overlap_counts(found.label, truth, classes).tolist()]
        for key, found in labels.items()
    }
    return Segmented(target, chosen, results, labels, dsc)


def corrupted_rows(
    settings: Settings, prepared: Dataset, folds: Sequence[Fold], made: Mapping[int, FoldModel], models: FoldModels
) -> Rows:
    """Rows of :func:`copies` of every case, each segmented by the model of the fold that tests it."""
    from tqdm import tqdm

    rows, count = Rows(), copies(settings)
    if not count:
        return rows
    embed = embedder(settings.features.name, settings.features.weights, resolve_device(settings.device))
    methods = methods_with_predicted_dice(settings)
    testing = {case: fold for fold in folds for case in fold.test}
    for case in tqdm(sorted(testing), desc="corrupted copies", disable=not settings.progress):
        fold = testing[case]
        segmenter = made[fold.index].segmenter
        assert segmenter is not None
        with with_case_in_errors(case):
            volume = read_volume(prepared.cases[case], settings.data.label_values)
            for name, seed in drawn(case, count, settings.seed):
                copy = CORRUPTIONS[name](volume, seed)
                if not left(copy):
                    continue
                fields = None
                if STM in models.needed():
                    kept = models.fields(fold, case)
                    fields = FieldCache(kept.folder, digest([kept.key, name, seed, CORRUPTIONS_VERSION]))
                found = segment_labelled(settings, segmenter, embed, copy, methods, fields)
                about = {"protocol": "patient", "fold": fold.index, "case": case, "corruption": name, "region": "whole"}
                for key, result in found.results.items():
                    if result.agreement is not None:
                        own = {**about, "method": key[0], "n": key[1]}
                        scored = zip(settings.data.labels, found.dsc[key], strict=True)
                        rows += [({**own, "label": label, "dsc": dsc}, result.agreement) for label, dsc in scored]
    return rows
