"""The phantom in memory, and as files of every format by other libraries than the package's own readers."""

import json
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np

from oasis_monai.data.formats.header import flip_lps_ras
from oasis_monai.data.phantom.make import make_phantom
from tests.helpers.channels import adc
from tests.helpers.dicom_objects import write_rtstruct
from tests.helpers.dicom_series import kept_locale


@dataclass(frozen=True)
class Scan:
    """One scan: ``image`` and ``label`` (x, y, z) whole numbers, ``adc`` (x, y, z) float32; ``affine`` to RAS mm."""

    name: str
    image: np.ndarray
    label: np.ndarray
    adc: np.ndarray
    affine: np.ndarray


def phantom_scans(cases, seed=0, first=0, name="p{:02d}"):
    """The tiny phantom's scans, those that ``write_phantom`` writes with the same seed."""
    made = []
    for number in range(first, first + cases):
        scan = make_phantom(number, seed, size="tiny")
        made.append(Scan(name.format(number), scan.image, scan.label, adc(f"{seed} {number}", scan.label), scan.affine))
    return made


def slice_scans(scans, pixel_mm=4.0):
    """The middle slice of every scan through its structure, as an image of two dimensions holds it: columns to the left."""
    made = []
    for scan in scans:
        z = int(np.median(np.argwhere(scan.label)[:, 2]))
        image, label, second = (values[..., z : z + 1] for values in (scan.image, scan.label, scan.adc))
        made.append(Scan(scan.name, image, label, second, np.diag([-pixel_mm, -pixel_mm, 1.0, 1.0])))
    return made


def write_scan(path, array, affine, names=None):
    """One (x, y, z[, channel]) array in the format of the file's ending.

    Args:
        names: of a ``.seg.nrrd``: value -> name of the segment.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.name.endswith(".nrrd"):
        _write_nrrd(path, array, affine, names or {})
    elif path.suffix in (".png", ".tif"):
        _write_picture(path, array, affine)
    elif path.suffix in (".mhd", ".mha"):
        _write_metaimage(path, array, affine)
    elif path.suffix == ".mgz":
        nibabel.save(nibabel.MGHImage(array, affine), path)
    elif path.suffix == ".hdr":
        nibabel.save(nibabel.Nifti1Pair(array, affine), path)
    else:
        nibabel.save(nibabel.Nifti1Image(array, affine), path)
    return path


def _write_nrrd(path, array, affine, names):
    import nrrd

    lps = flip_lps_ras(affine)
    header = {"space": "left-posterior-superior", "space directions": lps[:3, :3].T, "space origin": lps[:3, 3]}
    for number, (value, name) in enumerate(names.items()):
        segment = {"ID": f"Segment_{number}", "Name": name, "LabelValue": str(value), "Layer": "0"}
        header |= {f"Segment{number}_{key}": text for key, text in segment.items()}
    nrrd.write(str(path), array, {**header, "encoding": "gzip", "kinds": ["domain"] * 3}, index_order="F")


def _write_picture(path, array, affine):
    from PIL import Image

    rows = np.ascontiguousarray(array[:, :, 0].T)
    image = Image.fromarray(rows if rows.dtype == np.uint8 else rows.astype(np.uint16))
    image.save(path, dpi=tuple(25.4 / abs(affine[axis, axis]) for axis in (0, 1)))


@kept_locale()
def _write_metaimage(path, array, affine):
    import itk

    lps = flip_lps_ras(affine)
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image = itk.image_from_array(np.ascontiguousarray(array.T))
    image.SetSpacing([float(v) for v in spacing])
    image.SetOrigin([float(v) for v in lps[:3, 3]])
    image.SetDirection(lps[:3, :3] / spacing)
    itk.imwrite(image, str(path))


def write_contours(path, scan, series, name="Prostate"):
    """The label of a scan as an RTSTRUCT: contours half a voxel's way between its voxels and their neighbours."""
    from contourpy import contour_generator

    rings = []
    for z in np.flatnonzero(scan.label.any((0, 1))):
        padded = np.pad(scan.label[..., z].astype(float), 1)
        for ring in contour_generator(z=padded.T, name="serial").lines(0.5):
            points = np.column_stack([ring[:-1] - 1, np.full(len(ring) - 1, z), np.ones(len(ring) - 1)])
            rings.append((scan.affine @ points.T)[:3].T)
    write_rtstruct(path, {name: rings}, series=series, patient=scan.name, frame_of_reference=f"{series}.9")


def write_json_file(path, content):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(json.dumps(content), encoding="utf-8")


def read_back(path):
    """Voxels (x, y, z) of a result and its affine to RAS mm, by nibabel, pynrrd, ITK or Pillow."""
    path = Path(path)
    if path.suffix == ".nrrd":
        import nrrd

        values, header = nrrd.read(str(path), index_order="F")
        lps = np.eye(4)
        lps[:3, :3], lps[:3, 3] = header["space directions"].T, header["space origin"]
        return values, flip_lps_ras(lps)
    if path.suffix in (".png", ".tif"):
        from PIL import Image

        with Image.open(path) as image:
            pixel = [25.4 / float(dots) for dots in image.info["dpi"]]
            return np.asarray(image).T[..., None], np.diag([-pixel[0], -pixel[1], 1.0, 1.0])
    if path.suffix in (".mhd", ".mha"):
        import itk

        image = itk.imread(str(path))
        lps = np.eye(4)
        lps[:3, :3] = itk.array_from_matrix(image.GetDirection()) * np.array(image.GetSpacing())
        lps[:3, 3] = image.GetOrigin()
        return itk.array_from_image(image).T, flip_lps_ras(lps)
    image = nibabel.load(path)
    return np.asarray(image.dataobj), image.affine
