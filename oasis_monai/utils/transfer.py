"""Bring values to a GPU without making the host wait for it.

A copy to a GPU ends with a synchronisation unless it comes from pinned memory: until then the host prepares no further step, and
the GPU idles while it does. So what a step needs from the host is small and goes in one packed copy, and what never changes is
sent once. On the CPU nothing is copied.
"""

from __future__ import annotations

from functools import lru_cache

import torch

ALIGNED = 16  # bytes: where a tensor of any type may begin


def onto(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A tensor on a device; from the host by a copy that it does not wait for."""
    if tensor.device.type != "cpu" or device.type == "cpu":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def upload(device: torch.device, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Small tensors of the host on a device, by one copy for all; on the CPU the tensors themselves.

    Examples:
        >>> import torch
        >>> rows, flips = upload(torch.device("cpu"), torch.tensor([3, 1]), torch.tensor([True, False]))
        >>> rows
        tensor([3, 1])
    """
    if device.type == "cpu" or not tensors:
        return tensors
    pieces, places, end = [], [], 0
    for tensor in tensors:
        content = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
        padding = -len(content) % ALIGNED
        pieces += [content, content.new_zeros(padding)]
        places.append(slice(end, end + len(content)))
        end += len(content) + padding
    there = onto(torch.cat(pieces), device)
    return tuple(there[place].view(tensor.dtype).view(tensor.shape) for tensor, place in zip(tensors, places, strict=True))


def constant(values: tuple[float, ...], device: torch.device) -> torch.Tensor:
    """(n,) float32 numbers on a device, sent there once."""
    return _sent(values, device) if device.type != "cpu" else torch.tensor(values)


@lru_cache(maxsize=256)
def _sent(values: tuple[float, ...], device: torch.device) -> torch.Tensor:
    with torch.inference_mode(False):  # they are kept, and training may want them
        return onto(torch.tensor(values), device)
