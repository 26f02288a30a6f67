"""The parts that need a training for a moment: step 0, profile, bfloat16, and a training that is killed."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from benchmarks.gpu_day.packed import Packed
from benchmarks.gpu_day.trainers import Train, Trainings, trainer_of
from benchmarks.gpu_day.work import Part, is_cuda, wait
from oasis_monai.training.trainer import CHECK_EVERY, FitContext, Trainer
from oasis_monai.utils.errors import ConfigError
from oasis_monai.utils.tensor_files import load_if_whole

WARM_UP = 3
"""Steps before those that are timed."""
SHOWN = 12
"""Operators in the profiler's table."""
BATCH = 2
"""Volumes or pairs in step 0, which the CPU has to make too."""
MOVED = 0.02
"""Standard deviation of what is added to the weights before step 0."""
KILLED_AT = 5
"""A training is killed after one of this many parts of its steps; on a GPU as long after its first checkpoint."""


def check_step(part: Part) -> None:
    """Compare the first step of every trainer: its losses and its gradient, with TF32 off and on."""
    trainings = Trainings(part.packed)
    for name, (train, slices) in trainings.all().items():
        if not part.enough(name):
            continue
        try:
            expected = _first_step(train, trainings.context("cpu", slices=slices, batch=BATCH))
        except ConfigError as error:  # not every grid suits every network
            part.note(f"{name}: not on this grid ({error.expected}).")
            continue
        row: dict[str, Any] = {"trainer": name, "loss on the CPU": float(expected[0][0])}
        for tf32, kind in ((False, "float32"), (True, "TF32")):
            with tf32_allowed(tf32):
                losses, gradient = _first_step(train, trainings.context(part.device, slices=slices, batch=BATCH))
            row[f"losses differ by ({kind})"] = float((losses - expected[0]).abs().max())
            row[f"gradients by ({kind})"] = float((gradient - expected[1]).norm() / expected[1].norm())
        part.add(row)
    part.note("Losses: the largest absolute difference of a term. Gradients: the norm of the difference over the norm.")
    part.note(f"Weights are those of a new network, with noise of {MOVED} added.")


def _first_step(train: Train, context: FitContext) -> tuple[torch.Tensor, torch.Tensor]:
    """The terms of the loss, and the whole gradient, of step 0, on the CPU in float64.

    The weights are moved a little, on both devices alike. A new registration network moves no voxel, and there the gradient of a
    linear interpolation has two values, between which rounding would choose; a new U-Net is at the corner of its activations
    wherever an image is constant.
    """
    trainer = in_float32(trainer_of(train, context))
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter.add_(MOVED * torch.randn(parameter.shape, generator=random).to(parameter.device))
    losses = trainer.step(0).cpu().double()
    gradients = [p.grad.detach().cpu().double().flatten() for p in trainer.model.parameters() if p.grad is not None]
    return losses, torch.cat(gradients)


def in_float32(trainer: Trainer) -> Trainer:
    """The trainer, computing in float32 also where its CPU would choose bfloat16."""
    if hasattr(trainer, "bfloat16"):
        trainer.bfloat16 = False
    return trainer


@contextmanager
def tf32_allowed(allowed: bool) -> Iterator[None]:
    """Let the GPU round the factors of convolutions and matrix products to TF32, or not."""
    places: tuple[Any, ...] = (torch.backends.cudnn, torch.backends.cuda.matmul)
    before = [place.allow_tf32 for place in places]
    for place in places:
        place.allow_tf32 = allowed
    try:
        yield
    finally:
        for place, value in zip(places, before, strict=True):
            place.allow_tf32 = value


def profile(part: Part) -> None:
    """Time the steps of each network of the joint model, and look at them by torch's profiler."""
    trainings = Trainings(part.packed)
    for name, train in _chosen(part, trainings):
        if not part.enough(name):
            continue
        trainer = trainer_of(train, trainings.context(part.device, amp=trainings.settings.training.amp))
        seconds, _ = timed_steps(trainer, part.steps, part.device)
        activities = [torch.profiler.ProfilerActivity.CPU]
        activities += [torch.profiler.ProfilerActivity.CUDA] if is_cuda(part.device) else []
        if part.counts is not None and hasattr(part.counts, "reset"):
            part.counts.reset()
        with torch.profiler.profile(activities=activities) as seen:
            for number in range(part.steps):
                trainer.step(WARM_UP + part.steps + number)
            wait(part.device)
        table = seen.key_averages()
        row = {"network": name, "ms a step": 1000 * seconds}
        part.add(row | _launches(part, table, seconds) | _memory(part.device))
        device_time = is_cuda(part.device)
        order = "self_cuda_time_total" if device_time else "self_cpu_time_total"
        part.told["texts"][f"{name}: {part.steps} steps"] = table.table(sort_by=order, row_limit=SHOWN, max_name_column_width=40)
    part.note(f"{part.steps} steps after {WARM_UP}. Milliseconds are without the profiler, all else with it.")


def _chosen(part: Part, trainings: Trainings) -> list[tuple[str, Train]]:
    return [(name, train) for name, train in trainings.joint().items() if name in part.options.networks]


def timed_steps(trainer: Trainer, steps: int, device: str) -> tuple[float, list[float]]:
    """Seconds a step, and the losses of all."""
    losses = [trainer.step(number)[0] for number in range(WARM_UP)]
    wait(device)
    began = time.perf_counter()
    losses += [trainer.step(WARM_UP + number)[0] for number in range(steps)]
    wait(device)
    seconds = (time.perf_counter() - began) / steps
    return seconds, [float(loss) for loss in losses]


