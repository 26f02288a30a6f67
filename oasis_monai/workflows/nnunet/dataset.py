"""A data set in nnU-Net's raw layout: which labels it asks for, and how scans and labels become its files."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from oasis_monai import __version__
from oasis_monai.data.formats.dispatch import write_array
from oasis_monai.data.io import read_volume
from oasis_monai.data.layouts.dataset_json import NAME, SPLITS, read_description
from oasis_monai.data.layouts.files import stem
from oasis_monai.data.overlap import sets_of_values
from oasis_monai.data.settings import DataSettings
from oasis_monai.data.types import IGNORE, Case
from oasis_monai.settings import Settings
from oasis_monai.transforms.intensity import windows_of
from oasis_monai.utils.errors import ConfigError, with_case_in_errors
from oasis_monai.utils.files import atomic_folder, digest, write_text
from oasis_monai.workflows.prepare import channel_names, file_stamps

DATASET = re.compile(r"Dataset\d{3}_.+")
FIRST = 501
"""The number of the first data set that has none: nnU-Net's own ones and its users' have lower ones."""
ENDING = ".nii.gz"
READ_BY_ITK = (".nii.gz", ".nrrd", ".mha")
"""Endings of nnU-Net's ``SimpleITKIO`` that results can have here."""
OURS = "oasis_monai"
"""Key of ``dataset.json`` and ``plans.json`` that nnU-Net does not look at."""
TAKEN = ("background", "ignore")
"""Names in ``labels`` that mean something else to nnU-Net."""
CT = "CT"
"""The channel name by which nnU-Net normalises as for CT, by percentiles of the whole data set."""


@dataclass(frozen=True)
class NnunetLabels:
    """The labels of a data set in nnU-Net's terms.

    Args:
        named: ``labels`` of its ``dataset.json``, in order.
        order: ``regions_class_order``; empty without regions.
        values: value in the files of each class, background first.
        ignore: value of voxels that nobody labelled; None: there are none.
        lost: combinations of structures that nnU-Net's own results cannot have, by name.
    """

    named: Mapping[str, Any]
    order: tuple[int, ...]
    values: tuple[int, ...]
    ignore: int | None
    lost: tuple[str, ...] = ()

    @property
    def scored(self) -> dict[str, tuple[int, ...]]:
        """Structure -> its values in the files."""
        pairs = {" ".join(name.split()): own for name, own in self.named.items() if name not in TAKEN}
        return {name: tuple(own) if isinstance(own, list | tuple) else (own,) for name, own in pairs.items()}

    def in_file(self, indices: np.ndarray) -> np.ndarray:
        """Class indices and :data:`.IGNORE` as values of a file, in the smallest type that holds them."""
        table = np.zeros(256, np.int64)
        table[: len(self.values)] = self.values
        table[IGNORE] = self.values[0] if self.ignore is None else self.ignore
        return table[indices].astype(np.uint8 if table.max() < 256 else np.int32)


def consecutive_labels(data: DataSettings) -> NnunetLabels:
    """The labels as nnU-Net asks for them: 1, 2, ... without a gap (class indices), and ``ignore`` behind them.

    Structures that share voxels are regions, those that contain others before these, as nnU-Net writes one over the other.

    Raises:
        ConfigError: a structure has a name that means something else there.
    """
    if wrong := [name for name in data.scored if name in TAKEN]:
        remedy = "name it otherwise by data.labels (data.structures)"
        raise ConfigError("data.labels", f"names other than {' and '.join(TAKEN)}", wrong[0], remedy)
    ignore = None if data.ignore is None else data.classes
    regions = {name: data.scored[name] for name in sorted(data.scored, key=lambda name: -len(data.scored[name]))}
    named = {name: list(own) if len(own) > 1 else own[0] for name, own in regions.items()}
    shares = any(isinstance(own, list) for own in named.values())
    order = region_order(regions) if shares else ()
    sets = sets_of_values(regions)
    names = list(data.labels)
    lost = tuple(names[index - 1] for index, bits in sets.items() if shares and _written(bits, order) != index)
    more = {} if ignore is None else {"ignore": ignore}
    return NnunetLabels({"background": 0, **named, **more}, order, tuple(range(data.classes)), ignore, lost)


