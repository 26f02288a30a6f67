"""Make training steps of one checkout's networks when asked; started by :mod:`benchmarks.speed.training_steps`.

    python -m benchmarks.speed.one_trainer PATH_OF_A_CHECKOUT 1

Reads one JSON object a line and answers each with one: ``{"network": NAME}`` builds a trainer, ``{"steps": [FIRST, COUNT]}``
makes its steps. It imports nothing of ``benchmarks``, since the checkout may be of before there was such a package, and knows two
layouts of the package: today's, and that of version 0.1.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SPACING_MM = (1.0, 1.0, 3.0)
VOLUME, SLICE, CASES, CLASSES = (96, 96, 32), (96, 96), 6, 2
STRIDE = (2, 2, 1)  # of the joint model's volume network


def make_atlases(spatial_dims: int) -> dict[str, Any]:
    """Noise with a bright ellipsoid, a label and an estimate of it: a step takes as long on any image."""
    import torch

    random = torch.Generator().manual_seed(0)
    count, size = (CASES, VOLUME) if spatial_dims == 3 else (16 * CASES, SLICE)
    axes = [torch.linspace(-1, 1, side).view(-1, *[1] * (spatial_dims - 1 - axis)) for axis, side in enumerate(size)]
    radii = 0.3 + 0.3 * torch.rand(count, generator=random)
    labels = torch.stack([(sum(axis.square() for axis in axes) < r * r)[None] for r in radii]).to(torch.uint8)
    images = labels + 0.5 * torch.randn(labels.shape, generator=random)
    slices = torch.arange(16).repeat(CASES) if spatial_dims == 2 else torch.full((count,), -1)
    atlases = {
        "images": images,
        "labels": labels,
        "features": torch.rand(count, 8, generator=random),
        "cases": tuple(f"case{row // 16 if spatial_dims == 2 else row}" for row in range(count)),
        "slices": slices,
        "classes": CLASSES,
        "estimates": (0.8 * labels + 0.1).half(),
    }
    if spatial_dims == 2:
        atlases |= {"context": images.repeat(1, 2, 1, 1), "thumbnails": torch.rand(count, 256, generator=random).half()}
    return atlases


def make_trainer(network: str) -> Any:
    """A trainer of this checkout, its random weights and draws those of every other checkout."""
    import torch

    name, _, kind = network.partition(", ")
    spatial_dims = 2 if "2D" in network else 3
    torch.manual_seed(0)
    atlases = make_atlases(spatial_dims)
    amp = kind.endswith("amp")
    try:
        import oasis_monai.training.trainer  # noqa: F401
    except ImportError:
        return _make_first_trainer(name, kind, atlases, spatial_dims)
    return _make_trainer(name, kind, atlases, spatial_dims, amp)


def _make_trainer(name: str, kind: str, atlases: dict[str, Any], spatial_dims: int, amp: bool) -> Any:
    from oasis_monai.atlases.library import AtlasLibrary
    from oasis_monai.networks.losses import RegistrationLoss
    from oasis_monai.networks.registration import RegistrationSettings
    from oasis_monai.networks.segmentation import NetworkSettings, make_network
    from oasis_monai.networks.slice_unet import JointSettings, SliceUNet
    from oasis_monai.training.registration import RegistrationTrainer, make_registration_network
    from oasis_monai.training.segmentation import SegmentationTrainer, coarsen_library
    from oasis_monai.training.slices import SliceTrainer
    from oasis_monai.training.trainer import FitContext, TrainingSettings

    library, spacing_mm = AtlasLibrary(**atlases), SPACING_MM[:spatial_dims]
    context = FitContext(library, spacing_mm, TrainingSettings(iterations=1000, amp=amp))
    if name.startswith("slice network"):
        beside = 2 if spatial_dims == 2 else 0
        return SliceTrainer(context, SliceUNet(CLASSES, beside), JointSettings(atlases=beside))
    if name.startswith("registration network"):
        joint = "joint" in kind
        settings = RegistrationSettings(field_stride=(4, 4, 1)[:spatial_dims] if joint else (2, 2, 1)[:spatial_dims], joint=joint)
        return RegistrationTrainer(context, make_registration_network(library, settings), RegistrationLoss())
    if "volume" in kind:
        coarse = tuple(mm * s for mm, s in zip(spacing_mm, STRIDE, strict=True))
        context = FitContext(coarsen_library(library, STRIDE), coarse, context.training)
    network = NetworkSettings()
    return SegmentationTrainer(context, name, make_network(name, CLASSES, network), network)


def _make_first_trainer(name: str, kind: str, atlases: dict[str, Any], spatial_dims: int) -> Any:
    """:func:`_make_trainer` of version 0.1, whose modules lie beside each other."""
    from importlib import import_module

    def find(module: str, attribute: str) -> Any:
        return getattr(import_module(f"oasis_monai.{module}"), attribute)

    library, spacing_mm = find("library", "AtlasLibrary")(**atlases), SPACING_MM[:spatial_dims]
    training = find("fitting", "TrainingSettings")(iterations=1000)
    if name.startswith("slice network"):
        beside = 2 if spatial_dims == 2 else 0
        model, settings = find("estimator", "SliceNet")(CLASSES, beside), find("estimator", "EstimatorSettings")(atlases=beside)
        return find("estimation", "_EstimatorTrainer")(library, model, settings, training, 0, None, spacing_mm, False)
    if name.startswith("registration network"):
        joint = "joint" in kind
        stride = (4, 4, 1)[:spatial_dims] if joint else (2, 2, 1)[:spatial_dims]
        stm = find("networks", "StmSettings")(field_stride=stride, joint=joint)
        model, loss = find("training", "make_stm")(library, stm), find("losses", "RegistrationLoss")()
        return find("training", "_StmTrainer")(library, spacing_mm, model, loss, training, 0, False, "l2", None)
    if "volume" in kind:
        spacing_mm = tuple(mm * s for mm, s in zip(spacing_mm, STRIDE, strict=True))
        library = find("estimation", "coarser")(library, STRIDE)
    network = find("segnets", "NetworkSettings")()
    model = find("segnets", "make_network")(name, CLASSES, network)
    return find("supervised", "_NetworkTrainer")(name, library, spacing_mm, model, network, training, 0, None)


def parser() -> argparse.ArgumentParser:
    """The options of this command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("checkout", type=Path, help="whose oasis_monai makes the steps")
    parser.add_argument("threads", type=int, help="threads of the computation")
    return parser


