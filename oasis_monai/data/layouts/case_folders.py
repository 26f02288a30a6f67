"""A folder for each case, with its images and its label: names repeat from folder to folder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from oasis_monai.data.layouts.channels import chosen
from oasis_monai.data.layouts.files import case_of, listed, may_be_scan, note_others, scans, short_names, stem, walk
from oasis_monai.data.layouts.names import LABEL_WORDS, SEPARATORS, is_label, words
from oasis_monai.data.layouts.record import Layout, Request, Survey
from oasis_monai.utils.errors import Fault

MOST = 0.5  # an image that more of the cases have is one that all should have
Parts = tuple[str, ...]
HOW = 'name them by templates, such as data.image="{case}/t2.nii.gz" data.label="{case}/seg.nii.gz"'


@dataclass(frozen=True)
class Folder:
    """One folder with scans.

    Args:
        path: where it is.
        images, labels: its scans by what their names say beside that of the folder.
    """

    path: Path
    images: dict[str, list[Path]]
    labels: dict[str, list[Path]]


def find(request: Request) -> Survey:
    """A case for each folder below the root that has scans in it."""
    root = request.root
    faults: list[Fault] = []
    folders, others = _folders(root)
    note_others(others, "images and a label in a folder for each case", faults)
    if not folders:
        return Survey([], faults)
    wanted = _channels(folders, request, faults)
    ids = short_names([folder.path / "scan" for folder in folders]) if len(folders) > 1 else [folders[0].path.name]
    cases = []
    overlap = request.labelled and request.data.overlap
    structures = _structures(folders) if overlap else {}
    several = request.labelled and not overlap and _several_labels(folders, faults)
    patients = {} if request.data.patient else _patients([folder.path.relative_to(root).parts for folder in folders], faults)
    for name, folder in zip(ids, folders, strict=True):
        sources = _sources(name, folder, wanted, faults)
        label = [path for paths in folder.labels.values() for path in paths]
        masks = _masks(name, folder, structures, faults)
        if request.labelled and not overlap and len(label) != 1 and not (several and label):
            found = listed([path.name for path in label]) or "none"
            faults.append(Fault(name, "label", "one label file in its folder", found, "add it, or keep one"))
        if sources:
            patient = patients.get(folder.path.relative_to(root).parts, "")
            label = [path for _, path in masks[:1]] if overlap else label
            cases.append(replace(case_of(name, sources, label[0] if len(label) == 1 else None, patient=patient), masks=masks))
    return Survey(cases, faults, channels=wanted, cut=bool(wanted), structures=tuple(structures.values()))


def _structures(folders: list[Folder]) -> dict[str, str]:
    """What the names of masks say -> the structure: ``gland_seg`` is the gland."""
    roles = sorted({role for folder in folders for role in folder.labels})
    short = {role: "_".join(word for word in words(role) if word not in LABEL_WORDS) for role in roles}
    return {role: short[role] or role for role in roles} if len(set(short.values())) == len(roles) else {r: r for r in roles}


def _masks(name: str, folder: Folder, structures: Mapping[str, str], faults: list[Fault]) -> tuple[tuple[str, Path], ...]:
    """The mask of every structure; none, and a fault, where one is missing or there twice."""
    if wrong := [role for role in structures if len(folder.labels.get(role, ())) != 1]:
        found = listed([path.name for paths in folder.labels.values() for path in paths]) or "none"
        remedy = f"add that of {structures[wrong[0]]} (all 0 where the scan has none), or keep one"
        faults.append(Fault(name, "label", f"a mask for each of {listed(list(structures.values()))}", found, remedy))
        return ()
    return tuple((structure, folder.labels[role][0]) for role, structure in structures.items())


def _patients(places: list[Parts], faults: list[Fault]) -> dict[Parts, str]:
    """Whose a folder is, by where it lies: below ``sub-x`` (BIDS), else in a folder that looks like one's, as it holds several
    cases and there are more such folders than any has cases (``p1/visit1``, ``p1/visit2``, ``p2/visit1``). One of a centre
    has many."""
    bids = {place: next((part for part in place if part.startswith("sub-")), "") for place in places}
    if any(bids.values()):
        return bids
    for depth in range(1, max(map(len, places), default=0)):
        counts = Counter(place[:depth] for place in places)
        first, most = counts.most_common(1)[0]
        if 1 < most < len(counts):
            found = f"several cases in {'/'.join(first)}, taken for one person's"
            remedy = "if they are of several, say who is who by data.patient, such as data.patient='(.+)'"
            faults.append(Fault("", "patient", "a folder for each case", found, remedy, "warning"))
            return {place: "_".join(place[:depth]) for place in places}
    return {}


def _folders(root: Path) -> tuple[list[Folder], list[Path]]:
    """The folders with scans, and files that may be further ones."""
    found: dict[Path, Folder] = {}
    others = []
    paths = list(walk(root))
    listed: dict[Path, set[Path]] = {}
    for path in paths:
        if path.parent not in listed:
            listed[path.parent] = set(scans(path.parent))
        if path.parent == root or path not in listed[path.parent]:
            others += [path] if may_be_scan(path) else []
            continue
        folder = found.setdefault(path.parent, Folder(path.parent, {}, {}))
        role = _role(path, root)
        (folder.labels if is_label(role) else folder.images).setdefault(role, []).append(path)
    return list(found.values()), others


def _role(path: Path, root: Path) -> str:
    """What a scan's name says beside the names of its folders: ``p1/p1_t2.nii.gz`` is t2."""
    name = stem(path)
    for part in reversed(path.parent.relative_to(root).parts):
        if name.lower().startswith(part.lower()) and name[len(part) :][:1] in ("", *SEPARATORS):
            name = name[len(part) :].strip(SEPARATORS)
    return name


