"""Keep what training draws from where it is drawn: on the GPU, if it fits there.

Images, labels and estimates of a fold are sent once. A step then sends the rows it draws, some bytes, and gathers its batch on
the GPU. What does not fit stays in the host's memory: its batches are gathered there and copied, and the log says so.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from oasis_monai.atlases.library import AtlasLibrary
from oasis_monai.utils.transfer import onto, upload

SHARE = 0.5
"""Of a GPU's free memory, for what training draws from; networks and their maps need the rest."""
GATHERED = ("images", "labels", "estimates", "context")
"""The tensors of a library that batches are made of."""


def hold(tensors: Sequence[torch.Tensor], device: torch.device, name: str) -> list[torch.Tensor]:
    """The tensors on a device if all of them fit there, else as they are.

    Args:
        name: what messages call them.
    """
    if device.type == "cpu":
        return list(tensors)
    size, free = sum(one.numel() * one.element_size() for one in tensors), torch.cuda.mem_get_info(device)[0]
    if size > SHARE * free:
        logging.getLogger(__name__).warning(
            "note: %s: %.1f GB do not fit on the GPU (%.1f GB free); batches are copied from the host's memory, which is slower",
            *(name, size / 1e9, free / 1e9),
        )
        return list(tensors)
    return [one.to(device) for one in tensors]


def resident(library: AtlasLibrary, device: torch.device, name: str = "training images") -> AtlasLibrary:
    """A library whose images, labels, estimates and neighbouring slices are on the device, if they fit there. Features stay."""
    if device.type == "cpu":
        return library
    known = {key: value for key in GATHERED if (value := getattr(library, key)) is not None}
    changed: dict[str, Any] = dict(zip(known, hold(list(known.values()), device, name), strict=True))
    return replace(library, fine=(), thumbnails=None, **changed)


def gather(values: torch.Tensor, rows: torch.Tensor, device: torch.device) -> torch.Tensor:
    """``values[rows]`` on the device, wherever ``values`` are; ``rows`` are on the host, or where ``values`` are."""
    if values.device.type == "cpu":
        return onto(values[rows], device)
    (there,) = (rows,) if rows.device == values.device else upload(device, rows)
    return values[there]
