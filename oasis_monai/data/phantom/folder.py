"""Write the phantom as a data set on disk, in the layout of PROMISE12."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from oasis_monai.data.formats.metaimage_data import header_text
from oasis_monai.data.phantom.make import Phantom, check_arguments, make_phantom
from oasis_monai.data.types import Geometry
from oasis_monai.utils.errors import ConfigError, DataError, Fault
from oasis_monai.utils.files import atomic_path, file_digest, write_json, write_text

MANIFEST = "phantom.json"
VERSION = 1  # raise it when the same parameters give other voxels, so that folders of an older version are written again
# the image's header comes last: as long as a case can be found, it is whole
_ENDINGS = ("_segmentation.raw", ".raw", "_segmentation.mhd", ".mhd")


def write_phantom(
    folder: str | Path,
    cases: int = 20,
    seed: int = 0,
    size: str = "demo",
    labels: int | None = None,
    kind: str = "prostate",
) -> list[str]:
    """Write ``cases`` synthetic scans as MHD pairs and return their ids.

    ``CaseNN.mhd/.raw`` (MET_SHORT) and ``CaseNN_segmentation.mhd/.raw`` (MET_UCHAR), and ``phantom.json`` with the
    parameters and a sha256 per case. Cases that are already there with the same parameters and whole are kept; after an
    interruption only what is missing is made. Other parameters replace the cases this function wrote before.

    Args:
        folder: where to; made if absent.
        cases: 1 to 100 (the layout has two digits).
        seed, size, labels, kind: see :func:`make_phantom`.

    Raises:
        ConfigError: an argument out of range.
        DataError: the folder holds ``CaseNN`` files this function did not write; they are left alone.
    """
    folder = Path(folder)
    if not 1 <= cases <= 100:
        raise ConfigError("phantom.cases", "1 to 100", cases)
    labels = check_arguments(0, seed, size, labels, kind)
    ids = [f"Case{i:02d}" for i in range(cases)]
    parameters = {"version": VERSION, "seed": seed, "size": size, "labels": labels}
    parameters |= {} if kind == "prostate" else {"kind": kind}
    before = _read_manifest(folder)
    own = set(before["cases"]) | set(before["started"])
    _refuse_foreign(folder, own)
    same = before["parameters"] == parameters
    done = {i: d for i, d in before["cases"].items() if same and i in ids and _digest(folder, i) == d}
    if same and own == set(ids) == set(done):
        return ids
    # ownership is written down before the first voxel, so an interrupted folder is ours when we come back
    _write_manifest(folder, parameters, done, own | set(ids))
    for stale in sorted(own - set(done)):
        _remove(folder, stale)
    for index, case in enumerate(ids):
        if case not in done:
            scan = make_phantom(index, seed, size=size, labels=labels, kind=kind)
            write_pair(folder, case, scan)
            done[case] = str(_digest(folder, case))
            _write_manifest(folder, parameters, done, set(ids))
    _write_manifest(folder, parameters, done, set(ids))
    return ids


def write_pair(folder: str | Path, case: str, scan: Phantom) -> None:
    """Write one scan and its label as two MHD pairs. Each file appears whole, the image's header last, so a reader that
    finds ``case.mhd`` finds a complete case."""
    folder = Path(folder)
    _remove(folder, case)
    for ending, array in (
        ("_segmentation.raw", scan.label.astype(np.uint8, copy=False)),
        (".raw", scan.image.astype("<i2", copy=False)),
    ):
        with atomic_path(folder / f"{case}{ending}") as temporary:
            temporary.write_bytes(array.ravel(order="F").data)  # the file's fastest axis is x
    grid = Geometry(scan.image.shape, scan.affine)
    for stem, kind in ((f"{case}_segmentation", "MET_UCHAR"), (case, "MET_SHORT")):
        write_text(folder / f"{stem}.mhd", header_text(grid, kind, f"{stem}.raw"))


def _digest(folder: Path, case: str) -> str | None:
    try:
        return file_digest(*(folder / f"{case}{ending}" for ending in _ENDINGS))
    except OSError:
        return None


def _remove(folder: Path, case: str) -> None:
    for ending in reversed(_ENDINGS):
        (folder / f"{case}{ending}").unlink(missing_ok=True)


def _read_manifest(folder: Path) -> dict[str, Any]:
    import json

    empty: dict[str, Any] = {"parameters": None, "cases": {}, "started": []}
    path = folder / MANIFEST
    if not path.exists():
        return empty
    try:
        return empty | json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, TypeError, OSError) as error:
        fault = Fault("", str(path), "the list this command wrote", f"{type(error).__name__}", "delete the folder")
        raise DataError(fault) from error


def _write_manifest(folder: Path, parameters: dict[str, Any], done: dict[str, str], started: set[str]) -> None:
    write_json(folder / MANIFEST, {"parameters": parameters, "cases": done, "started": sorted(started - set(done))})


def _refuse_foreign(folder: Path, own: set[str]) -> None:
    names = sorted(p.name for p in folder.glob("Case*")) if folder.is_dir() else []
    foreign = [n for n in names if (m := re.match(r"(Case\d+)(_segmentation)?\.(mhd|raw)$", n)) and m[1] not in own]
    if foreign:
        raise DataError(
            Fault("", str(folder), "an empty folder or one written by the phantom",
                  f"{len(foreign)} other files such as {foreign[0]}", "choose another folder for the phantom")
        )  # fmt: skip
