"""A sigmoid for each structure, and what it makes of the classes that are sets of structures."""

import itertools

import pytest
import torch

from oasis_monai.networks.losses import SegmentationLoss, StructureLoss, make_segmentation_loss
from oasis_monai.networks.segmentation import NetworkSettings, make_network
from oasis_monai.networks.slice_unet import SliceUNet
from oasis_monai.networks.structures import StructureNetwork, class_logits, membership

MEMBERS = ((1, 3), (2, 3))  # classes: gland, lesion, both
NESTED = ((1, 2, 3), (2, 3), (3,))


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("members", [MEMBERS, NESTED])
def test_class_probabilities_are_those_of_independent_sigmoids_among_known_sets(members):
    """By a slow product over all sets of structures, of which those that are no class are left out."""
    logits = 2 * random(1, len(members), 5)
    sure = torch.sigmoid(logits.double())
    known = [frozenset(k for k, own in enumerate(members) if c in own) for c in range(4)]
    slow = {}
    for bits in itertools.product((False, True), repeat=len(members)):
        own = torch.ones(5, dtype=torch.float64)
        for k, inside in enumerate(bits):
            own = own * (sure[0, k] if inside else 1 - sure[0, k])
        slow[frozenset(k for k, inside in enumerate(bits) if inside)] = own
    total = sum(slow[one] for one in known)
    made = torch.softmax(class_logits(logits, membership(members, 4)), 1)[0]
    for c, one in enumerate(known):
        torch.testing.assert_close(made[c].double(), slow[one] / total, atol=1e-6, rtol=1e-5)
    if members is MEMBERS:  # every set is a class: the probability of a structure is its sigmoid
        torch.testing.assert_close(made[[1, 3]].sum(0), torch.sigmoid(logits[0, 0]))


def test_the_loss_is_dice_and_binary_cross_entropy_of_every_structure():
    logits = random(2, 2, 4, 5)
    label = torch.randint(0, 4, (2, 4, 5), generator=torch.Generator().manual_seed(1))
    target = torch.nn.functional.one_hot(label, 4).movedim(-1, 1).float()
    counts = torch.rand(2, 1, 4, 5, generator=torch.Generator().manual_seed(2)) > 0.3
    slow_dice, slow_entropy, n = [], 0.0, 0
    for b in range(2):
        for k, own in enumerate(MEMBERS):
            inter = total = 0.0
            for x, y in itertools.product(range(4), range(5)):
                if not counts[b, 0, x, y]:
                    continue
                p, t = float(torch.sigmoid(logits[b, k, x, y])), float(int(label[b, x, y]) in own)
                inter, total = inter + p * t, total + p + t
                slow_entropy -= t * torch.log(torch.tensor(p)).item() + (1 - t) * torch.log(torch.tensor(1 - p)).item()
                n += 1
            slow_dice.append(1 - (2 * inter + 1e-5) / (total + 1e-5))
    made = StructureLoss(MEMBERS, 4)(logits, target, counts)
    assert float(made) == pytest.approx(sum(slow_dice) / 4 + slow_entropy / n, abs=1e-5)
    other = torch.where(counts, logits, 9.0)  # what does not count changes nothing
    assert float(StructureLoss(MEMBERS, 4)(other, target, counts)) == pytest.approx(float(made), abs=1e-6)


def test_only_structures_that_share_voxels_have_a_loss_of_their_own():
    assert isinstance(make_segmentation_loss((), 4), SegmentationLoss)
    assert isinstance(make_segmentation_loss(MEMBERS, 4), StructureLoss)


@pytest.mark.parametrize("name", ["ConvNet3D", "U-Net3D", "DynU-Net3D"])
def test_networks_give_structures_in_training_and_classes_in_use(name):
    settings = NetworkSettings(convnet=(4, 8), unet=(4, 8), dynunet=(4, 8))
    model = make_network(name, 4, settings, structures=NESTED)
    assert isinstance(model, StructureNetwork)
    image = random(1, 1, 8, 8, 4)
    made = model.train()(image)
    first = made[0] if isinstance(made, list) else made
    assert first.shape == (1, 3, 8, 8, 4)
    logits = model.eval()(image)
    torch.testing.assert_close(logits, class_logits(model.network(image), membership(NESTED, 4)))
    assert not logits[:, 0].any()  # the background's
    assert "of" not in model.state_dict()


@pytest.mark.parametrize("shape", [False, True])
def test_the_slice_network_adds_what_its_atlases_say_of_a_structure(shape):
    torch.manual_seed(0)
    model = SliceUNet(4, 2, (8, 8, 8, 8), False, shape, structures=MEMBERS).eval()
    labels = torch.zeros(1, 2, 1 + 3, 32, 32)
    labels[:, :, 1 + 2, :16] = 1  # both structures
    labels[:, 0, 1, 16:] = 1  # one atlas: the first alone
    beside = labels.flatten(1, 2)
    if shape:
        distances = torch.full((1, 3, 32, 32), -1.0)
        distances[:, 2, :16] = 3.0
        beside = torch.cat([beside, distances], 1)
    prior = model.prior_logits(beside, model.trust)
    assert prior.shape == (1, 2, 32, 32)
    assert prior[0, 0, 0, 0] == prior[0, 1, 0, 0] > 0
    assert prior[0, 1, 31, 0] < 0
    image = torch.cat([random(1, 3, 32, 32), beside], 1)
    assert model(image).shape == (1, 4, 32, 32)
    assert model.train()(image).shape == (1, 2, 32, 32)
