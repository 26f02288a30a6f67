"""Train one network in several processes, those that ``torchrun`` starts.

The first process runs the command as if it were alone; the others wait to help. When it trains a network it sends them the
trainer, and with every step the weights. All of them draw the same batch, seeded by the step's number, and run the network on
their share of it. The sum of the processes' gradients is that of the whole batch:

- A loss that is a mean over images, that of registration: each process warps its own pairs and computes their loss, weighted by
  their part of the batch (:meth:`SingleProcess.own_rows`).
- Any other, such as Dice over a batch: the outputs are gathered, and each process computes the loss of the *whole* batch, in
  which only its own share has a gradient (:meth:`SingleProcess.forward`).

The first process steps the optimiser, keeps time, ends the training and writes. So 1 and N processes train the same weights up to
the order in which floating point numbers are added.
"""

from __future__ import annotations

import contextlib
import copy
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any, NoReturn, Protocol

import torch
from torch import distributed as dist
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from oasis_monai.utils.errors import ConfigError, OasisError

PATIENCE = timedelta(days=30)  # helpers wait while the first process segments; a dead process is noticed at once
GRACE_S = 3.0  # that a terminated process has to end by itself
TERMINATED = "error: torchrun: process 0 was terminated; see the messages of the other processes"
STOP = -1  # sent in place of a step's number: the training has ended


class Trainable(Protocol):
    """What several processes step together, see :class:`oasis_monai.training.trainer.Trainer`."""

    model: nn.Module
    optimiser: torch.optim.Optimizer
    team: SingleProcess

    def step(self, number: int) -> torch.Tensor:
        """Make one step."""

    def move(self, device: str) -> None:
        """Continue on another device."""


class SingleProcess:
    """A process without helpers, which computes every step alone."""

    is_main = True
    """Whether this process steps the optimiser."""

    def forward(self, model: nn.Module, *inputs: torch.Tensor, **how: Any) -> Any:
        """The model's output, or list of outputs, for the whole batch; ``how`` goes to the model as it is."""
        return model(*inputs, **how)

    def own_rows(self, batch: int) -> slice:
        """This process's rows of a batch, perhaps none."""
        return slice(0, batch)

    def total(self, terms: torch.Tensor) -> torch.Tensor:
        """The sum of the processes' terms, in the leading one."""
        return terms

    def sum_gradients(self, model: nn.Module) -> None:
        """Make the leading process's gradients those of the whole batch."""

    def start_step(self, number: int, model: nn.Module) -> None:
        """Tell the helpers which step comes, and the weights it starts from."""

    @contextlib.contextmanager
    def helping(self, trainer: Trainable) -> Iterator[None]:
        """Have the helpers step ``trainer`` along."""
        yield


