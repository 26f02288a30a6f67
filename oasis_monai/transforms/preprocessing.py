"""Preprocessing: bring a scan from its native grid to the working grid of the networks, and results back.

There are two named settings, and a cache. ``paper``: slices resized in plane to 320 x 320, zero mean and unit variance per volume
(arXiv 1912.02417, section 3.1); it mixes physical scales where fields of view differ. ``physical`` (default): resampled to a
stated spacing in mm, a stated field of view cut out (or padded with 0) around the image centre, intensities normalised inside it
after clipping to percentiles 0.5 and 99.5.

Working axes are the scan's own, permuted and flipped to the closest of right, anterior, superior: a slice stays a slice. Slices
follow each other along the last one: axial ones unless ``slice_axis`` says otherwise.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from oasis_monai.data import io as volumes
from oasis_monai.data.formats import dispatch as headers
from oasis_monai.data.types import Case, Geometry, Preprocessed, Segmentation, Volume
from oasis_monai.transforms import spatial as grids
from oasis_monai.transforms.fine import centred_beneath, refined
from oasis_monai.transforms.intensity import (
    LOCAL_MM,
    Window,
    check_windows,
    clip_windows,
    local_z_score,
    scale_windows,
    windows_of,
    z_score,
)
from oasis_monai.transforms.labels import structures
from oasis_monai.transforms.views import UNCHANGED, View
from oasis_monai.utils.config import absent_as, not_used_by, require, without_absent
from oasis_monai.utils.errors import ConfigError, Fault
from oasis_monai.utils.files import digest, file_digest
from oasis_monai.utils.tensor_files import load_if_whole, map_tensors, save_tensors

PREPROCESS_VERSION = 1
"""Raise it with every change that alters a preprocessed voxel, so that cached tensors of other versions are not used."""
PERCENTILES = (0.5, 99.5)
"""Clipping of the physical setting's robust z-score."""
INTENSITIES = ("zscore", "local", "window")
MOST_VOXELS = 2**28
"""Largest working grid: a gigabyte per image. A larger one is a typing error, and would exhaust the memory."""
_SIZES = {("paper", 2): (320, 320), ("physical", 2): (96, 96), ("physical", 3): (96, 96, 32)}
_SPACINGS_MM = {("physical", 2): (1.0, 1.0), ("physical", 3): (1.0, 1.0, 3.0)}
_INTENSITY = {"paper": "zscore", "physical": "local"}


