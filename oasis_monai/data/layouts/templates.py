"""Any names, told by templates: ``data.image="{patient}/{scan}_t2.nii.gz" data.label="{patient}/{scan}_seg.nii.gz"``."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from oasis_monai.data.formats.dispatch import ending
from oasis_monai.data.layouts.channels import chosen
from oasis_monai.data.layouts.files import case_of, listed, series_at, walk
from oasis_monai.data.layouts.record import Layout, Request, Survey
from oasis_monai.data.types import Case
from oasis_monai.utils.errors import ConfigError, Fault

PART = re.compile(r"\{([A-Za-z_]\w*)\}")
IDS = ("id", "case")  # parts that are the case's id by themselves
TOKEN = re.compile(r"\{[A-Za-z_]\w*\}|\*\*/|\*|\?|[^{*?]+|.", re.DOTALL)
Key = tuple[str, ...]


class Template:
    """Paths with parts that differ from case to case.

    Args:
        text: ``{name}`` stands for one or more characters but ``/``, and for the same ones wherever it comes again; ``*`` for any
            but ``/``; ``**/`` for any folders.
        key: the option it is the value of.

    Raises:
        ConfigError: a brace is not closed, or it names the same file for every case.
    """

    def __init__(self, text: str, key: str) -> None:
        self.text, self.key = text.replace("\\", "/") if os.sep == "\\" else text, key
        first = re.search(r"[{*?]", self.text)
        if first is None:
            raise ConfigError(key, "a template with parts in braces, such as {case}/t2.nii.gz", text)
        cut = self.text.rfind("/", 0, first.start()) + 1
        self.base, rest = self.text[:cut], self.text[cut:]
        self.names: list[str] = []
        pattern = ""
        for token in TOKEN.findall(rest):
            if (part := PART.fullmatch(token)) is not None:
                again = part[1] in self.names
                pattern += f"(?P={part[1]})" if again else f"(?P<{part[1]}>[^/]+?)"
                self.names += [] if again else [part[1]]
            elif token in "{}":
                raise ConfigError(key, "parts in braces, such as {case}", text, "correct the braces")
            else:
                pattern += {"**/": "(?:.*/)?", "*": "[^/]*", "?": "[^/]"}.get(token) or re.escape(token)
        self.pattern = re.compile(pattern)

    def files(self, root: Path, walked: dict[Path, list[Path]]) -> list[tuple[dict[str, str], Path]]:
        """Every file (or folder) that it fits, with what its parts stand for there.

        Args:
            root: what it is relative to.
            walked: the files below folders that were gone through before; gains those of this one.
        """
        base = root / os.path.expanduser(self.base)
        if base not in walked:
            walked[base] = _entries(base) if base.is_dir() else []
        found = []
        for path in walked[base]:
            match = self.pattern.fullmatch(path.relative_to(base).as_posix())
            if match is not None:
                found.append((match.groupdict(), path))
        return found


def _entries(base: Path) -> list[Path]:
    """The files below a folder, and the folders that hold them: a DICOM series is one."""
    files = list(walk(base))
    folders = {parent for file in files for parent in file.parents if parent != base and base in parent.parents}
    return sorted({*files, *folders})


def find(request: Request) -> Survey:
    """A case for everything that the template of the (first) image fits."""
    data, root = request.data, request.root
    faults: list[Fault] = []
    images = data.images
    if not images or (request.labelled and not data.label):
        missing = "data.label" if images else "data.image"
        raise ConfigError(missing, "a template of paths, such as {patient}/{scan}_t2.nii.gz", "", f"give {missing}=...")
    names = tuple(name for name in images if name)
    wanted = chosen(names, data.channels) if names else [0]
    templates = [Template(list(images.values())[index], "data.image") for index in wanted]
    labels = data.label_parts
    label = Template(next(iter(labels.values())), "data.label") if labels else None
    walked: dict[Path, list[Path]] = {}
    first, *others = templates
    found: dict[Key, list[Path]] = defaultdict(list)
    parts: dict[Key, dict[str, str]] = {}
    for values, path in first.files(root, walked):
        key = tuple(values[name] for name in first.names)
        found[key].append(path)
        parts[key] = values
    if not first.names:
        raise ConfigError("data.image", "a part in braces that tells the cases apart, such as {case}", first.text)
    more = [_by_parts(template, first.names, root, walked) for template in others]
    masks = _by_parts(label, first.names, root, walked) if label else None
    ids = _ids(parts)
    cases, told = [], {}
    for key, paths in found.items():
        own = [paths, *(files(parts[key]) for files in more)]
        kinds = ["image", *(f"image {names[index]}" for index in wanted[1:])]
        sources = [_one(ids[key], kind, some, t, faults) for kind, some, t in zip(kinds, own, templates, strict=True)]
        mask = _one(ids[key], "label", masks(parts[key]), label, faults) if masks and label else ()
        if all(sources):
            cases.append(case_of(ids[key], sources, mask[0] if mask else None))
            told[ids[key]] = parts[key]
    if len(labels) > 1 or "" not in labels:
        cases = [_with_masks(case, told[case.id], labels, first, root, walked, faults) for case in cases]
    _note_labels(label, first, root, walked, list(parts.values()), faults)
    used = tuple(names[index] for index in wanted) if names else ()
    return Survey(cases, faults, channels=used, cut=bool(names), parts=told, structures=tuple(n for n in labels if n))


def _with_masks(
    case: Case,
    parts: Mapping[str, str],
    labels: Mapping[str, str],
    image: Template,
    root: Path,
    walked: dict[Path, list[Path]],
    faults: list[Fault],
) -> Case:
    """A case with its mask of every structure, where it has a label."""
    if case.label is None:
        return case
    masks = [(next(iter(labels)), case.label)]
    for name, text in list(labels.items())[1:]:
        template = Template(text, "data.label")
        there = _by_parts(template, image.names, root, walked)(parts)
        own = _one(case.id, "label", there, template, faults)
        masks += [(name, own[0])] if own else []
    return replace(case, masks=tuple(masks))


class _by_parts:  # noqa: N801  # a function with memory
    """The files of a template by the parts that it shares with the image's."""

    def __init__(self, template: Template, shared: list[str], root: Path, walked: dict[Path, list[Path]]) -> None:
        self.names = [name for name in template.names if name in shared]
        self.files: dict[Key, list[Path]] = defaultdict(list)
        for values, path in template.files(root, walked):
            self.files[tuple(values[name] for name in self.names)].append(path)

    def __call__(self, values: Mapping[str, str]) -> list[Path]:
        return self.files.get(tuple(values[name] for name in self.names), [])


