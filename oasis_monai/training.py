"""Fit the STM on one library: pairs of atlases, eq. 1, Adam; resumable to the bit on one machine.

Every random draw of step ``i`` comes from a generator seeded by (seed, i), so a run that was killed and started again sees the
same pairs and the same augmentation as one that was not: the state to keep is weights, optimiser and step number.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from oasis_monai import warp as warping
from oasis_monai.align import foreground
from oasis_monai.augment import Augmentation
from oasis_monai.errors import ConfigError, OasisError
from oasis_monai.files import load_if_whole, save_tensors, write_text
from oasis_monai.library import AtlasLibrary
from oasis_monai.losses import RegistrationLoss
from oasis_monai.nearest import nearest
from oasis_monai.networks import SpatialTransformModel, StmSettings

TRAINING_VERSION = 1  # part of every checkpoint's key; raise it when the same settings would train differently
SCHEDULES = ("constant", "cosine")


@dataclass(frozen=True)
class TrainingSettings:
    """How the STM is fitted. The fields are the keys of ``conf/training``.

    Args:
        iterations: stop after so many steps; None for no such limit.
        minutes: stop after so many minutes of training (checkpoints count what went before); None for no such limit.
            Whichever comes first ends it. Only a run limited by iterations alone is reproducible.
        lr: Adam's learning rate.
        schedule: ``cosine`` falls to 1 % of ``lr`` by the end of the budget, ``constant`` stays.
        batch: pairs per step.
        pairs: each target's partner is one of its ``pairs`` nearest atlases (feature distance); 0: any other atlas.
        augment: change both images of a pair at random (:class:`oasis_monai.augment.Augmentation`).
        amp: bfloat16 autocast of the network's convolutions.
        checkpoint_minutes: at most so much work is lost by a kill.
    """

    iterations: int | None = None
    minutes: float | None = 12.0
    lr: float = 1e-3
    schedule: str = "cosine"
    batch: int = 2
    pairs: int = 0
    augment: bool = True
    amp: bool = False
    checkpoint_minutes: float = 1.0

    def __post_init__(self) -> None:
        def require(key: str, fine: bool, expected: str) -> None:
            if not fine:
                raise ConfigError(f"training.{key}", expected, getattr(self, key))

        require("iterations", self.iterations is None or self.iterations > 0, "a positive number of steps, or null")
        require("minutes", self.minutes is None or self.minutes > 0, "a positive number of minutes, or null")
        require("iterations", (self.iterations or self.minutes) is not None, "a limit here or in training.minutes")
        require("lr", self.lr > 0, "a positive learning rate")
        require("schedule", self.schedule in SCHEDULES, f"one of {list(SCHEDULES)}")
        require("batch", self.batch > 0, "1 or more pairs")
        require("pairs", self.pairs >= 0, "0 (random) or a number of nearest atlases")

    def identity(self) -> dict[str, Any]:
        """What decides the weights: everything but how often checkpoints are written."""
        return {k: v for k, v in asdict(self).items() if k != "checkpoint_minutes"}


@dataclass
class _State:
    """What a checkpoint holds beside weights and optimiser."""

    step: int = 0
    seconds: float = 0.0
    done: bool = False
    history: list[dict[str, float]] = field(default_factory=list)


class Pairs:
    """Who may be aligned to whom: for every atlas of a library its allowed partners.

    Args:
        library: the training atlases.
        distance: of :func:`oasis_monai.nearest.nearest`.
        nearest_count: partners are the so many nearest by feature distance; 0: all.
        same_case: whether an atlas may meet another one of its own case (slices under slice folds); itself never.
    """

    def __init__(self, library: AtlasLibrary, nearest_count: int, distance: str = "l2", same_case: bool = False) -> None:
        count = len(library.cases)
        names = {case: number for number, case in enumerate(dict.fromkeys(library.cases))}
        own = torch.arange(count) if same_case else torch.tensor([names[case] for case in library.cases])
        self.count, self._own = count, own
        partners = count - int(torch.bincount(own).max())
        if partners < 1:
            raise ConfigError("data", "at least two training cases to make pairs of", f"{len(names)} case(s)", "add cases")
        self._near: torch.Tensor | None = None
        if nearest_count:
            self._near, _ = nearest(
                library.features, library.features, min(nearest_count, partners), distance, exclude=(own, own)
            )

    def draw(self, batch: int, random: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """(batch,) rows of atlases and of their targets."""
        targets = torch.randint(self.count, (batch,), generator=random)
        if self._near is not None:
            column = torch.randint(self._near.shape[1], (batch,), generator=random)
            return self._near[targets, column], targets
        atlases = torch.randint(self.count, (batch,), generator=random)
        while bool((clash := self._own[atlases] == self._own[targets]).any()):
            atlases = torch.where(clash, torch.randint(self.count, (batch,), generator=random), atlases)
        return atlases, targets


def train_stm(
    library: AtlasLibrary,
    spacing_mm: tuple[float, ...],
    stm: StmSettings,
    loss: RegistrationLoss,
    settings: TrainingSettings,
    seed: int,
    folder: Path | None,
    device: str | torch.device = "cpu",
    same_case: bool = False,
    distance: str = "l2",
    augmentation: Augmentation | None = None,
    progress: bool = True,
    name: str = "STM",
) -> SpatialTransformModel:
    """Train an STM on the pairs of a library, or load it when ``folder`` already holds the finished one.

    Args:
        library: training atlases, with labels; images (N, 1, *S).
        spacing_mm: voxel size of the working grid, for the augmentation's rotations.
        folder: where ``stm.safetensors`` (resumable checkpoint) and ``history.csv`` go; None keeps nothing.
        same_case, distance: see :class:`Pairs`.

    Raises:
        OasisError: the loss is no longer finite; the last good checkpoint stays.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # the initial weights
        model = SpatialTransformModel(library.images.shape[2:], stm).to(device)
    optimiser = torch.optim.Adam(model.parameters(), lr=settings.lr)
    path = folder / "stm.safetensors" if folder else None
    state = _resume(path, model, optimiser)
    if state.done:
        return model.eval()
    trainer = _Trainer(library, spacing_mm, model, optimiser, loss, settings, seed, same_case, distance, augmentation)
    _run(trainer, state, path, progress, name)
    return model.eval()


class _Trainer:
    """One step of training; holds the library on the device."""

    def __init__(
        self,
        library: AtlasLibrary,
        spacing_mm: tuple[float, ...],
        model: SpatialTransformModel,
        optimiser: torch.optim.Optimizer,
        loss: RegistrationLoss,
        settings: TrainingSettings,
        seed: int,
        same_case: bool,
        distance: str,
        augmentation: Augmentation | None,
    ) -> None:
        self.library, self.spacing_mm, self.model, self.optimiser = library, spacing_mm, model, optimiser
        self.loss, self.settings, self.seed = loss, settings, seed
        self.augmentation = (augmentation or Augmentation()) if settings.augment else None
        self.pairs = Pairs(library, settings.pairs, distance, same_case)
        self.device = next(model.parameters()).device

    def _batch(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        image = self.library.images[rows].to(self.device, torch.float32)
        return image, foreground(self.library.labels[rows].to(self.device), self.library.classes)

    def step(self, number: int, progress: float) -> torch.Tensor:
        """Make step ``number`` at ``progress`` (0..1) of the budget; -> (4,) total, similarity, Dice, smoothness."""
        settings = self.settings
        random = torch.Generator().manual_seed((self.seed << 32) + number)
        falling = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
        for group in self.optimiser.param_groups:
            group["lr"] = settings.lr * (0.01 + 0.99 * falling if settings.schedule == "cosine" else 1.0)
        atlases, targets = self.pairs.draw(settings.batch, random)
        (atlas, atlas_label), (target, target_label) = self._batch(atlases), self._batch(targets)
        if self.augmentation is not None:
            flip = self.augmentation.flips(settings.batch, random)
            atlas, atlas_label = self.augmentation(atlas, atlas_label, flip, self.spacing_mm, random)
            target, target_label = self.augmentation(target, target_label, flip, self.spacing_mm, random)
        self.model.train()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=settings.amp):
            ddf = self.model(atlas, target)
        moved, moved_label = warping.warp_pair(atlas, atlas_label, ddf)
        terms = self.loss(moved, target, moved_label, target_label, ddf)
        self.optimiser.zero_grad(set_to_none=True)
        terms.total.backward()
        self.optimiser.step()
        return torch.stack([term.detach() for term in terms])


def _run(trainer: _Trainer, state: _State, path: Path | None, progress: bool, name: str) -> None:
    from tqdm import tqdm

    settings = trainer.settings
    started, before = time.monotonic(), state.seconds
    last_saved, recent = started, torch.zeros(4)
    counted = 0
    every = max(1, (settings.iterations or 2000) // 100)

    def share() -> float:
        """How much of the budget is used, by whichever limit is nearer."""
        by_step = state.step / settings.iterations if settings.iterations else 0.0
        by_time = state.seconds / (60 * settings.minutes) if settings.minutes else 0.0
        return max(by_step, by_time)

    with tqdm(
        total=100, desc=name, unit="%", disable=not progress, bar_format="{l_bar}{bar}| {elapsed}<{remaining}{postfix}"
    ) as bar:
        while share() < 1:
            terms = trainer.step(state.step, share()).cpu()
            if not bool(torch.isfinite(terms).all()):
                raise _diverged(name, f"a loss of {terms.tolist()}", state, settings)
            state.step += 1
            now = time.monotonic()
            state.seconds = before + now - started
            recent, counted = recent + terms, counted + 1
            if state.step % every == 0:
                state.history.append(_row(state, recent / counted, trainer.optimiser.param_groups[0]["lr"]))
                bar.set_postfix_str(f"step {state.step} loss {recent[0] / counted:.3f} dice {-recent[2] / counted:.3f}")
                recent, counted = torch.zeros(4), 0
            bar.update(min(100, int(100 * share())) - bar.n)
            if path and now - last_saved > 60 * settings.checkpoint_minutes and counted == 0:
                _check_weights(trainer.model, name, state, settings)
                _save(path, trainer, state)
                last_saved = now
        _check_weights(trainer.model, name, state, settings)
        state.done = True
        if path:
            _save(path, trainer, state)


def _check_weights(model: nn.Module, name: str, state: _State, settings: TrainingSettings) -> None:
    """A finite loss may have had a gradient that was not; such weights must never become the checkpoint."""
    if not all(bool(torch.isfinite(p).all()) for p in model.parameters()):
        raise _diverged(name, "weights that are not", state, settings)


def _diverged(name: str, found: str, state: _State, settings: TrainingSettings) -> OasisError:
    return OasisError(
        f"{name}: training.lr: expected finite losses and weights, found {found} at step {state.step}; the last good "
        f"checkpoint is kept: lower training.lr (now {settings.lr})"
    )


def _row(state: _State, terms: torch.Tensor, lr: float) -> dict[str, float]:
    total, similarity, dice, smooth = (round(float(t), 6) for t in terms)
    return {
        "step": state.step,
        "seconds": round(state.seconds, 1),
        "lr": lr,
        "loss": total,
        "similarity": similarity,
        "dice": dice,
        "smoothness": smooth,
    }


def _save(path: Path, trainer: _Trainer, state: _State) -> None:
    tensors = {f"model.{k}": v for k, v in trainer.model.state_dict().items()}
    if not state.done:  # a finished model needs no optimiser
        for number, moments in trainer.optimiser.state_dict()["state"].items():
            tensors |= {f"optimiser.{number}.{k}": torch.as_tensor(v) for k, v in moments.items()}
    save_tensors(path, tensors, asdict(state))
    if state.history:
        lines = [",".join(state.history[0]), *(",".join(f"{v:g}" for v in row.values()) for row in state.history)]
        write_text(path.with_name("history.csv"), "\n".join(lines) + "\n")


def _resume(path: Path | None, model: nn.Module, optimiser: torch.optim.Optimizer) -> _State:
    """Load a checkpoint into model and optimiser; a missing or damaged one starts from step 0."""
    stored = load_if_whole(path) if path else None
    if stored is None:
        return _State()
    tensors, meta = stored
    model.load_state_dict({k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")})
    moments: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("optimiser."):
            _, number, name = key.split(".", 2)
            moments.setdefault(int(number), {})[name] = value
    if moments:
        optimiser.load_state_dict({**optimiser.state_dict(), "state": moments})
    return _State(**meta)


def stm_weights(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The network's weights out of a checkpoint's tensors."""
    return {k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")}
