"""Adapt a trained model to a new centre, scanner or population with a few labelled scans of it.

The model's networks are trained on for a few minutes (:mod:`.further_training`) and its library gets the scans as atlases. What
results is a complete model in a folder of its own; the model it comes from is only read. An interrupted command goes on from its
checkpoints in the cache when it is given again, and a folder counts as a model only once its ``model.json`` is there.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from oasis_monai.atlases.library import AtlasLibrary
from oasis_monai.data.formats.header import plain
from oasis_monai.data.settings import DataSettings
from oasis_monai.data.types import IGNORE
from oasis_monai.settings import Settings
from oasis_monai.training.trainer import TRAINING_VERSION
from oasis_monai.transforms.boxes import BOXES_VERSION, ScanPart
from oasis_monai.transforms.labels import structures
from oasis_monai.utils.errors import ConfigError, DataError, Fault
from oasis_monai.utils.files import digest, locked, write_json, write_text
from oasis_monai.workflows.further_training import FURTHER_VERSION, RATE, SHARE, train_further
from oasis_monai.workflows.library import SAME
from oasis_monai.workflows.model import Model, load_model
from oasis_monai.workflows.model_folder import describe, write_parts
from oasis_monai.workflows.prepare import Dataset, complete_data, find_and_check, prepare
from oasis_monai.workflows.run_record import Clock, run_record
from oasis_monai.workflows.same_structures import with_structures_of
from oasis_monai.workflows.training_record import keep_histories, tell_where, tracking_of

Log = Callable[[str], None]
PLAN = "plan.json"


def adapt_model(model: Path, output: Path, options: Settings, log: Log = print, overwrite: bool = False) -> Path:
    """Train a model on with the labelled scans of ``options.data``, and write the model that results.

    Grid, intensities, channels, structures and networks are the model's own. The names of structures count, not their values.

    Args:
        model: the folder of a trained model; it stays as it is.
        output: the folder to write the new model to.
        options: whose ``data``, ``training.iterations``, ``training.minutes``, ``training.checkpoint_minutes``, ``device``,
            ``align_batch``, ``cache``, ``progress`` and ``tracking`` count.
        log: gets what was recognised, and warnings.
        overwrite: also in the place of another model.

    Returns:
        ``output``.

    Raises:
        ConfigError: ``output`` is the model itself or holds another one; structures of other names.
        DataError: every fault of the scans; scans that are atlases already or show no structure.
        OasisError: it is no model folder, or a file of it has changed; training fails.
    """
    if output.resolve() == model.resolve():
        raise ConfigError("output", "another folder than model", str(output), "give output=NEWDIR: the model stays as it is")
    clock, cache = Clock(), Path(options.cache)
    loaded = load_model(model, options.device, options.align_batch)
    _ = loaded.embed, loaded.calibrations  # raise errors of the model here
    with clock("check and read"):
        scans = _read_scans(loaded, options, cache, log)
    settings = _settings_for(loaded.settings, options)
    identity = _identity(loaded, settings, scans)
    if not overwrite:
        _refuse_other_model(output, identity, scans.cases(loaded))
    folder = cache / "adapted" / digest(identity)
    tracking = tracking_of(replace(settings, tracking=options.tracking, cache=options.cache), output)
    tell_where(tracking, log)
    with clock("train"), locked(folder):
        segmenter = train_further(
            loaded.segmenter, settings, scans.library, folder, loaded.device, tracking=tracking, parts=scans.parts
        )
    if loaded.record.values["calibration"] is not None:
        log(
            "note: the predicted Dice and its interval stay as a cross-validation fitted them before, without these scans. "
            "Test them by `evaluate` on other labelled scans of the new centre."
        )
    with locked(output), clock("write"):
        checksums = write_parts(output, segmenter)
        keep_histories(output, [("", folder)])
        _keep_plan(model, output)
        write_json(output / "model.json", _record(loaded, settings, scans, segmenter.library, checksums, identity, clock))
    return output


@dataclass(frozen=True)
class _Scans:
    """The new scans, ready to be atlases.

    Args:
        dataset: them, by the ids that they have there.
        names: id there -> case of the library.
        library: their atlases, by their names and with the model's classes.
        data: where they are, and what their labels mean.
        parts: what the network that looks again in boxes learns from, by the names and with the classes of the library.
    """

    dataset: Dataset
    names: dict[str, str]
    library: AtlasLibrary
    data: DataSettings
    parts: Mapping[str, ScanPart]

    def cases(self, model: Model) -> list[str]:
        """The cases of the adapted model's library."""
        return list(dict.fromkeys([*model.segmenter.library.cases, *self.names.values()]))


