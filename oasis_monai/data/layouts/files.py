"""What there is in folders: scans, files that may be some, and pairs of images and labels."""

from __future__ import annotations

import contextlib
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from oasis_monai.data.formats.dicom import is_dicom, series_among, series_parts
from oasis_monai.data.formats.dispatch import ending, is_second_file, scans_among
from oasis_monai.data.formats.header import shown
from oasis_monai.data.types import Case
from oasis_monai.utils.errors import Fault

K = TypeVar("K")
BLOCK = 4096  # bytes that tell text from others
LONGEST = 150  # bytes of an id; names of files add a method and an ending, and end at 255
SHOWN = 12  # file names in one message
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
    ".label",
)
"""Endings of what lies beside scans, and is never one."""


def stem(path: Path) -> str:
    """A file's name without the ending of a scan."""
    return path.name[: -len(ending(path))] if ending(path) else path.stem


def scans(folder: Path, endings: tuple[str, ...] = ()) -> list[Path]:
    """The scans directly in a folder, by name: with one of these endings, else with any that is read. Images of two dimensions
    count only where there is no volume."""
    there = [p for p in sorted(folder.iterdir()) if not p.name.startswith(".") and not p.is_dir() and not _waits(p)]
    return [p for p in there if ending(p) in endings] if endings else scans_among(there)


def walk(root: Path) -> Iterator[Path]:
    """Files below ``root`` in a fixed order; linked folders are entered, each real folder once."""
    seen: set[str] = set()
    for folder, folders, files in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(f for f in folders if not f.startswith((".", "__MACOSX")))
        yield from (path for f in sorted(files) if not f.startswith(".") and not _waits(path := Path(folder) / f))


def _waits(path: Path) -> bool:
    """Whether it is a pipe, a socket or a device: opening one may wait for ever."""
    return path.exists() and not (path.is_file() or path.is_dir())


def subfolders(root: Path) -> list[Path]:
    """The folders directly in ``root``, by name."""
    return [f for f in sorted(root.iterdir()) if f.is_dir() and not f.name.startswith((".", "__MACOSX"))]


def series_at(path: Path) -> tuple[Path, ...]:
    """A scan's files as a :class:`oasis_monai.data.types.Case` has them, the first as ``image``: the file itself; of a folder its
    DICOM series. Empty if it is not there, or a folder that holds none or several."""
    if not path.is_dir():
        return (path,) if path.exists() else ()
    files = series_among(p for p in walk(path) if not ending(p) and is_dicom(p))
    parts = [part for uid, own in files.items() if uid for part in series_parts(own)]
    return parts[0] if len(parts) == 1 else ()


def paired(
    images: dict[K, list[Path]],
    labels: dict[K, list[Path]],
    say: Callable[[K], str],
    faults: list[Fault],
    labelled: bool = True,
) -> dict[K, tuple[Path, Path | None]]:
    """Image and label by key; a fault for every key that has not exactly one of each. An image alone stands without label."""
    pairs: dict[K, tuple[Path, Path | None]] = {}
    for key in [*images, *(k for k in labels if k not in images)]:
        for kind, found in (("image", images.get(key, [])), ("label", labels.get(key, []))):
            if not found and (labelled or kind == "image"):
                remedy = f"add the {kind}, its name as the other's, or remove the case"
                faults.append(Fault(say(key), kind, f"one {kind} file", "none", remedy))
            elif len(found) > 1:
                names = ", ".join(sorted(p.name for p in found))
                faults.append(Fault(say(key), kind, f"one {kind} file", names, "keep one (one file type, one modality)"))
        if len(images.get(key, [])) == 1:
            own = labels.get(key, [])
            pairs[key] = (images[key][0], own[0] if len(own) == 1 else None)
    return pairs


def case_of(name: str, sources: Sequence[tuple[Path, ...]], label: Path | None = None, **more: str | int | None) -> Case:
    """A case of one image or several (each as :attr:`Case.source`)."""
    first, *others = sources
    return Case(name, first[0], label, more=tuple(first[1:]), channels=tuple(others), **more)  # type: ignore[arg-type]


def note_repeated(cases: list[Case], faults: list[Fault]) -> None:
    """Tell of ids that several cases share."""
    by_id: dict[str, list[str]] = defaultdict(list)
    for case in cases:
        by_id[case.id].append(case.image.name)
    for name, files in by_id.items():
        if len(files) > 1:
            faults.append(Fault(name, "image", "one image file", ", ".join(sorted(files)), "rename or remove one"))


def note_ids(cases: Iterable[Case], faults: list[Fault]) -> None:
    """Tell of ids that cannot name files: results are called by them, and one with folders would lead out of the output."""
    for case in cases:
        bad = next((repr(c) for c in case.id if c in "/\\" or not c.isprintable()), "")
        long = len(os.fsencode(case.id)) > LONGEST
        if bad or long or case.id.startswith("."):
            found = bad or (f"{len(os.fsencode(case.id))} bytes" if long else "a point first")
            expected = f"a name without / and \\, not hidden, of at most {LONGEST} bytes"
            faults.append(Fault(case.id[:60], "id", expected, found, "give the case another id"))


def note_others(paths: Iterable[Path], expected: str, faults: list[Fault]) -> None:
    """Warn of scans that a layout has no place for: a case that is left out silently is missed by nobody."""
    names = list(dict.fromkeys(shown(path.name) for path in paths))
    if names:
        found = listed(names)
        faults.append(Fault("", "layout", expected, f"{found}, left out", "rename or convert what belongs to the set", "warning"))


def listed(names: Sequence[str], most: int = SHOWN) -> str:
    """Names for a message, cut where there are many."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} others" if len(names) > most else "")


def short_names(paths: Sequence[Path]) -> list[str]:
    """A name for each of these scans: its own where that tells them apart, else with as many of the folders above it as do."""
    names = [stem(path) for path in paths]
    folders = [path.parent.name for path in paths]
    if len(set(names)) == len(names):
        return names
    if len(set(folders)) == len(folders):
        return folders
    above = Path(os.path.commonpath([path.parent for path in paths]))
    return ["_".join((*path.parent.relative_to(above).parts, name)) for path, name in zip(paths, names, strict=True)]


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
