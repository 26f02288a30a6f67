"""The result of one scan: its label, how sure it is, and how it came about."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch

from oasis_monai import __version__
from oasis_monai.atlases.library import AtlasLibrary
from oasis_monai.data.formats.dicom_source import DicomSource
from oasis_monai.data.formats.structure import Algorithm, Look, Structure, structures_in, structures_of
from oasis_monai.data.io import write_label, write_probability
from oasis_monai.data.segment_table import read_segments
from oasis_monai.data.structure_files import structure_ending
from oasis_monai.data.types import Geometry, Preprocessed, Segmentation
from oasis_monai.evaluation.quality import Calibration
from oasis_monai.evaluation.quality_tables import calibration_for, temperature_for
from oasis_monai.evaluation.reliability import scale_probability
from oasis_monai.networks.warp import folding_voxels
from oasis_monai.segmentation import flags
from oasis_monai.segmentation.agreement import SOURCES, overlaps
from oasis_monai.segmentation.anatomy import AnatomyStatistics, measure_anatomy
from oasis_monai.segmentation.flags import Flag
from oasis_monai.segmentation.pipeline import CaseResult
from oasis_monai.segmentation.postprocessing import Change, Choice, postprocess
from oasis_monai.segmentation.result import Key
from oasis_monai.segmentation.views import AS_IT_IS
from oasis_monai.transforms.labels import belongs_to, decide
from oasis_monai.transforms.spatial import inside, resample_label
from oasis_monai.utils.files import write_json
from oasis_monai.workflows.result_files import write_named

SLICES = 16  # of a probability map that are worked on at a time
SAME = 0.01  # standard deviations between two readings of one scan, as from another file format: an affine is float32 in NIfTI


@dataclass(frozen=True)
class AtlasUse:
    """An atlas that a result was made with.

    Args:
        case, slice: which one; slice is -1 for a volume.
        distance: between its features and those of the scan.
        weight: its part in the vote; None where atlases are not weighed or not fused.
        folding_voxels: voxels at which its field folds; None without a field.
        image: the slice of the scan it was selected for; 0 for a volume.
    """

    case: str
    slice: int
    distance: float
    weight: float | None
    folding_voxels: int | None
    image: int = 0


@dataclass(frozen=True)
class PredictedDice:
    """What is expected of one structure without a reference.

    Args:
        agreement: overlap of each of :data:`.SOURCES`, 0 to 1; None for one that compares nothing.
        value: the Dice to expect, 0 to 1; None where nothing is compared.
        calibrated: whether a cross-validation's cases were fitted; else it is the mean overlap.
        unsure: whether a failure (Dice under 0.70) is likely.
        interval: holds the Dice with a probability of 90 %, see :mod:`oasis_monai.evaluation.conformal`; 0 to 1 where the model's
            cross-validation had too few patients, None where the model knows no interval.
    """

    agreement: Mapping[str, float | None]
    value: float | None
    calibrated: bool
    unsure: bool
    interval: tuple[float, float] | None = None


@dataclass(frozen=True, repr=False)
class ScanResult:
    """What a model makes of one scan, on the scan's own grid. :meth:`oasis_monai.Model.segment` gives it.

    Attributes:
        case: its id.
        classes: (x, y, z) uint8 class indices; :attr:`label` has the data set's values in their place.
        geometry: the scan's grid.
        probability: (C, x, y, z) float32, background first; None unless asked for.
        temperature: at which the probability is given, so that it is reliable (:mod:`oasis_monai.evaluation.reliability`); None:
            not known, it is as the networks and atlases give it.
        structures: structure -> its classes, where structures share voxels; empty: each class is one. See :meth:`mask`.
        overlap: whether the training labels had a mask for each structure (``data.overlap``).
        uncertainty: (x, y, z) float32, 0 to 1, see :mod:`oasis_monai.segmentation.uncertainty`; None unless asked for.
        predictions: structure -> :class:`PredictedDice`; :attr:`predicted_dice` has the values alone.
        volume_ml: structure -> volume in millilitres.
        flags: warnings, each with ``name`` and ``text``; see :mod:`oasis_monai.segmentation.flags`.
        atlases: those selected, nearest first, each an :class:`AtlasUse`; under ``spatial_dims=2`` slice after slice.
        method: name and number of atlases.
        is_atlas: the case of the library that this very scan is, or None.
        moved_mm: how far the working grid was moved to the structures, along its axes; None where it stayed.
        postprocessed: what was removed and filled, each a :class:`oasis_monai.segmentation.postprocessing.Change`.
        view: the view of the scan that was segmented; None for the scan as it is.
        tried: the agreement of every view that was segmented; empty where no other was looked for.
        model: digest of the model; empty where nobody says.
        looks: colours and codes of its structures, as the model keeps them.

    Examples:
        >>> import oasis_monai
        >>> result = oasis_monai.load_model("models/prostate").segment("scan.nii.gz", n=2)
        >>> result
        ScanResult(scan, OASIS-joint of 2 atlases, predicted Dice prostate ..., flags ...)
        >>> result.predicted_dice["prostate"]
        0...
        >>> for atlas in result.atlases:
        ...     print(atlas.case, atlas.weight, atlas.distance)
        Case0... 0... 0...
        Case0... 0... 0...
        >>> result.save("label.nii.gz")
        PosixPath('label.nii.gz')
    """

    case: str
    classes: torch.Tensor
    probability: torch.Tensor | None
    geometry: Geometry
    predictions: Mapping[str, PredictedDice]
    volume_ml: Mapping[str, float]
    flags: tuple[Flag, ...]
    atlases: tuple[AtlasUse, ...]
    method: Key
    is_atlas: str | None
    moved_mm: tuple[float, ...] | None
    view: str | None
    tried: Mapping[str, float]
    field_voxels: int
    label_values: tuple[int, ...]
    typical_distance: float | None
    postprocessed: tuple[Change, ...] = ()
    uncertainty: torch.Tensor | None = None
    temperature: float | None = None
    model: str = ""
    structures: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    overlap: bool = False
    looks: Mapping[str, Look] = field(default_factory=dict)

    def __repr__(self) -> str:
        method, n = self.method
        dice = ", ".join(f"{name} {'unknown' if one is None else f'{one:.2f}'}" for name, one in self.predicted_dice.items())
        used = f"{method} of {n} atlases" if n else method
        return f"ScanResult({self.case}, {used}, predicted Dice {dice}, flags {[flag.name for flag in self.flags]})"

    @property
    def label(self) -> torch.Tensor:
        """(x, y, z) with the data set's label values, 0 for the background: uint8, int32 where a value is above 255."""
        dtype = torch.uint8 if max(self.label_values) <= 255 else torch.int32
        values = torch.tensor(self.label_values, dtype=dtype)
        return torch.stack([values[part.long()] for part in self.classes])  # slab by slab: torch takes indices of 8 bytes

    def mask(self, structure: str) -> torch.Tensor:
        """(x, y, z) uint8: 1 in the voxels of a structure."""
        members = self.structures or {name: (index,) for index, name in enumerate(self.predictions, 1)}
        return belongs_to(self.classes, members[structure]).to(torch.uint8)

    def save_masks(self, folder: str | Path, ending: str = ".nii.gz") -> dict[str, Path]:
        """Write a mask of 0 and 1 for each structure, ``case_structure.nii.gz``; -> structure -> its file.

        Args:
            folder: where they go.
            ending: of the files, as for :meth:`save`.
        """
        names = mask_files(self.case, list(self.predictions), ending)
        files = {name: Path(folder) / file for name, file in names.items()}
        for name, path in files.items():
            write_label(path, self.mask(name), self.geometry, (0, 1))
        return files

    @property
    def predicted_dice(self) -> dict[str, float | None]:
        """Structure -> Dice to expect, 0 to 1; None where nothing can be predicted."""
        return {name: one.value for name, one in self.predictions.items()}

    @property
    def calibrated(self) -> bool:
        """Whether the predictions were fitted on a cross-validation of the same settings."""
        return all(one.calibrated for one in self.predictions.values())

    def named_structures(self, looks: Mapping[str, Look] | None = None) -> list[Structure]:
        """Its structures, as the writers of formats that name them take them; ``looks``: colours and codes by name, None: those
        of the model."""
        looks = self.looks if looks is None else looks
        if not self.structures:
            return structures_in(self.classes.numpy(), list(self.volume_ml), self.label_values[1:], looks)
        # a value in the label file is a combination of structures, so they are numbered in their order
        masks = [(name, number, partial(_inside, self, name)) for number, name in enumerate(self.structures, 1)]
        return structures_of(masks, looks)

    def save(
        self,
        path: str | Path,
        probability: str | Path | None = None,
        uncertainty: str | Path | None = None,
        scan: str | Path | DicomSource | None = None,
        segments: str | Path | Mapping[str, Any] | None = None,
    ) -> Path:
        """Write the label, in the format of the file's ending: ``.nii.gz``, ``.nii``, ``.nrrd``, ``.mha``, ``.mhd``,
        ``.seg.nrrd`` (for 3D Slicer), ``.seg.dcm`` (DICOM SEG) or ``.rtstruct.dcm`` (RTSTRUCT).

        Args:
            path: where the label goes.
            probability: where the probability goes, if it was asked for.
            uncertainty: where the uncertainty goes, if it was asked for.
            scan: of DICOM SEG and RTSTRUCT, the series that was segmented, to which they refer: a file of it or its folder.
            segments: colours and codes of its structures, see :func:`oasis_monai.data.segment_table.read_segments`; None: those
                of the model.

        Raises:
            DataError: no such format, or ``scan`` is no DICOM series or lies elsewhere.
            ConfigError: a format that needs ``scan`` without it, or highdicom, which is not installed.
            OSError: the file cannot be written.
        """
        if structure_ending(path):
            made_by = Algorithm(f"oasis-monai {self.method[0]}", __version__, self.model)
            looks = None if segments is None else read_segments(segments)
            write_named(path, self.named_structures(looks), self.geometry, self.case, made_by, scan)
        else:
            write_label(path, self.classes, self.geometry, self.label_values)
        if probability is not None and self.probability is not None:
            write_probability(probability, self.probability, self.geometry)
        if uncertainty is not None and self.uncertainty is not None:
            write_probability(uncertainty, self.uncertainty, self.geometry)
        return Path(path)

    def save_report(self, path: str | Path) -> Path:
        """Write everything but the voxels as JSON."""
        write_json(Path(path), self.to_json())
        return Path(path)

    def to_json(self) -> dict[str, Any]:
        """Everything but the voxels, as plain values."""
        images = 1 + max((use.image for use in self.atlases), default=-1)
        by_image = [[use for use in self.atlases if use.image == image] for image in range(images)]
        weighed = any(use.weight is not None for use in self.atlases)
        folded = [use.folding_voxels for use in self.atlases if use.folding_voxels is not None]
        return {
            "volume_ml": dict(self.volume_ml),
            "atlases": [
                [
                    {
                        "case": use.case,
                        "slice": use.slice,
                        "distance": round(use.distance, 6),
                        "folding_voxels": use.folding_voxels,
                    }
                    for use in uses
                ]
                for uses in by_image
            ],
            "weights": [[round(use.weight, 6) for use in uses if use.weight is not None] for uses in by_image]
            if weighed
            else None,
            "agreement": {name: dict(one.agreement) for name, one in self.predictions.items() if one.agreement},
            "predicted_dsc": {name: None if one.value is None else round(one.value, 4) for name, one in self.predictions.items()},
            "dsc_interval_90": {
                name: None if one.interval is None else [round(end, 4) for end in one.interval]
                for name, one in self.predictions.items()
            },
            "calibrated": self.calibrated,
            "probability_temperature": self.temperature,
            "folding_voxels": sum(folded) if self.field_voxels else None,
            "field_voxels": self.field_voxels or None,
            "usual_distance": None if self.typical_distance is None else round(self.typical_distance, 6),
            "flags": [flag.to_json() for flag in self.flags],
            "moved_mm": None if self.moved_mm is None else list(self.moved_mm),
            "is_atlas": self.is_atlas,
            "postprocessed": [change.to_json() for change in self.postprocessed],
            "view": self.view,
            "views_tried": {name: round(agreement, 4) for name, agreement in self.tried.items()},
        }


