"""Segment new scans with a trained model: each gets a label on its own grid, a picture and a JSON record."""

from __future__ import annotations

import errno
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypedDict, Unpack

from oasis_monai.data.formats.dispatch import data_files, map_ending, remove_array
from oasis_monai.data.formats.structure import Look, check_looks
from oasis_monai.data.image_grid import named
from oasis_monai.data.io import read_volume, to_canonical
from oasis_monai.data.segment_table import read_segments
from oasis_monai.data.settings import DataSettings
from oasis_monai.data.types import Case, Volume
from oasis_monai.evaluation.postprocessing import check_mode
from oasis_monai.evaluation.structure_statistics import measure_structures
from oasis_monai.segmentation.methods import check_methods
from oasis_monai.segmentation.pipeline import check_choice, number_of_atlases
from oasis_monai.segmentation.postprocessing import AUTO, Change
from oasis_monai.segmentation.segmenter import Segmenter
from oasis_monai.utils.errors import ConfigError, DataError, Fault
from oasis_monai.utils.files import digest, file_digest, write_json
from oasis_monai.utils.words import SHOWN, listed, shortened
from oasis_monai.workflows.fold_models import views_identity
from oasis_monai.workflows.model import Model, load_model, whole_number
from oasis_monai.workflows.model_folder import ModelRecord
from oasis_monai.workflows.result_files import ENDINGS, check_format, label_ending, source_for, write_statistics
from oasis_monai.workflows.scan_result import ScanResult, mask_files
from oasis_monai.workflows.segment_table import FAILED, Row, merge_earlier_rows, read_record, row_of, table_text, write_table

MAPS = ("probability", "uncertainty")  # that can be written beside a label
HOPELESS = (errno.ENOSPC, errno.EROFS, errno.EDQUOT)  # errors after which the next scan would fail too
Log = Callable[[str], None]


class SegmentOptions(TypedDict, total=False):
    """The options of :func:`segment_scans`; the names of the command line in brackets where they differ.

    Args:
        n: atlases to fuse; None: 6, or all where there are fewer.
        method: how to fuse [methods]; None: as suits the model, ``OASIS-joint`` for a joint one and ``OASIS`` for another.
        device: where to run (``auto``).
        batch: atlases aligned at once (8) [align_batch].
        save_probability, save_uncertainty: write the probability, the uncertainty beside the label.
        save_structures: write a mask of every structure beside the label; always where the training labels had masks.
        overwrite: do finished scans again.
        file_format: of the labels, one of :data:`.result_files.FORMATS` [format]; None: each scan's own
            (:func:`.result_ending`). ``dicom-seg`` and ``rtstruct`` need DICOM series.
        segments: colours and codes of the structures for ``seg.nrrd``, ``dicom-seg`` and ``rtstruct``: a map or the path of a
            file, see :func:`oasis_monai.data.segment_table.read_segments`; None: those of the model.
        postprocessing: ``auto``, ``none`` or ``all``, see :func:`oasis_monai.evaluation.postprocessing.choice_for`.
        views: for which scans other views are looked for, ``none``, ``doubtful`` or ``all``; None: as the model was trained.
        views_below: the agreement below which a scan is doubtful; None: as the model was trained.
        data: how the scans lie, such as templates of their names; None: as :func:`oasis_monai.data.scans.find_scans` recognises.
        leave: ids of scans to pass over, such as those whose results somebody has corrected since.
    """

    n: int | None
    method: str | None
    device: str
    batch: int
    save_probability: bool
    save_uncertainty: bool
    save_structures: bool
    overwrite: bool
    file_format: str | None
    segments: str | Path | Mapping[str, Any] | None
    views: str | None
    views_below: float | None
    data: DataSettings | None
    postprocessing: str
    leave: Collection[str]