def region_order(regions: Mapping[str, Sequence[int]]) -> tuple[int, ...]:
    """nnU-Net's ``regions_class_order``: the value written for each region, one over the other in this order.

    It is that of the region within all those that contain it, where there is such a value.

    Examples:
        >>> region_order({"whole tumour": (1, 2, 3), "core": (2, 3), "enhancing": (3,)})
        (1, 2, 3)
    """
    value_of = {bits: value for value, bits in reversed(sets_of_values(regions).items())}
    found = []
    for own in regions.values():
        around = sum(1 << number for number, other in enumerate(regions.values()) if set(own) <= set(other))
        found.append(value_of.get(around, min(own)))
    return tuple(found)


def _written(bits: int, order: Sequence[int]) -> int:
    """The value that nnU-Net leaves in a voxel of these structures."""
    return order[bits.bit_length() - 1]


def own_labels(data: DataSettings, cases: Sequence[Case]) -> tuple[Path, NnunetLabels, str] | None:
    """The folder of a data set that is nnU-Net's already, as it is: all its values, channels and names; None of another.

    Returns:
        ``.../DatasetXXX_NAME``, its labels as they are, and the ending of its files.
    """
    homes = {case.image.parent.parent for case in cases}
    home = next(iter(homes)) if len(homes) == 1 else Path()
    if data.layout != "nnunet" or not DATASET.fullmatch(home.name) or not (home / NAME).is_file():
        return None
    told = read_description(home, [])
    ending = told.ending or ENDING
    there = {case.image.parent.name for case in cases} | {c.label.parent.name for c in cases if c.label is not None}
    same = (
        there == {"imagesTr", "labelsTr"}
        and all(case.label is not None and case.label.name == f"{case.id}{ending}" for case in cases)
        and all(stem(case.image) == f"{case.id}_0000" and len(case.sources) == len(told.channels) for case in cases)
        and tuple(data.channels or told.channels) == told.channels
        and (dict(data.structures) == told.regions if told.regions else not data.structures)
        and (bool(told.regions) or dict(data.labels) == told.labels)
        and data.ignore == told.ignore
        and not data.background
        and ending in READ_BY_ITK
    )
    if not same:
        return None
    named = json.loads((home / NAME).read_text(encoding="utf-8-sig"))["labels"]
    return (home, NnunetLabels(named, told.order, data.label_values, data.ignore), ending) if "background" in named else None


def names_of_channels(settings: Settings, count: int) -> list[str]:
    """The channels' names; one whose intensities are those of CT has the name by which nnU-Net treats it as CT."""
    names, seen = channel_names(settings, count), settings.preprocessing
    windows = windows_of(seen.window if seen.intensity == "window" else None, count)
    return [name if window is None else CT for name, window in zip(names, windows, strict=True)]


def dataset_json(settings: Settings, labels: NnunetLabels, cases: Sequence[Case], channels: Sequence[str]) -> dict[str, Any]:
    """The content of ``dataset.json``. The order of ``labels`` counts where there are regions."""
    data = settings.data
    files = [[case.id, [stamp[1:] for stamp in file_stamps([case])]] for case in cases]
    about = {"name": data.name, "reference": data.citation, "licence": data.licence}
    return {
        "channel_names": {str(number): name for number, name in enumerate(channels)},
        "labels": dict(labels.named),
        **({"regions_class_order": list(labels.order)} if labels.order else {}),
        "numTraining": len(cases),
        "file_ending": ENDING,
        **{key: value for key, value in about.items() if value},
        "converted_by": f"oasis-monai {__version__}",
        OURS: {"digest": digest([files, list(data.label_values), list(channels), dict(labels.named)])},
    }