def _one(case: str, kind: str, paths: list[Path], template: Template, faults: list[Fault]) -> tuple[Path, ...]:
    """The one file (or DICOM series) among those that a template fits for one case."""
    if len(paths) > 1:
        paths = [path for path in paths if ending(path)] or paths  # a header's voxels lie beside it
    if len(paths) != 1:
        found = listed([path.name for path in paths], 4) or "none"
        remedy = "add it, or correct the template" if not paths else "make the template fit one of them"
        faults.append(Fault(case, kind, f"one file {template.text}", found, remedy))
        return ()
    files = series_at(paths[0]) if kind != "label" else tuple(paths)
    if not files:
        faults.append(Fault(case, kind, "a scan, or a folder with one DICOM series", paths[0].name, "correct the template"))
    return files


def _ids(parts: Mapping[Key, Mapping[str, str]]) -> dict[Key, str]:
    """An id for each case: its part ``{id}`` or ``{case}`` where that tells all apart, else all parts."""
    for name in IDS:
        own = {key: values[name] for key, values in parts.items() if name in values}
        if len(own) == len(parts) == len(set(own.values())):
            return own
    aside = {"centre", "center", "site", "fold", "split"}
    short = {key: "_".join(value for name, value in values.items() if name not in aside) for key, values in parts.items()}
    if len(set(short.values())) == len(parts) and all(short.values()):
        return short
    return {key: "_".join(key) for key in parts}


def _note_labels(
    label: Template | None,
    image: Template,
    root: Path,
    walked: dict[Path, list[Path]],
    known: list[dict[str, str]],
    faults: list[Fault],
) -> None:
    """A fault for every label without an image."""
    if label is None:
        return
    shared = [name for name in label.names if name in image.names]
    there = {tuple(values[name] for name in shared) for values in known}
    for values, path in label.files(root, walked):
        if tuple(values[name] for name in shared) not in there:
            remedy = "add the image, correct the template, or remove the label"
            faults.append(Fault(path.name, "image", f"one file {image.text}", "none", remedy))


LAYOUT = Layout(
    "templates",
    "names by the templates data.image and data.label",
    "files that fit the template data.image",
    lambda root: False,  # chosen where data.image is given
    find,
)
