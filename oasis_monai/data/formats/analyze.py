"""Analyze 7.5, the format that NIfTI came from: a .hdr with its voxels in a .img. It says nothing of left and right."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from oasis_monai.data.formats.header import AGAIN, Faults, check_channels, check_shape, check_spacing
from oasis_monai.data.types import NiftiForms

MAX_OFFSET = 16 * 1024 * 1024  # header extensions before the voxels; nibabel holds them in memory
DTYPES = {2: "uint8", 4: "int16", 8: "int32", 16: "float32", 64: "float64"}


@dataclass(frozen=True, eq=False)
class Grid:
    """What a NIfTI or Analyze header says. ``bytes``: of the file that holds the voxels."""

    shape: tuple[int, int, int]
    channels: int
    dtype: str
    forms: NiftiForms
    bytes: int


def check_analyze(header: Any, faults: Faults) -> Grid | None:
    """Check what ``nibabel.AnalyzeHeader`` holds of one header.

    The axes are taken to run to the left, the front and the top, with 0 in the middle of the grid, as nibabel takes them. ITK has
    the second one run to the back, and 0 at the first voxel. A note says what is taken.

    Args:
        header: as it stands in the file, without nibabel's repairs.
        faults: takes every fault found.

    Returns:
        The grid, or None when a fault leaves nothing to return.
    """
    before = len(faults.all)
    sizes = sizes_of(header, faults)
    code = int(header["datatype"])
    dtype = DTYPES.get(code)
    if dtype is None:
        faults.add("datatype", "one number of at most 64 bits", f"code {code}", "convert the scan to NIfTI")
    elif int(header["bitpix"]) != 8 * np.dtype(dtype).itemsize:
        faults.add("bitpix", f"{8 * np.dtype(dtype).itemsize} for {dtype}", int(header["bitpix"]), AGAIN)
    scale = float(np.frombuffer(header.binaryblock[112:116], header.structarr.dtype["vox_offset"])[0])
    if scale not in (0.0, 1.0):  # SPM's; other programs keep something else there
        remedy = "convert the scan to NIfTI: readers disagree about it"
        faults.add("funused1", "0 or 1, no scaling of intensities", f"{scale:g}", remedy)
    offset = float(header["vox_offset"])
    if not (math.isfinite(offset) and offset == int(offset) and 0 <= offset <= MAX_OFFSET):
        faults.add("vox_offset", f"a whole number from 0 to {MAX_OFFSET}", f"{offset:g}", AGAIN)
    pixdim = [float(p) for p in header["pixdim"][1:4]]
    if header["dim"][0] == 2 and not pixdim[2] > 0:
        pixdim[2] = 1.0
    check_spacing(faults, "pixdim", pixdim)
    if len(faults.all) > before or sizes is None or dtype is None:
        return None
    shape, channels = sizes
    used = np.diag([-pixdim[0], pixdim[1], pixdim[2], 1.0])
    used[:3, 3] = -used[:3, :3] @ ((np.array(shape) - 1) / 2)
    remedy = "taken to run to the left, the front and the top, as by nibabel; convert it to NIfTI with the true orientation"
    faults.warn("orientation", "one in the header", "an Analyze 7.5 file, which has none", remedy)
    itk = np.diag([-pixdim[0], -pixdim[1], pixdim[2], 1.0])
    forms = NiftiForms({}, used, used, itk, (itk,))
    return Grid(shape, channels, dtype, forms, int(offset) + math.prod(shape) * channels * np.dtype(dtype).itemsize)


def sizes_of(header: Any, faults: Faults) -> tuple[tuple[int, int, int], int] | None:
    """Voxels along x, y, z, and channels: a fourth dimension, or a fifth (vectors)."""
    dims = [int(d) for d in header["dim"]]
    used = dims[1 : 1 + dims[0]] if 1 <= dims[0] <= 7 else []
    if len(used) < 2:
        faults.add("dim", "2 or 3 dimensions, and one of channels", " ".join(map(str, dims)), "export the scan again")
        return None
    shape = (*used[:3], *[1] * (3 - len(used)))
    more = [d for d in used[3:] if d != 1]
    if len(more) > 1:
        faults.add("dim", "one dimension of channels", " x ".join(map(str, used)), "extract the volumes to use")
        return None
    channels = more[0] if more else 1
    if not check_shape(faults, "dim", shape) or not check_channels(faults, "dim", shape, channels):
        return None
    return (shape[0], shape[1], shape[2]), channels
