"""A trained model in memory: load it, segment with it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from oasis_monai.atlases.features import Embedder, embedder
from oasis_monai.data.types import Geometry, Volume
from oasis_monai.evaluation.quality import Calibration
from oasis_monai.segmentation import flags
from oasis_monai.segmentation.build import build_segmenter
from oasis_monai.segmentation.pipeline import Scan, check_choice, segment_case
from oasis_monai.segmentation.segmenter import Segmenter
from oasis_monai.settings import Settings
from oasis_monai.utils.device import resolve_device, torch_setup
from oasis_monai.utils.errors import DataError, Fault, OasisError
from oasis_monai.workflows.fold_models import segmenter_options
from oasis_monai.workflows.model_folder import LIBRARY_PART, LOA_FILE, ModelRecord, retry_once
from oasis_monai.workflows.scan_result import ScanResult, describe_result


@dataclass(frozen=True)
class Model:
    """A trained model: its atlases, its networks, and what they were trained with. See :func:`load_model`.

    Attributes:
        record: what its ``model.json`` holds.
        settings: those of its training.
        segmenter: the networks with the atlas library.
        device: where it runs.
    """

    record: ModelRecord
    settings: Settings
    segmenter: Segmenter
    device: str

    @property
    def folder(self) -> Path:
        """Where it was read from."""
        return self.record.folder

    @property
    def labels(self) -> dict[str, int]:
        """Structure -> value in label files."""
        return dict(self.settings.data.labels)

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
    def typical_distance(self) -> float | None:
        """How far apart scans of the library's kind lie, see :func:`oasis_monai.segmentation.flags.typical_distance`."""
        return flags.typical_distance(self.segmenter.library, self.settings.features.distance)

    def segment(
        self,
        scan: Any,
        affine: Any = None,
        n: int | None = None,
        method: str | None = None,
        save_probability: bool = False,
        case: str = "",
    ) -> ScanResult:
        """Segment one scan.

        Args:
            scan: a path (MetaImage, NIfTI, a DICOM series' file or folder), a MONAI ``MetaTensor``, or an array or tensor of
                shape (x, y, z) or (1, x, y, z) with ``affine``.
            affine: (4, 4), voxel index -> RAS+ millimetres, as nibabel and MONAI have it. Of an array only; required there.
            n: atlases to fuse; None: 6, or all where there are fewer.
            method: a name of :data:`oasis_monai.METHODS`; None: ``OASIS-joint`` for a joint model, ``OASIS`` for another.
            save_probability: keep the probability on the scan's own grid.
            case: what the result is called; by default the file's name.

        Returns:
            Label, predicted Dice, flags and atlases.

        Raises:
            DataError: the scan cannot be used.
            ConfigError: a method or n that the model cannot serve.
            OSError: a file cannot be read.

        Examples:
            >>> model = oasis_monai.load_model("models/prostate")  # doctest: +SKIP
            >>> model.segment("scan.mhd").predicted_dice  # doctest: +SKIP
            {'prostate': 0.88}
            >>> model.segment(array, affine=affine, n=4).label.shape  # doctest: +SKIP
            torch.Size([160, 160, 24])
        """
        n = min(6, len(self.segmenter.library)) if n is None else n
        method = check_choice(self.segmenter, method, n)
        with torch_setup():
            return self.segment_volume(read_scan(scan, affine, case), method, n, save_probability)

    def segment_volume(self, volume: Volume, method: str, n: int, save_probability: bool = False) -> ScanResult:
        """:meth:`segment` of a scan in memory, by a method that the model is known to have."""
        scan = Scan.of_volume(volume, self.settings.preprocessing)
        if float(scan.target.image.min()) == float(scan.target.image.max()):
            # nothing to see: the networks would put something there all the same
            remedy = "export the scan again"
            raise DataError(
                Fault(volume.case, "image", "different intensities in the field of view", "one value everywhere", remedy)
            )
        found = segment_case(self.segmenter, scan, self.embed, (method,), (n,))
        (key,) = found.results
        known = self.calibrations
        return describe_result(found, key, self.segmenter.library, self.labels, known, self.typical_distance, save_probability)


