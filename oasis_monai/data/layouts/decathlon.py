"""The layouts of the Medical Segmentation Decathlon and of nnU-Net: ``imagesTr`` and ``labelsTr``."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

from oasis_monai.data.formats.dicom import is_dicom
from oasis_monai.data.layouts.channels import chosen
from oasis_monai.data.layouts.dataset_json import Description, read_description, read_folds
from oasis_monai.data.layouts.files import case_of, listed, may_be_scan, note_others, paired, scans, stem, subfolders, walk
from oasis_monai.data.layouts.record import Layout, Request, Survey
from oasis_monai.data.types import Case
from oasis_monai.utils.errors import Fault

CHANNEL = re.compile(r"(.+)_(\d{4})")
PARTS = {"Tr": "", "Ts": "test"}
"""The two parts of such a data set, and what a case's ``split`` is there."""
HIPPOCAMPUS = re.compile(r"hippocampus_\d{3}")


def find_msd(request: Request) -> Survey:
    """Cases of one file each: ``imagesTr/x.nii.gz`` and ``labelsTr/x.nii.gz``; several channels lie in that one file."""
    faults: list[Fault] = []
    home = _home(request.root, faults)
    if home is None:
        return Survey([], faults)
    told = read_description(home, faults)
    cases: list[Case] = []
    for part, split in PARTS.items():
        images, labels = _files(home, part, split, faults)
        groups: dict[str, list[Path]] = defaultdict(list)
        for path in images:
            match = CHANNEL.fullmatch(stem(path))
            # a case may itself be called x_0000: its label then says so
            groups[match[1] if match and stem(path) not in labels else stem(path)].append(path)
        pairs = paired(groups, labels, str, faults, request.labelled)
        cases += [Case(name, image, label, split=split) for name, (image, label) in pairs.items()]
    return _survey(cases, told, home, faults)


def find_nnunet(request: Request) -> Survey:
    """Cases of a file for each channel: ``imagesTr/x_0000.nii.gz``, ``imagesTr/x_0001.nii.gz`` and ``labelsTr/x.nii.gz``."""
    faults: list[Fault] = []
    home = _home(request.root, faults)
    if home is None:
        return Survey([], faults)
    told = read_description(home, faults)
    cases: list[Case] = []
    used: tuple[str, ...] = ()
    for part, split in PARTS.items():
        images, labels = _files(home, part, split, faults, told.ending)
        groups: dict[str, dict[int, list[Path]]] = defaultdict(lambda: defaultdict(list))
        for path in images:
            match = CHANNEL.fullmatch(stem(path))
            name, number = (match[1], int(match[2])) if match else (stem(path), 0)
            groups[name][number].append(path)
        numbers = sorted({number for own in groups.values() for number in own})
        if not groups:
            continue
        names = told.channels if len(told.channels) > numbers[-1] else tuple(map(str, range(numbers[-1] + 1)))
        wanted = chosen(names, request.data.channels)
        used = tuple(names[n] for n in wanted)
        firsts: dict[str, list[Path]] = {}
        for name, own in groups.items():
            absent = [names[n] for n in wanted if not own[n]]
            twice = [listed([p.name for p in own[n]]) for n in wanted if len(own[n]) > 1]
            if twice:
                faults.append(Fault(name, "image", "one file for each channel", twice[0], "keep one (one file type)"))
            elif absent:
                there = listed([p.name for files in own.values() for p in files]) or "none"
                files = listed([f"{name}_{n:04d}" for n in wanted])
                found = f"{there} (without {', '.join(absent)})"
                faults.append(Fault(name, "image", files, found, "add the file, or choose others by data.channels"))
            else:
                firsts[name] = own[wanted[0]]
        pairs = paired(firsts, {k: v for k, v in labels.items() if k in firsts or k not in groups}, str, faults, request.labelled)
        cases += [
            case_of(name, [(groups[name][n][0],) for n in wanted], label, split=split) for name, (_, label) in pairs.items()
        ]
    return replace(_survey(cases, told, home, faults), channels=used, cut=True)


