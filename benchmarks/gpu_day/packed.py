"""The preprocessed data set that travels to the GPU: one file with images, labels, features, settings and folds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from oasis_monai.atlases.library import AtlasLibrary
from oasis_monai.data.folds import Fold, Split
from oasis_monai.data.types import Case, Geometry, Preprocessed
from oasis_monai.settings import Settings, build
from oasis_monai.utils.tensor_files import load_tensors, save_tensors
from oasis_monai.workflows.prepare import Dataset


@dataclass(frozen=True)
class Packed:
    """A data set of volumes on the working grid, ready to train on.

    Args:
        settings: of the training.
        dataset: its cases have no files: there is nothing on the scans' own grids.
        split: its folds.
    """

    settings: Settings
    dataset: Dataset
    split: Split


def write_packed(path: Path, packed: Packed) -> None:
    """Write the data set: images in float16, labels as class indices.

    Raises:
        ValueError: it has no volumes, or a fine grid, which would not fit.
    """
    dataset, library = packed.dataset, packed.dataset.library
    if library.spatial_dims == 2 or library.fine:
        raise ValueError("expected volumes without a fine grid: spatial_dims=3 preprocessing.fine_factor=null")
    affines = [dataset.targets[case].geometry.affine for case in library.cases]
    tensors = {
        "images": library.images.half(),
        "labels": library.labels,
        "features": library.features,
        "affines": torch.as_tensor(np.stack(affines), dtype=torch.float64),
    }
    meta = {
        "settings": packed.settings.to_json(),
        "cases": list(library.cases),
        "patients": list(library.patients),
        "content": dict(dataset.content),
        "embedding": dataset.embedding,
        "split": packed.split.to_json(),
    }
    save_tensors(path, tensors, meta)


def read_packed(path: Path) -> Packed:
    """Read what :func:`write_packed` wrote."""
    tensors, meta = load_tensors(path)
    settings = build(meta["settings"])
    images, labels, ids = tensors["images"].float(), tensors["labels"], meta["cases"]
    x, y, z = images.shape[2:]
    targets = {}
    for case, image, affine in zip(ids, images, tensors["affines"].numpy(), strict=True):
        grid = Geometry((x, y, z), affine)
        targets[case] = Preprocessed(case, image, None, grid, grid)
    library = AtlasLibrary(
        images,
        labels,
        tensors["features"],
        tuple(ids),
        torch.full((len(ids),), -1),
        settings.data.classes,
        patients=tuple(meta["patients"]),
        structures=settings.data.members,
    )
    cases = {case: Case(case, Path(case), patient=patient) for case, patient in zip(ids, meta["patients"], strict=True)}
    dataset = Dataset(cases, targets, library, meta["content"], meta["content"], meta["embedding"])
    return Packed(settings, dataset, _split(meta["split"]))


def _split(told: Mapping[str, Any]) -> Split:
    """Of :meth:`oasis_monai.data.folds.Split.to_json`."""
    folds = []
    for one in told["folds"]:
        train, test = ({case: tuple(images) for case, images in one[side].items()} for side in ("train", "test"))
        folds.append(Fold(one["index"], train, test, one.get("name", "")))
    patients = {case: about["patient"] for case, about in told["cases"].items()}
    centres = {case: about["centre"] for case, about in told["cases"].items()}
    return Split(told["protocol"], told["seed"], tuple(folds), patients, centres)
