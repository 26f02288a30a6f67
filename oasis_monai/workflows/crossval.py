"""Cross-validation: folds -> fold models -> rows of scores. Owns the rule that nothing of a target's label reaches ``segment``.

Everything that takes time is kept under ``cache`` by what it depends on: preprocessed cases, features, fold models (never
keyed by n), fields of every (target, atlas) pair, LOA pairs. A run that is started again therefore goes on where it was, and a
sweep over n pays for training and alignment once.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from oasis_monai.atlases.features import embedder, target_features
from oasis_monai.data.folds import Fold, Split, patient_groups
from oasis_monai.data.io import read_volume
from oasis_monai.data.types import Case, Geometry, Preprocessed, Segmentation, Selection, Volume
from oasis_monai.evaluation.metrics import score_case
from oasis_monai.evaluation.quality_tables import (
    keep_calibrations,
    quality_rows,
    quality_text,
    read_quality,
    write_calibrations,
    write_quality,
)
from oasis_monai.evaluation.scores import read_scores, summarise, write_scores, write_summary
from oasis_monai.segmentation.alignment import FieldCache
from oasis_monai.segmentation.methods import needs_estimate, result_keys
from oasis_monai.segmentation.segmenter import Result, Segmenter
from oasis_monai.settings import Settings
from oasis_monai.transforms.preprocessing import restore_all
from oasis_monai.utils.device import resolve_device
from oasis_monai.utils.errors import with_case_in_errors
from oasis_monai.utils.files import write_json
from oasis_monai.workflows.case_pictures import Key, browse, draw_overlays, forget_others, keep_label
from oasis_monai.workflows.corrupted_copies import Rows, corrupted_rows
from oasis_monai.workflows.fold_models import STM, FoldModel, FoldModels, calibration_path, train_ahead
from oasis_monai.workflows.prepare import Dataset, Log, find_and_check, prepare, split_of
from oasis_monai.workflows.run_record import Clock, run_record


def crossval(settings: Settings, run_dir: Path, log: Log = print) -> Path:
    """Run the folds asked for and write ``scores.csv``, ``summary.csv``, ``split.json``, ``run.json``, pictures, what the page's
    case browser shows, and segmentations into ``run_dir``.

    Under slice folds a case is scored in 3D once *all* folds that hold its slices have their models; a job that runs one fold of
    a sweep trains it, and the job that finds the others finished scores every case.

    Returns:
        The path of ``scores.csv``.
    """
    resolve_device(settings.device)  # an absent GPU is told at once
    cache, clock = Path(settings.cache), Clock()
    run_dir.mkdir(parents=True, exist_ok=True)
    with clock("check and read"):
        cases = find_and_check(settings, cache, log)
        prepared = prepare(settings, cases, cache, log)
    split = split_of(settings, prepared)
    write_json(run_dir / "split.json", split.to_json())
    models = FoldModels(settings, prepared, split, cache, log)
    wanted = [fold for fold in split.folds if settings.fold in (None, fold.index)]
    made: dict[int, FoldModel] = {}
    with clock("train"):
        if settings.workers > 1:
            jobs = [(settings, fold.index, name) for fold in wanted for name in models.missing(fold)]
            train_ahead(jobs, settings.workers, log)
        for fold in wanted:
            made[fold.index] = models.model(fold)
    if split.protocol == "slice" and models.needed():
        others = [fold.index for fold in split.folds if fold not in wanted and models.missing(fold)]
        if others:
            log(f"folds {others} have no model yet: slice folds are scored in 3D by the job that finds all of them trained")
            wanted = []
    if split.protocol == "slice" and wanted:
        for fold in split.folds:
            if fold.index not in made:
                made[fold.index] = models.model(fold)
        wanted = list(split.folds)
    with _pairs_kept(made):
        rows, shown, agreements = _score_folds(settings, prepared, split, wanted, made, models, run_dir, clock)
        write_scores(run_dir / "scores.csv", rows)
        for name in ("summary.csv", "quality.csv", "calibration.json"):  # of the scores that were there; not every run has all
            (run_dir / name).unlink(missing_ok=True)
        if rows:
            write_summary(run_dir / "summary.csv", summarise(read_scores(run_dir / "scores.csv")))
            with clock("pictures"):
                drawn = draw_overlays(settings, prepared, rows, shown, run_dir)
                forget_others(settings, run_dir, rows, drawn)
            with clock("corrupted copies"):
                corrupted = corrupted_rows(settings, prepared, wanted, made, models)
            _predict_quality(settings, prepared, split, rows, agreements, corrupted, run_dir, log)
    write_json(run_dir / "run.json", run_record("crossval", settings, split, len(cases), clock.seconds))
    return run_dir / "scores.csv"


@contextlib.contextmanager
def _pairs_kept(made: Mapping[int, FoldModel]) -> Iterator[None]:
    """Write the LOA pairs that were aligned within it, however it ends."""
    try:
        yield
    finally:
        for model in made.values():
            if model.segmenter is not None and model.segmenter.loa is not None:
                model.segmenter.loa.save()


@dataclass
class _Fused:
    """What a case's folds have made of it so far. A patient is one fold's; slices of one case may be several folds'.

    probability, weights: per method and n; weights hold one list per image of the case (slices), empty where not yet known.
    agreement: overlap counts of the parts of each result, summed over its images (:func:`.agreement`).
    atlases: per image, [case, slice, distance] of the atlases chosen, nearest first.
    grids: the working grid of each map where it was moved (:mod:`oasis_monai.segmentation.recentre`).
    """

    images: int
    probability: dict[Key, torch.Tensor] = field(default_factory=dict)
    weights: dict[Key, list[list[float]]] = field(default_factory=dict)
    agreement: dict[Key, torch.Tensor] = field(default_factory=dict)
    atlases: list[list[list[Any]]] = field(default_factory=list)
    grids: dict[Key, Geometry] = field(default_factory=dict)

    def add(self, results: Mapping[Key, Result], only: torch.Tensor | None) -> None:
        """Take in the images ``only`` (all when None) of a fold's results."""
        which = range(self.images) if only is None else only.tolist()
        for key, result in results.items():
            self.probability[key] = _merge(self.probability.get(key), result.probability, only)
            if result.agreement is not None:
                before = self.agreement.get(key)
                self.agreement[key] = result.agreement if before is None else before + result.agreement
            if result.weights is not None:
                mine = self.weights.setdefault(key, [[] for _ in range(self.images)])
                for image, row in zip(which, result.weights.tolist(), strict=True):
                    mine[image] = [round(w, 4) for w in row]


