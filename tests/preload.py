"""What a command imports, imported once for all of them (see :mod:`tests.command`)."""

import tempfile
from pathlib import Path

import hydra  # noqa: F401
import monai.networks.nets
import monai.transforms  # noqa: F401
import pandas  # noqa: F401
import torch

import oasis_monai.model
import oasis_monai.overlays  # noqa: F401
from oasis_monai.phantom import write_phantom
from oasis_monai.volumes import read_image

torch.set_num_threads(1)
with tempfile.TemporaryDirectory() as folder:  # ITK loads what it needs, in seconds, when it first reads
    write_phantom(folder, cases=1, size="tiny")
    read_image(Path(folder) / "Case00.mhd")
