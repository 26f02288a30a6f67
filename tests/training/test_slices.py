"""Training of the slice network: budget, members, kills, and which slices are drawn."""

from dataclasses import replace

import pytest
import torch

from oasis_monai.atlases.library import AtlasLibrary
from oasis_monai.atlases.slices import slices_near_structure
from oasis_monai.networks.registration import RegistrationSettings
from oasis_monai.networks.slice_unet import (
    WINDOW,
    JointSettings,
    SliceUNetEnsemble,
    make_slice_network,
)
from oasis_monai.segmentation.estimate import Estimator
from oasis_monai.training.slices import SliceTrainer, cut_windows, train_slice_network
from oasis_monai.training.trainer import FitContext, TrainingSettings, generator
from oasis_monai.utils.errors import OasisError
from oasis_monai.utils.tensor_files import save_tensors
from tests.networks.test_slice_unet import net

SMALL = JointSettings(decoder=(8, 8, 8, 8), slices_per_step=2, pretrained=False, slice_budget=0.5, volume_budget=0.0)
SHORT = TrainingSettings(iterations=4, minutes=None, checkpoint_minutes=1e-12)
JOINT = RegistrationSettings(channels=(4, 8), field_stride=(2,), joint=True)


def discs(dims, cases=4, per_case=2, size=32, classes=2):
    """A library of discs (2D) or rods (3D), each at a place of its own, with a second structure inside when asked for."""
    grid = torch.stack(torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")).float()
    images, labels = [], []
    for number in range(cases * (per_case if dims == 2 else 1)):
        turn = torch.tensor(2.4 * number)
        centre = size / 2 + 4 * torch.stack([turn.cos(), turn.sin()])
        distance = (grid - centre[:, None, None]).square().sum(0).sqrt()
        image, label = torch.sigmoid(8 - distance), (distance < 8).to(torch.uint8)
        if classes == 3:
            label += (distance < 4).to(torch.uint8)
            image = image + torch.sigmoid(4 - distance)
        if dims == 3:
            image, label = (x[..., None].repeat(1, 1, 4) for x in (image, label))
        images.append(image[None])
        labels.append(label[None])
    count = len(images)
    images, labels = torch.stack(images), torch.stack(labels)
    names = tuple(f"c{n // (per_case if dims == 2 else 1)}" for n in range(count))
    slices = torch.arange(count) % per_case if dims == 2 else torch.full((count,), -1)
    features = torch.randn(count, 5, generator=torch.Generator().manual_seed(0))
    context = torch.cat([images, images], 1) if dims == 2 else None
    return AtlasLibrary(images, labels, features, names, slices, classes, context)


@pytest.mark.slow
@pytest.mark.parametrize("dims", [2, 3])
def test_it_learns_a_disc(dims):
    library = discs(dims)
    short = replace(SMALL, lr=5e-3, slice_budget=0.5, slices_per_step=4)
    model = train_slice_network(
        FitContext(library, (1.0, 1.0), replace(SHORT, iterations=120), 0, None, name="slice network", progress=False), short
    )
    images = library.images if dims == 3 else [image[..., None] for image in library.images]
    estimator = Estimator(model, tta_flip=False)
    for image, label in zip(images, library.labels, strict=True):
        got = estimator.volume(image)[1] >= 0.5
        truth = label[0] == 1 if dims == 3 else (label[0] == 1)[..., None]
        assert 2 * float((got & truth).sum()) / float(got.sum() + truth.sum()) > 0.9


def test_a_killed_training_ends_with_the_same_weights(tmp_path, monkeypatch):
    from oasis_monai.training import slices as estimation

    library, settings = discs(2), replace(SMALL, atlases=2)
    whole = train_slice_network(
        FitContext(library, (1.0, 1.0), SHORT, 1, tmp_path / "a", name="slice network", progress=False), settings
    )
    step = estimation.SliceTrainer.step

    class Killed(BaseException):
        pass

    def dying(self, number):
        if number == 1:
            raise Killed
        return step(self, number)

    monkeypatch.setattr(estimation.SliceTrainer, "step", dying)
    with pytest.raises(Killed):
        train_slice_network(
            FitContext(library, (1.0, 1.0), SHORT, 1, tmp_path / "b", name="slice network", progress=False), settings
        )
    monkeypatch.setattr(estimation.SliceTrainer, "step", step)
    again = train_slice_network(
        FitContext(library, (1.0, 1.0), SHORT, 1, tmp_path / "b", name="slice network", progress=False), settings
    )
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in whole.state_dict().items())


