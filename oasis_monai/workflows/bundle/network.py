"""A trained model as one ``torch`` module that selects, aligns, weighs and fuses; its state dict holds the atlases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import nn

from oasis_monai.atlases.features import Embedder, Photograph, embedder
from oasis_monai.atlases.library import AtlasLibrary, FineAtlas
from oasis_monai.atlases.selection import DISTANCES
from oasis_monai.data.types import Geometry, Preprocessed
from oasis_monai.networks.encoders import NAMES, untrained_network
from oasis_monai.networks.registration import RegistrationSettings, SpatialTransformModel
from oasis_monai.networks.segmentation import NetworkSettings, Predictor, make_network
from oasis_monai.networks.slice_unet import WINDOW, JointSettings, make_slice_network
from oasis_monai.segmentation.build import SegmenterOptions, TrainedNetworks, build_segmenter
from oasis_monai.segmentation.learned_fusion import LearnedFusion
from oasis_monai.segmentation.methods import LOA, METHODS, check_methods, result_keys
from oasis_monai.segmentation.pipeline import Scan, segment_case
from oasis_monai.segmentation.segmenter import Segmenter
from oasis_monai.settings import Settings
from oasis_monai.transforms.spatial import as_plain_tensor
from oasis_monai.utils.config import make_group
from oasis_monai.utils.errors import ConfigError
from oasis_monai.workflows.bundle.sampling import check_dropout, drawn_atlases, thinned

UNSEEN = torch.empty(0, dtype=torch.float16)
"""In the place of an atlas's image on the fine grid: of atlases that are aligned already only the label is needed there."""
IMAGENET = ("efficientnet-lite0", "densenet121")


