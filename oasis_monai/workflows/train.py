"""Fit the networks on all cases of a data set and write a model folder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from oasis_monai.atlases.features import embedder
from oasis_monai.data.folds import Fold, Split
from oasis_monai.evaluation.quality_tables import plain_calibrations, read_calibrations
from oasis_monai.networks.segmentation import Predictor
from oasis_monai.settings import Settings
from oasis_monai.utils.errors import ConfigError, OasisError
from oasis_monai.utils.files import digest, file_digest, locked, write_json
from oasis_monai.utils.tensor_files import save_tensors
from oasis_monai.workflows.fold_models import FoldModels, calibration_path
from oasis_monai.workflows.model_folder import (
    ESTIMATOR_PART,
    FORMAT,
    LIBRARY_PART,
    LOA_FILE,
    NEXT_LIBRARY,
    STM_PART,
    VOLUME_PART,
    Log,
    describe,
    keep_pairs,
    read_record,
    voxel_volume_ml,
)
from oasis_monai.workflows.prepare import check_pairs, find_and_check, prepare
from oasis_monai.workflows.run_record import Clock, run_record


def train_model(settings: Settings, folder: Path, log: Log = print, overwrite: bool = False) -> Path:
    """Fit the networks on all cases of the data set and write the model folder.

    Training goes on from its checkpoint in ``settings.cache`` when it was interrupted.

    Args:
        overwrite: also in the place of a model whose library was edited since its training.

    Raises:
        ConfigError: there is such a model.
    """
    if not overwrite:
        _check_unedited(folder)
    cache, clock = Path(settings.cache), Clock()
    settings = replace(settings, methods=("OASIS-joint",) if settings.registration.joint else ("OASIS",))
    with clock("check and read"):
        cases = find_and_check(settings, cache, log)
        prepared = prepare(settings, cases, cache, log)
    images = {case: tuple(range(len(prepared.rows(case)))) for case in prepared.targets}
    everything = Fold(0, images, {})
    split = Split("patient", settings.seed, (everything,))
    check_pairs(settings, split)
    models = FoldModels(settings, prepared, split, cache, log)
    with clock("train"):
        segmenter = models.segmenter(everything)
    assert segmenter.aligner is not None
    with locked(folder), clock("write"):
        for name in ("model.json", LOA_FILE, NEXT_LIBRARY):  # from here to the last line the folder is no model
            (folder / name).unlink(missing_ok=True)
        parts: dict[str, torch.nn.Module] = {STM_PART: segmenter.aligner.model}
        if segmenter.estimator is not None:
            parts[ESTIMATOR_PART] = segmenter.estimator.model
            if isinstance(segmenter.estimator.whole, Predictor):
                parts[VOLUME_PART] = segmenter.estimator.whole.model
        for name, network in parts.items():
            save_tensors(folder / name, {f"model.{k}": v.contiguous() for k, v in network.state_dict().items()})
        segmenter.library.save(folder / LIBRARY_PART)
        checksums = {name: file_digest(folder / name) for name in (*parts, LIBRARY_PART)}
        keep_pairs(segmenter, segmenter.library, folder, checksums[LIBRARY_PART])
        atlases = {}
        for case, target in prepared.targets.items():
            voxel_ml = voxel_volume_ml(target.geometry.spacing_mm)
            atlases[case] = describe(segmenter.library, case, settings.data.labels, voxel_ml)
        record = run_record("train", settings, None, len(cases), clock.seconds)
        known = read_calibrations(calibration_path(settings, prepared.content))
        if known is None:
            log("no calibration of the predicted DSC: cross-validate with the same settings and cache first to have one")
        record["calibration"] = None if known is None else plain_calibrations(known)
        checksums["settings"] = digest(record["settings"])
        record["embedding"] = embedder(settings.features.name, settings.features.weights).key
        more = {"format": FORMAT, "checksums": checksums, "trained_on": list(prepared.cases), "atlases": atlases}
        write_json(folder / "model.json", {**record, **more, "cases": list(prepared.cases)})
    return folder


def _check_unedited(folder: Path) -> None:
    """Refuse to put a new model in the place of one whose atlases were added or removed by hand."""
    try:
        record = read_record(folder)
    except OasisError:
        return  # nothing there, or what an interrupted training left
    if set(record["trained_on"]) != set(record["cases"]):
        remedy = "give another model=DIR, or add overwrite=true to lose the edits"
        raise ConfigError(
            "model", "a folder without a model, or one with its own atlases", f"{folder} with an edited library", remedy
        )
