"""A pretend GPU for torch's CPU build: what a program would do on CUDA is checked and counted, and computed on the CPU.

    with pretend_device() as record:
        ...  # anything with device="cuda", in this process and thread
    record.sent, record.syncs, record.kernels

Inside, ``x.to("cuda")`` gives a tensor that says it is on ``cuda:0``. Three kinds of mistakes raise, as they do on a GPU: tensors
of two devices in one operation, a generator of the CPU for a draw on the device, and ``.numpy()`` of a tensor on the device.
Everything that costs on a GPU is recorded with the line of the package that asked for it: kernels, bytes sent either way, and
each time the host waits for the device. The host waits for a copy from the host too, unless it comes from pinned memory with
``non_blocking``: torch's blocking copies end with a synchronisation of the stream.

A :class:`DeviceTensor` wraps the CPU tensor that holds its values. Two layers look at every call. :class:`_Calls` sees Python's
calls, where devices are named: ``to``, ``cpu``, ``numpy``, factories with ``device=``. :class:`_Kernels` sees the operators that
these come to, also those of the backward pass, and runs them on the values.

Not pretended: cuDNN, NCCL, the rounding of CUDA's own kernels and of its bfloat16 (autocast is the CPU's), asynchrony, CUDA
graphs, memory of the device (a number of free bytes is all there is), inference mode (it is ``no_grad`` here: a wrapper cannot
have views of inference tensors).
"""

from __future__ import annotations

import contextlib
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch.autograd.grad_mode import inference_mode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


PACKAGE = str(Path(__file__).parents[2] / "oasis_monai")
MOVERS = ("utils/transfer.py", "training/resident.py")
"""Files whose callers are told in their place."""
VIEWS = _words(
    "view _unsafe_view reshape _reshape_alias expand permute transpose t slice select unsqueeze squeeze detach alias as_strided "
    "split split_with_sizes chunk unbind unfold view_as_real diagonal movedim lift_fresh"
)
"""Operators that launch no kernel."""
WAITING = _words(
    "_local_scalar_dense is_nonzero equal nonzero masked_select _unique2 unique_dim unique_consecutive bincount "
    "_linalg_check_errors"
)
"""Operators whose result, or its size, the host has to know."""
NO_SCALARS = _words("mm addmm bmm baddbmm convolution cat stack index_select gather scatter grid_sampler_2d grid_sampler_3d")
"""Operators that take no value of the CPU, not even a single number."""
INDEXING = _words("index _unsafe_index index_put index_put_ _index_put_impl_")
UPLOADING = (torch.tensor, torch.as_tensor, torch.asarray)


class MixedDevicesError(RuntimeError):
    """What CUDA says of an operation that is given tensors of two devices."""


class Transfer(NamedTuple):
    """Bytes that were sent, and from which line."""

    bytes: int
    where: str


@dataclass
class Record:
    """What happened on the pretend devices; places are ``file.py:line`` of the package.

    Attributes:
        kernels: launches by operator.
        sent: from the host to a device.
        fetched: from a device to the host.
        syncs: (what, place) of everything that made the host wait.
        free: bytes that the device says it has left.
    """

    kernels: Counter[str] = field(default_factory=Counter)
    sent: list[Transfer] = field(default_factory=list)
    fetched: list[Transfer] = field(default_factory=list)
    syncs: list[tuple[str, str]] = field(default_factory=list)
    free: int = 1 << 40

    def reset(self) -> None:
        """Begin to count anew."""
        self.kernels.clear()
        for events in (self.sent, self.fetched, self.syncs):
            events.clear()

    @property
    def sent_bytes(self) -> int:
        """All that went to the device."""
        return sum(one.bytes for one in self.sent)

    @property
    def fetched_bytes(self) -> int:
        """All that came back."""
        return sum(one.bytes for one in self.fetched)

    @property
    def launches(self) -> int:
        """All kernels."""
        return self.kernels.total()

    def send(self, tensor: torch.Tensor, waits: bool) -> None:
        self.sent.append(Transfer(tensor.numel() * tensor.element_size(), place()))
        if waits:
            self.wait("copy to the device")

    def fetch(self, tensor: torch.Tensor, waits: bool = True) -> None:
        self.fetched.append(Transfer(tensor.numel() * tensor.element_size(), place()))
        if waits:
            self.wait("copy to the host")

    def wait(self, what: str) -> None:
        self.syncs.append((what, place()))


_record = Record()
_current = [0]
_drawing: list[torch.device] = []
"""Of the generator that a call was given: operators get a plain one of the CPU in its place."""


def place() -> str:
    """The line of the package that is being run, e.g. ``networks/warp.py:58``."""
    frame = sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename
        if file.startswith(PACKAGE) and not file.endswith(MOVERS):
            return f"{file.removeprefix(PACKAGE).lstrip('/')}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]
    return "outside the package"


