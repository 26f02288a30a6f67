"""Score a trained model on labelled cases that it has not learned from: another centre, or cases kept apart."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from oasis_monai.data.io import read_volume, to_canonical
from oasis_monai.data.settings import DataSettings
from oasis_monai.data.types import Case, Geometry, Segmentation
from oasis_monai.evaluation.centres import write_centres
from oasis_monai.evaluation.metrics import score_case
from oasis_monai.evaluation.postprocessing import check_mode
from oasis_monai.evaluation.quality import aurc, correlation
from oasis_monai.evaluation.quality_tables import (
    BOUNDS,
    COLUMNS,
    coverage,
    mean_error,
    plain_agreement,
    read_quality,
    write_quality,
)
from oasis_monai.evaluation.scores import read_scores, summarise, write_scores, write_summary
from oasis_monai.segmentation.pipeline import check_choice, number_of_atlases
from oasis_monai.settings import Settings
from oasis_monai.transforms.corruptions import UNTOUCHED
from oasis_monai.transforms.preprocessing import PreprocessCache
from oasis_monai.utils.errors import DataError, Fault, with_case_in_errors
from oasis_monai.utils.files import file_digest, write_json
from oasis_monai.workflows.case_pictures import (
    PackedLabels,
    draw_overlays,
    remove_stale_pictures,
    save_label,
    save_uncertainty,
    write_case_browser,
)
from oasis_monai.workflows.model import Model
from oasis_monai.workflows.prepare import Log, complete_data, find_and_check
from oasis_monai.workflows.run_record import Clock, claim_results, run_record
from oasis_monai.workflows.same_structures import with_structures_of
from oasis_monai.workflows.scan_result import ScanResult

PROTOCOL, FOLD = "patient", -1  # no patient of the training is among the cases; there are no folds
EVALUATION_OPTIONS = (
    *("overlays", "browser", "save_segmentations", "save_probability", "save_uncertainty", "progress", "postprocessing"),
    "save_structures",
)
"""Settings of an evaluation that are not the model's."""

SUMMARY_COLUMNS = ("label", "cases", "mae", "held", "intervals", "aurc", "aurc_agreement", "aurc_best", "r")  # quality_summary


def evaluate_model(
    model: Model,
    data: DataSettings,
    output: Path,
    log: Log = print,
    n: int | None = None,
    method: str | None = None,
    options: Settings | None = None,
    training_cases: bool = False,
    overwrite: bool = False,
) -> Path:
    """Segment and score every labelled case of a data set, and compare the predicted with the true Dice.

    A case that the model has learned from says nothing about new scans: it is told and left out. That is an atlas of the model,
    whatever it is called there; a scan that its networks were trained on, also where it is no longer an atlas; and any scan of a
    person of whom it has others. Persons are compared by name where both data sets say who a case is of. An id alone is only a
    file's name: ``Case00`` of another centre is somebody else.

    Args:
        model: the trained model.
        data: the labelled cases. Their structures are the model's; where they are named alike, the values may be others.
        output: gets ``scores.csv``, ``summary.csv``, ``quality.csv``, ``run.json`` and what the page shows.
        log: gets a line per case that is left out, and the warnings of the check.
        n: atlases to fuse; method: how, see :meth:`oasis_monai.Model.segment`.
        options: whose :data:`EVALUATION_OPTIONS` and ``cache`` count.
        training_cases: score these cases as well.
        overwrite: also in the place of the results of other data or settings.

    Returns:
        The path of ``scores.csv``.

    Raises:
        DataError: every fault of the data set; or no case is left.
        ConfigError: ``output`` holds other results, or the model cannot serve the method or n.
    """
    asked = options or model.settings
    found = complete_data(data, Path(asked.cache), "test", model.record.channels)
    for line in found.said:
        log(line)
    n = number_of_atlases(model.segmenter, n)
    method = check_choice(model.segmenter, method, n)
    check_mode(asked.postprocessing, model.anatomy)
    data, said = with_structures_of(model.settings.data, found.data)
    for line in said:
        log(line)
    settings = replace(
        model.settings,
        data=data,
        n=(n,),
        methods=(method,),
        corruptions=0,
        folds="patient",
        **{key: getattr(asked, key) for key in EVALUATION_OPTIONS},
    )
    clock, cache = Clock(), Path(asked.cache)
    with clock("check"):
        cases = [case for case in find_and_check(settings, cache, log, "test") if case.label is not None]
    run = _Evaluation(model, settings, list(data.labels), output, log, clock, training_cases)

    def record() -> dict[str, Any]:
        content = {case.id: _content(case) for case in cases}
        told = run_record("evaluate", settings, None, len(cases), clock.seconds, content)
        version = {"model": str(model.folder), "model_version": model.record.version, "left_out": run.left_out}
        return {**told, "folds": None, **version}

    output.mkdir(parents=True, exist_ok=True)
    claim_results(output, record(), "output", overwrite)
    run.score(cases)
    run.write(cases)
    write_json(output / "run.json", record())
    return output / "scores.csv"


