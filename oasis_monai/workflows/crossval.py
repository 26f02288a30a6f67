"""Cross-validation: train the models of the folds, segment and score every case, predict its Dice.

This module guarantees that no label of a target reaches segmentation. Everything that takes time is cached by what it depends
on: preprocessed cases, features, fold models (never keyed by n), fields of every (target, atlas) pair, LOA pairs. A run that is
started again therefore continues, and a sweep over n pays for training and alignment once.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch

from oasis_monai.atlases.features import Embedder, embedder
from oasis_monai.data.folds import Fold, Split, patient_groups
from oasis_monai.data.io import read_volume, to_canonical
from oasis_monai.data.types import Segmentation, Selection
from oasis_monai.evaluation.centres import write_centres
from oasis_monai.evaluation.metrics import score_case
from oasis_monai.evaluation.quality_tables import (
    keep_calibrations,
    quality_rows,
    with_temperatures,
    write_calibrations,
    write_quality,
)
from oasis_monai.evaluation.reliability_tables import RELIABILITY
from oasis_monai.evaluation.scores import read_scores, summarise, write_scores, write_summary
from oasis_monai.evaluation.suspects import Finding, findings, write_suspects
from oasis_monai.segmentation.pipeline import CaseResult, Scan, merge_slices, segment_case
from oasis_monai.segmentation.recentre import NO_OFFSET
from oasis_monai.segmentation.result import Key, Result
from oasis_monai.segmentation.views import rows_of
from oasis_monai.settings import Settings
from oasis_monai.training.tracking import choose_kind
from oasis_monai.transforms.boxes import images_in_boxes
from oasis_monai.utils.device import resolve_device
from oasis_monai.utils.errors import with_case_in_errors
from oasis_monai.utils.files import write_json
from oasis_monai.workflows.case_pictures import (
    PackedLabels,
    draw_overlays,
    read_saved,
    remove_stale_pictures,
    replace_in_browser,
    save_label,
    save_uncertainty,
    shown_keys,
    write_case_browser,
    write_views,
)
from oasis_monai.workflows.corrupted_copies import Rows, corrupted_rows
from oasis_monai.workflows.cross_fusion import CrossFusion
from oasis_monai.workflows.cross_reliability import CrossReliability
from oasis_monai.workflows.fold_models import FoldModel, FoldModels, OpenModels, calibration_path, is_for_new_scans
from oasis_monai.workflows.parallel_copies import corrupted_rows_in_parallel
from oasis_monai.workflows.parallel_training import train_in_parallel
from oasis_monai.workflows.plan import Plan, keep_plan
from oasis_monai.workflows.postprocessing import CrossPostprocessing
from oasis_monai.workflows.prepare import Dataset, Log, find_and_check, prepare, split_of, with_found_data
from oasis_monai.workflows.run_record import Clock, claim_results, refuse_other_results, run_record
from oasis_monai.workflows.self_trained_folds import models_for, unlabelled_record
from oasis_monai.workflows.suspects import TABLE, compare, draw_suspects, key_to_trust, rank_findings, table_of
from oasis_monai.workflows.training_record import keep_histories, tell_where, tracking_of
from oasis_monai.workflows.unlabelled_scans import with_unlabelled


def crossval(
    settings: Settings,
    run_dir: Path,
    log: Log = print,
    overwrite: bool = False,
    key: str = "run_dir",
    swept: Mapping[str, str] = MappingProxyType({}),
    plan: Plan | None = None,
) -> Path:
    """Run the folds asked for and write ``scores.csv``, ``summary.csv``, ``split.json``, ``run.json``, pictures, what the page's
    case browser shows, and segmentations into ``run_dir``.

    Under slice folds a case is scored in 3D once *all* folds that hold its slices have their models; a job that runs one fold of
    a sweep trains it, and the job that finds the others finished scores every case.

    Args:
        overwrite: also in the place of the results of other data or settings.
        key: the option that names ``run_dir``, for messages.
        swept: of a sweep's job, the options it is run over and their values here.
        plan: what the settings follow from, to be kept beside the results.

    Returns:
        The path of ``scores.csv``.

    Raises:
        ConfigError: ``run_dir`` holds the results of other data or settings.
    """
    resolve_device(settings.device)  # an absent GPU is an error before anything is read
    choose_kind(settings.tracking)
    cache, clock = Path(settings.cache), Clock()
    settings = with_found_data(settings, cache, log)
    run_dir.mkdir(parents=True, exist_ok=True)
    if not overwrite:
        refuse_other_results(run_dir, settings.to_json(), key)  # before the data is read
    with clock("check and read"):
        cases = find_and_check(settings, cache, log)
        dataset = with_unlabelled(settings, prepare(settings, cases, cache, log), cache, log)
    split = split_of(settings, dataset)

    def record() -> dict[str, Any]:
        told = run_record("crossval", settings, split, len(cases), clock.seconds, dataset.identity())
        return told | ({"swept": dict(swept)} if swept else {})

    claim_results(run_dir, record(), key, overwrite)
    keep_plan(plan, run_dir)
    write_json(run_dir / "split.json", split.to_json())
    models = models_for(settings, dataset, split, cache, log, tracking_of(settings, run_dir))
    run = CrossValidation(settings, dataset, split, models, run_dir, clock, log)
    run.train()
    run.evaluate()
    told = unlabelled_record(models, run.folds) | ({"notes": run.notes} if run.notes else {})
    write_json(run_dir / "run.json", record() | told)
    return run_dir / "scores.csv"


@dataclass
class CrossValidation:
    """One run: its data, its folds and their models, and what it found.

    Args:
        run_dir: where results go.
        folds: those to score.
        rows: the rows of ``scores.csv``.
        views: the rows of ``views.csv``.
        agreements: (case, method, n) -> overlap counts of the parts of that result.
        labels: (case, method, n) -> the result, packed, for the pictures drawn at the end.
        notes: what the page says at its head.
        findings: how the references differ from the results that say how sure they are.
    """

    settings: Settings
    dataset: Dataset
    split: Split
    models: FoldModels
    run_dir: Path
    clock: Clock
    log: Log
    folds: list[Fold] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)
    views: list[dict[str, Any]] = field(default_factory=list)
    agreements: dict[tuple[str, str, int], torch.Tensor] = field(default_factory=dict)
    labels: PackedLabels = field(default_factory=dict)
    findings: list[tuple[Key, Finding]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def train(self) -> None:
        """Train or load the models of the folds asked for; under slice folds, settle which folds can be scored."""
        settings, split, models = self.settings, self.split, self.models
        wanted = split.choose(settings.fold)
        if any(models.missing(fold) for fold in wanted):
            tell_where(models.tracking, self.log)
        with self.clock("train"):
            if settings.workers > 1:
                jobs = [(settings, fold.index, name, models.tracking) for fold in wanted for name in models.missing(fold)]
                train_in_parallel(jobs, settings.workers, self.log)
            for fold in wanted:
                for name in models.missing(fold):
                    models.train(fold, name)
        keep_histories(self.run_dir, models.trainings(wanted))
        if not split.honest:
            others = [fold.index for fold in split.folds if fold not in wanted and models.missing(fold)]
            if models.needed() and others:
                self.log(
                    f"folds {others} are not trained yet; with folds=slice, the job that finds all folds trained scores the cases"
                )
                wanted = []
            elif wanted:
                wanted = list(split.folds)
        self.folds = wanted

    def evaluate(self) -> None:
        """Segment and score every case, predict its Dice, and write tables and pictures."""
        with contextlib.closing(OpenModels(self.models)) as trained:
            with self.clock("learn fusion"):
                self.fusion.learn(trained, self.models, self._embed)
                trained.fusions = self.fusion.fusions
                self.fusion.write(self.run_dir, self.log)
            self.score(trained)
            with self.clock("post-process"):
                self.postprocess()
            write_scores(self.run_dir / "scores.csv", self.rows)
            for name in (
                "summary.csv",
                "centres.csv",
                "quality.csv",
                "calibration.json",
                RELIABILITY,
                TABLE,
                "views.csv",
            ):  # of an earlier run; not every run writes all of them
                (self.run_dir / name).unlink(missing_ok=True)
            if not self.rows:
                return
            scores = read_scores(self.run_dir / "scores.csv")
            write_summary(self.run_dir / "summary.csv", summarise(scores))
            write_centres(self.run_dir / "centres.csv", scores)
            write_views(self.run_dir / "views.csv", self.views)
            with self.clock("pictures"):
                pictures = draw_overlays(self.settings, self.dataset.cases, self.rows, self.labels, self.run_dir)
                remove_stale_pictures(self.settings, self.run_dir, self.rows, pictures)
            with self.clock("corrupted copies"):
                corrupted = self._corrupted(trained)
            self.predict_quality(corrupted)
            self.find_suspects()

    def _corrupted(self, trained: OpenModels) -> Rows:
        """The rows of corrupted copies; those of several folds side by side where there are workers."""
        if self.settings.workers > 1 and len(self.folds) > 1:
            return corrupted_rows_in_parallel(self.settings, self.folds, self.fusion, self.postprocessing)
        return corrupted_rows(self.settings, self.dataset, self.folds, trained, self.models, self.postprocessing)

    def score(self, trained: OpenModels) -> None:
        """Segment and score every case of the folds, one fold after the other; rows are in the order of the cases."""
        from tqdm import tqdm

        settings, embed = self.settings, self._embed
        tested = dict.fromkeys(case for fold in self.folds for case in sorted(fold.test))
        for case in tqdm(tested, desc="segment", disable=not settings.progress, leave=False):
            with self.clock("segment"), with_case_in_errors(case):
                case_result = self.segment(case, trained, embed)
            self.agreements |= {
                (case, *key): result.agreement for key, result in case_result.results.items() if result.agreement is not None
            }
            with self.clock("score"), with_case_in_errors(case):
                self._score_case(case, case_result)
        self.rows.sort(key=lambda row: str(row["case"]))
        self.views.sort(key=lambda row: str(row["case"]))

    def segment(self, case: str, trained: OpenModels, embed: Embedder) -> CaseResult:
        """Segment a case by every method and by the folds that test it; its label is not used."""
        parts = []
        for fold in self.folds:
            if case in fold.test:
                only = torch.tensor(fold.test[case]) if self.settings.spatial_dims == 2 else None
                parts.append((self._segment_by(trained[fold], fold, case, only, embed), only))
        return merge_slices(parts)

    def _segment_by(self, model: FoldModel, fold: Fold, case: str, only: torch.Tensor | None, embed: Embedder) -> CaseResult:
        """Every method's result by the models of one fold."""
        settings, target = self.settings, self.dataset.targets[case]
        features = self.dataset.library.features[self.dataset.rows(case)]
        case_result = CaseResult(target, NO_OFFSET, {}, {}, Selection(torch.empty(0), torch.empty(0)))
        if model.segmenter is not None:
            bare = self.dataset.cases[case].without_label()
            read = functools.cache(lambda: read_volume(bare, settings.data.label_values))
            again = settings.preprocessing.elsewhere(read)
            # but for slice folds the fold's library has no atlas of this patient; excluding them as well costs nothing
            exclude = bare.patient if self.split.honest else None
            case_result = segment_case(
                model.segmenter,
                Scan(target, again, features, lambda *asked: images_in_boxes(settings.preprocessing, read(), *asked)),
                embed,
                settings.atlas_methods,
                settings.n,
                self.models.fields(fold, case),
                exclude,
                only,
            )
        seen = target.fine or target  # as the networks were trained
        for name, predictor in model.predictors.items():
            images = seen.image[None] if settings.spatial_dims == 3 else seen.image.movedim(-1, 0)
            probability = predictor(images if only is None else images[only])
            case_result.results[name, 0] = Result(_volume_of(probability, only, len(features)), None)
            case_result.grids[name, 0] = seen.geometry
        return case_result

    def _score_case(self, case: str, case_result: CaseResult) -> None:
        """Read the reference, now that everything is segmented, and compare."""
        settings = self.settings
        volume = read_volume(self.dataset.cases[case], settings.data.label_values, settings.data.ignore)
        assert volume.label is not None
        image, reference = volume.image[0].numpy(), volume.label[0].numpy()
        labels = case_result.restore(settings.save_probability)
        own = self._fold_of(case)
        fold = own.index if self.split.honest else -1
        about = {"protocol": self.split.protocol, "fold": fold, "case": case}
        self.views += [about | row for row in rows_of(case_result.tried)]
        for key, result in labels.items():
            self.postprocessing.try_out(own, key, result, volume.label[0])
            self.labels[case, *key] = save_label(settings, self.run_dir, replace(result, geometry=volume.geometry), *key)
            self.rows += self._score_rows(fold, result, reference, key)
        if self.split.honest and not settings.data.structures and (trusted := key_to_trust(case_result)) is not None:
            with self.clock("suspects"):
                compared = compare(case_result, trusted, reference, list(settings.data.labels))
                self.findings += [(trusted, found) for found in findings(case, compared)]
        if self.split.honest:
            with self.clock("reliability"):
                self.reliability.add(fold, case_result, labels, reference)
        maps = {}
        if settings.browser or settings.save_uncertainty:
            wanted = list(labels) if settings.save_uncertainty else shown_keys(settings, labels)
            maps = {key: case_result.uncertainty(key) for key in wanted}
            save_uncertainty(settings, self.run_dir, case, maps, volume.geometry)
        if settings.browser:
            with self.clock("pictures"):
                write_case_browser(settings, self.run_dir, self.split.protocol, fold, image, reference, labels, case_result, maps)

    @cached_property
    def reliability(self) -> CrossReliability:
        """That of the probabilities of the cases that are scored."""
        return CrossReliability(list(self.settings.data.labels))

    @cached_property
    def _embed(self) -> Embedder:
        features = self.settings.features
        return embedder(features.name, features.weights, resolve_device(self.settings.device))

    @cached_property
    def fusion(self) -> CrossFusion:
        """That of the folds that are scored."""
        return CrossFusion(self.settings, self.dataset, self.split, self.folds)

    @cached_property
    def postprocessing(self) -> CrossPostprocessing:
        """That of the folds that are scored."""
        return CrossPostprocessing(self.settings, self.dataset, self.split, self.folds)

    def postprocess(self) -> None:
        """Post-process every result as the results of the other folds decide, and score those again that change."""
        keys = list(dict.fromkeys((method, n) for _, method, n in self.labels))
        for case, method, n in list(self.labels):
            fold, native = self._fold_of(case), self.dataset.targets[case].native
            if self.postprocessing.choice(fold, (method, n)):
                packed = self.labels[case, method, n]
                before = read_saved(self.settings, self.run_dir, packed, case, native, method, n)
                after = self.postprocessing.apply(fold, (method, n), before)
                if after is not before:
                    with with_case_in_errors(case):
                        self._replace(fold, after, (method, n))
        self.notes = self.postprocessing.write(self.run_dir, keys)
        for line in self.notes:
            self.log(line)

    def _replace(self, fold: Fold, result: Segmentation, key: Key) -> None:
        """Put a result in the place of that of a method, in the scores, files and pictures."""
        settings, case = self.settings, result.case
        volume = read_volume(self.dataset.cases[case], settings.data.label_values, settings.data.ignore)
        assert volume.label is not None
        result = replace(result, geometry=volume.geometry)
        self.labels[case, *key] = save_label(settings, self.run_dir, result, *key)
        replace_in_browser(self.run_dir, result, *key)
        places = [i for i, row in enumerate(self.rows) if (row["case"], row["method"], row["n"]) == (case, *key)]
        for place, row in zip(places, self._score_rows(fold.index, result, volume.label[0].numpy(), key), strict=True):
            self.rows[place] = row

    def _fold_of(self, case: str) -> Fold:
        """The fold that tests a case; under slice folds the first."""
        return next(fold for fold in self.folds if case in fold.test)

    def _score_rows(self, fold: int, result: Segmentation, reference: np.ndarray, key: Key) -> list[dict[str, Any]]:
        data = self.settings.data
        label, spacing_mm = to_canonical(result.label.numpy(), result.geometry.affine)
        truth, _ = to_canonical(reference, result.geometry.affine)
        regions: Any = data.regions
        more: Any = {"tolerance_mm": data.tolerance_mm, "structures": data.members}
        scores = score_case(label, truth, spacing_mm, list(data.scored), regions, case=result.case, **more)
        case = self.dataset.cases[result.case]
        about = {"protocol": self.split.protocol, "fold": fold, "case": case.id, "patient": case.patient, "centre": case.centre}
        about |= {"method": key[0], "n": key[1]}
        return [{**about, **asdict(score)} for score in scores]

    def predict_quality(self, corrupted: Rows) -> None:
        """Write ``quality.csv`` and, with all folds run, the calibrations. A model trained with the same settings gets them, not
        those of slices, nor of centres left out: a new scan mostly comes from a centre of the model's."""
        settings, patients = self.settings, self.dataset.patients
        groups = self.split.testing() if self.split.honest else patient_groups(patients, settings.k, settings.seed, patients)
        table, calibrations = quality_rows(self.rows, self.agreements, list(settings.data.scored), groups, corrupted)
        write_quality(self.run_dir / "quality.csv", table)
        self.reliability.write(self.run_dir / RELIABILITY, self.split.protocol)
        calibrations = with_temperatures(calibrations, self.reliability.temperatures())
        if self.split.honest and settings.fold is None and settings.train_cases is None:
            write_calibrations(self.run_dir / "calibration.json", calibrations)
        if is_for_new_scans(settings, self.split):
            keep_calibrations(calibration_path(settings, self.dataset), calibrations)

    def find_suspects(self) -> None:
        """Write ``suspects.csv`` and pictures of the first ones. Under slice folds other slices of a wrong label are among the
        atlases, which repeat it; where no parts are compared there is nothing to hold against a reference. Structures that share
        voxels are not looked at: what stands for them is no label of one structure."""
        keys = {found.case: key for key, found in self.findings}
        with self.clock("suspects"):
            agreements = {case: self.agreements[case, *key] for case, key in keys.items()}
            labels, own = list(self.settings.data.labels), [found for _, found in self.findings]
            suspects = rank_findings(own, agreements, labels, self.split.testing())
            if keys:
                write_suspects(self.run_dir / TABLE, table_of(suspects, self.dataset.cases, self.split.protocol, keys))
            draw_suspects(self.settings, self.dataset.cases, suspects, keys, self.labels, self.run_dir)


def _volume_of(probability: torch.Tensor, only: torch.Tensor | None, images: int) -> torch.Tensor:
    """(T, C, *S) of a volume (T = 1) or of the slices ``only`` -> the case's map (C, x, y, z)."""
    if only is None:
        return probability[0]
    whole = probability.new_zeros((*probability.shape[1:], images))
    whole[..., only] = probability.movedim(0, -1)
    return whole
