"""MONAI's light import leaves a process that works."""

import subprocess
import sys

import pytest

SCRIPT = """
import sys
from oasis_monai.utils.startup import UNUSED, import_monai_lightly
before = set(sys.modules)
import_monai_lightly()
assert "monai" in sys.modules
found = [name for name in UNUSED if name in sys.modules and name not in before]
assert not found, found
import matplotlib.pyplot, mlflow, pandas, scipy.signal, scipy.stats  # afterwards they are there
from torch.utils.tensorboard import SummaryWriter
import torch
from monai.networks.nets import UNet
from monai.transforms import SpatialResample, GaussianSmooth
from monai.networks.blocks import Warp
UNet(3, 1, 2, (4, 8), (2,))(torch.rand(1, 1, 8, 8, 8))
first = sys.modules["monai"]
import_monai_lightly()
assert sys.modules["monai"] is first
print("fine")
"""


@pytest.mark.slow
def test_what_is_not_used_is_not_imported_and_can_be_afterwards():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=300, check=False)
    assert done.stdout.strip().endswith("fine"), done.stderr


def test_where_monai_is_there_already_nothing_happens():
    import monai

    from oasis_monai.utils.startup import import_monai_lightly

    before = dict(sys.modules)
    import_monai_lightly()
    assert sys.modules["monai"] is monai
    assert sys.modules.keys() == before.keys()
