"""The slices and contours of one case for the report's case browser and for Fig. 4.

The cross-validation writes one file per case, cropped around the reference. It holds slices of the scans: where the data may not
be passed on, neither may this file, nor a page made of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from oasis_monai.data.types import IGNORE
from oasis_monai.evaluation.contours import crop_box, grey_window
from oasis_monai.evaluation.scores import method_name
from oasis_monai.networks.segmentation import NETWORKS
from oasis_monai.utils.files import digest
from oasis_monai.utils.tensor_files import load_tensors, save_tensors

MARGIN_MM = 30.0
_RESULT = "result/"
_UNCERTAIN = "uncertain/"


@dataclass
class CaseView:
    """One case; arrays are (x, y, z) in RAS order, cropped in plane.

    Args:
        image: uint8, windowed round the reference.
        reference, results: uint8 class indices; results by method name.
        crop: x0, x1, y0, y1 in the whole slice.
        outside: voxels of a result beyond the crop, by method name.
        atlases: per target image (one for a volume, one per slice) [case, slice, distance], nearest first.
        weights: method name -> per target image the atlases' weights.
        views: method name -> in which view it saw the scan, in words; without those that saw it as it is.
        members: where structures share voxels, the classes of each of ``labels``; empty: each class is one.
        uncertain: uint8, 0 to 255: where a result is uncertain, by method name; only of methods that say so.
    """

    case: str
    protocol: str
    fold: int
    spacing_mm: tuple[float, float, float]
    labels: tuple[str, ...]
    crop: tuple[int, int, int, int]
    image: np.ndarray
    reference: np.ndarray
    results: dict[str, np.ndarray] = field(default_factory=dict)
    outside: dict[str, int] = field(default_factory=dict)
    atlases: dict[str, list[Any]] = field(default_factory=dict)
    weights: dict[str, list[Any]] = field(default_factory=dict)
    views: dict[str, str] = field(default_factory=dict)
    uncertain: dict[str, np.ndarray] = field(default_factory=dict)
    members: tuple[tuple[int, ...], ...] = ()


def write_browser(
    folder: Path,
    case: str,
    protocol: str,
    fold: int,
    image: np.ndarray,
    reference: np.ndarray,
    results: Mapping[str, np.ndarray],
    spacing_mm: Sequence[float],
    labels: Sequence[str],
    atlases: Sequence[Any] = (),
    weights: Mapping[str, Any] | None = None,
    views: Mapping[str, str] | None = None,
    uncertain: Mapping[str, np.ndarray] | None = None,
    members: Sequence[Sequence[int]] = (),
) -> Path:
    """Write one case for the case browser.

    The crop is the reference's box with a margin of 30 mm in plane, or the whole plane without a reference, so every run keeps
    the same part of a case.

    Args:
        folder: where to write; the file's name is derived from the case's id.
        image: (x, y, z) intensities in RAS order, uncropped; of several channels the first.
        reference, results: (x, y, z) class indices on the image's grid.
        labels: names of the classes 1, 2, ...
        atlases, weights, views: see :class:`CaseView`; ``atlases`` are the same for every method of a run.
        uncertain: (x, y, z) 0 to 1, by method name.
        members: see :class:`CaseView`; ``labels`` are then the names of the structures.

    Raises:
        ValueError: shapes differ.
    """
    uncertain = uncertain or {}
    shapes = {image.shape, reference.shape, *(r.shape for r in (*results.values(), *uncertain.values()))}
    if len(shapes) > 1 or image.ndim != 3:
        raise ValueError(f"{case}: expected image, reference and results of one shape (x, y, z), found {sorted(shapes)}")
    reference = np.where(reference == IGNORE, 0, reference)  # what nobody labelled is not drawn
    where = crop_box(reference, spacing_mm, MARGIN_MM)
    tensors = {"image": _grey(image[where]), "reference": reference[where].astype(np.uint8)}
    tensors |= {_RESULT + name: result[where].astype(np.uint8) for name, result in results.items()}
    tensors |= {_UNCERTAIN + name: np.rint(255 * values[where]).astype(np.uint8) for name, values in uncertain.items()}
    outside = {name: int((result != 0).sum() - (result[where] != 0).sum()) for name, result in results.items()}
    meta = {
        "case": case,
        "protocol": protocol,
        "fold": fold,
        "spacing_mm": [float(s) for s in spacing_mm],
        "labels": list(labels),
        "crop": [end for box in where for end in (box.start, box.stop)],
        "outside": outside,
        "atlases": list(atlases),
        "weights": dict(weights or {}),
        **({"views": dict(views)} if views else {}),
        **({"members": [list(own) for own in members]} if members else {}),
    }
    path = browser_file(folder, case)
    save_tensors(path, {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in tensors.items()}, meta)
    return path


def replace_result(folder: Path, case: str, name: str, result: np.ndarray) -> None:
    """Put another result of a method in the place of that in a case's file; nothing happens where there is none.

    Args:
        name: of the method.
        result: as for :func:`write_browser`.
    """
    path = browser_file(folder, case)
    if not path.is_file():
        return
    tensors, meta = load_tensors(path)
    if _RESULT + name not in tensors:
        return
    x0, x1, y0, y1 = meta["crop"][:4]
    shown = result[x0:x1, y0:y1]
    tensors[_RESULT + name] = torch.from_numpy(np.ascontiguousarray(shown.astype(np.uint8)))
    meta["outside"][name] = int((result != 0).sum() - (shown != 0).sum())
    save_tensors(path, tensors, meta)


def browser_file(folder: Path, case: str) -> Path:
    """The file in which :func:`write_browser` stores a case."""
    return Path(folder) / f"{digest(case)}.safetensors"


def load_browser(folders: Mapping[Path, str], protocol: str | None = None) -> dict[str, CaseView]:
    """Read the cases of one or several runs, by case id in order; the results of several runs for a case are merged.

    A damaged file is left out. Where two runs hold one method of a case, the first stands.

    Args:
        folders: of :func:`write_browser`, each with the suffix its atlas methods go by (``" 3D"``: ``OASIS-6`` becomes
            ``OASIS 3D-6``); one that is absent holds no cases.
        protocol: only runs under these folds.
    """
    views: dict[str, CaseView] = {}
    for folder, suffix in folders.items():
        for path in sorted(Path(folder).glob("*.safetensors")):
            try:
                tensors, meta = load_tensors(path)
            except (OSError, ValueError):
                continue
            if protocol is None or meta["protocol"] == protocol:
                _add(views, {name: tensor.numpy() for name, tensor in tensors.items()}, meta, suffix)
    return dict(sorted(views.items()))


def _add(views: dict[str, CaseView], arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any], suffix: str) -> None:
    x, y, z = meta["spacing_mm"]
    a, b, c, d = meta["crop"]
    fresh = CaseView(
        meta["case"],
        meta["protocol"],
        meta["fold"],
        (x, y, z),
        tuple(meta["labels"]),
        (a, b, c, d),
        arrays["image"],
        arrays["reference"],
        members=tuple(tuple(own) for own in meta.get("members", ())),
    )
    view = views.setdefault(meta["case"], fresh)
    if view.image.shape != fresh.image.shape or view.crop != fresh.crop:
        return  # from other data, so it cannot be shown on this case's slices
    for key, array in sorted(arrays.items()):  # the file gives them in any order
        if not key.startswith(_RESULT):
            continue
        own = key.removeprefix(_RESULT)
        method, _, n = own.rpartition("-")
        fuses = n.isdecimal()  # the others use no atlases, and have no n: networks, and a joint model's estimate
        name = method_name(method + suffix, int(n)) if fuses else own if own in NETWORKS else own + suffix
        if name in view.results:
            continue
        view.results[name] = array
        if _UNCERTAIN + own in arrays:
            view.uncertain[name] = arrays[_UNCERTAIN + own]
        view.outside[name] = meta["outside"].get(own, 0)
        if own in meta["weights"]:
            view.weights[name] = meta["weights"][own]
        if own in meta.get("views", {}):
            view.views[name] = meta["views"][own]
        if fuses:
            view.atlases[name] = meta["atlases"]


def _grey(near: np.ndarray) -> np.ndarray:
    """The crop in 0..255; a flat image is black."""
    low, high = grey_window(near, highest=99.5)
    scaled = (np.nan_to_num(near, nan=low) - low) / ((high - low) or 1.0)
    return np.rint(255 * scaled.clip(0, 1)).astype(np.uint8)