class DeviceTensor(torch.Tensor):
    """A tensor that says it is on a GPU. ``held`` has its values."""

    held: torch.Tensor
    on: torch.device

    @staticmethod
    def __new__(cls, held: torch.Tensor, on: torch.device) -> DeviceTensor:
        how: Any = {"strides": held.stride(), "storage_offset": held.storage_offset(), "layout": held.layout, "device": "cpu"}
        made = torch.Tensor._make_wrapper_subclass(cls, held.shape, dtype=held.dtype, **how)
        made.held, made.on = held, on
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]
    device = property(lambda self: self.on)
    is_cuda = property(lambda self: True)
    is_cpu = property(lambda self: False)

    def get_device(self) -> int:
        return int(self.on.index)

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"DeviceTensor({tuple(self.shape)}, {self.dtype}, {self.on})"

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        with torch.no_grad():
            made: Any = DeviceTensor(self.held.clone(), self.on)
        if getattr(self, "_is_param", False):
            made = torch.nn.Parameter(made, self.requires_grad)
        memo[id(self)] = made
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        return _operate(func, args, kwargs or {})


class DeviceGenerator(torch.Generator):
    """``torch.Generator``, also of a pretend device."""

    def __new__(cls, device: Any = "cpu") -> Any:
        if not _is_device(device):
            return _CpuGenerator(device)
        made: Any = super().__new__(cls, "cpu")  # type: ignore[call-arg]
        made.on = _device(device)
        return made

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        on: torch.device = self.on  # type: ignore[attr-defined]
        return on


_CpuGenerator = torch.Generator


def _is_device(device: Any) -> bool:
    return device is not None and not isinstance(device, bool) and torch.device(device).type == "cuda"


def _device(device: Any) -> torch.device:
    found = torch.device(device)
    return torch.device("cuda", _current[0]) if found.index is None else found


def _tensors(values: Any) -> list[torch.Tensor]:
    return [x for x in tree_leaves(values) if isinstance(x, torch.Tensor)]


def _held(value: Any) -> Any:
    return value.held if isinstance(value, DeviceTensor) else value


# --- operators ---------------------------------------------------------------------------------------------------------------


