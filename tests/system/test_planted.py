"""``check`` on a copy of real data with faults planted into it: it finds every one, names case and field, and nothing else."""

from __future__ import annotations

import csv
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.command import run
from tests.helpers.real import real_data

# the smallest of the cases, to be quick; none of them has a fault or a warning of its own
CASES = [25, 35, 18, 14, 15, 16, 17, 20, 21, 22, 24, 39, 40, 41, 42, 43, 44, 45, 46, 49]


class Scan:
    """The files of a case, to be spoilt."""

    def __init__(self, root: Path, number: int, label: bool = False) -> None:
        stem = f"Case{number:02d}" + ("_segmentation" if label else "")
        self.header, self.data = root / f"{stem}.mhd", root / f"{stem}.raw"

    def line(self, key: str, change: Callable[[str], str] | None) -> None:
        """Change the value of one line, or remove the line."""
        rows = self.header.read_text().splitlines()
        at = next(i for i, row in enumerate(rows) if row.startswith(f"{key} = "))
        rows[at] = "" if change is None else f"{key} = {change(rows[at].split(' = ')[1])}"
        self.header.write_text("\n".join(row for row in rows if row) + "\n")

    def value(self, key: str) -> str:
        return next(row.split(" = ")[1] for row in self.header.read_text().splitlines() if row.startswith(f"{key} = "))

    def voxels(self, change: Callable[[np.ndarray], np.ndarray | None]) -> None:
        """Change the voxels (z, y, x), in place or by what comes back."""
        kinds = {"MET_SHORT": "<i2", "MET_CHAR": "i1", "MET_UCHAR": "u1"}
        shape = [int(n) for n in self.value("DimSize").split()][::-1]
        values = np.fromfile(self.data, kinds[self.value("ElementType")]).reshape(shape)
        made = change(values)
        (values if made is None else made).tofile(self.data)

    def as_float(self, spoil: float) -> None:
        """Stored as float32 with one voxel ``spoil``."""

        def change(values: np.ndarray) -> np.ndarray:
            made = values.astype("<f4")
            made[0, 0, 0] = spoil
            return made

        self.voxels(change)
        self.line("ElementType", lambda _: "MET_FLOAT")

    def compressed(self, cut: int) -> None:
        """Compressed, with the last ``cut`` bytes of the stream lost."""
        stream = zlib.compress(self.data.read_bytes())[: -cut or None]
        self.data.write_bytes(stream)
        self.line("CompressedData", lambda _: f"True\nCompressedDataSize = {len(stream)}")


def spacing(*factors: float) -> Callable[[str], str]:
    return lambda text: " ".join(repr(float(v) * f) for v, f in zip(text.split(), factors, strict=True))


def shifted(by: float) -> Callable[[str], str]:
    return lambda text: " ".join([repr(float(text.split()[0]) + by), *text.split()[1:]])


def stray(values: np.ndarray) -> None:
    values[0, 0, 0] = 1


def unknown(values: np.ndarray) -> None:
    values[0, 0, :3] = 7


def empty(values: np.ndarray) -> None:
    values[:] = 0


def constant(values: np.ndarray) -> None:
    values[:] = 100


def few(values: np.ndarray) -> None:
    """Three voxels of the structure stay, in a row."""
    z, y, x = (int(v) for v in np.argwhere((values[:, :, :-2] == 1) & (values[:, :, 1:-1] == 1) & (values[:, :, 2:] == 1))[0])
    values[:] = 0
    values[z, y, x : x + 3] = 1


