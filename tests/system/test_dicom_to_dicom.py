"""The way from a clinic's DICOM folder to corrected DICOM results, by the commands of the page on DICOM."""

import re
import shlex
from pathlib import Path

import numpy as np
import pydicom
import pytest

from oasis_monai.data.formats.dicom_source import read_dicom_source
from oasis_monai.data.formats.structure import Algorithm, structures_of
from oasis_monai.data.io import read_image
from oasis_monai.data.phantom import make_phantom
from oasis_monai.data.scans import one_scan
from oasis_monai.data.structure_files import write_structures
from tests.conftest import JOINT, TINY, merged, overrides
from tests.helpers.command import run
from tests.helpers.dicom_series import write_series
from tests.helpers.reviewing import review_and_correct

pytest.importorskip("highdicom", reason="DICOM SEG is written by highdicom (extra dicom)")
PAGE = Path(__file__).parents[2] / "docs" / "howto" / "dicom.md"


def commands():
    """Those of the page, without the installation."""
    (block,) = re.findall(r"```console\n(.*?)```", PAGE.read_text(), flags=re.S)
    words = [shlex.split(line.removeprefix("$ ")) for line in block.splitlines()]
    assert len(words) <= 7
    assert [first for first, *_ in words] == ["pip", *["oasis-monai"] * (len(words) - 1)]
    return [rest for _, *rest in words[1:]]


def write_patient(folder, number, label=True):
    """A phantom as a series with a UID of its own, and an RTSTRUCT of its prostate."""
    scan, series = make_phantom(number, size="tiny"), f"1.2.3.{number + 50}"
    tags = {"0020|0052": f"{series}.9", "0010|0020": f"P{number}"}
    write_series(folder / f"P{number}", scan.image.astype(np.int16), scan.affine, series=series, **tags)
    if label:
        case = one_scan([folder / f"P{number}"])
        structures = structures_of([("Prostate", 1, scan.label == 1)])
        grid = read_image(case.image)[1]
        write_structures(
            folder / f"P{number}.rtstruct.dcm",
            structures,
            grid,
            Algorithm("a physician", "1", ""),
            read_dicom_source(case.source),
        )
    return series


def test_a_folder_of_series_becomes_a_model_whose_corrected_results_teach_it(tmp_path):
    for number in range(4):
        write_patient(tmp_path / "dicom", number)
    series = write_patient(tmp_path / "new", 9, label=False)
    small = overrides(merged(TINY, JOINT, {"data": None, "training": {"iterations": 2}}))
    small = [word for word in small if not word.startswith(("data=", "data.", "n=", "methods="))]
    for task, *words in commands():
        if task == "review":
            done = review_and_correct(task, *words, cwd=tmp_path)
            assert done.code == 130, done.err
            continue
        more = {"train": [*small, "n=2"], "adapt": ["training.iterations=2", "training.minutes=null"]}
        done = run(task, *words, *more.get(task, []), cwd=tmp_path)
        assert done.code == 0, (task, done.out[-500:], done.err)
    for pattern, kind in (("results/*.seg.dcm", "SEG"), ("again/*.rtstruct.dcm", "RTSTRUCT")):
        (path,) = tmp_path.glob(pattern)
        written = pydicom.dcmread(path)
        assert (written.Modality, written.PatientID) == (kind, "P9")
        assert series in {element.value for element in written.iterall() if element.keyword == "SeriesInstanceUID"}
    (table,) = tmp_path.glob("results/corrected.csv")
    assert len(table.read_text().splitlines()) == 2
