"""Networks of structures that share voxels: a sigmoid for each structure, made class probabilities where they are used.

A class is a set of structures (:mod:`oasis_monai.data.overlap`). With z_k the logit of structure k, independent sigmoids give a
set the odds of the product of exp(z_k) over its structures, against the empty set. Among the sets that are known, its probability
is softmax(sum of its z_k), the background having 0: what the sigmoids say, given that the voxel is one of these sets. So the rest
of the program, which wants one class a voxel, needs to know nothing of it, and no set comes out that no label has.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn


def class_logits(logits: torch.Tensor, of: torch.Tensor) -> torch.Tensor:
    """(B, K, *S) logits of structures -> (B, C, *S) logits of classes, for the (K, C) membership ``of``.

    Examples:
        >>> import torch
        >>> nested = torch.tensor([[0.0, 1.0, 1.0], [0.0, 0.0, 1.0]])  # class 1: whole; class 2: whole and core
        >>> class_logits(torch.tensor([[2.0, -1.0]])[..., None], nested)[0, :, 0].tolist()
        [0.0, 2.0, 1.0]
    """
    return torch.einsum("kc,bk...->bc...", of.to(logits), logits)


class StructureNetwork(nn.Module):
    """A network with an output for each structure: in training these outputs, else logits of the classes.

    Args:
        network: ``(B, c, *S) -> (B, K, *S)``, or a list of such maps in training.
        structures: (K) the classes of each.
        classes: background included.
    """

    of: torch.Tensor

    def __init__(self, network: nn.Module, structures: Sequence[Sequence[int]], classes: int) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("of", membership(structures, classes), persistent=False)

    def forward(self, image: torch.Tensor) -> torch.Tensor | list[torch.Tensor]:
        made: torch.Tensor | list[torch.Tensor] = self.network(image)
        return made if self.training or isinstance(made, list) else class_logits(made, self.of)


def membership(structures: Sequence[Sequence[int]], classes: int) -> torch.Tensor:
    """(K, C) float32: 1 where a class is part of a structure (:attr:`oasis_monai.data.settings.DataSettings.members`)."""
    made = torch.zeros(len(structures), classes)
    for row, own in enumerate(structures):
        made[row, list(own)] = 1
    return made
