"""The atlas library: labelled images on one grid, with their features."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch

from oasis_monai.atlases.features import Embedder, slice_features, thumbnails, volume_features
from oasis_monai.data.types import Preprocessed
from oasis_monai.networks.slice_unet import with_neighbours
from oasis_monai.transforms.labels import ignored
from oasis_monai.utils.errors import ConfigError, DataError, Fault
from oasis_monai.utils.tensor_files import map_tensors, save_tensors


class FineAtlas(NamedTuple):
    """An atlas on the fine grid (:mod:`oasis_monai.transforms.fine`); its voxels may lie on disk until they are used.

    Args:
        image: (c, *F) float16.
        label: (1, *F) uint8, as :attr:`AtlasLibrary.labels`.
    """

    image: torch.Tensor
    label: torch.Tensor


@dataclass(frozen=True, eq=False)
class AtlasLibrary:
    """N atlases on one grid (paper, section 2.1). ``spatial_dims`` D is 2 (axial slices) or 3 (volumes).

    Args:
        images: (N, c, *S) float32, or float16 to take half the space.
        labels: (N, 1, *S) uint8 class indices below ``classes``, and :data:`oasis_monai.data.types.IGNORE`.
        features: (N, F) float32.
        cases: (N) ids of the cases the atlases come from.
        slices: (N,) int64 index of the slice along z, -1 for a volume.
        classes: number of classes with the background.
        context: slices only: (N, 2c, *S) float32 images (no labels) of the slices below and above in the same scan, channel by
            channel.
        thumbnails: slices only: (N, F') float16, see :func:`oasis_monai.atlases.features.thumbnails`.
        estimates: (N, C-1, *S) float16 what a joint model's segmentation network makes of each atlas; see :meth:`with_estimates`.
        patients: (N) the persons they are of; by default (and in files of earlier versions) each case is of another.
        fine: volumes only: (N) the atlases on the fine grid; empty without one.
        structures: the classes of every structure, where structures share voxels; empty: each class is one.

    Raises:
        DataError: tensors that do not have one row for every case, or labels of another shape than the images.

    Examples:
        >>> import torch
        >>> from oasis_monai import AtlasLibrary
        >>> images, labels = torch.rand(3, 1, 32, 32, 8), torch.zeros(3, 1, 32, 32, 8, dtype=torch.uint8)
        >>> volumes = torch.full((3,), -1)
        >>> library = AtlasLibrary(images, labels, torch.rand(3, 256), ("Case00", "Case01", "Case02"), volumes, classes=2)
        >>> library.save("library.safetensors")
        >>> AtlasLibrary.load("library.safetensors").subset([0, 2]).cases
        ('Case00', 'Case02')
    """

    images: torch.Tensor
    labels: torch.Tensor
    features: torch.Tensor
    cases: tuple[str, ...]
    slices: torch.Tensor
    classes: int
    context: torch.Tensor | None = None
    estimates: torch.Tensor | None = None
    thumbnails: torch.Tensor | None = None
    patients: tuple[str, ...] = ()
    fine: tuple[FineAtlas, ...] = ()
    structures: tuple[tuple[int, ...], ...] = ()

    def __post_init__(self) -> None:
        n = len(self.cases)
        if self.fine and len(self.fine) != n:
            raise DataError(Fault("", "atlas library, fine", f"{n}, one a row", str(len(self.fine)), "build it again"))
        object.__setattr__(self, "patients", tuple(self.patients) or self.cases)
        if len(self.patients) != n:
            raise DataError(Fault("", "atlas library, patients", f"{n}, one a row", str(len(self.patients)), "build it again"))
        for name, value in self._tensors().items():
            if len(value) != n:
                raise DataError(
                    Fault("", f"atlas library, {name}", f"{n} rows, as there are cases", str(len(value)), "build it again")
                )
        if (len(self.images), 1, *self.images.shape[2:]) != tuple(self.labels.shape):
            found = f"{tuple(self.images.shape)} and {tuple(self.labels.shape)}"
            raise DataError(Fault("", "atlas library", "images and labels on one grid", found, "build it again"))

    def _tensors(self) -> dict[str, torch.Tensor]:
        """The tensors with one row per atlas."""
        found = {k: getattr(self, k) for k in ("images", "labels", "features", "slices", "context", "estimates", "thumbnails")}
        return {k: v for k, v in found.items() if v is not None}

    def __len__(self) -> int:
        return len(self.cases)

    @property
    def channels(self) -> int:
        """Channels of an image."""
        return self.images.shape[1]

    @property
    def spatial_dims(self) -> int:
        """2 for slices, 3 for volumes."""
        return self.images.ndim - 2

    @property
    def fine_factor(self) -> tuple[int, ...] | None:
        """Voxels of the fine grid for each working voxel along x, y, z; None without a fine grid."""
        if not self.fine:
            return None
        return tuple(f // n for f, n in zip(self.fine[0].label.shape[1:], self.images.shape[2:], strict=True))

    @property
    def detail_voxels(self) -> int:
        """Voxels of the finest grid of an atlas."""
        return math.prod(self.fine[0].label.shape[1:] if self.fine else self.images.shape[2:])

    @property
    def detail(self) -> tuple[FineAtlas, ...]:
        """Volumes: the atlases on the finest grid there is, that of the slice network."""
        return self.fine or tuple(FineAtlas(image, label) for image, label in zip(self.images, self.labels, strict=True))

    def subset(self, rows: torch.Tensor | Sequence[int]) -> AtlasLibrary:
        """The atlases of ``rows`` (int64 indices or a boolean mask), in that order."""
        index = torch.as_tensor(rows)
        index = index.nonzero()[:, 0] if index.dtype == torch.bool else index.long()
        cases, patients = (tuple(names[i] for i in index.tolist()) for names in (self.cases, self.patients))
        chosen: dict[str, Any] = {k: v[index] for k, v in self._tensors().items()}
        fine = tuple(self.fine[i] for i in index.tolist()) if self.fine else ()
        return replace(self, cases=cases, patients=patients, fine=fine, **chosen)

    def with_estimates(self, estimates: torch.Tensor) -> AtlasLibrary:
        """The library with the estimates (N, C-1, \\*S) of a joint model's segmentation networks."""
        return replace(self, estimates=estimates.half())

    def groups(self, same_case: bool = False) -> torch.Tensor:
        """(N,) int64 groups; atlases of one group are never paired: a patient, or with ``same_case`` only the atlas itself."""
        if same_case:
            return torch.arange(len(self))
        names = {patient: number for number, patient in enumerate(dict.fromkeys(self.patients))}
        return torch.tensor([names[patient] for patient in self.patients])

    def patient_of(self, case: str) -> str:
        """The person a case is of; one that is not in the library is of its own."""
        return self.patients[self.cases.index(case)] if case in self.cases else case

    def siblings(self, rows: torch.Tensor) -> torch.Tensor:
        """(n, n) bool, which of the atlases ``rows`` are of one patient but of different cases."""
        own = [(self.patients[row], self.cases[row]) for row in rows.tolist()]
        return torch.tensor([[one[0] == other[0] and one[1] != other[1] for other in own] for one in own])

    def cases_of(self, patient: str) -> list[str]:
        """The cases of a person, in order."""
        return list(dict.fromkeys(c for c, p in zip(self.cases, self.patients, strict=True) if p == patient))

    def label_of(self, case: str) -> torch.Tensor:
        """(x, y, z) class indices of a case, its slices put together in order; see also :meth:`finest_label_of`."""
        rows = sorted((int(self.slices[row]), row) for row, other in enumerate(self.cases) if other == case)
        label = self.labels[[row for _, row in rows], 0]
        return label[0] if self.spatial_dims == 3 else label.movedim(0, -1)

    def finest_label_of(self, case: str) -> torch.Tensor:
        """:meth:`label_of` on the fine grid, where there is one."""
        return self.fine[self.cases.index(case)].label[0] if self.fine else self.label_of(case)

    def twin(self, image: torch.Tensor, tolerance: float, among: Iterable[str]) -> str | None:
        """Find the case whose atlases have the same voxels as a scan.

        Args:
            image: (c, x, y, z), the preprocessed scan.
            tolerance: how far two voxels may differ, in standard deviations.
            among: the cases to look at.
        """
        own = image[None] if self.spatial_dims == 3 else image.movedim(-1, 0)
        for case in among:
            theirs = self.images[[i for i, other in enumerate(self.cases) if other == case]]
            if theirs.shape == own.shape and bool(((theirs.float() - own).abs() <= tolerance).all()):
                return case
        return None

    def merge(self, other: AtlasLibrary) -> AtlasLibrary:
        """This library's atlases, then ``other``'s.

        Raises:
            DataError: other channels or grid, another number of features or of classes, or an atlas that is in both.
        """
        ours, theirs = (
            (tuple(lib.images.shape[1:]), lib.features.shape[1], lib.classes, *filter(None, [lib.fine_factor]))
            for lib in (self, other)
        )
        if ours != theirs:
            expected = f"channels and grid, features, classes {ours}"
            raise DataError(Fault("", "atlas library", expected, str(theirs), "build both with the same settings"))
        twice = sorted(
            set(zip(self.cases, self.slices.tolist(), strict=True)) & set(zip(other.cases, other.slices.tolist(), strict=True))
        )
        if twice:
            case, row = twice[0]
            raise DataError(Fault(case, f"slice {row}", "each atlas once", f"{len(twice)} in both libraries", "leave one out"))
        more = other._tensors()
        both: dict[str, Any] = {k: torch.cat([v, more[k]]) for k, v in self._tensors().items() if k in more}
        without = replace(self, context=None, estimates=None, thumbnails=None)  # where only one of the two has them
        fine = self.fine + other.fine
        return replace(without, cases=self.cases + other.cases, patients=self.patients + other.patients, fine=fine, **both)

    def save(self, path: str | Path) -> None:
        """Write the library with a checksum, whole or not at all."""
        known: dict[str, Any] = {} if self.patients == self.cases else {"patients": list(self.patients)}
        known |= {"structures": [list(own) for own in self.structures]} if self.structures else {}
        fine = {f"fine.{row}.{k}": v for row, one in enumerate(self.fine) for k, v in one._asdict().items()}
        save_tensors(path, self._tensors() | fine, {"cases": list(self.cases), "classes": self.classes, **known})

    @classmethod
    def load(cls, path: str | Path, check: bool = True) -> AtlasLibrary:
        """Read what :meth:`save` wrote. Its values stay on disk; only the rows of images and labels that are used are read.

        Args:
            check: compare the file with its checksum; False where that has just been done.

        Raises:
            DataError: the file is absent, damaged, or something else.
        """
        try:
            tensors, meta = map_tensors(path, check)
            parts = [tensors[k] for k in ("images", "labels", "features", "slices")]
            more = [tensors.get(k) for k in ("context", "estimates", "thumbnails")]
            cases, patients = tuple(meta["cases"]), tuple(meta.get("patients", ()))
            rows = range(len(cases)) if "fine.0.image" in tensors else ()
            fine = tuple(FineAtlas(*(tensors[f"fine.{row}.{key}"] for key in FineAtlas._fields)) for row in rows)
            own = (parts[0], parts[1], parts[2], cases, parts[3], int(meta["classes"]), more[0], more[1], more[2], patients)
            return cls(*own, fine, tuple(tuple(map(int, one)) for one in meta.get("structures", ())))
        except (OSError, ValueError, KeyError) as error:
            raise DataError(Fault("", str(path), "a whole atlas library", str(error), "build the library again")) from error


def build_library(
    items: Sequence[Preprocessed],
    spatial_dims: int,
    embed: Embedder,
    classes: int,
    patients: Mapping[str, str] = MappingProxyType({}),
) -> AtlasLibrary:
    """Make atlases from labelled cases, in the order of the cases (slices ascending).

    In 2D every slice becomes an atlas, also one without foreground: leaving those out would reveal where the structure ends.

    Args:
        patients: case -> the person it is of; a case that is not there is nobody else's.

    Raises:
        ConfigError: ``spatial_dims`` is neither 2 nor 3, or there are no cases.
        DataError: cases without label, with a class the library does not have, with other channels, or on another grid; all of
            them at once.
    """
    if spatial_dims not in (2, 3):
        raise ConfigError("spatial_dims", "2 or 3", spatial_dims)
    if not items:
        raise ConfigError("cases", "at least one labelled case", 0, "give more cases or fewer folds")
    faults = [fault for item in items for fault in _faults(item, items[0], spatial_dims, classes)]
    if faults:
        raise DataError(faults)
    images, labels, features, cases, rows, context = [], [], [], [], [], []
    for item in items:
        assert item.label is not None
        if spatial_dims == 2:
            images.append(item.image.permute(3, 0, 1, 2))
            labels.append(item.label.permute(3, 0, 1, 2))
            by_channel = with_neighbours(item.image).unflatten(1, (-1, 3))
            context.append(by_channel[:, :, [0, 2]].flatten(1, 2))
            features.append(slice_features(item.image, embed))
            rows += list(range(item.image.shape[3]))
            cases += [item.case] * item.image.shape[3]
        else:
            images.append(item.image[None])
            labels.append(item.label[None])
            features.append(volume_features(item.image, embed)[None])
            rows.append(-1)
            cases.append(item.case)
    return AtlasLibrary(
        torch.cat(images).float().contiguous(),
        torch.cat(labels).to(torch.uint8).contiguous(),
        torch.cat(features),
        tuple(cases),
        torch.tensor(rows),
        classes,
        torch.cat(context).float() if context else None,
        thumbnails=thumbnails(torch.cat(images)) if spatial_dims == 2 else None,
        patients=tuple(patients.get(case, case) for case in cases),
        fine=tuple(FineAtlas(one.image, one.label) for item in items if (one := item.fine) is not None and one.label is not None),
    )


def _faults(item: Preprocessed, first: Preprocessed, spatial_dims: int, classes: int) -> list[Fault]:
    """The faults that keep one case from becoming atlases."""
    if item.label is None:
        return [Fault(item.case, "label", "a label, because atlases need one", "none", "add the label or leave the case out")]
    if item.label.shape[1:] != item.image.shape[1:]:
        found = f"{tuple(item.label.shape)}"
        return [Fault(item.case, "label", f"the image's shape {tuple(item.image.shape)}", found, "resample the label")]
    if len(item.image) != len(first.image):
        remedy = "give every case the same images, or choose some by data.channels"
        return [Fault(item.case, "channels", f"{len(first.image)} as {first.case}", str(len(item.image)), remedy)]
    same = spatial_dims + 1  # in 2D cases may differ in their number of slices
    if item.image.shape[:same] != first.image.shape[:same]:
        expected = f"{tuple(first.image.shape[1:same])} voxels as {first.case}"
        return [Fault(item.case, "grid", expected, str(tuple(item.image.shape[1:same])), "preprocess all cases to one grid")]
    highest = int(item.label[~ignored(item.label)].amax()) if not bool(ignored(item.label).all()) else 0
    if highest >= classes:
        return [Fault(item.case, "label", f"classes 0..{classes - 1}", str(highest), "set the classes of the data set")]
    return []
