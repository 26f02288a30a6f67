"""Check NIfTI headers (.nii, .nii.gz, pairs of .hdr and .img; versions 1 and 2) before nibabel reads the file."""

from __future__ import annotations

import gzip
import math
import os
import re
import zlib
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np

from oasis_monai.data.formats.analyze import MAX_OFFSET, Grid, check_analyze, sizes_of
from oasis_monai.data.formats.header import (
    AGAIN,
    SAME_VOXELS,
    Faults,
    Header,
    check_direction,
    check_spacing,
    corner_distance,
    geometry_difference,
)
from oasis_monai.data.formats.voxel_file import find_data_file
from oasis_monai.data.types import Geometry, NiftiForms

CHUNK = 1 << 20
DTYPES = {
    2: "uint8",
    4: "int16",
    8: "int32",
    16: "float32",
    64: "float64",
    256: "int8",
    512: "uint16",
    768: "uint32",
    1024: "int64",
    1280: "uint64",
}


def read_nifti(path: Path, faults: Faults) -> Header | None:
    """Check one NIfTI header and the length of its data, without holding more than about 1 MiB of it.

    Args:
        path: an existing regular file; of a pair the .hdr.
        faults: takes every fault found.

    Returns:
        The header, or None when a fault leaves nothing to return. That of a pair without NIfTI's mark is read as Analyze 7.5
        (:func:`.analyze.check_analyze`).
    """
    pair = is_pair(path)
    data = find_data_file(path, paired_file(path).name, "voxels", faults) if pair else path
    try:
        with open_packed(path) as stream:
            header = _parse(stream.read(540), pair, faults)
            if header is None:
                return None
            if not hasattr(header, "single_magic"):
                grid = check_analyze(header, faults)
            else:
                grid = _grid(header, faults)
            at = stream.tell()
            if grid and not pair:
                _check_length(path, stream, at, grid.bytes, faults)
        if grid and data is not None and pair:
            with open_packed(data) as stream:
                _check_length(data, stream, 0, grid.bytes, faults)
    except (OSError, EOFError, zlib.error) as error:  # gzip.BadGzipFile is an OSError
        kind = "a whole gzip file" if path.name.lower().endswith(".gz") else "a readable file"
        bare = isinstance(error, gzip.BadGzipFile) and _uncompressed(path)
        remedy = f"name it {path.suffixes[-2]}: it is not compressed" if bare else "copy or compress the file again"
        faults.add("file", kind, f"{type(error).__name__}: {error}", remedy)
        return None
    if grid is None or data is None:
        return None
    return Header(grid.shape, grid.forms.used, grid.dtype, grid.channels, (path, data) if pair else (path,), forms=grid.forms)


def is_pair(path: Path) -> bool:
    """Whether a file is the header of a pair, by its name."""
    return path.name.lower().removesuffix(".gz").endswith(".hdr")


def paired_file(path: Path) -> Path:
    """The other file of a pair of header and voxels, in the same letters: ``X.HDR`` for ``X.IMG``, ``x.img.gz`` for
    ``x.hdr.gz``."""
    other = {"hdr": "img", "img": "hdr", "HDR": "IMG", "IMG": "HDR", "Hdr": "Img", "Img": "Hdr"}
    stem, kind, packed = re.fullmatch(r"(.*\.)(hdr|img)((?:\.gz)?)", path.name, re.IGNORECASE | re.DOTALL).groups()  # type: ignore[union-attr]
    return path.with_name(f"{stem}{other.get(kind, other[kind.lower()])}{packed}")


def open_packed(path: Path) -> BinaryIO:
    """A file's bytes, unpacked where its name ends in gz or mgz."""
    packed = path.name.lower().endswith((".gz", ".mgz"))
    return cast(BinaryIO, gzip.open(path, "rb") if packed else open(path, "rb"))


def _uncompressed(path: Path) -> bool:
    """Whether a file starts with the header's own size, as NIfTI does where nothing packs it."""
    with open(path, "rb") as stream:
        return int.from_bytes(stream.read(4), "little") in (348, 540)


def _parse(block: bytes, pair: bool, faults: Faults) -> Any:
    """The header's fields in nibabel's class for them, with none of its repairs."""
    import nibabel

    for size, kind in ((348, nibabel.Nifti1Header), (540, nibabel.Nifti2Header)):
        for endianness, order in (("<", "little"), (">", "big")):
            if len(block) >= size and int.from_bytes(block[:4], order) == size:  # type: ignore[arg-type]
                header = kind(block[:size], endianness=endianness, check=False)
                magic = header.structarr["magic"].tobytes()[:4]
                right = (header.pair_magic if pair else header.single_magic).ljust(4, b"\0")[:4]
                if pair and size == 348 and magic[:2] not in (b"ni", b"n+"):
                    return nibabel.AnalyzeHeader(block[:size], endianness=endianness, check=False)
                if magic != right:
                    expected = "n+1 or n+2 (header and voxels in one file)"
                    remedy = "name the file .hdr if its voxels are in .img"
                    if pair:
                        expected, remedy = (
                            "ni1 or ni2 (a header with its voxels in .img)",
                            "name the file .nii if it holds them too",
                        )
                    faults.add("magic", expected, ascii(magic), remedy)
                return header
    found = f"{block[:4].hex()} in hex" if block else "an empty file"
    faults.add("sizeof_hdr", "348 or 540", found, "check that this is a whole NIfTI file")
    return None


