"""Find the cases of a data set by its folder layout. Only the headers of DICOM files are read."""

from __future__ import annotations

import contextlib
import os
import re
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from oasis_monai.data.formats.dicom import is_dicom
from oasis_monai.data.formats.dispatch import ENDINGS, METAIMAGE, NIFTI, ending, is_second_file, scans_among
from oasis_monai.data.formats.header import shown
from oasis_monai.data.layouts.dicom import series_cases
from oasis_monai.data.types import Case
from oasis_monai.utils.errors import ConfigError, DataError, Fault

CASE_NAME = re.compile(r"(Case\d+)(_segmentation)?")
K = TypeVar("K")
BLOCK = 4096  # bytes that tell text from others
SHOWN = 12  # file names in one message
MODALITY = re.compile(r"(.+)_(\d{4})")


def find_cases(root: str | Path, layout: str, warn: Callable[[Fault], None] | None = None) -> list[Case]:
    """The cases below ``root``, sorted by id.

    Args:
        root: folder of the data set.
        layout:
            ``promise12``: ``CaseNN.mhd`` with ``CaseNN_segmentation.mhd`` (or .mha), searched in all folders below ``root``.
            Numbers restart in each set of the challenge: if one turns up twice, every id is prefixed by its folder
            (``training_data_Case00``).
            ``msd``: ``imagesTr`` and ``labelsTr`` (Medical Segmentation Decathlon), .nii.gz or .nii, in ``root`` or in its only
            subfolder that has them; a modality suffix ``_0000`` of an image is accepted, several modalities are not.
            ``folder``: every scan directly in ``root`` (or the one file ``root``), without labels, for segmentation;
            ``X_segmentation`` beside ``X`` is left out. Also every DICOM series in ``root`` or in any folder below it: for its
            id see :mod:`oasis_monai.data.layouts.dicom`, its image is the first of its files. A series that lies in several
            folders is one scan.
        warn: is told of what is left out; default: Python's own warnings.

    Hidden files (``._x`` of macOS too) and ``__MACOSX`` are ignored in all layouts. Any other file that may be a scan, and has no
    place in the layout, is a warning.

    Raises:
        DataError: with every fault at once: absent or empty root, an image without label, a label without image, two files
            for one id.
        ConfigError: unknown layout.
    """
    found = survey(root, layout)
    if errors := [fault for fault in found.faults if fault.severity == "error"]:
        raise DataError(errors)
    for fault in found.faults:
        if warn is None:
            warnings.warn(str(fault), stacklevel=2)
        else:
            warn(fault)
    return found.cases


@dataclass(frozen=True)
class Survey:
    """What there is in a data set's folder.

    Args:
        cases: those found, by id.
        faults: what is wrong with how its files lie there.
        layout: how it is laid out.
        labels: structure -> value in the label files, where the data set's own files name them.
        channels: names of the images of a case, in order, where the data set's own files name them.
        ignore: value of voxels that nobody labelled, where the data set's own files say so.
        name: what the data set calls itself; empty where it does not.
    """

    cases: list[Case]
    faults: list[Fault]
    layout: str = ""
    labels: Mapping[str, int] = field(default_factory=dict)
    channels: tuple[str, ...] = ()
    ignore: int | None = None
    name: str = ""


def survey(root: str | Path, layout: str) -> Survey:
    """As :func:`find_cases`, but with the faults beside the cases, so that what is in the files can be looked at all the same.

    Where there are faults, the cases are for that only: an image whose label is missing or ambiguous stands there without.

    Raises:
        DataError: the root is absent or unreadable.
        ConfigError: unknown layout.
    """
    if layout not in LAYOUTS:
        raise ConfigError("layout", "one of " + ", ".join(sorted(LAYOUTS)), layout)
    root = Path(root).expanduser()
    faults: list[Fault] = []
    if not root.is_dir() and not (layout == "folder" and root.is_file()):
        raise DataError(
            Fault("", "root", "an existing folder", f"none at {root}", "correct the path, or download the data first")
        )
    try:
        cases = LAYOUTS[layout](root, faults)
    except OSError as error:
        found = f"{error.strerror} ({error.filename})"
        raise DataError(Fault("", "root", "a readable folder", found, "correct the permissions")) from error
    if not cases and not any(fault.severity == "error" for fault in faults):
        expected = {
            "promise12": "CaseNN.mhd files",
            "msd": "imagesTr/*.nii.gz",
            "folder": f"scans ({', '.join(ENDINGS)} or DICOM)",
        }[layout]
        nothing = f"none in {root}" + "".join(f", but {fault.found}" for fault in faults)
        if layout == "folder":
            remedy = "convert what is left out to one of these" if faults else "give another folder"
            faults.append(Fault("", "input", expected, nothing, remedy))
        else:
            faults.append(Fault("", "root", f"{expected} (layout {layout})", nothing, "correct root or data.layout"))
    return Survey(sorted(cases, key=lambda case: case.id), faults, layout)