def in_order(result: ScanResult, names: Sequence[str], wanted: Sequence[str], geometry: Geometry) -> Segmentation:
    """A result whose classes are numbered as ``wanted`` has its names: a data set may give two structures values in the other
    order than the model's."""
    places = torch.tensor([0, *(wanted.index(name) + 1 for name in names)])
    classes = places.to(torch.uint8)[result.classes.long()]
    probability = result.probability
    return Segmentation(result.case, classes, None if probability is None else probability[places.argsort()], geometry)


def learned_from(model: Model, case: Case, contents: PreprocessCache) -> tuple[str, str] | None:
    """The training case that is this scan, or is of its patient, and why it counts as that; None: the model knows neither.

    Args:
        contents: what tells the content of scans.
    """
    record, library = model.record, model.segmenter.library
    same = record.scans.get(contents.image_content(case))
    if same is not None:
        return same, f"the networks were trained on it, as {same}"
    if case.patient == case.id:  # nobody says whose it is
        return None
    others = [one for one in library.cases_of(case.patient) if one != case.patient]
    theirs = list(dict.fromkeys([*record.cases_of(case.patient), *others]))
    if not theirs:
        return None
    return theirs[0], f"the model has learned from {', '.join(theirs)} of the same patient, {case.patient}"


def _content(case: Case) -> str:
    from oasis_monai.data.formats.dispatch import data_files

    files = [file for source in case.sources for file in data_files(source)]
    return file_digest(*files, *(file for label in case.label_files for file in data_files(label)))