class OasisNetwork(nn.Module):
    """A whole model as a network: preprocessed scans in, class probabilities out. For inference; nothing in it is trained.

    All arguments are plain numbers and names, and decide the shape of every tensor of the state dict; a new network holds no
    atlases until a state dict is loaded.

    Args:
        size: the working grid (x, y, z), or (x, y) of a model whose atlases are slices.
        classes: C, background included.
        atlases, features: number of atlases and length of their feature vectors.
        embedding, distance: what similarity means, see :class:`oasis_monai.atlases.features.FeatureSettings`.
        method, n: how many atlases are fused, and how (:data:`oasis_monai.segmentation.methods.METHODS`).
        registration: :class:`oasis_monai.networks.registration.RegistrationSettings` as a dict.
        joint: of a joint model, :class:`oasis_monai.networks.slice_unet.JointSettings` as a dict.
        volume_channels: feature channels of a joint model's volume network.
        temperature: of ``OASIS-conditioned``.
        pairs: how many overlaps of atlas pairs are stored; others are computed when they are needed.
        batch: atlases aligned at once.
        in_channels: of an image.
        learned_fusion: the learned fusion of n atlases, :class:`oasis_monai.segmentation.learned_fusion.LearnedFusion` as a dict.
        fine_factor: voxels of the fine grid for each working voxel along x, y, z (docs/explanation/resolution.md), if any.
        dropout: in training mode, of atlases and of channels of the slice networks, see :mod:`.sampling`.

    Shapes: ``forward((B, in_channels, x, y, z)) -> (B, C, x, y, z)`` float32, sum 1 over C; a model of slices takes any z. With a
    fine grid x, y, z are its voxels, and (B, 2 in_channels, x, y, z) goes in: the image there, then the image on the working grid
    with every voxel repeated ``fine_factor`` times. The metadata of a ``MetaTensor`` stays with the result.

    Raises:
        ConfigError: an argument that cannot work.
        ValueError: an image of another shape.

    Examples:
        >>> import torch
        >>> from oasis_monai import OasisNetwork
        >>> registration = {"channels": [4, 8], "field_stride": [2], "joint": False}
        >>> features = {"features": 768, "embedding": "intensity", "distance": "l2"}
        >>> network = OasisNetwork((32, 32, 8), 2, 5, **features, method="majority", n=3, registration=registration)
        >>> network(torch.rand(1, 1, 32, 32, 8)).shape
        torch.Size([1, 2, 32, 32, 8])
    """

    images: torch.Tensor
    labels: torch.Tensor
    features: torch.Tensor
    estimates: torch.Tensor | None
    pairs: torch.Tensor
    values: torch.Tensor
    fine_labels: torch.Tensor | None

    def __init__(
        self,
        size: Sequence[int],
        classes: int,
        atlases: int,
        features: int,
        embedding: str,
        distance: str,
        method: str,
        n: int,
        registration: Mapping[str, Any],
        joint: Mapping[str, Any] | None = None,
        volume_channels: Sequence[int] | None = None,
        temperature: float = 0.1,
        pairs: int = 0,
        batch: int = 8,
        in_channels: int = 1,
        learned_fusion: Mapping[str, Any] | None = None,
        fine_factor: Sequence[int] | None = None,
        structures: Sequence[Sequence[int]] = (),
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.dropout = check_dropout(dropout)
        for key, value, known in (("embedding", embedding, NAMES), ("distance", distance, DISTANCES)):
            if value not in known:
                raise ConfigError(key, f"one of {list(known)}", value)
        (self.method,) = check_methods([method])
        if not 1 <= n <= atlases:
            raise ConfigError("n", f"1 to {atlases}, the network's atlases", n)
        self.size, self.classes, self.n, self.in_channels = tuple(size), classes, n, in_channels
        self.structures = tuple(tuple(own) for own in structures)
        self.fine_factor = None if fine_factor is None else tuple(fine_factor)
        if self.fine_factor is not None and len(self.fine_factor) != len(self.size):
            raise ConfigError("fine_factor", f"{len(self.size)} values, one along each axis", list(self.fine_factor))
        self.embedding_name, self.distance, self.temperature, self.batch = embedding, distance, temperature, batch
        stm = make_group(RegistrationSettings, registration, "registration")
        self.joint = None if joint is None else make_group(JointSettings, joint, "joint")
        try:
            self.fusions = {} if learned_fusion is None else {n: LearnedFusion.from_json(learned_fusion)}
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError("learned_fusion", "weights of the networks and of the atlases", learned_fusion) from error
        if stm.joint and self.joint is None:
            raise ConfigError("joint", "the settings of a joint model", None)
        self.stm = SpatialTransformModel(self.size, stm, classes - 1 if stm.joint else 0, in_channels)
        self.embedding = untrained_network(embedding).requires_grad_(False) if embedding in IMAGENET else None
        self.slice_network = None
        if self.joint is not None:
            self.slice_network = make_slice_network(classes, self.joint, False, channels=in_channels, structures=self.structures)
        self.volume_settings, self.volume_network = None, None
        if volume_channels is not None and self.joint is not None:
            kind = self.joint.volume_network
            channels: dict[str, Any] = {NetworkSettings.kind(kind): tuple(volume_channels)}
            self.volume_settings = NetworkSettings(**channels)
            self.volume_network = make_network(kind, classes, self.volume_settings, in_channels, self.structures)
        self.register_buffer("images", torch.zeros(atlases, in_channels, *self.size))
        self.register_buffer("labels", torch.zeros(atlases, 1, *self.size, dtype=torch.uint8))
        self.register_buffer("features", torch.zeros(atlases, features))
        self.register_buffer("pairs", torch.zeros(pairs, 2, dtype=torch.int64))
        self.register_buffer("values", torch.zeros(pairs, dtype=torch.float64))
        seen = (
            stm.joint and LOA in METHODS[method].needs
        )  # an atlas in the place of a target is seen with what the networks make of it
        half = torch.zeros(atlases, classes - 1, *self.size, dtype=torch.float16)
        self.register_buffer("estimates", half if seen else None)
        fine = None if self.fine_factor is None else torch.zeros(atlases, 1, *self.grid, dtype=torch.uint8)
        self.register_buffer("fine_labels", fine)

    @property
    def grid(self) -> tuple[int, ...]:
        """Voxels along x, y (, z) of what the network takes: the fine grid, or the working grid where there is none."""
        return tuple(n * f for n, f in zip(self.size, self.fine_factor or (1,) * len(self.size), strict=True))

    def fill(self, segmenter: Segmenter, embed: Embedder) -> None:
        """Take over the weights and atlases of a model."""
        assert segmenter.aligner is not None
        self.stm.load_state_dict(segmenter.aligner.model.state_dict())
        if isinstance(embed.network, Photograph) and self.embedding is not None:
            self.embedding.load_state_dict(embed.network.network.state_dict())
        if segmenter.estimator is not None and self.slice_network is not None:
            self.slice_network.load_state_dict(segmenter.estimator.model.state_dict())
            if isinstance(segmenter.estimator.volume_network, Predictor) and self.volume_network is not None:
                self.volume_network.load_state_dict(segmenter.estimator.volume_network.model.state_dict())
        held = {k: getattr(segmenter.library, k) for k in ("images", "labels", "features", "estimates")}
        held |= segmenter.loa.tensors() if len(self.pairs) and segmenter.loa is not None else {}
        for name, value in held.items():
            if getattr(self, name) is not None:
                getattr(self, name).copy_(value)
        if self.fine_labels is not None:
            for own, atlas in zip(self.fine_labels, segmenter.library.fine, strict=True):
                own.copy_(atlas.label)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        check_input(image, self.grid, self.in_channels * (1 if self.fine_factor is None else 2))
        segmenter, embed = self._segmenter(image.device), self._embedder(image.device)
        key = result_keys((self.method,), (self.n,))[0]
        probabilities = []
        for one in as_plain_tensor(image).float().cpu():
            scan = Scan(self._target(one))  # preprocessed: the grid stays where it is
            probabilities.append(segment_case(segmenter, scan, embed, (self.method,), (self.n,)).results[key].probability)
        return like(torch.stack(probabilities).to(image.device), image)

    def _target(self, image: torch.Tensor) -> Preprocessed:
        """What one image of the input says of a scan; where it lies in space is not known here, nor needed."""

        def nowhere(image: torch.Tensor) -> Preprocessed:
            x, y, z = image.shape[1:]
            grid = Geometry((x, y, z), np.eye(4))
            return Preprocessed("", image, None, grid, grid)

        if self.fine_factor is None:
            return nowhere(image)
        x, y, z = self.fine_factor
        working = image[self.in_channels :, ::x, ::y, ::z].contiguous()
        return replace(nowhere(working), fine=nowhere(image[: self.in_channels].half()))  # as the preprocessing keeps it

    def _embedder(self, device: torch.device) -> Embedder:
        if self.embedding is None:
            return embedder(self.embedding_name, device=str(device))
        return Embedder("", Photograph(self.embedding.to(device).eval()), device, 32)

    def _segmenter(self, device: torch.device) -> Segmenter:
        """The parts as they are now, put together once: a state dict loaded, a weight or a device changed since the last call
        counts."""
        if self.training and self.dropout > 0:  # drawn anew
            return self._built(device)
        made = _BUILT.get(self)
        if made is not None and made.device == device and made.is_of(self):
            for part in filter(None, (self.stm, self.slice_network, self.volume_network)):
                part.eval()
            return made.segmenter
        segmenter = self._built(device)
        tensors = [*self.parameters(), *self.buffers()]
        _BUILT[self] = _Built(device, tensors, _versions(tensors), segmenter)
        return segmenter

    def _built(self, device: torch.device) -> Segmenter:
        library = AtlasLibrary(
            self.images.cpu(),
            self.labels.cpu(),
            self.features.cpu(),
            tuple(map(str, range(len(self.images)))),
            torch.full((len(self.images),), -1),
            self.classes,
            estimates=None if self.estimates is None else self.estimates.cpu(),
            fine=() if self.fine_labels is None else tuple(FineAtlas(UNSEEN, label) for label in self.fine_labels.cpu()),
            structures=self.structures,
        )
        drawn, slices = self.training and self.dropout > 0, self.slice_network
        if drawn:
            least = max(self.n, 0 if self.joint is None else self.joint.atlases)
            library = library.subset(drawn_atlases(len(library), least, self.dropout))
            slices = None if slices is None else thinned(slices, self.dropout)
        options = SegmenterOptions(
            distance=self.distance,
            temperature=self.temperature,
            batch=self.batch,
            joint=self.joint or JointSettings(),
            network=self.volume_settings or NetworkSettings(),
            fusions=self.fusions,
            window=None if self.fine_factor is None else WINDOW,
        )
        networks = TrainedNetworks(self.stm, slices, self.volume_network)
        segmenter = build_segmenter(library, networks, options, device)
        if segmenter.loa is not None and not drawn:  # pairs are numbered as all atlases are
            segmenter.loa.learn({"pairs": self.pairs, "values": self.values})
        return segmenter


class _Built(NamedTuple):
    """A network's segmenter on a device, and the tensors it was made of; they are held, so that no other can come to their
    place."""

    device: torch.device
    tensors: list[torch.Tensor]
    versions: list[int]
    segmenter: Segmenter

    def is_of(self, network: nn.Module) -> bool:
        """Whether the network's tensors are the same, and unchanged."""
        now = [*network.parameters(), *network.buffers()]
        same = len(now) == len(self.tensors) and all(a is b for a, b in zip(now, self.tensors, strict=True))
        return same and _versions(now) == self.versions


_BUILT: WeakKeyDictionary[nn.Module, _Built] = WeakKeyDictionary()
"""Not an attribute: a copy or a pickle of a network must not hold it."""


def _versions(tensors: Sequence[torch.Tensor]) -> list[int]:
    """How often each tensor has been changed in place; inference tensors do not tell, and count as never the same."""
    return [-id(tensors) if tensor.is_inference() else tensor._version for tensor in tensors]


def network_arguments(settings: Settings, segmenter: Segmenter, method: str, n: int, batch: int) -> dict[str, Any]:
    """The arguments of the :class:`OasisNetwork` of a model: numbers, and names out of closed lists; never free text."""
    volume_network = segmenter.estimator.volume_network if segmenter.estimator is not None else None
    plain_settings = settings.to_json()
    return {
        "size": list(segmenter.library.images.shape[2:]),
        "classes": segmenter.library.classes,
        "atlases": len(segmenter.library),
        "features": segmenter.library.features.shape[1],
        "embedding": settings.features.name,
        "distance": settings.features.distance,
        "method": method,
        "n": n,
        "registration": plain_settings["registration"],
        "joint": None if segmenter.estimator is None else plain_settings["joint"],
        "volume_channels": None if volume_network is None else list(settings.network.channels(settings.joint.volume_network)),
        "temperature": settings.temperature,
        "pairs": len(segmenter.loa) if LOA in METHODS[method].needs and segmenter.loa is not None else 0,
        "batch": batch,
        "in_channels": segmenter.library.channels,
        **({} if settings.preprocessing.fine_factor is None else {"fine_factor": list(settings.preprocessing.fine_factor)}),
        **({"structures": [list(own) for own in segmenter.library.structures]} if segmenter.library.structures else {}),
        "learned_fusion": segmenter.fusions[n].to_json() if method == "OASIS-joint" and n in segmenter.fusions else None,
    }


def check_input(image: torch.Tensor, grid: Sequence[int], channels: int) -> None:
    """Refuse an image that is not (B, channels, \\*grid), or for a grid of slices (B, channels, x, y, any z).

    Raises:
        ValueError: telling both shapes.
    """
    shape = tuple(image.shape)
    if len(shape) != 5 or shape[1] != channels or shape[2 : 2 + len(grid)] != tuple(grid):
        wanted = ", ".join(map(str, (*grid, "any z")[:3]))
        raise ValueError(f"image: expected (B, {channels}, {wanted}), preprocessed as the model's atlases, found {shape}")


def like(probability: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
    """``probability`` with the metadata of an image, where it has any."""
    from monai.data.meta_tensor import MetaTensor

    return MetaTensor(probability).copy_meta_from(image) if isinstance(image, MetaTensor) else probability
