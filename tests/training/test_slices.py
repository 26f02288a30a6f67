"""The joint model: its segmentation network, the STM that sees labels, and the vote of both."""

import math
from dataclasses import replace

import pytest
import torch

from oasis_monai.atlases.library import AtlasLibrary
from oasis_monai.atlases.slices import slices_near_structure
from oasis_monai.data.types import Geometry, Preprocessed
from oasis_monai.networks import warp
from oasis_monai.networks.encoders import imagenet_network
from oasis_monai.networks.losses import RegistrationLoss
from oasis_monai.networks.registration import RegistrationSettings
from oasis_monai.networks.slice_unet import (
    MAX_DISTANCE,
    VIEWS,
    JointSettings,
    SliceUNet,
    SliceUNetEnsemble,
    make_slice_network,
    with_neighbours,
)
from oasis_monai.segmentation import fusion
from oasis_monai.segmentation.agreement import agreement
from oasis_monai.segmentation.alignment import Aligner
from oasis_monai.segmentation.estimate import Estimator, rotate_and_scale
from oasis_monai.segmentation.fusion import remove_unsupported_components
from oasis_monai.segmentation.loa import LoaTable
from oasis_monai.segmentation.segmenter import Segmenter
from oasis_monai.training.registration import make_registration_network, perturb_estimate, train_registration
from oasis_monai.training.slices import _SliceTrainer, train_slice_network
from oasis_monai.training.trainer import FitContext, TrainingSettings
from oasis_monai.transforms.labels import foreground, one_hot
from oasis_monai.utils.errors import ConfigError, OasisError
from oasis_monai.utils.tensor_files import save_tensors

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


def net(seed=0, **more):
    torch.manual_seed(seed)
    return SliceUNet(2, decoder=(8, 8, 8, 8), **more).eval()


def test_neighbours_stand_beside_every_slice():
    volume = torch.arange(5.0).expand(1, 2, 3, 5)
    got = with_neighbours(volume)
    assert got.shape == (5, 3, 2, 3)
    assert got[:, :, 0, 0].tolist() == [[0, 0, 1], [0, 1, 2], [1, 2, 3], [2, 3, 4], [3, 4, 4]]
    assert with_neighbours(volume[..., :1])[:, :, 0, 0].tolist() == [[0, 0, 0]]


def test_the_encoder_is_the_network_that_selects_atlases():
    """Pre-trained stages give, at every stride, what the ImageNet network itself computes."""
    model, whole = net(), imagenet_network("efficientnet-lite0").eval()
    image = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    seen = {}
    model.up[0].register_forward_hook(lambda _, given, __: seen.update(given=given[0]))
    x = whole._swish(whole._bn0(whole._conv_stem(image)))
    stages = []
    for block in whole._blocks:
        if block._depthwise_conv.stride[0] == 2:
            stages.append(x)
        x = block(x)
    with torch.no_grad():
        model(image)
    lowest = torch.nn.functional.interpolate(x, size=stages[-1].shape[2:])
    torch.testing.assert_close(seen["given"], torch.cat([lowest, stages[-1]], 1))


def test_statistics_of_imagenet_stay():
    model = net().train()
    before = {k: v.clone() for k, v in model.encoder.state_dict().items() if "running" in k}
    model(torch.randn(2, 3, 32, 32))
    assert before
    assert all(torch.equal(v, model.encoder.state_dict()[k]) for k, v in before.items())
    assert model.last.training


def test_atlases_start_without_a_say_in_the_encoder():
    model = net(atlases=2)
    assert model.extra is not None
    assert not model.extra.weight.any()
    assert model(torch.randn(1, 7, 32, 32)).shape == (1, 2, 32, 32)
    assert net(atlases=2, shape=True)(torch.randn(1, 8, 32, 32)).shape == (1, 2, 32, 32)


@pytest.mark.parametrize("size", [(32, 32), (40, 56), (33, 50)])
def test_every_size_from_32_up(size):
    logits = net(pretrained=False)(torch.randn(1, 3, *size))
    assert logits.shape == (1, 2, *size)
    assert bool(torch.isfinite(logits).all())


