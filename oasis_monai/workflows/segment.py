"""A trained model on new scans: each gets its label on its own grid, a picture, and a JSON file that tells how it came about."""

from __future__ import annotations

import errno
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from oasis_monai.atlases.features import Embedder, target_features
from oasis_monai.atlases.library import AtlasLibrary
from oasis_monai.data.formats.dispatch import ENDINGS, ending, remove_array
from oasis_monai.data.io import named, read_volume
from oasis_monai.data.types import Case, Preprocessed, Segmentation, Selection
from oasis_monai.evaluation.quality import Calibration
from oasis_monai.evaluation.quality_tables import calibration_for
from oasis_monai.networks.warp import folding_voxels
from oasis_monai.segmentation import flags
from oasis_monai.segmentation.agreement import SOURCES, overlaps
from oasis_monai.segmentation.alignment import KeptFields
from oasis_monai.segmentation.fusion import decide
from oasis_monai.segmentation.methods import check_methods, result_keys
from oasis_monai.segmentation.segmenter import Result, Segmenter, check_choice
from oasis_monai.settings import Settings
from oasis_monai.transforms.preprocessing import PreprocessCache, restore
from oasis_monai.transforms.spatial import inside
from oasis_monai.utils.errors import ConfigError, DataError, Fault
from oasis_monai.utils.files import file_digest, write_json
from oasis_monai.workflows.model_folder import calibrations, load_model, model_embedder, voxel_volume_ml
from oasis_monai.workflows.segment_table import FAILED, Row, read_told, row_of, table_text, with_earlier, write_table

FORMATS = tuple(e.removeprefix(".") for e in ENDINGS)
DICOM_RESULT = ".nii.gz"  # what a DICOM series gets where nothing else is asked for
SAME = 0.01  # standard deviations between two readings of one scan, as from another file format: an affine is float32 in NIfTI
HOPELESS = (errno.ENOSPC, errno.EROFS, errno.EDQUOT)  # the next scan would fail as well
Log = Callable[[str], None]


def segment_scans(
    model: Path,
    scans: Path,
    output: Path,
    n: int = 6,
    method: str | None = None,
    device: str = "auto",
    batch: int = 8,
    save_probability: bool = False,
    overwrite: bool = False,
    log: Log = print,
    file_format: str | None = None,
) -> list[Fault]:
    """Segment one scan or every scan of a folder (see :func:`oasis_monai.data.cases.find_cases`, layout ``folder``).

    A scan is finished when its JSON file is there, which is written last; finished scans are skipped unless ``overwrite``. At the
    end, also when it is interrupted, ``segment.csv`` tells of all scans of the output folder.

    Args:
        method: how to fuse; None: as suits the model, ``OASIS-joint`` for a joint one and ``OASIS`` for another.
        file_format: of the labels, one of :data:`FORMATS`; None: each scan's own, :data:`DICOM_RESULT` for DICOM.

    Returns:
        A fault per scan that could not be segmented, whatever the reason; the others are done all the same.

    Raises:
        ConfigError: a setting that cannot work with this model.
        OasisError: no model, or no scans.
        OSError: the disk is full or cannot be written.
    """
    from oasis_monai.data.cases import find_cases

    if method is not None:
        check_methods([method])
    if file_format is not None and file_format not in FORMATS:
        raise ConfigError("format", f"null (as the scan) or one of {', '.join(FORMATS)}", file_format)
    cases = find_cases(scans, "folder")
    # X_segmentation there may be X's reference, and in the folder above them a result would be the next run's scan
    if output.resolve() in {scans.resolve(), *(case.image.resolve().parent for case in cases)}:
        raise ConfigError("output", "a folder other than the scans' own", str(output), "give another output=DIR")
    # before the model is read: an edit between the two has its scans done again, and none passed over as finished
    version = file_digest(model / "model.json") if (model / "model.json").is_file() else ""
    settings, segmenter = load_model(model, device, batch)
    method = check_choice(segmenter, method, n)
    run = _Run(
        settings,
        segmenter,
        PreprocessCache(None, settings.preprocessing, settings.data.label_values),
        model_embedder(model, settings, device),
        output,
        (method, n),
        save_probability,
        file_format,
        flags.reach(segmenter.library, settings.features.distance),
        calibrations(model),
        version,
    )
    faults: list[Fault] = []
    rows: list[Row] = []
    try:
        for case in cases:
            try:
                told, made = run.result(case, overwrite)
            except Exception as error:
                if isinstance(error, OSError) and error.errno in HOPELESS:
                    raise
                own = _faults(case, error)
                faults += own
                rows.append(Row(case.id, FAILED, reason=str(own[0]).removeprefix(f"{case.id}: ")))
                log(f"{case.id}: failed")
            else:
                rows.append(row_of(told, skipped=not made))
                if made:  # the others are in the table
                    log(_line(told))
    finally:
        if output.is_dir() or rows:
            write_table(output, with_earlier(rows, output))
    _keep_pairs(segmenter, model, log)
    for line in table_text(rows).splitlines():
        log(line)
    log(f"{sum(row.status != FAILED for row in rows)} of {len(cases)} scans segmented into {output}")
    return faults