def _score_folds(
    settings: Settings,
    prepared: Dataset,
    split: Split,
    folds: list[Fold],
    made: Mapping[int, FoldModel],
    models: FoldModels,
    run_dir: Path,
    clock: Clock,
) -> tuple[list[dict[str, Any]], dict[tuple[str, str, int], bytes], dict[tuple[str, str, int], torch.Tensor]]:
    """Segment and score every case of ``folds``; -> rows, and of each (case, method, n) the label and what its parts think of
    each other."""
    from tqdm import tqdm

    rows: list[dict[str, Any]] = []
    kept: dict[tuple[str, str, int], bytes] = {}
    agreements: dict[tuple[str, str, int], torch.Tensor] = {}
    tested = {case for fold in folds for case in fold.test}
    for case in tqdm(sorted(tested), desc="segment", disable=not settings.progress):
        with clock("segment"), with_case_in_errors(case):
            own = next(fold for fold in folds if case in fold.test)
            fold_index = own.index if split.protocol == "patient" else -1
            fused = _segment(settings, prepared, split, folds, made, models, case)
        agreements |= {(case, *key): counts for key, counts in fused.agreement.items()}
        with clock("score"), with_case_in_errors(case):
            target = prepared.targets[case]
            volume = _native(settings, prepared.cases[case])
            assert volume.label is not None
            image, reference = volume.image[0].numpy(), volume.label[0].numpy()
            labels: dict[Key, Segmentation] = {}
            for moved in (False, True):
                keys = [key for key in fused.probability if (key in fused.grids) is moved]
                maps = [fused.probability[key] for key in keys]
                grid = fused.grids[keys[0]] if moved and keys else target.geometry
                restored = restore_all(maps, grid, target.native, settings.save_probability, case) if keys else []
                labels |= zip(keys, restored, strict=True)
            labels = {key: labels[key] for key in fused.probability}
            for (method, n), back in labels.items():
                kept[case, method, n] = keep_label(settings, run_dir, back, method, n)
                rows += _rows(settings, split.protocol, fold_index, back, reference, method, n)
        if settings.browser:
            with clock("pictures"):
                browse(settings, run_dir, split.protocol, fold_index, image, reference, labels, fused.atlases, fused.weights)
    return rows, kept, agreements


def _predict_quality(
    settings: Settings,
    prepared: Dataset,
    split: Split,
    rows: list[dict[str, Any]],
    agreements: Mapping[tuple[str, str, int], torch.Tensor],
    corrupted: Rows,
    run_dir: Path,
    log: Log,
) -> None:
    """Write ``quality.csv`` and, of all honest folds, the calibrations for a model trained with the same settings."""
    groups = patient_groups(prepared.targets, settings.k, settings.seed)
    table, models = quality_rows(rows, agreements, list(settings.data.labels), groups, corrupted)
    write_quality(run_dir / "quality.csv", table)
    if text := quality_text(read_quality(run_dir / "quality.csv")):
        log(text)
    if split.protocol == "patient" and settings.fold is None and settings.train_cases is None:
        write_calibrations(run_dir / "calibration.json", models)
        keep_calibrations(calibration_path(settings, prepared.content), models)


