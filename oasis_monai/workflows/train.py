"""Train the networks on all cases of a data set and write a model folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from oasis_monai.atlases.features import embedder
from oasis_monai.data.folds import Fold, Split
from oasis_monai.data.formats.structure import check_looks
from oasis_monai.data.segment_table import plain_segments, read_segments
from oasis_monai.data.types import Case
from oasis_monai.evaluation.postprocessing import plain_decisions, read_decisions
from oasis_monai.evaluation.quality_tables import few_patients, plain_calibrations, read_calibrations
from oasis_monai.segmentation.learned_fusion import plain_fusions, read_fusions
from oasis_monai.segmentation.segmenter import Segmenter
from oasis_monai.settings import Settings
from oasis_monai.training.tracking import choose_kind
from oasis_monai.utils.errors import ConfigError, OasisError
from oasis_monai.utils.files import digest, locked, write_json
from oasis_monai.workflows.cross_fusion import fusion_path
from oasis_monai.workflows.fold_models import calibration_path
from oasis_monai.workflows.model_folder import FORMAT, Log, ModelRecord, describe, write_parts
from oasis_monai.workflows.plan import Plan, keep_plan
from oasis_monai.workflows.postprocessing import postprocessing_path
from oasis_monai.workflows.prepare import Dataset, channel_names, check_pairs, find_and_check, prepare, with_found_data
from oasis_monai.workflows.run_record import Clock, refuse_other_results, run_record
from oasis_monai.workflows.self_trained_folds import models_for, unlabelled_record
from oasis_monai.workflows.training_record import keep_histories, tell_where, tracking_of
from oasis_monai.workflows.unlabelled_scans import with_unlabelled


def train_model(
    settings: Settings,
    folder: Path,
    log: Log = print,
    overwrite: bool = False,
    plan: Plan | None = None,
    segments: str | Path | Mapping[str, Any] | None = None,
) -> Path:
    """Fit the networks on all cases of the data set, but those it keeps for a test, and write the model folder.

    Training goes on from its checkpoint in ``settings.cache`` when it was interrupted.

    Args:
        overwrite: also in the place of a model of other data or settings, or whose library was edited since its training.
        plan: what the settings follow from, to be kept beside the model.
        segments: colours and codes of its structures, kept with the model for the results it makes, see
            :func:`oasis_monai.data.segment_table.read_segments`.

    Raises:
        ConfigError: there is such a model; or ``segments`` cannot be read, or tells of a structure that is not there.
    """
    choose_kind(settings.tracking)  # an error before anything is read
    looks = read_segments(segments)
    if not overwrite:
        _check_unedited(folder)
    cache, clock = Path(settings.cache), Clock()
    settings = with_found_data(settings, cache, log)
    check_looks(looks, list(settings.data.scored))
    settings = replace(settings, methods=("OASIS-joint",) if settings.registration.joint else ("OASIS",))
    if not overwrite:
        refuse_other_results(folder, settings.to_json(), "model", result="model.json")
    with clock("check and read"):
        cases = _to_train_with(find_and_check(settings, cache, log), log)
        dataset = with_unlabelled(settings, prepare(settings, cases, cache, log), cache, log, tests=False)
    if not overwrite:
        refuse_other_results(folder, settings.to_json(), "model", digest(dataset.identity()), "model.json")
    images = {case: tuple(range(len(dataset.rows(case)))) for case in dataset.targets}
    everything = Fold(0, images, {})
    split = Split("patient", settings.seed, (everything,), dataset.patients)
    check_pairs(settings, split, dataset.no_atlases)
    with clock("train"):
        tracking = tracking_of(settings, folder)
        models = models_for(settings, dataset, split, cache, log, tracking)
        if models.missing(everything):
            tell_where(tracking, log)
        segmenter = models.segmenter(everything)
    with locked(folder), clock("write"):
        checksums = write_parts(folder, segmenter)
        keep_plan(plan, folder)
        keep_histories(folder, models.trainings([everything]))
        record = _record(settings, dataset, segmenter, checksums, clock, log)
        record |= {"segments": plain_segments(looks)} if looks else {}
        write_json(folder / "model.json", record | unlabelled_record(models, [everything]))
    return folder


def _to_train_with(cases: list[Case], log: Log) -> list[Case]:
    """All cases but those that the data set keeps for a test."""
    kept = [case for case in cases if case.split != "test"]
    if not kept:
        remedy = "correct the column split, or leave it out"
        raise ConfigError("data", "cases to train with", f"{len(cases)} cases, all with split=test", remedy)
    if len(kept) < len(cases):
        log(f"note: {len(cases) - len(kept)} of {len(cases)} cases are not trained with: the data set keeps them for tests")
    return kept


def _record(
    settings: Settings, dataset: Dataset, segmenter: Segmenter, checksums: dict[str, str], clock: Clock, log: Log
) -> dict[str, Any]:
    """The content of ``model.json``."""
    cases, pool = list(dataset.cases), {case: scan.patient for case, scan in dataset.pool.items()}
    record = run_record("train", settings, None, len(cases), clock.seconds, dataset.identity())
    known = read_calibrations(calibration_path(settings, dataset))
    decided = read_decisions(postprocessing_path(settings, dataset))
    fusions = read_fusions(fusion_path(settings, dataset))
    if known is None:
        log(
            "note: no calibration was found, so this model will report the agreement of its parts instead of a predicted Dice. "
            "Cross-validate with the same settings and cache before training to get one."
        )
    elif few := few_patients(known):
        log(f"note: {few} patients in the cross-validation are too few for 90 % intervals of the predicted Dice")
    return {
        **record,
        "format": FORMAT,
        "checksums": {**checksums, "settings": digest(record["settings"])},
        "calibration": None if known is None else plain_calibrations(known),
        "postprocessing": None if decided is None else plain_decisions(decided),
        "fusion": None if fusions is None else plain_fusions(fusions),
        "embedding": embedder(settings.features.name, settings.features.weights).key,
        "channels": channel_names(settings, dataset.library.channels),
        "cases": cases,
        "trained_on": cases,
        "scans": {**dataset.pool_scans, **dataset.scans},  # of all that the networks have seen
        "patients": {case: patient for case, patient in {**pool, **dataset.patients}.items() if patient != case},
        "atlases": {
            case: describe(segmenter.library, case, settings.data.scored, target.geometry)
            for case, target in dataset.targets.items()
        },
    }


def _check_unedited(folder: Path) -> None:
    """Refuse to put a new model in the place of one whose atlases were added or removed by hand."""
    try:
        edited = ModelRecord.read(folder).edited
    except OasisError:
        return  # nothing there, or what an interrupted training left
    if edited:
        remedy = "give another model=DIR, or add overwrite=true to lose the edits"
        raise ConfigError(
            "model", "a folder without a model, or one with its own atlases", f"{folder} with an edited library", remedy
        )
