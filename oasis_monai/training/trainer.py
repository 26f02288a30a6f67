"""The training loop: budget, learning rate schedule, checkpoints, resuming bit for bit on one machine.

Each trainer decides what a step sees (pairs for the STM, single images for segmentation networks). Budget, schedule and
checkpoints are the same for all, so that networks are compared at equal budgets.
"""

from __future__ import annotations

import hashlib
import math
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from oasis_monai.atlases.library import AtlasLibrary
from oasis_monai.training import distributed
from oasis_monai.training.calibration import steps_within
from oasis_monai.training.compilation import compile_network
from oasis_monai.training.tracking import Observer, Watch
from oasis_monai.transforms.augmentation import Augmentation
from oasis_monai.utils.config import INFERENCE_ONLY, absent_as, not_used_by, require
from oasis_monai.utils.errors import OasisError
from oasis_monai.utils.files import write_text
from oasis_monai.utils.memory import first_line, keep_freed_memory, out_of_memory
from oasis_monai.utils.tensor_files import load_if_whole, save_tensors

TRAINING_VERSION = 2  # part of every checkpoint's key; raise it when the same settings would train differently
SCHEDULES = ("constant", "cosine", "warm_cosine")
CHECK_EVERY = 50
"""Steps between two looks at the losses on a GPU: at each one the host waits for it. On a CPU every step is looked at."""
WARM_UP = 0.02  # fraction of the budget in which ``warm_cosine`` rises


@dataclass(frozen=True)
class TrainingSettings:
    """How a network is trained. The fields are the keys of ``conf/training``.

    Training ends at ``iterations`` or ``minutes``, whichever comes first. Only training that is limited by iterations alone can
    be repeated to the bit.

    Args:
        iterations: number of training steps, 1 or more; None for no limit.
        minutes: minutes of training, above 0; None for no limit. Minutes before an interruption count. On a CPU these are
            minutes of computing time, so a busy machine gives every network its full share. On a GPU the first steps are timed,
            and the training has as many steps as these minutes hold (:mod:`oasis_monai.training.calibration`).
        lr: Adam's learning rate, above 0.
        schedule: ``cosine`` falls to 1 % of ``lr`` by the end of the budget. ``warm_cosine`` first rises to ``lr`` during 2 % of
            the budget, so that pre-trained weights survive the first steps. ``constant`` stays.
        batch: pairs per step of the registration network, images per step of a segmentation network; 1 or more.
        nearest_partners: each target is paired with one of this many nearest atlases by feature distance; 0 for any atlas.
        augment: change both images of a pair at random (:class:`oasis_monai.transforms.augmentation.Augmentation`).
        amp: compute the network's convolutions in bfloat16. The slice network, DynU-Nets and registration networks of volumes
            do so by themselves on CPUs with fast bfloat16.
        compile: train the network as ``torch.compile`` makes it (:mod:`oasis_monai.training.compilation`): it rounds in other
            places, and the first step takes a minute or more. Where it cannot be compiled it is trained as it is.
        checkpoint_minutes: minutes between two checkpoints, the most that an interruption can lose; 0 or more.

    Raises:
        ConfigError: naming ``training.<key>``.
    """

    iterations: int | None = None
    minutes: float | None = 20.0
    lr: float = field(default=2e-3, metadata=not_used_by("slices"))
    schedule: str = field(default="cosine", metadata=not_used_by("slices"))
    batch: int = field(default=2, metadata=not_used_by("slices"))
    nearest_partners: int = field(default=0, metadata=not_used_by("slices", "volume", "segmentation"))
    augment: bool = True
    amp: bool = False
    compile: bool = field(default=False, metadata=absent_as(False))
    checkpoint_minutes: float = field(default=1.0, metadata=INFERENCE_ONLY)

    def __post_init__(self) -> None:
        require(
            self,
            "training",
            ("iterations", self.iterations is None or self.iterations > 0, "a positive number of steps, or null"),
            ("minutes", self.minutes is None or self.minutes > 0, "a positive number of minutes, or null"),
            ("iterations", (self.iterations or self.minutes) is not None, "a limit here or in training.minutes"),
            ("lr", self.lr > 0, "a positive learning rate"),
            ("schedule", self.schedule in SCHEDULES, f"one of {list(SCHEDULES)}"),
            ("batch", self.batch > 0, "1 or more pairs"),
            ("nearest_partners", self.nearest_partners >= 0, "0 (random) or a number of nearest atlases"),
        )

    def part(self, share: float) -> TrainingSettings:
        """These settings with ``share`` (0..1) of the budget."""
        iterations = None if self.iterations is None else max(1, round(share * self.iterations))
        return replace(self, iterations=iterations, minutes=None if self.minutes is None else share * self.minutes)


@dataclass(frozen=True)
class FitContext:
    """What fitting any network needs beside the network itself: the atlases, the budget, and where to run and keep it.

    Args:
        library: training atlases, images (N, 1, *S) with labels.
        spacing_mm: voxel size of the working grid, for the augmentation's rotations: (D,) of all atlases, or (N, D) where their
            grids differ.
        training: budget, learning rate and batch.
        seed: of initial weights and random draws.
        folder: where the resumable checkpoint and ``history.csv`` go; None keeps nothing.
        device: where it runs.
        augmentation: of the training images; None: the default one, where ``training.augment`` asks for any.
        progress: show a progress bar.
        name: what the progress bar and messages call the network.
        same_case: whether an atlas may meet another slice of its own case (slice folds).
        distance: between features, see :func:`.selection.nearest`.
        start: weights to begin with, in the place of random ones; None: begin anew.
        chances: (N,) how often each atlas is drawn, relative to the others; None: all as often.
        shares: (N, m, *S) what a segmentation network learns in the place of the library's labels: the share of each of the
            channels of :func:`oasis_monai.transforms.labels.with_ignored` in every voxel; None: the labels.
        anywhere: classes of structures that may lie anywhere: a network on slices also learns from copies of them.
        estimate_dice: mean Dice that a joint STM's estimates are brought down to; 1: they stay as they are.
        watch: what to show of the training while it runs; None: nothing. It changes no weight.
    """

    library: AtlasLibrary
    spacing_mm: tuple[float, ...] | torch.Tensor
    training: TrainingSettings
    seed: int = 0
    folder: Path | None = None
    device: str | torch.device = "cpu"
    augmentation: Augmentation | None = None
    progress: bool = True
    name: str = "network"
    same_case: bool = False
    distance: str = "l2"
    start: Mapping[str, torch.Tensor] | None = None
    chances: torch.Tensor | None = None
    shares: torch.Tensor | None = None
    anywhere: tuple[int, ...] = ()
    estimate_dice: float = 1.0
    watch: Watch | None = None

    def begin(self, network: nn.Module, part: str = "") -> None:
        """Give a new network the weights to begin with.

        Args:
            part: what their names begin with, where they are those of several networks.
        """
        if self.start is not None:
            network.load_state_dict({k.removeprefix(part): v for k, v in self.start.items() if k.startswith(part)})

    def augmented(self) -> Augmentation | None:
        """The augmentation to use; None where the training images stay as they are."""
        return (self.augmentation or Augmentation()) if self.training.augment else None

    @property
    def spacings_mm(self) -> torch.Tensor:
        """(N, D) float64, the voxel size of every atlas."""
        spacing_mm = torch.as_tensor(self.spacing_mm, dtype=torch.float64)
        return spacing_mm.expand(len(self.library), spacing_mm.shape[-1])

    def path(self, file: str) -> Path | None:
        """A file of the folder; None where nothing is kept."""
        return self.folder / file if self.folder else None


@dataclass
class _State:
    """What a checkpoint holds beside weights and optimiser; ``recent`` are the sums of the terms of the ``counted`` steps since
    the last row of the history, ``iterations`` the budget that minutes of a GPU have come to."""

    step: int = 0
    seconds: float = 0.0
    done: bool = False
    history: list[dict[str, float]] = field(default_factory=list)
    recent: list[float] = field(default_factory=list)
    counted: int = 0
    iterations: int | None = None


class Trainer(ABC):
    """One kind of training: a network, its optimiser and the computation of a step. :func:`fit` runs it.

    Every random draw of step ``number`` must come from :func:`generator`, so that a run that was killed and started again sees
    what one that was not would have seen: the state to keep is weights, optimiser and step number.
    """

    model: nn.Module
    optimiser: torch.optim.Optimizer
    settings: TrainingSettings
    terms: tuple[str, ...]
    """Names of what :meth:`step` returns; the first is the loss."""
    memory_setting = "training.batch"
    """The setting that lowers the memory of a step."""
    device: torch.device
    compiled: Any = None
    """The model as it is run in training; None: as it is."""
    team: distributed.SingleProcess = distributed.SingleProcess()
    """The processes that share the work of a step, see :mod:`oasis_monai.training.distributed`."""

    @abstractmethod
    def step(self, number: int) -> torch.Tensor:
        """Make one step of the optimiser, the network run by ``team.forward`` and the loss handed to :meth:`descend`; -> the
        terms, detached."""

    def validate(self, images: AtlasLibrary) -> float | None:
        """The mean Dice of held-out ``images``, 0 to 1, with the network in evaluation mode; None where there is none to give.
        It must draw no random number and change nothing."""
        return None

    def move(self, device: str) -> None:
        """Continue on another device."""
        self.model.to(device)
        self.device = torch.device(device)
        self.hold()

    @abstractmethod
    def hold(self) -> None:
        """Put what batches are drawn from on :attr:`device`, see :mod:`oasis_monai.training.resident`."""

    @property
    def runs(self) -> Any:
        """The model, or what it was compiled to."""
        return self.model if self.compiled is None else self.compiled

    def descend(self, loss: torch.Tensor) -> None:
        """One step of the optimiser down the gradient of the whole batch's loss."""
        self.model.zero_grad(set_to_none=True)
        loss.backward()
        self.team.sum_gradients(self.model)
        if self.team.is_main:
            self.optimiser.step()

    def descend_with_others(self, terms: int) -> torch.Tensor:
        """:meth:`descend` of a process without rows of its own in a batch of so many ``terms``; -> 0 for each."""
        told = self.team.total(torch.zeros(terms, device=self.device))
        self.model.zero_grad(set_to_none=True)
        self.team.sum_gradients(self.model)
        return told


def generator(seed: int, step: int) -> torch.Generator:
    """The random numbers of one step, others for every seed."""
    mixed = hashlib.sha256(f"{seed} {step}".encode()).digest()
    # torch's generator on a CPU takes no more than 32 bits of a seed
    return torch.Generator().manual_seed(int.from_bytes(mixed[:4], "little"))


def draw_rows(count: int, number: int, random: torch.Generator, chances: torch.Tensor | None = None) -> torch.Tensor:
    """(number,) rows of ``count`` atlases, by the (count,) ``chances`` of :class:`FitContext`."""
    if chances is None:
        return torch.randint(count, (number,), generator=random)
    return torch.multinomial(chances, number, replacement=True, generator=random)


def network_weights(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The network's weights out of a checkpoint's tensors."""
    return {k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")}


def load_weights(network: nn.Module, tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    """Give a network the weights of a checkpoint, whose tensors were read from ``path``.

    Raises:
        OasisError: they are of a network with other layers.
    """
    try:
        network.load_state_dict(network_weights(tensors))
    except RuntimeError as error:  # the file is whole: the network has since been given other layers
        raise OasisError(
            f"model: expected weights of this version's {type(network).__name__} in {path.name}, found another version's in "
            f"{path.parent}; train the model again with this version (in a cache: remove that folder)"
        ) from error


def load_finished(network: nn.Module, path: Path | None) -> bool:
    """Give a network the weights of its finished training, where there is one, and set it to evaluation; whether there was one.

    So that no trainer is made for it: some look at every slice of the library first.

    Args:
        path: the checkpoint of :func:`fit`.
    """
    stored = load_if_whole(path) if path else None
    if path is None or stored is None or not stored[1].get("done"):
        return False
    load_weights(network, stored[0], path)
    network.eval()
    return True


def fit(
    trainer: Trainer, path: Path | None, progress: bool = True, name: str = "network", watch: Watch | None = None
) -> nn.Module:
    """Train until the budget is used, from the checkpoint if there is one.

    Args:
        path: the resumable checkpoint, e.g. ``stm.safetensors``; ``history.csv`` goes beside it. None keeps nothing.
        progress: show a bar.
        name: what messages call it.
        watch: what to show while it trains.

    Raises:
        OasisError: the loss or the weights are no longer finite, or memory has run out; the last good checkpoint stays.
    """
    state = _resume(path, trainer.model, trainer.optimiser)
    if not state.done:
        last = state.history[-1] if state.history else {"step": 0, "seconds": 0}
        observer = Observer(watch, lambda images: _validate(trainer, images), name)
        shown = _share(trainer.settings, last["step"], last["seconds"])
        with distributed.team().helping(trainer), observer.following(state.step, shown), keep_freed_memory():
            _run(trainer, state, path, progress, name, observer)
    return trainer.model.eval()


def _validate(trainer: Trainer, images: AtlasLibrary) -> float | None:
    trainer.model.eval()
    try:
        return trainer.validate(images)
    finally:
        trainer.model.train()


def _run(trainer: Trainer, state: _State, path: Path | None, progress: bool, name: str, observer: Observer) -> None:
    from tqdm import tqdm

    on_cpu = next(trainer.model.parameters()).device.type == "cpu"
    if trainer.settings.compile:
        trainer.compiled = compile_network(
            trainer.model, trainer.optimiser, trainer.device, lambda made: _try_compiled(trainer, made, state, name), name
        )
    settings = trainer.settings if on_cpu else _in_steps(trainer, state, name, progress)
    # on the CPU the computing time of this thread: what else the machine does takes nothing from the budget
    clock = time.thread_time if on_cpu else time.monotonic
    started, before = clock(), state.seconds
    last_saved = started
    every = max(1, (settings.iterations or 2000) // 100)
    pending: list[tuple[float, torch.Tensor]] = []  # the learning rate and the terms of steps that were not looked at

    def share() -> float:
        return _share(settings, state.step + len(pending), state.seconds)

    look = "{l_bar}{bar}| {elapsed} gone, {remaining} left{postfix}"
    with tqdm(total=100, desc=name, unit="%", disable=not progress, leave=False, bar_format=look) as bar:
        while share() < 1:
            rate = _set_rate(trainer, share())
            pending.append((rate, _step(trainer, state.step + len(pending), name)))
            if not on_cpu and len(pending) < CHECK_EVERY and share() < 1:
                continue
            found = torch.stack([terms for _, terms in pending]).tolist()  # here the host waits for the device
            now = clock()
            state.seconds = before + now - started
            rates, rows = [rate for rate, _ in pending], len(state.history)
            pending.clear()
            for rate, values in zip(rates, found, strict=True):
                if not all(map(math.isfinite, values)):
                    raise _diverged(name, f"losses {values}", state, settings)
                state.step += 1
                state.recent = [a + b for a, b in zip(state.recent, values, strict=True)] if state.counted else values
                state.counted += 1
                if state.step % every == 0:
                    means = [value / state.counted for value in state.recent]
                    state.history.append(observer.add(_row(state, trainer, rate, means), share()))
                    bar.set_postfix_str(f"step {state.step} loss {means[0]:.3f}")
                    state.counted = 0
            if observer.is_watching and len(state.history) > rows:
                started += clock() - now  # what is only shown takes nothing from the budget
            bar.update(min(100, int(100 * share())) - bar.n)
            if path and now - last_saved > 60 * settings.checkpoint_minutes:
                _check_weights(trainer.model, name, state, settings)
                _save(path, trainer, state)
                last_saved = now
        _check_weights(trainer.model, name, state, settings)
        state.done = True
        if path:
            _save(path, trainer, state)


def _try_compiled(trainer: Trainer, made: Any, state: _State, name: str) -> None:
    """A training step with a compiled network."""
    trainer.compiled = made
    _step(trainer, state.step, name).tolist()


def _in_steps(trainer: Trainer, state: _State, name: str, progress: bool) -> TrainingSettings:
    """The settings with a budget of a GPU in steps."""
    from tqdm import tqdm

    settings = trainer.settings
    if settings.minutes is None:
        return settings
    if state.iterations is None:
        _set_rate(trainer, 0.0)
        left, parts = 60 * settings.minutes - state.seconds, (trainer.model, trainer.optimiser, trainer.device)
        state.iterations = state.step + steps_within(left, lambda number: _step(trainer, number, name), *parts)
        if progress:
            tqdm.write(f"{name}: {settings.minutes:g} minutes are {state.iterations} steps on this GPU", file=sys.stderr)
    return replace(settings, iterations=min(filter(None, [settings.iterations, state.iterations])), minutes=None)


def _share(settings: TrainingSettings, step: float, seconds: float) -> float:
    """Fraction of the budget that is used, by whichever limit is nearer."""
    by_step = step / settings.iterations if settings.iterations else 0.0
    by_time = seconds / (60 * settings.minutes) if settings.minutes else 0.0
    return max(by_step, by_time)


def _step(trainer: Trainer, number: int, name: str) -> torch.Tensor:
    """The terms of a step, where the network is."""
    trainer.team.start_step(number, trainer.model)
    try:
        return trainer.step(number)
    except (RuntimeError, MemoryError) as error:  # fewer rows a step would train another network: that is the user's to decide
        if not out_of_memory(error):
            raise
        raise OasisError(
            f"{name}: out of memory at step {number} ({first_line(error)}). Lower {trainer.memory_setting} or "
            "preprocessing.size, or close other programs, and run the same command again. The last checkpoint is kept."
        ) from error


def _set_rate(trainer: Trainer, share: float) -> float:
    """Set the learning rate at ``share`` (0..1) of the budget, and return that of the first group."""
    settings = trainer.settings
    rate = settings.lr
    if settings.schedule != "constant":
        rate *= 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, share)))
    if settings.schedule == "warm_cosine":
        rate *= max(0.01, min(1.0, share / WARM_UP))
    for group in trainer.optimiser.param_groups:
        group["lr"] = rate * group.get("scale", 1.0)
    first: float = trainer.optimiser.param_groups[0]["lr"]
    return first


def _check_weights(model: nn.Module, name: str, state: _State, settings: TrainingSettings) -> None:
    """A finite loss may have had a gradient that was not; such weights must never become the checkpoint."""
    if not bool(torch.stack([torch.isfinite(p).all() for p in model.parameters()]).all()):
        raise _diverged(name, "weights that are not finite", state, settings)


def _diverged(name: str, found: str, state: _State, settings: TrainingSettings) -> OasisError:
    return OasisError(
        f"{name}: training diverged at step {state.step} ({found}). Lower training.lr (now {settings.lr}) and run again. "
        "The last good checkpoint is kept."
    )


def _row(state: _State, trainer: Trainer, rate: float, terms: Sequence[float]) -> dict[str, float]:
    now = {"step": state.step, "seconds": round(state.seconds, 1), "lr": rate}
    return now | {name: round(term, 6) for name, term in zip(trainer.terms, terms, strict=True)}


def _save(path: Path, trainer: Trainer, state: _State) -> None:
    tensors = {f"model.{k}": v for k, v in trainer.model.state_dict().items()}
    if not state.done:  # a finished model needs no optimiser
        for number, moments in trainer.optimiser.state_dict()["state"].items():
            tensors |= {f"optimiser.{number}.{k}": torch.as_tensor(v) for k, v in moments.items()}
    kept = {key: value for key, value in asdict(state).items() if key != "iterations" or value}  # as before on a CPU
    save_tensors(path, tensors, kept)
    if state.history:
        names = list(dict.fromkeys(name for row in state.history for name in row))  # a held-out Dice is not in every row
        cells = [[f"{row[name]:g}" if name in row else "" for name in names] for row in state.history]
        lines = [",".join(names), *(",".join(row) for row in cells)]
        write_text(path.with_name("history.csv"), "\n".join(lines) + "\n")


def _resume(path: Path | None, model: nn.Module, optimiser: torch.optim.Optimizer) -> _State:
    """Load a checkpoint into model and optimiser; a missing or damaged one starts from step 0."""
    stored = load_if_whole(path) if path else None
    if path is None or stored is None:
        return _State()
    tensors, meta = stored
    load_weights(model, tensors, path)
    moments: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("optimiser."):
            _, number, name = key.split(".", 2)
            moments.setdefault(int(number), {})[name] = value
    if moments:
        weights = [weight for group in optimiser.param_groups for weight in group["params"]]
        for row, found in moments.items():  # torch's fused optimisers expect the layout of the weights, and do not check
            like = weights[row]
            moments[row] = {k: torch.empty_like(like).copy_(v) if v.shape == like.shape else v for k, v in found.items()}
        optimiser.load_state_dict({**optimiser.state_dict(), "state": moments})
    return _State(**meta)
