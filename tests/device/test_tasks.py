"""Whole tasks on a (pretend) GPU: cross-validation, training a model, and segmenting with it."""

import pytest

from oasis_monai.networks import segmentation as networks
from oasis_monai.segmentation import alignment, estimate
from oasis_monai.training import registration, segmentation, slices
from oasis_monai.workflows.crossval import crossval
from oasis_monai.workflows.model import load_model
from oasis_monai.workflows.train import train_model
from tests.conftest import JOINT
from tests.helpers.pretend_device import pretend_device
from tests.helpers.runs import THREE, quiet, scores_of

pytestmark = pytest.mark.slow

FEW = {
    "training": {"iterations": 2},
    "data": {"include": THREE},
    "n": [2],
    "k": 3,
    "fold": 0,
    "methods": ["FwoW", "FWAL", "majority", "OASIS", "OASIS-conditioned", "STAPLE", "estimate", "OASIS-joint", "U-Net3D"],
    "browser": False,
}


@pytest.fixture(autouse=True)
def float32(monkeypatch):
    """Two devices are compared: bfloat16 is another rounding."""
    for module in (registration, segmentation, slices):
        monkeypatch.setattr(module, "use_bfloat16", lambda device, asked: False)
    for module in (alignment, estimate, networks):
        monkeypatch.setattr(module, "infer_in_bfloat16", lambda device, asked: False)


def test_a_cross_validation_scores_as_on_the_cpu(settings, tmp_path):
    asked = settings(JOINT, FEW, {"cache": str(tmp_path / "cpu")})
    crossval(asked, tmp_path / "a", quiet)
    with pretend_device() as record:
        crossval(settings(JOINT, FEW, {"cache": str(tmp_path / "gpu"), "device": "cuda"}), tmp_path / "b", quiet)
        assert record.launches > 1000
    one, two = (scores_of(tmp_path / name) for name in "ab")
    assert one.method.tolist() == two.method.tolist()
    assert two.dsc.to_numpy() == pytest.approx(one.dsc.to_numpy(), abs=0.02)  # rounding moves single voxels of a small grid


def test_a_model_is_trained_and_segments(settings, tmp_path, phantom):
    methods = {"methods": ["OASIS-joint"], "device": "cuda", "fold": None}
    with pretend_device() as record:
        folder = train_model(settings(JOINT, FEW, methods), tmp_path / "model", quiet)
        record.reset()
        model = load_model(folder, device="cuda")
        result = model.segment(phantom / "Case04.mhd")
        assert record.launches > 100
    again = load_model(folder, device="cpu").segment(phantom / "Case04.mhd")
    assert result.classes.shape == again.classes.shape
    assert float((result.classes != again.classes).float().mean()) < 0.01