class ProcessGroup(SingleProcess):
    """One of the processes that ``torchrun`` started.

    Args:
        rank: its number; 0 is the main process.
        size: the number of processes.
        group: the ``torch.distributed`` group for tensors on the CPU.
    """

    def __init__(self, rank: int, size: int, group: Any = None) -> None:
        self.rank, self.size, self.is_main = rank, size, rank == 0
        self._groups: dict[str, Any] = {"cpu": group}
        self._group = group  # for the network in training
        self.broken = False
        """Whether a process has ended, or this one left a step that the others are still in: they cannot communicate any more."""

    @contextlib.contextmanager
    def _together(self) -> Iterator[None]:
        """Around collective calls: turn torch's long RuntimeError about a lost process into an OasisError."""
        try:
            yield
        except RuntimeError as error:
            self.broken = True
            if self.is_main:
                signal.signal(signal.SIGTERM, signal.SIG_IGN)  # this process ends by itself and says why
            reason = " ".join(str(error).split())[:100]
            raise OasisError(
                f"torchrun: process {self.rank} stops because another of the {self.size} processes has ended ({reason}). See its "
                "message and run the same command again; training continues from the last checkpoint."
            ) from error

    def _tell(self, value: Any) -> Any:
        """Send the main process's ``value`` to all processes, and return it."""

        box = [value]
        with self._together():
            dist.broadcast_object_list(box, src=0, group=self._groups["cpu"])
        return box[0]

    def _use(self, device: str) -> None:
        """Choose the backend for tensors on ``device``: gloo on the CPU, NCCL between GPUs."""

        if device not in self._groups:
            with self._together():
                self._groups[device] = dist.new_group(backend="nccl")
        self._group = self._groups[device]

    @contextlib.contextmanager
    def helping(self, trainer: Trainable) -> Iterator[None]:
        if _mixes_images(trainer.model):  # no share of a batch has the batch's statistics: such a network is trained here alone
            yield
            return
        device = next(trainer.model.parameters()).device.type
        self._tell((_for_helpers(trainer), device))
        self._use(device)
        trainer.team = self
        try:
            yield
        finally:
            trainer.team = SingleProcess()
            if not self.broken:
                self._number(STOP)

    def serve(self) -> None:
        """Help with every step of the main process until it ends.

        Raises:
            OasisError: the main process has ended early.
        """

        torch.set_flush_denormal(True)
        while (task := self._tell(None)) is not None:
            trainer, device = task
            where = f"cuda:{_local_gpu()}" if device == "cuda" else device
            if device == "cuda":
                torch.cuda.set_device(where)
            self._use(device)
            trainer.move(where)
            trainer.team = self
            while (number := self._number(STOP)) != STOP:
                self._share_weights(trainer.model)
                trainer.step(number)
        dist.destroy_process_group()  # its threads must not outlive the interpreter: the process would abort as it ends

    def dismiss(self) -> None:
        """End the helpers; the main process calls this as it ends."""
        if not self.broken:
            self._tell(None)
            dist.destroy_process_group()

    def _number(self, number: int) -> int:
        message = torch.tensor([number])
        with self._together():
            dist.broadcast(message, src=0, group=self._groups["cpu"])
        return int(message)

    def start_step(self, number: int, model: nn.Module) -> None:
        self._number(number)
        self.broken = True  # until the gradients are summed
        self._share_weights(model)

    def _share_weights(self, model: nn.Module) -> None:
        weights = [parameter.detach() for parameter in model.parameters()]
        flat = _joined(weights)
        with self._together():
            dist.broadcast(flat, src=0, group=self._group)
        if not self.is_main:
            _spread(flat, weights)

    def forward(self, model: nn.Module, *inputs: torch.Tensor, **how: Any) -> Any:
        """As the model alone gives it, in float32. Every process takes equally many images; those beyond the batch's end, where
        it does not divide, are the last one again and count for nothing."""
        batch = len(inputs[0])
        share = -(-batch // self.size)
        start, stop = self.rank * share, (self.rank + 1) * share
        if stop <= batch:
            own = [x[start:stop] for x in inputs]
        else:
            own = [x[torch.arange(start, stop).clamp_max(batch - 1)] for x in inputs]
        output = model(*own, **how)
        if isinstance(output, list):
            return [self._whole(part, batch) for part in output]
        return self._whole(output, batch)

    def own_rows(self, batch: int) -> slice:
        share = -(-batch // self.size)
        return slice(min(batch, self.rank * share), min(batch, (self.rank + 1) * share))

    def total(self, terms: torch.Tensor) -> torch.Tensor:
        terms = terms.clone()
        with self._together():
            dist.reduce(terms, dst=0, group=self._group)
        return terms

    def _whole(self, own: torch.Tensor, batch: int) -> torch.Tensor:
        """The outputs of all processes, of which only this one's have a gradient."""
        own = own.float().contiguous()
        parts = [torch.empty_like(own) for _ in range(self.size)]
        with self._together():
            dist.all_gather(parts, own.detach(), group=self._group)
        parts[self.rank] = own
        return torch.cat(parts)[:batch]

    def sum_gradients(self, model: nn.Module) -> None:
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]
        flat = _joined(gradients)
        with self._together():
            dist.reduce(flat, dst=0, group=self._group)
        self.broken = False
        _spread(flat, gradients)  # what has none, because nothing depends on it, keeps none


def _joined(tensors: list[torch.Tensor]) -> torch.Tensor:
    """Concatenate tensors into a single message."""
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def _spread(flat: torch.Tensor, tensors: list[torch.Tensor]) -> None:
    """Copy the parts of a message of :func:`_joined` back into its tensors."""
    for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(part.view(tensor.shape))


def _mixes_images(model: nn.Module) -> bool:
    """Whether an image's output depends on what else is in its batch."""
    model.train()
    return any(isinstance(module, _BatchNorm) and module.training for module in model.modules())


def _for_helpers(trainer: Trainable) -> Trainable:
    """A trainer as a helper needs it: no optimiser, nothing on a GPU that may not be the helper's."""
    sent = copy.copy(trainer)
    sent.model = copy.deepcopy(trainer.model)
    del sent.optimiser
    sent.move("cpu")
    return sent


def _local_gpu() -> int:
    number, count = int(os.environ.get("LOCAL_RANK", os.environ["RANK"])), torch.cuda.device_count()
    if number >= count:
        raise ConfigError("torchrun --nproc-per-node", f"at most {count}, the GPUs of this machine", number + 1, "lower it")
    return number


_team: ProcessGroup | None = None


def team() -> SingleProcess:
    """The processes that train with this one."""
    return _team or SingleProcess()


def size() -> int:
    """The number of processes that train one network together."""
    return _team.size if _team else 1


@contextlib.contextmanager
def joined() -> Iterator[ProcessGroup]:
    """Connect to the other processes; on leaving, the main one ends them.

    Raises:
        OasisError: they could not connect.
    """

    global _team
    if os.environ["RANK"] == "0":
        signal.signal(signal.SIGTERM, _terminated)  # torchrun ends all processes when one has failed
        _end_though_blocked()
    try:
        if torch.cuda.is_available():
            torch.cuda.set_device(_local_gpu())
        dist.init_process_group("gloo")
        group = dist.new_group(timeout=PATIENCE)
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise OasisError(f"torchrun: the processes could not connect ({reason}). Check their addresses and ports.") from error
    _team = ProcessGroup(dist.get_rank(), dist.get_world_size(), group)
    try:
        yield _team
    finally:
        if _team.is_main:
            with contextlib.suppress(OasisError):  # what there was to do is done, or has failed already
                _team.dismiss()
        _team = None


def _terminated(signum: int, frame: object) -> NoReturn:
    if _team is not None:
        _team.broken = True
    print(TERMINATED, file=sys.stderr)
    raise SystemExit(128 + signum)


def _end_though_blocked() -> None:
    """End this process on SIGTERM also where Python cannot: its handler runs between two of its instructions, and a process that
    waits in a collective call for one that has stopped comes to none."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)  # written to at once, by whatever the main thread is in

    def watch() -> None:
        while came := os.read(reader, 1):
            if came[0] == signal.SIGTERM:
                time.sleep(GRACE_S)
                print(TERMINATED, file=sys.stderr, flush=True)
                os._exit(128 + signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()