def _channels(folders: list[Folder], request: Request, faults: list[Fault]) -> tuple[str, ...]:
    """The names of the channels to use; none where each folder has one image, of any name."""
    counts = Counter(role for folder in folders for role in folder.images)
    asked = request.data.channels
    if not asked and all(len(folder.images) == 1 for folder in folders):
        return ()
    most = [role for role in sorted(counts) if counts[role] > MOST * len(folders)]
    names = tuple(sorted(counts)) if asked else tuple(most)
    if not names:
        found = listed([f"{role} ({count})" for role, count in counts.most_common()], 5)
        faults.append(Fault("", "root", "images whose names repeat from folder to folder", found, HOW))
        return ()
    wanted = tuple(names[index] for index in chosen(names, asked))
    left = [role for role in sorted(counts) if role not in wanted]
    if left and not asked:
        remedy = "choose by data.channels=[...] if it should be used"
        faults.append(Fault("", "layout", f"the images {', '.join(wanted)}", f"{listed(left)}, left out", remedy, "warning"))
    return wanted


def _sources(name: str, folder: Folder, wanted: tuple[str, ...], faults: list[Fault]) -> list[tuple[Path, ...]]:
    """The images of one case in the order of the channels; none, and a fault, where one is missing or there twice."""
    own = [folder.images.get(role, []) for role in wanted] or list(folder.images.values()) or [[]]
    if all(len(paths) == 1 for paths in own) and (wanted or len(own) == 1):
        return [(paths[0],) for paths in own]
    found = listed([path.name for paths in folder.images.values() for path in paths]) or "none"
    expected = f"one of each image: {', '.join(wanted)}" if wanted else "one image file"
    remedy = "add what is missing, or choose others by data.channels" if wanted else "keep one, or " + HOW
    faults.append(Fault(name, "image", expected, found, remedy))
    return []


def _several_labels(folders: list[Folder], faults: list[Fault]) -> bool:
    """Whether folders hold several labels of different names: one fault for all of them."""
    if all(len(folder.labels) <= 1 for folder in folders):
        return False
    names = list(Counter(role for folder in folders for role in folder.labels))
    remedy = f"{HOW}, or add data.overlap=true if these are masks of a structure each"
    faults.append(Fault("", "label", "one label in a case's folder", listed(names, 6), remedy))
    return True


def has_cases(root: Path) -> bool:
    """Whether scans lie in folders of ``root`` under names that repeat."""
    folders, _ = _folders(root)
    counts = Counter(role for folder in folders for role in folder.images)
    return bool(folders) and max(counts.values(), default=0) > MOST * len(folders)


def _recognise(root: Path) -> bool:
    if not root.is_dir():
        return False
    folders, _ = _folders(root)
    return any(folder.images and folder.labels for folder in folders)


LAYOUT = Layout(
    "case_folders",
    "a folder for each case, with its images and its label",
    "folders with images and a label (its name has a word such as seg, mask or label)",
    _recognise,
    find,
)
