"""The layout of PROMISE12: ``CaseNN.mhd`` with ``CaseNN_segmentation.mhd``."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

from oasis_monai.data.formats.dispatch import METAIMAGE, ending
from oasis_monai.data.layouts.dataset_json import read_json
from oasis_monai.data.layouts.files import may_be_scan, note_others, note_repeated, paired, stem, walk
from oasis_monai.data.layouts.record import Layout, Request, Survey
from oasis_monai.data.types import Case
from oasis_monai.utils.errors import Fault

CASE_NAME = re.compile(r"(Case\d+)(_segmentation)?")
MANIFEST = "phantom.json"  # beside it they are the phantom's


def find(request: Request) -> Survey:
    """The cases in all folders below the root. Numbers restart in each set of the challenge: if one turns up twice, every id is
    prefixed by its folder (``training_data_Case00``)."""
    root = request.root
    faults: list[Fault] = []
    images: dict[tuple[Path, str], list[Path]] = defaultdict(list)
    labels: dict[tuple[Path, str], list[Path]] = defaultdict(list)
    others = []
    for path in walk(root):
        if ending(path) in METAIMAGE and (match := CASE_NAME.fullmatch(stem(path))):
            (labels if match[2] else images)[path.parent, match[1]].append(path)
        elif may_be_scan(path):
            others.append(path)
    note_others(others, "CaseNN.mhd and CaseNN_segmentation.mhd, or .mha (layout promise12)", faults)
    pairs = paired(images, labels, lambda key: str((key[0] / key[1]).relative_to(root)), faults, request.labelled)
    names = [name for _, name in pairs]
    if len(set(names)) == len(names):
        cases = [Case(name, image, label) for (_, name), (image, label) in pairs.items()]
    else:
        cases = [
            Case("_".join((*folder.relative_to(root).parts, name)), image, label)
            for (folder, name), (image, label) in pairs.items()
        ]
        note_repeated(cases, faults)
    return Survey(cases, faults, known=_known(root))


def _known(root: Path) -> str:
    """The public data set that it may be: PROMISE12, or the phantom with its one structure."""
    if not (root / MANIFEST).is_file():
        return "promise12"
    parameters = (read_json(root / MANIFEST, []) or {}).get("parameters")
    return "phantom" if isinstance(parameters, dict) and parameters.get("labels") == 1 else ""


def recognise(root: Path) -> bool:
    """Whether there are such pairs somewhere below ``root``."""
    if not root.is_dir():
        return False
    found: set[tuple[Path, str]] = set()
    for path in walk(root):
        if ending(path) in METAIMAGE and (match := CASE_NAME.fullmatch(stem(path))):
            other = "" if match[2] else "_segmentation"
            if (path.parent, match[1] + other) in found:
                return True
            found.add((path.parent, stem(path)))
    return False


LAYOUT = Layout(
    "promise12", "CaseNN.mhd with CaseNN_segmentation.mhd, as PROMISE12 has them", "CaseNN.mhd files", recognise, find
)
