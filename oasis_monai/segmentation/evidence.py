"""The quantities by which the selected atlases of one target image are weighed, computed when first needed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import cached_property
from typing import NamedTuple

import torch

from oasis_monai.atlases.library import AtlasLibrary
from oasis_monai.data.types import Selection
from oasis_monai.networks.losses import ncc
from oasis_monai.segmentation import fusion
from oasis_monai.segmentation.alignment import Aligner, Warped
from oasis_monai.segmentation.loa import LoaTable
from oasis_monai.segmentation.sparse_labels import SparseLabel
from oasis_monai.transforms.labels import one_hot


class Alignment(NamedTuple):
    """How the atlases of one target image were aligned: the registration network, its LOA table, and (n, D, *s) fields."""

    aligner: Aligner
    loa: LoaTable
    fields: torch.Tensor


class Evidence:
    """The target image, the atlases selected for it and how they were aligned.

    Warped labels exist one batch at a time, unless all of them fit into one.

    Args:
        target: (c, *S) image.
        library: the atlases.
        selection: (n,) those selected, nearest first.
        alignment: None for methods that align nothing.
        estimate: (C, *S) of a joint model, or None.
        temperature: see :func:`.conditioned_weights`.
        with_images: warp the atlases' images beside their labels.
    """

    def __init__(
        self,
        target: torch.Tensor,
        library: AtlasLibrary,
        selection: Selection,
        alignment: Alignment | None = None,
        estimate: torch.Tensor | None = None,
        temperature: float = 0.1,
        with_images: bool = False,
    ) -> None:
        self.target, self.library = target, library
        self.rows, self.distances = selection.indices, selection.distances
        self._alignment, self._with_images = alignment, with_images
        self.estimate, self.temperature = estimate, temperature

    def atlas_images(self, n: int) -> torch.Tensor:
        """(n, c, *S) the first n atlases' images, not warped."""
        return self.library.images[self.rows[:n]].float()

    def atlas_labels(self, n: int) -> torch.Tensor:
        """(n, C, *S) one-hot labels of the first n atlases, not warped; 0 in every class where an atlas is ignored."""
        return one_hot(self.library.labels[self.rows[:n]], self.library.classes)

    @property
    def alignment(self) -> Alignment:
        """How the atlases were aligned.

        Raises:
            ValueError: they were not.
        """
        if self._alignment is None:
            raise ValueError("these methods need an aligner")
        return self._alignment

    def warped(self) -> Iterable[Warped]:
        """The warped atlases, batch by batch, from the first at every call; see :meth:`.Aligner.warped`."""
        return self._warp()

    @cached_property
    def _warp(self) -> Callable[[], Iterable[Warped]]:
        """What gives the warped atlases. Those that fit into one batch are warped once."""
        (aligner, _, fields), library, rows = self.alignment, self.library, self.rows
        first = next(aligner.warped(library, rows, fields, self._with_images)) if len(rows) <= aligner.batch else None
        if first is not None and first[0].stop == len(rows):  # memory may have run out, and the batch been halved
            return lambda: [first]
        return lambda: aligner.warped(library, rows, fields, self._with_images)

    @cached_property
    def _measured(self) -> tuple[torch.Tensor, torch.Tensor]:
        """What is measured on each warped atlas, in one pass over them: (n,) similarity of its image, (n,) overlap of its label
        with the estimate; empty where there is no image or no estimate."""
        device = self.alignment.aligner.device
        target, estimate = self.target.to(device), None if self.estimate is None else self.estimate.to(device)
        similarity, overlap = [torch.empty(0)], [torch.empty(0)]
        for _, image, labels in self.warped():
            if image is not None:
                similarity.append(ncc(image, target[None].expand_as(image)).cpu())
            if estimate is not None:
                overlap.append(fusion.agreement_with_estimate(labels, estimate).cpu())
        return torch.cat(similarity), torch.cat(overlap)

    @property
    def warped_similarity(self) -> torch.Tensor:
        """(n,) global NCC of each warped atlas image with the target (``with_images``)."""
        return self._measured[0]

    @cached_property
    def loa_matrix(self) -> torch.Tensor:
        """(n, n) o_jk of reading R1: the atlases as targets in turn."""
        return self.alignment.loa.matrix(self.rows)

    @cached_property
    def consensus_matrix(self) -> torch.Tensor:
        """(n, n) o_jk of reading R2: Dice(y_k o phi_k, y_j o phi_j) in the target's space, two batches at a time; NaN as R1."""
        aligner, _, fields = self.alignment
        matrix = torch.ones(len(self.rows), len(self.rows))
        for left, _, a in aligner.warped(self.library, self.rows, fields):
            for right, _, b in aligner.warped(self.library, self.rows[: left.stop], fields[: left.stop]):
                for offset, one in enumerate(a):
                    j = left.start + offset
                    whole = one.dense() if isinstance(one, SparseLabel) else one
                    row = fusion.overlap(b, whole.expand(len(b), *whole.shape)).cpu()
                    matrix[j, right], matrix[right, j] = row, row
        return matrix.masked_fill(self.library.siblings(self.rows), math.nan)

    @property
    def overlap_with_estimate(self) -> torch.Tensor:
        """(n,) o_k of reading R4: overlap of each warped label with the estimate.

        Raises:
            ValueError: there is no estimate.
        """
        if self.estimate is None:
            raise ValueError("the method 'OASIS-joint' needs a joint model")
        return self._measured[1]