def _launches(part: Part, table: Any, seconds: float) -> dict[str, float]:
    """Kernels, copies and waits a step, and how much of its time the device computes."""
    steps = part.steps
    if part.counts is not None:
        names = {"launches": "kernels a step", "sent_bytes": "bytes sent a step"}
        return {title: getattr(part.counts, name) / steps for name, title in names.items() if hasattr(part.counts, name)}
    if not is_cuda(part.device):
        return {}
    counts = {event.key: event.count for event in table}

    def number(*parts: str) -> float:
        return sum(count for key, count in counts.items() if any(text in key for text in parts)) / steps

    busy = sum(event.self_device_time_total for event in table if str(event.device_type).endswith("CUDA")) / steps / 1e6
    return {
        "kernels a step": number("LaunchKernel"),
        "copies to the device": number("Memcpy HtoD"),
        "copies back": number("Memcpy DtoH"),
        "waits for the device": number("StreamSynchronize", "DeviceSynchronize"),
        "device computes, %": 100 * busy / seconds,
    }


def _memory(device: str) -> dict[str, float]:
    if not is_cuda(device):
        return {}
    peak = torch.cuda.max_memory_allocated() / 2**20
    torch.cuda.reset_peak_memory_stats()
    return {"peak MiB": peak}


def check_bfloat16(part: Part) -> None:
    """Time the same steps in float32 (with TF32) and in bfloat16, and compare the losses."""
    trainings = Trainings(part.packed)
    for name, train in _chosen(part, trainings):
        if not part.enough(name):
            continue
        row: dict[str, Any] = {"network": name}
        times = {}
        for amp, kind in ((False, "float32"), (True, "bfloat16")):
            trainer = trainer_of(train, trainings.context(part.device, amp=amp))
            with tf32_allowed(True):
                times[kind], losses = timed_steps(trainer if amp else in_float32(trainer), part.steps, part.device)
            last = losses[-max(1, part.steps // 3) :]
            row |= {f"ms a step, {kind}": 1000 * times[kind], f"loss at the end, {kind}": sum(last) / len(last)}
            row |= {f"{what}, {kind}": value for what, value in _memory(part.device).items()}
        part.add(row | {"times as fast": times["float32"] / times["bfloat16"]})
    part.note(f"{part.steps} steps after {WARM_UP}, with the same images. The loss is the mean of the last third of them.")


def check_resume(part: Part) -> None:
    """Kill a training of each network of the joint model in the middle, continue it, and compare with two that ran through."""
    for name in part.options.networks:
        if not part.enough(name):
            continue
        with tempfile.TemporaryDirectory() as folder:
            killed = Path(folder)
            command = [sys.executable, "-m", "benchmarks.gpu_day.work", "--killed", name, "--folder", folder]
            command += [f"--{key}={getattr(part.options, key)}" for key in ("output", "data", "device", "steps")]
            command += ["--pretend", str(part.options.pretend)] if part.options.pretend else []
            status = subprocess.run(command, check=False).returncode
            if status != -signal.SIGKILL:
                raise RuntimeError(f"{name}: expected a training that is killed, found exit status {status}")
            stored = next(found for file in killed.rglob("*.safetensors") if (found := load_if_whole(file)))
            resumed = train_network(part.packed, name, part.device, part.steps, killed)
        first, second = (train_network(part.packed, name, part.device, part.steps, None) for _ in range(2))
        part.add(
            {
                "network": name,
                "killed after step": stored[1]["step"],
                "continued, against uninterrupted": _distance(resumed, first),
                "two uninterrupted": _distance(second, first),
                "to the bit": all(torch.equal(a, b) for a, b in zip(resumed, first, strict=True)),
            }
        )
    part.note("Distances are those of all weights: the norm of the difference over the norm.")


def train_until_killed(packed: Packed, options: argparse.Namespace) -> None:
    """Begin a training that writes a checkpoint as often as it can, and kill this process in a step after one."""
    at = killing_step(options.device, options.steps)

    def kill(trainer: Trainer, number: int) -> None:
        if number == at:
            os.kill(os.getpid(), signal.SIGKILL)

    train_network(packed, options.killed, options.device, options.steps, options.folder, kill)


def killing_step(device: str, steps: int) -> int:
    """The step in which a training is killed: one after a checkpoint."""
    return before_checkpoint(device) + max(1, steps // KILLED_AT)


def before_checkpoint(device: str) -> int:
    """Steps without a checkpoint: on a GPU losses are not looked at before so many, and nothing is kept unseen."""
    return 0 if device == "cpu" else CHECK_EVERY


def train_network(
    packed: Packed, name: str, device: str, steps: int, folder: Path | None, before: Any = lambda trainer, number: None
) -> list[torch.Tensor]:
    """Train one network of the joint model to its end; -> its weights, on the CPU.

    Args:
        before: is called before each step.
    """
    trainings = Trainings(packed)
    whole = round((before_checkpoint(device) + steps) / trainings.shares()[name])  # what gives this network so many steps
    context = trainings.context(device, folder, iterations=whole, minutes=None, checkpoint_minutes=0.0)
    train = trainings.joint()[name]
    kind = type(trainer_of(train, context))
    own = kind.step

    def step(trainer: Trainer, number: int) -> torch.Tensor:
        before(trainer, number)
        return own(trainer, number)

    with mock.patch.object(kind, "step", step):
        model = train(replace(context, folder=folder))
    return [tensor.detach().cpu() for tensor in model.state_dict().values()]


def _distance(a: list[torch.Tensor], b: list[torch.Tensor]) -> float:
    """Norm of the difference of all weights over their norm."""
    ours, theirs = (torch.cat([tensor.double().flatten() for tensor in one]) for one in (a, b))
    return float((ours - theirs).norm() / theirs.norm())