def _grid(header: Any, faults: Faults) -> Grid | None:
    sizes = sizes_of(header, faults)
    if header["dim"][0] == 2 and not header["pixdim"][3] > 0:
        header["pixdim"][3] = 1  # of an image without a third axis it says nothing
    forms, dtype, offset = _forms(header, faults), _dtype(header, faults), _offset(header, faults)
    if sizes is None or forms is None or dtype is None or offset is None:
        return None
    shape, channels = sizes
    return Grid(shape, channels, dtype, forms, offset + math.prod(shape) * channels * np.dtype(dtype).itemsize)


def _dtype(header: Any, faults: Faults) -> str | None:
    code = int(header["datatype"])
    dtype = DTYPES.get(code)
    if dtype is None:
        found = f"code {code}"
        faults.add("datatype", "a real number type of at most 64 bits", found, "export the scan as int16, uint8 or float32")
    elif int(header["bitpix"]) != 8 * np.dtype(dtype).itemsize:
        faults.add("bitpix", f"{8 * np.dtype(dtype).itemsize} for {dtype}", int(header["bitpix"]), AGAIN)
    slope, inter = float(header["scl_slope"]), float(header["scl_inter"])
    # NaN or 0 as a slope means "not scaled"
    if math.isinf(slope) or (math.isfinite(slope) and slope != 0 and not math.isfinite(inter)):
        faults.add("scl_slope, scl_inter", "finite numbers", f"{slope:g}, {inter:g}", AGAIN)
    return dtype


def _offset(header: Any, faults: Faults) -> int | None:
    smallest = int(header.single_vox_offset) if header["magic"].item()[:2] == b"n+" else 0
    offset = float(header["vox_offset"])
    if offset == 0:
        return smallest  # as nibabel reads it
    if not (math.isfinite(offset) and offset == int(offset) and smallest <= offset <= MAX_OFFSET):
        faults.add("vox_offset", f"a whole number from {smallest} to {MAX_OFFSET}", f"{offset:g}", AGAIN)
        return None
    return int(offset)


def _forms(header: Any, faults: Faults) -> NiftiForms | None:
    """Where the grid lies: by the sform if it is set and has right angles, else by the qform, as nibabel and ITK do.

    ITK prefers the qform where the code of the sform is above 1. Where the two transforms, or the two libraries, differ by
    more than rounding a warning says which one is taken.
    """
    unit = int(header["xyzt_units"]) & 7
    if unit not in (0, 2):
        faults.add(
            "xyzt_units",
            "millimetres",
            {1: "metres", 3: "microns"}.get(unit, f"code {unit}"),
            "state the geometry in millimetres",
        )
    sform_code, qform_code = int(header["sform_code"]), int(header["qform_code"])
    pixdim = [float(p) for p in header["pixdim"][1:4]]
    if not check_spacing(faults, "pixdim", pixdim):
        return None
    if not (0 <= sform_code <= 5 and 0 <= qform_code <= 5):  # nibabel would treat another code as unset
        faults.add("sform_code, qform_code", "0 to 5", f"{sform_code}, {qform_code}", AGAIN)
        return None
    if sform_code == 0 and qform_code == 0:
        return _without_forms(header, pixdim, faults)
    qform = _qform(header, faults) if qform_code > 0 else None
    if sform_code == 0:
        return None if qform is None else NiftiForms(_fields(header), qform, qform, qform)
    sform = np.eye(4)
    with np.errstate(invalid="ignore"):  # a signalling NaN, refused below
        sform[:3] = [header["srow_x"], header["srow_y"], header["srow_z"]]
    if not np.isfinite(sform).all():
        faults.add("srow_x, srow_y, srow_z", "finite numbers", "others", AGAIN)
        return None
    skewed = Faults(Path(faults.name))
    usable = _check_sform(sform, pixdim, skewed)
    grid = _size(header)
    apart = None if qform is None else corner_distance(Geometry(grid, sform), Geometry(grid, qform))
    if not usable and (qform is None or apart is None or (sform_code == qform_code and apart.voxels > 1)):
        faults.all += skewed.all
        return None
    used = sform if usable or qform is None else qform
    itk = used if qform is None or sform_code == 1 else qform
    if qform is not None and apart is not None and apart.voxels > (1 if usable else SAME_VOXELS):
        _note_apart(faults, sform_code, used is sform, itk is used, f"{apart} ({_detail(grid, sform, qform)})")
    elif usable:
        itk = used  # they differ by rounding
    return NiftiForms(_fields(header), used, sform, itk, () if qform is None else (sform, qform))


