"""Align atlases to targets: displacement fields from the STM in batches, cached on the coarse grid, warped on use."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from oasis_monai.atlases.library import AtlasLibrary
from oasis_monai.networks import warp as warping
from oasis_monai.networks.registration import append_structures
from oasis_monai.segmentation.device_rows import DeviceRows
from oasis_monai.segmentation.sparse_labels import SparseLabels, warp_sparse
from oasis_monai.transforms.labels import MANY, foreground, split_ignored, with_ignored
from oasis_monai.transforms.views import View
from oasis_monai.utils.device import infer_in_bfloat16
from oasis_monai.utils.files import digest
from oasis_monai.utils.memory import Batched
from oasis_monai.utils.tensor_files import load_if_whole, save_tensors

Warped = tuple[slice, torch.Tensor | None, torch.Tensor | SparseLabels]


class Aligner(Batched):
    """Aligns atlases with a trained STM in batches; when memory runs out, with smaller batches.

    Args:
        model: the network, (B, c, *S) atlas and target -> coarse field by ``model.field``; c is the number of channels of an
            image, and of structures beside them for a joint STM.
        device: where it runs.
        batch: pairs per forward pass, and the most warped atlases held in memory at once.
        bfloat16: run the network in bfloat16, see :func:`oasis_monai.utils.device.infer_in_bfloat16`.
    """

    def __init__(
        self, model: nn.Module, device: str | torch.device = "cpu", batch: int = 8, bfloat16: bool | None = None
    ) -> None:
        self.model, self.device, self.batch = model.to(device).eval(), torch.device(device), batch
        self.bfloat16 = infer_in_bfloat16(self.device, bfloat16)
        self.rows = DeviceRows(self.device)
        self.joint = bool(getattr(getattr(model, "settings", None), "joint", False))

    def at_once(self, library: AtlasLibrary) -> int:
        """How many pairs to gather: of a joint STM, which sees a map of every structure, one where these are many."""
        return 1 if self.joint and library.classes > MANY else self.batch

    def seen(self, library: AtlasLibrary, rows: torch.Tensor) -> torch.Tensor:
        """The STM's input for the atlases ``rows``: (P, c, *S) images, with labels for a joint STM."""
        labels = foreground(self.rows(library.labels, rows), library.classes) if self.joint else None
        return append_structures(self.rows(library.images, rows), labels)

    @torch.inference_mode()
    def fields(self, atlases: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """(P, c, *S) atlases and their (P, c, *S) targets, as the STM sees them -> (P, D, *s) coarse fields, float16 on the CPU.

        Half precision is a resolution of 0.01 voxel at 16 voxels; every use, fresh or read back from disk, sees the same numbers.
        """

        def align(part: slice) -> torch.Tensor:
            pair = atlases[part].to(self.device), targets[part].to(self.device)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16):
                field: torch.Tensor = self.model.field(*pair)  # type: ignore[operator]
            return field.half().cpu()

        return torch.cat([field for _, field in self.in_batches(len(atlases), align)])

    def warped(self, library: AtlasLibrary, rows: torch.Tensor, fields: torch.Tensor, images: bool = False) -> Iterator[Warped]:
        """Warp the atlases ``rows`` through their coarse ``fields``, one batch after the other.

        Yields:
            (which of ``rows``, (b, c, *S) warped images or None where they are not asked for, (b, C, *S) warped one-hot labels, 0
            in every class where the atlas is ignored: :func:`oasis_monai.transforms.labels.labelled`). Of more than
            :data:`.MANY` classes the labels are sparse.
        """

        def warp_many(part: slice) -> tuple[torch.Tensor | None, SparseLabels]:
            labels, size = self.rows(library.labels, rows[part]), library.labels.shape[2:]
            ddf = warping.resize_ddf(fields[part].to(self.device).float(), size)
            axes = [torch.arange(n, device=ddf.device).view(-1, *[1] * (len(size) - 1 - i)) for i, n in enumerate(size)]
            moved = tuple(
                warp_sparse(label, [way + axis for way, axis in zip(field, axes, strict=True)], library.classes)
                for label, field in zip(labels, ddf, strict=True)
            )
            image = warping.warp(self.rows(library.images, rows[part]).float(), ddf) if images else None
            return image, SparseLabels(moved)

        def warp(part: slice) -> tuple[torch.Tensor | None, torch.Tensor | SparseLabels]:
            if library.classes > MANY:
                return warp_many(part)
            structures = with_ignored(self.rows(library.labels, rows[part]), library.classes)
            ddf = warping.resize_ddf(fields[part].to(self.device).float(), structures.shape[2:])
            image = self.rows(library.images, rows[part]).float() if images else structures[:, :0]
            moved_image, moved = warping.warp_pair(image, structures, ddf)
            return moved_image if images else None, with_background(moved, library.classes)

        for part, (moved, moved_label) in self.in_batches(len(rows), warp):
            yield part, moved, moved_label


def with_background(moved: torch.Tensor, classes: int) -> torch.Tensor:
    """What a warp made of :func:`oasis_monai.transforms.labels.with_ignored` -> (b, C, *S) one-hot labels, 0 in every class where
    the atlas is ignored."""
    moved, counts = split_ignored(moved, classes)
    whole = torch.cat([1 - moved.sum(1, keepdim=True), moved], 1)
    return whole if counts is None else whole * counts


@dataclass
class FieldCache:
    """Caches the fields of one target (a case), so that each (target, atlas) pair is aligned once for all n and methods.

    A longer list of nearest atlases starts with the shorter one, so it extends the stored fields. The file's name holds what the
    list depends on.
    """

    folder: Path | None
    key: str

    def seen(self, view: View, move: Sequence[int]) -> FieldCache:
        """The cache of the same target in a view, on a grid moved by ``move`` voxels."""
        key = digest([self.key, view.matrix, view.intensities]) if view else self.key
        return replace(self, key=digest([key, *move]) if any(move) else key)

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
        images = images.to(aligner.device)  # once, not for every atlas
        parts = [
            aligner.fields(aligner.seen(library, part[0]), images[part[1]].float())  # gathers a batch, not the case
            for part in pairs.split(aligner.at_once(library), dim=1)
        ]
        fields.append(torch.cat(parts).unflatten(0, tuple(new.shape)))
        result = torch.cat(fields, 1)
        if path is not None:
            save_tensors(path, {"rows": rows, "fields": result})
        return result


def _safe(name: str) -> str:
    """A file name for a case id: unique per id, and always inside the folder."""
    from hashlib import sha256

    plain = "".join(c if c.isalnum() or c in "-_" else "_" for c in name)[:40]
    return f"{plain}-{sha256(name.encode()).hexdigest()[:8]}"
