"""DICOM series made of a volume with ITK's GDCM, one file for each slice."""

import contextlib
import locale
from pathlib import Path

import itk
import numpy as np

from oasis_monai.data.formats.header import flip_lps_ras, split_affine

MR, CT, CAPTURE = (f"1.2.840.10008.5.1.4.1.1.{kind}" for kind in ("4", "2", "7"))


@contextlib.contextmanager
def kept_locale():
    """GDCM, where it writes, sets the locale of the whole process to "C": text without a named encoding would be ASCII."""
    before = locale.setlocale(locale.LC_ALL)
    try:
        yield
    finally:
        locale.setlocale(locale.LC_ALL, before)


@kept_locale()
def write_slice(path, array, affine, kind=MR, series="1.2.3.4", compression=None, **tags):
    """One (x, y) int16 slice whose voxel (0, 0) is where the RAS ``affine`` puts (0, 0, 0)."""
    direction, spacing, origin = split_affine(flip_lps_ras(affine))
    image = itk.image_from_array(np.ascontiguousarray(array.T.astype(np.int16)))
    image.SetSpacing([float(v) for v in spacing[:2]])
    words = {
        "0008|0016": kind,
        "0008|0060": "CT" if kind == CT else "MR",
        "0020|000d": "1.2.3",
        "0020|000e": series,
        "0020|0032": "\\".join(f"{v:.10g}" for v in origin),
        "0020|0037": "\\".join(f"{v:.10g}" for v in direction[:, :2].T.ravel()),
    }
    dictionary = image.GetMetaDataDictionary()
    for tag, value in (words | tags).items():
        if value:
            dictionary[tag] = value
    writer = itk.ImageFileWriter[type(image)].New()
    gdcm = itk.GDCMImageIO.New()
    gdcm.KeepOriginalUIDOn()
    if compression is not None:
        gdcm.SetCompressionType(compression)
        writer.UseCompressionOn()
    writer.SetInput(image)
    writer.SetImageIO(gdcm)
    writer.SetFileName(str(path))
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    writer.Update()


def write_series(folder, volume, affine, name="{:03d}.dcm", order=None, skip=(), shift=None, **more):
    """An (x, y, z) int16 volume as a series.

    Args:
        order: which slice the k-th file holds; default the k-th.
        skip: slices left out.
        shift: function of a slice's number, how far along the third axis it lies, in slices; default its number.
    """
    for file, z in enumerate(order if order is not None else range(volume.shape[2])):
        if z not in skip:
            place = np.array(affine, float)
            place[:3, 3] += place[:3, 2] * (z if shift is None else shift(z))
            write_slice(Path(folder) / name.format(file), volume[..., z], place, **more)
