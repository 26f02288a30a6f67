"""The paper's method: select the nearest atlases, align them in one pass, weigh them by label overlap, fuse (section 2)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from typing import NamedTuple

import torch

from oasis_monai.atlases.library import AtlasLibrary
from oasis_monai.atlases.selection import Pair, nearest
from oasis_monai.atlases.slices import adjacent_slice_atlases, append_atlas_channels, interpolate_shape
from oasis_monai.data.types import Preprocessed, Selection
from oasis_monai.networks.losses import ncc
from oasis_monai.networks.registration import append_structures
from oasis_monai.networks.slice_unet import with_neighbours
from oasis_monai.segmentation import fusion
from oasis_monai.segmentation.agreement import agreement, consensus
from oasis_monai.segmentation.alignment import Aligner, FieldCache, Warped
from oasis_monai.segmentation.estimate import Estimator
from oasis_monai.segmentation.loa import LoaTable
from oasis_monai.segmentation.methods import (
    INTERPOLATION,
    JOINT_METHODS,
    UNALIGNED,
    check_methods,
    needs_alignment,
    needs_atlases,
    needs_estimate,
    result_keys,
)
from oasis_monai.segmentation.recentre import STAY, Move, Places, followed
from oasis_monai.transforms.labels import one_hot
from oasis_monai.utils.errors import ConfigError


def check_choice(segmenter: Segmenter, method: str | None, n: int) -> str:
    """The method to fuse with (None: as suits the model), after a check that the model has it and n atlases.

    Raises:
        ConfigError: it has not.
    """
    if method is None:
        method = "OASIS" if segmenter.estimator is None else "OASIS-joint"
    check_methods([method])
    if method == INTERPOLATION:
        raise ConfigError("methods", "a method for new scans", method, "it needs labelled slices of the scan: folds=slice")
    if method in JOINT_METHODS and segmenter.estimator is None:
        raise ConfigError("methods", "a method of this model, which is not a joint one", method, "add methods=OASIS")
    if needs_atlases([method]) and not 1 <= n <= len(segmenter.library):
        raise ConfigError("n", f"1 to {len(segmenter.library)}, the model's atlases", n)
    return method


class Result(NamedTuple):
    """One fused target on the working grid.

    probability: (C, x, y, z) float32. weights: (T, n) per target image (T = 1, or the slices), None for STAPLE and where no atlas
    is fused.
    agreement: (2, C-1, 2) overlap counts of what the result is made of, see :func:`.agreement`; None
    where nothing is compared.
    """

    probability: torch.Tensor
    weights: torch.Tensor | None
    agreement: torch.Tensor | None = None


class Segmenter:
    """A library of labelled atlases with the STM trained on it.

    Args:
        library: the atlases: slices (``spatial_dims`` 2) or volumes (3).
        aligner: None when only methods of :data:`UNALIGNED` are wanted.
        loa: the table of R1; made anew when None.
        distance: see :func:`oasis_monai.atlases.selection.nearest`.
        temperature: of R3, see :func:`oasis_monai.segmentation.fusion.conditioned_weights`.
        estimator: the segmentation network of a joint model.
        estimator_atlases, vote, recentre: see :class:`oasis_monai.networks.slice_unet.JointSettings`.
        same_case: whether the library holds labelled slices of the targets themselves (slice folds).
    """

    def __init__(
        self,
        library: AtlasLibrary,
        aligner: Aligner | None = None,
        loa: LoaTable | None = None,
        distance: str = "l2",
        temperature: float = 0.1,
        estimator: Estimator | None = None,
        estimator_atlases: int = 0,
        vote: float = 0.5,
        recentre: bool = False,
        same_case: bool = False,
    ) -> None:
        self.library, self.aligner, self.distance, self.temperature = library, aligner, distance, temperature
        self.estimator, self.estimator_atlases, self.vote = estimator, estimator_atlases, vote
        self.same_case = same_case
        self.spatial_dims = library.images.ndim - 2
        self.recentre = recentre and estimator is not None and estimator.whole is not None  # two networks, that have to agree
        # not "loa or ...": a table without pairs yet is one as well
        self.loa = loa if loa is not None or aligner is None else LoaTable(library, aligner)

    def images(self, target: Preprocessed) -> torch.Tensor:
        """The target as what an atlas is: (1, 1, x, y, z), or its slices (z, 1, x, y)."""
        return target.image[None] if self.spatial_dims == 3 else target.image.movedim(-1, 0)

    def voices(self, target: Preprocessed, which: torch.Tensor, exclude_case: str | None = None) -> torch.Tensor:
        """What each network of a joint model makes of a target's images ``which``, (T, V, C, *S), no atlas of ``exclude_case``
        beside them. Their mean over V is the estimate."""
        if self.estimator is None:
            raise ValueError("this needs the segmentation network of a joint model")
        if self.spatial_dims == 3:
            return self.estimator.voices(target.image)[None]
        slices = with_neighbours(target.image)[which]
        if self.estimator_atlases:
            rows = adjacent_slice_atlases(slices, self.library, self._barred(len(slices), exclude_case))
            shape = self._between(target.case, which, rows) if self.same_case else None
            slices = append_atlas_channels(slices, self.library, rows, shape)
        return self.estimator(slices)[:, None]

    @cached_property
    def _places(self) -> Places | None:
        return Places.of(self.library.labels) if self.recentre else None

    def follow(
        self, target: Preprocessed, methods: Sequence[str], again: Callable[[Move], Preprocessed]
    ) -> tuple[Preprocessed, torch.Tensor | None, Move]:
        """The scan on the grid that shows its structures where atlases have theirs: see :func:`.followed`.

        Returns:
            The target, what :meth:`voices` makes of it, and by how many voxels its grid was moved. Of a model whose grid does
            not follow, and for methods without an estimate: the target itself, None and no move.
        """
        if self._places is None or not needs_estimate(methods):
            return target, None, STAY
        which = torch.arange(1)
        target, voices, moved = followed(self._places, target, lambda seen: self.voices(seen, which)[0], again)
        return target, voices[None], moved

    def _barred(self, images: int, case: str | None) -> Pair | None:
        """What keeps a case's atlases from each of so many images."""
        if case is None or case not in self.library.cases:
            return None
        own = torch.tensor([case == other for other in self.library.cases]).long()
        return torch.ones(images, dtype=torch.int64), own

    def choose(self, features: torch.Tensor, n: int, exclude_case: str | None = None) -> Selection:
        """The n nearest atlases of every image of a target, by its (T, F) features; never from ``exclude_case``."""
        exclude = self._barred(len(features), exclude_case)
        rows, distances = nearest(features, self.library.features, n, self.distance, exclude=exclude)
        return Selection(rows, distances)

    @torch.inference_mode()
    def __call__(
        self,
        target: Preprocessed,
        features: torch.Tensor,
        methods: Sequence[str],
        ns: Sequence[int],
        fields: FieldCache | None = None,
        exclude_case: str | None = None,
        only: torch.Tensor | None = None,
        voices: torch.Tensor | None = None,
    ) -> tuple[dict[tuple[str, int], Result], Selection]:
        """Segment a target whose label nobody has given.

        Args:
            target: its ``label`` must be None: what a method could see, it might use.
            features: (T, F) of its images.
            methods, ns: every rule of ``methods`` at every number of atlases of ``ns``, from one alignment.
            only: (m,) the images (slices) to segment, for folds over slices; the others come back as background.
            voices: what :meth:`voices` makes of the target, where that is known (:meth:`follow`).
        """
        if target.label is not None:
            raise ValueError(f"{target.case}: a target must come without its label")
        images = self.images(target)
        which = torch.arange(len(images)) if only is None else only
        images = images[which]
        most = max(ns) if needs_atlases(methods) else min(max(ns), len(self.library))  # told beside a result, not fused
        chosen = self.choose(features[which], most, exclude_case)
        joint = self.estimator is not None and needs_estimate(methods)
        if joint and voices is None:
            voices = self.voices(target, which, exclude_case)
        estimates = None if voices is None else voices.mean(1)
        made = None
        if needs_alignment(methods):
            if self.aligner is None or self.loa is None:
                raise ValueError("these methods need an aligner")
            seen = append_structures(images, estimates[:, 1:] if estimates is not None and self.aligner.joint else None)
            made = (fields or FieldCache(None, "")).get(target.case, seen, chosen.indices, self.library, self.aligner)
            if {"OASIS", "OASIS-conditioned"} & set(methods):
                self.loa.require(list(chosen.indices))
        shapes = self._between(target.case, which) if INTERPOLATION in methods else None
        results: dict[tuple[str, int], list[Result]] = {key: [] for key in result_keys(methods, ns)}
        for i in range(len(images)):
            for key, result in self._fuse(
                images[i],
                chosen.indices[i],
                chosen.distances[i],
                None if made is None else made[i],
                None if voices is None else voices[i],
                None if shapes is None else shapes[i],
                methods,
                ns,
            ).items():
                results[key].append(result)
        stacked = {key: self._stack(parts, which, features.shape[0]) for key, parts in results.items()}
        return stacked, chosen

    def _between(self, case: str, which: torch.Tensor, otherwise: torch.Tensor | None = None) -> torch.Tensor:
        """(T, C-1, x, y) signed distances to the shape between the case's own labelled slices; ``otherwise`` as for
        :func:`oasis_monai.atlases.slices.interpolate_shape`."""
        if not self.same_case or self.spatial_dims == 3:
            raise ValueError("a shape between slices needs slices of the target in the library")
        return interpolate_shape(self.library, [(case, z) for z in which.tolist()], otherwise)

    def _stack(self, parts: list[Result], which: torch.Tensor, total: int) -> Result:
        weights = None if parts[0].weights is None else torch.stack([p.weights for p in parts if p.weights is not None])
        counts = [p.agreement for p in parts if p.agreement is not None]
        counted = torch.stack(counts).sum(0) if counts else None
        if self.spatial_dims == 3:
            return Result(parts[0].probability, weights, counted)
        probability = parts[0].probability.new_zeros((*parts[0].probability.shape, total))
        probability[0] = 1
        probability[..., which] = torch.stack([p.probability for p in parts], -1)
        return Result(probability, weights, counted)

    def _fuse(
        self,
        target: torch.Tensor,
        rows: torch.Tensor,
        distances: torch.Tensor,
        fields: torch.Tensor | None,
        voices: torch.Tensor | None,
        shape: torch.Tensor | None,
        methods: Sequence[str],
        ns: Sequence[int],
    ) -> dict[tuple[str, int], Result]:
        """Every (method, n) of one target image (1, *S). Warped labels exist one batch at a time; only their sums stay."""
        estimate = None if voices is None else voices.mean(0)
        library, keys = self.library, result_keys(methods, ns)
        weights: dict[tuple[str, int], torch.Tensor] = {}
        for n in ns:
            if "FwoW" in methods:
                weights["FwoW", n] = fusion.image_weights(library.images[rows[:n]].float(), target)
            if "majority" in methods:
                weights["majority", n] = fusion.equal_weights(n)
        results: dict[tuple[str, int], Result] = {}
        if "FwoW" in methods:
            labels = one_hot(library.labels[rows], library.classes)
            for n in ns:
                w = weights["FwoW", n]
                results["FwoW", n] = Result(fusion.fuse(labels[:n], w), w)
            del labels
        if shape is not None:
            results[INTERPOLATION, 0] = Result(torch.softmax(torch.cat([torch.zeros_like(shape[:1]), shape]), 0), None)
        if "estimate" in methods:
            if estimate is None:
                raise ValueError("the method 'estimate' needs a joint model")
            assert voices is not None
            results["estimate", 0] = Result(estimate, None, agreement(voices, None))
        if fields is None or self.aligner is None or self.loa is None:
            return results
        device, warped = self.aligner.device, self._warped(rows, fields, "FWAL" in methods)
        if "FWAL" in methods:
            on_device = target.to(device)
            similarity = torch.cat([ncc(m, on_device[None].expand_as(m)).cpu() for _, m, _ in warped() if m is not None])
            weights |= {("FWAL", n): fusion.normalise(similarity[:n]) for n in ns}
        if {"OASIS", "OASIS-conditioned"} & set(methods):
            matrix = self.loa.matrix(rows)
            for n in ns:
                weights["OASIS", n] = fusion.loa_weights(matrix[:n, :n])
                weights["OASIS-conditioned", n] = fusion.conditioned_weights(matrix[:n, :n], distances[:n], self.temperature)
        if "OASIS-consensus" in methods:
            overlaps = self._consensus(rows, fields)
            weights |= {("OASIS-consensus", n): fusion.loa_weights(overlaps[:n, :n]) for n in ns}
        if "OASIS-joint" in methods:
            if estimate is None:
                raise ValueError("the method 'OASIS-joint' needs a joint model")
            reference = estimate.to(device)
            agreement_with_estimate = torch.cat([fusion.agreement_with_estimate(w, reference).cpu() for _, _, w in warped()])
            weights |= {("OASIS-joint", n): fusion.normalise(agreement_with_estimate[:n]) for n in ns}
        summed = [key for key in keys if key[0] not in (*UNALIGNED, "STAPLE")]
        sums: dict[tuple[str, int], torch.Tensor] = {}
        votes: list[torch.Tensor] = []  # hard labels, for the rules that want raters and for what the atlases think of each other
        for part, _, labels in warped():
            for key in summed:
                w = weights[key][part.start : min(part.stop, key[1])]
                if len(w):
                    share = fusion.fuse(labels[: len(w)], w)
                    sums[key] = sums[key] + share if key in sums else share
            if "STAPLE" in methods or voices is None:
                votes += [fusion.decide(label).cpu() for label in labels]
        for key in summed:
            fused = sums[key].cpu()
            # between networks and atlases where there are networks, else among the atlases
            told = agreement(voices, fused) if voices is not None else consensus(torch.stack(votes[: key[1]]), fused)
            if key[0] == "OASIS-joint" and estimate is not None:
                vote = (1 - self.vote) * fused + self.vote * estimate
                # of a slice at the end of a structure all atlases may be empty with good reason; of a volume none is
                fused = fusion.remove_unsupported_components(vote, fused) if self.spatial_dims == 3 else vote
            results[key] = Result(fused, weights[key], told)
        if "STAPLE" in methods:
            results |= {("STAPLE", n): Result(fusion.staple(torch.stack(votes[:n]), library.classes), None) for n in ns}
        return {key: results[key] for key in keys}

    def _warped(self, rows: torch.Tensor, fields: torch.Tensor, images: bool) -> Callable[[], Iterable[Warped]]:
        """What gives the warped atlases ``rows``, again at every call. Those that fit into one batch are warped once."""
        assert self.aligner is not None
        aligner, library = self.aligner, self.library
        first = next(aligner.warped(library, rows, fields, images)) if len(rows) <= aligner.batch else None
        if first is not None and first[0].stop == len(rows):  # memory may have run out, and the batch been halved
            return lambda: [first]
        return lambda: aligner.warped(library, rows, fields, images)

    def _consensus(self, rows: torch.Tensor, fields: torch.Tensor) -> torch.Tensor:
        """R2's matrix: o_jk = Dice(y_k o phi_k, y_j o phi_j), two batches of warped labels at a time."""
        assert self.aligner is not None
        matrix = torch.ones(len(rows), len(rows))
        for left, _, a in self.aligner.warped(self.library, rows, fields):
            for right, _, b in self.aligner.warped(self.library, rows[: left.stop], fields[: left.stop]):
                for offset, one in enumerate(a):
                    j = left.start + offset
                    row = fusion.overlap(b, one[None].expand_as(b)).cpu()
                    matrix[j, right], matrix[right, j] = row, row
        return matrix
