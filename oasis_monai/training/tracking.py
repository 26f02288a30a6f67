"""Show a training while it runs: loss and held-out Dice go to TensorBoard or MLflow.

Both are imported only where they are used. Nothing here changes a weight: held-out images are segmented without a gradient, with
the random numbers put back, and the time that it takes is not counted in the budget.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from oasis_monai.atlases.library import AtlasLibrary
from oasis_monai.data.types import IGNORE
from oasis_monai.utils.errors import ConfigError, OasisError
from oasis_monai.utils.files import write_text
from oasis_monai.utils.memory import first_line, out_of_memory

AUTO, NONE, TENSORBOARD, MLFLOW = "auto", "none", "tensorboard", "mlflow"
KINDS = (AUTO, NONE, TENSORBOARD, MLFLOW)
VALIDATION = "validation_dice"
"""The name of the held-out Dice, also as a column of ``history.csv``."""
VALIDATIONS = 20
"""How often a training is validated, evenly over its budget."""
HISTORIES = "training"
"""The folder of a run that has the histories of its networks."""
RUN_ID = "mlflow_run"
"""The file that holds the id of a network's MLflow run, so that a resumed training goes on with it."""


def choose_kind(kind: str) -> str:
    """What a ``tracking`` setting comes to on this machine: ``auto`` is TensorBoard where it is installed.

    Raises:
        ConfigError: it names a package that is not installed.
    """
    if kind == AUTO:
        return TENSORBOARD if installed(TENSORBOARD) else NONE
    if kind != NONE and not installed(kind):
        remedy = f"run `pip install 'oasis-monai[{kind}]'`, or set tracking=none"
        raise ConfigError("tracking", "a package that is installed", f"{kind}, which is not", remedy)
    return kind


def installed(package: str) -> bool:
    """Whether a package can be imported."""
    return importlib.util.find_spec(package) is not None


@dataclass(frozen=True)
class Tracking:
    """Where trainings are recorded. Plain values, so that it can be sent to a process that trains.

    Args:
        kind: :data:`TENSORBOARD` or :data:`MLFLOW`.
        folder: of the trainings' own folders.
        name: of one training, a path below ``folder``; empty: of all.
        uri: of MLflow's store.
        experiment: of MLflow, the data set.
        params: of MLflow, the settings.
    """

    kind: str
    folder: Path
    name: str = ""
    uri: str = ""
    experiment: str = "oasis-monai"
    params: Mapping[str, str] = field(default_factory=dict)

    def within(self, part: str) -> Tracking:
        """That of a part, such as one network of a fold."""
        return replace(self, name="/".join(filter(None, [self.name, part.replace(" ", "_")])))

    def prepare(self) -> None:
        """Set up what all trainings share, before several of them begin at once.

        Raises:
            ConfigError: MLflow's store cannot be used.
        """
        if self.kind == MLFLOW:
            try:
                _experiment(_client(self.uri), self.experiment)
            except Exception as error:  # of MLflow, of its database or of the network
                remedy = "correct MLFLOW_TRACKING_URI, or set tracking=none"
                raise ConfigError(
                    "tracking", "an MLflow store that can be used", f"{self.uri} ({first_line(error)})", remedy
                ) from error

    def open(self, step: int) -> Tracker:
        """Begin, or go on from ``step``: what an interrupted training recorded after that is dropped where the tool can."""
        own = self.folder / self.name
        return _MlflowTracker(self, own) if self.kind == MLFLOW else _TensorBoardTracker(own, step)


class Tracker(ABC):
    """What records the numbers of one training."""

    @abstractmethod
    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Record values of a step, readable at once."""

    @abstractmethod
    def close(self, finished: bool) -> None:
        """End the record of a training that has ``finished`` or was interrupted."""


class _TensorBoardTracker(Tracker):
    def __init__(self, folder: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # TensorBoard drops what earlier event files of the folder hold from this step on
        self._writer: Any = SummaryWriter(str(folder), purge_step=step + 1)  # type: ignore[no-untyped-call]

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self, finished: bool) -> None:
        self._writer.close()


class _MlflowTracker(Tracker):
    """A run of MLflow, by its client: no run is the process's active one, so that several trainings do not meet."""

    def __init__(self, tracking: Tracking, folder: Path) -> None:
        self._client = _client(tracking.uri)
        from mlflow.entities import Param
        from mlflow.exceptions import MlflowException

        known = folder / RUN_ID
        try:
            self._run = str(self._client.get_run(known.read_text(encoding="utf-8").strip()).info.run_id)
            self._client.update_run(self._run, "RUNNING")
        except (OSError, MlflowException):  # none yet, or removed since
            name = f"{tracking.folder.parent.name}/{tracking.name}"
            self._run = self._client.create_run(_experiment(self._client, tracking.experiment), run_name=name).info.run_id
            params = [Param(key, value[:500]) for key, value in tracking.params.items()]
            for first in range(0, len(params), 100):  # MLflow takes no more at once
                self._client.log_batch(self._run, params=params[first : first + 100])
            write_text(known, self._run)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        import time

        from mlflow.entities import Metric

        now = int(1000 * time.time())
        self._client.log_batch(self._run, metrics=[Metric(name, value, now, step) for name, value in values.items()])

    def close(self, finished: bool) -> None:
        self._client.set_terminated(self._run, "FINISHED" if finished else "KILLED")