def _read_scans(model: Model, options: Settings, cache: Path, log: Log) -> _Scans:
    """Find, check and preprocess the new scans.

    Raises:
        ConfigError, DataError: see :func:`adapt_model`.
    """
    found = complete_data(options.data, cache, "train", model.record.channels)
    data, told = _with_same_structures(model.settings.data, found.data)
    for line in (*found.said, *told):
        log(line)
    settings = replace(model.settings, data=data, device=options.device)
    cases = [case for case in find_and_check(settings, cache, log, "train") if case.label is not None]
    if not cases:
        raise DataError(Fault("", "data", "one labelled scan or more", "none", "correct data.root or data.include"))
    dataset = prepare(settings, cases, cache, log)
    _check_scans(model, dataset)
    names = _names(model, list(dataset.cases), Path(data.root))
    for case, name in names.items():
        if case != name:
            log(f"note: {case} becomes the atlas {name}, as the model has another {case}")
        own = dataset.patients[case]
        if own != case and (theirs := [*model.segmenter.library.cases_of(own), *model.record.cases_of(own)]):
            log(f"note: {name} is of the same patient as {', '.join(dict.fromkeys(theirs))}")
    known = [row for row in range(len(dataset.library)) if row not in dataset.unlabelled]  # others teach nothing
    library = dataset.library.subset(known)
    patients = tuple(p if p != c else names[c] for c, p in zip(library.cases, library.patients, strict=True))
    renamed = replace(library, cases=tuple(names[case] for case in library.cases), patients=patients)
    places = _classes_of(model, data)
    parts = {names[case]: one._replace(label=places[one.label.long()]) for case, one in dataset.parts.items()}
    return _Scans(dataset, names, _with_classes_of(model, places, renamed), data, parts)


def _with_same_structures(own: DataSettings, data: DataSettings) -> tuple[DataSettings, list[str]]:
    """The settings of the new scans with the structures of the model, each by its name; a structure without a name of its own
    (``label_1``) by its value.

    Raises:
        ConfigError: some of the model's structures are not there: training would take them for background; or structures share
            voxels there as in none of the model's labels, for which its networks have no class.
    """
    if own.structures or data.structures:
        made, told = with_structures_of(own, data)
        if new := [name for name in made.labels if name not in own.labels]:
            remedy = "train a model with these scans, or leave them out by data.include"
            raise ConfigError("data.structures", "structures that share voxels as in the model's labels", ", ".join(new), remedy)
        return made, told
    labels = own.labels
    if all(name == f"label_{value}" for name, value in data.labels.items()):
        there = set(labels.values()) <= set(data.labels.values())
    else:
        there = {plain(name) for name in labels} <= {plain(name) for name in data.labels}
    if not there:
        found = ", ".join(f"{name}: {value}" for name, value in data.labels.items())
        remedy = f"say which value is which, data.labels={{{', '.join(f'{name}: VALUE' for name in labels)}}}"
        raise ConfigError("data.labels", f"the model's structures {', '.join(labels)}", found, remedy)
    return with_structures_of(own, data)


def _classes_of(model: Model, data: DataSettings) -> torch.Tensor:
    """(256,) uint8: the model's class of each class of new scans, as the values in their files may have another order."""
    places = torch.arange(IGNORE + 1, dtype=torch.uint8)
    for number, name in enumerate(data.labels, 1):
        places[number] = [*model.labels].index(name) + 1
    return places


def _with_classes_of(model: Model, places: torch.Tensor, library: AtlasLibrary) -> AtlasLibrary:
    """Atlases whose classes are numbered as the model's."""
    fine = tuple(one._replace(label=places[one.label.long()]) for one in library.fine)
    members = model.segmenter.library.structures
    return replace(library, labels=places[library.labels.long()], fine=fine, structures=members)


def _names(model: Model, cases: list[str], root: Path) -> dict[str, str]:
    """The names of new cases in the library. An id is only a file's name: where the model has learned from a case of that name,
    the new one also has that of its data set."""
    record, library = model.record, model.segmenter.library
    taken = {*library.cases, *library.patients, *record.values["trained_on"]}
    made = dict[str, str]()
    for case in cases:
        name, number = case, 1
        while name in taken:
            number += 1
            home = root.expanduser().resolve().stem
            name = f"{home}-{case}" if number == 2 else f"{home}-{case}-{number - 1}"
        taken.add(name)
        made[case] = name
    return made