def _promise12(root: Path, faults: list[Fault]) -> list[Case]:
    images: dict[tuple[Path, str], list[Path]] = defaultdict(list)
    labels: dict[tuple[Path, str], list[Path]] = defaultdict(list)
    others = []
    for path in _walk(root):
        if ending(path) in METAIMAGE and (match := CASE_NAME.fullmatch(_stem(path))):
            (labels if match[2] else images)[path.parent, match[1]].append(path)
        elif may_be_scan(path):
            others.append(path)
    _note_others(others, "CaseNN.mhd and CaseNN_segmentation.mhd, or .mha (layout promise12)", faults)
    pairs = _paired(images, labels, lambda key: str((key[0] / key[1]).relative_to(root)), faults)
    names = [name for _, name in pairs]
    if len(set(names)) == len(names):
        return [Case(name, image, label) for (_, name), (image, label) in pairs.items()]
    cases = [
        Case("_".join((*folder.relative_to(root).parts, name)), image, label) for (folder, name), (image, label) in pairs.items()
    ]
    _note_repeated(cases, faults)
    return cases


def _msd(root: Path, faults: list[Fault]) -> list[Case]:
    homes = [root] if (root / "imagesTr").is_dir() else [f for f in sorted(root.iterdir()) if (f / "imagesTr").is_dir()]
    if len(homes) != 1:
        found = ", ".join(f.name for f in homes[:5]) or f"none in {root}"
        faults.append(Fault("", "root", "one folder imagesTr in it or in one subfolder", found, "correct root or layout"))
        return []
    images: dict[str, list[Path]] = defaultdict(list)
    labels: dict[str, list[Path]] = defaultdict(list)
    parts = [homes[0] / part for part in ("imagesTr", "labelsTr") if (homes[0] / part).is_dir()]
    others = [
        path
        for part in parts
        for path in _walk(part)
        if not (path.parent == part and ending(path) in NIFTI) and (is_dicom(path) or may_be_scan(path))
    ]
    _note_others(others, "NIfTI directly in imagesTr and labelsTr (layout msd)", faults)
    if (homes[0] / "labelsTr").is_dir():
        for path in _scans(homes[0] / "labelsTr", NIFTI):
            labels[_stem(path)].append(path)
    for path in _scans(homes[0] / "imagesTr", NIFTI):
        name = _stem(path)
        match = MODALITY.fullmatch(name)
        # a case may itself be called x_0000: its label then says so
        images[match[1] if match and name not in labels else name].append(path)
    return [Case(name, image, label) for name, (image, label) in _paired(images, labels, str, faults).items()]


def _folder(root: Path, faults: list[Fault]) -> list[Case]:
    if root.is_file():
        return [Case(root.resolve().parent.name if not ending(root) and is_dicom(root) else _stem(root), root)]
    paths = scans_among(_scans(root, ENDINGS))
    stems = {_stem(path) for path in paths}
    cases = [Case(_stem(p), p) for p in paths if not (_stem(p).endswith("_segmentation") and _stem(p)[:-13] in stems)]
    cases += series_cases(root, (path for path in _walk(root) if not ending(path)))
    others = [p for p in _walk(root) if p not in paths and may_be_scan(p) and (ending(p) or not is_dicom(p))]
    _note_others(others, "scans directly in the folder, or DICOM", faults)
    _note_repeated(cases, faults)
    return cases


LAYOUTS: dict[str, Callable[[Path, list[Fault]], list[Case]]] = {"promise12": _promise12, "msd": _msd, "folder": _folder}


def _paired(
    images: dict[K, list[Path]], labels: dict[K, list[Path]], say: Callable[[K], str], faults: list[Fault]
) -> dict[K, tuple[Path, Path | None]]:
    """Image and label by key; a fault for every key that has not exactly one of each. An image alone stands without label."""
    pairs: dict[K, tuple[Path, Path | None]] = {}
    for key in [*images, *(k for k in labels if k not in images)]:
        for kind, found in (("image", images.get(key, [])), ("label", labels.get(key, []))):
            if not found:
                remedy = f"add the {kind}, its name as the other's, or remove the case"
                faults.append(Fault(say(key), kind, f"one {kind} file", "none", remedy))
            elif len(found) > 1:
                names = ", ".join(sorted(p.name for p in found))
                faults.append(Fault(say(key), kind, f"one {kind} file", names, "keep one (one file type, one modality)"))
        if len(images.get(key, [])) == 1:
            own = labels.get(key, [])
            pairs[key] = (images[key][0], own[0] if len(own) == 1 else None)
    return pairs


