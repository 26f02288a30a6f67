"""Atlases onto targets: fields from the STM in batches, kept on the coarse grid and warped only when they are used."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from oasis_monai.fusion import overlap
from oasis_monai.library import AtlasLibrary
from oasis_monai.networks import warp as warping
from oasis_monai.networks.registration import with_structures
from oasis_monai.transforms.labels import foreground, one_hot
from oasis_monai.utils.device import halved
from oasis_monai.utils.files import digest
from oasis_monai.utils.memory import Batched
from oasis_monai.utils.tensor_files import load_if_whole, save_tensors

Warped = tuple[slice, torch.Tensor | None, torch.Tensor]


class Aligner(Batched):
    """A trained STM with the batch it may hold at once; where memory runs out it goes on with half of that.

    Args:
        model: the network, (B, c, *S) atlas and target -> coarse field by ``model.field``; c is 1, and 1 + the number of
            structures for a joint STM.
        device: where it runs.
        batch: pairs per forward pass, and the most warped atlases held in memory at once.
        half: run the network in bfloat16, see :func:`oasis_monai.utils.device.halved`.
    """

    def __init__(self, model: nn.Module, device: str | torch.device = "cpu", batch: int = 8, half: bool | None = None) -> None:
        self.model, self.device, self.batch = model.to(device).eval(), torch.device(device), batch
        self.half = halved(self.device, half)
        self.joint = bool(getattr(getattr(model, "settings", None), "joint", False))

    def seen(self, library: AtlasLibrary, rows: torch.Tensor) -> torch.Tensor:
        """The atlases ``rows`` as the STM sees an atlas: (P, c, *S) image, and labels for a joint STM."""
        return with_structures(library.images[rows], foreground(library.labels[rows], library.classes) if self.joint else None)

    @torch.inference_mode()
    def fields(self, atlases: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """(P, c, *S) atlases and their (P, c, *S) targets, as the STM sees them -> (P, D, *s) coarse fields, float16 on the CPU.

        Half precision is a resolution of 0.01 voxel at 16 voxels; every use, fresh or read back from disk, sees the same numbers.
        """

        def align(part: slice) -> torch.Tensor:
            pair = atlases[part].to(self.device), targets[part].to(self.device)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.half):
                field: torch.Tensor = self.model.field(*pair)  # type: ignore[operator]
            return field.half().cpu()

        return torch.cat([made for _, made in self.in_batches(len(atlases), align)])

    def warped(self, library: AtlasLibrary, rows: torch.Tensor, fields: torch.Tensor, images: bool = False) -> Iterator[Warped]:
        """Warp the atlases ``rows`` through their coarse ``fields``, one batch after the other.

        Yields:
            (which of ``rows``, (b, 1, *S) warped images or None where they are not asked for, (b, C, *S) warped one-hot labels).
        """

        def warp(part: slice) -> tuple[torch.Tensor | None, torch.Tensor]:
            structures = foreground(library.labels[rows[part]].to(self.device), library.classes)
            ddf = warping.resize_ddf(fields[part].to(self.device).float(), structures.shape[2:])
            image = library.images[rows[part]].to(self.device, torch.float32) if images else structures[:, :0]
            moved_image, moved = warping.warp_pair(image, structures, ddf)
            return moved_image if images else None, torch.cat([1 - moved.sum(1, keepdim=True), moved], 1)

        for part, (moved, moved_label) in self.in_batches(len(rows), warp):
            yield part, moved, moved_label


@dataclass
class FieldCache:
    """The fields of one target (a case), so that each (target, atlas) pair is aligned once for every n and every rule.

    Lists of nearest atlases nest, so a longer list extends the stored one. The file is named by what the list depends on.
    """

    folder: Path | None
    key: str

    def moved(self, move: Sequence[int]) -> FieldCache:
        """That of the same target on a grid moved by so many voxels."""
        return FieldCache(self.folder, digest([self.key, *move])) if any(move) else self

    def get(self, target: str, images: torch.Tensor, rows: torch.Tensor, library: AtlasLibrary, aligner: Aligner) -> torch.Tensor:
        """Fields of the atlases ``rows`` (T, n) for the T images (T, c, *S) of one target -> (T, n, D, *s) float16.

        T is 1 for a volume and the number of slices for a stack of slices; a joint STM's images carry the target's estimate.
        """
        path = None if self.folder is None else self.folder / f"{self.key}-{_safe(target)}.safetensors"
        stored = load_if_whole(path) if path else None
        known = torch.empty((len(rows), 0), dtype=torch.int64)
        fields: list[torch.Tensor] = []
        if stored is not None and "rows" in stored[0]:
            known, have = stored[0]["rows"], stored[0]["fields"]
            n = min(known.shape[1], rows.shape[1])
            if known.shape[0] == rows.shape[0] and torch.equal(known[:, :n], rows[:, :n]):
                if known.shape[1] >= rows.shape[1]:
                    return have[:, : rows.shape[1]]
                fields.append(have)
            else:
                known = known[:0].new_empty((len(rows), 0))
        new = rows[:, known.shape[1] :]
        pairs = torch.stack([new.flatten(), torch.arange(len(rows)).repeat_interleave(new.shape[1])])
        made = [
            aligner.fields(aligner.seen(library, part[0]), images[part[1]].float())  # gathers a batch, not the case
            for part in pairs.split(aligner.batch, dim=1)
        ]
        fields.append(torch.cat(made).unflatten(0, tuple(new.shape)))
        result = torch.cat(fields, 1)
        if path is not None:
            save_tensors(path, {"rows": rows, "fields": result})
        return result


@dataclass
class KeptFields(FieldCache):
    """The fields of one target in memory, for who wants to look at them after they were used."""

    last: torch.Tensor | None = None

    def get(self, target: str, images: torch.Tensor, rows: torch.Tensor, library: AtlasLibrary, aligner: Aligner) -> torch.Tensor:
        """As :meth:`FieldCache.get`; ``last`` is what it gave."""
        self.last = super().get(target, images, rows, library, aligner)
        return self.last


def _safe(name: str) -> str:
    """A file name made of a case id: two ids never share one, and none leaves the folder."""
    from hashlib import sha256

    plain = "".join(c if c.isalnum() or c in "-_" else "_" for c in name)[:40]
    return f"{plain}-{sha256(name.encode()).hexdigest()[:8]}"


class LoaTable:
    """o_jk between the atlases of one library (reading R1): Dice of atlas k's label warped onto atlas j with j's own label.

    Depends on the library (with its estimates, where the STM is a joint one) and the STM only, never on a target, so each pair is
    computed when first asked for and kept.

    Args:
        library, aligner: what to align, and with what.
        path: file the pairs are kept in; None keeps them in memory.
        of: what the library is known by. Pairs are kept by row, so a file that names another library is not read; a file beside
            a library that never changes needs no name.
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
        """Take over what another table knows of its atlases ``rows``, which are the first ones of this library, in that order."""
        place = {row: i for i, row in enumerate(rows.tolist())}
        pairs = other._known.items()
        self._known.update({(place[j], place[k]): value for (j, k), value in pairs if j in place and k in place})

    def learn(self, known: Mapping[str, torch.Tensor]) -> None:
        """Take over pairs that :meth:`tensors` gave."""
        pairs, values = known["pairs"].tolist(), known["values"].tolist()
        self._known |= {(j, k): v for (j, k), v in zip(pairs, values, strict=True)}

    def tensors(self) -> dict[str, torch.Tensor]:
        """``pairs`` (P, 2) int64 of (onto, atlas) and their ``values`` (P,) float64: all that is known so far."""
        pairs = sorted(self._known)
        values = torch.tensor([self._known[p] for p in pairs], dtype=torch.float64)
        return {"pairs": torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2), "values": values}

    def require(self, groups: Sequence[torch.Tensor]) -> None:
        """Compute every missing ordered pair within each group of atlas rows, in full batches."""
        wanted = {(j, k) for group in map(torch.Tensor.tolist, groups) for j in group for k in group if j != k}
        missing = torch.tensor(sorted(wanted - self._known.keys()), dtype=torch.int64).reshape(-1, 2)
        for part in missing.split(self.aligner.batch) if len(missing) else ():
            self._known.update(zip(map(tuple, part.tolist()), self._overlaps(part).tolist(), strict=True))

    @torch.inference_mode()
    def _overlaps(self, pairs: torch.Tensor) -> torch.Tensor:
        onto, atlas = pairs[:, 0], pairs[:, 1]
        library = self.library
        onto_seen = with_structures(library.images[onto], self._estimates(onto) if self.aligner.joint else None)
        fields = self.aligner.fields(self.aligner.seen(library, atlas), onto_seen)
        parts = [
            overlap(moved, one_hot(library.labels[onto[part]].to(moved.device), library.classes)).cpu()
            for part, _, moved in self.aligner.warped(library, atlas, fields)
        ]
        return torch.cat(parts)

    def _estimates(self, rows: torch.Tensor) -> torch.Tensor:
        """An atlas that plays the target is seen as a target is: with what the model makes of it, not with its label."""
        if self.library.estimates is None:
            raise ValueError("the LOA table of a joint STM needs a library with estimates")
        return self.library.estimates[rows]

    def matrix(self, rows: torch.Tensor) -> torch.Tensor:
        """(n, n) matrix o[j, k] of the atlases ``rows``; ones on the diagonal."""
        self.require([rows])
        ids = rows.tolist()
        return torch.tensor([[1.0 if j == k else self._known[j, k] for k in ids] for j in ids])

    def save(self) -> None:
        """Keep the pairs computed so far."""
        if self.path is None or len(self._known) == self._saved:
            return
        save_tensors(self.path, self.tensors(), {"of": self.of} if self.of else {})
        self._saved = len(self._known)
