"""One random draw of a model, as Monte Carlo dropout makes it: how far draws disagree says where a model is unsure.

MONAI Label sorts scans by that (its *epistemic* scoring): it gives every network definition of a bundle a ``dropout``, puts the
network into training mode, and segments a scan several times. What a draw leaves out: channels before the last convolution of the
slice networks, the same in all slices (Gal and Ghahramani 2016, arXiv 1506.02142), and atlases, with the same probability.
"""

from __future__ import annotations

import copy

import torch

from oasis_monai.networks.slice_unet import SliceUNet, SliceUNetEnsemble
from oasis_monai.utils.errors import ConfigError


def check_dropout(dropout: float) -> float:
    """``dropout`` as a probability of 0 or more and below 1.

    Raises:
        ConfigError: it is none.
    """
    if not 0 <= dropout < 1:
        raise ConfigError("dropout", "a probability, 0 or more and below 1", dropout)
    return float(dropout)


def thinned(network: SliceUNet | SliceUNetEnsemble, dropout: float) -> SliceUNet | SliceUNetEnsemble:
    """A copy whose last convolution does not see some of its channels, and sees the others the more."""
    drawn = copy.deepcopy(network)
    for member in drawn.members if isinstance(drawn, SliceUNetEnsemble) else [drawn]:
        weight = member.last[0].weight  # type: ignore[union-attr,index]
        kept = (torch.rand(weight.shape[1]) >= dropout).to(weight) / (1 - dropout)
        with torch.no_grad():
            weight.mul_(kept.view(1, -1, 1, 1))
    return drawn


def drawn_atlases(atlases: int, least: int, dropout: float) -> torch.Tensor:
    """(m,) rows of the atlases that a draw keeps, ``least`` or more, in rising order."""
    chance = torch.rand(atlases)
    kept = int((chance >= dropout).sum())
    return chance.argsort(descending=True)[: max(kept, least)].sort().values
