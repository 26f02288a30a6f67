"""Check that images are the slices of one even volume."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from oasis_monai.data.formats.dicom_file import AGAIN, Image
from oasis_monai.data.formats.header import TOLERANCE, Faults, check_spacing

UNEVEN = 0.05
"""Largest deviation of a slice from even spacing, in slice distances: allows for rounding in headers, and no more."""


def in_order(images: Sequence[Image]) -> list[Image]:
    """Along the normal of the first one's plane."""
    normal = np.cross(images[0].direction[:, 0], images[0].direction[:, 1])
    return sorted(images, key=lambda image: float(normal @ image.origin_mm))


def check_images(images: Sequence[Image], faults: Faults) -> bool:
    """Note what keeps the images from being the slices of one volume; each kind of fault once, with how many have it."""
    before = len(faults.all)

    def note(field: str, expected: str, found: Sequence[object], remedy: str) -> None:
        if found:
            faults.add(field, expected, f"{found[0]} ({len(found)} of {len(images)} images)", remedy)

    captured = [i.path.name for i in images if i.is_capture]
    note("SOPClassUID", "images of a scanner", [f"a secondary capture: {c}" for c in captured], "give the scan it was made from")
    frames = [f"{i.frames} in {i.path.name}" for i in images if i.frames > 1]
    note("NumberOfFrames", "one frame in each file", frames, "export the series as classic single-frame DICOM, or as NIfTI")
    colours = [f"{i.components} values in {i.path.name}" for i in images if i.components != 1]
    note("SamplesPerPixel", "one grey value for each pixel", colours, "give the grey images")
    if not captured and not frames:
        missing = [f"none of {', '.join(i.missing)} in {i.path.name}" for i in images if i.missing]
        note("geometry", "ImagePositionPatient, ImageOrientationPatient and PixelSpacing", missing, AGAIN)
    if len(faults.all) > before:
        return False
    if len(images) < 2:
        faults.add("series", "two slices or more", f"{len(images)}", "give the folder with all slices of the series")
        return False
    first = images[0]
    sizes = [" x ".join(map(str, i.size)) + f" in {i.path.name}" for i in images if i.size != first.size]
    note("Columns, Rows", " x ".join(map(str, first.size)) + f" as in {first.path.name}", sizes, "keep the slices of one volume")
    spacings = [i.path.name for i in images if not np.allclose(i.spacing_mm, first.spacing_mm, rtol=1e-4, atol=TOLERANCE)]
    note("PixelSpacing", f"that of {first.path.name}", [f"another in {s}" for s in spacings], "keep the slices of one volume")
    turned = [i.path.name for i in images if not np.allclose(i.direction, first.direction, atol=1e-3)]
    note(
        "ImageOrientationPatient",
        f"that of {first.path.name} in all images (is this a localiser?)",
        [f"another in {t}" for t in turned],
        "keep the parallel slices of one volume",
    )
    check_spacing(faults, "PixelSpacing", first.spacing_mm)
    return len(faults.all) == before


def lie_evenly(images: Sequence[Image], faults: Faults) -> bool:
    """Whether images in order lie at even distances; a fault tells where they do not."""
    places = np.stack([image.origin_mm for image in images])
    gaps = np.linalg.norm(np.diff(places, axis=0), axis=1)
    apart = gaps > UNEVEN * float(gaps.max())  # the others lie between images of one place
    usual = float(np.median(gaps[apart])) if apart.any() else 0.0
    where = "ImagePositionPatient"
    if not apart.all():
        i = int(gaps.argmin())
        one, other = images[i], images[i + 1]
        found = (
            f"{one.path.name} and {other.path.name} {gaps[i]:.3g} mm apart, {len(images)} images at {int(apart.sum()) + 1} places"
        )
        names = [name for name in dict.fromkeys([*one.about, *other.about]) if one.about.get(name) != other.about.get(name)]
        values = [f"{name} ({one.about.get(name, 'none')}, {other.about.get(name, 'none')})" for name in names[:2]]
        if one.scan != other.scan:
            values, names = ["patient, study or frame of reference"], ["scan"]
        found += f"; they differ in {' and '.join(values) or 'their pixels alone'}"
        remedy = (
            f"keep the images of one {names[0]}, or export each as a series of its own" if names else "keep one image for each"
        )
        faults.add(where, "one image at each position", found, remedy, limit=240)
        return False
    step = affine_of(images)[:3, 2]
    away = np.linalg.norm(places - places[0] - np.arange(len(images))[:, None] * step, axis=1)
    if float(away.max()) > UNEVEN * float(np.linalg.norm(step)):
        i = int(np.abs(gaps - usual).argmax())
        lost = round(float(gaps[i]) / usual) - 1
        why = f" ({lost} missing?)" if lost > 0 and abs(gaps[i] / usual - lost - 1) < 0.1 else ""
        found = f"{gaps[i]:.4g} mm between {images[i].path.name} and {images[i + 1].path.name}{why}, others {usual:.4g} mm"
        faults.add(where, "evenly spaced slices", found, "export all slices of the series, or resample it to even spacing")
        return False
    return True


def affine_of(images: Sequence[Image]) -> np.ndarray:
    """(4, 4) LPS affine of images in order: voxel index -> mm."""
    first, last = images[0], images[-1]
    affine = np.eye(4)
    affine[:3, :2] = first.direction[:, :2] * first.spacing_mm
    affine[:3, 2], affine[:3, 3] = (last.origin_mm - first.origin_mm) / (len(images) - 1), first.origin_mm
    return affine