class _Kernels(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _operate(func, args, kwargs or {})


def _operate(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Run an operator on the values of its tensors; what comes out is where they are."""
    name = func._schema.name.partition("::")[2]
    leaves = tree_leaves((args, kwargs))
    tensors = [x for x in leaves if isinstance(x, torch.Tensor)]
    there = [x for x in tensors if isinstance(x, DeviceTensor)]
    if name == "copy_":
        return _copy(func, args, kwargs)
    if not there:
        return func(*args, **kwargs)
    on = there[0].on
    if name in INDEXING:
        _check_indexing(name, args)
    else:
        _check_devices(name, tensors, args)
    for leaf in leaves:
        if isinstance(leaf, _CpuGenerator):
            _check_generator(name, leaf, on)
    if name in WAITING or (name == "repeat_interleave" and kwargs.get("output_size") is None):
        _record.wait(name)
        if name in ("_local_scalar_dense", "is_nonzero"):
            _record.fetch(there[0], waits=False)
    if name not in VIEWS:
        _record.kernels[name] += 1
    inner_args, inner_kwargs = tree_map(_held, (args, kwargs))
    if _is_device(inner_kwargs.get("device")):
        inner_kwargs["device"] = "cpu"
    made = func(*inner_args, **inner_kwargs)
    known = {id(x.held): x for x in there}

    def wrapped(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        own = known.get(id(value))  # an operator in place gives back what it was given
        if own is None:
            return DeviceTensor(value, on)
        assert own.shape == value.shape, f"{name} changes the shape of a tensor in place, which is not pretended"
        return own

    return tree_map(wrapped, made)


def _copy(func: Any, args: Any, kwargs: dict[str, Any]) -> torch.Tensor:
    """``copy_`` goes between devices."""
    to, source = args[:2]
    non_blocking = bool(args[2] if len(args) > 2 else kwargs.get("non_blocking", False))
    if isinstance(to, DeviceTensor):
        _record.kernels["copy_"] += 1
        if not isinstance(source, DeviceTensor):
            _record.send(source.to(to.dtype), not (non_blocking and _is_pinned(source)))
    elif isinstance(source, DeviceTensor):
        _record.fetch(to, not (non_blocking and _is_pinned(to)))
    func(_held(to), _held(source))
    return to


def _check_devices(name: str, tensors: list[torch.Tensor], args: Any) -> None:
    """One device for all, but single numbers of the CPU, which kernels take as arguments."""
    places = {x.on for x in tensors if isinstance(x, DeviceTensor)}
    of_cpu = [x for x in tensors if not isinstance(x, DeviceTensor)]
    if len(places) == 1 and not of_cpu:
        return
    onto_cpu = name.endswith("_") and isinstance(args[0], torch.Tensor) and not isinstance(args[0], DeviceTensor)
    if len(places) > 1 or any(x.dim() for x in of_cpu) or name in NO_SCALARS or onto_cpu:
        found = ", ".join(f"{tuple(x.shape)} on {x.device}" for x in tensors)
        raise MixedDevicesError(f"{name}: expected all tensors on the same device, found {found}, at {place()}")


def _check_indexing(name: str, args: Any) -> None:
    """Indices may be on the CPU, from where they are copied; what is indexed, and what is written, may not."""
    into, indices = args[0], [x for x in args[1] if x is not None]
    if not isinstance(into, DeviceTensor):
        raise MixedDevicesError(f"{name}: indices should be on the device of the indexed tensor (cpu), at {place()}")
    values = args[2] if len(args) > 2 else None
    if isinstance(values, torch.Tensor) and not isinstance(values, DeviceTensor) and values.dim() > 0:
        raise MixedDevicesError(f"{name}: expected values on {into.device}, found them on cpu, at {place()}")
    for index in indices:
        if not isinstance(index, DeviceTensor):
            _record.send(index, waits=True)
        elif index.on != into.on:
            raise MixedDevicesError(f"{name}: indices on {index.device} of a tensor on {into.device}, at {place()}")
    masked = any(index.dtype in (torch.bool, torch.uint8) for index in indices)
    if masked and not (values is not None and values.numel() == 1):  # a single value is filled in without a look at the mask
        _record.wait(f"{name} by a mask")


def _check_generator(name: str, generator: Any, on: torch.device) -> None:
    found = _drawing[-1] if _drawing else generator.device
    if found != on:
        raise MixedDevicesError(f"{name}: expected a generator of {on}, found one of {found}, at {place()}")


# --- Python's calls ----------------------------------------------------------------------------------------------------------


class _Up(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, on: torch.device) -> torch.Tensor:
        return DeviceTensor(x.detach().clone(memory_format=torch.preserve_format), on)

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        return grad.held, None


class _Down(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Any) -> Any:
        ctx.on = x.on
        return x.held.detach().clone(memory_format=torch.preserve_format)

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        return DeviceTensor(grad, ctx.on)


def _is_pinned(tensor: torch.Tensor) -> bool:
    return bool(getattr(tensor, "pinned", False))


def _moved(tensor: torch.Tensor, device: Any, non_blocking: bool = False) -> torch.Tensor:
    """A tensor on another device."""
    if not _is_device(device):
        if not isinstance(tensor, DeviceTensor):
            return tensor
        _record.fetch(tensor)  # into pageable memory
        made: torch.Tensor = _Down.apply(tensor)
        return made
    on = _device(device)
    if isinstance(tensor, DeviceTensor):
        if tensor.on == on:
            return tensor
        _record.kernels["copy between devices"] += 1
        return DeviceTensor(tensor.held.clone(), on)
    _record.send(tensor, not (non_blocking and _is_pinned(tensor)))
    made = _Up.apply(tensor, on)
    return made


def _to(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    """``Tensor.to`` in all its forms. Types are changed where the tensor is, as torch does."""
    device, dtype = kwargs.pop("device", None), kwargs.pop("dtype", None)
    flags = []
    for value in args:
        if isinstance(value, torch.Tensor):
            device, dtype = value.device, value.dtype
        elif isinstance(value, torch.dtype):
            dtype = value
        elif isinstance(value, bool):
            flags.append(value)
        elif value is not None:
            device = value
    non_blocking = flags[0] if flags else kwargs.pop("non_blocking", False)
    kwargs.pop("non_blocking", None)
    cast = tensor if dtype is None and not kwargs else tensor.to(dtype or tensor.dtype, **kwargs)
    return cast if device is None else _moved(cast, device, non_blocking)


def _on_device_only(what: str) -> Any:
    """A call that reads a tensor's memory, which the host cannot do on a device."""

    def call(tensor: torch.Tensor, *args: Any, force: bool = False, **kwargs: Any) -> Any:
        if not isinstance(tensor, DeviceTensor):
            return getattr(tensor, what)(*args, **({"force": force} if force else {}), **kwargs)
        if force:
            return _moved(tensor, "cpu").detach().numpy()
        raise TypeError(f"can't convert {tensor.on} device type tensor to numpy. Use Tensor.cpu() first, at {place()}")

    return call


def _to_list(tensor: torch.Tensor) -> Any:
    return _moved(tensor, "cpu").tolist()


def _pin(tensor: torch.Tensor, *_: Any) -> torch.Tensor:
    if isinstance(tensor, DeviceTensor):
        raise RuntimeError("cannot pin a tensor of a device: only dense CPU tensors can be pinned")
    made = tensor.clone()
    made.pinned = True  # type: ignore[attr-defined]
    return made


def _new_tensor(tensor: torch.Tensor, data: Any, **kwargs: Any) -> torch.Tensor:
    if not isinstance(tensor, DeviceTensor):
        return tensor.new_tensor(data, **kwargs)
    kwargs.setdefault("dtype", tensor.dtype)
    device = kwargs.pop("device", None) or tensor.on
    return _moved(torch.tensor(data, **kwargs), device)


CALLS = {
    torch.Tensor.to: _to,
    torch.Tensor.type_as: lambda tensor, other: _to(tensor, other),
    torch.Tensor.cpu: lambda tensor, *_, **__: _moved(tensor, "cpu"),
    torch.Tensor.cuda: lambda tensor, device=None, non_blocking=False, **_: _moved(
        tensor, "cuda" if device is None else torch.device("cuda", device) if isinstance(device, int) else device, non_blocking
    ),
    torch.Tensor.numpy: _on_device_only("numpy"),
    torch.Tensor.__array__: _on_device_only("__array__"),
    torch.Tensor.tolist: _to_list,
    torch.Tensor.pin_memory: _pin,
    torch.Tensor.is_pinned: lambda tensor, *_: _is_pinned(tensor),
    torch.Tensor.new_tensor: _new_tensor,
}


class _Calls(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in CALLS:
            return CALLS[func](*args, **kwargs)  # this mode is off within
        generator = kwargs.get("generator")
        if isinstance(generator, DeviceGenerator):
            _drawing.append(generator.device)
            try:
                return self._call(func, args, kwargs)
            finally:
                _drawing.pop()
        return self._call(func, args, kwargs)

    def _call(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        device = kwargs.get("device")
        if device is None:
            return func(*args, **kwargs)
        if not _is_device(device):
            known = any(isinstance(x, DeviceTensor) for x in _tensors((args, kwargs)))
            made = func(*args, **({k: v for k, v in kwargs.items() if k != "device"} if known else kwargs))
            return _moved(made, device) if isinstance(made, DeviceTensor) else made
        on = _device(device)
        if on.index >= torch.cuda.device_count():
            raise RuntimeError("CUDA error: invalid device ordinal")
        if isinstance(generator := kwargs.get("generator"), _CpuGenerator):
            _check_generator(func.__name__, generator, on)
        made = func(*args, **(kwargs | {"device": "cpu"}))
        if isinstance(made, DeviceTensor):
            return _moved(made, on)
        if func in UPLOADING:
            return _moved(made, on)
        _record.kernels[func.__name__] += 1
        return DeviceTensor(made, on)


@contextlib.contextmanager
def pretend_device(count: int = 1) -> Iterator[Record]:
    """So many pretend GPUs while the context lasts, in this thread.

    Yields:
        the record of what happens on them.
    """
    global _record
    before, _record = _record, Record()
    _current[0] = 0
    autocast, made = torch.autocast, _record

    def on_cpu(device_type: str, *args: Any, **kwargs: Any) -> Any:
        return autocast("cpu" if device_type == "cuda" else device_type, *args, **kwargs)

    def enter(self: inference_mode) -> None:
        self.pretended = torch.set_grad_enabled(not self.mode)  # type: ignore[attr-defined]
        self.pretended.__enter__()  # type: ignore[attr-defined]

    def leave(self: inference_mode, *error: Any) -> None:
        self.pretended.__exit__(*error)  # type: ignore[attr-defined]

    cuda = {
        "is_available": lambda: True,
        "device_count": lambda: count,
        "current_device": lambda: _current[0],
        "set_device": lambda device: _current.__setitem__(0, _device(device).index),
        "get_device_name": lambda *_: "pretend",
        "synchronize": lambda *_: made.wait("synchronize"),
        "mem_get_info": lambda *_: (made.free, made.free),
        "empty_cache": lambda: None,
        "is_bf16_supported": lambda *_, **__: True,
        "get_device_capability": lambda *_: (9, 0),
    }
    with contextlib.ExitStack() as stack:
        for name, value in cuda.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, value))
        stack.enter_context(mock.patch.object(torch, "autocast", on_cpu))
        stack.enter_context(mock.patch.object(torch, "Generator", DeviceGenerator))
        stack.enter_context(mock.patch.object(inference_mode, "__enter__", enter))
        stack.enter_context(mock.patch.object(inference_mode, "__exit__", leave))
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        try:
            with _Kernels(), _Calls():
                yield made
        finally:
            torch.__future__.set_overwrite_module_params_on_conversion(False)
            _record = before
