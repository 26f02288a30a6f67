"""Label overlapping accuracy (LOA) among the atlases of a library, section 2.2 of the paper."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from oasis_monai.atlases.library import AtlasLibrary
from oasis_monai.networks.registration import append_structures
from oasis_monai.segmentation.alignment import Aligner
from oasis_monai.segmentation.fusion import overlap
from oasis_monai.segmentation.sparse_labels import SparseLabels
from oasis_monai.transforms.labels import one_hot
from oasis_monai.utils.tensor_files import load_if_whole, save_tensors


class LoaTable:
    """o_jk between the atlases of one library (reading R1): Dice of atlas k's label warped onto atlas j with j's own label.

    Depends on the library (with its estimates, where the STM is a joint one) and the STM only, never on a target, so each pair is
    computed when first asked for and kept.

    Args:
        library, aligner: what to align, and with what.
        path: file the pairs are kept in; None keeps them in memory.
        of: identity of the library. Pairs are stored by row, so a file of another library is not used; for a library that never
            changes it may be empty.
    """

    def __init__(self, library: AtlasLibrary, aligner: Aligner, path: Path | None = None, of: str = "") -> None:
        self.library, self.aligner, self.path, self.of = library, aligner, path, of
        self._known: dict[tuple[int, int], float] = {}
        self._saved = 0
        stored = load_if_whole(path) if path else None
        if stored is not None and stored[1].get("of", "") == of:
            self.learn(stored[0])
            self._saved = len(self._known)

    def __len__(self) -> int:
        return len(self._known)

    def carry(self, other: LoaTable, rows: torch.Tensor) -> None:
        """Copy the pairs of another table's atlases ``rows``, which are the first atlases of this library, in that order."""
        place = {row: i for i, row in enumerate(rows.tolist())}
        pairs = other._known.items()
        self._known.update({(place[j], place[k]): value for (j, k), value in pairs if j in place and k in place})

    def learn(self, known: Mapping[str, torch.Tensor]) -> None:
        """Take over pairs that :meth:`tensors` gave."""
        pairs, values = known["pairs"].tolist(), known["values"].tolist()
        self._known |= {(j, k): v for (j, k), v in zip(pairs, values, strict=True)}

    def tensors(self) -> dict[str, torch.Tensor]:
        """``pairs`` (P, 2) int64 of (onto, atlas) and their ``values`` (P,) float64, for all pairs computed so far."""
        pairs = sorted(self._known)
        values = torch.tensor([self._known[p] for p in pairs], dtype=torch.float64)
        return {"pairs": torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2), "values": values}

    def require(self, groups: Sequence[torch.Tensor]) -> None:
        """Compute every missing ordered pair within each group of atlas rows, but two scans of one patient, in full batches."""
        wanted = {(j, k) for group in map(torch.Tensor.tolist, groups) for j in group for k in group if j != k}
        cases, patients = self.library.cases, self.library.patients
        if cases != patients:
            wanted = {(j, k) for j, k in wanted if patients[j] != patients[k] or cases[j] == cases[k]}
        missing = torch.tensor(sorted(wanted - self._known.keys()), dtype=torch.int64).reshape(-1, 2)
        for part in missing.split(self.aligner.batch) if len(missing) else ():
            self._known.update(zip(map(tuple, part.tolist()), self._overlaps(part).tolist(), strict=True))

    @torch.inference_mode()
    def _overlaps(self, pairs: torch.Tensor) -> torch.Tensor:
        onto, atlas = pairs[:, 0], pairs[:, 1]
        library = self.library
        onto_seen = append_structures(
            self.aligner.rows(library.images, onto), self._estimates(onto) if self.aligner.joint else None
        )
        fields = self.aligner.fields(self.aligner.seen(library, atlas), onto_seen)
        parts = []
        for part, _, moved in self.aligner.warped(library, atlas, fields):
            label = self.aligner.rows(library.labels, onto[part])
            reference = label[:, 0] if isinstance(moved, SparseLabels) else one_hot(label, library.classes)
            parts.append(overlap(moved, reference).cpu())
        return torch.cat(parts)

    def _estimates(self, rows: torch.Tensor) -> torch.Tensor:
        """An atlas in the role of the target enters the STM like a target: with the model's estimate, not with its label."""
        if self.library.estimates is None:
            raise ValueError("the LOA table of a joint STM needs a library with estimates")
        return self.aligner.rows(self.library.estimates, rows)

    def matrix(self, rows: torch.Tensor) -> torch.Tensor:
        """(n, n) matrix o[j, k] of the atlases ``rows``; ones on the diagonal, NaN for two scans of one patient: what they
        overlap says nothing of how well an atlas fits others."""
        self.require([rows])
        ids = rows.tolist()
        return torch.tensor([[1.0 if j == k else self._known.get((j, k), math.nan) for k in ids] for j in ids])

    def save(self) -> None:
        """Keep the pairs computed so far."""
        if self.path is None or len(self._known) == self._saved:
            return
        save_tensors(self.path, self.tensors(), {"of": self.of} if self.of else {})
        self._saved = len(self._known)