def _client(uri: str) -> Any:
    """MLflow's client, which tells nobody else how it is used."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    from mlflow import MlflowClient

    return MlflowClient(uri)


def _experiment(client: Any, name: str) -> str:
    """The id of an MLflow experiment, made where it is not there."""
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return str(client.create_experiment(name))
        except MlflowException:  # another run has just made it
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    return str(found.experiment_id)


HeldOut = Callable[[], AtlasLibrary | None]


@dataclass(frozen=True)
class Watch:
    """What a training shows while it runs.

    Args:
        tracking: where to.
        held_out: makes the images to validate on, when they are first needed; None where there are none. They are of no case
            that the network is trained on. Their Dice is shown and chooses nothing.
    """

    tracking: Tracking
    held_out: HeldOut = lambda: None

    def within(self, part: str) -> Watch:
        """That of a part of the training."""
        return replace(self, tracking=self.tracking.within(part))

    def changed(self, change: Callable[[AtlasLibrary], AtlasLibrary | None]) -> Watch:
        """The same with other images, such as the same ones on another grid."""
        before = self.held_out

        def changed() -> AtlasLibrary | None:
            images = before()
            return None if images is None else change(images)

        return replace(self, held_out=changed)


class Observer:
    """Follows one training. Without a watch it does nothing.

    Args:
        watch: what to show; None: nothing.
        validate: held-out images -> their mean Dice; None where the network cannot be validated on them.
        name: what messages call the network.
    """

    def __init__(self, watch: Watch | None, validate: Callable[[AtlasLibrary], float | None], name: str) -> None:
        self._watch, self._validate, self._name = watch, validate, name
        self._tracker: Tracker | None = None
        self._images: AtlasLibrary | None = None
        self._asked = False
        self._done = 0

    @contextlib.contextmanager
    def following(self, step: int, share: float) -> Iterator[Observer]:
        """Record from ``step`` on; the last row of the history was at ``share`` of the budget."""
        self._done = int(VALIDATIONS * share)
        if self._watch is not None:
            with self._kept_from_training():
                self._tracker = self._watch.tracking.open(step)
        finished = False
        try:
            yield self
            finished = True
        finally:
            if self._tracker is not None:
                with self._kept_from_training():
                    self._tracker.close(finished)

    @property
    def is_watching(self) -> bool:
        """Whether anything is shown."""
        return self._watch is not None

    def add(self, row: Mapping[str, float], share: float) -> dict[str, float]:
        """Record a row of the history; -> the row, with the held-out Dice where it is due at this ``share`` of the budget."""
        if self._watch is None:
            return dict(row)
        number = int(VALIDATIONS * share)
        due, self._done = number != self._done, number
        value = self._validated() if due else None
        row = dict(row) | ({} if value is None else {VALIDATION: round(value, 6)})
        if self._tracker is not None:
            with self._kept_from_training():
                self._tracker.log(int(row["step"]), {key: value for key, value in row.items() if key != "step"})
        return row

    def _validated(self) -> float | None:
        assert self._watch is not None
        devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
        try:
            with torch.no_grad(), torch.random.fork_rng(devices=devices):
                if not self._asked:
                    self._asked, self._images = True, self._watch.held_out()
                return None if self._images is None else self._validate(self._images)
        except (RuntimeError, MemoryError, OasisError) as error:
            if not (out_of_memory(error) or out_of_memory(error.__cause__ or error)):
                raise
            self._images = None  # the training itself has room
            self._tell(f"no held-out Dice is shown any more ({first_line(error)})")
            return None

    @contextlib.contextmanager
    def _kept_from_training(self) -> Iterator[None]:
        """Go on without a record where a server or a disk fails: a training is worth more than its curve."""
        try:
            yield
        except Exception as error:
            self._tracker = None
            self._tell(f"the training goes on, but nothing more is recorded of it ({first_line(error)})")

    def _tell(self, text: str) -> None:
        from tqdm import tqdm

        tqdm.write(f"note: {self._name}: {text}", file=sys.stderr)


def mean_dice(
    predicted: Iterable[torch.Tensor], label: Iterable[torch.Tensor], classes: int, cases: Sequence[str]
) -> float | None:
    """The Dice coefficient 2 |A and B| / (|A| + |B|) of each structure in each case, all images of a case together; their mean.

    Args:
        predicted: N images of (\\*S) class indices.
        label: N images of (\\*S) class indices; voxels with ``IGNORE`` do not count.
        classes: background included.
        cases: (N,) the case of each image.

    Returns:
        0 to 1; a structure that a reference lacks does not count. None where no reference has any.
    """
    images: dict[str, list[tuple[torch.Tensor, torch.Tensor]]] = {}
    for case, ours, theirs in zip(cases, predicted, label, strict=True):
        known = theirs != IGNORE
        images.setdefault(case, []).append((ours[known], theirs[known]))
    found = []
    for parts in images.values():
        ours, theirs = (torch.cat(one) for one in zip(*parts, strict=True))
        for index in range(1, classes):
            a, b = ours == index, theirs == index
            if bool(b.any()):
                found.append(2 * float((a & b).sum()) / float(a.sum() + b.sum()))
    return sum(found) / len(found) if found else None
