"""Edit the atlas library of a model folder without training again: list, add or remove cases.

The networks stay as they are: they do not learn from an added case, and do not forget a removed one. An edit takes effect
completely or not at all. The new library is written beside the old one, counts once ``model.json`` names its checksum (a single
rename), and then takes the old one's place. LOA pairs name their library, so pairs of another library are never used.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from oasis_monai.atlases.library import AtlasLibrary, build_library
from oasis_monai.data.io import read_volume
from oasis_monai.data.types import Case, Preprocessed
from oasis_monai.evaluation.tables import aligned_text
from oasis_monai.segmentation.estimate import estimate_atlases
from oasis_monai.segmentation.flags import view as view_flag
from oasis_monai.segmentation.pipeline import check_choice, number_of_atlases
from oasis_monai.settings import Settings
from oasis_monai.transforms.labels import structures
from oasis_monai.transforms.preprocessing import PreprocessCache, label_lost
from oasis_monai.utils.errors import ConfigError, DataError, Fault
from oasis_monai.utils.files import file_digest, locked, write_json
from oasis_monai.workflows.model import Model, load_model
from oasis_monai.workflows.model_folder import LIBRARY_PART, NEXT_LIBRARY, ModelRecord, describe, keep_pairs, retry_once

SAME = 1e-3
"""Two normalised images that differ by no more than this (in standard deviations) are the same scan: formats round affines."""
Log = Callable[[str], None]


def list_atlases(model: Path) -> str:
    """A table of the library's cases: id, patient where that is known, images (1, or slices), volume in ml of every label on the
    working grid, and whether the networks were trained on it; below it the total and the features that select.

    Raises:
        OasisError: it is no model folder, or its library has changed.
    """
    record, library = retry_once(lambda: _read_library(model))
    data, features = record["settings"]["data"], record["settings"]["features"]
    labels = data.get("structures") or data["labels"]
    several = library.patients != library.cases
    lines = [["case", *(["patient"] if several else []), "images", *(f"{name} ml" for name in labels), "trained on"]]
    for case in _cases(library):
        volumes = [f"{record['atlases'][case]['volume_ml'][name]:.1f}" for name in labels]
        trained = "yes" if case in record["trained_on"] else "no"
        patient = [library.patient_of(case)] if several else []
        lines.append([case, *patient, str(library.cases.count(case)), *volumes, trained])
    total = f"{len(lines) - 1} cases, {len(library)} images, selected by {features['name']} ({features['distance']})\n"
    return aligned_text(lines, left=(0, 1) if several else (0,)) + total


def add_atlas(
    model: Path,
    image: Path | Sequence[Path],
    label: Path,
    case: str | None = None,
    device: str = "auto",
    batch: int = 8,
    log: Log = print,
    patient: str | None = None,
) -> str:
    """Make a labelled scan an atlas of the model.

    Args:
        image, label: files on one grid; the image may be all that :meth:`oasis_monai.Model.segment` takes: a DICOM series (a file
            of it, or its folder), a table of one line, a list of a file for each channel.
        case: the case's id; None: the image's name.
        patient: the person it is of; None: what the scan itself says, else nobody else's.

    Returns:
        The id.

    Raises:
        ConfigError: the id is in the library, or cannot be one.
        DataError: the files cannot be an atlas: see :func:`.check_cases`, a label outside the working field of
            view, or a scan that is in the library under another id.
        OasisError: it is no model folder, or a file of it has changed.
    """
    from oasis_monai.data.formats.dicom_labels import names_for
    from oasis_monai.data.label_names import names_in
    from oasis_monai.data.scans import one_scan

    channels = ModelRecord.read(model).channels  # fails before the lock creates a folder
    images = [image] if isinstance(image, Path) else list(image)
    found = one_scan(images, channels, lambda fault: log(f"warning: {fault}"))
    name = found.id if case is None else case
    if not name.strip() or name != Path(name).name or not name.isprintable():
        raise ConfigError("case", "a name without / and control characters", name, "give case=ID")
    with locked(model):
        _finish_edit(model)
        loaded = load_model(model, device, batch)
        settings, library = loaded.settings, loaded.segmenter.library
        if name in library.cases:
            raise ConfigError("case", "an id that is not in the library", name, f"give case=ID, or remove={name} first")
        own = found.patient if found.patient != found.id else name
        scan = replace(found, id=name, label=label, patient=own if patient is None else patient)
        if own_names := names_in([scan]):
            scan = replace(scan, names=() if settings.data.overlap else names_for(own_names, settings.data.labels))
        if settings.data.structures:
            scan = replace(
                scan, structures=tuple(settings.data.structures.items()), overlapping=bool(own_names) and settings.data.overlap
            )
        if theirs := library.cases_of(scan.patient):
            log(f"note: {name} is of the same patient as {', '.join(theirs)}")
        item = _preprocessed(scan, settings, log)
        loaded.record.check_channels(name, len(item.image))
        twin = library.twin(item.image, SAME, _cases(library))
        if twin is not None:
            raise DataError(
                Fault(name, "image", "each scan only once", f"the voxels of {twin}, an atlas", f"remove={twin} first")
            )
        item = _in_best_view(scan, item, loaded, log)
        new_atlases = _atlases(item, loaded, scan.patient)
        merged = library.merge(new_atlases)
        described = describe(replace(new_atlases, structures=library.structures), name, settings.data.scored, item.geometry)
        described["scan"] = PreprocessCache(None, settings.preprocessing, settings.data.label_values).image_content(scan)
        atlases = {**loaded.record.values["atlases"], name: described}
        _replace(loaded, merged, atlases, torch.arange(len(library)))
    return name


def remove_atlas(model: Path, case: str, device: str = "auto", batch: int = 8, log: Log = print) -> None:
    """Take a case out of the model's library. Its networks may have been trained on it and keep what they learned.

    Raises:
        ConfigError: no such case, or too few atlases would stay.
        OasisError: it is no model folder, or a file of it has changed.
    """
    ModelRecord.read(model)
    with locked(model):
        _finish_edit(model)
        loaded = load_model(model, device, batch)
        settings, library = loaded.settings, loaded.segmenter.library
        if case not in library.cases:
            raise ConfigError("remove", f"a case of the library: {', '.join(_cases(library))}", case, "choose one of these")
        rows = torch.tensor([i for i, other in enumerate(library.cases) if other != case], dtype=torch.int64)
        least = max(1, settings.joint.atlases if settings.registration.joint else 0)
        if len(rows) < least:
            raise ConfigError("remove", f"a library that keeps {least} atlases or more", case, "add another case first")
        atlases = {name: value for name, value in loaded.record.values["atlases"].items() if name != case}
        _replace(loaded, library.subset(rows), atlases, rows)
    if len(rows) < max(settings.n):
        log(f"note: the library has {len(rows)} atlases left; segment with n={len(rows)} or less")


def _cases(library: AtlasLibrary) -> list[str]:
    return list(dict.fromkeys(library.cases))


def _preprocessed(case: Case, settings: Settings, log: Log) -> Preprocessed:
    """A labelled case on the working grid, after the checks a data set has to pass."""
    from oasis_monai.workflows.check import check_cases

    data = settings.data
    faults = [
        fault for fault in check_cases([case], data.label_values, ignore=data.ignore, structures=data.shared) if fault.case
    ]  # nothing of a data set
    store = PreprocessCache(None, settings.preprocessing, data.label_values, data.ignore)
    item = None
    if all(fault.severity != "error" for fault in faults):
        item = store.get(case)
        faults += store.faults()
    for fault in faults:
        if fault.severity != "error":
            log(f"warning: {fault}")
    errors = [fault for fault in faults if fault.severity == "error"]
    if errors or item is None:
        raise DataError(errors)
    assert item.label is not None
    if not structures(item.label).any():
        remedy = "give a scan whose structure lies in the field of view that the model was trained with"
        raise DataError(Fault(case.id, "label", "some of it in the working field of view", "nothing", remedy))
    return item


def _in_best_view(case: Case, item: Preprocessed, model: Model, log: Log) -> Preprocessed:
    """The case as an atlas like the others: in another view, where networks and atlases agree more on it there."""
    if model.segmenter.view_search is None:
        return item
    settings = model.settings
    volume = read_volume(case, settings.data.label_values, settings.data.ignore)
    n = number_of_atlases(model.segmenter, None)
    found = model.find(replace(volume, label=None), check_choice(model.segmenter, None, n), n)
    told = view_flag(found.tried)
    if told is None:
        return item
    seen = settings.preprocessing.apply(volume, found.offset, found.view)
    if label_lost(volume, seen) > label_lost(volume, item):
        return item
    log(f"warning: {case.id}: {told.text}; it is added as it is seen there")
    return seen


def _atlases(item: Preprocessed, model: Model, patient: str) -> AtlasLibrary:
    """Turn the case into atlases like those of the model's library. The estimates of the other atlases stay as they are: they
    belong to the library at the time they were computed."""
    library, settings, estimator = model.segmenter.library, model.settings, model.segmenter.estimator
    new_atlases = build_library([item], settings.spatial_dims, model.embed, library.classes, {item.case: patient})
    if estimator is None:
        return new_atlases
    both = replace(library, estimates=None).merge(new_atlases)
    rows = torch.arange(len(library), len(both))
    return new_atlases.with_estimates(estimate_atlases(estimator, both, settings.joint.atlases, rows=rows))


def _read_library(model: Path) -> tuple[dict[str, Any], AtlasLibrary]:
    record = ModelRecord.read(model)
    return dict(record.values), record.library()


def _finish_edit(model: Path) -> None:
    """Finish an edit that was killed late, and remove what one left behind."""
    current = ModelRecord.read(model).part(LIBRARY_PART)
    if current.name != LIBRARY_PART:
        os.replace(current, model / LIBRARY_PART)
    for left in (model / NEXT_LIBRARY, *model.glob(f".{NEXT_LIBRARY}.*")):
        left.unlink(missing_ok=True)


def _replace(model: Model, library: AtlasLibrary, atlases: Mapping[str, Any], kept: torch.Tensor) -> None:
    """Put an edited library in the place of the model's.

    Args:
        atlases: what ``model.json`` holds of each case.
        kept: rows of the model's library that are the edited one's first ones.
    """
    folder = model.folder
    library.save(folder / NEXT_LIBRARY)
    checksum = file_digest(folder / NEXT_LIBRARY)
    checksums = {**model.record.checksums, LIBRARY_PART: checksum}
    edited = {"checksums": checksums, "cases": _cases(library), "atlases": atlases}
    write_json(folder / "model.json", {**model.record.values, **edited})
    os.replace(folder / NEXT_LIBRARY, folder / LIBRARY_PART)
    keep_pairs(model.segmenter, library, folder, checksum, kept)
