"""One trainer of every kind on a small synthetic library, for tests and counts of what a step does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from oasis_monai.atlases.features import thumbnails
from oasis_monai.atlases.library import AtlasLibrary, FineAtlas
from oasis_monai.data.types import IGNORE, Geometry
from oasis_monai.networks.losses import RegistrationLoss
from oasis_monai.networks.registration import RegistrationSettings
from oasis_monai.networks.segmentation import NetworkSettings, make_network
from oasis_monai.networks.slice_unet import JointSettings, SliceUNet, make_box_network
from oasis_monai.training.boxes import BoxTrainer
from oasis_monai.training.registration import RegistrationTrainer, make_registration_network
from oasis_monai.training.segmentation import SegmentationTrainer, coarsen_library
from oasis_monai.training.slices import SliceTrainer
from oasis_monai.training.trainer import FitContext, Trainer, TrainingSettings
from oasis_monai.transforms.augmentation import Augmentation
from oasis_monai.transforms.boxes import ScanPart

SHORT = TrainingSettings(iterations=4, minutes=None, lr=1e-3, checkpoint_minutes=1e6)
JOINT = JointSettings(decoder=(8, 8, 8, 8), pretrained=False, slices_per_step=4)
NETWORK = NetworkSettings(unet=(4, 8), dynunet=(4, 8), convnet=(4, 8))


def rods(dims: int = 3, count: int = 6, size: int = 32, depth: int = 8, ignore: bool = False, channels: int = 1) -> AtlasLibrary:
    """Discs with a smaller one inside, each at a place of its own: volumes, or three slices a case; with estimates, and where
    ``ignore`` with voxels that nobody labelled."""
    at = torch.arange(size).float()
    images, labels = [], []
    for number in range(count):
        turn = torch.tensor(2.4 * number)
        centre = size / 2 + size / 8 * torch.stack([turn.cos(), turn.sin()])
        distance = ((at[:, None] - centre[0]).square() + (at[None] - centre[1]).square()).sqrt()
        image = torch.sigmoid(size / 4 - distance) + torch.sigmoid(size / 8 - distance)
        label = (distance < size / 4).to(torch.uint8) + (distance < size / 8).to(torch.uint8)
        images.append(image if dims == 2 else image[..., None] * torch.linspace(0.5, 1, depth))
        labels.append(label if dims == 2 else label[..., None].repeat(1, 1, depth))
    image, label = torch.stack(images)[:, None].repeat(1, channels, *[1] * dims), torch.stack(labels)[:, None]
    if ignore:
        label[:, 0, :3] = IGNORE
    features = torch.randn(count, 5, generator=torch.Generator().manual_seed(0))
    cases = tuple(f"c{n // (3 if dims == 2 else 1)}" for n in range(count))
    slices = torch.arange(count) % 3 if dims == 2 else torch.full((count,), -1)
    context = torch.cat([image, image], 1) if dims == 2 else None
    library = AtlasLibrary(image, label, features, cases, slices, 3, context, thumbnails=thumbnails(image) if dims == 2 else None)
    seen = torch.cat([label == 1, label == 2], 1).float()
    return library.with_estimates(0.1 + 0.8 * seen)


def with_fine_grid(library: AtlasLibrary, factor: int = 2) -> AtlasLibrary:
    """The library with a fine grid along x and y."""

    def finer(values: torch.Tensor) -> torch.Tensor:
        return values.repeat_interleave(factor, 1).repeat_interleave(factor, 2)

    fine = (FineAtlas(finer(i).half(), finer(one)) for i, one in zip(library.images, library.labels, strict=True))
    return replace(library, fine=tuple(fine))


def context_of(library: AtlasLibrary, device: str, **more: Any) -> FitContext:
    """A context of a library with voxels of 2 x 2 x 3 mm."""
    spacing_mm = (2.0, 2.0, 3.0)[: library.spatial_dims]
    return FitContext(library, spacing_mm, more.pop("training", SHORT), device=device, progress=False, **more)


def registration(device: str, library: AtlasLibrary | None = None, changed: dict[str, Any] | None = None, **more: Any) -> Trainer:
    library = library or rods()
    torch.manual_seed(0)
    settings: dict[str, Any] = {"channels": (4, 8), "field_stride": (2, 2, 1), "joint": False} | (changed or {})
    own = RegistrationSettings(**settings)
    model = make_registration_network(library, own)
    with torch.no_grad():  # a flow that moves something from the first step on
        for parameter in model.body.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape))
    return RegistrationTrainer(context_of(library, device, **more), model.to(device), RegistrationLoss())


def segmentation(
    device: str, library: AtlasLibrary | None = None, name: str = "U-Net3D", network: NetworkSettings = NETWORK, **more: Any
) -> Trainer:
    library = library or rods()
    torch.manual_seed(0)
    model = make_network(name, library.classes, network, library.channels, library.structures).to(device)
    return SegmentationTrainer(context_of(library, device, **more), name, model, network)


def slices(device: str, library: AtlasLibrary | None = None, joint: JointSettings = JOINT, **more: Any) -> Trainer:
    library = library or rods()
    torch.manual_seed(0)
    shape = more.get("same_case", False)
    model = SliceUNet(library.classes, joint.atlases, joint.decoder, False, shape, library.channels).to(device)
    return SliceTrainer(context_of(library, device, **more), model, joint)


def boxes(device: str, library: AtlasLibrary | None = None, **more: Any) -> Trainer:
    library = library or rods()
    torch.manual_seed(0)
    model = make_box_network(library.classes, JOINT, library.channels).to(device)
    parts = []
    for image, label in zip(library.images, library.labels, strict=True):
        sides = tuple(label.shape[1:])
        half = tuple(n // 2 for n in sides)
        working = Geometry((half[0], half[1], half[2]), np.diag([4.0, 4.0, 6.0, 1.0]))
        parts.append(
            ScanPart(image.half(), label, Geometry((sides[0], sides[1], sides[2]), np.diag([2.0, 2.0, 3.0, 1.0])), working)
        )
    return BoxTrainer(context_of(library, device, **more), model, JOINT, parts)


ALL_CHANGES = Augmentation(elastic_mm=4.0, zoom_chance=0.5, gamma=0.3, contrast=0.2, bias=0.3, blur_mm=3.0, coarsen=2.0)
"""Every change but noise, which has as many random numbers as voxels."""


def make_trainers(size: int = 32, depth: int = 8, joint: JointSettings = JOINT) -> dict[str, Callable[[str], Trainer]]:
    """A function of the device for every kind of trainer, on grids of ``size`` x ``size`` (x ``depth``)."""

    def volumes(**more: Any) -> AtlasLibrary:
        return rods(size=size, depth=depth, **more)

    def flat() -> AtlasLibrary:
        return rods(2, size=size)

    affine, patch = {"affine": True, "diffeomorphic": True}, replace(NETWORK, patch=(size, size, depth))
    beside = replace(joint, atlases=2)
    return {
        "registration": lambda device: registration(device, volumes()),
        "registration, 2D": lambda device: registration(device, flat(), {"field_stride": (2,)}),
        "registration, affine and diffeomorphic": lambda device: registration(device, volumes(), affine),
        "joint registration": lambda device: registration(device, volumes(), {"joint": True}, estimate_dice=0.7),
        "U-Net": lambda device: segmentation(device, volumes()),
        "U-Net, all changes": lambda device: segmentation(device, volumes(), augmentation=ALL_CHANGES),
        "U-Net, voxels that nobody labelled": lambda device: segmentation(device, volumes(ignore=True)),
        "ConvNet": lambda device: segmentation(device, volumes(), "ConvNet3D"),
        "volume network": lambda device: segmentation(device, coarsen_library(volumes(), (2, 2, 1))),
        "U-Net, patches of a fine grid": lambda device: segmentation(device, with_fine_grid(volumes()), network=patch),
        "slice network": lambda device: slices(device, volumes(), joint),
        "slice network, 2D with atlases": lambda device: slices(device, flat(), beside),
        "slice network, slice folds": lambda device: slices(device, flat(), beside, same_case=True),
        "slice network, fine grid": lambda device: slices(device, with_fine_grid(volumes()), joint),
        "box network": lambda device: boxes(device, volumes()),
    }


TRAINERS = make_trainers()
