"""A trained model in memory: load it, segment with it."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, SupportsIndex

import numpy as np
import torch

from oasis_monai.atlases.features import Embedder, embedder
from oasis_monai.data.formats.header import (
    Faults,
    check_direction,
    check_shape,
    check_spacing,
    flip_lps_ras,
    split_affine,
)
from oasis_monai.data.formats.structure import Look
from oasis_monai.data.types import Geometry, Volume
from oasis_monai.evaluation.postprocessing import Decisions, check_mode, choice_for
from oasis_monai.evaluation.quality import Calibration
from oasis_monai.evaluation.scores import method_name
from oasis_monai.segmentation import flags
from oasis_monai.segmentation.anatomy import AnatomyStatistics
from oasis_monai.segmentation.build import build_segmenter
from oasis_monai.segmentation.pipeline import CaseResult, Scan, check_choice, number_of_atlases, segment_case
from oasis_monai.segmentation.postprocessing import AUTO
from oasis_monai.segmentation.segmenter import Segmenter
from oasis_monai.settings import Settings
from oasis_monai.utils.device import resolve_device, torch_setup
from oasis_monai.utils.errors import ConfigError, DataError, Fault, OasisError
from oasis_monai.workflows.fold_models import segmenter_options
from oasis_monai.workflows.model_folder import LIBRARY_PART, LOA_FILE, ModelRecord, retry_once
from oasis_monai.workflows.scan_result import ScanResult, describe_result


@dataclass(frozen=True, repr=False)
class Model:
    """A trained model: its atlases, its networks, and what they were trained with. :func:`load_model` reads one.

    Attributes:
        record: what its ``model.json`` holds.
        settings: those of its training.
        segmenter: the networks with the atlas library.
        device: where it runs.

    Examples:
        >>> import oasis_monai
        >>> model = oasis_monai.load_model("models/prostate", device="cpu")
        >>> model
        Model(models/prostate, 7 atlases, {'prostate': 1}, cpu)
        >>> model.settings.preprocessing.spacing_mm
        (2.5, 2.5, 8.0)
        >>> len(model.segmenter.library)
        7
    """

    record: ModelRecord
    settings: Settings
    segmenter: Segmenter
    device: str

    def __repr__(self) -> str:
        return f"Model({self.folder}, {len(self.segmenter.library)} atlases, {self.labels}, {self.device})"

    @property
    def folder(self) -> Path:
        """Where it was read from."""
        return self.record.folder

    @property
    def labels(self) -> dict[str, int]:
        """Structure -> value in label files; where structures share voxels, every combination of them that was trained."""
        return dict(self.settings.data.labels)

    @property
    def structures(self) -> list[str]:
        """The structures that are segmented: those of :attr:`labels`, but where structures share voxels."""
        return list(self.settings.data.scored)

    @cached_property
    def embed(self) -> Embedder:
        """What describes the atlases, for the scans they are compared with.

        Raises:
            OasisError: the weights of this machine are other ones, with which distances would mean nothing.
        """
        features = self.settings.features
        made = embedder(features.name, features.weights, self.device)
        kept = self.record.values["embedding"]
        if kept != made.key:
            raise OasisError(
                f"model: expected the embedding network {kept}, found {made.key}; "
                "give features.weights as in training or train again"
            )
        return made

    @cached_property
    def calibrations(self) -> dict[str, dict[str, Calibration]]:
        """What predicts the Dice, by "method-n" and structure."""
        return self.record.calibrations()

    @cached_property
    def anatomy(self) -> AnatomyStatistics | None:
        """What the labels of its atlases show of every structure; None of an earlier model, which did not keep it."""
        return self.record.anatomy()

    @cached_property
    def decisions(self) -> Decisions:
        """Which post-processing helps, by "method-n", structure and operation; empty where nothing was tried."""
        return self.record.postprocessing()

    @cached_property
    def looks(self) -> dict[str, Look]:
        """Colours and codes of its structures, for the formats that name them."""
        return self.record.looks()

    @cached_property
    def typical_distance(self) -> float | None:
        """How far apart scans of the library's kind lie, see :func:`oasis_monai.segmentation.flags.typical_distance`."""
        return flags.typical_distance(self.segmenter.library, self.settings.features.distance)

    def segment(
        self,
        scan: Any,
        affine: Any = None,
        n: int | None = None,
        method: str | None = None,
        save_probability: bool = True,
        case: str = "",
        postprocessing: str = AUTO,
        save_uncertainty: bool = False,
    ) -> ScanResult:
        """Segment one scan.

        Args:
            scan: a path (what ``oasis-monai segment input=`` takes, with one scan in it), a MONAI ``MetaTensor`` in any axis
                order, an array or tensor of shape (x, y, z) or (c, x, y, z) with ``affine``, or an
                :class:`oasis_monai.Volume`. Of a model for several channels (``model.record.channels``) an array has them first,
                or there is a list of a path for each.
            affine: (4, 4), voxel index -> RAS+ millimetres, as nibabel and MONAI have it. Of an array only, and required there;
                a ``MetaTensor`` has its own.
            n: atlases to fuse; None: 6, or all where there are fewer.
            method: a name of :data:`oasis_monai.METHODS`; None: ``OASIS-joint`` for a joint model, ``OASIS`` for another.
            save_probability: keep the probability on the scan's own grid (4 bytes a voxel and class).
            case: what the result is called; by default the file's name.
            postprocessing: ``auto``, ``none`` or ``all``, see :func:`oasis_monai.evaluation.postprocessing.choice_for`.
            save_uncertainty: keep the uncertainty on the scan's own grid (4 bytes a voxel).

        Returns:
            Label, predicted Dice, flags and atlases.

        Raises:
            DataError: the scan cannot be used.
            ConfigError: a method, n or post-processing that the model cannot serve.
            OSError: a file cannot be read.

        Examples:
            >>> import nibabel
            >>> import oasis_monai
            >>> model = oasis_monai.load_model("models/prostate")
            >>> model.segment("scan.nii.gz").predicted_dice
            {'prostate': ...}
            >>> image = nibabel.load("scan.nii.gz")
            >>> result = model.segment(image.get_fdata(), affine=image.affine, n=4)
            >>> result.label.shape == image.shape, len(result.atlases)
            (True, 4)
        """
        n = number_of_atlases(self.segmenter, None if n is None else whole_number("n", n))
        method = check_choice(self.segmenter, method, n)
        check_mode(postprocessing, self.anatomy)
        with torch_setup():
            volume = read_scan(scan, affine, case, self.record.channels)
            return self.segment_volume(volume, method, n, save_probability, postprocessing, save_uncertainty)

    def segment_volume(
        self,
        volume: Volume,
        method: str,
        n: int,
        save_probability: bool = False,
        postprocessing: str = AUTO,
        save_uncertainty: bool = False,
    ) -> ScanResult:
        """:meth:`segment` of a scan in memory, by a method that the model is known to have."""
        return self.describe(self.find(volume, method, n), save_probability, postprocessing, save_uncertainty)

    def find(self, volume: Volume, method: str, n: int, exclude_patient: str | None = None) -> CaseResult:
        """What the method makes of a scan in memory, on the working grid; with no atlas of ``exclude_patient``.

        Raises:
            DataError: there is nothing to see in the field of view.
        """
        self.record.check_channels(volume.case, len(volume.image))
        scan = Scan.of_volume(volume, self.settings.preprocessing)
        if float(scan.target.image.min()) == float(scan.target.image.max()):
            # nothing to see: the networks would put something there all the same
            grid = self.settings.preprocessing
            remedy = f"the model sees {grid.size} voxels of {grid.spacing_mm} mm round the centre: give a scan with content there"
            remedy = "export the scan again" if volume.image.min() == volume.image.max() else remedy
            raise DataError(
                Fault(volume.case, "image", "different intensities in the field of view", "one value everywhere", remedy)
            )
        return segment_case(self.segmenter, scan, self.embed, (method,), (n,), exclude_patient=exclude_patient)

    def describe(
        self, found: CaseResult, save_probability: bool = False, postprocessing: str = AUTO, save_uncertainty: bool = False
    ) -> ScanResult:
        """What :meth:`find` gave, on the scan's own grid, with all there is to say about it."""
        (key,) = found.results
        known, choice = self.calibrations, choice_for(postprocessing, self.anatomy, self.decisions.get(method_name(*key), {}))
        about = (self.segmenter.library, self.labels, known, self.typical_distance, save_probability)
        shared = (self.settings.data.shared, self.settings.data.overlap)
        described = describe_result(found, key, *about, self.anatomy, choice, save_uncertainty, *shared)
        return replace(described, model=self.record.version[:16], looks=self.looks)