def _inside(result: ScanResult, structure: str) -> np.ndarray:
    return result.mask(structure).numpy().astype(bool)


def mask_files(case: str, structures: Sequence[str], ending: str) -> dict[str, str]:
    """What the mask of every structure is called: letters, digits, dots and dashes of its name, and a number where two would be
    called alike."""
    plain = [re.sub(r"[^\w.-]+", "_", name).strip("._-") or "structure" for name in structures]
    alike = [one.casefold() for one in plain]
    names = [one if alike.count(one.casefold()) == 1 else f"{one}_{number}" for number, one in enumerate(plain, 1)]
    return {name: f"{case}_mask_{one}{ending}" for name, one in zip(structures, names, strict=True)}


def describe_result(
    found: CaseResult,
    key: Key,
    library: AtlasLibrary,
    labels: Mapping[str, int],
    calibrations: Mapping[str, Mapping[str, Calibration]],
    typical_distance: float | None,
    keep_probability: bool = False,
    anatomy: AnatomyStatistics | None = None,
    choice: Choice = MappingProxyType({}),
    keep_uncertainty: bool = False,
    structures: Mapping[str, tuple[int, ...]] = MappingProxyType({}),
    overlap: bool = False,
) -> ScanResult:
    """The result of one method, post-processed, with all there is to say about it.

    Args:
        found: the results of the scan.
        key: the method and its number of atlases.
        library: the atlases.
        labels: structure -> value in label files, in the order of the classes.
        calibrations: of the model, by "method-n" and structure.
        typical_distance: :func:`oasis_monai.segmentation.flags.typical_distance` of the library.
        keep_probability, keep_uncertainty: keep the probability, the uncertainty on the scan's own grid.
        anatomy: of the training labels; None: nothing is known, nothing is flagged.
        choice: the post-processing, which needs ``anatomy``.
        structures, overlap: see :class:`ScanResult`.
    """
    assert found.selection is not None
    result, segmentation = found.results[key], found.restore(keep_probability)[key]
    names, members = list(structures or labels), tuple(structures.values())
    changes: tuple[Change, ...] = ()
    if anatomy is not None:
        segmentation, changes = postprocess(segmentation, anatomy, choice, names)
    temperature = temperature_for(calibrations, *key)
    if segmentation.probability is not None and temperature is not None:
        for part in segmentation.probability.split(SLICES, -1):  # a few at a time: a scan of many structures is large
            part.copy_(scale_probability(part, temperature))
    uses, field_voxels = _atlases_used(found, key, library)
    predictions = _predict(result.agreement, key, names, calibrations)
    target = found.target
    folded = sum(use.folding_voxels or 0 for use in uses)
    doubts = (
        flags.unsure(
            {name: math.nan if one.value is None else one.value for name, one in predictions.items()},
            [name for name, one in predictions.items() if one.unsure],
            all(one.calibrated for one in predictions.values()),
        ),
        flags.unlike_atlases(found.selection.distances[:, 0], typical_distance),
        flags.empty(segmentation.label, names, members),
        flags.no_box(found.boxes),
        flags.cut(decide(result.probability), inside(target.native, found.grids[key]), names, members),
        flags.folding(folded, field_voxels),
        *_implausible(segmentation, target, anatomy, names, members),
        flags.view(found.tried),
    )
    spacing_mm = target.geometry.spacing_mm
    return ScanResult(
        case=target.case,
        classes=segmentation.label,
        probability=segmentation.probability,
        geometry=segmentation.geometry,
        predictions=predictions,
        volume_ml=_volumes(segmentation, names, members, target.native.voxel_ml),
        flags=tuple(doubt for doubt in doubts if doubt is not None),
        atlases=uses,
        method=key,
        is_atlas=_twin(found, library),
        moved_mm=tuple(move * mm for move, mm in zip(found.offset, spacing_mm, strict=True)) if any(found.offset) else None,
        view=found.view.name or None,
        tried={one.view.name or AS_IT_IS: one.agreement for one in found.tried},
        field_voxels=field_voxels,
        label_values=(0, *labels.values()),
        typical_distance=typical_distance,
        postprocessed=changes,
        temperature=temperature,
        uncertainty=found.uncertainty(key) if keep_uncertainty else None,
        structures=structures,
        overlap=overlap,
    )


