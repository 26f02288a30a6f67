"""Warped labels of many structures, held by voxel and not by structure.

A linearly warped one-hot label has a channel for every structure, but a voxel lies between eight voxels of the atlas and is of at
most eight structures. Of most voxels all eight are the same. So the label is held as one class a voxel, and at the boundaries as
up to eight classes with their shares. What is made of it (votes, overlaps, hard labels) costs as much for fifty structures as for
one. :class:`.Aligner` gives these above :data:`MANY` classes; below, channels take less time.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from oasis_monai.data.types import IGNORE
from oasis_monai.networks.losses import EPSILON
from oasis_monai.transforms.labels import TIE, labelled

LEAST = 1e-3  # voxels; what is left of a structure below it is nothing


@dataclass(frozen=True)
class SparseLabel:
    """One warped label.

    Args:
        classes: C, background included.
        hard: (\\*S) uint8: the class of each voxel, by the rule of :func:`.decide`; :data:`.IGNORE` where nobody labelled it.
        mixed: (m,) int64: the voxels of several classes, counted through ``hard``.
        names, shares: (k, m) their classes, ascending, and how much of the voxel each one is; a class may be there twice, then
            with a share of 0. The shares of a voxel have sum 1, or are all 0 where it is ignored.
    """

    classes: int
    hard: torch.Tensor
    mixed: torch.Tensor
    names: torch.Tensor
    shares: torch.Tensor

    def _pure(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The labelled voxels of one class, and that class."""
        hard = self.hard.flatten()
        alone = hard != IGNORE
        alone[self.mixed] = False
        voxels = torch.nonzero(alone)[:, 0]
        return voxels, hard[voxels].long()

    def _entries(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Voxel, class and share of every part of a voxel."""
        voxels, names = self._pure()
        shared = self.mixed.expand(len(self.names), -1).flatten()
        shares = torch.cat([self.shares.new_ones(len(voxels)), self.shares.flatten()])
        return torch.cat([voxels, shared]), torch.cat([names, self.names.flatten().long()]), shares

    def add_to(self, total: torch.Tensor, weight: float) -> None:
        """Add ``weight`` times the one-hot label to (C, \\*S) ``total``."""
        flat, size = total.view(-1), self.hard.numel()
        voxels, names = self._pure()
        flat.index_add_(0, names * size + voxels, torch.full((len(voxels),), weight, device=flat.device))
        for names, shares in zip(self.names, self.shares, strict=True):
            flat.index_add_(0, names.long() * size + self.mixed, shares * weight)

    def dense(self) -> torch.Tensor:
        """(C, \\*S) float32 one-hot; 0 in every class where the voxel is ignored."""
        made = torch.zeros(self.classes, *self.hard.shape, device=self.hard.device)
        self.add_to(made, 1.0)
        return made

    def known(self) -> torch.Tensor:
        """(\\*S) bool: where it says something."""
        return self.hard != IGNORE

    def sums(self, of: torch.Tensor | None = None, where: torch.Tensor | None = None) -> torch.Tensor:
        """(C,) float64: how many voxels each class has.

        Args:
            of: every voxel counts with this value: (C, \\*S) for its class, or (\\*S) class indices: with 1 where it is of that
                class there too.
            where: (\\*S) bool: only these count.
        """
        voxels, names, shares = self._entries()
        if of is not None and of.ndim > self.hard.ndim:
            shares = shares * of.reshape(-1)[names * self.hard.numel() + voxels]
        elif of is not None:
            shares = shares * (of.flatten()[voxels].long() == names)
        if where is not None:
            shares = shares * where.flatten()[voxels]
        return torch.bincount(names, shares.double(), self.classes)


@dataclass(frozen=True)
class SparseLabels:
    """Several warped labels of one grid, in the place of (n, C, \\*S) channels."""

    parts: tuple[SparseLabel, ...]

    def __len__(self) -> int:
        return len(self.parts)

    def __iter__(self) -> Iterator[SparseLabel]:
        return iter(self.parts)

    def __getitem__(self, which: slice) -> SparseLabels:
        return SparseLabels(self.parts[which])

    def fuse(self, weights: torch.Tensor) -> torch.Tensor:
        """See :func:`.fusion.fuse`."""
        first = self.parts[0]
        total = torch.zeros(first.classes, *first.hard.shape, device=first.hard.device)
        for one, weight in zip(self, weights.tolist(), strict=True):
            one.add_to(total, weight)
        return total

    def overlap(self, references: Sequence[torch.Tensor] | torch.Tensor) -> torch.Tensor:
        """See :func:`.fusion.overlap`. A reference is (C, \\*S) one-hot, or (\\*S) class indices with ignored voxels."""
        found = []
        for one, reference in zip(self, references, strict=True):
            if reference.ndim == one.hard.ndim:
                where = one.known() & (reference != IGNORE)
                theirs = torch.bincount(reference[where].long(), minlength=one.classes).double()
            else:
                where = one.known() & labelled(reference[None])[0, 0]
                theirs = (reference * where).flatten(1).sum(1).double()
            common, ours = one.sums(reference, where), one.sums(where=where)
            dice, there = (2 * common + EPSILON) / (ours + theirs + EPSILON), ours + theirs > LEAST
            some = there[1:].sum()
            found.append((dice * there)[1:].sum() / some if some else torch.ones_like(dice[0]))
        return torch.stack(found).float()

    def agreement_with_estimate(self, estimate: torch.Tensor) -> torch.Tensor:
        """See :func:`.fusion.agreement_with_estimate`."""
        found = []
        for one in self:
            where = one.known()
            expected = estimate if bool(where.all()) else estimate * where
            common, ours, theirs = one.sums(expected), one.sums(), expected.flatten(1).sum(1).double()
            dice, absent = (2 * common + EPSILON) / (ours + theirs + EPSILON), 1 - expected.flatten(1).amax(1).double()
            found.append(torch.where(ours > LEAST, dice, absent)[1:].mean())
        return torch.stack(found).float()


def warp_sparse(label: torch.Tensor, places: Sequence[torch.Tensor], classes: int) -> SparseLabel:
    """Warp the label of an atlas, linearly and class by class, without a channel for any class.

    Args:
        label: (1, \\*A) uint8 class indices, with ignored voxels.
        places: D positions (\\*S) along the axes of the atlas, in its voxels; its border continues.

    Examples:
        >>> label = torch.tensor([[0, 7, 7]], dtype=torch.uint8)
        >>> found = warp_sparse(label, [torch.tensor([0.0, 0.25, 1.5])], 9)
        >>> found.hard.tolist(), found.dense()[[0, 7]].tolist()
        ([0, 0, 7], [[1.0, 0.75, 0.0], [0.0, 0.25, 1.0]])
    """
    flat, shape = label.flatten(), places[0].shape
    strides = [math.prod(label.shape[axis + 2 :]) for axis in range(len(places))]
    steps, parts = [], []
    for place, size, stride in zip(places, label.shape[1:], strides, strict=True):
        place = place.flatten().clamp(0, size - 1)
        low = place.floor()
        parts.append(place - low)
        low = low.long()
        steps.append((low * stride, (low + 1).clamp_max(size - 1) * stride))
    corners = list(itertools.product((0, 1), repeat=len(places)))
    names = torch.stack([flat[sum(steps[axis][side] for axis, side in enumerate(corner))] for corner in corners])
    mixed = torch.nonzero((names != names[0]).any(0))[:, 0]
    sides = [(1 - part[mixed], part[mixed]) for part in parts]
    whole = torch.ones(len(mixed), device=label.device)
    shares = torch.stack(
        [math.prod((own[side] for own, side in zip(sides, corner, strict=True)), start=whole) for corner in corners]
    )
    hard, names = names[0].clone(), names[:, mixed]
    names, shares = _merged(names, shares)
    hard[mixed] = _decided(names, shares)
    return SparseLabel(classes, hard.view(shape), mixed, torch.where(names == IGNORE, 0, names), shares)


def _merged(names: torch.Tensor, shares: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Classes ascending, each with the share of all corners of its class, and what is ignored taken off:
    :func:`.split_ignored`."""
    names, order = names.sort(stable=True, dim=0)
    shares = shares.gather(0, order)
    for row in range(len(names) - 1, 0, -1):  # of equal classes the first one keeps the share
        same = names[row] == names[row - 1]
        shares[row - 1] += shares[row] * same
        shares[row] *= ~same
    unknown = names == IGNORE
    if bool(unknown.any()):
        part = (shares * unknown).sum(0)
        shares = torch.where(unknown | (part >= 0.5), 0.0, shares / (1 - part).clamp_min(0.5))
    return names, shares


def _decided(names: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
    """(m,) uint8 by the tie rule of :func:`.decide_streamed`; ignored where no class has a share."""
    best, total = torch.zeros_like(shares[0]), torch.zeros_like(shares[0])
    winner = torch.zeros_like(names[0])
    for name, share in zip(names, shares, strict=True):
        share = share * (name > 0)
        total += share
        better = share > best + TIE
        best = torch.where(better, share, best)
        winner = torch.where(better, name, winner)
    winner = winner * ~(best < 1 - total - TIE)
    return torch.where(shares.sum(0) > 0.5, winner, IGNORE)
