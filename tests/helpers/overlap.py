"""Data sets whose structures share voxels: a lesion that lies partly in a gland, as two masks or as one label."""

import json

import numpy as np

from oasis_monai.data.formats.dispatch import write_array
from oasis_monai.data.phantom import make_phantom
from oasis_monai.data.types import Geometry

ALONE = 3
"""The case from which on lesions leave the gland: before it no voxel is lesion alone."""


def gland_and_lesion(case):
    """Image, two masks and grid of a phantom: the lesion is a dark ball in the gland, of later cases on its border."""
    scan = make_phantom(case, size="tiny")
    gland = scan.label > 0
    inside = np.argwhere(gland)
    centre = inside.mean(0)
    if case >= ALONE:
        centre[0] = inside[:, 0].max()
    away = np.linalg.norm((np.indices(gland.shape).T - centre) * scan.spacing_mm, axis=-1).T
    lesion = away < 9
    image = scan.image.astype(np.float32) - 150.0 * lesion
    return image, {"gland": gland, "lesion": lesion}, Geometry(gland.shape, scan.affine)


def write_masks(folder, cases):
    """A folder for each case with a mask of each structure."""
    for case in cases:
        image, masks, grid = gland_and_lesion(case)
        (folder / f"p{case}").mkdir(parents=True)
        write_array(folder / f"p{case}" / "t2.nii.gz", image, grid)
        for name, mask in masks.items():
            write_array(folder / f"p{case}" / f"{name}_seg.nii.gz", mask.astype(np.uint8), grid)
    return folder


def write_regions(folder, cases, labels=None):
    """The same as nnU-Net has it: 1 is gland alone, 2 both, 3 lesion alone."""
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True)
    for case in cases:
        image, masks, grid = gland_and_lesion(case)
        both = np.where(masks["lesion"], np.where(masks["gland"], 2, 3), masks["gland"]).astype(np.uint8)
        write_array(folder / "imagesTr" / f"p{case}_0000.nii.gz", image, grid)
        write_array(folder / "labelsTr" / f"p{case}.nii.gz", both, grid)
    named = labels or {"background": 0, "gland": [1, 2], "lesion": [2, 3]}
    content = {"channel_names": {"0": "T2"}, "labels": named, "file_ending": ".nii.gz", "numTraining": len(cases)}
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder
