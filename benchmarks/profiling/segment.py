"""Measure where the time goes when one scan is segmented, from process start to written file, and in a training step.

    python -m benchmarks.profiling.segment --model DIR --input SCAN [--data PATH] [--output docs/results/speed]

With ``--data`` it also measures a training step of each network of the model, on four cases of that data set. Prints the tables;
``--output`` writes ``profile.md`` as well. docs/results/speed.md has the results.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.command_line import command_parser
from benchmarks.profiling.stages import Spent, Stages, text

STEPS = 10
PARTS = (("model", "forward", "forward"), ("loss", "__call__", "loss"), ("optimiser", "step", "optimiser"))  # of a trainer


def segment(model: str, scan: str, output: str, born: float) -> Stages:
    """Run ``oasis-monai segment`` in this process, which was started at the time ``born`` (seconds of :func:`time.time`)."""
    stages = Stages()
    stages.add("interpreter", Spent(time.time() - born, time.process_time()))
    for stage, modules in (
        ("import hydra", ("hydra", "omegaconf")),
        ("import torch", ("torch",)),
        (
            "import oasis_monai",
            (
                "oasis_monai.__main__",
                "oasis_monai.tasks",
                "oasis_monai.workflows.model_folder",
                "oasis_monai.evaluation.contours",
            ),
        ),
    ):
        stages.enter(stage)
        for name in modules:
            __import__(name)
        stages.leave()
    from oasis_monai.utils.startup import import_monai_lightly

    stages.enter("import monai")
    import_monai_lightly()
    stages.leave()
    from oasis_monai import __main__
    from oasis_monai.atlases import features, library
    from oasis_monai.data import io as volumes
    from oasis_monai.evaluation import contours as overlays
    from oasis_monai.segmentation import alignment as align
    from oasis_monai.segmentation import estimate as estimator
    from oasis_monai.segmentation import loa
    from oasis_monai.segmentation import segmenter as segmenting
    from oasis_monai.transforms import preprocessing as preprocess
    from oasis_monai.transforms import spatial as grids
    from oasis_monai.utils import files
    from oasis_monai.workflows import model as models
    from oasis_monai.workflows import scan_result

    for owner, name, stage in (
        (files, "file_digest", "checksums"),
        (library.AtlasLibrary, "load", "load model"),
        (volumes, "read_volume", "read scan"),
        (volumes, "read_image", "read scan"),
        (preprocess.Preprocessing, "apply", "preprocess"),
        (features, "embedder", "load model"),
        (features.Embedder, "__call__", "features"),
        (segmenting.Segmenter, "select", "select"),
        (estimator.Estimator, "volume", "estimate"),
        (estimator.Estimator, "__call__", "estimate"),
        (align.Aligner, "fields", "align"),
        (loa.LoaTable, "require", "LOA"),
        (segmenting.Segmenter, "fuse", "warp, weigh, fuse"),
        (grids, "restore_all", "restore"),
        (scan_result, "write_label", "write label"),
        (overlays, "overlay", "picture"),
    ):
        stages.wrap(owner, name, stage)
    stages.wrap(models, "load_model", "load model")
    sys.argv = ["oasis-monai", "segment", f"model={model}", f"input={scan}", f"output={output}", "overwrite=true"]
    sys.argv += [f"hydra.run.dir={output}/run"]
    stages.enter("all else")
    __main__.main()
    stages.leave()
    return stages


def trainers(model: str, root: str) -> dict[str, Any]:
    """Name -> trainer of each network of the model, on four cases of the data set."""
    import torch

    from oasis_monai.data.cases import find_cases
    from oasis_monai.training import registration as training
    from oasis_monai.training import segmentation as supervised
    from oasis_monai.training import slices as estimation
    from oasis_monai.training.trainer import FitContext
    from oasis_monai.workflows.model import load_model
    from oasis_monai.workflows.prepare import prepare

    settings = load_model(Path(model), "cpu").settings
    dataset = prepare(settings, find_cases(root, settings.data.layout)[:4], None, print)
    library, joint = dataset.library, settings.registration.joint
    if joint:  # their values do not change the time
        library = library.with_estimates(torch.rand(len(library), library.classes - 1, *library.images.shape[2:]))
    spacing_mm = next(iter(dataset.targets.values())).geometry.spacing_mm[: settings.spatial_dims]
    found: dict[str, Any] = {}

    def keep(trainer: Any, path: Path | None, progress: bool, name: str, *_: Any) -> Any:
        found[name] = trainer
        return trainer.model

    for module in (training, estimation, supervised):
        module.fit = keep  # type: ignore[attr-defined]
    context = FitContext(library, spacing_mm, settings.training, augmentation=settings.augmentation, progress=False, name="STM")
    training.train_registration(context, settings.registration, settings.loss)
    if joint:
        estimation.train_slice_network(replace(context, name="slice network"), settings.joint)
        if settings.has_volume_network:
            supervised.train_volume_network(replace(context, name="volume network"), settings.joint, settings.network)
    return found


def training_steps(model: str, root: str) -> dict[str, dict[str, Spent]]:
    """Name of a network -> the time of :data:`STEPS` training steps, by part."""
    import torch

    from oasis_monai.transforms.augmentation import Augmentation

    stages, found = Stages(), {}
    stages.wrap(Augmentation, "__call__", "augment")
    stages.wrap(torch.Tensor, "backward", "backward")
    made = trainers(model, root)
    for owner, name, stage in {(type(getattr(t, k)), m, s) for t in made.values() for k, m, s in PARTS}:
        stages.wrap(owner, name, stage)
    for name, trainer in made.items():
        trainer.step(0)
        stages.spent.clear()
        stages.enter("draw and all else")
        for number in range(1, STEPS + 1):
            trainer.step(number)
        stages.leave()
        found[name] = dict(stages.spent)
    return found


def parser() -> argparse.ArgumentParser:
    """The options of this command."""
    parser = command_parser("benchmarks.profiling.segment", __doc__)
    parser.add_argument("--model", required=True, help="folder of a trained model")
    parser.add_argument("--input", required=True, help="scan to segment")
    parser.add_argument("--data", help="folder of a data set like the model's, for the training steps")
    parser.add_argument("--threads", type=int, default=2, help="threads of the computation")
    parser.add_argument("--output", type=Path, help="folder for profile.md; if not given, the tables are only printed")
    parser.add_argument("--born", type=float, help=argparse.SUPPRESS)
    return parser


def main(arguments: list[str] | None = None) -> None:
    arguments = sys.argv[1:] if arguments is None else arguments
    options = parser().parse_args(arguments)
    if options.born is None:  # start a new process, to measure it from its beginning
        environment = os.environ | {"OMP_NUM_THREADS": str(options.threads)}
        command = [sys.executable, "-m", "benchmarks.profiling.segment", *arguments, f"--born={time.time()}"]
        sys.exit(subprocess.call(command, env=environment))
    with tempfile.TemporaryDirectory() as folder:
        stages = segment(options.model, options.input, folder, options.born)
    parts = ["## oasis-monai segment of one scan\n\n" + text(stages.spent)]
    if options.data:
        for name, spent in training_steps(options.model, options.data).items():
            parts.append(f"## Training step, {name}\n\n" + text(spent, STEPS))
    print("\n\n".join(parts))
    if options.output:
        from oasis_monai.utils.files import write_text

        write_text(options.output / "profile.md", "\n\n".join(parts) + "\n")


if __name__ == "__main__":
    main()
