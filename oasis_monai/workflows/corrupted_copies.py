"""Segment and score corrupted copies of the test cases, from which the predicted Dice learns about failures."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from oasis_monai.atlases.features import Embedder, embedder
from oasis_monai.data.folds import SLICE, Fold
from oasis_monai.data.io import read_volume
from oasis_monai.data.types import Segmentation, Volume
from oasis_monai.segmentation.agreement import overlap_counts
from oasis_monai.segmentation.alignment import FieldCache
from oasis_monai.segmentation.methods import METHODS
from oasis_monai.segmentation.pipeline import CaseResult, Scan, segment_case
from oasis_monai.segmentation.result import Key
from oasis_monai.segmentation.segmenter import Segmenter
from oasis_monai.settings import Settings
from oasis_monai.transforms.corruptions import CORRUPTIONS, CORRUPTIONS_VERSION, draw_corruptions, shows_anything
from oasis_monai.utils.device import resolve_device
from oasis_monai.utils.errors import with_case_in_errors
from oasis_monai.utils.files import digest
from oasis_monai.workflows.fold_models import FoldModels, OpenModels
from oasis_monai.workflows.postprocessing import CrossPostprocessing
from oasis_monai.workflows.prepare import Dataset

Rows = list[tuple[dict[str, Any], torch.Tensor]]
"""Score rows with their ``corruption``, each with the counts of :func:`.agreement.agreement`."""


def methods_with_predicted_dice(settings: Settings) -> tuple[str, ...]:
    """The methods of the settings for which a Dice can be predicted."""
    alone = ("estimate",) if not settings.has_volume_network else ()  # a slice network alone has nothing to compare with
    return tuple(m for m in settings.atlas_methods if METHODS[m].predicts_dice and m not in alone)


def num_corrupted_copies(settings: Settings) -> int:
    """Number of corrupted copies of each test case in a cross-validation.

    It is 0 where no Dice is predicted, in a job of one fold (the prediction for a case needs the other folds), and under slice
    folds, where the neighbouring slices among the atlases would not be corrupted.
    """
    useful = settings.folds != SLICE and settings.fold is None and methods_with_predicted_dice(settings)
    return settings.corruptions if useful else 0


def segment_labelled(
    segmenter: Segmenter,
    volume: Volume,
    settings: Settings,
    embed: Embedder,
    methods: Sequence[str],
    fields: FieldCache | None = None,
    postprocess: Callable[[Key, Segmentation], Segmentation] = lambda _, result: result,
) -> tuple[CaseResult, dict[Key, Segmentation], dict[Key, list[float]]]:
    """Segment a labelled scan like one without a label, with no atlas of its own patient, and compute its Dice.

    Args:
        postprocess: what is done to a method's result on the scan's own grid.

    Returns:
        The results; the labels on the scan's own grid by method and n; and the Dice of every structure (NaN where it is in
        neither label).
    """
    if volume.label is None:
        raise ValueError(f"{volume.case}: expected a labelled scan")
    scan = Scan.of_volume(volume, settings.preprocessing)
    case_result = segment_case(segmenter, scan, embed, methods, settings.n, fields, segmenter.library.patient_of(volume.case))
    labels = {key: postprocess(key, one) for key, one in case_result.restore().items()}
    truth, classes = volume.label[0], len(settings.data.label_values)
    counts = {key: overlap_counts(one.label, truth, classes, settings.data.members).tolist() for key, one in labels.items()}
    dice = {key: [float(common / both) if both else math.nan for common, both in own] for key, own in counts.items()}
    return case_result, labels, dice


def corrupted_rows(
    settings: Settings,
    dataset: Dataset,
    folds: Sequence[Fold],
    trained: OpenModels,
    models: FoldModels,
    postprocessing: CrossPostprocessing,
) -> Rows:
    """Score rows of the corrupted copies of every case, each segmented by the model of the fold that tests it."""
    from tqdm import tqdm

    rows, count = Rows(), num_corrupted_copies(settings)
    if not count:
        return rows
    embed = embedder(settings.features.name, settings.features.weights, resolve_device(settings.device))
    testing = {case: fold for fold in folds for case in fold.test}
    in_folds = sorted(testing, key=lambda case: (testing[case].index, case))  # one fold's model after the other
    for case in tqdm(in_folds, desc="corrupted copies", disable=not settings.progress, leave=False):
        fold = testing[case]
        segmenter = trained[fold].segmenter
        assert segmenter is not None
        postprocess = functools.partial(postprocessing.apply, fold)
        with with_case_in_errors(case):
            rows += _rows_of(settings, dataset, case, fold, segmenter, embed, models.fields(fold, case), postprocess)
    return sorted(rows, key=lambda row: str(row[0]["case"]))


def _rows_of(
    settings: Settings,
    dataset: Dataset,
    case: str,
    fold: Fold,
    segmenter: Segmenter,
    embed: Embedder,
    uncorrupted_fields: FieldCache | None,
    postprocess: Callable[[Key, Segmentation], Segmentation],
) -> Rows:
    """Those of the copies of one case."""
    rows, methods = Rows(), methods_with_predicted_dice(settings)
    volume = read_volume(dataset.cases[case], settings.data.label_values, settings.data.ignore)
    for name, seed in draw_corruptions(case, num_corrupted_copies(settings), settings.seed):
        copy = CORRUPTIONS[name](volume, seed)
        if not shows_anything(copy):
            continue
        fields = uncorrupted_fields and FieldCache(
            uncorrupted_fields.folder, digest([uncorrupted_fields.key, name, seed, CORRUPTIONS_VERSION])
        )
        case_result, _, dice = segment_labelled(segmenter, copy, settings, embed, methods, fields, postprocess)
        about = {"protocol": settings.folds, "fold": fold.index, "case": case, "corruption": name, "region": "whole"}
        about |= {"patient": dataset.cases[case].patient, "centre": dataset.cases[case].centre}
        for key, result in case_result.results.items():
            if result.agreement is not None:
                own = {**about, "method": key[0], "n": key[1]}
                scored = zip(settings.data.scored, dice[key], strict=True)
                rows += [({**own, "label": label, "dsc": one}, result.agreement) for label, one in scored]
    return rows