def load_model(folder: str | Path, device: str = "auto", batch: int = 8) -> Model:
    """Read a trained model.

    Args:
        folder: written by ``oasis-monai train`` or :func:`oasis_monai.train`.
        device: ``cpu``, ``cuda``, ``cuda:1``, or ``auto``: a GPU where there is one.
        batch: atlases aligned at once; lower it when memory is short.

    Raises:
        OasisError: it is no model folder, of another format, or a file of it has changed.
        ConfigError: no such device.

    Examples:
        >>> model = oasis_monai.load_model("models/prostate", device="cpu")  # doctest: +SKIP
        >>> model.labels  # doctest: +SKIP
        {'prostate': 1}
    """
    return retry_once(lambda: _load(Path(folder), device, batch))


def _load(folder: Path, device: str, batch: int) -> Model:
    record = ModelRecord.read(folder)
    settings, where = record.settings(), resolve_device(device)  # before the library is read: it may be large
    library = record.library()
    networks = record.networks(settings, library)
    options = replace(segmenter_options(settings), batch=batch)
    segmenter = build_segmenter(library, networks, options, where, folder / LOA_FILE, record.checksums[LIBRARY_PART])
    return Model(record, settings, segmenter, where)


def read_scan(scan: Any, affine: Any = None, case: str = "") -> Volume:
    """A scan in memory, from a file, a ``MetaTensor``, or an array with its affine.

    Raises:
        DataError: it is none of these, or cannot be used.
    """
    if isinstance(scan, Volume):
        return scan
    if isinstance(scan, str | Path):
        return _read_file(Path(scan), case)
    from monai.data.meta_tensor import MetaTensor

    name = case or "array"
    if isinstance(scan, MetaTensor):
        affine = scan.affine if affine is None else affine
        scan = scan.as_tensor()
    if not isinstance(scan, np.ndarray | torch.Tensor):
        raise _fault(name, "scan", "a path, a MetaTensor or an array", type(scan).__name__, "give one of these")
    image = torch.as_tensor(np.ascontiguousarray(scan) if isinstance(scan, np.ndarray) else scan.detach().cpu())
    image = image[None] if image.ndim == 3 else image
    if image.ndim != 4 or image.shape[0] != 1 or 0 in image.shape:
        raise _fault(name, "scan", "an array (x, y, z) or (1, x, y, z)", tuple(scan.shape), "choose one channel")
    if affine is None:
        raise _fault(name, "affine", "(4, 4), voxel index -> RAS+ millimetres", "none", "give affine=...")
    matrix = np.asarray(affine, dtype=np.float64)
    if matrix.shape != (4, 4) or not np.isfinite(matrix).all() or abs(np.linalg.det(matrix[:3, :3])) < 1e-9:
        raise _fault(name, "affine", "an invertible (4, 4) matrix", matrix.tolist(), "give affine=...")
    if not bool(torch.isfinite(image.float()).all()):
        raise _fault(name, "scan", "finite voxels", "NaN or infinite ones", "replace them, for example by the background")
    x, y, z = image.shape[1:]
    return Volume(name, image.float(), None, Geometry((x, y, z), matrix))


def _read_file(path: Path, case: str) -> Volume:
    from oasis_monai.data.cases import find_cases
    from oasis_monai.data.io import read_image

    cases = find_cases(path, "folder")
    if len(cases) != 1:
        raise _fault(str(path), "scan", "one scan", f"{len(cases)} scans", "give one file or series, or use oasis_monai.segment")
    image, geometry = read_image(cases[0].source)
    return Volume(case or cases[0].id, image, None, geometry)


def _fault(case: str, field: str, expected: str, found: Any, remedy: str) -> DataError:
    return DataError(Fault(case, field, expected, str(found), remedy))