def _faults(case: Case, error: Exception) -> list[Fault]:
    """What stopped one scan, as faults of that scan."""
    if isinstance(error, DataError):
        return [replace(f, case=case.id) if f.case in ("", case.id) else named(case.id, [f])[0] for f in error.faults]
    text = " ".join(str(error).split())[:300]
    remedy = "look at this scan; if nothing is wrong with it, report this"
    return [Fault(case.id, "segment", "a scan that this model can segment", f"{type(error).__name__}: {text}", remedy)]


def _same_scan(case: Case, told: dict[str, Any], content: str) -> None:
    """Refuse to put a scan's result in the place of that of another scan with the same name, from another folder."""
    scan, before = str(case.image.resolve()), told.get("scan")
    if before not in (None, scan) and told["asked"].get("image") != content:
        remedy = "give another output=DIR, or overwrite=true to replace it"
        raise DataError(Fault(case.id, "output", f"no result of another scan of this name ({scan})", f"that of {before}", remedy))


def _files(told: dict[str, Any]) -> list[str]:
    """Labels and probabilities that a scan's JSON file tells of, which lie beside the next result as if they were its own."""
    own = [f"{told['case']}_{part}{kind}" for part in ("segmentation", "probability") for kind in ENDINGS]
    return [name for name in own if name in told["files"] and Path(name).name == name]  # the JSON file may be anyone's


def _varied(target: Preprocessed) -> Preprocessed:
    """Refuse an image with nothing to see in it: the networks would put something there all the same."""
    if float(target.image.min()) == float(target.image.max()):
        remedy = "export the scan again"
        raise DataError(Fault(target.case, "image", "different intensities in the field of view", "one value everywhere", remedy))
    return target


def _own_atlas(library: AtlasLibrary, target: Preprocessed, chosen: Selection) -> str | None:
    """The case of the library that this very scan is: then its own label is fused into it, which says nothing of accuracy."""
    return library.twin(target.image, SAME, dict.fromkeys(library.cases[row] for row in chosen.indices[:, 0].tolist()))


def _line(told: dict[str, Any]) -> str:
    volumes = ", ".join(f"{name} {ml:.1f} ml" for name, ml in told["volume_ml"].items())
    doubts = "".join(f"; {flag['name']}: {flag['text']}" for flag in told["flags"])
    doubts += f"; it is the model's atlas {told['is_atlas']}, no test of its accuracy" if told.get("is_atlas") else ""
    known = [f"{name} {100 * v:.0f} %" for name, v in told["predicted_dsc"].items() if v is not None]
    quality = f"; {'predicted DSC' if told['calibrated'] else 'agreement of the parts'} {', '.join(known)}" if known else ""
    return f"{told['case']}: {volumes}{quality}{doubts}"


