"""The method of the paper (section 2) for one target: select atlases, align them in one pass, weigh them by LOA, fuse.

:meth:`Segmenter.__call__` reads in that order. A joint model, our extension, makes an estimate of the target first; the
estimate guides the alignment and weighs the atlases.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import torch

from oasis_monai.atlases.library import AtlasLibrary
from oasis_monai.atlases.neighbours import Neighbours
from oasis_monai.atlases.selection import Pair
from oasis_monai.atlases.slices import adjacent_slice_atlases, append_atlas_channels, interpolate_shape
from oasis_monai.data.types import Geometry, Preprocessed, Selection
from oasis_monai.networks.registration import append_structures
from oasis_monai.networks.slice_unet import JointSettings, with_neighbours
from oasis_monai.segmentation import fusion
from oasis_monai.segmentation.agreement import agreement, consensus
from oasis_monai.segmentation.alignment import Aligner, FieldCache
from oasis_monai.segmentation.boxes import BoxSegmenter
from oasis_monai.segmentation.estimate import Estimate, Estimator, see
from oasis_monai.segmentation.evidence import Alignment, Evidence
from oasis_monai.segmentation.fine_fusion import FineFusion, slabs
from oasis_monai.segmentation.learned_fusion import LearnedFusions
from oasis_monai.segmentation.loa import LoaTable
from oasis_monai.segmentation.methods import (
    ALIGNMENT,
    INTERPOLATION,
    LOA,
    METHODS,
    USUAL_ATLASES,
    methods_that_need,
    needs_alignment,
    needs_atlases,
    result_keys,
    uses_estimate,
)
from oasis_monai.segmentation.recentre import AtlasPositions
from oasis_monai.segmentation.result import Key, Result, hard_label
from oasis_monai.segmentation.uncertainty import uncertainty
from oasis_monai.segmentation.views import MOST_SEARCHED, AtlasVolumes, ViewSearch, ViewSettings
from oasis_monai.transforms.fine import refined

SAMPLE = 5
"""Atlases on which it is measured what agreement is usual."""


class Segmented(NamedTuple):
    """What a :class:`Segmenter` gives: results by method and n, the atlases selected, and their (T, n, D, *s) fields."""

    results: dict[Key, Result]
    selection: Selection
    fields: torch.Tensor | None


class Segmenter:
    """The method of the paper (section 2): a library of labelled atlases with the networks trained on it.

    It works on preprocessed scans. :meth:`oasis_monai.Model.segment` takes scans as they are and gives labels on their own grid.

    Args:
        library: the atlases: slices (``spatial_dims`` 2) or volumes (3).
        aligner: the registration network; None when no method needs :data:`.ALIGNMENT`.
        loa: the table of R1; made anew when None.
        estimator: the segmentation networks of a joint model.
        joint: how a joint model uses its estimate; see :class:`.JointSettings`.
        distance: between features, see :func:`.selection.nearest`.
        temperature: of R3, see :func:`.fusion.conditioned_weights`.
        same_case: whether the library holds labelled slices of the targets themselves (slice folds).
        views: whether doubtful scans are also seen in other views (:mod:`.views`).
        fusions: learned fusions of a joint model, by the number of atlases (:mod:`.learned_fusion`).
        boxes: looks again in boxes where a joint model finds something (:mod:`.boxes`).

    Examples:
        >>> import oasis_monai
        >>> segmenter = oasis_monai.load_model("models/prostate").segmenter
        >>> features = segmenter.library.features[:1]  # (1, F) of a target
        >>> segmenter.select(features, n=3).indices.shape
        torch.Size([1, 3])
        >>> same = oasis_monai.Segmenter(segmenter.library, segmenter.aligner)  # without the joint model
        >>> same.recentres
        False
    """

    def __init__(
        self,
        library: AtlasLibrary,
        aligner: Aligner | None = None,
        loa: LoaTable | None = None,
        estimator: Estimator | None = None,
        joint: JointSettings | None = None,
        distance: str = "l2",
        temperature: float = 0.1,
        same_case: bool = False,
        views: ViewSettings | None = None,
        fusions: LearnedFusions = MappingProxyType({}),
        boxes: BoxSegmenter | None = None,
    ) -> None:
        self.fusions, self.boxes = fusions, boxes
        self.views = views or ViewSettings("none")
        self.library, self.aligner, self.estimator = library, aligner, estimator
        # not "loa or ...": a table without pairs yet is one as well
        self.loa = loa if loa is not None or aligner is None else LoaTable(library, aligner)
        self.joint = joint or JointSettings()
        self.distance, self.temperature, self.same_case = distance, temperature, same_case
        self.spatial_dims = library.spatial_dims

    @torch.inference_mode()
    def __call__(
        self,
        target: Preprocessed,
        features: torch.Tensor,
        methods: Sequence[str],
        ns: Sequence[int],
        fields: FieldCache | None = None,
        exclude_patient: str | None = None,
        only: torch.Tensor | None = None,
        known: Estimate | None = None,
        keep_opinions: bool = False,
    ) -> Segmented:
        """Segment a target whose label nobody has given.

        Args:
            target: its ``label`` must be None: what a method could see, it might use.
            features: (T, F) of its images.
            methods, ns: every method at every number of atlases, from one alignment.
            fields: where fields of this target are kept.
            exclude_patient: no atlas of this person is taken.
            only: (m,) the images (slices) to segment, for folds over slices; the others come back as background.
            known: what :meth:`estimate` gives for this target, where it is known.
            keep_opinions: keep what ``OASIS-joint`` is fused of, see :class:`.Result`.

        Raises:
            ValueError: the target has a label, or the methods need a network this segmenter has not.
        """
        if target.label is not None or (target.fine is not None and target.fine.label is not None):
            raise ValueError(f"{target.case}: a target must come without its label")
        images = self.images(target)
        which = torch.arange(len(images)) if only is None else only
        images = images[which]

        # The joint model's first estimate
        if known is None and self.estimator is not None and uses_estimate(methods):
            known = self.estimate(target, which, exclude_patient)
        network_probabilities = None if known is None else known.networks

        # Atlas selection (2.1): where no method fuses atlases, they are reported beside the result
        most = max(ns) if needs_atlases(methods) else min(max(ns), len(self.library))
        selection = self.select(features[which], most, exclude_patient)

        # One-pass alignment (2.1) and label overlapping accuracy among the atlases (2.2)
        aligned = None
        if needs_alignment(methods):
            aligned = self.align(target.case, images, selection, fields, network_probabilities)
            if methods_that_need(LOA, methods) and self.loa is not None:
                self.loa.require(list(selection.indices))  # of all images at once, in full batches

        # Weights and fusion (2.2), image by image
        shapes = self._shapes_between(target.case, which) if INTERPOLATION in methods else None
        by_image = []
        for i, image in enumerate(images):
            found = None if network_probabilities is None else network_probabilities[i]
            evidence = Evidence(
                image,
                self.library,
                Selection(selection.indices[i], selection.distances[i]),
                self._alignment(aligned, i),
                None if found is None else found.mean(0),
                self.temperature,
                with_images="FWAL" in methods,
            )
            fused = self.fuse(evidence, methods, ns, found, None if shapes is None else shapes[i], keep_opinions)
            if target.fine is not None and self.library.fine:
                networks = None if known is None else known.fine
                fused = FineFusion(evidence, networks, self, keep_opinions)(fused)
            by_image.append(fused)
        results = {
            key: self._stack([fused[key] for fused in by_image], which, features.shape[0]) for key in result_keys(methods, ns)
        }
        return Segmented(results, selection, aligned)

    def images(self, target: Preprocessed) -> torch.Tensor:
        """The target as what an atlas is: (1, c, x, y, z), or its slices (z, c, x, y)."""
        return target.image[None] if self.spatial_dims == 3 else target.image.movedim(-1, 0)

    def estimate(self, target: Preprocessed, which: torch.Tensor, exclude_patient: str | None = None) -> Estimate:
        """What each network of a joint model makes of the target's images ``which``: (T, V, C, *S), V networks; of a scan with a
        fine grid also their estimate there.

        Their mean over V is the estimate. No atlas of ``exclude_patient`` is shown beside a slice.

        Raises:
            ValueError: this is no joint model.
        """
        if self.estimator is None:
            raise ValueError("this needs the segmentation network of a joint model")
        if self.spatial_dims == 3:
            seen = see(self.estimator, target, bool(self.fusions))
            return seen._replace(networks=seen.networks[None])
        slices = with_neighbours(target.image)[which]
        if self.joint.atlases:
            rows = adjacent_slice_atlases(slices, self.library, self._excluded(len(slices), exclude_patient))
            shape = self._shapes_between(target.case, which, rows) if self.same_case else None
            slices = append_atlas_channels(slices, self.library, rows, shape)
        return Estimate(self.estimator(slices)[:, None])

    def select(self, features: torch.Tensor, n: int, exclude_patient: str | None = None) -> Selection:
        """The n nearest atlases of every image of a target, by its (T, F) features; never of ``exclude_patient``."""
        exclude = self._excluded(len(features), exclude_patient)
        return Selection(*self._neighbours.nearest(features, n, exclude))

    def align(
        self,
        case: str,
        images: torch.Tensor,
        selection: Selection,
        cache: FieldCache | None = None,
        network_probabilities: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """(T, n, D, *s) fields that bring the selected atlases onto the (T, c, *S) images of a case, in one pass.

        Raises:
            ValueError: there is no registration network.
        """
        if self.aligner is None or self.loa is None:
            raise ValueError("these methods need an aligner")
        structures = None
        if self.aligner.joint and network_probabilities is not None:
            structures = network_probabilities.mean(1)[:, 1:]
        seen = append_structures(images, structures)
        return (cache or FieldCache(None, "")).get(case, seen, selection.indices, self.library, self.aligner)

    def fuse(
        self,
        evidence: Evidence,
        methods: Sequence[str],
        ns: Sequence[int],
        network_probabilities: torch.Tensor | None = None,
        shape: torch.Tensor | None = None,
        keep_opinions: bool = False,
    ) -> dict[Key, Result]:
        """Every (method, n) of one target image (c, *S). Warped labels exist one batch at a time; only their sums stay.

        Args:
            network_probabilities: (V, C, *S) of a joint model.
            shape: (C-1, *S) signed distances to the shape between the case's own labelled slices (:data:`.INTERPOLATION`).
            keep_opinions: see :meth:`__call__`.
        """
        results: dict[Key, Result] = {}
        if "FwoW" in methods:
            for n in ns:
                weights = _weights(evidence, "FwoW", n)
                results["FwoW", n] = Result(fusion.share_votes(fusion.fuse(evidence.atlas_labels(n), weights)), weights)
        if shape is not None:
            results[INTERPOLATION, 0] = Result(torch.softmax(torch.cat([torch.zeros_like(shape[:1]), shape]), 0), None)
        if "estimate" in methods:
            if network_probabilities is None or evidence.estimate is None:
                raise ValueError("the method 'estimate' needs a joint model")
            compared = agreement(network_probabilities, None, self.library.structures)
            results["estimate", 0] = Result(evidence.estimate, None, compared, uncertainty(network_probabilities).cpu())
        aligning = methods_that_need(ALIGNMENT, methods)
        if aligning:
            results |= self._fuse_warped(evidence, aligning, ns, network_probabilities, keep_opinions)
        return {key: results[key] for key in result_keys(methods, ns)}

    def _fuse_warped(
        self,
        evidence: Evidence,
        methods: Sequence[str],
        ns: Sequence[int],
        network_probabilities: torch.Tensor | None,
        keep_opinions: bool,
    ) -> dict[Key, Result]:
        """The methods that fuse warped labels: the weighted sum of each, STAPLE of the hard labels."""
        weighted = [key for key in result_keys(methods, ns) if METHODS[key[0]].weigh is not None]
        weights = {(method, n): _weights(evidence, method, n) for method, n in weighted}
        sums: dict[Key, torch.Tensor] = {}
        votes: list[torch.Tensor] = []  # hard labels, for STAPLE and for what the atlases think of each other
        for part, _, labels in evidence.warped():
            for key in weighted:
                own = weights[key][part.start : min(part.stop, key[1])]
                if len(own):
                    share = fusion.fuse(labels[: len(own)], own)
                    sums[key] = sums[key] + share if key in sums else share
            if "STAPLE" in methods or network_probabilities is None:
                votes += [hard_label(label).cpu() for label in labels]
        results: dict[Key, Result] = {}
        for key in weighted:
            fused = fusion.share_votes(sums[key].cpu(), evidence.estimate if key[0] == "OASIS-joint" else None)
            # compared with the networks where there are any, else among the atlases
            opinions, kept = fused[None], None
            if network_probabilities is not None:
                counts = agreement(network_probabilities, fused, self.library.structures)
                opinions = torch.cat([network_probabilities.to(fused), opinions])
            else:
                counts = consensus(torch.stack(votes[: key[1]]), fused, self.library.structures)
            if key[0] == "OASIS-joint":
                fused = self.vote_with_networks(fused, network_probabilities, key[1])
                kept = opinions if keep_opinions else None
            results[key] = Result(fused, weights[key], counts, uncertainty(opinions), kept)
        if "STAPLE" in methods:
            for n in ns:
                results["STAPLE", n] = Result(fusion.staple(torch.stack(votes[:n]), self.library.classes), None)
        return results

    def vote_with_networks(self, fused: torch.Tensor, network_probabilities: torch.Tensor | None, n: int) -> torch.Tensor:
        """The last step of R4: the networks vote beside the n aligned atlases, with learned weights where there are some."""
        if network_probabilities is None:
            raise ValueError("the method 'OASIS-joint' needs a joint model")
        vote = torch.empty(fused.shape, device=fused.device)
        for slab in slabs(fused.shape[1:], len(fused) * (len(network_probabilities) + 3)):
            vote[:, slab] = self.joint_vote(fused[:, slab], network_probabilities[:, :, slab], n)
        # of a slice at the end of a structure all atlases may be empty with good reason; of a volume none is
        return fusion.remove_unsupported_components(vote, fused) if self.spatial_dims == 3 else vote

    def joint_vote(self, fused: torch.Tensor, networks: torch.Tensor, n: int) -> torch.Tensor:
        """:meth:`vote_with_networks` voxel by voxel: nothing is removed yet."""
        learned, part = self.fusions.get(n), self.joint.estimate_weight
        return (1 - part) * fused + part * networks.mean(0) if learned is None else learned(networks, fused)

    @property
    def recentres(self) -> bool:
        """Whether the working grid follows the structures of a scan: a joint model of volumes with two networks, which have to
        agree on the new place, can do that."""
        return self.joint.recentre and self.estimator is not None and self.estimator.volume_network is not None

    @cached_property
    def view_search(self) -> ViewSearch | None:
        """What looks for the view of a scan; None where the scan is taken as it is. A joint model of volumes with two networks,
        which can disagree, can do that."""
        if self.views.views == "none" or self.estimator is None or self.estimator.volume_network is None:
            return None
        if self.views.views == "doubtful" and len(self.library) and self.library.detail_voxels > MOST_SEARCHED:
            return None
        volumes = AtlasVolumes.of(self.library.labels, self.library.classes, self.library.structures)
        quick = self.estimator.quick()
        return ViewSearch(self.views, volumes, lambda seen: see(quick, seen).networks, lambda: self.usual_agreement)

    @cached_property
    def usual_agreement(self) -> float:
        """How much the parts agree on the model's own atlases, each without those of its patient: the median of a few, 0 to 1; 1
        where there is no other patient. The networks have seen them, so on other scans it is a little less."""
        library, search, found = self.library, self.view_search, []
        method = "estimate" if self.aligner is None else "OASIS-joint"
        for row in np.unique(np.linspace(0, len(library) - 1, SAMPLE).round().astype(int)).tolist():
            x, y, z = library.images.shape[2:]
            grid = Geometry((x, y, z), np.eye(4))  # the atlas is on the working grid, wherever that was
            n = min(USUAL_ATLASES, len(library) - library.patients.count(library.patients[row]))
            if n > 0 and search is not None:
                target = Preprocessed(library.cases[row], library.images[row].float(), None, grid, grid)
                if (factor := library.fine_factor) is not None:
                    fine = Preprocessed(target.case, library.fine[row].image, None, refined(grid, factor), grid)
                    target = replace(target, fine=fine)
                own = self(target, library.features[row][None], (method,), (n,), exclude_patient=library.patients[row])
                found.append(search.agreement(own.results, unchanged=True))
        return float(np.median(found)) if found else 1.0

    @cached_property
    def _neighbours(self) -> Neighbours:
        return Neighbours(self.library.features, self.distance)

    @cached_property
    def atlas_positions(self) -> AtlasPositions | None:
        """Where the atlases have their structures; None where the grid does not follow a scan's."""
        return AtlasPositions.of(self.library.labels) if self.recentres else None

    def _alignment(self, fields: torch.Tensor | None, image: int) -> Alignment | None:
        if fields is None or self.aligner is None or self.loa is None:
            return None
        return Alignment(self.aligner, self.loa, fields[image])

    def _excluded(self, images: int, patient: str | None) -> Pair | None:
        """What keeps a patient's atlases from each of so many images."""
        if patient is None or patient not in self.library.patients:
            return None
        own = torch.tensor([patient == other for other in self.library.patients]).long()
        return torch.ones(images, dtype=torch.int64), own

    def _shapes_between(self, case: str, which: torch.Tensor, otherwise: torch.Tensor | None = None) -> torch.Tensor:
        """(T, C-1, x, y) signed distances to the shape between the case's own labelled slices; ``otherwise`` as for
        :func:`.interpolate_shape`."""
        if not self.same_case or self.spatial_dims == 3:
            raise ValueError("a shape between slices needs slices of the target in the library")
        return interpolate_shape(self.library, [(case, z) for z in which.tolist()], otherwise)

    def _stack(self, parts: list[Result], which: torch.Tensor, total: int) -> Result:
        """The results of a target's images as one volume."""
        weights = None if parts[0].weights is None else torch.stack([p.weights for p in parts if p.weights is not None])
        counts = [p.agreement for p in parts if p.agreement is not None]
        counted = torch.stack(counts).sum(0) if counts else None
        maps = [part.uncertain for part in parts]
        if self.spatial_dims == 3:
            return Result(parts[0].probability, weights, counted, maps[0], parts[0].opinions)

        def whole(of_slices: list[torch.Tensor]) -> torch.Tensor:
            made = of_slices[0].new_zeros((*of_slices[0].shape, total))
            made[..., which] = torch.stack(of_slices, -1)
            return made

        probability = parts[0].probability.new_zeros((*parts[0].probability.shape, total))
        probability[0] = 1
        probability[..., which] = torch.stack([p.probability for p in parts], -1)
        opinions = [p.opinions for p in parts if p.opinions is not None]
        return Result(probability, weights, counted, whole(maps), whole(opinions) if opinions else None)


def _weights(evidence: Evidence, method: str, n: int) -> torch.Tensor:
    weigh = METHODS[method].weigh
    if weigh is None:
        raise ValueError(f"{method} weighs no atlas")
    return weigh(evidence, n)