def _segment(
    settings: Settings,
    prepared: Dataset,
    split: Split,
    folds: list[Fold],
    made: Mapping[int, FoldModel],
    models: FoldModels,
    case: str,
) -> _Fused:
    """Every method's probability map of a case, by the folds that test it."""
    target, features = prepared.targets[case], prepared.library.features[prepared.rows(case)]
    fused = _Fused(len(features), atlases=[[] for _ in range(len(features))])
    for fold in folds:
        if case not in fold.test:
            continue
        only = torch.tensor(fold.test[case]) if settings.spatial_dims == 2 else None
        model = made[fold.index]
        if model.segmenter is not None:
            # under patient folds the fold's library has nothing of this case; that it is excluded as well costs nothing
            exclude = case if split.protocol == "patient" else None
            fields = models.fields(fold, case) if STM in models.needed() else None
            results, chosen, grid = _atlas_results(settings, prepared, model.segmenter, target, features, fields, exclude, only)
            fused.add(results, only)
            fused.grids |= grid
            library = model.segmenter.library
            for image, indices, distances in zip(
                range(len(features)) if only is None else only.tolist(), chosen.indices, chosen.distances, strict=True
            ):
                fused.atlases[image] = [
                    [library.cases[row], int(library.slices[row]), round(d, 4)]
                    for row, d in zip(indices.tolist(), distances.tolist(), strict=True)
                ]
        for name, predictor in model.predictors.items():
            images = target.image[None] if settings.spatial_dims == 3 else target.image.movedim(-1, 0)
            probability = predictor(images if only is None else images[only])
            fused.add({(name, 0): Result(_stacked(probability, only, len(features)), None)}, only)
    return fused


def _atlas_results(
    settings: Settings,
    prepared: Dataset,
    segmenter: Segmenter,
    target: Preprocessed,
    features: torch.Tensor,
    fields: FieldCache | None,
    exclude: str | None,
    only: torch.Tensor | None,
) -> tuple[dict[Key, Result], Selection, dict[Key, Geometry]]:
    """The results of the methods that fuse atlases, the atlases, and the working grid of each result where it was moved: that of
    a method without an estimate never is, whatever runs beside it."""
    case, methods, dims = prepared.cases[target.case].without_label(), settings.atlas_methods, settings.spatial_dims
    again = settings.preprocessing.elsewhere(lambda: read_volume(case, settings.data.label_values))
    seen, voices, moved = segmenter.follow(target, methods, again)
    if not any(moved):
        results, chosen = segmenter(target, features, methods, settings.n, fields, exclude, only, voices)
        return results, chosen, {}
    following = [m for m in methods if needs_estimate([m])]
    staying = [m for m in methods if m not in following]
    embed = embedder(settings.features.name, settings.features.weights, resolve_device(settings.device))
    kept = fields.moved(moved) if fields is not None else None
    results, chosen = segmenter(seen, target_features(seen, dims, embed), following, settings.n, kept, exclude, only, voices)
    grids = dict.fromkeys(results, seen.geometry)
    if staying:  # by other atlases than those that are told
        still = segmenter(target, features, staying, settings.n, None, exclude, only)[0]
        results |= {key: result._replace(weights=None) for key, result in still.items()}
    return {key: results[key] for key in result_keys(methods, settings.n)}, chosen, grids


def _stacked(probability: torch.Tensor, only: torch.Tensor | None, images: int) -> torch.Tensor:
    """(T, C, *S) of a volume (T = 1) or of the slices ``only`` -> the case's map (C, x, y, z)."""
    if only is None:
        return probability[0]
    whole = probability.new_zeros((*probability.shape[1:], images))
    whole[..., only] = probability.movedim(0, -1)
    return whole


@torch.inference_mode()  # what a segmenter gives may not be written to otherwise
def _merge(before: torch.Tensor | None, new: torch.Tensor, only: torch.Tensor | None) -> torch.Tensor:
    """Put the slices a fold segmented into the case's probability map."""
    if before is None or only is None:
        return new
    before[..., only] = new[..., only]
    return before


def _native(settings: Settings, case: Case) -> Volume:
    """The target with its reference label on its native grid, read again and only here, after segmentation."""
    return read_volume(case, settings.data.label_values)


def _rows(
    settings: Settings, protocol: str, fold: int, result: Segmentation, reference: np.ndarray, method: str, n: int
) -> list[dict[str, Any]]:
    from oasis_monai.data.io import to_canonical

    label, spacing_mm = to_canonical(result.label.numpy(), result.geometry.affine)
    truth, _ = to_canonical(reference, result.geometry.affine)
    regions: Any = settings.data.regions
    scores = score_case(label, truth, spacing_mm, list(settings.data.labels), regions, case=result.case)
    return [
        {"protocol": protocol, "fold": fold, "case": result.case, "method": method, "n": n, **asdict(score)} for score in scores
    ]


def join_jobs(sweep_dir: Path) -> Path | None:
    """Join the scores of a sweep's jobs (folders with a ``scores.csv`` below ``sweep_dir``) into one table and summary there.

    Returns:
        The joined ``scores.csv``, or None while no job has any scores.
    """
    from oasis_monai.evaluation.scores import join_scores

    paths = [p for p in sorted(sweep_dir.glob("*/scores.csv")) if len(read_scores(p))]
    if not paths:
        return None
    joined = join_scores(paths)
    write_scores(sweep_dir / "scores.csv", joined.to_dict("records"))
    write_summary(sweep_dir / "summary.csv", summarise(joined))
    return sweep_dir / "scores.csv"
