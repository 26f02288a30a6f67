"""Cross-validation: folds -> fold models -> rows of scores. Owns the rule that nothing of a target's label reaches ``segment``.

Everything that takes time is kept under ``cache`` by what it depends on: preprocessed cases, features, fold models (never
keyed by n), fields of every (target, atlas) pair, LOA pairs. A run that is started again therefore goes on where it was, and a
sweep over n pays for training and alignment once.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from oasis_monai.atlases.features import Embedder, embedder
from oasis_monai.data.folds import Fold, Split, patient_groups
from oasis_monai.data.io import read_volume, to_canonical
from oasis_monai.data.types import Segmentation, Selection
from oasis_monai.evaluation.metrics import score_case
from oasis_monai.evaluation.quality_tables import keep_calibrations, quality_rows, write_calibrations, write_quality
from oasis_monai.evaluation.scores import read_scores, summarise, write_scores, write_summary
from oasis_monai.segmentation.pipeline import CaseResult, Scan, merge_slices, segment_case
from oasis_monai.segmentation.recentre import NO_OFFSET
from oasis_monai.segmentation.segmenter import Key, Result
from oasis_monai.settings import Settings
from oasis_monai.utils.device import resolve_device
from oasis_monai.utils.errors import with_case_in_errors
from oasis_monai.utils.files import write_json
from oasis_monai.workflows.case_pictures import KeptLabels, browse, draw_overlays, forget_others, keep_label
from oasis_monai.workflows.corrupted_copies import Rows, corrupted_rows
from oasis_monai.workflows.fold_models import FoldModel, FoldModels, calibration_path, train_ahead
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
        dataset = prepare(settings, cases, cache, log)
    split = split_of(settings, dataset)
    write_json(run_dir / "split.json", split.to_json())
    models = FoldModels(settings, dataset, split, cache, log)
    run = CrossValidation(settings, dataset, split, models, run_dir, clock, log)
    run.train()
    run.evaluate()
    write_json(run_dir / "run.json", run_record("crossval", settings, split, len(cases), clock.seconds))
    return run_dir / "scores.csv"


@dataclass
class CrossValidation:
    """One run: its data, its folds and their models, and what it found.

    Args:
        run_dir: where results go.
        folds: those to score, with their ``trained`` models by index.
        rows: the rows of ``scores.csv``.
        agreements: (case, method, n) -> overlap counts of the parts of that result.
        labels: (case, method, n) -> the result, packed, for the pictures drawn at the end.
    """

    settings: Settings
    dataset: Dataset
    split: Split
    models: FoldModels
    run_dir: Path
    clock: Clock
    log: Log
    folds: list[Fold] = field(default_factory=list)
    trained: dict[int, FoldModel] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    agreements: dict[tuple[str, str, int], torch.Tensor] = field(default_factory=dict)
    labels: KeptLabels = field(default_factory=dict)

    def train(self) -> None:
        """Train or load the models of the folds asked for; under slice folds, settle which folds can be scored."""
        settings, split, models = self.settings, self.split, self.models
        wanted = [fold for fold in split.folds if settings.fold in (None, fold.index)]
        with self.clock("train"):
            if settings.workers > 1:
                jobs = [(settings, fold.index, name) for fold in wanted for name in models.missing(fold)]
                train_ahead(jobs, settings.workers, self.log)
            for fold in wanted:
                self.trained[fold.index] = models.model(fold)
        if split.protocol == "slice":
            others = [fold.index for fold in split.folds if fold not in wanted and models.missing(fold)]
            if models.needed() and others:
                self.log(
                    f"folds {others} have no model yet: slice folds are scored in 3D by the job that finds all of them trained"
                )
                wanted = []
            elif wanted:
                for fold in split.folds:
                    if fold.index not in self.trained:
                        self.trained[fold.index] = models.model(fold)
                wanted = list(split.folds)
        self.folds = wanted

    def evaluate(self) -> None:
        """Segment and score every case, predict its Dice, and write tables and pictures."""
        with self._loa_pairs_kept():
            self.score()
            write_scores(self.run_dir / "scores.csv", self.rows)
            for name in ("summary.csv", "quality.csv", "calibration.json"):  # of other scores; not every run has all
                (self.run_dir / name).unlink(missing_ok=True)
            if not self.rows:
                return
            write_summary(self.run_dir / "summary.csv", summarise(read_scores(self.run_dir / "scores.csv")))
            with self.clock("pictures"):
                drawn = draw_overlays(self.settings, self.dataset, self.rows, self.labels, self.run_dir)
                forget_others(self.settings, self.run_dir, self.rows, drawn)
            with self.clock("corrupted copies"):
                corrupted = corrupted_rows(self.settings, self.dataset, self.folds, self.trained, self.models)
            self.predict_quality(corrupted)

    def score(self) -> None:
        """Segment and score every case of the folds."""
        from tqdm import tqdm

        settings = self.settings
        embed = embedder(settings.features.name, settings.features.weights, resolve_device(settings.device))
        tested = sorted({case for fold in self.folds for case in fold.test})
        for case in tqdm(tested, desc="segment", disable=not settings.progress, leave=False):
            with self.clock("segment"), with_case_in_errors(case):
                found = self.segment(case, embed)
            self.agreements |= {
                (case, *key): result.agreement for key, result in found.results.items() if result.agreement is not None
            }
            with self.clock("score"), with_case_in_errors(case):
                self._score_case(case, found)

    def segment(self, case: str, embed: Embedder) -> CaseResult:
        """Every method's result of a case, by the folds that test it; its label is not looked at."""
        parts = []
        for fold in self.folds:
            if case in fold.test:
                only = torch.tensor(fold.test[case]) if self.settings.spatial_dims == 2 else None
                parts.append((self._segment_by(fold, case, only, embed), only))
        return merge_slices(parts)

    def _segment_by(self, fold: Fold, case: str, only: torch.Tensor | None, embed: Embedder) -> CaseResult:
        """Every method's result by the models of one fold."""
        settings, target = self.settings, self.dataset.targets[case]
        model, features = self.trained[fold.index], self.dataset.library.features[self.dataset.rows(case)]
        found = CaseResult(target, NO_OFFSET, {}, {}, Selection(torch.empty(0), torch.empty(0)))
        if model.segmenter is not None:
            bare = self.dataset.cases[case].without_label()
            again = settings.preprocessing.elsewhere(lambda: read_volume(bare, settings.data.label_values))
            # under patient folds the fold's library has nothing of this case; that it is excluded as well costs nothing
            exclude = case if self.split.protocol == "patient" else None
            found = segment_case(
                model.segmenter,
                Scan(target, again, features),
                embed,
                settings.atlas_methods,
                settings.n,
                self.models.fields(fold, case),
                exclude,
                only,
            )
        for name, predictor in model.predictors.items():
            images = target.image[None] if settings.spatial_dims == 3 else target.image.movedim(-1, 0)
            probability = predictor(images if only is None else images[only])
            found.results[name, 0] = Result(_volume_of(probability, only, len(features)), None)
            found.grids[name, 0] = target.geometry
        return found

    def _score_case(self, case: str, found: CaseResult) -> None:
        """Read the reference, now that everything is segmented, and compare."""
        settings = self.settings
        volume = read_volume(self.dataset.cases[case], settings.data.label_values)
        assert volume.label is not None
        image, reference = volume.image[0].numpy(), volume.label[0].numpy()
        labels = found.restore(settings.save_probability)
        own = next(fold for fold in self.folds if case in fold.test)
        fold = own.index if self.split.protocol == "patient" else -1
        for key, result in labels.items():
            self.labels[case, *key] = keep_label(settings, self.run_dir, replace(result, geometry=volume.geometry), *key)
            self.rows += self._score_rows(fold, result, reference, key)
        if settings.browser:
            with self.clock("pictures"):
                browse(settings, self.run_dir, self.split.protocol, fold, image, reference, labels, found)

    def _score_rows(self, fold: int, result: Segmentation, reference: np.ndarray, key: Key) -> list[dict[str, Any]]:
        data = self.settings.data
        label, spacing_mm = to_canonical(result.label.numpy(), result.geometry.affine)
        truth, _ = to_canonical(reference, result.geometry.affine)
        regions: Any = data.regions
        scores = score_case(label, truth, spacing_mm, list(data.labels), regions, case=result.case)
        about = {"protocol": self.split.protocol, "fold": fold, "case": result.case, "method": key[0], "n": key[1]}
        return [{**about, **asdict(score)} for score in scores]

    def predict_quality(self, corrupted: Rows) -> None:
        """Write ``quality.csv`` and, of all honest folds, the calibrations for a model trained with the same settings."""
        settings = self.settings
        groups = patient_groups(self.dataset.targets, settings.k, settings.seed)
        table, calibrations = quality_rows(self.rows, self.agreements, list(settings.data.labels), groups, corrupted)
        write_quality(self.run_dir / "quality.csv", table)
        if self.split.protocol == "patient" and settings.fold is None and settings.train_cases is None:
            write_calibrations(self.run_dir / "calibration.json", calibrations)
            keep_calibrations(calibration_path(settings, self.dataset.content), calibrations)

    @contextlib.contextmanager
    def _loa_pairs_kept(self) -> Iterator[None]:
        """Write the LOA pairs that were aligned within it, however it ends."""
        try:
            yield
        finally:
            for model in self.trained.values():
                if model.segmenter is not None and model.segmenter.loa is not None:
                    model.segmenter.loa.save()


def _volume_of(probability: torch.Tensor, only: torch.Tensor | None, images: int) -> torch.Tensor:
    """(T, C, *S) of a volume (T = 1) or of the slices ``only`` -> the case's map (C, x, y, z)."""
    if only is None:
        return probability[0]
    whole = probability.new_zeros((*probability.shape[1:], images))
    whole[..., only] = probability.movedim(0, -1)
    return whole


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