def _keep_pairs(segmenter: Segmenter, model: Path, log: Log) -> None:
    if segmenter.loa is not None:
        try:
            segmenter.loa.save()
        except OSError:  # a model folder that is read-only serves as well, it only learns nothing
            log(f"warning: {model} cannot be written; new LOA pairs are not kept")


@dataclass(frozen=True)
class _Run:
    """What is the same for all scans. ``method`` with its n; ``reach``: see :func:`oasis_monai.segmentation.flags.reach`;
    ``calibrations``: :func:`oasis_monai.workflows.model_folder.calibrations`."""

    settings: Settings
    segmenter: Segmenter
    store: PreprocessCache
    embed: Embedder
    output: Path
    method: tuple[str, int]
    save_probability: bool
    file_format: str | None
    reach: float | None
    calibrations: Mapping[str, Mapping[str, Calibration]]
    model: str

    @property
    def _key(self) -> tuple[str, int]:
        """The method and its n as results are known by, 0 where no atlas is fused."""
        return result_keys(self.method[:1], self.method[1:])[0]

    def result(self, case: Case, overwrite: bool) -> tuple[dict[str, Any], bool]:
        """What the JSON file of a scan tells, and whether the scan was segmented for it now."""
        kind = f".{self.file_format}" if self.file_format else ending(case.image) or DICOM_RESULT
        asked = {"model": self.model, "method": self.method[0], "n": self.method[1], "format": kind}
        asked |= {"image": self.store.content(case.image), "recentre": self.segmenter.recentre}
        json_file = self.output / f"{case.id}.json"
        probability_file = self.output / f"{case.id}_probability{kind}"
        before = read_told(json_file)
        if before is not None and not overwrite:
            kept = probability_file.name in _files(before) and probability_file.is_file()
            if before["asked"] == asked and (kept or not self.save_probability):
                return before, False
            _same_scan(case, before, self.store.content(case.image))
        bare, values = case.without_label(), self.settings.data.label_values
        again = self.settings.preprocessing.elsewhere(lambda: read_volume(bare, values))
        target, voices, moved = self.segmenter.follow(_varied(self.store.get(bare)), self.method[:1], again)
        features = target_features(target, self.settings.spatial_dims, self.embed)
        fields = KeptFields(None, "")
        results, chosen = self.segmenter(target, features, self.method[:1], self.method[1:], fields, voices=voices)
        result = results[self._key]
        found = restore(result.probability, target.geometry, target.native, self.save_probability, case.id)
        told: dict[str, Any] = {"asked": asked, "case": case.id, "scan": str(case.image.resolve())}
        told["label"] = f"{case.id}_segmentation{kind}"
        told["moved_mm"] = [move * mm for move, mm in zip(moved, target.geometry.spacing_mm, strict=True)] if any(moved) else None
        told["is_atlas"] = _own_atlas(self.segmenter.library, target, chosen)
        told["files"] = [told["label"], *([probability_file.name] if found.probability is not None else [])]
        told |= self._numbers(target, result, found, chosen, fields.last)
        self._write(case, told, found, probability_file)
        if before is not None:
            same = {**before["asked"], "format": kind} == asked  # the same result in another format is still right
            others = [name for name in _files(before) if name not in told["files"]]
            for name in () if same else others:
                remove_array(self.output / name)
            told["files"] += others if same else []
        write_json(json_file, told)
        return told, True

    def _numbers(
        self, target: Preprocessed, result: Result, found: Segmentation, chosen: Selection, fields: torch.Tensor | None
    ) -> dict[str, Any]:
        """How the result came about, as plain values."""
        library, names = self.segmenter.library, list(self.settings.data.labels)
        voxel_ml = voxel_volume_ml(target.native.spacing_mm)
        folds: list[list[int | None]] = [[None] * row.numel() for row in chosen.indices]
        total = 0
        if fields is not None:  # (T, n, D, *s)
            size = library.images.shape[2:]
            folds = [folding_voxels(own, size).tolist() for own in fields]
            total = chosen.indices.numel() * size.numel()
        folded = sum(count or 0 for row in folds for count in row)
        atlases = [
            [
                {
                    "case": library.cases[row],
                    "slice": int(library.slices[row]),
                    "distance": round(float(d), 6),
                    "folding_voxels": count,
                }
                for row, d, count in zip(rows.tolist(), distances.tolist(), counts, strict=True)
            ]
            for rows, distances, counts in zip(chosen.indices, chosen.distances, folds, strict=True)
        ]
        agreement, predicted, unsure, calibrated = self._quality(result, names)
        doubts = (
            flags.unsure(predicted, unsure, calibrated),
            flags.unlike_atlases(chosen.distances[:, 0], self.reach),
            flags.empty(found.label, names),
            flags.cut(decide(result.probability), inside(target.native, target.geometry), names),
            flags.folding(folded, total),
        )
        return {
            "volume_ml": {name: round(float((found.label == i).sum()) * voxel_ml, 3) for i, name in enumerate(names, 1)},
            "atlases": atlases,
            "weights": None if result.weights is None else [[round(float(w), 6) for w in row] for row in result.weights],
            "agreement": agreement,
            "predicted_dsc": {name: None if math.isnan(v) else round(v, 4) for name, v in predicted.items()},
            "calibrated": calibrated,
            "folding_voxels": folded if total else None,
            "field_voxels": total or None,
            "usual_distance": None if self.reach is None else round(self.reach, 6),
            "flags": [doubt.to_json() for doubt in doubts if doubt is not None],
        }

    def _quality(self, result: Result, names: list[str]) -> tuple[dict[str, Any], dict[str, float], list[str], bool]:
        """Per structure the overlaps of the result's parts and the DSC to expect of them; the structures that are likely
        failures; and whether the predictions are calibrated."""
        told: dict[str, Any] = {}
        predicted: dict[str, float] = {}
        unsure = []
        calibrated = True
        if result.agreement is None:  # FwoW, STAPLE: nothing is compared, nothing predicted
            return {}, dict.fromkeys(names, math.nan), [], False
        for name, values in zip(names, overlaps(result.agreement).tolist(), strict=True):
            told[name] = {s: None if math.isnan(v) else round(v, 4) for s, v in zip(SOURCES, values, strict=True)}
            model = calibration_for(self.calibrations, *self._key, name, values)
            predicted[name] = model.predict(values)
            calibrated &= model.spread is not None
            if model.flag(predicted[name]):
                unsure.append(name)
        return told, predicted, [name for name in unsure if not math.isnan(predicted[name])], calibrated

    def _write(self, case: Case, told: dict[str, Any], found: Segmentation, probability_file: Path) -> None:
        """Label, probability and picture of one scan."""
        from oasis_monai.data.io import read_image, to_canonical, write_label, write_probability
        from oasis_monai.evaluation.contours import overlay

        (self.output / f"{case.id}.json").unlink(missing_ok=True)  # it would tell of a label that is being replaced
        write_label(self.output / told["label"], found.label, found.geometry, self.settings.data.label_values)
        if found.probability is not None:
            write_probability(probability_file, found.probability, found.geometry)
        image, geometry = read_image(case.image)
        shown, spacing_mm = to_canonical(image[0].numpy(), geometry.affine)
        label, _ = to_canonical(found.label.numpy(), geometry.affine)
        doubts = ", ".join(flag["name"] for flag in told["flags"])
        title = f"{case.id}  {self.method[0]}-{self.method[1]}" + (f"  [{doubts}]" if doubts else "")
        labels = dict(enumerate(self.settings.data.labels, 1))
        overlay(self.output / f"{case.id}.png", shown, None, label, spacing_mm, title, labels=labels)
