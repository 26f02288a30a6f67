"""Feature vectors of slices and volumes from ImageNet networks, for atlas selection.

An ImageNet network sees each slice as a photograph: windowed to 0..1, upright, grey repeated to three channels, ImageNet mean
and standard deviation, 224 x 224. Of a volume it sees pictures of 96 x 96 with three slices as colours. The vector is the
network's 1000 logits (the paper: "pre-trained DenseNet-121 ... feature vector with length of 1000"). Without the ImageNet weights
there is an error; weights are never silently random.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F

from oasis_monai.data.types import Preprocessed
from oasis_monai.networks.encoders import NAMES, _densenet121, _efficientnet_lite0
from oasis_monai.networks.layers import without_batch_norms
from oasis_monai.utils.errors import ConfigError, DataError, Fault
from oasis_monai.utils.files import digest
from oasis_monai.utils.tensor_files import load_if_whole, save_tensors

INPUT = 224  # pixels along either side, the size both networks were trained at
VOLUME_INPUT = (
    96  # pixels a side for slices of volumes: as good atlases as with 224 (docs/results/speed.md), in a sixth of the time
)
INTENSITY = 16  # side of the pooled image of "intensity"
THUMBNAIL = 16  # side of a thumbnail: enough to tell the slices of one scan apart
RANDOM = 64  # length of a feature vector of "random"
WINDOW = (0.01, 0.99)  # quantiles of a slice that become 0 and 1: a coil's bright rim must not decide the contrast
PREPARATION = 4  # in every cache name; raise it when slices would reach the network in another form
COLOURS = 3  # slices of a volume per picture, as red, green and blue: a third of the forward passes
PICTURES = 5  # pictures per volume: they select atlases as good as 16 grey slices do (docs/results/speed.md)
MEAN = (0.485, 0.456, 0.406)  # ImageNet
STD = (0.229, 0.224, 0.225)
Network = Callable[[torch.Tensor, int], torch.Tensor]


@dataclass(frozen=True, eq=False)
class Embedder:
    """Callable: (B, C, X, Y) pictures of one slice (C = 1) or of three as colours (C = 3), of any intensity scale, axes towards
    R and A -> (B, F) float32 on the CPU.

    Vectors do not depend on the scale and offset of a slice's intensities, nor on the other pictures of the call.

    Args:
        key: name, checksum of the weights and version of the input preparation; part of the key of whatever is cached.
        network: (B, C, X, Y) in 0..1 upright (rows from anterior to posterior), side in pixels it works at -> (B, F).
        device: where ``network`` lives.
        batch: pictures per forward pass; bounds memory.
        cache: folder that keeps the vectors of every call, by the bytes of its slices; None keeps nothing.

    Raises:
        DataError: a slice holds NaN or infinity.
    """

    key: str
    network: Network
    device: torch.device
    batch: int
    cache: Path | None = None

    def __call__(self, slices: torch.Tensor, side: int | None = None) -> torch.Tensor:
        """``side``: pixels along either side of what the network sees, where it sees photographs; None: 224."""
        side = side or INPUT
        if self.cache is None:
            return self._embed(slices, side)
        content = hashlib.sha256(slices.detach().cpu().contiguous().numpy().tobytes()).hexdigest()
        path = self.cache / f"{digest([self.key, side, content, list(slices.shape), str(slices.dtype)], 40)}.safetensors"
        stored = load_if_whole(path)
        if stored is not None:
            return stored[0]["vectors"]
        vectors = self._embed(slices, side)
        save_tensors(path, {"vectors": vectors})
        return vectors

    @torch.no_grad()
    def _embed(self, slices: torch.Tensor, side: int) -> torch.Tensor:
        if slices.ndim != 4 or slices.shape[1] not in (1, COLOURS) or 0 in slices.shape:
            raise ValueError(f"slices: expected (B, 1 or 3, X, Y) with none of them 0, got {tuple(slices.shape)}")
        parts = []
        for part in slices.split(self.batch):
            part = part.to(self.device, torch.float32)
            if not bool(torch.isfinite(part).all()):
                raise DataError(Fault("", "image", "finite intensities", "NaN or infinity", "correct the image file"))
            parts.append(self.network(upright(window(part)), side).float().cpu())
        return torch.cat(parts)


def window(slices: torch.Tensor) -> torch.Tensor:
    """(B, C, X, Y) -> same shape in 0..1: each slice's 1 % and 99 % quantiles become 0 and 1, outside is clipped.

    Where the two agree (a small structure on padding) minimum and maximum take over; a constant slice becomes 0.
    """
    flat = slices.flatten(2)
    last = flat.shape[2] - 1
    # kthvalue, not quantile: that one refuses more than 2^24 elements
    low, high = (flat.kthvalue(1 + round(q * last), dim=2).values for q in WINDOW)
    narrow = high <= low
    low, high = torch.where(narrow, flat.amin(2), low), torch.where(narrow, flat.amax(2), high)
    span = torch.where(high > low, high - low, torch.ones_like(low))
    return ((slices - low[..., None, None]) / span[..., None, None]).clamp(0, 1)


def upright(slices: torch.Tensor) -> torch.Tensor:
    """(B, C, X, Y) with axes towards R and A -> (B, C, Y, X), anterior in the first row, as a reader (and a network that was
    trained on upright photographs) expects it. Measured on 34 PROMISE12 cases: 2 to 4 points of FwoW's whole-gland
    DSC under patient folds, -0.5 (n = 1) to +2 (n = 6) under slice folds."""
    return slices.transpose(-1, -2).flip(-2)


def slice_features(image: torch.Tensor, embed: Embedder, side: int | None = None) -> torch.Tensor:
    """(c, x, y, z) volume -> (z, c * F) float32, one vector per axial slice, in slice order.

    Of several channels the vectors stand one behind the other, each of length 1, so that all have the same say in a distance.
    """
    if len(image) == 1:
        return embed(image.permute(3, 0, 1, 2), side)
    return torch.cat([F.normalize(slice_features(channel, embed, side), dim=1) for channel in image.split(1)], 1)


def volume_features(image: torch.Tensor, embed: Embedder, pictures: int = PICTURES) -> torch.Tensor:
    """(c, x, y, z) volume -> (c * F,) float32: of each channel the mean of the L2-normalised vectors of its pictures.

    A picture shows three neighbouring ones of ``3 * pictures`` evenly spaced slices (the centres of that many equal parts of the
    z axis) as its colours, so volumes with many slices cost no more and the number of slices does not enter the mean. Short
    volumes have as few pictures as show every slice. Constant slices (padding) are left out unless the whole volume is constant.
    """
    if len(image) > 1:
        return torch.cat([volume_features(channel, embed, pictures) for channel in image.split(1)])
    varied = (image.flatten(0, 2).amax(0) > image.flatten(0, 2).amin(0)).nonzero()[:, 0]
    if not len(varied):
        varied = varied.new_zeros(1)
    take = COLOURS * min(pictures, -(-len(varied) // COLOURS))
    rows = varied[((torch.arange(take, device=image.device, dtype=torch.float64) + 0.5) * len(varied) / take).long()]
    shown = image[0].index_select(2, rows).permute(2, 0, 1)
    return F.normalize(embed(shown.unflatten(0, (-1, COLOURS)), VOLUME_INPUT), dim=1).mean(0)


def embedder(name: str, weights: str | Path | None = None, device: str = "cpu", batch: int = 8) -> Embedder:
    """The embedder called ``name``.

    Args:
        name: ``"efficientnet-lite0"`` (1000 ImageNet logits, weights come with the package, no network needed),
            ``"densenet121"`` (1000 ImageNet logits, MONAI's network with torchvision's weights, as in the paper),
            ``"intensity"`` (the windowed slice pooled to 16 x 16, no weights) or ``"random"`` (a random vector by the slice's
            content: atlases chosen at random, the ablation of selection).
        weights: state dict of the network (torchvision's or MONAI's names for densenet121). None: the package's file
            for efficientnet-lite0; for densenet121 torchvision's, from torch's hub folder or downloaded there, its
            sha256 checked.
        device: where the network runs; vectors come back on the CPU.
        batch: slices per forward pass; more than a few at once fall out of a CPU's cache.

    Raises:
        ConfigError: unknown name, batch below 1, or weights for an embedder that has none.
        DataError: ``weights`` is absent, unreadable, or not a state dict of exactly this network.
        OasisError: densenet121's weights are neither given, nor cached, nor could they be downloaded.
    """
    if batch < 1:
        raise ConfigError("features.batch", "at least 1", batch)
    where = torch.device(device)
    if name == "efficientnet-lite0":
        network, digest = _efficientnet_lite0(weights)
    elif name == "densenet121":
        network, digest = _densenet121(weights)
    elif name in ("intensity", "random"):
        if weights is not None:
            raise ConfigError("features.weights", f"null, as {name} features have no weights", str(weights))
        size, function = (INTENSITY, _pooled) if name == "intensity" else (RANDOM, _random)
        return Embedder(f"{name}-{size}-v{PREPARATION}", function, where, batch)
    else:
        raise ConfigError("features.name", f"one of {', '.join(NAMES)}", name)
    return Embedder(f"{name}-{digest[:16]}-v{PREPARATION}", Photograph(network.eval().to(where)), where, batch)


class Photograph:
    """Slices in 0..1, one in grey or three as colours, through an ImageNet network."""

    def __init__(self, network: torch.nn.Module) -> None:
        self.network = network.requires_grad_(False)
        # what runs; depthwise convolutions on a CPU are three times as fast with the channels last
        self._fused = without_batch_norms(network).to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def __call__(self, slices: torch.Tensor, side: int) -> torch.Tensor:
        photo = F.interpolate(slices, size=(side, side), mode="bilinear", align_corners=False, antialias=True)
        mean, std = (torch.tensor(v, device=photo.device).view(1, 3, 1, 1) for v in (MEAN, STD))
        colours = ((photo.expand(-1, 3, -1, -1) - mean) / std).contiguous(memory_format=torch.channels_last)
        result: torch.Tensor = self._fused(colours)
        return result


def _pooled(slices: torch.Tensor, _: int) -> torch.Tensor:
    return F.adaptive_avg_pool2d(slices, INTENSITY).flatten(1)


def thumbnails(images: torch.Tensor, part: int = 1024) -> torch.Tensor:
    """(N, c, x, y) slices -> (N, c * 256) float16: small pictures of mean 0 and length 1 (all channels together), whose distance
    tells their correlation (the mean over the channels)."""
    channels = images.shape[1]
    small = torch.empty(len(images), channels * THUMBNAIL**2, dtype=torch.float16)
    for rows, some in zip(small.split(part), images.split(part), strict=True):
        pooled = F.adaptive_avg_pool2d(some.float(), THUMBNAIL).flatten(2)
        rows.copy_(F.normalize(pooled - pooled.mean(2, keepdim=True), dim=2).flatten(1) / math.sqrt(channels))
    return small


def _random(slices: torch.Tensor, _: int) -> torch.Tensor:
    """A direction at random for every slice, the same whenever the slice is."""
    seeds = [int.from_bytes(hashlib.sha256(s.cpu().contiguous().numpy().tobytes()).digest()[:7], "big") for s in slices]
    return torch.stack([torch.randn(RANDOM, generator=torch.Generator().manual_seed(seed)) for seed in seeds])


def target_features(target: Preprocessed, spatial_dims: int, embed: Embedder) -> torch.Tensor:
    """(T, F) features of a target: one row for a volume, one per slice."""
    return slice_features(target.image, embed) if spatial_dims == 2 else volume_features(target.image, embed)[None]


@dataclass(frozen=True)
class FeatureSettings:
    """How similar two images are, which decides the atlases to fuse. The fields are the keys of ``conf/features``.

    Args:
        name: ``efficientnet-lite0`` or ``densenet121`` (ImageNet logits), ``intensity`` (a pooled image) or ``random`` (the
            ablation), see :func:`oasis_monai.atlases.features.embedder`.
        weights: file of the network's weights; None for those that install with the package or are downloaded once.
        distance: ``l2``, ``zscore`` or ``variance``, see :func:`oasis_monai.atlases.selection.nearest`.
    """

    name: str = "efficientnet-lite0"
    weights: str | None = None
    distance: str = "l2"
