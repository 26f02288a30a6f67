"""What a command imports, imported once for all of them (see :mod:`tests.helpers.command`)."""

import importlib
import multiprocessing
import tempfile
import threading
from pathlib import Path

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
    importlib.import_module("oasis_monai.data.io").read_image(Path(folder) / "Case00.mhd")
