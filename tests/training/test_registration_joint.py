"""Training of the registration network that sees labels."""

from dataclasses import replace

import pytest
import torch

from oasis_monai.networks.losses import RegistrationLoss
from oasis_monai.segmentation import fusion
from oasis_monai.segmentation.alignment import Aligner
from oasis_monai.segmentation.loa import LoaTable
from oasis_monai.training.registration import make_registration_network, perturb_estimate, train_registration
from oasis_monai.training.trainer import FitContext
from oasis_monai.transforms.labels import foreground, one_hot
from tests.training.test_slices import JOINT, SHORT, discs


def test_doubt_keeps_the_sure_and_moves_the_edge():
    estimate = torch.tensor([0.0, 0.5, 1.0]).view(1, 1, 3, 1).repeat(4, 1, 8, 24)
    got = perturb_estimate(estimate, torch.Generator().manual_seed(0))
    assert torch.equal((got > 0.5)[estimate == 1], torch.ones_like(got, dtype=torch.bool)[estimate == 1])
    assert not (got > 0.5)[estimate == 0].any()
    assert float(got[estimate == 0.5].std()) > 0.05


@pytest.mark.slow
@pytest.mark.parametrize("dims", [2, 3])
def test_the_joint_stm_learns_to_move_labels_onto_estimates(dims):
    """Images without any content: only the estimate tells where the target's structure is."""
    library = discs(dims, cases=6, per_case=1)
    blank = replace(library, images=torch.zeros_like(library.images), context=None)
    told = blank.with_estimates(foreground(library.labels, 2))
    settings = replace(SHORT, iterations=150, lr=1e-2, batch=4, augment=False)
    loss = RegistrationLoss(alpha=0, gamma=0.001)
    model = train_registration(FitContext(told, (1.0,) * dims, settings, 0, None, progress=False), JOINT, loss).eval()
    aligner = Aligner(model)
    assert aligner.joint
    pairs = torch.tensor([(j, k) for j in range(6) for k in range(6) if j != k])
    table = LoaTable(told, aligner)
    after = torch.stack([table.matrix(torch.arange(6))[j, k] for j, k in pairs.tolist()]).mean()
    hot = one_hot(told.labels, 2)
    before = fusion.overlap(hot[pairs[:, 1]], hot[pairs[:, 0]]).mean()
    assert after > before + 0.15


def test_a_joint_stm_wants_estimates():
    with pytest.raises(ValueError, match="estimates"):
        train_registration(FitContext(discs(3), (1.0,) * 3, SHORT, 0, None, progress=False), JOINT, RegistrationLoss())
    library = discs(3)
    with pytest.raises(ValueError, match="estimates"):
        LoaTable(library, Aligner(make_registration_network(library, JOINT))).require([torch.arange(2)])


def test_nothing_but_the_seed_decides_the_stms_start():
    library = discs(3).with_estimates(foreground(discs(3).labels, 2))
    a, b = (
        train_registration(FitContext(library, (1.0,) * 3, SHORT, 5, None, progress=False), JOINT, RegistrationLoss())
        for _ in range(2)
    )
    assert all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())