def write_raw(
    folder: Path, settings: Settings, labels: NnunetLabels, cases: Sequence[Case], splits: str, overwrite: bool
) -> dict[str, Any]:
    """Write ``imagesTr``, ``labelsTr``, ``dataset.json`` and the folds, whole or not at all; the same data set is left as it is.

    Args:
        folder: ``nnUNet_raw/DatasetXXX_NAME``.
        splits: the content of ``splits_final.json``.
        overwrite: replace another data set of that name.

    Returns:
        The content of ``dataset.json``.

    Raises:
        ConfigError: the folder holds another data set, or scans have not all as many channels.
        DataError: a scan or a label cannot be read.
    """
    from tqdm import tqdm

    first = read_volume(cases[0].without_label(), settings.data.label_values)
    channels = names_of_channels(settings, len(first.image))
    content = dataset_json(settings, labels, cases, channels)
    if _digest_of(folder / NAME) == content[OURS]["digest"]:
        write_text(folder / SPLITS, splits)
        return content
    if folder.exists() and not overwrite:
        remedy = "give another output=DIR or nnunet.dataset=NAME, or add overwrite=true to replace it"
        raise ConfigError("output", "a folder without another data set of that name", str(folder), remedy)
    with atomic_folder(folder) as made:
        for case in tqdm(cases, desc="convert", disable=not settings.progress, leave=False):
            with with_case_in_errors(case.id):
                volume = read_volume(case, settings.data.label_values, settings.data.ignore)
            assert volume.label is not None
            if len(volume.image) != len(channels):
                expected = f"{len(channels)} channels in every scan, as {cases[0].id} has"
                raise ConfigError("data.channels", expected, f"{len(volume.image)} of {case.id}", "choose channels that all have")
            for number, image in enumerate(volume.image.numpy()):
                write_array(made / "imagesTr" / f"{case.id}_{number:04d}{ENDING}", image, volume.geometry)
            write_array(made / "labelsTr" / f"{case.id}{ENDING}", labels.in_file(volume.label[0].numpy()), volume.geometry)
        write_text(made / SPLITS, splits)
        write_text(made / NAME, as_json(content))
    return content


def _digest_of(path: Path) -> str:
    """That of a ``dataset.json`` written here; empty of others."""
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))[OURS]["digest"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def as_json(content: Any) -> str:
    """JSON in the order given, which regions have there. An undefined number is NaN, as nnU-Net has it."""
    return json.dumps(content, indent=4) + "\n"


def name_dataset(asked: str | None, data: DataSettings, raw: Path) -> str:
    """``DatasetXXX_NAME`` of a data set: as asked for, as it is called in a folder already, or with the next free number.

    Args:
        asked: ``nnunet.dataset``.
        raw: ``nnUNet_raw`` of the output.

    Raises:
        ConfigError: what is asked for is no such name, or its number is another data set's there.
    """
    if asked is not None and not DATASET.fullmatch(str(asked)):
        raise ConfigError("nnunet.dataset", "a name such as Dataset501_Prostate", asked)
    there = sorted(
        path.name
        for folder in (raw, raw.with_name("nnUNet_preprocessed"), raw.with_name("nnUNet_results"))
        for path in folder.glob("Dataset*")
        if DATASET.fullmatch(path.name)
    )
    name = re.sub(r"\W+", "_", data.name).strip("_") or "data"
    if asked is None:
        known = [one for one in there if one.partition("_")[2] == name]
        if known:
            return known[0]
        taken = {int(one[7:10]) for one in there}
        free = next((number for number in range(FIRST, 1000) if number not in taken), None)
        if free is None:
            raise ConfigError("nnunet.dataset", f"a free number of {FIRST} to 999", "none", "give nnunet.dataset=DatasetXXX_NAME")
        return f"Dataset{free:03d}_{name}"
    if others := sorted({one for one in there if one[:10] == asked[:10]} - {asked}):
        raise ConfigError("nnunet.dataset", f"a number other than that of {others[0]}", asked, "give another number")
    return asked
