"""The data types that pass from step to step: case, volume, preprocessed scan, selection, segmentation.

``Case -> Volume -> Preprocessed -> AtlasLibrary -> Selection -> fields -> weights -> Segmentation -> Score``

Array axes are always ``(channel, x, y, z)`` (MONAI's order: the first array axis is the file's fastest axis), affines map
voxel indices to RAS+ millimetres (nibabel's and MONAI's convention).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch

from oasis_monai.utils.errors import Fault


@dataclass(frozen=True, eq=False)
class NiftiForms:
    """What a NIfTI header says of its grid's place. A result repeats it, so that every program shows it where it shows the scan.

    Args:
        fields: the header's values of both transforms (sform, qform), their codes, the voxel size and the unit.
        used: (4, 4) RAS+ affine that is taken here.
        nibabel: the one that nibabel takes.
        itk: the one that ITK takes.
        others: further ones that stand in the header.
    """

    fields: Mapping[str, np.ndarray]
    used: np.ndarray
    nibabel: np.ndarray
    itk: np.ndarray
    others: tuple[np.ndarray, ...] = ()


@dataclass(frozen=True)
class Geometry:
    """Where a voxel grid lies in space.

    Args:
        shape: voxels along x, y, z.
        affine: (4, 4) float64, voxel index -> RAS+ millimetres.
        forms: the header's own words where the grid is that of a NIfTI file; None elsewhere.

    Examples:
        >>> import numpy as np
        >>> from oasis_monai import Geometry
        >>> grid = Geometry((320, 320, 24), np.diag([0.5, 0.5, 3.0, 1.0]))
        >>> grid.spacing_mm, grid.voxel_ml
        ((0.5, 0.5, 3.0), 0.00075)
    """

    shape: tuple[int, int, int]
    affine: np.ndarray
    forms: NiftiForms | None = field(default=None, repr=False, compare=False)

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Voxel size along each array axis in millimetres."""
        x, y, z = np.linalg.norm(np.asarray(self.affine, float)[:3, :3], axis=0)
        return float(x), float(y), float(z)

    @property
    def voxel_ml(self) -> float:
        """Volume of one voxel in millilitres."""
        x, y, z = self.spacing_mm
        return x * y * z / 1000


IGNORE = 255
"""Class index of voxels that nobody labelled (``data.ignore``): they count in no loss and no score."""


@dataclass(frozen=True)
class Case:
    """One scan of a data set: paths only, nothing read yet.

    Args:
        id: what it is called.
        image: its file; of a DICOM series the first.
        label: its label's file; None for a scan to be segmented.
        more: one file of a DICOM series from each further folder that it lies in.
        channels: of a scan with several images, the files of each further one (as ``image`` with ``more``), in order.
        take: numbers of the channels to use, among those of all its files in order; empty for all.
        patient: the person it is of; by default nobody else's, the id.
        centre: where it was scanned; empty where nobody says.
        fold: number of the fold that tests it, where the data set says so.
        split: ``train`` or ``test`` where the data set says so, else empty.
        background: values in its label's file that count as background, beside 0.
        names: (structure, value) pairs of a label that holds structures by name (DICOM SEG, RTSTRUCT); empty for the file's own.
        origin: where the user's list names each of its images, and last its label (``cases.csv line 3, column T2``), for
            messages; empty where no list does.
        masks: (structure, file) pairs of a label with a mask file for each structure; ``label`` is then the first of them. Empty
            for a label of one file.
        structures: (structure, values) pairs of structures that share voxels (``data.structures``), see
            :mod:`oasis_monai.data.overlap`; empty where each voxel is in one.
        overlapping: whether the label's own file has them one by one (DICOM SEG, RTSTRUCT, layers of a seg.nrrd).

    Examples:
        >>> from pathlib import Path
        >>> from oasis_monai import Case
        >>> case = Case("Case00", Path("data/prostate/Case00.mhd"), Path("data/prostate/Case00_segmentation.mhd"))
        >>> case.without_label().label is None
        True
        >>> case.patient
        'Case00'
    """

    id: str
    image: Path
    label: Path | None = None
    more: tuple[Path, ...] = ()
    channels: tuple[tuple[Path, ...], ...] = ()
    take: tuple[int, ...] = ()
    patient: str = ""
    centre: str = ""
    fold: int | None = None
    split: str = ""
    background: tuple[int, ...] = ()
    names: tuple[tuple[str, int], ...] = ()
    origin: tuple[str, ...] = field(default=(), compare=False)
    masks: tuple[tuple[str, Path], ...] = ()
    structures: tuple[tuple[str, tuple[int, ...]], ...] = ()
    overlapping: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "patient", self.patient or self.id)

    @property
    def source(self) -> tuple[Path, ...]:
        """What the readers take of the first image: a file, or one of a DICOM series from each of its folders."""
        return (self.image, *self.more)

    @property
    def sources(self) -> tuple[tuple[Path, ...], ...]:
        """:attr:`source` of every image, one or more channels each."""
        return (self.source, *self.channels)

    @property
    def label_files(self) -> tuple[Path, ...]:
        """The files of its label: none, one, or a mask for each structure."""
        return tuple(path for _, path in self.masks) or (() if self.label is None else (self.label,))

    def place(self, name: str, source: int = 0) -> str:
        """What a fault calls one of its files: after the place in the user's list that names it.

        Args:
            name: what is wrong there.
            source: index of the image in :attr:`sources`; -1: the label.
        """
        return f"{self.origin[source]}: {name}" if self.origin else name

    def without_label(self) -> Case:
        """The same case as a target: no label travels with it."""
        return replace(self, label=None, masks=())


