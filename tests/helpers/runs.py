"""What the tests of cross-validations share: reading back what a run left."""

import shutil
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd

from oasis_monai.segmentation.methods import ESTIMATE, INTERPOLATION, METHODS, methods_that_need

REGIONS = ("whole", "apex", "mid", "base")

THREE = [f"Case{i:02d}" for i in range(3)]
PLAIN = [m for m in METHODS if m not in (*methods_that_need(ESTIMATE, list(METHODS)), INTERPOLATION)]
NETS = {"network": {"convnet": [4, 8], "unet": [4, 8], "dynunet": [4, 8]}}


def quiet(_):
    """No log."""


def scores_of(folder):
    return pd.read_csv(folder / "scores.csv", dtype={"case": str})


def copied(folder, tmp_path):
    return Path(shutil.copytree(folder, tmp_path / "data"))


def pixels(folder):
    return {path.name: np.asarray(nibabel.load(path).dataobj) for path in sorted((folder / "segmentations").glob("*.nii.gz"))}
