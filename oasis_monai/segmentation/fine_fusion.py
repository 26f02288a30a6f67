"""Fusion on the fine grid: labels are warped by enlarged fields and fused there, slab by slab.

Selection, alignment and the atlases' weights come from the working grid, where they are cheap and nothing of them is lost: fields
are smooth, and a weight is one number. What has detail is done again on the fine grid (:mod:`oasis_monai.transforms.fine`).
The atlases' labels are warped there, the joint model's estimate votes there, and the two are compared there. No atlas's warped
label is held for more than one slab, but what STAPLE needs: the class of every voxel, a byte for each atlas.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from oasis_monai.networks.warp import scale_ddf
from oasis_monai.segmentation import fusion
from oasis_monai.segmentation.agreement import consensus, overlap_counts
from oasis_monai.segmentation.alignment import with_background
from oasis_monai.segmentation.evidence import Evidence
from oasis_monai.segmentation.methods import ALIGNMENT, METHODS
from oasis_monai.segmentation.packed import Networks, PackedNetworks, slab_of
from oasis_monai.segmentation.packed_fusion import JointVote, PackedFusion
from oasis_monai.segmentation.result import Key, Result, hard_label
from oasis_monai.segmentation.sparse_labels import SparseLabel, warp_sparse
from oasis_monai.segmentation.uncertainty import uncertainty
from oasis_monai.transforms.labels import MANY, decide, one_hot, with_ignored
from oasis_monai.utils.interpolation import enlarge_slab, sample_volume

SLAB_VALUES = 2**24
"""Values of all the maps of a slab: 64 MiB of float32."""


def warp_slab(label: torch.Tensor, field: torch.Tensor, slab: slice, classes: int) -> torch.Tensor | SparseLabel:
    """Warp the label of an atlas on the fine grid by its coarse field, for a slab of the target.

    Args:
        label: (1, \\*F) class indices.
        field: (3, \\*s) displacement in voxels of a coarser grid with the same outer edges.
        slab: of the target's voxels along x.

    Returns:
        (C, \\*slab) one-hot, on the field's device; 0 in every class where the atlas is ignored. Of more than :data:`.MANY`
        classes a sparse one.
    """
    size = label.shape[1:]
    x, y, z = enlarge_slab(scale_ddf(field[None].float(), size), size, slab)[0]
    x = x + torch.arange(slab.start, slab.stop, device=field.device).view(-1, 1, 1)
    y, z = y + torch.arange(size[1], device=field.device).view(-1, 1), z + torch.arange(size[2], device=field.device)
    # what the slab shows of the atlas, and no more; beyond its border the outermost voxels continue
    first = min(max(math.floor(float(x.min())), 0), size[0] - 1)
    last = min(max(math.ceil(float(x.max())), 0), size[0] - 1)
    part = label[:, first : last + 1].to(field.device)
    if classes > MANY:
        return warp_sparse(part, [x - first, y, z], classes)
    seen = with_ignored(part[None], classes)
    return with_background(sample_volume(seen, [(x - first)[None], y[None], z[None]]), classes)[0]


def slabs(size: Sequence[int], maps: int) -> Iterator[slice]:
    """Parts of a grid along x in which so many maps have at most :data:`SLAB_VALUES` values, but one voxel at least."""
    thick = max(1, SLAB_VALUES // (maps * math.prod(size[1:])))
    return (slice(first, min(first + thick, size[0])) for first in range(0, size[0], thick))


@dataclass(frozen=True)
class FineFusion:
    """Does the results of one volume again on the fine grid.

    Args:
        evidence: of the working grid; its library has a fine one.
        networks: (V, C, \\*F) what the networks of a joint model say; None without one.
        vote: takes the last step of OASIS-joint.
        keep_opinions: see :class:`.Result`.
    """

    evidence: Evidence
    networks: Networks | None
    vote: JointVote
    keep_opinions: bool = False

    def __call__(self, results: Mapping[Key, Result]) -> dict[Key, Result]:
        """The same results on the fine grid."""
        weighted = {key: r.weights for key, r in results.items() if METHODS[key[0]].weigh is not None and r.weights is not None}
        classes, alone, networks = self.evidence.library.classes, self.networks is None, self.networks
        raters = max((n for method, n in results if method == "STAPLE"), default=0)
        said = torch.empty(raters, *self.size, dtype=torch.uint8)
        votes = {key: torch.empty(classes, *self.size) for key in weighted}
        structures = self.evidence.library.structures
        none = torch.zeros(2, len(structures) or classes - 1, 2, dtype=torch.float64)
        compared = {key: none.clone() for key in weighted if METHODS[key[0]].predicts_dice}
        packed, joint = None, any(method == "OASIS-joint" for method, _ in weighted)
        if isinstance(networks, PackedNetworks):
            asked = {key: result for key, result in results.items() if key in votes or key[0] == "estimate"}
            packed = PackedFusion(networks, self.vote, asked, votes, structures, self.keep_opinions)
        for slab in slabs(self.size, classes * (len(weighted) + 4)) if weighted or raters or packed else ():
            opinions = None if networks is None else slab_of(networks, slab)
            estimate = opinions.mean(0) if opinions is not None and (joint or packed) else None
            hard = self._vote(slab, weighted, votes, raters, estimate)
            said[:, slab] = hard[:raters]
            for key in compared if alone else ():
                compared[key] += consensus(hard[: key[1]], votes[key][:, slab], structures)
            if packed is not None and opinions is not None and estimate is not None:
                packed.add(slab, opinions, estimate)
        made = dict(results) if packed is None else {**results, **packed.results()}
        for key, result in results.items():
            if key[0] == "STAPLE":
                made[key] = result._replace(probability=fusion.staple(said[: key[1]], classes))
            elif key in votes and packed is None:
                made[key] = self._judged(key, result, votes.pop(key), compared.get(key))
            elif key[0] == "estimate" and isinstance(networks, torch.Tensor):
                made[key] = result._replace(probability=networks.mean(0), uncertainty=uncertainty(networks))
        return made

    @property
    def size(self) -> torch.Size:
        """Voxels of the fine grid."""
        return self.evidence.library.fine[0].label.shape[1:]

    def _vote(
        self,
        slab: slice,
        weighted: Mapping[Key, torch.Tensor],
        votes: Mapping[Key, torch.Tensor],
        raters: int,
        estimate: torch.Tensor | None,
    ) -> torch.Tensor:
        """Write a slab of every vote; -> (n, \\*slab) what the warped atlases say: the first ``raters``, or all where they are
        compared with the vote. ``estimate``: (C, \\*slab) the mean of the networks."""
        evidence, library = self.evidence, self.evidence.library
        sums: dict[Key, torch.Tensor] = {}
        hard = []
        for number, row in enumerate(evidence.rows.tolist()):
            label = library.fine[row].label
            still = [key for key in weighted if key[1] > number and ALIGNMENT not in METHODS[key[0]].needs]
            moving = [key for key in weighted if key[1] > number and key not in still]
            if still:
                _add(sums, weighted, still, number, one_hot(label[None, :, slab], library.classes)[0])
            if moving or number < raters:
                field = evidence.alignment.fields[number].to(evidence.alignment.aligner.device)
                warped = warp_slab(label, field, slab, library.classes)
                _add(sums, weighted, moving, number, warped)
                if self.networks is None or number < raters:
                    hard.append(hard_label(warped).cpu())
        for key in weighted:
            otherwise = estimate if key[0] == "OASIS-joint" else None
            votes[key][:, slab] = fusion.share_votes(sums[key].cpu(), otherwise)
        return torch.stack(hard) if hard else torch.empty(0, slab.stop - slab.start, *self.size[1:], dtype=torch.uint8)

    def _judged(self, key: Key, result: Result, fused: torch.Tensor, among_atlases: torch.Tensor | None) -> Result:
        """A vote with what it is compared with; of OASIS-joint also the vote of the estimate beside it."""
        if among_atlases is None:
            return result._replace(probability=fused)
        maps = len(fused) * (2 + (0 if self.networks is None else len(self.networks)))
        uncertain = torch.cat([uncertainty(self._opinions(fused, slab)) for slab in slabs(self.size, maps)])
        if self.networks is None:
            return result._replace(probability=fused, agreement=among_atlases, uncertainty=uncertain)
        assert result.agreement is not None
        counts = result.agreement.clone()  # of networks with each other on the working grid, which both know
        counts[1] = 0
        for slab in slabs(self.size, maps):
            said = decide(fused[:, slab]), decide(slab_of(self.networks, slab).mean(0))
            counts[1] += overlap_counts(*said, len(fused), self.evidence.library.structures)
        opinions = None
        if key[0] == "OASIS-joint" and isinstance(self.networks, torch.Tensor):
            opinions = self._opinions(fused, slice(None)) if self.keep_opinions else None
            fused = self.vote.vote_with_networks(fused, self.networks, key[1])
        return result._replace(probability=fused, agreement=counts, uncertainty=uncertain, opinions=opinions)

    def _opinions(self, fused: torch.Tensor, slab: slice) -> torch.Tensor:
        """(V + 1, C, \\*slab) networks, then the atlases."""
        vote = fused[None, :, slab]
        return vote if self.networks is None else torch.cat([slab_of(self.networks, slab), vote])


def _add(
    sums: dict[Key, torch.Tensor],
    weighted: Mapping[Key, torch.Tensor],
    keys: Sequence[Key],
    number: int,
    label: torch.Tensor | SparseLabel,
) -> None:
    """Add the vote of one atlas to those of the methods."""
    for key in keys:
        if isinstance(label, SparseLabel):
            if key not in sums:
                sums[key] = torch.zeros(label.classes, *label.hard.shape, device=label.hard.device)
            label.add_to(sums[key], float(weighted[key][number]))
            continue
        share = label * weighted[key][number].to(label)
        sums[key] = share if key not in sums else sums[key].add_(share)
