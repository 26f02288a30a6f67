"""Scans without labels: files, and DICOM series."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

from oasis_monai.data.formats.dicom import is_dicom
from oasis_monai.data.formats.dispatch import ENDINGS, ending
from oasis_monai.data.layouts.dicom import series_cases
from oasis_monai.data.layouts.files import case_of, may_be_scan, note_others, note_repeated, scans, stem, walk
from oasis_monai.data.layouts.record import Layout, Request, Survey
from oasis_monai.data.types import Case
from oasis_monai.utils.errors import Fault

CHANNEL = re.compile(r"(.+)_(\d{4})")


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
    cases = _with_channels(paths) or [Case(stem(p), p) for p in paths]
    own = set(scans(root))
    cases += series_cases(root, (path for path in walk(root) if not ending(path)), request.data.anonymous)
    others = [p for p in walk(root) if p not in own and may_be_scan(p) and (ending(p) or not is_dicom(p))]
    note_others(others, "scans directly in the folder, or DICOM", faults)
    note_repeated(cases, faults)
    return Survey(cases, faults)


def _with_channels(paths: list[Path]) -> list[Case]:
    """The cases of a folder whose files are all channels, ``x_0000`` and ``x_0001`` as nnU-Net has them; none of others."""
    matches = [CHANNEL.fullmatch(stem(path)) for path in paths]
    found: dict[str, dict[int, Path]] = defaultdict(dict)
    for path, match in zip(paths, matches, strict=True):
        if match is None or int(match[2]) in found[match[1]]:
            return []
        found[match[1]][int(match[2])] = path
    if not any(len(own) > 1 for own in found.values()) or any(sorted(own) != list(range(len(own))) for own in found.values()):
        return []
    return [case_of(name, [(own[number],) for number in sorted(own)]) for name, own in found.items()]


LAYOUT = Layout(
    "folder",
    "scans without labels, directly in the folder, and DICOM series below it",
    f"scans ({', '.join(ENDINGS)} or DICOM)",
    lambda root: root.exists(),
    find,
)
