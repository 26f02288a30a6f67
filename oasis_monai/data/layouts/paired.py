"""Images and labels whose names match: in two folders, or side by side in one."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from oasis_monai.data.formats.dicom import is_dicom
from oasis_monai.data.layouts.channels import chosen
from oasis_monai.data.layouts.files import case_of, may_be_scan, note_others, scans, stem, subfolders, walk
from oasis_monai.data.layouts.names import IMAGE_WORDS, LABEL_WORDS, is_label, matching, words
from oasis_monai.data.layouts.record import Layout, Request, Survey
from oasis_monai.utils.errors import Fault

Channels = dict[str, list[Path]]


def find_folders(request: Request) -> Survey:
    """Cases of two folders, such as ``images`` and ``labels``; of several folders of images each is a channel."""
    faults: list[Fault] = []
    found = _folders(request.root)
    if found is None:
        there = ", ".join(folder.name for folder in subfolders(request.root)[:8]) or f"none in {request.root}"
        expected = "two folders such as images and labels, with scans directly in them"
        faults.append(Fault("", "root", expected, there, "correct root, or give data.image and data.label as templates"))
        return Survey([], faults)
    images, labels = found
    channels = {folder.name if len(images) > 1 else "": scans(folder) for folder in images}
    own = [labels, *images]
    listed = {path for folder in own for path in scans(folder)}
    others = [path for folder in own for path in walk(folder) if path not in listed and (is_dicom(path) or may_be_scan(path))]
    note_others(others, f"scans directly in {' and '.join(folder.name for folder in own)}", faults)
    return _survey(channels, scans(labels), request, faults)


def find_files(request: Request) -> Survey:
    """Cases of one folder: ``p00_t2.nii.gz``, ``p00_adc.nii.gz`` and ``p00_seg.nii.gz``."""
    faults: list[Fault] = []
    images, labels = _split(request.root)
    channels = _by_last_word(images, len(labels)) or {"": images}
    own = {*images, *labels}
    others = [path for path in walk(request.root) if path not in own and (is_dicom(path) or may_be_scan(path))]
    note_others(others, "scans directly in the folder", faults)
    return _survey(channels, labels, request, faults)


def _survey(channels: Channels, labels: list[Path], request: Request, faults: list[Fault]) -> Survey:
    """The cases of images and labels, matched channel by channel."""
    names = tuple(channels)
    wanted = chosen(names, request.data.channels if len(names) > 1 else ())
    masks = _by_stem(labels, "label", faults)
    sources: dict[str, list[tuple[Path, ...]]] = defaultdict(list)
    ids: dict[str, str] = {}
    alone: list[str] = []
    for index in wanted:
        images = _by_stem(channels[names[index]], "image", faults)
        for image, (name, label) in matching(list(images), list(masks)).items():
            if label is None:
                alone.append(name)
                if request.labelled:
                    remedy = "add the label, its name as the image's, or remove the case"
                    faults.append(Fault(name, "label", "one label file", "none", remedy))
                else:
                    sources[name].append((images[image],))
                continue
            ids.setdefault(label, name)
            sources[label].append((images[image],))
    cases = []
    for key, own in sources.items():
        if len(own) == len(wanted):
            cases.append(case_of(ids.get(key, key), own, masks.get(key)))
        else:
            found = ", ".join(files[0].name for files in own)
            remedy = "add what is missing, or choose others by data.channels"
            faults.append(Fault(ids.get(key, key), "image", f"one image of {', '.join(names)}", found, remedy))
    for label in masks:
        if label not in ids:
            remedy = "add the image, its name as the label's, or remove the case"
            faults.append(Fault(label, "image", "one image file", "none", remedy))
    several = len(names) > 1
    return Survey(cases, faults, channels=tuple(names[index] for index in wanted) if several else (), cut=several)


def _by_stem(paths: list[Path], kind: str, faults: list[Fault]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in paths:
        first = found.setdefault(stem(path), path)
        if first != path:
            names = f"{first.name}, {path.name}"
            faults.append(Fault(stem(path), kind, f"one {kind} file", names, "keep one (one file type)"))
    return found


def _folders(root: Path) -> tuple[list[Path], Path] | None:
    """The folders of images, and that of labels."""
    if not root.is_dir():
        return None
    own = [folder for folder in subfolders(root) if scans(folder)]
    labels = [folder for folder in own if not LABEL_WORDS.isdisjoint(words(folder.name))]
    images = [folder for folder in own if folder not in labels]
    named = [folder for folder in images if not IMAGE_WORDS.isdisjoint(words(folder.name))]
    if len(labels) != 1 or not images:
        return None
    if len(images) > 1 and len(named) != 1 and len({len(scans(folder)) for folder in images}) > 1:
        return None
    return (named if len(named) == 1 else images), labels[0]


def _split(root: Path) -> tuple[list[Path], list[Path]]:
    """The images and the labels directly in a folder."""
    own = scans(root) if root.is_dir() else []
    return [path for path in own if not is_label(stem(path))], [path for path in own if is_label(stem(path))]


def _by_last_word(images: list[Path], cases: int) -> Channels:
    """Images by the last words of their names, where each comes once for every case; else none."""
    found: Channels = defaultdict(list)
    for path in images:
        found[words(stem(path))[-1] if words(stem(path)) else ""].append(path)
    return dict(found) if len(found) > 1 and all(len(paths) == cases > 1 for paths in found.values()) else {}


def _recognise_files(root: Path) -> bool:
    images, labels = _split(root)
    if not images or not labels:
        return False
    pairs = matching([stem(path) for path in images], [stem(path) for path in labels])
    return any(label is not None for _, label in pairs.values())


FOLDERS = Layout(
    "paired_folders",
    "a folder of images and one of labels whose names match",
    "folders such as images and labels",
    lambda root: _folders(root) is not None,
    find_folders,
)
FILES = Layout(
    "paired_files",
    "images and labels side by side, such as p00.nii.gz and p00_seg.nii.gz",
    "files such as p00.nii.gz and p00_seg.nii.gz",
    _recognise_files,
    find_files,
)