def segment_scans(
    model: str | Path, scans: str | Path, output: str | Path, log: Log = print, **options: Unpack[SegmentOptions]
) -> list[Fault]:
    """Segment one scan, or every scan of a folder, a table or a list (see :func:`oasis_monai.data.scans.find_scans`), with the
    channels that the model has.

    A scan is finished when its JSON file exists, which is written last; finished scans are skipped unless ``overwrite``. At the
    end, also after an interruption, ``segment.csv`` lists all scans of the output folder, and ``statistics.csv`` their
    structures.

    Args:
        model: the folder of a trained model.
        scans: a file, a DICOM series, a folder (``imagesTs`` of nnU-Net too), a CSV or TSV with a line for each scan, or a data
            list of MONAI (its ``test``).
        output: another folder.
        log: gets a line per scan.
        options: see :class:`SegmentOptions`.

    Returns:
        A fault per scan that could not be segmented, whatever the reason; the other scans are still segmented.

    Raises:
        ConfigError: an unknown option, or one that cannot work with this model.
        OasisError: no model, or no scans.
        OSError: the disk is full or cannot be written.
    """
    known = list(SegmentOptions.__annotations__)
    for key in options:
        if key not in known:
            raise ConfigError(key, f"one of {known}", "an unknown option", "correct or remove it")
    model, scans, output = Path(model), Path(scans), Path(output)
    method, file_format = options.get("method"), options.get("file_format")
    channels = ModelRecord.read(model).channels
    told = options.get("segments")
    given = None if told is None else read_segments(told)  # an error before the model is read
    cases = _find_scans(scans, output, method, file_format, log, options.get("data"), channels)
    cases = [case for case in cases if case.id not in options.get("leave", ())]
    asked_views = options.get("views"), options.get("views_below")
    loaded = load_model(model, options.get("device", "auto"), options.get("batch", 8), *asked_views)
    asked_n = options.get("n")
    n = number_of_atlases(loaded.segmenter, None if asked_n is None else whole_number("n", asked_n))
    chosen = check_choice(loaded.segmenter, method, n)
    looks = loaded.looks if given is None else given
    check_looks(looks, loaded.structures)
    postprocessing = options.get("postprocessing", AUTO)
    check_mode(postprocessing, loaded.anatomy)
    _ = loaded.embed, loaded.calibrations, loaded.decisions  # raise errors of the model here, not as a fault of the first scan
    data = options.get("data")
    anonymous = data is not None and data.anonymous
    maps = tuple(part for part in MAPS if options.get(f"save_{part}", False))
    masks = options.get("save_structures", False) or loaded.settings.data.overlap
    run = _Run(loaded, output, chosen, n, maps, file_format, log, anonymous, postprocessing, looks, masks)
    faults: list[Fault] = []
    rows: list[Row] = []
    try:
        for case in cases:
            row, own = _segment_one(run, case, options.get("overwrite", False), log)
            rows.append(row)
            faults += own
    finally:
        if output.is_dir() or rows:
            write_table(output, merge_earlier_rows(rows, output))
            write_statistics(output)
    _keep_pairs(loaded.segmenter, model, log)
    for line in table_text(rows).splitlines():
        log(line)
    log(f"{sum(row.status != FAILED for row in rows)} of {len(cases)} scans segmented into {output}")
    return faults


def _find_scans(
    scans: Path,
    output: Path,
    method: str | None,
    file_format: str | None,
    log: Log,
    data: DataSettings | None,
    channels: tuple[str, ...],
) -> list[Case]:
    """Find the scans, and refuse options that cannot work before the model is read."""
    from oasis_monai.data.scans import find_scans

    if method is not None:
        check_methods([method])
    check_format(file_format)
    cases = find_scans(scans, data, channels, lambda fault: log(f"warning: {fault}"))
    # X_segmentation there may be X's reference, and in the folder above them a result would be the next run's scan
    if output.resolve() in {scans.resolve(), *(p.resolve().parent for case in cases for s in case.sources for p in s)}:
        raise ConfigError("output", "a folder other than the scans' own", str(output), "give another output=DIR")
    check_format(file_format, cases)
    return cases


def _segment_one(run: _Run, case: Case, overwrite: bool, log: Log) -> tuple[Row, list[Fault]]:
    """One scan's row of the table, and what stopped it.

    Raises:
        OSError: the next scan would fail as well.
    """
    try:
        record, segmented_now = run.result(case, overwrite)
    except Exception as error:
        if isinstance(error, OSError) and error.errno in HOPELESS:
            raise
        faults = _faults(case, error)
        log(f"{case.id}: failed")
        return Row(case.id, FAILED, reason=str(faults[0]).removeprefix(f"{case.id}: ")), faults
    if segmented_now:  # the others are in the table
        log(_line(record))
    return row_of(record, skipped=not segmented_now), []