def main(stack: contextlib.ExitStack) -> None:
    options = parser().parse_args()
    checkout, threads = options.checkout.resolve(), options.threads
    sys.path[0] = str(checkout)  # in the place of this file's own folder
    import torch

    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
    import oasis_monai

    if not Path(str(oasis_monai.__file__)).is_relative_to(checkout):
        raise SystemExit(f"expected oasis_monai of {checkout}, found {oasis_monai.__file__}")
    with contextlib.suppress(ImportError):  # as `fit` does, in versions that have it
        from oasis_monai.utils.memory import keep_freed_memory

        stack.enter_context(keep_freed_memory())
    # alone, only a thread's own computing time, so that other processes do not count
    clock: Callable[[], float] = time.thread_time if threads == 1 else time.perf_counter
    trainer: Any = None
    for line in sys.stdin:
        asked = json.loads(line)
        if "network" in asked:
            trainer = make_trainer(asked["network"])
            print(json.dumps({}), flush=True)
            continue
        first, count = asked["steps"]
        began = clock()
        losses = [float(trainer.step(number)[0]) for number in range(first, first + count)]
        print(json.dumps({"seconds": clock() - began, "losses": losses}), flush=True)


if __name__ == "__main__":
    with contextlib.ExitStack() as open_contexts:
        main(open_contexts)
