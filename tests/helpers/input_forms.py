"""Forms in which a data set may lie on disk: the same scans, written as people have them."""

import csv
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from oasis_monai.data.phantom import write_phantom
from tests.helpers.dicom_objects import write_enhanced
from tests.helpers.dicom_segments import write_seg, write_seg_of_series
from tests.helpers.dicom_series import write_series
from tests.helpers.scans import write_contours, write_json_file, write_scan

PEOPLE = ("Anna", "Bert", "Carla")
UNKNOWN = 9
"""Value in label files of voxels that nobody labelled."""


@dataclass(frozen=True)
class Form:
    """One form.

    Args:
        write: function of the root's folder, labelled scans and new ones -> (``data.root=``, ``input=``).
        layout: as which it is recognised.
        scans: ``plain``, ``two`` (channels) or ``flat`` (of two dimensions).
        labels: the structures that are found.
        channels: their names, where the files give them.
        options: of ``train``, beside the budget; ``new``: those of ``segment``.
        patients: of the cases in order; None: each is of another.
        centres, folds: the same; None: nobody says.
        partly: some voxels are not labelled.
    """

    write: Callable
    layout: str
    scans: str = "plain"
    labels: dict = field(default_factory=lambda: {"label_1": 1})
    channels: tuple = ()
    options: tuple = ()
    new: tuple = ()
    patients: tuple | None = None
    centres: tuple | None = None
    folds: tuple | None = None
    partly: bool = False


def metaimages(folder, scans, new):
    """As PROMISE12 has them, by the package's own phantom."""
    write_phantom(folder, cases=len(scans), size="tiny")
    for scan in new:
        write_scan(folder.with_name("new") / f"{scan.name}.mhd", scan.image, scan.affine)
    return folder, folder.with_name("new")


def decathlon(folder, scans, new):
    for scan in scans:
        write_scan(folder / f"imagesTr/{scan.name}.nii.gz", scan.image, scan.affine)
        write_scan(folder / f"labelsTr/{scan.name}.nii.gz", scan.label, scan.affine)
    for scan in new:
        write_scan(folder / f"imagesTs/{scan.name}.nii.gz", scan.image, scan.affine)
    about = {"name": "gland", "modality": {"0": "T2"}, "labels": {"0": "background", "1": "gland"}, "numTraining": len(scans)}
    write_json_file(folder / "dataset.json", about)
    return folder, folder


def nnunet(folder, scans, new):
    """Two files a case; the new ones in ``imagesTs``."""
    for part, own in (("Tr", scans), ("Ts", new)):
        for scan in own:
            for number, image in enumerate((scan.image, scan.adc)):
                write_scan(folder / f"images{part}/{scan.name}_{number:04d}.nii.gz", image, scan.affine)
    for scan in scans:
        write_scan(folder / f"labelsTr/{scan.name}.nii.gz", scan.label, scan.affine)
    names = {"channel_names": {"0": "T2", "1": "ADC"}, "labels": {"background": 0, "gland": 1}}
    write_json_file(folder / "dataset.json", {**names, "numTraining": len(scans), "file_ending": ".nii.gz"})
    return folder, folder


def case_folders(folder, scans, new):
    """NRRD and 3D Slicer's segmentations, whose segments have names; new scans too have a folder each."""
    for scan in scans:
        write_scan(folder / scan.name / "t2.nrrd", scan.image, scan.affine)
        write_scan(folder / scan.name / "seg.seg.nrrd", scan.label * 3, scan.affine, {3: "Prostate gland"})
    for scan in new:
        write_scan(folder.with_name("new") / scan.name / "t2.nrrd", scan.image, scan.affine)
    return folder, folder.with_name("new")


def paired_mgz(folder, scans, new):
    for scan in scans:
        write_scan(folder / f"images/{scan.name}_t2.mgz", scan.image, scan.affine)
        write_scan(folder / f"labels/{scan.name}_gland.mgz", scan.label.astype(np.int16) * 17, scan.affine)
    for scan in new:
        write_scan(folder.with_name("new") / f"{scan.name}.mgz", scan.image, scan.affine)
    return folder, folder.with_name("new")