def plant(root: Path) -> set[tuple[str, str, str, str]]:
    """Spoil the copy; -> (case, field, part of what was found, severity) of every fault, twenty and more."""
    image = {n: Scan(root, n) for n in CASES}
    label = {n: Scan(root, n, label=True) for n in CASES}
    a = {number: f"Case{number:02d}" for number in CASES}

    for path in (label[25].header, label[25].data, image[35].header, image[35].data):
        path.unlink()
    image[18].line("ElementSpacing", None)
    label[18].line("NDims", lambda _: "2")
    image[14].line("ElementSpacing", spacing(1, -1, 1))
    label[14].line("ElementType", lambda _: "MET_CUBE")
    image[15].line("ElementDataFile", lambda name: f"../{root.name}/{name}")
    label[15].line("TransformMatrix", lambda _: "1 0.1 0 0 1 0 0 0 1")
    image[16].data.write_bytes(image[16].data.read_bytes()[:-100])
    label[16].data.write_bytes(label[16].data.read_bytes() + b"\0")
    image[17].compressed(cut=50)
    label[17].voxels(unknown)
    image[20].as_float(float("nan"))
    image[21].as_float(float("inf"))
    label[22].line("Offset", shifted(5.0))
    label[24].line("Offset", shifted(1e-3))  # within tolerance: no fault
    label[24].voxels(stray)
    label[39].voxels(empty)
    image[40].voxels(constant)
    for scan in (image[41], label[41]):
        scan.line("ElementSpacing", spacing(1, 2, 1))
    for scan in (image[42], label[42]):
        scan.line("ElementSpacing", spacing(0.05, 0.05, 0.05))
    label[43].voxels(few)
    shutil.copy(image[44].data, image[45].data)
    return {
        (a[25], "label", "none", "error"),
        (a[35], "image", "none", "error"),
        (a[18], f"{a[18]}.mhd ElementSpacing", "nothing", "error"),
        (a[18], f"{a[18]}_segmentation.mhd NDims", "2", "error"),
        (a[14], f"{a[14]}.mhd ElementSpacing", "-", "error"),
        (a[14], f"{a[14]}_segmentation.mhd ElementType", "MET_CUBE", "error"),
        (a[15], f"{a[15]}.mhd ElementDataFile", "../", "error"),
        (a[15], f"{a[15]}_segmentation.mhd TransformMatrix", "deviation of 0.1", "error"),
        (a[16], f"{a[16]}.mhd ElementDataFile", "shorter", "error"),
        (a[16], f"{a[16]}_segmentation.mhd ElementDataFile", "longer", "error"),
        (a[17], f"{a[17]}.mhd ElementDataFile", "damaged zlib stream", "error"),
        (a[17], f"{a[17]}_segmentation.mhd label values", "7 (3 voxels)", "error"),
        (a[20], f"{a[20]}.mhd voxels", "1 NaN or infinite", "error"),
        (a[21], f"{a[21]}.mhd voxels", "1 NaN or infinite", "error"),
        (a[22], "label geometry", "origin off by 5 mm", "error"),
        (a[24], "label 1", "2, the largest of", "warning"),
        (a[39], "label", "only 0", "warning"),
        (a[40], "image", "100 everywhere", "error"),
        (a[41], "spacing", " mm", "warning"),
        (a[42], "spacing", "0.0", "warning"),
        (a[42], "label 1", "robust z -", "warning"),
        (a[43], "label 1", "3", "warning"),
        (a[43], "label 1", "robust z -", "warning"),
        (a[44], "image", f"the same voxels in {a[44]}, {a[45]}", "error"),
    }


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root, source = tmp_path_factory.mktemp("planted"), real_data("promise12")
    for number in CASES:
        for part in ("", "_segmentation"):
            for kind in (".mhd", ".raw"):
                shutil.copyfile(source / f"Case{number:02d}{part}{kind}", root / f"Case{number:02d}{part}{kind}")
    return root


def test_all_planted_faults_are_found_at_once_and_nothing_else(copied: Path, tmp_path: Path) -> None:
    words = ["check", "data=promise12", f"data.root={copied}", "output=told"]
    done = run(*words, cwd=tmp_path)
    assert (done.code, done.err) == (0, "")
    assert f"{len(CASES)} cases, 0 errors, 0 warnings" in done.out
    assert (tmp_path / "told" / "check.csv").read_text() == "case,field,expected,found,remedy,severity\n"

    planted = plant(copied)
    assert len(planted) >= 20
    done = run(*words, cwd=tmp_path)
    assert done.code == 2
    with open(tmp_path / "told" / "check.csv", newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    missed, left = [], list(rows)
    for case, field, found, severity in sorted(planted):
        own = [r for r in left if (r["case"], r["field"], r["severity"]) == (case, field, severity) and found in r["found"]]
        left = [row for row in left if row not in own[:1]]
        missed += [] if own else [(case, field, found, severity)]
    assert missed == []
    assert left == []
    assert all(row["expected"] and row["remedy"] for row in rows)
    # the same on the command line, a line each: errors on stderr, warnings on stdout
    for row in rows:
        line = (
            f"{row['severity']}: {row['case']}: {row['field']}: expected {row['expected']}, found {row['found']}; {row['remedy']}"
        )
        assert line in (done.err if row["severity"] == "error" else done.out).splitlines()
    errors = sum(row["severity"] == "error" for row in rows)
    assert len(done.err.splitlines()) == errors
    assert f"{errors} errors, {len(rows) - errors} warnings" in done.out
