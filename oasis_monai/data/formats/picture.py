"""Read and write images of two dimensions (.png, .tif) by Pillow, as volumes of one slice.

Columns run to the left of the patient, rows to the back, as in an axial slice that is shown in the usual way; the slice is 1 mm
thick. Pixel sizes are those of the file's resolution.
"""

from __future__ import annotations

import math
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from oasis_monai.data.formats.header import Faults, Header, check_shape, shown
from oasis_monai.data.types import Geometry
from oasis_monai.utils.errors import ConfigError

MODES = {
    **{"1": ("uint8", 1), "L": ("uint8", 1), "P": ("uint8", 1), "LA": ("uint8", 1), "RGB": ("uint8", 3), "RGBA": ("uint8", 3)},
    **{"I;16": ("uint16", 1), "I;16B": ("uint16", 1), "I;16L": ("uint16", 1), "I": ("int32", 1), "F": ("float32", 1)},
}
"""Pillow's kinds of pixels: type and channels. Transparency is left out."""
SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # of a pixel, by PNG's kinds of colour
CHUNK = 1 << 20
SCREEN = (72.0, 96.0)  # pixels per inch that programs write who know of no size
X_RESOLUTION, Y_RESOLUTION, UNIT = 282, 283, 296  # tags of TIFF; a unit of 2 is the inch, 3 the centimetre


def read_picture(path: Path, faults: Faults) -> Header | None:
    """Check one image, which is decoded for that: it is small.

    Args:
        path: an existing regular file.
        faults: takes every fault found.

    Returns:
        The header, or None when a fault leaves nothing to return.
    """
    try:
        with _open(path) as image:
            if not check_shape(faults, "size", (*image.size, 1)):
                return None
            kind = MODES.get(image.mode)
            if kind is None:
                remedy = "save it as grey values, or as RGB"
                faults.add("pixels", "grey values, a palette or RGB", f"{image.mode}", remedy)
            elif getattr(image, "n_frames", 1) != 1:
                remedy = "save each as a file of its own, or the stack as NIfTI or NRRD with its voxel size"
                faults.add("pages", "one image", image.n_frames, remedy)
            else:
                image.load()
                if image.format == "PNG":
                    _check_png(path)
                return _header(path, image, kind, faults)
    except Exception as error:  # whatever Pillow dislikes is the file's fault
        text = shown(" ".join(str(error).split()), 100)
        faults.add("file", "a whole PNG or TIFF image that Pillow reads", f"{type(error).__name__}: {text}", "save it again", 160)
    return None


def _open(path: Path) -> Any:
    """Only what its name says: Pillow would open other formats too. An image of more than 89 million pixels is an error."""
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        return Image.open(path, formats=("PNG",) if path.name.lower().endswith(".png") else ("TIFF",))


def _check_png(path: Path) -> None:
    """Pillow fills what is missing with zeros.

    Raises:
        ValueError: the file ends too early, or holds fewer rows than it says.
        SyntaxError, zlib.error: it is damaged.
    """
    with _open(path) as image:
        image.verify()  # the checksums
    with open(path, "rb") as stream:
        block = stream.read(8 + 8 + 13 + 4)
        width, height, bits, colours, _, _, interlaced = struct.unpack(">IIBBBBB", block[16:29])
        need = height * (1 + math.ceil(width * bits * SAMPLES[colours] / 8))
        unpack, found, name = zlib.decompressobj(), 0, b""
        while name != b"IEND":
            head = stream.read(8)
            if len(head) < 8:
                raise ValueError("it ends before its end")
            length, name = struct.unpack(">I4s", head)
            body = stream.read(length + 4)[:length]
            while name == b"IDAT" and body and found < need:
                found += len(unpack.decompress(body, CHUNK))
                body = unpack.unconsumed_tail
        if found < need and not interlaced:
            raise ValueError(f"{found} of {need} bytes of pixels")


def _header(path: Path, image: Any, kind: tuple[str, int], faults: Faults) -> Header:
    sizes = _pixel_mm(image)
    if sizes is None:
        faults.warn(
            "resolution", "pixels per inch or centimetre", "none", "pixels are taken as 1 mm wide: distances are in pixels"
        )
    elif any(abs(25.4 / size - dots) < 0.1 for size in sizes for dots in SCREEN):
        found = f"{25.4 / sizes[0]:.4g} pixels per inch, {sizes[0]:.3g} mm each"
        faults.warn("resolution", "a scanner's", found, "taken as it is, but it looks like a screen's: check it")
    x, y = sizes or (1.0, 1.0)
    if image.mode in ("LA", "RGBA"):
        faults.warn("pixels", "grey values or RGB", image.mode, "transparency is left out")
    return Header((*image.size, 1), np.diag([-x, -y, 1.0, 1.0]), *kind, (path,))


def _pixel_mm(image: Any) -> tuple[float, float] | None:
    """Width and height of a pixel in mm; None where the file does not tell."""
    try:
        if image.format == "TIFF":
            tags, unit = image.tag_v2, {2: 25.4, 3: 10.0}.get(image.tag_v2.get(UNIT, 2))
            dots = (tags.get(X_RESOLUTION), tags.get(Y_RESOLUTION))
        else:
            unit, dots = 25.4, image.info.get("dpi", (None, None))
        x, y = (float(unit) / float(d) for d in dots)  # type: ignore[arg-type]
    except (TypeError, ValueError, ZeroDivisionError):  # no unit, no resolution, 0/0
        return None
    return (x, y) if all(math.isfinite(s) and s > 0 for s in (x, y)) else None


def read_picture_pixels(header: Header, dtype: type) -> tuple[np.ndarray, None]:
    """(C, x, y, 1) array of ``dtype``."""
    with _open(header.files[0]) as image:
        drop = {"LA": "L", "RGBA": "RGB"}.get(image.mode)
        rows = np.asarray(image.convert(drop) if drop else image)
    channels = rows.reshape(*rows.shape[:2], -1)
    return np.ascontiguousarray(channels.transpose(2, 1, 0)[..., None], dtype), None


def write_picture(path: Path, array: np.ndarray, geometry: Geometry, kind: str) -> None:
    """Write (x, y, 1) whole numbers from 0 to 65535, with the size of the pixels.

    Args:
        path: where to; any name.
        array: the pixels.
        geometry: the grid.
        kind: ``.png``, ``.tif`` or ``.tiff``.

    Raises:
        ConfigError: the array is no single slice of such numbers.
    """
    from PIL import Image

    whole = array.dtype.kind in "bui" and (not array.size or 0 <= int(array.min()) <= int(array.max()) <= 65535)
    if array.ndim != 3 or array.shape[2] != 1 or not whole:
        found = f"{' x '.join(map(str, array.shape))} of {array.dtype.name}"
        raise ConfigError("format", f"one slice of whole numbers from 0 to 65535 for {kind}", found, "write .nii.gz")
    small = not array.size or int(array.max()) < 256
    image = Image.fromarray(np.ascontiguousarray(array[:, :, 0].T, np.uint8 if small else np.uint16))
    dots = tuple(25.4 / size for size in geometry.spacing_mm[:2])
    more = {"dpi": dots} if kind == ".png" else {"dpi": dots, "compression": "tiff_adobe_deflate"}
    image.save(path, format="PNG" if kind == ".png" else "TIFF", **more)