def test_mirrored_scans_get_mirrored_estimates():
    model = net(pretrained=False)
    image = torch.rand(1, 32, 32, 5, generator=torch.Generator().manual_seed(2))
    both, alone = Estimator(model, tta_flip=True, batch=2), Estimator(model, tta_flip=False)
    torch.testing.assert_close(both.volume(image.flip(1)), both.volume(image).flip(1), atol=1e-5, rtol=1e-4)
    assert not torch.allclose(alone.volume(image.flip(1)), alone.volume(image).flip(1), atol=1e-3)
    torch.testing.assert_close(
        both.volume(image), (alone.volume(image) + alone.volume(image.flip(1)).flip(1)) / 2, atol=1e-5, rtol=1e-4
    )


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
    step = estimation._SliceTrainer.step

    class Killed(BaseException):
        pass

    def dying(self, number):
        if number == 1:
            raise Killed
        return step(self, number)

    monkeypatch.setattr(estimation._SliceTrainer, "step", dying)
    with pytest.raises(Killed):
        train_slice_network(
            FitContext(library, (1.0, 1.0), SHORT, 1, tmp_path / "b", name="slice network", progress=False), settings
        )
    monkeypatch.setattr(estimation._SliceTrainer, "step", step)
    again = train_slice_network(
        FitContext(library, (1.0, 1.0), SHORT, 1, tmp_path / "b", name="slice network", progress=False), settings
    )
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in whole.state_dict().items())


def test_the_budget_is_shared():
    half = TrainingSettings(iterations=100, minutes=8.0).part(0.75)
    assert (half.iterations, half.minutes) == (75, 6.0)
    assert TrainingSettings(iterations=1, minutes=None).part(0.1).iterations == 1


def test_what_the_atlases_say_is_where_the_slice_network_starts_from():
    """Without a decoder's say the result is the mean of the atlases' labels, whatever the number of classes."""
    model = SliceUNet(3, atlases=2, decoder=(8, 8, 8, 8), pretrained=False).eval()
    for weights in model.last.parameters():
        torch.nn.init.zeros_(weights)
    labels = torch.nn.functional.one_hot(torch.randint(0, 3, (1, 2, 33, 40)), 3).movedim(-1, 2).float()
    atlases = torch.cat([torch.rand(1, 2, 1, 33, 40), labels[:, :, 1:]], 2).flatten(1, 2)
    logits = model(torch.cat([torch.rand(1, 3, 33, 40), atlases], 1))
    torch.testing.assert_close(logits, 2 * labels.mean(1) - 1)


def test_the_expected_shape_is_where_the_slice_network_starts_from():
    """Without a decoder's say the result is the shape expected of each structure, whatever the number of classes."""
    model = SliceUNet(3, atlases=2, decoder=(8, 8, 8, 8), pretrained=False, shape=True).eval()
    for weights in model.last.parameters():
        torch.nn.init.zeros_(weights)
    distance = torch.full((1, 2, 33, 40), -MAX_DISTANCE)
    distance[0, 0, 3:20, 5:30], distance[0, 1, 20:30, 5:30] = 4.0, 7.0
    logits = model(torch.cat([torch.rand(1, 3 + 2 * 3, 33, 40), 1 + distance / MAX_DISTANCE], 1))
    torch.testing.assert_close(logits[:, 1:], 2 * torch.tanh(distance / 2))
    torch.testing.assert_close(logits[:, 0], -logits[:, 1:].amax(1))
    inside = (distance > 0).int()
    assert torch.equal(logits.argmax(1), inside[:, 0] + 2 * inside[:, 1])


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
    with pytest.raises(OasisError, match=r"^model: estimator.safetensors: expected the weights of this version's SliceUNet"):
        train_slice_network(
            FitContext(discs(2), (1.0, 1.0), SHORT, 1, tmp_path, name="slice network", progress=False),
            replace(SMALL, members=members),
        )


def test_doubt_keeps_the_sure_and_moves_the_edge():
    estimate = torch.tensor([0.0, 0.5, 1.0]).view(1, 1, 3, 1).repeat(4, 1, 8, 24)
    got = perturb_estimate(estimate, torch.Generator().manual_seed(0))
    assert torch.equal((got > 0.5)[estimate == 1], torch.ones_like(got, dtype=torch.bool)[estimate == 1])
    assert not (got > 0.5)[estimate == 0].any()
    assert float(got[estimate == 0.5].std()) > 0.05


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


