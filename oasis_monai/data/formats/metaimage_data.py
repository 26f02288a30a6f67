"""Write MetaImage files by numpy and zlib.

The format is a few lines of text and an array. ITK reads and writes the same values (the tests compare), but importing it takes
longer than segmenting a scan.
"""

from __future__ import annotations

import re
import zlib
from pathlib import Path

import numpy as np

from oasis_monai.data.formats.header import flip_lps_ras, split_affine
from oasis_monai.data.types import Geometry
from oasis_monai.utils.files import digest

ELEMENT_NAMES = {"uint8": "MET_UCHAR", "int16": "MET_SHORT", "int32": "MET_INT", "float32": "MET_FLOAT"}
"""numpy type -> MetaImage's name for it."""
LEVEL = 2  # zlib compression level, as in MetaIO: labels shrink to a hundredth at any level, higher ones are slow for float maps


def write_metaimage(path: Path, array: np.ndarray, geometry: Geometry) -> None:
    """Write (x, y, z) or (x, y, z, C), compressed: a .mha as one file, else a header with its voxels in a .zraw beside it."""
    little = np.moveaxis(array, -1, 0) if array.ndim == 4 else array  # channels vary fastest, then x
    data = zlib.compress(little.astype(little.dtype.newbyteorder("<"), copy=False).tobytes(order="F"), LEVEL)
    local = path.suffix.lower() == ".mha"
    voxels = path.with_name(data_file(path.stem))
    channels = array.shape[3] if array.ndim == 4 else 1
    kind = ELEMENT_NAMES[array.dtype.name]
    text = header_text(geometry, kind, "LOCAL" if local else voxels.name, len(data), channels).encode("ascii")
    if not local:
        voxels.write_bytes(data)
    path.write_bytes(text + data if local else text)


def data_file(stem: str) -> str:
    """The voxels' file, named as the header where all readers take that name: a header is ASCII, and ITK reads % as a pattern
    of numbered files, LIST as a list of them and LOCAL as the header itself."""
    if re.fullmatch(r"(?!LIST|LOCAL)\w[\w .+()-]*", stem, re.ASCII | re.IGNORECASE):
        return f"{stem}.zraw"
    return f"voxels-{digest(stem)[:8]}.zraw"


def header_text(
    geometry: Geometry, element_type: str, data_file: str, compressed_bytes: int | None = None, channels: int = 1
) -> str:
    """The lines of a header. MetaImage's world is left-posterior-superior, its matrix lists one array axis after the other."""
    direction, spacing, origin = split_affine(flip_lps_ras(geometry.affine))
    fields = {
        "ObjectType": "Image",
        "NDims": "3",
        "BinaryData": "True",
        "BinaryDataByteOrderMSB": "False",
        "CompressedData": str(compressed_bytes is not None),
        "CompressedDataSize": None if compressed_bytes is None else str(compressed_bytes),
        "TransformMatrix": _numbers(direction.T.ravel()),
        "Offset": _numbers(origin),
        "CenterOfRotation": "0 0 0",
        "ElementSpacing": _numbers(spacing),
        "DimSize": " ".join(map(str, geometry.shape)),
        "ElementNumberOfChannels": str(channels) if channels > 1 else None,
        "ElementType": element_type,
        "ElementDataFile": data_file,  # must be the last line
    }
    return "".join(f"{key} = {value}\n" for key, value in fields.items() if value is not None)


def _numbers(values: np.ndarray) -> str:
    """Every number to its last bit; + 0.0 turns -0 into 0."""
    return " ".join(repr(float(v) + 0.0).removesuffix(".0") for v in values)