def test_the_budget_is_shared():
    half = TrainingSettings(iterations=100, minutes=8.0).part(0.75)
    assert (half.iterations, half.minutes) == (75, 6.0)
    assert TrainingSettings(iterations=1, minutes=None).part(0.1).iterations == 1


@pytest.mark.slow
def test_members_are_trained_apart_averaged_and_kept_as_one(tmp_path):
    library, short = discs(2), replace(SHORT, iterations=8)
    settings = replace(SMALL, members=2)
    alone = train_slice_network(
        FitContext(library, (1.0, 1.0), replace(short, iterations=4), 1, None, name="slice network", progress=False), SMALL
    )
    both = train_slice_network(
        FitContext(library, (1.0, 1.0), short, 1, tmp_path, name="slice network", progress=False), settings
    )
    assert isinstance(both, SliceUNetEnsemble)
    one, other = both.members
    for name, weight in alone.state_dict().items():  # half of the budget each, the first as if it were alone
        assert torch.equal(weight, one.state_dict()[name]), name
    assert not torch.equal(one.last[0].weight, other.last[0].weight)
    slices = torch.rand(2, 3, 32, 32)
    parts = [Estimator(member, tta_flip=False)(slices) for member in (one, other)]
    torch.testing.assert_close(Estimator(both, tta_flip=False)(slices), torch.stack(parts).mean(0))
    assert sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*.safetensors")) == ["estimator.safetensors"]
    (tmp_path / "member1" / "estimator.safetensors").write_bytes(b"what a kill left")
    again = train_slice_network(
        FitContext(
            library, (1.0, 1.0), replace(short, iterations=None, minutes=60.0), 1, tmp_path, name="slice network", progress=False
        ),
        settings,
    )
    assert not list(tmp_path.glob("member*/*.safetensors"))
    assert all(torch.equal(again.state_dict()[name], weight) for name, weight in both.state_dict().items())


@pytest.mark.slow
def test_a_kill_between_members_costs_no_member(tmp_path):
    library, settings, short = discs(2), replace(SMALL, members=2), replace(SHORT, iterations=4)
    whole = train_slice_network(
        FitContext(library, (1.0, 1.0), short, 1, tmp_path / "a", name="slice network", progress=False), settings
    )
    train_slice_network(
        FitContext(
            library, (1.0, 1.0), replace(short, iterations=2), 1, tmp_path / "b" / "member0", name="slice network", progress=False
        ),
        SMALL,
    )  # what the first leaves
    before = (tmp_path / "b" / "member0" / "history.csv").stat().st_mtime_ns
    again = train_slice_network(
        FitContext(library, (1.0, 1.0), short, 1, tmp_path / "b", name="slice network", progress=False), settings
    )
    assert (tmp_path / "b" / "member0" / "history.csv").stat().st_mtime_ns == before
    assert all(torch.equal(again.state_dict()[name], weight) for name, weight in whole.state_dict().items())


@pytest.mark.parametrize("members", [1, 2])
def test_a_cache_with_weights_of_other_layers_is_told_in_one_line(tmp_path, members):
    made = make_slice_network(2, replace(SMALL, members=members, decoder=(8, 8, 8, 4)), pretrained=False)
    save_tensors(tmp_path / "estimator.safetensors", {f"model.{k}": v for k, v in made.state_dict().items()}, {"done": True})
    with pytest.raises(OasisError, match=r"^model: expected weights of this version's SliceUNet"):
        train_slice_network(
            FitContext(discs(2), (1.0, 1.0), SHORT, 1, tmp_path, name="slice network", progress=False),
            replace(SMALL, members=members),
        )