@dataclass(frozen=True)
class Volume:
    """One scan in memory on its native grid.

    Args:
        case: the case's id.
        image: (channels, x, y, z) float32, as stored in the file.
        label: (1, x, y, z) uint8 class indices 0..C-1 (already renumbered from the file's label values) and :data:`IGNORE`, or
            None.
        geometry: the native grid.
        notes: what its files say that a reader should know of; the case can be used all the same.

    Examples:
        >>> import numpy as np
        >>> import torch
        >>> from oasis_monai import Geometry, Volume
        >>> grid = Geometry((64, 64, 20), np.diag([2.0, 2.0, 4.0, 1.0]))
        >>> volume = Volume("patient", torch.rand(1, 64, 64, 20), None, grid)
    """

    case: str
    image: torch.Tensor
    label: torch.Tensor | None
    geometry: Geometry
    notes: tuple[Fault, ...] = ()


@dataclass(frozen=True)
class Preprocessed:
    """One scan on the working grid (what networks see).

    Args:
        case: the case's id.
        image: (channels, x, y, z) float32, each normalised by itself.
        label: (1, x, y, z) uint8 class indices and :data:`IGNORE`, or None.
        geometry: the working grid, in the same RAS+ millimetre space as ``native``.
        native: the grid results must come back on.
        fine: the same scan on the fine grid (:mod:`oasis_monai.transforms.fine`), its image in float16; None without one.
    """

    case: str
    image: torch.Tensor
    label: torch.Tensor | None
    geometry: Geometry
    native: Geometry
    fine: Preprocessed | None = None

    def without_label(self) -> Preprocessed:
        """The same scan as a target: no label travels with it, on no grid."""
        return replace(self, label=None, fine=None if self.fine is None else self.fine.without_label())

    def grid_of(self, shape: Sequence[int]) -> Geometry:
        """The grid of a result of so many voxels along x, y, z: the working or the fine one."""
        on_fine = self.fine is not None and tuple(shape) == tuple(self.fine.geometry.shape)
        return self.fine.geometry if self.fine is not None and on_fine else self.geometry


@dataclass(frozen=True)
class Selection:
    """The n nearest atlases, nearest first, of one target image (n,) or of each of T images (T, n).

    Args:
        indices: int64 rows of the atlas library.
        distances: float32, ascending.
    """

    indices: torch.Tensor
    distances: torch.Tensor


@dataclass(frozen=True)
class Segmentation:
    """A result on the case's own grid.

    Args:
        case: the case's id.
        label: (x, y, z) uint8 class indices.
        probability: (C, x, y, z) float32 fused probability map or None.
        geometry: the case's native grid.

    Examples:
        >>> import numpy as np
        >>> import torch
        >>> from oasis_monai import Geometry, Segmentation
        >>> grid = Geometry((64, 64, 20), np.diag([2.0, 2.0, 4.0, 1.0]))
        >>> label = torch.zeros(64, 64, 20, dtype=torch.uint8)
        >>> label[20:40, 20:40, 5:15] = 1
        >>> found = Segmentation("patient", label, None, grid)
        >>> float(found.label.sum()) * found.geometry.voxel_ml
        64.0
    """

    case: str
    label: torch.Tensor
    probability: torch.Tensor | None
    geometry: Geometry


Region = Literal["whole", "apex", "mid", "base"]
REGIONS: tuple[Region, ...] = get_args(Region)
