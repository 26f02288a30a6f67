"""OASIS, and the two VoxelMorph networks as they ship, trained on the benchmark's training cases."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from methods import Aligned, Maker, Method
from torch import nn
from world import World, configuration

from oasis_monai import warp as warping
from oasis_monai.align import with_structures
from oasis_monai.files import load_if_whole, save_tensors

Predict = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]  # target, atlas, its structure -> full field


def train(world: World, name: str, minutes: float, folder: Path) -> None:
    """Train ``plain`` or ``joint`` (models of ours), or ``monai`` or ``voxelmorph`` (networks as shipped); finished ones stay."""
    from oasis_monai.model import train_model
    from oasis_monai.settings import build

    settings = build(configuration(world.root, world.dims, name == "joint", minutes, world.train, folder))
    if name in ("plain", "joint"):
        if not (folder / name / "model.json").exists():
            train_model(settings, folder / name)
        return
    if load_if_whole(folder / f"{name}.safetensors") is not None:
        return
    from oasis_monai.cases import find_cases
    from oasis_monai.fitting import fit
    from oasis_monai.prepare import prepare
    from oasis_monai.training import _StmTrainer  # same pairs, loss and augmentation, another network

    cases = [case for case in find_cases(world.root, "promise12") if case.id in world.train]
    library = prepare(settings, cases, folder / "cache", print).library
    network: Any = Shipped(name, world.dims)
    how = (settings.loss, settings.training, settings.seed, False, "l2", settings.augmentation)
    fit(_StmTrainer(library, world.spacing_mm, network, *how), None, False, name)
    save_tensors(folder / f"{name}.safetensors", network.state_dict())


class Shipped(nn.Module):
    """MONAI's VoxelMorph or the voxelmorph package's network, with their default widths: (atlas, target) -> field in voxels."""

    def __init__(self, name: str, dims: int) -> None:
        super().__init__()
        from oasis_monai.networks import StmSettings

        self.settings, self.name = StmSettings(), name
        if name == "monai":
            from monai.networks.nets import VoxelMorph

            self.net: nn.Module = VoxelMorph() if dims == 3 else _monai_2d()
        else:
            from voxelmorph.nn.models import VxmPairwise

            self.net = VxmPairwise(dims, 1, 1)

    def forward(self, atlas: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        made = self.net(atlas, target)
        field: torch.Tensor = made[1] if self.name == "monai" else made
        return field


def _monai_2d() -> nn.Module:
    """MONAI's VoxelMorph has defaults for volumes only: the same widths, in plane."""
    from monai.networks.nets import VoxelMorph, VoxelMorphUNet

    channels = (16, 32, 32, 32, 32, 32)
    return VoxelMorph(
        backbone=VoxelMorphUNet(2, 2, 32, channels=channels, final_conv_channels=(16, 16)), spatial_dims=2, integration_steps=7
    )


def _aligner(predict: Predict) -> Callable[[np.ndarray, np.ndarray, np.ndarray], list[Aligned]]:
    """A network as a method: arrays in, labels warped on the full grid out."""

    @torch.inference_mode()
    def align(fixed: np.ndarray, moving: np.ndarray, label: np.ndarray) -> list[Aligned]:
        target, atlas, structure = (torch.from_numpy(a)[:, None] for a in (fixed, moving, label))
        field = predict(target, atlas, structure)
        moved = warping.warp(structure.float(), field)[:, 0].numpy()
        return [Aligned(m, lambda f=f: f.movedim(0, -1).numpy()) for m, f in zip(moved, field, strict=True)]  # type: ignore[misc]

    return align


def shipped_pair(name: str, folder: Path, minutes: float) -> Maker:
    def make(world: World) -> Method:
        network = Shipped(name, world.dims).eval()
        stored = load_if_whole(folder / f"{name}.safetensors")
        if stored is None:
            raise FileNotFoundError(f"{name}: not trained")
        network.load_state_dict(stored[0])
        predict: Predict = lambda target, atlas, structure: network(atlas, target)  # noqa: E731
        return Method(f"network as shipped, trained {minutes:g} min", align=_aligner(predict), repeats=3)

    return make


def stm_pair(model: Path, batch: int, words: str) -> Maker:
    """The STM of a model folder. A joint one is shown its estimate of the target, which is made once per target before."""

    def make(world: World) -> Method:
        from oasis_monai.model import load_model

        _, segmenter = load_model(model, "cpu", batch)
        aligner, estimator = segmenter.aligner, segmenter.estimator
        assert aligner is not None
        known: dict[bytes, torch.Tensor] = {}

        def estimates(target: torch.Tensor) -> torch.Tensor:
            assert estimator is not None
            keys = [t.numpy()[..., t.shape[-1] // 2].tobytes() for t in target]
            for key, image in zip(keys, target, strict=True):
                if key not in known:
                    known[key] = estimator.volume(image)[1:]
            return torch.stack([known[key] for key in keys])

        def predict(target: torch.Tensor, atlas: torch.Tensor, structure: torch.Tensor) -> torch.Tensor:
            joint = aligner.joint
            onto = with_structures(target, estimates(target) if joint else None)
            fields = aligner.fields(with_structures(atlas, structure if joint else None), onto)
            return warping.resize_ddf(fields.float(), target.shape[2:])

        return Method(words, align=_aligner(predict), batch=batch, repeats=10)

    return make


def oasis_case(model: Path, words: str) -> Maker:
    """The whole of ``segment`` between reading and writing: preprocessing, features, selection, estimate, alignment, LOA, fusion,
    and the result back on the scan's own grid."""

    def make(world: World) -> Method:
        from oasis_monai.cases import find_cases
        from oasis_monai.features import embedder
        from oasis_monai.grids import decide
        from oasis_monai.model import load_model, target_features
        from oasis_monai.preprocess import restore
        from oasis_monai.volumes import read_volume

        settings, segmenter = load_model(model, "cpu", world.atlases.shape[1])
        embed = embedder(settings.features.name, settings.features.weights)
        method, n = "OASIS" if segmenter.estimator is None else "OASIS-joint", world.atlases.shape[1]
        cases = {case.id: case.without_label() for case in find_cases(world.root, "promise12")}
        volumes = [read_volume(cases[name], settings.data.label_values) for name in world.cases]

        def segment(number: int) -> np.ndarray:
            target = settings.preprocessing.apply(volumes[number])
            found, _ = segmenter(target, target_features(target, world.dims, embed), (method,), (n,))
            probability = found[method, n].probability
            restore(probability, target.geometry, target.native)
            return (decide(enumerate(probability[1:], 1), torch.zeros(probability.shape[1:])) > 0).numpy().astype(np.uint8)

        return Method(words, segment=segment, repeats=3)

    return make