def test_slices_far_from_structures_are_drawn_less_often():
    library = discs(2)
    labels = torch.zeros_like(library.labels)
    labels[0, 0, 16, 16] = 1
    library = replace(library, labels=labels)
    near = slices_near_structure(library)
    trainer = SliceTrainer(
        FitContext(library, (1.0, 1.0), TrainingSettings(), same_case=True),
        net(pretrained=False),
        replace(SMALL, slices_per_step=4000, empty_slice_weight=0.25),
    )
    trainer.library = replace(library, images=torch.arange(len(library)).view(-1, 1, 1, 1).expand_as(library.images).float())
    image, *_ = trainer.draw(torch.Generator().manual_seed(0))
    library_rows = image[:, 1, 0, 0].long()
    share = float(near[library_rows].float().mean())
    want = float(near.sum()) / float(near.sum() + 0.25 * (~near).sum())
    assert share == pytest.approx(want, abs=0.03)


def test_the_slice_network_is_told_by_its_slices(tmp_path, monkeypatch):
    from oasis_monai.training import slices as estimation

    def step(self, number):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    monkeypatch.setattr(estimation.SliceTrainer, "step", step)
    with pytest.raises(OasisError, match=r"^slice network: out of memory at step 0 .*Lower joint\.slices_per_step"):
        train_slice_network(FitContext(discs(2), (1.0, 1.0), SHORT, 0, tmp_path, name="slice network", progress=False), SMALL)


def test_large_slices_of_a_fine_grid_are_seen_in_windows():
    """At random, and every second one holds some of a structure."""
    label = torch.zeros(200, 1, WINDOW + 60, 40, dtype=torch.uint8)
    label[:, 0, WINDOW + 55, 3] = 1  # one voxel near the end
    place = torch.stack(torch.meshgrid(torch.arange(WINDOW + 60), torch.arange(40), indexing="ij")).expand(200, -1, -1, -1)
    random = torch.Generator().manual_seed(0)
    image, cut = cut_windows(place.float(), label, random)
    assert image.shape == (200, 2, WINDOW, 40)
    assert cut.shape == (200, 1, WINDOW, 40)
    starts = image[:, 0, 0, 0]
    assert torch.equal(image[:, 0], starts.view(-1, 1, 1) + torch.arange(WINDOW).view(-1, 1).expand(-1, 40))
    assert (cut[::2].flatten(1) == 1).any(1).all()
    assert {0.0, 60.0} <= set(starts[1::2].tolist())
    small = place[..., :WINDOW, :], label[..., :WINDOW, :]
    assert all(one is other for one, other in zip(cut_windows(*small, random), small, strict=True))


@pytest.mark.parametrize("dims", [2, 3])
def test_even_draws_show_a_rare_structure_as_often(dims):
    """Once in the library; without them it would be drawn as seldom as any other slice."""
    library = discs(dims, classes=3)
    labels = library.labels.clone()
    labels[labels == 2] = 1
    labels[(1, 0, 16, 16, 2) if dims == 3 else (1, 0, 16, 16)] = 2
    library = replace(library, labels=labels)
    shown = {}
    for even in (False, True):
        joint = replace(SMALL, even_draws=even, slices_per_step=100)
        network = make_slice_network(3, joint, False)
        trainer = SliceTrainer(FitContext(library, (1.0, 1.0), replace(SHORT, augment=False)), network, joint)
        _, drawn, _ = trainer.draw(generator(0, 0))
        shown[even] = int(drawn[:, 1].flatten(1).any(1).sum())
    assert shown[False] < 25
    assert 25 < shown[True] < 60, "three of eight, and of the quarter that is drawn as before"


def test_copies_of_what_may_lie_anywhere_are_learned_from(monkeypatch):
    monkeypatch.setattr("oasis_monai.training.small_structures.COPIED", 1.0)
    monkeypatch.setattr("oasis_monai.training.small_structures.TRIES", 200)
    library = discs(3, size=64)
    label = torch.zeros_like(library.labels)
    label[0, 0, 30:34, 30:34] = 1
    images = 0.1 * torch.randn(library.images.shape, generator=torch.Generator().manual_seed(0)) - 1.0 * label
    library = replace(library, images=images, labels=label)
    shown = {}
    for anywhere in ((), (1,)):
        joint = replace(SMALL, slices_per_step=20)
        context = FitContext(library, (1.0, 1.0), replace(SHORT, augment=False), anywhere=anywhere)
        _, drawn, rows = SliceTrainer(context, make_slice_network(2, joint, False), joint).draw(generator(0, 0))
        shown[anywhere] = drawn[:, 0].flatten(1).any(1)[rows > 0]
    assert not shown[()].any()
    assert shown[1,].all()