@dataclass(frozen=True)
class Preprocessing:
    """The working grid and the intensities a network sees. The fields are the keys of ``conf/preprocessing``; what is left out
    takes the default of the named setting.

    Args:
        name: ``physical`` (a field of view in mm) or ``paper`` (slices resized in plane).
        spatial_dims: 2: in plane only, every slice is kept as it is; 3: a volume of fixed size (not with ``paper``, whose
            volumes keep their own number of slices). Not a key of ``conf/preprocessing``: it stands at the top level.
        size: voxels along x, y (, z), each 1 or more. Default 320 x 320 (paper), 96 x 96 or 96 x 96 x 32 (physical).
        spacing_mm: voxel size in mm along x, y (, z), above 0; only for ``physical``. Default 1 x 1 or 1 x 1 x 3 mm.
        intensity: ``zscore`` (mean 0, standard deviation 1 over the volume; default of ``paper``) or ``local`` (corrects the bias
            field of MR by local normalisation, :func:`oasis_monai.transforms.intensity.local_z_score`; default of ``physical``),
            or ``window`` (CT: the ends of ``window`` become -2 and 2, the same in every scan). Each channel by itself.
        local_mm: standard deviation in mm of the Gaussian neighbourhood of ``local``, above 0.
        window: (low, high), the intensities that count, for CT in HU; what lies beyond is clipped before any other step. For
            several channels a list of them, None for a channel without a window (MR beside CT), which ``intensity=window``
            treats as ``zscore``. None: no window.
        slice_axis: how the slices lie that the slice networks see: ``axial`` (x, y, z run to the right, anterior, superior),
            ``coronal`` (right, superior, anterior) or ``sagittal`` (anterior, superior, right).
        fine_factor: voxels of the fine grid for each working voxel along x, y, z, 1 or more: the slice network and the
            comparison networks work and labels are fused there, see docs/explanation/resolution.md. None: everything is on the
            working grid. Volumes only.
        box_factor: the same of boxes round the structures, in which a joint model looks again (:mod:`.boxes`). None: it does not.

    Raises:
        ConfigError: naming ``preprocessing.<key>``.
    """

    name: str = "physical"
    spatial_dims: int = 3
    size: tuple[int, ...] = ()
    spacing_mm: tuple[float, ...] | None = None
    intensity: str = ""
    local_mm: float = LOCAL_MM
    window: Any = field(default=None, metadata=absent_as(None))
    slice_axis: str = field(default="axial", metadata=absent_as("axial"))
    fine_factor: tuple[int, ...] | None = field(default=None, metadata=absent_as(None))
    box_factor: tuple[int, ...] | None = field(
        default=None, metadata=absent_as(None) | not_used_by("slices", "volume", "segmentation")
    )

    def __post_init__(self) -> None:
        kind, dims = (self.name, self.spatial_dims), self.spatial_dims
        volumes_remedy = "set preprocessing.name=physical, or spatial_dims=2"
        resizes = self.name == "paper" and self.spacing_mm is not None
        require(
            self,
            "preprocessing",
            ("name", self.name in _INTENSITY, "'paper' or 'physical'"),
            ("spatial_dims", not isinstance(dims, bool) and dims in (2, 3), "2 or 3"),
            ("name", kind in _SIZES, "'physical' where spatial_dims is 3", volumes_remedy),
            ("spacing_mm", not resizes, "nothing: 'paper' only resizes", "leave it out (null)"),
        )
        object.__setattr__(self, "intensity", self.intensity or _INTENSITY[self.name])
        require(
            self,
            "preprocessing",
            ("intensity", self.intensity in INTENSITIES, f"one of {list(INTENSITIES)}"),
            ("slice_axis", self.slice_axis in grids.SLICE_AXES, f"one of {list(grids.SLICE_AXES)}"),
            ("local_mm", 0 < self.local_mm < float("inf"), "a number of mm above 0"),
        )
        self._check_window()
        size = self._checked("size", self.size or _SIZES[kind], (int,), "whole number")
        object.__setattr__(self, "size", tuple(int(n) for n in size))
        if math.prod(self.size) > MOST_VOXELS:
            raise ConfigError("preprocessing.size", f"at most {MOST_VOXELS:,} voxels", self.size, "take a coarser grid")
        if self.name == "physical":
            spacing = self._checked("spacing_mm", self.spacing_mm or _SPACINGS_MM[kind], (int, float), "number of mm")
            object.__setattr__(self, "spacing_mm", tuple(float(mm) for mm in spacing))
        self._check_factor("fine_factor")
        self._check_factor("box_factor")

    def _check_factor(self, key: str) -> None:
        """Of a finer grid; also where it is laid in boxes alone, so that its whole can be made."""
        given = getattr(self, key)
        if given is None:
            return
        if self.spatial_dims != 3:
            raise ConfigError(f"preprocessing.{key}", "null where spatial_dims is 2", list(given), "leave it out")
        factor = tuple(int(n) for n in self._checked(key, given, (int,), "whole number"))
        object.__setattr__(self, key, factor)
        if (voxels := math.prod(self.size) * math.prod(factor)) > MOST_VOXELS:
            remedy = "take smaller factors"
            raise ConfigError(f"preprocessing.{key}", f"at most {MOST_VOXELS:,} voxels", f"{voxels:,}", remedy)

    @property
    def fine_size(self) -> tuple[int, ...]:
        """Voxels of the fine grid along x, y (, z); those of the working grid where there is none."""
        return tuple(n * f for n, f in zip(self.size, self.fine_factor or (1,) * len(self.size), strict=True))

    def _check_window(self) -> None:
        if self.window is not None:
            try:
                object.__setattr__(self, "window", check_windows(self.window))
            except ValueError as error:
                raise ConfigError("preprocessing.window", str(error), self.window) from None
        elif self.intensity == "window":
            remedy = "add the window of the structures, for example preprocessing.window=[-160,240] for soft tissue in HU"
            raise ConfigError("preprocessing.window", "[low, high] where intensity is window", None, remedy)

    def _checked(self, key: str, values: Any, kinds: tuple[type[int] | type[float], ...], noun: str) -> Sequence[Any]:
        listed = isinstance(values, Sequence) and not isinstance(values, str) and len(values) == self.spatial_dims
        good = listed and all(isinstance(v, kinds) and not isinstance(v, bool) and 0 < v < float("inf") for v in values)
        if not good:
            remedy = f"change it, or choose a group for spatial_dims={self.spatial_dims}: preprocessing=local{self.spatial_dims}d"
            raise ConfigError(f"preprocessing.{key}", f"{self.spatial_dims} values, each a {noun} above 0", values, remedy)
        return list(values)

    def check_divisor(self, divisor: Sequence[int]) -> None:
        """Refuse sizes a network cannot take.

        Args:
            divisor: what the network's input size must be a multiple of, along x, y (, z).

        Raises:
            ConfigError: naming the nearest sizes that work.
            ValueError: ``divisor`` has not ``spatial_dims`` entries.
        """
        pairs = list(zip(self.size, divisor, strict=True))
        if any(n % d for n, d in pairs):
            below = tuple(max(d, n // d * d) for n, d in pairs)
            above = tuple(-(-n // d) * d for n, d in pairs)
            nearest = " or ".join(str(s) for s in dict.fromkeys((below, above)))
            wanted = f"multiples of {tuple(divisor)} (the network halves its input that often)"
            raise ConfigError("preprocessing.size", wanted, self.size, f"the nearest that work are {nearest}")

    def working_geometry(self, native: Geometry, moved: Sequence[int] = (0, 0, 0), view: View = UNCHANGED) -> Geometry:
        """The grid :meth:`apply` puts a scan on.

        ``paper``: exactly the scan's field of view (half-pixel convention). ``physical``: the same centre as the scan; only
        where a spacing is kept and the number of voxels turns from odd to even or back, half a voxel beside it, so that
        voxels are cut or padded and not interpolated.

        Args:
            moved: put the grid so many of its voxels aside along x, y, z, where the structures are (:mod:`.recentre`).
            view: turn and scale the grid about its centre, before it is moved along its new axes.
        """
        free = (None,) * (3 - self.spatial_dims)
        if self.spacing_mm is None:
            found = grids.resized(native, (*self.size, *free), self.slice_axis)
        elif self.fine_factor is None:
            found = grids.centred(native, (*self.spacing_mm, *free), (*self.size, *free), self.slice_axis)
        else:
            found = centred_beneath(native, self.spacing_mm, self.size, self.fine_factor, self.slice_axis)
        found = view.placed(found)
        if not any(moved):
            return found
        affine = found.affine.copy()
        affine[:3, 3] += affine[:3, :3] @ np.asarray(moved)
        return Geometry(found.shape, affine)

    def apply(self, volume: Volume, moved: Sequence[int] = (0, 0, 0), view: View = UNCHANGED) -> Preprocessed:
        """Put a scan on the working grid and normalise it.

        The image is clipped to its window if it has one, and interpolated linearly, smoothed before where the grid gets coarser.
        Every channel is normalised by itself; the label class by class (:func:`oasis_monai.transforms.spatial.resample_label`).
        Voxels beyond the scan are 0 and background. ``moved`` and ``view``: see :meth:`working_geometry`; the neighbourhood of
        the local normalisation has as many voxels in every view.

        Raises:
            ConfigError: ``window`` is for another number of channels.
            ValueError: the image has NaN or infinite voxels.
        """
        working = self.working_geometry(volume.geometry, moved, view)
        usual = self.working_geometry(volume.geometry).spacing_mm if view else working.spacing_mm
        made = self.on_grid(working, volume, view, usual)
        if self.fine_factor is None:
            return made
        usual_fine = [mm / f for mm, f in zip(usual, self.fine_factor, strict=True)]
        fine = self.on_grid(refined(working, self.fine_factor), volume, view, usual_fine)
        return replace(made, fine=replace(fine, image=fine.image.half()))

    def on_grid(self, grid: Geometry, volume: Volume, view: View, spacing_mm: Sequence[float]) -> Preprocessed:
        """A scan on one grid; ``spacing_mm``: that of its voxels, or where a view scales them what it is without it."""
        windows = self._windows(len(volume.image))
        image = view.of_native(clip_windows(volume.image, windows), volume.geometry.spacing_mm)
        image = grids.resample(image, volume.geometry, grid)
        inside = grids.inside(volume.geometry, grid, image.device)
        image = self._normalised(view.of_working(image, inside), windows, inside, spacing_mm)
        label = None if volume.label is None else grids.resample_label(volume.label, volume.geometry, grid)
        return Preprocessed(volume.case, image, label, grid, volume.geometry)

    def _windows(self, channels: int) -> list[Window | None]:
        try:
            return windows_of(self.window, channels)
        except ValueError as error:
            raise ConfigError("preprocessing.window", str(error), self.window) from None

    def _normalised(
        self, image: torch.Tensor, windows: Sequence[Window | None], inside: torch.Tensor, spacing_mm: Sequence[float]
    ) -> torch.Tensor:
        """The intensities (C, \\*S) that the networks see of voxels ``inside`` the scan; 0 elsewhere."""
        lower, upper = self.percentiles
        if self.intensity == "window":
            return scale_windows(image, inside, windows, lower, upper)
        if self.intensity == "local":
            return local_z_score(image, inside, [self.local_mm / mm for mm in spacing_mm], lower, upper)
        return z_score(image, inside, lower, upper)

    @property
    def percentiles(self) -> tuple[float, float]:
        """What a channel is clipped to before its z-score or local normalisation."""
        return PERCENTILES if self.name == "physical" else (0.0, 100.0)

    def elsewhere(self, read: Callable[[], Volume]) -> Callable[[Sequence[int], View], Preprocessed]:
        """:meth:`apply` of one scan on grids moved by so many voxels, in a view; it is read when the first is asked for."""
        volume = functools.cache(read)
        return lambda moved, view: self.apply(volume(), moved, view)


def restore(
    probability: torch.Tensor, working: Geometry, native: Geometry, keep_probability: bool = False, case: str = ""
) -> Segmentation:
    """A probability map (C, \\*working) as a segmentation on the scan's own grid; see :func:`.restore`."""
    return restore_all([probability], working, native, keep_probability, case)[0]


def restore_all(
    probabilities: Sequence[torch.Tensor], working: Geometry, native: Geometry, keep_probability: bool = False, case: str = ""
) -> list[Segmentation]:
    """:func:`restore` of several maps of one scan at once; see :func:`oasis_monai.transforms.spatial.restore_all`."""
    made = grids.restore_all(probabilities, working, native, keep_probability)
    return [Segmentation(case, label, kept, native) for label, kept in made]


def label_lost(volume: Volume, preprocessed: Preprocessed) -> float:
    """Fraction of the native foreground that the working grid does not show: voxels outside its field of view, or all of
    them where the working label is empty. 0 without a label or without foreground."""
    if volume.label is None or preprocessed.label is None or not structures(volume.label).any():
        return 0.0
    return outside_view(volume, preprocessed.geometry) if structures(preprocessed.label).any() else 1.0


def outside_view(volume: Volume, working: Geometry) -> float:
    """Fraction of the native foreground outside the field of view of ``working``; 0 without a label or without foreground."""
    if volume.label is None or not structures(volume.label).any():
        return 0.0
    foreground = structures(volume.label[0])
    seen = grids.inside(working, volume.geometry, foreground.device)
    return float((foreground & ~seen).sum() / foreground.sum())


def view_faults(lost: Mapping[str, float], limit: float = 0.01) -> list[Fault]:
    """A warning for every case of which the working field of view cuts more than the fraction ``limit`` of the label.

    Args:
        lost: case id -> :func:`label_lost` or :func:`outside_view`.
    """
    remedy = "enlarge preprocessing.size or preprocessing.spacing_mm: scores on the scan's own grid count that part as missed"
    return [
        Fault(case, "label", "all of it in the working field of view", f"{part:.1%} of it outside", remedy, "warning")
        for case, part in sorted(lost.items())
        if part > limit
    ]


class PreprocessCache:
    """Preprocessed scans, kept on disk as plain tensors keyed by what they were made of: the bytes of the files, the
    preprocessing, :data:`PREPROCESS_VERSION`, and for a label ``label_values`` and ``ignore``. Image and label are separate
    entries, so a target without its label shares the image. A damaged entry is made anew.

    Args:
        folder: where entries go; None keeps nothing.
        preprocessing: the setting.
        label_values: value in the file of each class, background first.
        ignore: value in the file of voxels that nobody labelled; None: there are none.

    Attributes:
        lost: case id -> :func:`label_lost` of every case :meth:`get` gave with a label.
    """

    def __init__(
        self, folder: str | Path | None, preprocessing: Preprocessing, label_values: Sequence[int], ignore: int | None = None
    ) -> None:
        self.folder = None if folder is None else Path(folder)
        self.ignore = ignore
        self.preprocessing = preprocessing
        self.label_values = tuple(int(v) for v in label_values)
        self.lost: dict[str, float] = {}
        self._digests: dict[tuple[Path, ...], tuple[dict[Path, tuple[int, ...]], str]] = {}

    def get(self, case: Case) -> Preprocessed:
        """The preprocessed case, with its label where ``case.label`` is given.

        Raises:
            DataError: the files cannot be used.
        """
        if self.folder is None:
            return self._made(case)[0]
        setting, key = self.keys(case)
        image_file = self.folder / f"{digest(setting, 40)}.image"
        label_file = None if key is None else self.folder / f"{digest(key, 40)}.label"
        image = load_if_whole(image_file)
        label = None if label_file is None else load_if_whole(label_file)
        if image is None or (label_file is not None and label is None):
            made, lost = self._made(case)
            save_tensors(image_file, *_packed(made))
            if label_file is not None and made.label is not None:
                save_tensors(label_file, {"label": made.label}, {"lost": lost})
            return made if made.fine is None else replace(made, fine=self._kept_fine(case, image_file, label_file, made.fine))
        if label is not None:
            self.lost[case.id] = float(label[1]["lost"])
        found = _unpacked(case.id, image[0], None if label is None else label[0]["label"])
        if self.preprocessing.fine_factor is None:
            return found
        return replace(found, fine=self._kept_fine(case, image_file, label_file))

    def keys(self, case: Case) -> tuple[dict[str, Any], dict[str, Any] | None]:
        """What the preprocessed image of a case is made of, and its label; None without one."""
        own = without_absent(replace(self.preprocessing, box_factor=None))
        setting = {"version": PREPROCESS_VERSION, **own, "image": self.image_content(case)}
        if case.label is None:
            return setting, None
        key = {**setting, "label": self.content(case.label), "label_values": self.label_values}
        key |= {"background": case.background} if case.background else {}
        key |= {} if self.ignore is None else {"ignore": self.ignore}
        key |= {"names": case.names} if case.names else {}
        key |= {"masks": [self.content(path) for _, path in case.masks]} if case.masks else {}
        key |= {"structures": case.structures} if case.structures else {}
        return setting, key

    def _kept_fine(self, case: Case, image_file: Path, label_file: Path | None, made: Preprocessed | None = None) -> Preprocessed:
        """The scan on the fine grid, its voxels left on disk; ``made``: what is to be kept, where it is not there yet."""
        files = [f"{file}_fine" for file in (image_file, label_file) if file is not None]
        held = None
        if made is None:
            with contextlib.suppress(OSError, ValueError):
                held = [map_tensors(file)[0] for file in files]
        if held is None:
            fine = made or self._made(case)[0].fine
            assert fine is not None
            save_tensors(files[0], _packed(fine)[0])
            if label_file is not None and fine.label is not None:
                save_tensors(files[1], {"label": fine.label})
            held = [map_tensors(file, check=False)[0] for file in files]
        return _unpacked(case.id, held[0], held[1]["label"] if len(held) > 1 else None)

    def faults(self) -> list[Fault]:
        """:func:`view_faults` of the cases so far."""
        return view_faults(self.lost)

    def image_content(self, case: Case) -> str:
        """:meth:`content` of a scan's image; of one with several files, or of which some channels are taken, a digest of all that
        says what its channels are."""
        own = [self.content(*source) for source in case.sources]
        return own[0] if len(own) == 1 and not case.take else digest({"images": own, "take": list(case.take)}, 64)

    def content(self, *source: Path) -> str:
        """sha256 of an image's files (header and data); read again only when size or time of one of them changed."""
        known = self._digests.get(source)
        if known is None or known[0] != {file: _stamp(file) for file in known[0]}:
            files = headers.data_files(source if len(source) > 1 else source[0])
            known = ({file: _stamp(file) for file in (*source, *files)}, file_digest(*files))
            self._digests[source] = known
        return known[1]

    def _made(self, case: Case) -> tuple[Preprocessed, float]:
        volume = volumes.read_volume(case, self.label_values, self.ignore)
        made = self.preprocessing.apply(volume)
        lost = label_lost(volume, made)
        if made.label is not None:
            self.lost[case.id] = lost
        return made, lost


def _stamp(path: Path) -> tuple[int, ...]:
    try:
        found = os.stat(path)
    except OSError:
        return ()
    return found.st_size, found.st_mtime_ns, found.st_ino


def _packed(made: Preprocessed) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    tensors = {"image": made.image}
    for name, grid in (("working", made.geometry), ("native", made.native)):
        tensors[f"{name}_affine"] = torch.as_tensor(grid.affine, dtype=torch.float64)
        tensors[f"{name}_shape"] = torch.tensor(grid.shape)
    return tensors, {}


def _unpacked(case: str, tensors: dict[str, torch.Tensor], label: torch.Tensor | None) -> Preprocessed:
    def grid(name: str) -> Geometry:
        x, y, z = tensors[f"{name}_shape"].tolist()
        return Geometry((x, y, z), tensors[f"{name}_affine"].numpy())

    return Preprocessed(case, tensors["image"], label, grid("working"), grid("native"))