def load_model(
    folder: str | Path, device: str = "auto", batch: int = 8, views: str | None = None, views_below: float | None = None
) -> Model:
    """Read a trained model.

    Args:
        folder: written by ``oasis-monai train`` or :func:`oasis_monai.train`.
        device: ``cpu``, ``cuda``, ``cuda:1``, or ``auto``: a GPU where there is one.
        batch: atlases aligned at once; lower it when memory is short.
        views: for which scans other views are looked for, ``none``, ``doubtful`` or ``all``; None: as it was trained.
        views_below: the agreement below which a scan is doubtful; None: as it was trained.

    Raises:
        OasisError: it is no model folder, of another format, or a file of it has changed.
        ConfigError: no such device.

    Examples:
        >>> import oasis_monai
        >>> model = oasis_monai.load_model("models/prostate", device="cpu")
        >>> model.labels
        {'prostate': 1}
    """
    if whole_number("batch", batch) < 1:
        raise ConfigError("batch", "1 or more atlases", batch)
    asked = {"views": views, "views_below": views_below}
    return retry_once(lambda: _load(Path(folder), device, batch, {k: v for k, v in asked.items() if v is not None}))


def whole_number(key: str, value: Any) -> int:
    """``value`` as an int, also one of numpy's."""
    if isinstance(value, bool | np.bool_) or not isinstance(value, SupportsIndex):
        raise ConfigError(key, "a whole number", value)
    return operator.index(value)


