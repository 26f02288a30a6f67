"""What a method makes of a scan, on the grid it was made on."""

from __future__ import annotations

from typing import NamedTuple

import torch

from oasis_monai.data.types import IGNORE
from oasis_monai.segmentation.sparse_labels import SparseLabel
from oasis_monai.segmentation.uncertainty import uncertainty
from oasis_monai.transforms.labels import decide, labelled

Key = tuple[str, int]
"""A method and the number of atlases it fuses, 0 for a method that fuses none."""


class Result(NamedTuple):
    """One fused target, on the working grid or on the fine one (:mod:`oasis_monai.transforms.fine`).

    Args:
        probability: (C, x, y, z) float32.
        weights: (T, n) per target image (T = 1, or the slices); None for STAPLE and where no atlas is fused.
        agreement: (2, C-1, 2) overlap counts of what the result is made of, see :func:`.agreement.agreement`; None where nothing
            is compared.
        uncertainty: (x, y, z) float32, 0 to 1, see :func:`.uncertainty.uncertainty`; None where the probability is all there is.
        opinions: (V + 1, C, x, y, z) what V networks say, then the atlases' vote; None unless they are to be kept.
    """

    probability: torch.Tensor
    weights: torch.Tensor | None
    agreement: torch.Tensor | None = None
    uncertainty: torch.Tensor | None = None
    opinions: torch.Tensor | None = None

    @property
    def uncertain(self) -> torch.Tensor:
        """(x, y, z) the uncertainty: of its opinions, or of the probability where there are no others."""
        return uncertainty(self.probability[None]) if self.uncertainty is None else self.uncertainty


def hard_label(label: torch.Tensor | SparseLabel) -> torch.Tensor:
    """(C, *S) warped one-hot label -> (*S) class indices, ignored where it says nothing."""
    if isinstance(label, SparseLabel):
        return label.hard
    known = labelled(label[None])[0, 0]
    return decide(label) if bool(known.all()) else torch.where(known, decide(label), IGNORE)
