"""Fusion with networks that are held packed (:mod:`.packed`): all that is made of a slab of their maps, while it is there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch

from oasis_monai.segmentation import fusion
from oasis_monai.segmentation.agreement import Structures, overlap_counts
from oasis_monai.segmentation.methods import METHODS
from oasis_monai.segmentation.packed import PackedNetworks
from oasis_monai.segmentation.result import Key, Result
from oasis_monai.segmentation.uncertainty import uncertainty
from oasis_monai.transforms.labels import decide


class JointVote(Protocol):
    """The last step of OASIS-joint, with n atlases: a :class:`.Segmenter` takes it."""

    def vote_with_networks(self, fused: torch.Tensor, network_probabilities: torch.Tensor | None, n: int) -> torch.Tensor:
        """See :meth:`.Segmenter.vote_with_networks`."""

    def joint_vote(self, fused: torch.Tensor, networks: torch.Tensor, n: int) -> torch.Tensor:
        """See :meth:`.Segmenter.joint_vote`."""


@dataclass
class _Judged:
    """What is known of one result so far."""

    uncertain: torch.Tensor
    counts: torch.Tensor
    said: torch.Tensor  # (2, *F) the atlases' vote and the joint one, hard; empty but for OASIS-joint
    opinions: torch.Tensor | None


@dataclass
class PackedFusion:
    """Compares votes with the networks, and joins them, slab by slab.

    Args:
        networks: of the scan.
        vote: takes the last step of OASIS-joint.
        before: the results on the working grid: votes and ``estimate``.
        votes: (C, \\*F) the atlases' votes on the fine grid; that of OASIS-joint becomes its result, in place.
        structures: the classes of each structure, see :func:`.agreement.agreement`.
        keep_opinions: see :class:`.Result`.
    """

    networks: PackedNetworks
    vote: JointVote
    before: Mapping[Key, Result]
    votes: dict[Key, torch.Tensor]
    structures: Structures
    keep_opinions: bool = False
    _judged: dict[Key, _Judged] = field(default_factory=dict)

    def __post_init__(self) -> None:
        shape = self.networks.shape[1:]
        for key, result in self.before.items():
            if key not in self.votes:  # the estimate
                self.votes[key] = torch.empty(shape)
            if not METHODS[key[0]].predicts_dice:
                continue
            assert result.agreement is not None
            counts = result.agreement.clone()  # of networks with each other on the working grid, which both know
            joint = key[0] == "OASIS-joint"
            if key[0] != "estimate":
                counts[1] = 0
            said = torch.empty(2 if joint else 0, *shape[1:], dtype=torch.uint8)
            opinions = torch.empty(len(self.networks) + 1, *shape) if joint and self.keep_opinions else None
            self._judged[key] = _Judged(torch.empty(shape[1:]), counts, said, opinions)

    def add(self, slab: slice, networks: torch.Tensor, estimate: torch.Tensor) -> None:
        """The next slab: (V, C, \\*slab) the networks there, and (C, \\*slab) their mean."""
        seen, total = decide(estimate), networks.sum(0)
        for key, vote in self.votes.items():
            if key[0] == "estimate":
                vote[:, slab] = estimate
                self._judged[key].uncertain[slab] = uncertainty(estimate[None])
                continue
            judged = self._judged.get(key)
            if judged is None:
                continue
            fused = vote[:, slab]
            label = decide(fused)
            judged.uncertain[slab] = uncertainty(torch.add(total, fused)[None])  # scaled to sum 1 there
            judged.counts[1] += overlap_counts(label, seen, len(fused), self.structures)
            if judged.opinions is not None:
                judged.opinions[:-1, :, slab], judged.opinions[-1, :, slab] = networks, fused
            if key[0] == "OASIS-joint":
                vote[:, slab] = self.vote.joint_vote(fused, networks, key[1])
                judged.said[0, slab], judged.said[1, slab] = label, decide(vote[:, slab])

    def results(self) -> dict[Key, Result]:
        """The results on the fine grid, once all slabs are there."""
        made = {}
        for key, result in self.before.items():
            vote, judged = self.votes.pop(key), self._judged.pop(key, None)
            if judged is None:
                made[key] = result._replace(probability=vote)
                continue
            if len(judged.said):
                removed = fusion.unsupported(judged.said[1], judged.said[0])
                vote = vote if removed is None else fusion.clear_voxels(vote, removed)
            known = {"agreement": judged.counts, "uncertainty": judged.uncertain, "opinions": judged.opinions}
            made[key] = result._replace(probability=vote, **known)
        return made
