"""Scans without labels: files, and DICOM series."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from oasis_monai.data.formats.dicom import is_dicom
from oasis_monai.data.formats.dispatch import ENDINGS, ending
from oasis_monai.data.layouts.channels import chosen
from oasis_monai.data.layouts.dataset_json import read_description
from oasis_monai.data.layouts.dicom import series_cases
from oasis_monai.data.layouts.files import case_of, listed, may_be_scan, note_others, note_repeated, scans, stem, walk
from oasis_monai.data.layouts.record import Layout, Request, Survey
from oasis_monai.data.types import Case
from oasis_monai.utils.errors import Fault

CHANNEL = re.compile(r"(.+)_(\d{4})")
IMAGES = ("imagesTs", "imagesTr", "imagesVal")
"""Folders of a data set that its ``dataset.json`` describes."""


def find(request: Request) -> Survey:
    """Every scan directly in the root (or the one file that it is), and every DICOM series at or below it."""
    root = request.root
    faults: list[Fault] = []
    if root.is_file():
        if not ending(root) and is_dicom(root):
            return Survey(series_cases(root.parent, (root,), request.data.anonymous), faults)
        return Survey([Case(stem(root), root)], faults)
    paths = scans(root)
    stems = {stem(path) for path in paths}
    paths = [p for p in paths if not (stem(p).endswith("_segmentation") and stem(p)[:-13] in stems)]
    names = read_description(root.parent, []).channels if root.name in IMAGES else ()
    numbered = _numbered(paths)
    cut = bool(numbered)
    if numbered:
        count = max(len(own) for own in numbered.values())
        names = names if len(names) >= count else tuple(map(str, range(count)))
        wanted = chosen(names, request.data.channels)
        names = tuple(names[index] for index in wanted)
    cases = _of_channels(numbered, wanted, names, faults) if numbered else [Case(stem(p), p) for p in paths]
    own = set(scans(root))
    cases += series_cases(root, (path for path in walk(root) if not ending(path)), request.data.anonymous)
    others = [p for p in walk(root) if p not in own and may_be_scan(p) and (ending(p) or not is_dicom(p))]
    note_others(others, "scans directly in the folder, or DICOM", faults)
    note_repeated(cases, faults)
    return Survey(cases, faults, channels=names, cut=cut)


def _numbered(paths: list[Path]) -> dict[str, dict[int, Path]]:
    """The files of a folder by case and channel, where all are called ``x_0000`` and ``x_0001``, as nnU-Net has them."""
    matches = [CHANNEL.fullmatch(stem(path)) for path in paths]
    found: dict[str, dict[int, Path]] = defaultdict(dict)
    for path, match in zip(paths, matches, strict=True):
        if match is None or int(match[2]) in found[match[1]]:
            return {}
        found[match[1]][int(match[2])] = path
    return found if any(len(own) > 1 for own in found.values()) else {}


def _of_channels(
    numbered: Mapping[str, Mapping[int, Path]], wanted: Sequence[int], names: Sequence[str], faults: list[Fault]
) -> list[Case]:
    cases = []
    for name, own in numbered.items():
        absent = [f"{name}_{index:04d}" for index in wanted if index not in own]
        if absent:
            there = listed([path.name for path in own.values()])
            remedy = "add the file, or choose others by data.channels"
            faults.append(Fault(name, "image", f"a file for each channel of {', '.join(names)}", f"{there} alone", remedy))
        else:
            cases.append(case_of(name, [(own[index],) for index in wanted]))
    return cases


LAYOUT = Layout(
    "folder",
    "scans without labels, directly in the folder, and DICOM series below it",
    f"scans ({', '.join(ENDINGS)} or DICOM)",
    lambda root: root.exists(),
    find,
)
