"""Build a segmenter from trained networks: for the folds of a cross-validation, a model folder and a bundle."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from oasis_monai.atlases.library import AtlasLibrary
from oasis_monai.networks.registration import SpatialTransformModel
from oasis_monai.networks.segmentation import NetworkSettings
from oasis_monai.networks.slice_unet import BOX_WINDOW, JointSettings, SliceUNet, SliceUNetEnsemble
from oasis_monai.segmentation.alignment import Aligner
from oasis_monai.segmentation.boxes import BoxSegmenter
from oasis_monai.segmentation.estimate import Estimator, make_volume_network
from oasis_monai.segmentation.expected import Expected
from oasis_monai.segmentation.learned_fusion import LearnedFusions
from oasis_monai.segmentation.loa import LoaTable
from oasis_monai.segmentation.segmenter import Segmenter
from oasis_monai.segmentation.views import ViewSettings


@dataclass(frozen=True)
class TrainedNetworks:
    """The trained networks of a model; None for those it does not have.

    Args:
        registration: the STM.
        slices: a joint model's network on slices.
        volume: a joint model's network on volumes.
        boxes: the network that looks again in boxes.
    """

    registration: SpatialTransformModel | None = None
    slices: SliceUNet | SliceUNetEnsemble | None = None
    volume: nn.Module | None = None
    boxes: SliceUNet | None = None


@dataclass(frozen=True)
class SegmenterOptions:
    """The options of a segmenter, beside its networks and atlases.

    Args:
        distance, temperature, same_case: see :class:`.Segmenter`.
        batch: atlases aligned at once.
        joint: how a joint model makes and uses its estimate.
        network: channels of the volume network.
        views: whether doubtful scans are also seen in other views.
        window: see :class:`.Estimator`.
        box_factor: see :class:`.BoxSegmenter`.
        fusions: learned fusions of a joint model, by the number of atlases; they count where ``joint.fusion`` is ``learned``.
    """

    distance: str = "l2"
    temperature: float = 0.1
    batch: int = 8
    joint: JointSettings = field(default_factory=JointSettings)
    network: NetworkSettings = field(default_factory=NetworkSettings)
    same_case: bool = False
    views: ViewSettings = field(default_factory=lambda: ViewSettings("none"))
    window: int | None = None
    box_factor: tuple[int, ...] | None = None
    fusions: LearnedFusions = field(default_factory=dict)


def build_estimator(networks: TrainedNetworks, options: SegmenterOptions, device: str | torch.device = "cpu") -> Estimator | None:
    """Build the estimator from the segmentation networks of a joint model; None for other models."""
    if networks.slices is None:
        return None
    joint, volume_network = options.joint, None
    if networks.volume is not None:
        volume_network = make_volume_network(networks.volume, joint.volume_network, options.network, device)
    return Estimator(
        networks.slices,
        joint.tta_flip,
        device,
        volume_network=volume_network,
        stride=joint.volume_stride,
        tta_views=joint.tta_views,
        window=options.window,
    )


def build_segmenter(
    library: AtlasLibrary,
    networks: TrainedNetworks,
    options: SegmenterOptions,
    device: str | torch.device = "cpu",
    loa_file: Path | None = None,
    loa_of: str = "",
) -> Segmenter:
    """Build a segmenter from a library and the networks trained on it.

    Args:
        loa_file, loa_of: where LOA pairs are kept and what they belong to, see :class:`.LoaTable`.
    """
    aligner, loa = None, None
    if networks.registration is not None:
        aligner = Aligner(networks.registration, device, options.batch)
        loa = LoaTable(library, aligner, loa_file, loa_of)
    estimator = build_estimator(networks, options, device)
    return Segmenter(
        *(library, aligner, loa, estimator, options.joint),
        distance=options.distance,
        temperature=options.temperature,
        same_case=options.same_case,
        views=options.views,
        fusions=options.fusions if options.joint.fusion == "learned" else {},
        boxes=_build_boxes(networks.boxes, library, options, device),
    )


def _build_boxes(
    network: SliceUNet | None, library: AtlasLibrary, options: SegmenterOptions, device: str | torch.device
) -> BoxSegmenter | None:
    if network is None or options.box_factor is None:
        return None
    estimator = Estimator(network, options.joint.tta_flip, device, window=BOX_WINDOW)
    return BoxSegmenter(estimator, options.box_factor, Expected.of(library))