def _faults(case: Case, error: Exception) -> list[Fault]:
    """What stopped one scan, as faults of that scan."""
    if isinstance(error, DataError):
        return [replace(f, case=case.id) if f.case in ("", case.id) else named(case, [f])[0] for f in error.faults]
    text = " ".join(str(error).split())[:300]
    remedy = "check this scan; if it is sound, report this as a bug"
    return [Fault(case.id, "segment", "a scan that this model can segment", f"{type(error).__name__}: {text}", remedy)]


def _same_scan(case: Case, record: dict[str, Any], content: str) -> None:
    """Refuse to put a scan's result in the place of that of another scan with the same name, from another folder."""
    scan = str(case.image.resolve())
    before = record.get("scan", scan)  # earlier versions did not say; None: it may name nobody
    if before != scan and record["asked"].get("image") != content:
        remedy = "give another output=DIR, or overwrite=true to replace it"
        expected = f"no result of another scan of this name{f' ({scan})' if before else ''}"
        raise DataError(Fault(case.id, "output", expected, f"that of {before or 'another scan'}", remedy))


def _files(record: dict[str, Any]) -> list[str]:
    """Labels and maps that a scan's JSON file lists."""
    own = [f"{record['case']}_{part}{kind}" for part in ("segmentation", *MAPS) for kind in ENDINGS]
    masks = record.get("masks")
    own += (
        [str(name) for name in masks.values() if str(name).startswith(f"{record['case']}_mask_")]
        if isinstance(masks, dict)
        else []
    )
    return [name for name in own if name in record["files"] and Path(name).name == name]  # the JSON file may come from anyone


def _line(record: dict[str, Any]) -> str:
    """What is told of a scan; of many structures a few, as all of it is in the JSON file."""
    own = f"{record['case']}.json"
    volumes = listed(f"{name} {ml:.1f} ml" for name, ml in record["volume_ml"].items())
    remarks = (f"{flag['name']}: {flag['text']}" for flag in record["flags"])
    doubts = "".join(f"; {shortened(remark, own)}" for remark in remarks)
    doubts += (
        f"; this scan is the model's atlas {record['is_atlas']}, so the result is no test of accuracy"
        if record.get("is_atlas")
        else ""
    )
    if theirs := record.get("atlases_of_patient"):
        doubts += f"; {', '.join(theirs)} among the model's atlases are of this patient, so the result is no test of accuracy"
    intervals = record.get("dsc_interval_90", {})
    expected = {name: v for name, v in record["predicted_dsc"].items() if v is not None}
    if len(expected) > SHOWN:  # the worst ones
        expected = dict(sorted(expected.items(), key=lambda one: one[1]))
    known = listed(f"{name} {100 * v:.0f} %{_interval(intervals.get(name))}" for name, v in expected.items())
    quality = f"; {'predicted DSC' if record['calibrated'] else 'agreement of the parts'} {known}" if known else ""
    changes = "; ".join(str(Change(**change)) for change in record.get("postprocessed", []))
    edits = f"; {shortened(changes, own)}" if changes else ""
    return f"{record['case']}: {volumes}{quality}{edits}{doubts}"


def _interval(ends: Sequence[float] | None) -> str:
    if ends is None:
        return ""
    low, high = (f"{100 * end:.0f}" for end in ends)
    return f" (90 % interval {low} to {high} %)"


def _keep_pairs(segmenter: Segmenter, model: Path, log: Log) -> None:
    if segmenter.loa is not None:
        try:
            segmenter.loa.save()
        except OSError:  # a read-only model folder works too, but it cannot store the pairs
            log(f"warning: cannot write to {model}; newly computed LOA pairs are not saved")


