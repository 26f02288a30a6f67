"""The segmentation networks of a joint model as one ``torch`` module: no atlas, nothing of any training scan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from oasis_monai.data.types import Geometry, Preprocessed
from oasis_monai.networks.segmentation import NetworkSettings, Predictor, make_network
from oasis_monai.networks.slice_unet import WINDOW, JointSettings, make_slice_network, with_neighbours
from oasis_monai.segmentation.build import SegmenterOptions, TrainedNetworks, build_estimator
from oasis_monai.segmentation.estimate import Estimator, see
from oasis_monai.segmentation.methods import needs_atlases
from oasis_monai.segmentation.packed import mean_of
from oasis_monai.segmentation.segmenter import Segmenter
from oasis_monai.settings import Settings
from oasis_monai.transforms.spatial import as_plain_tensor
from oasis_monai.utils.config import make_group
from oasis_monai.utils.errors import ConfigError
from oasis_monai.workflows.bundle.network import check_input, like
from oasis_monai.workflows.bundle.sampling import check_dropout, thinned

METHOD = "estimate"


class EstimateNetwork(nn.Module):
    """The method ``estimate`` as a network: preprocessed scans in, class probabilities out. For inference.

    Args:
        size: the working grid (x, y, z), or (x, y) of a model whose atlases are slices.
        classes: C, background included.
        joint: :class:`oasis_monai.networks.slice_unet.JointSettings` as a dict.
        volume_channels: feature channels of the volume network; None without one.
        in_channels: of an image.
        fine_factor, structures: as of :class:`.OasisNetwork`.
        dropout: in training mode, see :mod:`.sampling`.

    Shapes: as of :class:`.OasisNetwork`.

    Raises:
        ConfigError: an argument that cannot work.
        ValueError: an image of another shape.

    Examples:
        >>> import torch
        >>> from oasis_monai.workflows.bundle import EstimateNetwork
        >>> network = EstimateNetwork((32, 32, 8), 2, {"decoder": [8, 8, 8, 8]}, volume_channels=[4, 8])
        >>> network(torch.rand(1, 1, 32, 32, 8)).shape
        torch.Size([1, 2, 32, 32, 8])
    """

    def __init__(
        self,
        size: Sequence[int],
        classes: int,
        joint: Mapping[str, Any],
        volume_channels: Sequence[int] | None = None,
        in_channels: int = 1,
        fine_factor: Sequence[int] | None = None,
        structures: Sequence[Sequence[int]] = (),
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.size, self.classes, self.in_channels = tuple(size), classes, in_channels
        self.fine_factor = None if fine_factor is None else tuple(fine_factor)
        self.dropout = check_dropout(dropout)
        self.joint = make_group(JointSettings, joint, "joint")
        if self.joint.atlases:
            raise ConfigError("joint.atlases", "0: there is no atlas to show beside a slice", self.joint.atlases)
        if self.fine_factor is not None and len(self.fine_factor) != len(self.size):
            raise ConfigError("fine_factor", f"{len(self.size)} values, one along each axis", list(self.fine_factor))
        members = tuple(tuple(own) for own in structures)
        self.slice_network = make_slice_network(classes, self.joint, False, channels=in_channels, structures=members)
        self.volume_settings, self.volume_network = NetworkSettings(), None
        if volume_channels is not None:
            kind = self.joint.volume_network
            channels: dict[str, Any] = {NetworkSettings.kind(kind): tuple(volume_channels)}
            self.volume_settings = NetworkSettings(**channels)
            self.volume_network = make_network(kind, classes, self.volume_settings, in_channels, members)

    @property
    def grid(self) -> tuple[int, ...]:
        """Voxels along x, y (, z) of what the network takes."""
        return tuple(n * f for n, f in zip(self.size, self.fine_factor or (1,) * len(self.size), strict=True))

    def fill(self, segmenter: Segmenter) -> None:
        """Take over the weights of a model."""
        assert segmenter.estimator is not None
        self.slice_network.load_state_dict(segmenter.estimator.model.state_dict())
        if isinstance(segmenter.estimator.volume_network, Predictor) and self.volume_network is not None:
            self.volume_network.load_state_dict(segmenter.estimator.volume_network.model.state_dict())

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        check_input(image, self.grid, self.in_channels * (1 if self.fine_factor is None else 2))
        estimator = self._estimator(image.device)
        found = [self._one(estimator, one) for one in as_plain_tensor(image).float().cpu()]
        return like(torch.stack(found).to(image.device), image)

    @torch.inference_mode()
    def _estimate(self, estimator: Estimator, image: torch.Tensor) -> torch.Tensor:
        """(C, x, y, z) of one image, as :meth:`.Segmenter.estimate` has it."""
        if len(self.size) == 2:
            return estimator(with_neighbours(image)).permute(1, 2, 3, 0).contiguous()
        if self.fine_factor is None:
            return see(estimator, _placed(image)).networks.mean(0)
        x, y, z = self.fine_factor
        working = image[self.in_channels :, ::x, ::y, ::z].contiguous()
        fine = estimator.on_both_grids(working, image[: self.in_channels].half()).fine
        assert fine is not None
        return mean_of(fine)

    def _one(self, estimator: Estimator, image: torch.Tensor) -> torch.Tensor:
        return self._estimate(estimator, image).clone()  # outside inference mode: it can be trained on

    def _estimator(self, device: torch.device) -> Estimator:
        options = SegmenterOptions(
            joint=self.joint, network=self.volume_settings, window=None if self.fine_factor is None else WINDOW
        )
        slices = thinned(self.slice_network, self.dropout) if self.training and self.dropout else self.slice_network
        made = build_estimator(TrainedNetworks(None, slices, self.volume_network), options, device)
        assert made is not None
        return made


def estimate_arguments(settings: Settings, segmenter: Segmenter, method: str | None) -> dict[str, Any]:
    """The arguments of the :class:`EstimateNetwork` of a model.

    Raises:
        ConfigError: the model or the method cannot do without atlases.
    """
    if method is not None and needs_atlases([method]):
        remedy = "add methods=estimate, or share the atlases: share_atlases=true"
        raise ConfigError("methods", "estimate, as share_atlases=false leaves the atlases out", method, remedy)
    estimator = segmenter.estimator
    if estimator is None or settings.joint.atlases:
        found = "a model without one" if estimator is None else "slice networks that see atlases beside each slice"
        remedy = "train a joint model (registration=joint, joint.atlases=0), or share the atlases: share_atlases=true"
        raise ConfigError("share_atlases", "true for a model whose estimate needs no atlas", found, remedy)
    volume = estimator.volume_network
    factor = settings.preprocessing.fine_factor
    return {
        "size": list(segmenter.library.images.shape[2:]),
        "classes": segmenter.library.classes,
        "joint": settings.to_json()["joint"],
        "volume_channels": None if volume is None else list(settings.network.channels(settings.joint.volume_network)),
        "in_channels": segmenter.library.channels,
        **({} if factor is None else {"fine_factor": list(factor)}),
        **({"structures": [list(own) for own in segmenter.library.structures]} if segmenter.library.structures else {}),
    }


def _placed(image: torch.Tensor) -> Preprocessed:
    x, y, z = image.shape[1:]
    grid = Geometry((x, y, z), np.eye(4))
    return Preprocessed("", image, None, grid, grid)
