"""Keep the atlases that are used on the GPU that uses them: each is sent there once, not for every scan and pair."""

from __future__ import annotations

import torch

SHARE = 0.25
"""Of a GPU's free memory, for atlases; networks and their maps need the rest."""


class DeviceRows:
    """Gathers rows of tensors that lie on the host, or in a file, on a device.

    On the CPU nothing is kept. On a GPU a row stays once it has been used, while there is room; values of these tensors must not
    change.

    Args:
        device: where the rows are wanted.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._sources: dict[int, torch.Tensor] = {}  # held, so that no other tensor can come to their place
        self._kept: dict[tuple[int, int], torch.Tensor] = {}
        self._room: float | None = None

    def __call__(self, values: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """``values[rows]`` for (n,) rows of the host: on the CPU where the device is one, else on the GPU."""
        if self.device.type == "cpu" or values.device.type != "cpu":
            return values[rows]
        if self._room is None:
            self._room = SHARE * torch.cuda.mem_get_info(self.device)[0]
        self._sources[id(values)] = values
        wanted = [(id(values), row) for row in rows.tolist()]
        missing = list(dict.fromkeys(key for key in wanted if key not in self._kept))
        sent: dict[tuple[int, int], torch.Tensor] = {}
        if missing:
            there = values[torch.tensor([row for _, row in missing])].to(self.device)
            sent = dict(zip(missing, there, strict=True))
            size = there.numel() * there.element_size()
            if size <= self._room:
                self._room -= size
                self._kept |= sent
        return torch.stack([sent[key] if key in sent else self._kept[key] for key in wanted]) if wanted else values[rows]
