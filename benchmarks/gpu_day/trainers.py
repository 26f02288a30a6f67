"""The trainers that are checked: those of the packed settings, and variants of them on the same atlases."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn
from unittest import mock

import torch

from benchmarks.gpu_day.packed import Packed
from benchmarks.gpu_day.run import JOINT_NETWORKS
from oasis_monai.atlases.features import embedder
from oasis_monai.atlases.library import AtlasLibrary, build_library
from oasis_monai.networks.registration import RegistrationSettings
from oasis_monai.training.registration import train_registration
from oasis_monai.training.segmentation import train_segmentation, train_volume_network
from oasis_monai.training.slices import train_slice_network
from oasis_monai.training.trainer import FitContext, Trainer
from oasis_monai.transforms.labels import one_hot

Train = Callable[[FitContext], torch.nn.Module]
ATLASES = 6
"""Cases whose slices are the atlases of the trainers on slices."""
FITTING = ("registration", "segmentation", "slices")


class _Ready(Exception):  # noqa: N818  # no error: it carries the trainer out of a training that would now begin
    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer


def trainer_of(train: Train, context: FitContext) -> Trainer:
    """The trainer that a training would run, with its network as it begins."""

    def stop(trainer: Trainer, *_: Any) -> NoReturn:
        raise _Ready(trainer)

    with ExitStack() as stack:
        for module in FITTING:
            stack.enter_context(mock.patch(f"oasis_monai.training.{module}.fit", stop))
        try:
            train(context)
        except _Ready as ready:
            return ready.trainer
    raise AssertionError("expected a training that runs fit")


class Trainings:
    """The trainings of a packed data set.

    Args:
        packed: the data set; all of its cases are atlases.
    """

    def __init__(self, packed: Packed) -> None:
        self.packed, self.settings = packed, packed.settings
        library = packed.dataset.library
        hot = one_hot(library.labels, library.classes)[:, 1:]
        self.volumes = library.with_estimates(0.1 + 0.8 * hot)

    def context(self, device: str, folder: Path | None = None, slices: bool = False, **training: Any) -> FitContext:
        """What a training needs, beside the network.

        Args:
            device: where it runs.
            folder: where its checkpoint goes.
            slices: of a 2D training.
            training: in the place of the settings' own.
        """
        settings, library = self.settings, self.slices() if slices else self.volumes
        dims = library.spatial_dims
        spacings = [self.packed.dataset.targets[case].geometry.spacing_mm[:dims] for case in library.cases]
        return FitContext(
            library,
            torch.tensor(spacings, dtype=torch.float64),
            replace(settings.training, **{"amp": False, **training}),
            settings.seed,
            folder,
            device,
            settings.augmentation,
            False,
            distance=settings.features.distance,
            estimate_dice=settings.joint.estimate_dice,
        )

    def slices(self) -> AtlasLibrary:
        """The slices of some cases as atlases."""
        library, targets = self.volumes, self.packed.dataset.targets
        items = [replace(targets[case], label=library.labels[row]) for row, case in enumerate(library.cases[:ATLASES])]
        made = build_library(
            items, 2, embedder("intensity"), library.classes, dict(zip(library.cases, library.patients, strict=True))
        )
        return replace(made, structures=library.structures)

    def joint(self) -> dict[str, Train]:
        """Of the networks of the joint model."""
        settings = self.settings
        registration = replace(settings.registration, joint=True)
        functions: tuple[Train, ...] = (
            lambda context: train_slice_network(context, replace(settings.joint, members=1)),
            lambda context: train_volume_network(context, settings.joint, settings.network),
            lambda context: train_registration(context, registration, settings.loss),
        )
        return dict(zip(JOINT_NETWORKS, functions, strict=True))

    def shares(self) -> dict[str, float]:
        """Part of the iterations of a context that each of these trainings takes."""
        slices, volume, _ = self.settings.joint.budgets(3)
        return dict(zip(JOINT_NETWORKS, (slices, volume, 1.0), strict=True))

    def all(self) -> dict[str, tuple[Train, bool]]:
        """Of every kind of network, and whether it is one of slices."""
        settings = self.settings
        plain = replace(settings.registration, joint=False)
        stride = plain.field_stride[:2] if len(plain.field_stride) > 1 else plain.field_stride
        beside = replace(settings.joint, members=1, atlases=2)

        def registration(own: RegistrationSettings) -> Train:
            return lambda context: train_registration(context, own, settings.loss)

        def segmentation(name: str) -> Train:
            return lambda context: train_segmentation(context, name, settings.network)

        found: dict[str, tuple[Train, bool]] = {name: (train, False) for name, train in self.joint().items()}
        found["registration network (STM)"] = registration(plain), False
        found["STM, affine and diffeomorphic"] = registration(replace(plain, affine=True, diffeomorphic=True)), False
        found |= {name: (segmentation(name), False) for name in ("U-Net3D", "ConvNet3D", "DynU-Net3D")}
        found["STM of slices"] = registration(replace(plain, field_stride=stride)), True
        found["slice network beside two atlases"] = (lambda context: train_slice_network(context, beside)), True
        return found