@dataclass(frozen=True)
class _Run:
    """The model and options that all scans of a command share."""

    model: Model
    output: Path
    method: str
    n: int
    maps: tuple[str, ...]
    file_format: str | None
    log: Log
    anonymous: bool = False
    postprocessing: str = AUTO
    looks: Mapping[str, Look] = field(default_factory=dict)
    masks: bool = False

    def result(self, case: Case, overwrite: bool) -> tuple[dict[str, Any], bool]:
        """The content of a scan's JSON file, and whether the scan was segmented now (not before)."""
        kind = label_ending(self.file_format, case.image)
        asked = self._asked(case, kind)
        json_file = self.output / f"{case.id}.json"
        map_files = {part: self.output / f"{case.id}_{part}{map_ending(kind)}" for part in self.maps}
        mask_names = mask_files(case.id, self.model.structures, kind) if self.masks else {}
        before = read_record(json_file)
        if before is not None and not overwrite:
            names = [*(file.name for file in map_files.values()), *mask_names.values()]
            has_all = all(name in _files(before) and (self.output / name).is_file() for name in names)
            if before["asked"] == asked and has_all:
                return before, False
            _same_scan(case, before, asked["image"])
        source = source_for(kind, case)
        volume = read_volume(case.without_label(), self.model.settings.data.label_values)
        self.model.record.check_channels(case.id, len(volume.image))
        for note in volume.notes:
            self.log(f"warning: {note}")
        kept = [part in self.maps for part in MAPS]
        result = self.model.segment_volume(volume, self.method, self.n, kept[0], self.postprocessing, kept[1])
        record: dict[str, Any] = {"asked": asked, "case": case.id}
        record["scan"] = None if self.anonymous else str(case.image.resolve())  # folders are called by people
        record["label"] = f"{case.id}_segmentation{kind}"
        record["files"] = [record["label"], *(file.name for file in map_files.values()), *mask_names.values()]
        record |= {"masks": mask_names} if mask_names else {}
        record |= result.to_json()
        structures = result.named_structures(self.looks)
        record["statistics"] = {
            name: measured.to_json()
            for name, measured in measure_structures(structures, volume.image.numpy(), volume.geometry).items()
        }
        record["channels"] = list(self.model.record.channels) if len(volume.image) > 1 else []
        known = case.patient != case.id  # an id alone is only a file's name
        record["atlases_of_patient"] = self.model.segmenter.library.cases_of(case.patient) if known else []
        json_file.unlink(missing_ok=True)  # it describes a label that is being replaced
        result.save(self.output / record["label"], scan=source, segments=self.looks, **map_files)
        if mask_names:
            result.save_masks(self.output, kind)
        self._draw(volume, result)
        if before is not None:
            record["files"] += self._left_of(before, record["files"], {**before["asked"], "format": kind} == asked)
        write_json(json_file, record)
        return record, True

    def _asked(self, case: Case, kind: str) -> dict[str, Any]:
        """What a result depends on; when any of it has changed, a finished scan is segmented again."""
        return {
            "model": self.model.record.version,
            "method": self.method,
            "n": self.n,
            "format": kind,
            "image": file_digest(*(file for source in case.sources for file in data_files(source))),
            "recentre": self.model.segmenter.recentres,
            **({"take": list(case.take)} if case.take else {}),
            **({} if self.postprocessing == AUTO else {"postprocessing": self.postprocessing}),
            **({"segments": digest({name: asdict(look) for name, look in self.looks.items()})} if self.looks else {}),
            **views_identity(self.model.settings),
        }

    def _left_of(self, before: dict[str, Any], files: list[str], same: bool) -> list[str]:
        """Remove the files of an earlier result, unless it is the same result in another format; returns the files that stay."""
        others = [name for name in _files(before) if name not in files]
        for name in () if same else others:
            remove_array(self.output / name)
        return others if same else []

    def _draw(self, volume: Volume, result: ScanResult) -> None:
        """The picture of one scan: its first channel."""
        from oasis_monai.evaluation.contours import overlay

        shown, spacing_mm = to_canonical(volume.image[0].numpy(), volume.geometry.affine)
        label, _ = to_canonical(result.classes.numpy(), volume.geometry.affine)
        doubts = ", ".join(flag.name for flag in result.flags)
        shown_channel = f", {self.model.record.channels[0]}" if len(volume.image) > 1 else ""
        title = f"{volume.case}{shown_channel}  {self.method}-{self.n}" + (f"  [{doubts}]" if doubts else "")
        names = dict(enumerate(self.model.labels, 1))
        path = self.output / f"{volume.case}.png"
        overlay(path, shown, None, label, spacing_mm, title, labels=names, structures=result.structures or None)
