"""Array transforms: each calls a pure function of :mod:`.spatial` or :mod:`oasis_monai.data.io`, those of intensities in
:mod:`.array_intensity` one of :mod:`.intensity`.

Images are channel first with three spatial dimensions, (C, x, y, z). Inputs are never changed. None of them is random, lazy
or invertible in MONAI's sense: :class:`RestoreToGrid` brings a result back and needs only the affine, no trace.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data.meta_tensor import MetaTensor
from monai.transforms.post.array import AsDiscrete
from monai.transforms.transform import Transform
from monai.transforms.utility.array import MapLabelValue
from monai.utils.enums import TransformBackends

from oasis_monai.data.types import IGNORE, Geometry
from oasis_monai.transforms import spatial as grids
from oasis_monai.transforms.fine import centred_beneath
from oasis_monai.transforms.metadata import NO_CHANNEL, grid_of, on_grid, own_copy, to_tensor
from oasis_monai.utils.errors import DataError


class LoadVolume(Transform):
    """Read an MHD, MHA or NIfTI scan or a DICOM series after a check of its header (MONAI's ``LoadImage`` leaves that to ITK,
    which takes headers that lead to wrong geometry, uninitialised memory or other files in silence).

    Call: path (of a DICOM series any file, or one from each of its folders; or a list of such lists, one per channel) ->
    ``MetaTensor`` (C, x, y, z) float32 as stored,
    its affine in RAS+ mm, and in ``meta`` MONAI's own keys ``filename_or_obj``, ``original_affine``, ``spatial_shape`` and
    ``original_channel_dim``.

    Raises:
        oasis_monai.DataError: one line per fault of the file.

    Examples:
        >>> from oasis_monai.transforms import LoadVolume
        >>> image = LoadVolume()("data/prostate/Case00.mhd")
        >>> image.shape[0], image.affine.shape
        (1, torch.Size([4, 4]))
    """

    backend = [TransformBackends.TORCH]  # noqa: RUF012 - MONAI's convention

    def __call__(self, filename: str | Path | Sequence[str | Path] | Sequence[Sequence[str | Path]]) -> MetaTensor:
        from oasis_monai.data.formats.dispatch import paths_of
        from oasis_monai.data.io import read_image

        source: Any = filename
        if not isinstance(source, str | Path) and not isinstance(source[0], str | Path):
            values, grid = _channels(source)
            source = source[0]
        else:
            values, grid = read_image(source)
        affine = torch.as_tensor(np.array(grid.affine), dtype=torch.float64)
        meta = {
            "filename_or_obj": str(paths_of(source)[0]),
            "original_affine": affine.clone(),
            "spatial_shape": np.array(grid.shape),
            "original_channel_dim": NO_CHANNEL,
        }
        return MetaTensor(values, affine=affine, meta=meta)


class PhysicalFieldOfView(Transform):
    """Resample to a spacing in mm and cut or pad a field of view round the image centre, in one interpolation, on the scan's
    own axes in RAS order (of coronal and sagittal slices: in that of ``slice_axis``). (``Orientation``, ``Spacing`` and
    ``ResizeWithPadOrCrop`` in a row do not smooth before they down-sample and move the centre by up to a voxel.)

    Args:
        spacing_mm: along x, y, z; None, or leaving z out, keeps the scan's own.
        size: voxels along x, y, z; None, or leaving z out, keeps the scan's own.
        label: the input holds class indices (1, x, y, z): interpolate class by class, give uint8, pad with background.
        padding: value beyond an image's edge. NaN lets :class:`RobustZScore` with ``padding=nan`` tell it from dark voxels.
        anti_alias: smooth images before down-sampling.
        slice_axis: ``axial`` (x, y, z run to the right, anterior, superior), ``coronal`` (right, superior, anterior) or
            ``sagittal`` (anterior, superior, right).
        fine_factor: cut every voxel into so many along x, y, z, and this fine grid lies round the image centre; it is that of
            ``spacing_mm / fine_factor`` and ``size * fine_factor``. All three values of spacing and size must be given.

    Call: ``MetaTensor`` (C, x, y, z) -> ``MetaTensor`` (C, \\*size) on its new affine, ``meta`` kept.

    Raises:
        ValueError: spacing or size not positive; the input is no ``MetaTensor`` with three spatial dimensions.

    Examples:
        >>> import torch
        >>> from monai.data import MetaTensor
        >>> from oasis_monai.transforms import PhysicalFieldOfView
        >>> image = MetaTensor(torch.rand(1, 40, 40, 10), affine=torch.diag(torch.tensor([2.0, 2.0, 4.0, 1.0])))
        >>> PhysicalFieldOfView(spacing_mm=(1.0, 1.0, 4.0), size=(64, 64, 16))(image).shape
        torch.Size([1, 64, 64, 16])
    """

    backend = [TransformBackends.TORCH]  # noqa: RUF012

    def __init__(
        self,
        spacing_mm: Sequence[float | None],
        size: Sequence[int | None],
        label: bool = False,
        padding: float = 0.0,
        anti_alias: bool = True,
        slice_axis: str = "axial",
        fine_factor: Sequence[int] | None = None,
    ) -> None:
        if slice_axis not in grids.SLICE_AXES:
            raise ValueError(f"slice_axis: expected one of {list(grids.SLICE_AXES)}, found {slice_axis!r}")
        self.slice_axis = slice_axis
        self.spacing_mm = _three("spacing_mm", spacing_mm)
        self.size = [None if n is None else int(n) for n in _three("size", size)]
        self.label, self.padding, self.anti_alias = label, padding, anti_alias
        self.fine_factor = None if fine_factor is None else [int(f) for f in fine_factor]
        if self.fine_factor is not None and (len(self.fine_factor) != 3 or None in (*self.spacing_mm, *self.size)):
            raise ValueError(f"fine_factor: expected 3 values, and 3 of spacing_mm and size, found {list(self.fine_factor)}")

    def __call__(self, img: torch.Tensor) -> MetaTensor:
        if self.fine_factor is None:
            return self._moved(img, grids.centred(grid_of(img), self.spacing_mm, self.size, self.slice_axis))
        spacing_mm, size = [mm for mm in self.spacing_mm if mm is not None], [n for n in self.size if n is not None]
        return self._moved(img, centred_beneath(grid_of(img), spacing_mm, size, self.fine_factor, self.slice_axis))

    def _moved(self, img: torch.Tensor, target: Geometry) -> MetaTensor:
        source = grid_of(img)
        if self.label:
            return on_grid(grids.resample_label(img, source, target), target, img)
        moved = grids.resample(img, source, target, self.anti_alias)
        moved = torch.where(grids.inside(source, target, moved.device), moved, self.padding)
        return on_grid(moved, target, img)


class InPlaneResize(PhysicalFieldOfView):
    """Resize the slices of a scan (the paper: to 320 x 320), every slice kept, on the scan's own axes in RAS order.
    (``Resize(anti_aliasing=True)`` darkens the edges and makes labels that are not in the input.)

    Args:
        size: voxels along x, y.
        label, anti_alias, slice_axis: as for :class:`PhysicalFieldOfView`.

    Call: ``MetaTensor`` (C, x, y, z) -> ``MetaTensor`` (C, \\*size, slices) over exactly the same field of view.

    Raises:
        ValueError: size is not two numbers above 0; the input is no ``MetaTensor`` with three spatial dimensions.

    Examples:
        >>> import torch
        >>> from monai.data import MetaTensor
        >>> from oasis_monai.transforms import InPlaneResize
        >>> image = MetaTensor(torch.rand(1, 40, 40, 10), affine=torch.diag(torch.tensor([2.0, 2.0, 4.0, 1.0])))
        >>> InPlaneResize(size=(80, 80))(image).pixdim
        tensor([1., 1., 4.], dtype=torch.float64)
    """

    def __init__(
        self, size: Sequence[int] = (320, 320), label: bool = False, anti_alias: bool = True, slice_axis: str = "axial"
    ) -> None:
        if len(size) != 2:
            raise ValueError(f"size: expected 2 numbers of voxels, found {list(size)}")
        super().__init__((None, None), size, label=label, anti_alias=anti_alias, slice_axis=slice_axis)

    def __call__(self, img: torch.Tensor) -> MetaTensor:
        return self._moved(img, grids.resized(grid_of(img), self.size, self.slice_axis))


class RestoreToGrid(Transform):
    """A probability map back on the grid of the scan it belongs to, then thresholded (in this order the volume stays right).

    The grid is, in MONAI's keys, ``original_affine`` and ``spatial_shape`` of the reference's ``meta``: the grid of the file,
    whatever happened to the image since. With ``original=False``, or where the keys are absent, it is the reference's own.

    Args:
        threshold: give class indices; False: the probabilities.
        original: see above.

    Call: probability ``MetaTensor`` (C, \\*S), background first, and a reference ``MetaTensor`` (default: the map itself, which
    carries the ``meta`` of the image a network saw) -> ``MetaTensor`` (1, x, y, z) uint8, or (C, x, y, z) float32.

    Raises:
        ValueError: fewer than two classes; an input that is no ``MetaTensor`` with three spatial dimensions.

    Examples:
        >>> import torch
        >>> from oasis_monai.transforms import LoadVolume, PhysicalFieldOfView, RestoreToGrid
        >>> image = LoadVolume()("scan.nii.gz")
        >>> seen = PhysicalFieldOfView(spacing_mm=(2.0, 2.0, 4.0), size=(48, 48, 16))(image)
        >>> probability = torch.cat([1 - torch.sigmoid(seen), torch.sigmoid(seen)])  # in the place of a network
        >>> RestoreToGrid()(probability).shape == image.shape
        True
    """

    backend = [TransformBackends.TORCH]  # noqa: RUF012

    def __init__(self, threshold: bool = True, original: bool = True) -> None:
        self.threshold, self.original = threshold, original

    def __call__(self, probability: torch.Tensor, reference: torch.Tensor | None = None) -> MetaTensor:
        target = self._target(probability if reference is None else reference)
        label, kept = grids.restore(probability, grid_of(probability), target, keep_probability=not self.threshold)
        return on_grid(label[None] if kept is None else kept, target, probability)

    def _target(self, reference: torch.Tensor) -> Geometry:
        own = grid_of(reference)
        meta = getattr(reference, "meta", {})
        if not self.original or "original_affine" not in meta or "spatial_shape" not in meta:
            return own
        x, y, z = (int(n) for n in meta["spatial_shape"])
        return Geometry((x, y, z), torch.as_tensor(meta["original_affine"]).cpu().numpy().astype(float))


class SaveVolume(Transform):
    """Write a label or a map on its grid: a scan of one slice too, and beside a NIfTI scan with that scan's sform, qform, codes
    and unit. (``SaveImage`` drops an axis of one voxel, fails on most such scans, and writes one transform for both.)

    Args:
        output_dir: made where it is absent.
        output_postfix: ``scan.nii.gz`` becomes ``scan_POSTFIX.nii.gz``; ``""`` for none.
        output_ext: ``.nii.gz``, ``.nii``, ``.mha`` or ``.mhd``.

    Call: ``MetaTensor`` (C, x, y, z), and a name (default: that of ``filename_or_obj`` in its ``meta``) -> the same. Whole
    numbers are stored as uint8, int16 or int32, others as float32.

    Raises:
        ConfigError: another ending.
        ValueError: the input is no ``MetaTensor`` with three spatial dimensions, or has no name.

    Examples:
        >>> from oasis_monai.transforms import LoadVolume, SaveVolume
        >>> image = LoadVolume()("scan.nii.gz")
        >>> label = SaveVolume("results")(image > image.mean())  # results/scan_segmentation.nii.gz
    """

    backend = [TransformBackends.NUMPY]  # noqa: RUF012

    def __init__(self, output_dir: str | Path, output_postfix: str = "segmentation", output_ext: str = ".nii.gz") -> None:
        self.output_dir, self.output_postfix, self.output_ext = Path(output_dir), output_postfix, output_ext

    def __call__(self, img: torch.Tensor, name: str | None = None) -> torch.Tensor:
        from oasis_monai.data.formats.dispatch import ending, write_array

        grid = grid_of(img)
        source = Path(str(getattr(img, "meta", {}).get("filename_or_obj", "")))
        stem = name or (source.name.removesuffix(source.name[-len(ending(source)) :]) if ending(source) else source.stem)
        if not stem:
            raise ValueError("name: expected one, or filename_or_obj in the metadata, found none; load the scan with LoadVolume")
        array = grids.as_plain_tensor(img).detach().cpu().numpy()
        array = array[0] if len(array) == 1 else np.moveaxis(array, 0, -1)
        path = self.output_dir / f"{stem}{f'_{self.output_postfix}' if self.output_postfix else ''}{self.output_ext}"
        write_array(path, _storable(array), _as_stored(source, grid))
        return img


class OneHotLabels(Transform):
    """Arbitrary label values to one-hot classes, or class indices. (``MapLabelValue`` lets values it does not know through,
    and ``AsDiscrete(to_onehot=)`` wants indices: here an unknown value is an error that names it.)

    Args:
        label_values: value of each class in the input, background first.
        one_hot: False gives class indices.
        ignore: value of voxels that nobody labelled: in no class, and as an index 255; None: there are none.

    Call: (1, \\*S) -> (C, \\*S) float32, or (1, \\*S) uint8 class indices.

    Raises:
        ValueError: repeated label values; a value of the input that is not among them.

    Examples:
        >>> import torch
        >>> from oasis_monai.transforms import OneHotLabels
        >>> OneHotLabels([0, 4, 7])(torch.tensor([[0, 7, 4, 4]])).tolist()
        [[1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 1.0, 1.0], [0.0, 1.0, 0.0, 0.0]]
    """

    backend = [TransformBackends.TORCH]  # noqa: RUF012

    def __init__(self, label_values: Sequence[int], one_hot: bool = True, ignore: int | None = None) -> None:
        if not 2 <= len(label_values) <= 256 or len(set(label_values)) != len(label_values):
            raise ValueError(f"label_values: expected 2 to 256 distinct values, background first, found {list(label_values)}")
        self.label_values, self.one_hot, self.ignore = tuple(label_values), one_hot, ignore

    def __call__(self, img: np.ndarray | torch.Tensor) -> torch.Tensor:
        tensor = to_tensor(img)
        unknown = sorted(set(torch.unique(grids.as_plain_tensor(tensor)).tolist()) - {*self.label_values, self.ignore})
        if unknown:
            raise ValueError(f"label: expected only {list(self.label_values)}, found {unknown[:5]}; add them to label_values")
        classes = len(self.label_values)
        values, numbers = list(self.label_values), list(range(classes))
        if self.ignore is not None:
            values, numbers = [*values, self.ignore], [*numbers, IGNORE]
        indices: Any = MapLabelValue(values, numbers, dtype=torch.uint8)(tensor)  # type: ignore[arg-type]
        if not self.one_hot:
            return own_copy(indices)
        unlabelled = indices == IGNORE
        whole: Any = AsDiscrete(to_onehot=classes)(torch.where(unlabelled, 0, indices) if self.ignore is not None else indices)
        return own_copy(whole * ~unlabelled if self.ignore is not None else whole)


def _channels(sources: Sequence[Sequence[str | Path]]) -> tuple[torch.Tensor, Geometry]:
    """The images of one scan, one behind the other, after the check that they lie on one grid."""
    from oasis_monai.data.io import read_volume
    from oasis_monai.data.types import Case

    first, *others = ([Path(path) for path in source] for source in sources)
    channels = tuple(tuple(source) for source in others)
    volume = read_volume(Case(first[0].name, first[0], more=tuple(first[1:]), channels=channels), (0, 1))
    return volume.image, volume.geometry


def _storable(array: np.ndarray) -> np.ndarray:
    if array.dtype.kind not in "bui":
        return array.astype(np.float32)
    low, high = (int(array.min()), int(array.max())) if array.size else (0, 0)
    kinds = (np.uint8, np.int16, np.int32)
    return array.astype(next((k for k in kinds if np.iinfo(k).min <= low and high <= np.iinfo(k).max), np.float32))


def _as_stored(source: Path, grid: Geometry) -> Geometry:
    """``grid`` in the words of the scan's file where it is that file's grid."""
    from oasis_monai.data.formats.dispatch import read_header
    from oasis_monai.data.formats.header import geometry_difference

    try:
        stored = read_header(source).geometry
    except DataError:  # it is gone, or was never there
        return grid
    return grid if geometry_difference(grid, stored) else stored


def _three(name: str, values: Sequence[float | int | None]) -> list[float | int | None]:
    if len(values) not in (2, 3) or any(v is not None and not 0 < v < math.inf for v in values):
        raise ValueError(f"{name}: expected 2 or 3 values, each above 0 or None, found {list(values)}")
    return [*values, *[None] * (3 - len(values))]