def _survey(cases: list[Case], told: Description, home: Path, faults: list[Fault]) -> Survey:
    """With folds of their own, and names that no two cases share."""
    folds, always = read_folds(home, faults)
    own = {case.id for case in cases if not case.split}
    cases = [
        replace(case, id=f"test_{case.id}", patient="")
        if case.split and case.id in own
        else replace(case, fold=folds.get(case.id), split=case.split or ("train" if case.id in always else ""))
        for case in cases
    ]
    if absent := sorted((folds.keys() | always) - own):
        remedy = "correct or remove the file"
        faults.append(Fault("", "splits_final.json", "ids of the data set", listed(absent), remedy, "warning"))
    named = bool(own) and all(HIPPOCAMPUS.fullmatch(case) for case in own)
    known = "hippocampus" if named and told.name.lower() in ("", "hippocampus") else ""
    return Survey(
        cases,
        faults,
        labels=told.labels,
        channels=told.channels,
        ignore=told.ignore,
        name=told.name,
        regions=told.regions,
        order=told.order,
        known=known,
    )


def _files(home: Path, part: str, split: str, faults: list[Fault], kind: str = "") -> tuple[list[Path], dict[str, list[Path]]]:
    """Images, and labels by their names, of one part. Of the test part only where it has labels."""
    images, labels = home / f"images{part}", home / f"labels{part}"
    if not images.is_dir() or (split and not labels.is_dir()):
        return [], {}
    folders = [folder for folder in (images, labels) if folder.is_dir()]
    endings = (kind,) if kind else ()
    listed = {path for folder in folders for path in scans(folder, endings)}
    others = [path for folder in folders for path in walk(folder) if path not in listed and (is_dicom(path) or may_be_scan(path))]
    note_others(others, f"{kind or 'scans'} directly in {' and '.join(folder.name for folder in folders)}", faults)
    named: dict[str, list[Path]] = defaultdict(list)
    for path in scans(labels, endings) if labels.is_dir() else ():
        named[stem(path)].append(path)
    return scans(images, endings), named


def _homes(root: Path) -> list[Path]:
    def fits(folder: Path) -> bool:
        return (folder / "imagesTr").is_dir() or ((folder / "imagesTs").is_dir() and (folder / "labelsTs").is_dir())

    if not root.is_dir():
        return []
    return [root] if fits(root) else [folder for folder in subfolders(root) if fits(folder)]


def _home(root: Path, faults: list[Fault]) -> Path | None:
    homes = _homes(root)
    if len(homes) == 1:
        return homes[0]
    found = ", ".join(folder.name for folder in homes[:5]) or f"none in {root}"
    faults.append(Fault("", "root", "one folder imagesTr in it or in one subfolder", found, "correct root or layout"))
    return None


def _is_nnunet(root: Path) -> bool:
    """Whether its dataset.json is nnU-Net's, or its images are numbered by channels that no dataset.json of MSD explains."""
    homes = _homes(root)
    if len(homes) != 1:
        return False
    if read_description(homes[0], []).nnunet:
        return True
    for part in PARTS:
        images, labels = homes[0] / f"images{part}", homes[0] / f"labels{part}"
        if images.is_dir():
            named = {stem(path) for path in scans(labels)} if labels.is_dir() else set()
            numbered = [match for path in scans(images) if (match := CHANNEL.fullmatch(stem(path))) and match[0] not in named]
            if any(int(match[2]) for match in numbered):
                return True
    return False


MSD = Layout(
    "msd",
    "imagesTr and labelsTr, as the Medical Segmentation Decathlon has them",
    "imagesTr/*.nii.gz",
    lambda root: bool(_homes(root)) and not _is_nnunet(root),
    find_msd,
)
NNUNET = Layout(
    "nnunet",
    "imagesTr (x_0000, x_0001: the channels) and labelsTr, as nnU-Net has them",
    "imagesTr/*_0000.nii.gz",
    _is_nnunet,
    find_nnunet,
)
