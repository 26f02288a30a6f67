"""Training and using a segmentation network: resumption to the bit, an easy task learned, windows that cover everything."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from oasis_monai.atlases.library import FineAtlas
from oasis_monai.data.types import IGNORE
from oasis_monai.networks.losses import SegmentationLoss
from oasis_monai.networks.segmentation import NetworkSettings, Predictor
from oasis_monai.training import segmentation as module
from oasis_monai.training.segmentation import shares_of_blocks, train_segmentation
from oasis_monai.training.trainer import FitContext, TrainingSettings
from oasis_monai.utils.errors import OasisError
from oasis_monai.utils.tensor_files import load_tensors
from tests.training.test_registration import Killed, discs, same
from tests.training.test_slices import discs as rods

TINY = NetworkSettings(convnet=(4, 8), unet=(4, 8))
SHORT = TrainingSettings(iterations=6, minutes=None, lr=5e-3, batch=2, checkpoint_minutes=1e-12)


def train(folder, name="ConvNet2D", settings=SHORT, seed=3, network=TINY, library=None, **more):
    return train_segmentation(
        FitContext(library or discs(), (1.0, 1.0), settings, seed, folder, progress=False, name=name, **more), name, network
    )


def steps_of(patch, die_at=None):
    seen = []
    whole = module.SegmentationTrainer.step

    def step(self, number):
        if number == die_at:
            raise Killed
        seen.append(number)
        return whole(self, number)

    patch.setattr(module.SegmentationTrainer, "step", step)
    return seen


@pytest.mark.parametrize("name", ["ConvNet2D", "U-Net2D"])
def test_killed_and_resumed_is_bitwise_never_killed(tmp_path, name):
    whole = train(tmp_path / "whole", name)
    for death in (1, 4):
        with pytest.MonkeyPatch.context() as patch:
            steps_of(patch, death)
            with pytest.raises(Killed):
                train(tmp_path / "killed", name)
    assert load_tensors(tmp_path / "killed" / "network.safetensors")[1]["step"] == 4
    assert same(train(tmp_path / "killed", name), whole)
    header = (tmp_path / "whole" / "history.csv").read_text().splitlines()[0]
    assert header == "step,seconds,lr,loss,main"


def test_a_finished_network_is_loaded_and_not_trained(tmp_path, monkeypatch):
    whole = train(tmp_path)
    seen = steps_of(monkeypatch)
    again = train(tmp_path)
    assert seen == []
    assert same(again, whole)
    assert not again.training


def test_seed_settings_and_network_decide_the_weights():
    first = train(None)
    assert same(train(None), first)
    assert not same(train(None, seed=4), first)
    assert not same(train(None, settings=replace(SHORT, augment=False)), first)


def test_the_auxiliary_loss_counts():
    deep = NetworkSettings(convnet=(4, 6, 8), deep_supervision=(0.5,))
    loss, main = (
        load
        for load in module.SegmentationTrainer(
            FitContext(discs(), (1.0, 1.0), SHORT), "ConvNet2D", module.make_network("ConvNet2D", 2, deep), deep
        ).step(0)
    )
    assert loss > main + 0.1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ConvNet2D", "U-Net2D"])
def test_it_learns_discs(name):
    library = discs(cases=8)
    settings = TrainingSettings(iterations=120, minutes=None, lr=1e-2, batch=4, augment=False)
    model = train(None, name, settings, library=library)
    found = Predictor(model, name, TINY)(library.images.float())[:, 1:] > 0.5
    truth = library.labels == 1
    assert 2 * (found & truth).sum() / (found.sum() + truth.sum()) > 0.9


def test_without_augmentation_the_library_s_own_images_are_seen():
    library = discs()
    seen = []
    context = FitContext(library, (1.0, 1.0), replace(SHORT, augment=False, batch=5))
    trainer = module.SegmentationTrainer(context, "U-Net2D", nn.Conv2d(1, 2, 1), TINY)
    trainer.model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone()))
    trainer.step(0)
    assert seen[0].shape == (5, 1, 16, 16)
    assert all(any(torch.equal(image, own) for own in library.images.float()) for image in seen[0])


def test_every_second_patch_holds_some_of_the_structure():
    library = discs(cases=6, size=32)
    patched = NetworkSettings(convnet=(4, 8), unet=(4, 8), patch=(4, 8))
    trainer = module.SegmentationTrainer(FitContext(library, (1.0, 1.0), SHORT), "U-Net2D", nn.Conv2d(1, 2, 1), patched)
    image, label = library.images.float(), (library.labels == 1).float()
    for step in range(20):
        cut, structure = trainer._cut(image, label, torch.Generator().manual_seed(step))
        assert cut.shape == (6, 1, 4, 8)
        assert structure[::2].flatten(1).any(1).all()
        for i in range(6):  # image and label are cut alike: the image is the label's own edge
            assert torch.equal(cut[i, 0] > 0.5, structure[i, 0] > 0.5)


class Pixel(nn.Module):
    """Sees one voxel at a time, so a window must not matter."""

    def forward(self, image):
        return torch.cat([-image, image, 0.3 * image], 1)


@pytest.mark.parametrize("patch", [(8, 8), (16, 4), (12, 10)])
def test_a_sliding_window_is_the_whole_image_at_once_for_a_network_that_sees_one_voxel(patch):
    image = torch.randn(3, 1, 16, 20, generator=torch.Generator().manual_seed(0))
    settings = NetworkSettings(convnet=(4, 8), unet=(4, 8), patch=patch)
    whole = Predictor(Pixel(), "U-Net2D", NetworkSettings(convnet=(4, 8), unet=(4, 8)), batch=2)(image)
    slid = Predictor(Pixel(), "U-Net2D", settings, batch=2)(image)
    assert torch.allclose(whole, torch.softmax(Pixel()(image), 1), atol=1e-6)
    assert torch.allclose(slid, whole, atol=1e-5)
    assert torch.allclose(slid.sum(1), torch.ones(3, 16, 20), atol=1e-5)


def test_a_loss_that_is_not_finite_names_the_network_and_keeps_the_good_checkpoint(tmp_path, monkeypatch):
    whole = module.SegmentationTrainer.step
    monkeypatch.setattr(module.SegmentationTrainer, "step", lambda self, n: whole(self, n) * (float("nan") if n == 3 else 1))
    with pytest.raises(OasisError, match=r"training diverged at step 3 .*Lower training\.lr"):
        train(tmp_path, "U-Net2D")
    assert load_tensors(tmp_path / "network.safetensors")[1]["step"] == 3


def test_a_volume_network_learns_what_share_of_a_block_each_structure_has():
    """Counted block by block on the fine grid; what nobody labelled has a share of its own."""
    library = rods(3)
    shape = library.labels.shape[2:]
    random = torch.Generator().manual_seed(1)
    fine = [torch.randint(0, 2, (1, *(2 * n for n in shape)), generator=random, dtype=torch.uint8) for _ in range(len(library))]
    fine[1][:, :3] = IGNORE
    library = replace(library, fine=tuple(FineAtlas(label.half(), label) for label in fine))
    shares = shares_of_blocks(library, (2, 1, 1))
    assert shares.shape == (len(library), 2, shape[0] // 2, *shape[1:])
    for row, channel, x, y, z in [(0, 0, 1, 2, 3), (1, 0, 0, 0, 0), (1, 1, 0, 0, 0), (1, 1, 1, 5, 1), (2, 1, 0, 3, 3)]:
        block = fine[row][0, 4 * x : 4 * x + 4, 2 * y : 2 * y + 2, 2 * z : 2 * z + 2]
        wanted = (block == (1, IGNORE)[channel]).float().mean()
        assert float(shares[row, channel, x, y, z]) == pytest.approx(float(wanted), abs=1e-3)
    assert shares_of_blocks(replace(library, fine=()), (2, 1, 1)) is None


def test_shares_are_learned_in_the_place_of_labels(monkeypatch):
    library = rods(3)
    seen = []
    monkeypatch.setattr(SegmentationLoss, "__call__", lambda self, out, target, counts: seen.append(target) or out.sum())
    shares = torch.full((len(library), 1, *library.images.shape[2:]), 0.25)
    context = FitContext(library, (1.0,) * 3, TrainingSettings(iterations=1, minutes=None, augment=False), shares=shares)
    train_segmentation(context, "U-Net3D", NetworkSettings(unet=(4, 8)))
    assert seen[0].unique().tolist() == [0.25, 0.75]