def _implausible(
    segmentation: Segmentation,
    target: Preprocessed,
    anatomy: AnatomyStatistics | None,
    names: Sequence[str],
    members: Sequence[tuple[int, ...]],
) -> tuple[Flag, ...]:
    """The flags of a result's anatomy, which is measured as that of a training label was: on the working grid."""
    if anatomy is None:
        return ()
    label = resample_label(segmentation.label[None], segmentation.geometry, target.geometry)[0]
    return flags.implausible(measure_anatomy(label, target.geometry.spacing_mm, names, members), anatomy)


def _twin(found: CaseResult, library: AtlasLibrary) -> str | None:
    """The atlas that is this very scan, as it is or as it was seen."""
    nearest = dict.fromkeys(rows[0].case for rows in found.atlases if rows)
    if found.unchanged is None:
        return library.twin(found.target.image, SAME, nearest)
    # in another view, or on a moved grid, others are near
    return library.twin(found.unchanged.image, SAME, library.cases) or library.twin(found.target.image, SAME, nearest)


def _volumes(
    segmentation: Segmentation, names: Sequence[str], members: Sequence[tuple[int, ...]], voxel_ml: float
) -> dict[str, float]:
    classes = members or [(index,) for index in range(1, len(names) + 1)]
    counts = (belongs_to(segmentation.label, own).sum() for own in classes)
    return {name: round(float(count) * voxel_ml, 3) for name, count in zip(names, counts, strict=True)}


def _atlases_used(found: CaseResult, key: Key, library: AtlasLibrary) -> tuple[tuple[AtlasUse, ...], int]:
    """The atlases with their weights and the folds of their fields; and how many voxels all fields have."""
    size = library.images.shape[2:]
    weights = found.results[key].weights
    uses = []
    for image, rows in enumerate(found.atlases):
        folds = [None] * len(rows) if found.fields is None else folding_voxels(found.fields[image], size).tolist()
        own = [None] * len(rows) if weights is None else weights[image].tolist()
        own += [None] * (len(rows) - len(own))
        uses += [AtlasUse(*row, weight, fold, image) for row, weight, fold in zip(rows, own, folds, strict=True)]
    return tuple(uses), 0 if found.fields is None else len(uses) * size.numel()


def _predict(
    agreement: torch.Tensor | None, key: Key, names: Sequence[str], calibrations: Mapping[str, Mapping[str, Calibration]]
) -> dict[str, PredictedDice]:
    """The Dice to expect of every structure, from the overlaps of the result's parts."""
    if agreement is None:  # FwoW, STAPLE: nothing is compared, nothing predicted
        return {name: PredictedDice({}, None, False, False) for name in names}
    made = {}
    for name, values in zip(names, overlaps(agreement).tolist(), strict=True):
        model = calibration_for(calibrations, *key, name, values)
        predicted = model.predict(values)
        made[name] = PredictedDice(
            {source: None if math.isnan(v) else round(v, 4) for source, v in zip(SOURCES, values, strict=True)},
            None if math.isnan(predicted) else predicted,
            model.spread is not None,
            model.flag(predicted) and not math.isnan(predicted),
            model.bounds(predicted),
        )
    return made
