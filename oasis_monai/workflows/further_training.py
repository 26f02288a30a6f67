"""Train the networks of a model on from their weights, with a few new atlases beside its own.

A model has seen nothing of a new scanner, and adding atlases of it helps little: its networks decide where the structures are.
A few minutes of training from its weights do help, unless the networks forget what they know, or learn the few new scans by
heart. So the model's own atlases stay in the training and only share the draws with the new ones (rehearsal, Robins 1995,
doi 10.1080/09540099550039318). The learning rates rise from near 0, as Adam starts without its moments, to a fraction of those of
the first training, and fall again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

import torch
from torch import nn

from oasis_monai.atlases.library import AtlasLibrary
from oasis_monai.networks.segmentation import Predictor
from oasis_monai.segmentation.build import TrainedNetworks, build_estimator, build_segmenter
from oasis_monai.segmentation.estimate import estimate_atlases
from oasis_monai.segmentation.segmenter import Segmenter
from oasis_monai.settings import Settings
from oasis_monai.training.boxes import train_box_network
from oasis_monai.training.registration import train_registration
from oasis_monai.training.segmentation import train_volume_network
from oasis_monai.training.slices import train_slice_network
from oasis_monai.training.tracking import Tracking, Watch
from oasis_monai.training.trainer import FitContext
from oasis_monai.transforms.boxes import ScanPart
from oasis_monai.workflows.fold_models import BOXES, REGISTRATION, SLICES, VOLUME, segmenter_options, training_seed

FURTHER_VERSION = 1
"""In the name of every checkpoint; raise it when the same settings would train otherwise."""
SHARE = 0.5
"""Part of the draws that go to the new atlases, unless they are a larger part of all."""
RATE = 0.3
"""Learning rates, relative to those of the model's own training."""


def train_further(
    segmenter: Segmenter,
    settings: Settings,
    new: AtlasLibrary,
    folder: Path | None = None,
    device: str = "cpu",
    share: float | None = None,
    rate: float = RATE,
    tracking: Tracking | None = None,
    parts: Mapping[str, ScanPart] = MappingProxyType({}),
) -> Segmenter:
    """Train every network of a segmenter on from its weights; the segmenter itself stays as it is.

    Args:
        segmenter: of a trained model; a joint one has two or three networks, which share the budget as in :func:`.train_model`.
        settings: the model's, with the budget to use in ``training``.
        new: atlases on the grid and with the channels and classes of the segmenter's library, of other cases.
        folder: where resumable checkpoints go, a folder for each network; None keeps nothing.
        device: where it runs.
        share: part of the draws that go to the new atlases, 0 to 1; None: :func:`usual_share`.
        rate: learning rates relative to those of the settings, above 0.
        tracking: where the trainings are recorded. All scans are trained with, so there is no held-out Dice.
        parts: of the new atlases by case, what the network that looks again in boxes learns from
            (:func:`oasis_monai.transforms.boxes.labelled_part`), with the library's classes. It learns from these alone, as a
            model holds no scan at its own resolution; without any it stays as it is.

    Returns:
        A segmenter with these networks. Its library has the new atlases last, and the estimates of all are the new networks'.

    Raises:
        DataError: the new atlases do not fit, see :meth:`.AtlasLibrary.merge`.
        OasisError: the loss is no longer finite, or memory has run out; the last checkpoint stays.
    """
    library, start = replace(segmenter.library, estimates=None).merge(new), networks_of(segmenter)
    slower = replace(settings.training, lr=rate * settings.training.lr, schedule="warm_cosine")
    joint = replace(settings.joint, lr=rate * settings.joint.lr)
    own = len(segmenter.library)
    share = usual_share(own, len(new)) if share is None else share
    further = _Further(replace(settings, training=slower, joint=joint), share_draws(own, len(new), share), folder, tracking)
    slices, volume = None, None
    if start.slices is not None:
        slices = train_slice_network(further.context(SLICES, start.slices, library, device), joint)
        if start.volume is not None:
            context = further.context(VOLUME, start.volume, library, device)
            volume = train_volume_network(context, joint, settings.network)
        estimator = build_estimator(TrainedNetworks(None, slices, volume), segmenter_options(settings), device)
        assert estimator is not None
        library = library.with_estimates(estimate_atlases(estimator, library, joint.atlases))
    assert start.registration is not None
    context = further.context(REGISTRATION, start.registration, library, device)
    registration = train_registration(context, settings.registration, settings.loss)
    boxes = start.boxes
    if boxes is not None and parts:
        alone = replace(further, chances=torch.ones(len(new)))
        boxes = train_box_network(alone.context(BOXES, boxes, new, device), parts, joint, boxes)
    networks = TrainedNetworks(registration, slices, volume, boxes)
    return build_segmenter(library, networks, segmenter_options(settings), device)


def networks_of(segmenter: Segmenter) -> TrainedNetworks:
    """The trained networks of a segmenter."""
    assert segmenter.aligner is not None
    registration, estimator = segmenter.aligner.model, segmenter.estimator
    if estimator is None:
        return TrainedNetworks(registration)  # type: ignore[arg-type]
    volume = estimator.volume_network
    kept = None if segmenter.boxes is None else segmenter.boxes.estimator.model
    whole = volume.model if isinstance(volume, Predictor) else None
    return TrainedNetworks(registration, estimator.model, whole, kept)  # type: ignore[arg-type]


def usual_share(own: int, new: int) -> float:
    """The part of the draws that go to new atlases: :data:`SHARE`, or their part of all where that is more."""
    return max(SHARE, new / (own + new))


def share_draws(own: int, new: int, share: float) -> torch.Tensor:
    """(own + new,) how often each atlas is drawn: of all draws, ``share`` are new ones, however many there are."""
    return torch.cat([torch.full((own,), (1 - share) / own), torch.full((new,), share / new)])


@dataclass(frozen=True)
class _Further:
    """What the trainings of a model's networks share.

    Args:
        settings: the model's, with the budget and the learning rates to use.
        chances: (N,) how often each atlas is drawn.
        folder: where the networks' own folders go; None keeps nothing.
        tracking: where the trainings are recorded.
    """

    settings: Settings
    chances: torch.Tensor
    folder: Path | None
    tracking: Tracking | None

    def context(self, name: str, network: nn.Module, library: AtlasLibrary, device: str) -> FitContext:
        """What training ``network`` on needs. The segmentation networks take their part of the budget themselves."""
        settings, training = self.settings, self.settings.training
        if name == REGISTRATION and settings.registration.joint:
            training = training.part(settings.joint.budgets(settings.spatial_dims)[2])
        return FitContext(
            library,
            settings.preprocessing.spacing_mm or (1.0,) * settings.spatial_dims,  # resized slices: their pixels are near square
            training,
            training_seed(settings.seed, 0),
            None if self.folder is None else self.folder / name.replace(" ", "_"),
            device,
            settings.augmentation,
            settings.progress,
            name=name,
            distance=settings.features.distance,
            start={key: value.detach().clone() for key, value in network.state_dict().items()},
            chances=self.chances,
            anywhere=settings.anywhere,
            estimate_dice=settings.joint.estimate_dice,
            watch=None if self.tracking is None else Watch(self.tracking.within(name)),
        )
