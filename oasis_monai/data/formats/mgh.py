"""Check the headers of FreeSurfer's scans and labels (.mgz, .mgh) before nibabel reads the file."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np

from oasis_monai.data.formats.header import (
    AGAIN,
    Faults,
    Header,
    affine_from,
    check_channels,
    check_direction,
    check_shape,
    check_spacing,
)
from oasis_monai.data.formats.nifti import count_bytes, open_packed

START = 284  # bytes before the voxels
MAX_FOOTER = 16 * 1024 * 1024  # what FreeSurfer writes behind the voxels: times of the sequence, commands, a table of colours
DTYPES = {0: "uint8", 1: "int32", 3: "float32", 4: "int16"}


def read_mgh(path: Path, faults: Faults) -> Header | None:
    """Check one header and the length of its data, without holding more than about 1 MiB of it.

    Args:
        path: an existing regular file.
        faults: takes every fault found.

    Returns:
        The header, or None when a fault leaves nothing to return.
    """
    try:
        with open_packed(path) as stream:
            block = stream.read(START)
            header = _parse(path, block, faults)
            if header is not None:
                need = START + math.prod(header.shape) * header.channels * np.dtype(header.dtype).itemsize
                found = count_bytes(stream, len(block), need + MAX_FOOTER)  # to the end: that verifies a checksum
                if not need <= found <= need + MAX_FOOTER:
                    text = f"{found}" if found < need else f"more ({found} or above)"
                    expected = f"{need} bytes and up to {MAX_FOOTER} behind the voxels"
                    faults.add("voxels", expected, text, "copy the file again")
    except (OSError, EOFError, zlib.error) as error:
        kind = "a whole gzip file" if path.name.lower().endswith(".mgz") else "a readable file"
        bare = isinstance(error, gzip.BadGzipFile) and path.read_bytes()[:4] == b"\0\0\0\1"
        remedy = "name it .mgh: it is not compressed" if bare else "copy or compress the file again"
        faults.add("file", kind, f"{type(error).__name__}: {error}", remedy)
        return None
    return header


def _parse(path: Path, block: bytes, faults: Faults) -> Header | None:
    if len(block) < START:
        faults.add("file", f"a header of {START} bytes", f"{len(block)} bytes", "copy the file again")
        return None
    version, x, y, z, frames, code, _, oriented = struct.unpack(">7ih", block[:30])
    if version != 1:
        faults.add("version", "1", version, "check that this is a FreeSurfer file, packed if its name ends in .mgz")
        return None
    before = len(faults.all)
    dtype = DTYPES.get(code)
    if dtype is None:
        faults.add("type", ", ".join(f"{c} ({name})" for c, name in DTYPES.items()), code, "convert the scan with mri_convert")
    if check_shape(faults, "width, height, depth", (x, y, z)):
        check_channels(faults, "nframes", (x, y, z), frames)
    if not oriented:  # FreeSurfer and nibabel each assume another one
        remedy = "write the true one into the header (mri_convert): readers disagree about it"
        faults.add("goodRASFlag", "1, for the orientation", oriented, remedy)
        return None
    numbers = struct.unpack(">15f", block[30:90])
    spacing, axes, centre = numbers[:3], numbers[3:12], numbers[12:]
    check_spacing(faults, "spacing", spacing)
    direction = np.array(axes).reshape(3, 3).T  # the file lists one axis after the other
    check_direction(faults, "x_ras, y_ras, z_ras", direction)
    if not all(map(math.isfinite, centre)):
        faults.add("c_ras", "three finite numbers", " ".join(f"{c:g}" for c in centre), AGAIN)
    if len(faults.all) > before or dtype is None:
        return None
    affine = affine_from(direction, spacing, [0, 0, 0])
    affine[:3, 3] = np.array(centre) - affine[:3, :3] @ (np.array([x, y, z]) / 2)  # c_ras: of the voxel in the middle
    return Header((x, y, z), affine, dtype, frames, (path,))