def _check_scans(model: Model, dataset: Dataset) -> None:
    """Refuse scans that cannot be new atlases of the model.

    Raises:
        DataError: every one that has other channels, shows no structure on the working grid, or is an atlas already.
    """
    library, atlases, faults = dataset.library, model.segmenter.library, list[Fault]()
    for case, target in dataset.targets.items():
        model.record.check_channels(case, len(target.image))
        if not structures(library.labels[dataset.rows(case)]).any():
            remedy = "give a scan whose structure lies in the field of view that the model was trained with"
            faults.append(Fault(case, "label", "some of it in the working field of view", "nothing", remedy))
        if (twin := atlases.twin(target.image, SAME, dict.fromkeys(atlases.cases))) is not None:
            found = f"the voxels of {twin}, an atlas of the model"
            faults.append(Fault(case, "image", "scans that are new to the model", found, "leave it out"))
    if faults:
        raise DataError(faults)


def _settings_for(own: Settings, options: Settings) -> Settings:
    """The model's settings with what of the options counts for a training."""
    budget = {key: getattr(options.training, key) for key in ("iterations", "minutes", "checkpoint_minutes")}
    machine = {key: getattr(options, key) for key in ("device", "align_batch", "progress")}
    return replace(own, training=replace(own.training, **budget), **machine)


def _identity(model: Model, settings: Settings, scans: _Scans) -> dict[str, Any]:
    """What the adapted networks depend on, as plain JSON values."""
    training = settings.training
    return {
        "model": model.record.version,
        "content": scans.dataset.identity(),
        "names": scans.names,
        "labels": dict(scans.data.labels),
        "iterations": training.iterations,
        "minutes": training.minutes,
        "device": model.device.partition(":")[0] if training.minutes is not None else "",
        "share": SHARE,
        "rate": RATE,
        "version": [TRAINING_VERSION, FURTHER_VERSION],
        **({"boxes": BOXES_VERSION} if scans.parts else {}),
    }


def _refuse_other_model(output: Path, identity: Mapping[str, Any], cases: list[str]) -> None:
    """Refuse to put the adapted model in the place of another one, or of one whose library was edited since.

    Raises:
        ConfigError: there is one.
    """
    if not (output / "model.json").exists():
        return
    try:
        before = json.loads((output / "model.json").read_text(encoding="utf-8"))
        same = before["adapted"][-1]["identity"] == digest(dict(identity)) and before["cases"] == cases
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        same = False
    if not same:
        remedy = "give another output=DIR, or add overwrite=true to replace it"
        raise ConfigError("output", "a folder without another model", f"{output} with one", remedy)


def _keep_plan(model: Path, output: Path) -> None:
    """Copy what the model's plan chose; the adapted one has the same."""
    if (model / PLAN).exists():
        write_text(output / PLAN, (model / PLAN).read_text(encoding="utf-8"))
    else:
        (output / PLAN).unlink(missing_ok=True)


def _record(
    model: Model,
    settings: Settings,
    scans: _Scans,
    library: AtlasLibrary,
    checksums: Mapping[str, str],
    identity: Mapping[str, Any],
    clock: Clock,
) -> dict[str, Any]:
    """The content of ``model.json``: that of the model before, and what was added."""
    before, names, dataset = model.record.values, scans.names, scans.dataset
    run = run_record("adapt", replace(settings, data=scans.data), None, len(names), clock.seconds, dataset.identity())
    told = ("command", "versions", "device", "threads", "commit", "timings_s")
    entry = {
        **{key: run[key] for key in ("data", "data_digest", *told)},
        "model": model.record.version,
        "cases": sorted(names.values()),
        "training": {"iterations": settings.training.iterations, "minutes": settings.training.minutes},
        "share": SHARE,
        "rate": RATE,
        "identity": digest(dict(identity)),
        "calibration": "of the model before, fitted without these cases" if before["calibration"] is not None else None,
    }
    new_atlases = {
        names[case]: describe(library, names[case], model.settings.data.scored, target.geometry)
        for case, target in dataset.targets.items()
    }
    atlases = {**before["atlases"], **new_atlases}
    patients = {names[case]: patient for case, patient in dataset.patients.items() if patient != case}
    contents = {case: one["scan"] for case, one in atlases.items() if "scan" in one}  # added by `library`, now trained on
    contents |= {names[case]: content for case, content in dataset.scans.items()}
    cases = list(dict.fromkeys(library.cases))
    return {
        **before,
        **{key: run[key] for key in ("task", *told)},
        "checksums": {**checksums, "settings": model.record.checksums["settings"]},
        "data_digest": digest([before.get("data_digest"), run["data_digest"]]),
        "cases": cases,
        "trained_on": list(dict.fromkeys([*before["trained_on"], *cases])),
        "scans": {**before.get("scans", {}), **contents},
        "patients": {**before.get("patients", {}), **patients},
        "atlases": atlases,
        "adapted": [*before.get("adapted", []), entry],
    }
