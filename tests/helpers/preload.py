"""What a command imports, imported once for all of them (see :mod:`tests.helpers.command`)."""

import importlib
import multiprocessing
import tempfile
import threading
from pathlib import Path

import numpy as np

# tqdm (and ITK) guard themselves with a lock that forks share: a command killed while it holds one would stop all others
multiprocessing.RLock = threading.RLock
for name in (
    "hydra",
    "monai.transforms",
    "monai.networks.nets",
    "pandas",
    "oasis_monai.workflows.model_folder",
    "oasis_monai.evaluation.contours",
):
    importlib.import_module(name)
with tempfile.TemporaryDirectory() as folder:  # ITK loads what it needs, in seconds, when it first reads
    importlib.import_module("oasis_monai.data.phantom").write_phantom(folder, cases=1, size="tiny")
    read_image = importlib.import_module("oasis_monai.data.io").read_image
    read_image(Path(folder) / "Case00.mhd")
    write_series = importlib.import_module("tests.helpers.dicom_series").write_series
    write_series(Path(folder) / "series", np.zeros((4, 4, 2)), np.eye(4))
    read_image(Path(folder) / "series" / "000.dcm")