class Shifted(torch.nn.Module):
    """A joint STM that moves an atlas's label by what the target's estimate lacks of it: only tells that it sees both."""

    def __init__(self):
        super().__init__()
        self.settings, self.unused = JOINT, torch.nn.Parameter(torch.zeros(1))

    def field(self, atlas, target):
        assert atlas.shape[1] == target.shape[1] == 2
        size = tuple(s // 2 for s in atlas.shape[2:])
        strength = 8 * (atlas[:, 1] - target[:, 1]).flatten(1).mean(1).view(-1, *[1] * (atlas.ndim - 1))
        return strength.expand(-1, atlas.ndim - 2, *size)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("vote", [0.0, 0.3, 1.0])
def test_the_joint_vote_formula_by_formula(dims, vote):
    library = discs(dims)
    estimator = Estimator(net(pretrained=False), tta_flip=True)
    image = torch.rand(1, 32, 32, 4, generator=torch.Generator().manual_seed(3))
    grid = Geometry((32, 32, 4), torch.eye(4).double().numpy())
    target = Preprocessed("t", image, None, grid, grid)
    features = torch.randn(4 if dims == 2 else 1, 5, generator=torch.Generator().manual_seed(4))
    segmenter = Segmenter(library, Aligner(Shifted(), batch=2), estimator=estimator, joint=JointSettings(estimate_weight=vote))
    results, chosen, _ = segmenter(target, features, ("estimate", "OASIS-joint"), (3,))
    estimate = estimator.volume(image)
    torch.testing.assert_close(results["estimate", 0].probability, estimate, atol=1e-5, rtol=1e-4)
    assert results["estimate", 0].weights is None
    got, weights, counts = results["OASIS-joint", 3]
    wanted_counts = torch.zeros_like(counts)
    for number, rows in enumerate(chosen.indices):
        here = estimate if dims == 3 else estimate[..., number]
        moved = []
        for row in rows:
            atlas = torch.cat([library.images[row], foreground(library.labels[row][None], 2)[0]])[None]
            onto = torch.cat([image if dims == 3 else image[..., number], here[1:]])[None]
            ddf = warp.resize_ddf(Shifted().field(atlas, onto).half().float(), onto.shape[2:])
            moved.append(warp.warp(one_hot(library.labels[row][None], 2), ddf)[0])
        overlaps = [2 * float((m[1] * here[1]).sum()) / float(m[1].sum() + here[1].sum()) for m in moved]
        want = [o / sum(overlaps) for o in overlaps]
        torch.testing.assert_close(weights[number], torch.tensor(want), atol=1e-4, rtol=1e-4)
        atlases = sum(w * m for w, m in zip(want, moved, strict=True))
        wanted_counts += agreement(here[None], atlases)
        fused = vote * here + (1 - vote) * atlases
        fused = remove_unsupported_components(fused, atlases) if dims == 3 else fused
        torch.testing.assert_close(got if dims == 3 else got[..., number], fused, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(counts, wanted_counts, atol=4, rtol=0)  # a voxel at exactly one half may fall either way


def test_beside_a_target_stands_no_atlas_of_its_own_case():
    library = discs(2, cases=3, per_case=4)
    image = library.images[:4, 0].movedim(0, -1)[None]  # the scan is the first case's
    grid = Geometry((32, 32, 4), torch.eye(4).double().numpy())
    seen = []

    class Watched(Estimator):
        def __call__(self, slices):
            seen.append(slices)
            return super().__call__(slices)

    segmenter = Segmenter(
        library, estimator=Watched(net(pretrained=False, atlases=2), tta_flip=False), joint=JointSettings(atlases=2)
    )
    target = Preprocessed("c0", image, None, grid, grid)
    for barred, expected in (("c0", False), (None, True)):
        segmenter(target, torch.randn(4, 5), ("estimate",), (2,), exclude_case=barred)
        beside = seen.pop()[:, [3, 5]].flatten(0, 1)
        own = any(torch.equal(one, atlas[0]) for one in beside for atlas in library.images[:4])
        assert own is expected


def test_methods_of_a_joint_model_need_one():
    library = discs(3)
    image = torch.rand(1, 32, 32, 4)
    grid = Geometry((32, 32, 4), torch.eye(4).double().numpy())
    plain = Segmenter(library, Aligner(make_registration_network(library, replace(JOINT, joint=False))))
    for method in ("estimate", "OASIS-joint"):
        with pytest.raises(ValueError, match="joint model"):
            plain(Preprocessed("t", image, None, grid, grid), torch.zeros(1, 5), (method,), (2,))


@pytest.mark.parametrize(
    ("given", "key"),
    [
        ({"decoder": (8, 8)}, "decoder"),
        ({"atlases": -1}, "atlases"),
        ({"atlases": 1}, "atlases"),
        ({"slice_budget": 1.0}, "slice_budget"),
        ({"slices_per_step": 0}, "slices_per_step"),
        ({"lr": 0.0}, "lr"),
        ({"encoder_lr": -0.1}, "encoder_lr"),
        ({"estimate_weight": 1.2}, "estimate_weight"),
    ],
)
def test_settings_out_of_range(given, key):
    with pytest.raises(ConfigError, match=rf"joint\.{key}"):
        JointSettings(**given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"methods": ["OASIS-joint"]}, r"registration\.joint=true"),
        ({"registration": {"joint": True}}, "at least 32 voxels"),
        (
            {"registration": {"joint": True}, "preprocessing": {"size": [32, 32, 8]}, "joint": {"atlases": 2}},
            r"joint\.atlases",
        ),
    ],
)
def test_configurations_that_cannot_be(settings, given, message):
    with pytest.raises(ConfigError, match=message):
        settings(given)