def templates(folder, scans, new):
    """Two scans of each person, and a value above 255."""
    for number, scan in enumerate(scans):
        start = folder / PEOPLE[number // 2] / f"scan{number % 2}"
        write_scan(f"{start}_t2.nii.gz", scan.image, scan.affine)
        write_scan(f"{start}_truth.nii.gz", scan.label.astype(np.int16) * 1000, scan.affine)
    for scan in new:
        write_scan(folder.with_name("new") / f"Dora/{scan.name}_t2.nii.gz", scan.image, scan.affine)
    return folder, folder.with_name("new")


def template_channels(folder, scans, new):
    """Two files a case, by a template for each channel."""
    for scan in scans:
        write_scan(folder / f"t2/{scan.name}.mhd", scan.image, scan.affine)
        write_scan(folder / f"adc/{scan.name}.mha", scan.adc, scan.affine)
        write_scan(folder / f"truth/{scan.name}.mhd", scan.label, scan.affine)
    for scan in new:
        write_scan(folder.with_name("new") / f"t2/{scan.name}.mhd", scan.image, scan.affine)
        write_scan(folder.with_name("new") / f"adc/{scan.name}.mha", scan.adc, scan.affine)
    return folder, folder.with_name("new")


MIXED = (".mhd", ".nii.gz", ".nrrd", ".mgz", ".hdr", "/")
"""Formats of the images of :func:`mixed_table`; the last is a folder with a DICOM series."""
MIXED_LABELS = (".nrrd", ".mhd", ".nii.gz", ".nii", ".mgz", ".nii.gz")


def mixed_table(folder, scans, new):
    """A disk where every scan has another format, and a table of it; new scans too."""
    rows = []
    for number, (scan, kind, truth) in enumerate(zip(scans, MIXED, MIXED_LABELS, strict=True)):
        image = _in_format(folder / f"disk {number}", scan, kind)
        label = write_scan(folder / f"drawn/{scan.name}{truth}", scan.label, scan.affine)
        centre, fold = ("HK", "London, RF")[number % 2], number // 2
        rows.append([scan.name, *(str(p.relative_to(folder)) for p in (image, label)), PEOPLE[number // 2], centre, fold])
    _write_table(folder / "cases.csv", ["id", "image", "label", "patient", "centre", "fold"], rows)
    there = folder.with_name("new")
    images = [
        (scan.name, _in_format(there, scan, kind).relative_to(there)) for scan, kind in zip(new, (".hdr", "/"), strict=True)
    ]
    _write_table(there / "new.csv", ["id", "image"], images)
    return folder / "cases.csv", there / "new.csv"


def _in_format(folder, scan, kind):
    if kind != "/":
        return write_scan(folder / f"{scan.name}{kind}", scan.image, scan.affine)
    _write_series(folder / f"{scan.name}_dicom", scan, _series(scan))
    return folder / f"{scan.name}_dicom"


def _write_table(path, columns, rows, separator=","):
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="", encoding="utf-8") as stream:
        csv.writer(stream, delimiter=separator).writerows([columns, *rows])


def datalist(folder, scans, new):
    entries = []
    for number, scan in enumerate(scans):
        write_scan(folder / f"i/{scan.name}.nii", scan.image, scan.affine)
        write_scan(folder / f"l/{scan.name}.nii", scan.label, scan.affine)
        names = {"image": f"i/{scan.name}.nii", "label": f"l/{scan.name}.nii"}
        entries.append({**names, "fold": number % 3, "patient": f"P{number // 2}", "site": "HK"})
    for scan in new:
        write_scan(folder / f"i/{scan.name}.nii", scan.image, scan.affine)
    tests = [f"i/{scan.name}.nii" for scan in new]
    content = {"name": "of MONAI", "labels": {"0": "background", "1": "gland"}, "training": entries, "test": tests}
    write_json_file(folder / "datalist.json", content)
    return folder / "datalist.json", folder / "datalist.json"


def _series(scan):
    return f"1.2.840.{int(scan.name[1:]) + 1}"


def _write_series(folder, scan, series):
    tags = {"0010|0020": scan.name, "0008|103e": "T2", "0020|0052": f"{series}.9", "0018|0050": "5"}
    write_series(folder, scan.image, scan.affine, series=series, **tags)


def series_with_segments(folder, scans, new):
    for scan in scans:
        _write_series(folder / "export" / scan.name, scan, _series(scan))
        files = sorted((folder / "export" / scan.name).iterdir())
        write_seg_of_series(folder / f"seg_{scan.name}.dcm", files, scan.label)
    for scan in new:
        _write_series(folder.with_name("new") / scan.name, scan, _series(scan))
    return folder, folder.with_name("new")


def series_with_contours(folder, scans, new):
    for scan in scans:
        _write_series(folder / scan.name / "scan", scan, _series(scan))
        write_contours(folder / scan.name / "rt.dcm", scan, _series(scan))
    for scan in new:
        _write_series(folder.with_name("new") / scan.name, scan, _series(scan))
    return folder, folder.with_name("new")


def enhanced_with_segments(folder, scans, new):
    for scan, there in [(s, folder) for s in scans] + [(s, folder.with_name("new")) for s in new]:
        write_enhanced(there / f"{scan.name}.dcm", scan.image, scan.affine, series=_series(scan), patient=scan.name)
    for scan in scans:
        write_seg(folder / f"{scan.name}_seg.dcm", folder / f"{scan.name}.dcm", scan.label, names=("Prostate",))
    return folder, folder.with_name("new")


def _written(folder, scans, new, image, label, foreground=1):
    """Images and labels under names with the scan's in the place of ``*``; images of new scans in a folder beside."""
    for scan in scans:
        write_scan(folder / image.replace("*", scan.name), scan.image, scan.affine)
        write_scan(folder / label.replace("*", scan.name), scan.label * foreground, scan.affine)
    for scan in new:
        write_scan(folder.with_name("new") / f"{scan.name}{image[-4:]}", scan.image, scan.affine)
    return folder, folder.with_name("new")


def pictures(folder, scans, new):
    return _written(folder, scans, new, "images/*.png", "masks/*.png")


def tiffs(folder, scans, new):
    return _written(folder, scans, new, "*.tif", "*_mask.tif", foreground=255)


def flat_metaimages(folder, scans, new):
    """Volumes of one slice."""
    return _written(folder, scans, new, "images/*.mhd", "labels/*.mhd")


def four_dimensions(folder, scans, new):
    """Both channels in one file."""
    for scan in scans:
        write_scan(folder / f"images/{scan.name}.nii.gz", np.stack([scan.image, scan.adc], -1).astype(np.float32), scan.affine)
        write_scan(folder / f"labels/{scan.name}.nii.gz", scan.label, scan.affine)
    for scan in new:
        both = np.stack([scan.image, scan.adc], -1).astype(np.float32)
        write_scan(folder.with_name("new") / f"{scan.name}.nii.gz", both, scan.affine)
    return folder, folder.with_name("new")


def partly_labelled(folder, scans, new):
    """Nobody labelled the left half of one scan."""
    for number, scan in enumerate(scans):
        label = scan.label.copy()
        if number == 1:
            label[: len(label) // 2] = UNKNOWN
        write_scan(folder / f"{scan.name}.nii.gz", scan.image, scan.affine)
        write_scan(folder / f"{scan.name}_label.nii.gz", label, scan.affine)
    for scan in new:
        write_scan(folder.with_name("new") / f"{scan.name}.nii.gz", scan.image, scan.affine)
    return folder, folder.with_name("new")


def channel_columns(folder, scans, new):
    """A table with tabs, and a column for each channel."""
    rows, later = [], []
    for own, made in ((scans, rows), (new, later)):
        for scan in own:
            write_scan(folder / f"{scan.name}_a.nii.gz", scan.image, scan.affine)
            write_scan(folder / f"{scan.name}_b.nrrd", scan.adc, scan.affine)
            made.append([f"{scan.name}_a.nii.gz", f"{scan.name}_b.nrrd"])
    for scan, row in zip(scans, rows, strict=True):
        row += [
            str(write_scan(folder / f"{scan.name}_drawn.mha", scan.label, scan.affine).relative_to(folder)),
            f"MRN {scan.name}",
        ]
    _write_table(folder / "cases.tsv", ["T2", "ADC", "label", "Subject"], rows, "\t")
    _write_table(folder / "new.tsv", ["T2", "ADC"], later, "\t")
    return folder / "cases.tsv", folder / "new.tsv"


TWO = ("T2", "ADC")
PAIRS = tuple(person for person in PEOPLE for _ in range(2))
BY_TEMPLATE = ("data.image={patient}/{scan}_t2.nii.gz", "data.label={patient}/{scan}_truth.nii.gz")
BY_CHANNEL = ("data.image={T2: t2/{id}.mhd, ADC: adc/{id}.mha}", "data.label=truth/{id}.mhd")
FLAT = ("spatial_dims=2",)
GLAND, DICOM = {"gland": 1}, {"Prostate": 1}

REFERENCES = {
    "plain": Form(metaimages, "promise12", labels={"prostate": 1}),
    "two": Form(template_channels, "templates", "two", channels=TWO, options=BY_CHANNEL, new=BY_CHANNEL[:1]),
    "flat": Form(flat_metaimages, "paired_folders", "flat", options=FLAT),
}
"""What the others are compared with: MetaImage."""
FORMS = {
    "MSD NIfTI": Form(decathlon, "msd", labels=GLAND, channels=TWO[:1]),
    "nnU-Net, two channels": Form(nnunet, "nnunet", "two", GLAND, TWO),
    "case folders, NRRD and seg.nrrd": Form(case_folders, "case_folders", labels={"Prostate gland": 3}),
    "two folders, MGZ": Form(paired_mgz, "paired_folders", labels={"label_17": 17}),
    "templates with patients": Form(
        templates, "templates", labels={"label_1000": 1000}, options=BY_TEMPLATE, new=BY_TEMPLATE[:1], patients=PAIRS
    ),
    "CSV of mixed formats": Form(
        mixed_table, "table", patients=PAIRS, centres=("HK", "London, RF") * 3, folds=(0, 0, 1, 1, 2, 2)
    ),
    "MONAI data list": Form(
        datalist,
        "datalist",
        labels=GLAND,
        patients=("P0", "P0", "P1", "P1", "P2", "P2"),
        centres=("HK",) * 6,
        folds=(0, 1, 2, 0, 1, 2),
    ),
    "DICOM series and SEG": Form(series_with_segments, "dicom", labels=DICOM),
    "DICOM series and RTSTRUCT": Form(series_with_contours, "dicom", labels=DICOM),
    "enhanced DICOM and SEG": Form(enhanced_with_segments, "dicom", labels=DICOM),
    "PNG": Form(pictures, "paired_folders", "flat", options=FLAT),
    "TIFF": Form(tiffs, "paired_files", "flat", {"label_255": 255}, options=FLAT),
    "NIfTI of four dimensions": Form(four_dimensions, "paired_folders", "two"),
    "partly labelled": Form(partly_labelled, "paired_files", options=(f"data.ignore={UNKNOWN}",), partly=True),
    "TSV with a column for each channel": Form(
        channel_columns, "table", "two", channels=TWO, patients=tuple(f"MRN p{n:02d}" for n in range(6))
    ),
}