def _note_apart(faults: Faults, sform_code: int, by_sform: bool, agreed: bool, found: str) -> None:
    if by_sform and agreed:
        remedy = f"the sform (code {sform_code}) is used, as by nibabel and ITK; delete the wrong one (set its code to 0)"
    elif by_sform:
        remedy = f"the sform (code {sform_code}) is used, as by nibabel; viewers on ITK use the qform; results get both"
    else:
        remedy = "the qform is used, as by ITK: the sform has no right angles or another voxel size; results get both"
    faults.warn("sform, qform", "one place", found, remedy)


def _detail(grid: tuple[int, int, int], sform: np.ndarray, qform: np.ndarray) -> str:
    return geometry_difference(Geometry(grid, sform), Geometry(grid, qform)) or "by rounding"


def _size(header: Any) -> tuple[int, int, int]:
    x, y, z = (max(int(d), 1) for d in header["dim"][1:4])
    return x, y, 1 if header["dim"][0] == 2 else z


def _check_sform(sform: np.ndarray, pixdim: list[float], faults: Faults) -> bool:
    """Note why a finite sform cannot be a scan's grid."""
    rows = "srow_x, srow_y, srow_z"
    spacing = np.linalg.norm(sform[:3, :3], axis=0)
    if not check_spacing(faults, rows, [float(s) for s in spacing]):
        return False
    if not check_direction(faults, rows, sform[:3, :3] / spacing):
        return False
    if not np.allclose(spacing, pixdim, rtol=1e-4, atol=1e-4):  # ITK takes the one, nibabel the other
        found = " ".join(f"{s:g}" for s in spacing) + " in the sform, " + " ".join(f"{p:g}" for p in pixdim) + " in pixdim"
        faults.add("pixdim", "the spacing of the sform", found, "correct the wrong one")
        return False
    return True


def _without_forms(header: Any, pixdim: list[float], faults: Faults) -> NiftiForms:
    """Both codes 0: every reader has a default of its own."""
    used = np.diag([-pixdim[0], pixdim[1], pixdim[2], 1.0])
    used[:3, 3] = -used[:3, :3] @ ((np.array(_size(header)) - 1) / 2)
    itk = np.diag([-pixdim[0], -pixdim[1], pixdim[2], 1.0])
    remedy = "taken to run to the left, the front and the top, as by nibabel; write the true orientation into the header"
    faults.warn("sform_code, qform_code", "one above 0, for the orientation", "0, 0", remedy)
    return NiftiForms(_fields(header), used, used, itk, (itk,))


def _fields(header: Any) -> dict[str, np.ndarray]:
    """What a result's header repeats; voxel sizes as float32, which NIfTI-1 holds."""
    names = [f"quatern_{i}" for i in "bcd"] + [f"qoffset_{i}" for i in "xyz"] + [f"srow_{i}" for i in "xyz"]
    fields = {name: np.array(header[name]) for name in (*names, "sform_code", "qform_code", "xyzt_units")}
    return {**fields, "pixdim": np.array([*header["pixdim"][:4], 1, 1, 1, 1])}


def _qform(header: Any, faults: Faults) -> np.ndarray | None:
    quaternion = [float(header[f"quatern_{i}"]) for i in "bcd"]
    offsets = [float(header[f"qoffset_{i}"]) for i in "xyz"]
    if not all(map(math.isfinite, quaternion + offsets)) or sum(q * q for q in quaternion) > 1 + 1e-5:
        found = " ".join(f"{v:g}" for v in quaternion + offsets)
        faults.add("quatern_b..d, qoffset_x..z", "finite numbers, the quaternion of length at most 1", found, AGAIN)
        return None
    if float(header["pixdim"][0]) == 0:
        header["pixdim"][0] = 1  # what 0 means, by the standard and where nibabel loads the file
    if float(header["pixdim"][0]) not in (-1.0, 1.0):
        faults.add("pixdim[0]", "1 or -1", f"{float(header['pixdim'][0]):g}", AGAIN)
        return None
    try:
        return np.asarray(header.get_qform(), float)
    except Exception as error:  # nibabel's own checks; whatever it dislikes is the header's fault
        faults.add("qform", "one that nibabel accepts", error, AGAIN)
        return None


def _check_length(path: Path, stream: BinaryIO, at: int, need: int, faults: Faults) -> None:
    """The file, open at byte ``at``, must hold exactly ``need`` bytes; a gzip file is decompressed in pieces, which also verifies
    its checksum."""
    found = count_bytes(stream, at, need) if path.name.lower().endswith(".gz") else os.stat(path).st_size
    if found != need:
        text = f"more ({found} or above)" if found > need else f"{found}"
        faults.add("voxels", f"a file of {need} bytes (vox_offset + dim x datatype)", text, "copy the file again or correct dim")


def count_bytes(stream: BinaryIO, at: int, need: int) -> int:
    """How many bytes there are, ``at`` of them before the next one, counted no further than just beyond ``need``."""
    while at <= need and (piece := stream.read(CHUNK)):
        at += len(piece)
    return at