def _note_repeated(cases: list[Case], faults: list[Fault]) -> None:
    by_id: dict[str, list[str]] = defaultdict(list)
    for case in cases:
        by_id[case.id].append(case.image.name)
    for name, files in by_id.items():
        if len(files) > 1:
            faults.append(Fault(name, "image", "one image file", ", ".join(sorted(files)), "rename or remove one"))


def _note_others(paths: list[Path], expected: str, faults: list[Fault]) -> None:
    """Warn of scans that a layout has no place for: a case that is left out silently is missed by nobody."""
    if paths:
        names = list(dict.fromkeys(shown(path.name) for path in paths))
        more = f" and {len(names) - SHOWN} others" if len(names) > SHOWN else ""
        found = ", ".join(names[:SHOWN]) + more
        faults.append(Fault("", "layout", expected, f"{found}, left out", "rename or convert what belongs to the set", "warning"))


IMAGES = (
    *(".gipl", ".mnc", ".mnc2", ".vtk", ".vti", ".nia", ".par", ".rec", ".v", ".ima", ".head", ".brik", ".npy", ".npz", ".h5"),
    *(".hdf5", ".mat", ".zarr", ".lsm", ".czi", ".dcm", ".gz", ".bz2", ".xz", ".zst", ".zip", ".7z", ".rar", ".tar", ".tgz"),
    *(".raw", ".zraw"),
)
"""Endings of images that no reader here takes, and of what may hold some."""
VOXELS = (".raw", ".zraw", ".img", ".dat", ".bin", ".gz")
NO_SCANS = (
    *(".txt", ".md", ".rst", ".json", ".csv", ".tsv", ".xml", ".html", ".htm", ".yaml", ".yml", ".log", ".bval", ".bvec"),
    *(".pdf", ".doc", ".docx", ".xls", ".xlsx", ".ods", ".odt", ".ppt", ".pptx", ".py", ".pyc", ".sh", ".bat", ".m", ".r"),
    *(".png", ".jpg", ".jpeg", ".gif", ".svg", ".bmp", ".webp", ".ini", ".db", ".lnk", ".md5", ".sha1", ".sha256", ".bib"),
)
"""Endings of what lies beside scans, and is never one."""


def may_be_scan(path: Path) -> bool:
    """Whether a file may be a scan, one that no reader here takes too: by its ending, else because it is no text."""
    kind = path.suffix.lower()
    if ending(path):
        return kind not in NO_SCANS and not is_second_file(path)
    if kind in VOXELS and _is_of_a_header(path):
        return False
    if kind in IMAGES or kind in NO_SCANS or path.name.upper() == "DICOMDIR":
        return kind in IMAGES
    try:
        with open(path, "rb") as stream:
            block = stream.read(BLOCK)
    except OSError:
        return False
    return b"\0" in block and block[128:132] != b"DICM"  # a DICOM file without an image is none


def _is_of_a_header(path: Path) -> bool:
    """Whether a header of MetaImage or NRRD beside a file has its name, or names it."""
    headers = [p for p in path.parent.iterdir() if p.suffix.lower() in (".mhd", ".nhdr")]
    if any(p.stem == path.stem for p in headers):
        return True
    for header in headers:
        with contextlib.suppress(OSError), open(header, "rb") as stream:
            if os.fsencode(path.name) in stream.read(BLOCK):
                return True
    return False


def _stem(path: Path) -> str:
    return path.name[: -len(ending(path))] if ending(path) else path.stem


def _scans(folder: Path, endings: tuple[str, ...]) -> list[Path]:
    return [p for p in sorted(folder.iterdir()) if ending(p) in endings and not p.name.startswith(".") and not p.is_dir()]


def _walk(root: Path) -> Iterator[Path]:
    """Files below ``root`` in a fixed order; linked folders are entered, each real folder once."""
    seen: set[str] = set()
    for folder, folders, files in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(f for f in folders if not f.startswith((".", "__MACOSX")))
        yield from (Path(folder) / f for f in sorted(files) if not f.startswith("."))