def _load(folder: Path, device: str, batch: int, asked: Mapping[str, Any]) -> Model:
    record = ModelRecord.read(folder)
    settings, where = (
        replace(record.settings(), **asked),
        resolve_device(str(device)),
    )  # before the library is read: it may be large
    library = record.library()
    networks = record.networks(settings, library)
    options = replace(segmenter_options(settings), batch=batch, fusions=record.fusions())
    segmenter = build_segmenter(library, networks, options, where, folder / LOA_FILE, record.checksums[LIBRARY_PART])
    return Model(record, settings, segmenter, where)


def read_scan(scan: Any, affine: Any = None, case: str = "", channels: Sequence[str] = ()) -> Volume:
    """A scan in memory, from a file, a ``MetaTensor``, or an array with its affine. What is given is copied, never changed.

    The rules for a shape and an affine are those for the header of a file. ``channels``: of a model, to take of a file or folder
    that names its own.

    Raises:
        DataError: it is none of these, or cannot be used.
    """
    several = isinstance(scan, list | tuple) and len(scan) > 0 and all(isinstance(one, str | Path) for one in scan)
    if several or isinstance(scan, Volume | str | Path):
        if affine is not None:
            raise _fault(case or str(scan)[:80], "affine", "none beside a file, which has its own", "one", "leave it out")
        return (
            scan
            if isinstance(scan, Volume)
            else _read_files([Path(p) for p in scan] if several else [Path(scan)], case, channels)
        )
    from monai.data.meta_tensor import MetaTensor

    name = case or "array"
    if isinstance(scan, MetaTensor) and affine is None and "affine" in scan.meta:
        affine = scan.affine.detach().cpu().numpy()
        affine = flip_lps_ras(affine) if str(scan.meta.get("space")) == "LPS" else affine
    if not isinstance(scan, np.ndarray | torch.Tensor):
        raise _fault(name, "scan", "a path, a MetaTensor or an array", type(scan).__name__, "give one of these")
    image = _voxels(name, scan)
    if affine is None:
        raise _fault(name, "affine", "(4, 4), voxel index -> RAS+ millimetres", "none", "give affine=...")
    x, y, z = image.shape[1:]
    return Volume(name, image, None, Geometry((x, y, z), _affine(name, affine)))


def _voxels(name: str, scan: np.ndarray | torch.Tensor) -> torch.Tensor:
    """(c, x, y, z) float32, a copy."""
    kind = str(scan.dtype)
    if not (torch.is_tensor(scan) or scan.dtype.kind in "buif") or "complex" in kind:
        raise _fault(name, "scan", "real numbers", kind, "convert it")
    array = scan.detach().cpu().float().numpy() if isinstance(scan, torch.Tensor) else scan
    with np.errstate(over="ignore"):  # beyond float32 becomes infinite, which is refused below
        array = np.array(array, dtype=np.float32, order="C")
    array = array[None] if array.ndim == 3 else array
    if array.ndim != 4 or 0 in array.shape:
        raise _fault(name, "scan", "an array (x, y, z) or (channels, x, y, z)", tuple(scan.shape), "give one of these")
    faults = Faults(Path(name))
    check_shape(faults, "shape", array.shape[1:])
    faults.raise_if_any()
    if not np.isfinite(array).all():
        raise _fault(name, "scan", "finite voxels", "NaN or infinite ones", "replace them, for example by the background")
    return torch.from_numpy(array)


def _affine(name: str, affine: Any) -> np.ndarray:
    """(4, 4) float64."""
    affine = affine.detach().cpu().numpy() if isinstance(affine, torch.Tensor) else affine
    try:
        matrix = np.array(affine, dtype=np.float64)
    except (TypeError, ValueError):  # no numbers, or rows of different lengths
        matrix = np.empty(0)
    whole = matrix.shape == (4, 4) and np.isfinite(matrix).all() and np.allclose(matrix[3], (0, 0, 0, 1))
    if not whole or np.linalg.matrix_rank(matrix) < 4:
        found = " ".join(str(affine).split())[:200]
        raise _fault(name, "affine", "an invertible (4, 4) matrix whose last row is 0 0 0 1", found, "correct it")
    direction, spacing_mm, _ = split_affine(matrix)
    faults = Faults(Path(name))
    if check_spacing(faults, "affine", spacing_mm.tolist()):
        check_direction(faults, "affine", direction)
    faults.raise_if_any()
    return matrix


def _read_files(paths: Sequence[Path], case: str, channels: Sequence[str]) -> Volume:
    """The scan of one path, or of several that are a channel each."""
    from oasis_monai.data.io import read_volume
    from oasis_monai.data.scans import one_scan

    first = one_scan(paths, channels)
    return replace(read_volume(first, (0, 1)), case=case or first.id)


def _fault(case: str, field: str, expected: str, found: Any, remedy: str) -> DataError:
    return DataError(Fault(case, field, expected, str(found), remedy))
