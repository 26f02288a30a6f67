"""Damaged DICOM files of every kind are read or refused in words, at once: no crash, no hang, no other error."""

import time

import numpy as np
import pytest

from oasis_monai.data.formats.dicom_labels import dicom_label_names, read_dicom_label, reference_of
from oasis_monai.data.formats.dispatch import read_header
from oasis_monai.data.io import read_image
from oasis_monai.utils.errors import DataError
from tests.data.formats.test_dicom import VOLUME, affine
from tests.data.formats.test_dicom_seg import MASK
from tests.data.formats.test_rtstruct import GRID, disc
from tests.helpers.dicom_objects import write_enhanced, write_rtstruct
from tests.helpers.dicom_segments import write_seg
from tests.helpers.dicom_series import write_series

SLOWEST_S = 3.0
"""GDCM alone takes up to 8 s on some of these files."""


def damaged(whole, random):
    """A few bytes changed, a piece lost, a piece doubled, or the end cut off; the first bytes still say DICOM."""
    data = bytearray(whole)
    at = int(random.integers(132, len(data)))
    kind = int(random.integers(6))
    if kind < 3:
        for _ in range(int(random.choice([1, 2, 8]))):
            data[int(random.integers(132, len(data)))] = int(random.integers(256))
    elif kind == 3:
        del data[at : at + int(random.integers(1, 40))]
    elif kind == 4:
        data[at:at] = data[at : at + int(random.integers(1, 40))]
    else:
        del data[at:]
    return bytes(data)


def image_of(path):
    read_image(path)


def label_of(path, geometry):
    dicom_label_names(path)
    reference_of(path)
    label, _ = read_dicom_label(path, geometry)
    assert label.shape == geometry.shape


@pytest.mark.parametrize("kind", ["slice", "enhanced", "seg", "rtstruct"])
def test_damaged_files(tmp_path, kind):
    write_enhanced(tmp_path / "image.dcm", VOLUME, affine(), patient="p")
    geometry = read_header(tmp_path / "image.dcm").geometry
    target = tmp_path / "s" / "001.dcm"
    write_series(tmp_path / "s", VOLUME[..., :3], affine())
    whole = target.read_bytes()
    if kind == "enhanced":
        whole = (tmp_path / "image.dcm").read_bytes()
    elif kind == "seg":
        write_seg(tmp_path / "seg.dcm", tmp_path / "image.dcm", MASK)
        whole = (tmp_path / "seg.dcm").read_bytes()
    elif kind == "rtstruct":
        write_rtstruct(tmp_path / "rt.dcm", {"a": [disc(GRID, 3, 12, points=9)], "b": [disc(GRID, 5, 4, points=9)]})
        whole, geometry = (tmp_path / "rt.dcm").read_bytes(), GRID
    if kind != "slice":
        target = tmp_path / "alone" / "a.dcm"
        target.parent.mkdir()
    random = np.random.default_rng(7)
    refused = []
    for _ in range(100):
        target.write_bytes(damaged(whole, random))
        start = time.perf_counter()
        try:
            label_of(target, geometry) if kind in ("seg", "rtstruct") else image_of(target)
        except DataError as error:
            refused.extend(error.faults)
        assert time.perf_counter() - start < SLOWEST_S
    assert len(refused) > 20
    assert all(len(str(fault).splitlines()) == 1 for fault in refused)