def test_nothing_but_the_seed_decides_the_stms_start():
    library = discs(3).with_estimates(foreground(discs(3).labels, 2))
    a, b = (
        train_registration(FitContext(library, (1.0,) * 3, SHORT, 5, None, progress=False), JOINT, RegistrationLoss())
        for _ in range(2)
    )
    assert all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())


@pytest.mark.parametrize("size", [(48, 48), (40, 64)])
def test_a_turned_slice_turns_back(size):
    """A smooth blob well inside comes back; on the way it is where the transform says, in voxels, also on oblong slices."""
    x, y = torch.meshgrid(*(torch.arange(n) - (n - 1) / 2 for n in size), indexing="ij")
    blob = torch.exp(-((x - 6) ** 2 + (y + 4) ** 2) / 18)[None, None]
    for angle, scale in VIEWS:
        there = rotate_and_scale(blob, angle, scale)
        torch.testing.assert_close(rotate_and_scale(there, angle, scale, back=True), blob, atol=0.04, rtol=0)
        total = there.sum()
        centre = float((there * x).sum() / total), float((there * y).sum() / total)
        # what is at p in the turned slice was at scale * R p; torch's grid counts the last axis first
        cos, sin = math.cos(angle), math.sin(angle)
        back = (scale * (sin * centre[1] + cos * centre[0]), scale * (cos * centre[1] - sin * centre[0]))
        assert back == pytest.approx((6, -4), abs=0.05)


def test_views_are_a_mean_over_turned_copies_where_there_is_something_to_see():
    model = net(pretrained=False)
    slices = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(5))
    one, more = Estimator(model, tta_flip=False), Estimator(model, tta_flip=False, tta_views=2)
    copies = [one(slices)]
    for angle, scale in VIEWS[:2]:
        seen = rotate_and_scale(one(rotate_and_scale(slices, angle, scale))[:, 1:], angle, scale, back=True)
        copies.append(torch.cat([1 - seen.sum(1, keepdim=True), seen], 1))
    torch.testing.assert_close(more(slices), torch.stack(copies).mean(0), atol=1e-5, rtol=1e-4)
    assert torch.equal(more.without_views()(slices), one(slices))

    class Blank(torch.nn.Module):
        calls = 0

        def forward(self, image):
            Blank.calls += 1
            return torch.stack([torch.full(image.shape[2:], 9.0), torch.zeros(image.shape[2:])]).expand(len(image), -1, -1, -1)

    assert float(Estimator(Blank(), tta_flip=False, tta_views=4)(slices)[:, 1].max()) < 1e-3
    assert Blank.calls == 1


@pytest.mark.parametrize("dims", [2, 3])
def test_slices_near_a_structure(dims):
    library = discs(dims)
    labels = torch.zeros_like(library.labels)
    if dims == 3:
        labels = labels.new_zeros(len(labels), 1, 32, 32, 9)
        labels[1, 0, 16, 16, 6] = 1
        library = replace(library, images=torch.zeros(labels.shape), labels=labels)
        near = slices_near_structure(library)
        assert near[1].tolist() == [False] * 4 + [True] * 5
        assert near.sum() == 5
        return
    row = 1
    labels[row, 0, 16, 16] = 1
    near = slices_near_structure(replace(library, labels=labels))
    here = (library.cases[row], int(library.slices[row]))
    assert near.tolist() == [
        case == here[0] and abs(int(z) - here[1]) <= 2 for case, z in zip(library.cases, library.slices, strict=True)
    ]
    assert near[row]


def test_slices_far_from_structures_are_drawn_less_often():
    library = discs(2)
    labels = torch.zeros_like(library.labels)
    labels[0, 0, 16, 16] = 1
    library = replace(library, labels=labels)
    near = slices_near_structure(library)
    trainer = _SliceTrainer(
        library,
        net(pretrained=False),
        replace(SMALL, slices_per_step=4000, empty_slice_weight=0.25),
        TrainingSettings(),
        0,
        None,
        (1.0, 1.0),
        True,
    )
    library_rows = []
    trainer.library = replace(library, images=torch.arange(len(library)).view(-1, 1, 1, 1).expand_as(library.images).float())
    image, _ = trainer._draw(torch.Generator().manual_seed(0))
    library_rows = image[:, 1, 0, 0].long()
    share = float(near[library_rows].float().mean())
    want = float(near.sum()) / float(near.sum() + 0.25 * (~near).sum())
    assert share == pytest.approx(want, abs=0.03)


def test_the_volume_network_is_part_of_what_decides_the_weights():
    plain, fine = JointSettings(), JointSettings(volume_network="DynU-Net3D")
    assert plain.identity() != fine.identity()
    assert JointSettings(volume_network="U-Net3D").identity() == plain.identity()
    with pytest.raises(ConfigError, match=r"joint\.volume_network: expected one of \['U-Net3D', 'DynU-Net3D'\], found 'U-Net2D'"):
        JointSettings(volume_network="U-Net2D")
