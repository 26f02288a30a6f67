"""OASIS and two VoxelMorph networks as shipped, trained on the training cases of the benchmark."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.speed.data import World, configuration
from benchmarks.speed.methods import Aligned, Entry, Method
from oasis_monai.networks import warp as warping
from oasis_monai.networks.registration import append_structures
from oasis_monai.utils.tensor_files import load_if_whole, save_tensors

torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
torch.set_flush_denormal(True)

Predict = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]  # target, atlas, its structure -> full field


def train(world: World, name: str, minutes: float, folder: Path) -> None:
    """Train ``plain`` or ``joint`` (OASIS), ``monai`` or ``voxelmorph`` (networks as shipped), unless that is already done."""
    from oasis_monai.settings import build
    from oasis_monai.workflows.train import train_model

    settings = build(configuration(world.root, world.dims, name == "joint", minutes, world.train, folder))
    if name in ("plain", "joint"):
        if not (folder / name / "model.json").exists():
            train_model(settings, folder / name)
        return
    if load_if_whole(folder / f"{name}.safetensors") is not None:
        return
    from oasis_monai.data.cases import find_cases
    from oasis_monai.training.registration import RegistrationTrainer  # same pairs, loss and augmentation, another network
    from oasis_monai.training.trainer import FitContext, fit
    from oasis_monai.workflows.prepare import prepare

    cases = [case for case in find_cases(world.root, "promise12") if case.id in world.train]
    library = prepare(settings, cases, folder / "cache", print).library
    network: Any = Shipped(name, world.dims)
    context = FitContext(
        library, world.spacing_mm, settings.training, settings.seed, augmentation=settings.augmentation, progress=False
    )
    fit(RegistrationTrainer(context, network, settings.loss), None, False, name)
    save_tensors(folder / f"{name}.safetensors", network.state_dict())


class Shipped(nn.Module):
    """The VoxelMorph network of MONAI or of the voxelmorph package, of default width: (atlas, target) -> field in voxels."""

    def __init__(self, name: str, dims: int) -> None:
        super().__init__()
        from oasis_monai.networks.registration import RegistrationSettings

        self.settings, self.name = RegistrationSettings(joint=False), name
        if name == "monai":
            from monai.networks.nets import VoxelMorph

            self.net: nn.Module = VoxelMorph() if dims == 3 else _monai_2d()
        else:
            from voxelmorph.nn.models import VxmPairwise

            self.net = VxmPairwise(dims, 1, 1, nb_features=(16,) * 4)  # five levels do not fit 80 voxels

    def forward(self, atlas: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        made = self.net(atlas, target)
        field: torch.Tensor = made[1] if self.name == "monai" else made
        return field


def _monai_2d() -> nn.Module:
    """MONAI's VoxelMorph for slices. Its defaults are for volumes only; the widths here are the same."""
    from monai.networks.nets import VoxelMorph, VoxelMorphUNet

    channels = (16, 32, 32, 32, 32, 32)
    return VoxelMorph(
        backbone=VoxelMorphUNet(2, 2, 32, channels=channels, final_conv_channels=(16, 16)), spatial_dims=2, integration_steps=7
    )


def _aligner(predict: Predict) -> Callable[[np.ndarray, np.ndarray, np.ndarray], list[Aligned]]:
    """Turn a network into a method: arrays in, warped labels on the full grid out."""

    @torch.inference_mode()
    def align(fixed: np.ndarray, moving: np.ndarray, label: np.ndarray) -> list[Aligned]:
        target, atlas, structure = (torch.from_numpy(a)[:, None] for a in (fixed, moving, label))
        field = predict(target, atlas, structure)
        moved = warping.warp(structure.float(), field)[:, 0].numpy()
        return [Aligned(m, lambda f=f: f.movedim(0, -1).numpy()) for m, f in zip(moved, field, strict=True)]  # type: ignore[misc]

    return align


def make(world: World, entry: Entry, folder: Path, given: Path | None, minutes: float) -> Method:
    """Load the method of an entry, with its network from ``folder`` or from the model folder ``given``."""
    if entry.network in ("monai", "voxelmorph"):
        return shipped_pair(world, entry.network, folder, f"network as shipped, trained {minutes:g} min")
    words = "as given" if given else f"trained {minutes:g} min"
    model = given or folder / entry.network
    if entry.kind == "case":
        return oasis_case(world, model, f"{words}; selection, LOA and resampling included")
    known = "; the target's estimate given" if entry.network == "joint" else ""
    return stm_pair(world, model, entry.batch, words + known)


def shipped_pair(world: World, name: str, folder: Path, words: str) -> Method:
    """A VoxelMorph network that :func:`train` has written into ``folder``."""
    network = Shipped(name, world.dims).eval()
    stored = load_if_whole(folder / f"{name}.safetensors")
    if stored is None:
        raise FileNotFoundError(f"{name}: not trained")
    network.load_state_dict(stored[0])
    return Method(words, align=_aligner(lambda target, atlas, structure: network(atlas, target)), repeats=3)


def stm_pair(world: World, model: Path, batch: int, words: str) -> Method:
    """The STM of a model folder. A joint STM also takes the estimate of the target, computed once per target beforehand."""
    from oasis_monai.workflows.model import load_model

    segmenter = load_model(model, "cpu", batch).segmenter
    aligner, estimator = segmenter.aligner, segmenter.estimator
    assert aligner is not None
    joint, known = aligner.joint, {}
    if joint:
        assert estimator is not None
        for image in torch.from_numpy(world.fixed)[:, None]:
            known[image.numpy().tobytes()] = estimator.volume(image)[1:]

    def predict(target: torch.Tensor, atlas: torch.Tensor, structure: torch.Tensor) -> torch.Tensor:
        estimates = torch.stack([known[image.numpy().tobytes()] for image in target]) if joint else None
        fields = aligner.fields(append_structures(atlas, structure if joint else None), append_structures(target, estimates))
        return warping.resize_ddf(fields.float(), target.shape[2:])

    return Method(words, align=_aligner(predict), batch=batch, repeats=10)


def oasis_case(world: World, model: Path, words: str) -> Method:
    """Everything that ``oasis-monai segment`` does between reading and writing: preprocessing, features, selection, estimate,
    alignment, LOA, fusion, and resampling to the grid of the scan."""
    from oasis_monai.atlases.features import embedder, target_features
    from oasis_monai.data.cases import find_cases
    from oasis_monai.data.io import read_volume
    from oasis_monai.transforms.labels import decide
    from oasis_monai.transforms.preprocessing import restore
    from oasis_monai.workflows.model import load_model

    n = world.atlases.shape[1]
    loaded = load_model(model, "cpu", n)
    settings, segmenter = loaded.settings, loaded.segmenter
    embed = embedder(settings.features.name, settings.features.weights)
    method = "OASIS" if segmenter.estimator is None else "OASIS-joint"
    cases = {case.id: case.without_label() for case in find_cases(world.root, "promise12")}
    volumes = [read_volume(cases[name], settings.data.label_values) for name in world.cases]

    def segment(number: int) -> np.ndarray:
        target = settings.preprocessing.apply(volumes[number])
        found, *_ = segmenter(target, target_features(target, world.dims, embed), (method,), (n,))
        probability = found[method, n].probability
        restore(probability, target.geometry, target.native)
        return (decide(probability) > 0).numpy().astype(np.uint8)

    return Method(words, segment=segment, repeats=10)