@dataclass
class _Evaluation:
    """What the cases of an evaluation share, and what was found."""

    model: Model
    settings: Settings
    names: list[str]
    output: Path
    log: Log
    clock: Clock
    training_cases: bool
    rows: list[dict[str, Any]] = field(default_factory=list)
    predictions: list[dict[str, Any]] = field(default_factory=list)
    labels: PackedLabels = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    @cached_property
    def contents(self) -> PreprocessCache:
        """What tells the content of scans."""
        return PreprocessCache(None, self.settings.preprocessing, self.settings.data.label_values)

    def score(self, cases: list[Case]) -> None:
        """Segment and score the cases, one in memory at a time."""
        from tqdm import tqdm

        for case in tqdm(cases, desc="evaluate", disable=not self.settings.progress, leave=False):
            with with_case_in_errors(case.id):
                self._one(case)
        if not self.rows:
            found = f"{len(self.left_out)} of {len(cases)} are atlases of the model, or of its patients"
            remedy = "give other cases, or training_cases=true to score them all the same"
            raise DataError(Fault("", "cases", "labelled cases that the model was not trained on", found, remedy))

    def _one(self, case: Case) -> None:
        settings = self.settings
        if not self.training_cases and (known := learned_from(self.model, case, self.contents)) is not None:
            self._leave_out(case, *known)
            return
        with self.clock("segment"):
            scan = read_volume(case.without_label(), settings.data.label_values)
            found = self.model.find(scan, settings.methods[0], settings.n[0])
            result = self.model.describe(found, settings.save_probability, settings.postprocessing)
        if result.is_atlas is not None and not self.training_cases:
            self._leave_out(case, result.is_atlas, f"it is the model's atlas {result.is_atlas}")
            return
        with self.clock("score"):
            volume = read_volume(case, settings.data.label_values, settings.data.ignore)  # now that it is segmented
            assert volume.label is not None
            reference = volume.label[0].numpy()
            segmentation = in_order(replace(result, case=case.id), list(self.model.labels), self.names, volume.geometry)
            self._score(case, result, segmentation, reference)
        with self.clock("pictures"):
            key = result.method
            self.labels[case.id, *key] = save_label(settings, self.output, segmentation, *key)
            maps = {key: found.uncertainty(key)} if settings.browser or settings.save_uncertainty else {}
            save_uncertainty(settings, self.output, case.id, maps, volume.geometry)
            if settings.browser:
                image = volume.image[0].numpy()
                write_case_browser(settings, self.output, PROTOCOL, FOLD, image, reference, {key: segmentation}, found, maps)

    def _leave_out(self, case: Case, known: str, why: str) -> None:
        self.left_out[case.id] = known
        self.log(f"{case.id}: left out, as {why}")

    def _score(self, case: Case, result: ScanResult, segmentation: Segmentation, reference: np.ndarray) -> None:
        """The rows of ``scores.csv`` and ``quality.csv`` of one case."""
        label, spacing_mm = to_canonical(segmentation.label.numpy(), segmentation.geometry.affine)
        truth, _ = to_canonical(reference, segmentation.geometry.affine)
        data = self.settings.data
        regions: Any = data.regions
        about = {"protocol": PROTOCOL, "fold": FOLD, "case": case.id, "method": result.method[0], "n": result.method[1]}
        more: Any = {"tolerance_mm": data.tolerance_mm, "structures": data.members}
        scores = score_case(label, truth, spacing_mm, list(data.scored), regions, case=case.id, **more)
        self.rows += [{**about, "patient": case.patient, "centre": case.centre, **asdict(score)} for score in scores]
        dsc = {score.label: score.dsc for score in scores if score.region == "whole"}
        for name, one in result.predictions.items():
            values: Mapping[str, Any] = {"label": name, "corruption": UNTOUCHED, **one.agreement, "predicted_dsc": one.value}
            ends = dict(zip(BOUNDS, one.interval or (math.nan, math.nan), strict=True))
            self.predictions.append({**about, **values, **ends, "flag": one.unsure, "dsc": dsc[name]})

    def write(self, cases: list[Case]) -> None:
        """The tables and pictures."""
        write_scores(self.output / "scores.csv", self.rows)
        scores = read_scores(self.output / "scores.csv")
        write_summary(self.output / "summary.csv", summarise(scores))
        write_centres(self.output / "centres.csv", scores)
        table = pd.DataFrame(self.predictions, columns=list(COLUMNS))
        write_quality(self.output / "quality.csv", table[table["dsc"].notna()])
        with self.clock("pictures"):
            by_id = {case.id: case for case in cases}
            pictures = draw_overlays(self.settings, by_id, self.rows, self.labels, self.output)
            remove_stale_pictures(self.settings, self.output, self.rows, pictures)


def quality_summary(output: Path) -> pd.DataFrame:
    """Predicted against true Dice of an evaluation: per structure the number of results, the mean absolute error (``mae``), in
    how many of how many the 90 % interval held (``held``, ``intervals``), :func:`oasis_monai.evaluation.quality.aurc` beside that
    of the plain agreement (``aurc_agreement``) and of the best order (``aurc_best``), and Pearson's correlation (``r``)."""
    rows = []
    for group in read_quality(output / "quality.csv"):
        predicted, true = group.rows["predicted_dsc"], group.rows["dsc"]
        within, intervals, _ = coverage(group.rows)
        rows.append(
            {
                "label": group.label,
                "cases": len(group.rows),
                "mae": mean_error(group.rows),
                "held": within,
                "intervals": intervals,
                "aurc": aurc(predicted, true),
                "aurc_agreement": aurc(plain_agreement(group.rows), true),
                "aurc_best": aurc(true, true),
                "r": correlation(predicted, true),
            }
        )
    return pd.DataFrame(rows, columns=list(SUMMARY_COLUMNS))
