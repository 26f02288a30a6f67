"""The folder of a trained model: its files, their checksums, and reading them.

A model folder holds ``stm.safetensors`` (registration network), ``library.safetensors`` (atlases with features),
``loa.safetensors`` (pairs computed so far), of a joint model also ``estimator.safetensors``, ``volume.safetensors`` and
``boxes.safetensors``, and
``model.json`` (settings, versions, channels, cases, checksums), written last: a folder without it is no model, and a part counts
only with the checksum it names.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from oasis_monai.atlases.library import AtlasLibrary
from oasis_monai.data.formats.structure import Look
from oasis_monai.data.segment_table import read_segments
from oasis_monai.data.types import Geometry
from oasis_monai.evaluation.postprocessing import Decisions, decisions_of
from oasis_monai.evaluation.quality import Calibration
from oasis_monai.evaluation.quality_tables import calibrations_of
from oasis_monai.networks.registration import SpatialTransformModel
from oasis_monai.networks.segmentation import Predictor, make_network
from oasis_monai.networks.slice_unet import SliceUNet, make_box_network, make_slice_network
from oasis_monai.segmentation.anatomy import AnatomyStatistics, StructureShape, measure_anatomy
from oasis_monai.segmentation.build import TrainedNetworks
from oasis_monai.segmentation.learned_fusion import LearnedFusion, fusions_of
from oasis_monai.segmentation.loa import LoaTable
from oasis_monai.segmentation.segmenter import Segmenter
from oasis_monai.settings import Settings, build
from oasis_monai.training.registration import make_registration_network
from oasis_monai.training.trainer import load_weights
from oasis_monai.transforms.labels import belongs_to
from oasis_monai.utils.errors import ConfigError, DataError, Fault, OasisError
from oasis_monai.utils.files import digest, file_digest
from oasis_monai.utils.tensor_files import load_tensors, save_tensors
from oasis_monai.workflows.prepare import ONE_CHANNEL

FORMAT = 2
RECORDED = ("embedding", "cases", "trained_on", "atlases", "calibration")  # keys that every ``model.json`` has
STM_PART, LIBRARY_PART, LOA_FILE = "stm.safetensors", "library.safetensors", "loa.safetensors"
SLICES_PART, VOLUME_PART, BOXES_PART = "estimator.safetensors", "volume.safetensors", "boxes.safetensors"  # only in joint models
NEXT_LIBRARY = "library.next.safetensors"
"""The edited library, until it replaces :data:`LIBRARY_PART`. The file with the checksum in ``model.json`` counts."""
ALL_PAIRS = 2500  # up to this many LOA pairs are all computed with the model; larger libraries compute pairs on use
Log = Callable[[str], None]
K = TypeVar("K")
T = TypeVar("T")
NetworkT = TypeVar("NetworkT", bound=torch.nn.Module)


@dataclass(frozen=True)
class ModelRecord:
    """The content of ``model.json``, read once.

    Args:
        folder: the model's.
        values: the content of the file.
        version: digest of the file: another one after every edit.
    """

    folder: Path
    values: Mapping[str, Any]
    version: str

    @classmethod
    def read(cls, folder: Path) -> ModelRecord:
        """Read the record of a model folder.

        Raises:
            OasisError: it is no model folder, or of another format.
        """
        file = folder / "model.json"
        try:
            version = file_digest(file)
            record = json.loads(file.read_text(encoding="utf-8"))
            found = record["format"]
            if found == FORMAT:
                _ = dict(record["checksums"]), dict(record["settings"]), [record[key] for key in RECORDED]
        except (OSError, ValueError, KeyError, TypeError) as error:
            found_text = f"{folder} without a readable model.json"
            raise OasisError(
                f"model: expected a folder written by `oasis-monai train`, found {found_text}; correct the path or train again"
            ) from error
        if found != FORMAT:
            raise OasisError(f"model: expected format {FORMAT}, found {found} in {folder}; train it again with this version")
        return cls(folder, dict(record), version)

    @property
    def checksums(self) -> dict[str, str]:
        """Part -> sha256 of its file."""
        return dict(self.values["checksums"])

    @property
    def edited(self) -> bool:
        """Whether atlases were added or removed since the training."""
        return set(self.values["trained_on"]) != set(self.values["cases"])

    @property
    def scans(self) -> dict[str, str]:
        """Digest of the image's files -> the case that the networks were trained on; empty of an earlier model."""
        return {content: case for case, content in self.values.get("scans", {}).items()}

    def cases_of(self, patient: str) -> list[str]:
        """The cases of a person that the networks were trained on, as far as their persons are known."""
        return [case for case, own in self.values.get("patients", {}).items() if own == patient]

    @property
    def channels(self) -> tuple[str, ...]:
        """The names of the channels of a scan, in order; of a model before there were several, one."""
        return tuple(self.values.get("channels", ONE_CHANNEL))

    def check_channels(self, case: str, found: int) -> None:
        """Refuse a scan with another number of channels than the model was trained with.

        Raises:
            DataError: naming the channels.
        """
        if found != len(self.channels):
            names = f" ({', '.join(self.channels)})" if len(self.channels) > 1 else ""
            remedy = f"give {'all of these, in this order' if names else 'one image'}, or train a model with the scan's channels"
            raise DataError(Fault(case, "channels", f"the model's {len(self.channels)}{names}", str(found), remedy))

    def settings(self) -> Settings:
        """The settings the model was trained with.

        Raises:
            OasisError: they have changed since.
            ConfigError: they cannot be.
        """
        settings = build(self.values["settings"])
        if self.checksums.get("settings") != digest(self.values["settings"]):
            raise OasisError(
                f"model: expected model.json as it was written, found changed settings in {self.folder}; copy the model again"
            )
        return settings

    def looks(self) -> dict[str, Look]:
        """Colours and codes of its structures, as they were told when it was trained; empty where nobody did.

        Raises:
            OasisError: ``model.json`` holds something else.
        """
        try:
            return read_segments(self.values.get("segments"))
        except ConfigError as error:
            raise OasisError(f"model: {error} in {self.folder}/model.json; copy the model again") from error

    def calibrations(self) -> dict[str, dict[str, Calibration]]:
        """The calibrations of the predicted Dice, by "method-n" and label; empty where the model has none.

        Raises:
            OasisError: ``model.json`` holds something else.
        """
        return self._held("calibration", calibrations_of)

    def anatomy(self) -> AnatomyStatistics | None:
        """What the labels of the atlases show; None of an earlier model, which did not keep it.

        Raises:
            OasisError: ``model.json`` holds something else.
        """
        try:
            measured = [entry["anatomy"] for entry in self.values["atlases"].values()]
        except KeyError:
            return None
        try:
            return AnatomyStatistics.of_shapes(
                {name: StructureShape.from_json(one) for name, one in shapes.items()} for shapes in measured
            )
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise OasisError(f"model: expected the anatomy of its labels in {self.folder}/model.json; copy it again") from error

    def postprocessing(self) -> Decisions:
        """Which post-processing helps, by "method-n", structure and operation; empty where no cross-validation has tried any.

        Raises:
            OasisError: ``model.json`` holds something else.
        """
        return self._held("postprocessing", decisions_of)

    def fusions(self) -> dict[int, LearnedFusion]:
        """The learned fusions of a joint model, by the number of atlases; empty where no cross-validation has fitted any.

        Raises:
            OasisError: ``model.json`` holds something else.
        """
        return self._held("fusion", fusions_of)

    def _held(self, key: str, parse: Callable[[Any], dict[K, T]]) -> dict[K, T]:
        """What the cross-validation before the training has left, parsed; empty where there was none."""
        held = self.values.get(key)
        try:
            return {} if held is None else parse(held)
        except ValueError as error:
            raise OasisError(f"model: {error} in {self.folder}/model.json; copy the model again") from error

    def part(self, name: str) -> Path:
        """The file of one part, its checksum verified.

        Raises:
            OasisError: it is absent or has changed.
        """
        for candidate in (name, NEXT_LIBRARY) if name == LIBRARY_PART else (name,):
            file = self.folder / candidate
            if file.is_file() and file_digest(file) == self.checksums.get(name):
                return file
        raise OasisError(
            f"model: expected {name} as it was written, found a missing or changed file in {self.folder}; copy the model again"
        )

    def library(self) -> AtlasLibrary:
        """The atlases.

        Raises:
            OasisError: as :meth:`part`.
        """
        return AtlasLibrary.load(self.part(LIBRARY_PART), check=False)  # its digest was just compared

    def networks(self, settings: Settings, library: AtlasLibrary) -> TrainedNetworks:
        """The trained networks.

        Raises:
            OasisError: as :meth:`part`, or they are of another version.
        """
        return read_networks(settings, library, self.part)


def retry_once(read: Callable[[], T]) -> T:
    """Read from a model folder that another process may be editing: after an error, read it a second time."""
    try:
        return read()
    except OasisError:
        return read()


def read_networks(settings: Settings, library: AtlasLibrary, part: Callable[[str], Path]) -> TrainedNetworks:
    """The networks that :func:`write_parts` wrote.

    Args:
        settings: those of their training.
        library: the atlases beside them.
        part: gives the file of each.

    Raises:
        OasisError: they are of another version.
    """

    def loaded(network: NetworkT, name: str) -> NetworkT:
        path = part(name)
        load_weights(network, load_tensors(path)[0], path)
        return network

    joint = settings.joint
    registration: SpatialTransformModel = loaded(make_registration_network(library, settings.registration), STM_PART)
    if not settings.registration.joint:
        return TrainedNetworks(registration)
    made = make_slice_network(library.classes, joint, False, channels=library.channels, structures=library.structures)
    slices = loaded(made, SLICES_PART)
    volume = None
    if settings.has_volume_network:
        made_of = (joint.volume_network, library.classes, settings.network, library.channels, library.structures)
        volume = loaded(make_network(*made_of), VOLUME_PART)
    boxes: SliceUNet | None = None
    if settings.has_box_network:
        boxes = loaded(make_box_network(library.classes, joint, library.channels, library.structures), BOXES_PART)
    return TrainedNetworks(registration, slices, volume, boxes)


def write_parts(folder: Path, segmenter: Segmenter) -> dict[str, str]:
    """Write networks, library and LOA pairs; -> part -> checksum. The folder is no model until ``model.json`` is written."""
    for name in ("model.json", LOA_FILE, NEXT_LIBRARY):
        (folder / name).unlink(missing_ok=True)
    assert segmenter.aligner is not None
    parts: dict[str, torch.nn.Module] = {STM_PART: segmenter.aligner.model}
    if segmenter.estimator is not None:
        parts[SLICES_PART] = segmenter.estimator.model
        if isinstance(segmenter.estimator.volume_network, Predictor):
            parts[VOLUME_PART] = segmenter.estimator.volume_network.model
    if segmenter.boxes is not None:
        parts[BOXES_PART] = segmenter.boxes.estimator.model
    for name, network in parts.items():
        save_tensors(folder / name, {f"model.{k}": v.contiguous() for k, v in network.state_dict().items()})
    segmenter.library.save(folder / LIBRARY_PART)
    checksums = {name: file_digest(folder / name) for name in (*parts, LIBRARY_PART)}
    keep_pairs(segmenter, segmenter.library, folder, checksums[LIBRARY_PART])
    return checksums


def describe(library: AtlasLibrary, case: str, structures: Mapping[str, Sequence[int]], geometry: Geometry) -> dict[str, Any]:
    """The entry of ``model.json`` for a case of the library: images, volume of every structure on the working grid, its anatomy.

    Args:
        structures: the classes of each (:attr:`.DataSettings.scored`).
        geometry: the working grid of the case.
    """
    rows = [i for i, name in enumerate(library.cases) if name == case]
    label = library.labels[rows]
    volumes = {name: round(int(belongs_to(label, own).sum()) * geometry.voxel_ml, 3) for name, own in structures.items()}
    shapes = {}
    if rows and (whole := library.label_of(case)).shape == geometry.shape:  # slices that nobody labelled are no atlases
        shapes = measure_anatomy(
            whole, geometry.spacing_mm, list(structures), tuple(structures.values()) if library.structures else ()
        )
    return {"images": len(rows), "volume_ml": volumes, "anatomy": {name: one.to_json() for name, one in shapes.items()}}


def keep_pairs(
    segmenter: Segmenter, library: AtlasLibrary, folder: Path, checksum: str, kept: torch.Tensor | None = None
) -> None:
    """Write the LOA table of a model's library. A small library whose method needs pairs (not OASIS-joint) gets all of them.

    Args:
        segmenter: the model.
        library: its library, or the edited one that takes its place.
        checksum: of the library's file; a table counts only with its own.
        kept: rows of the model's library that are the edited one's first ones: their pairs are carried over.
    """
    assert segmenter.aligner is not None
    (folder / LOA_FILE).unlink(missing_ok=True)
    loa = LoaTable(library, segmenter.aligner, folder / LOA_FILE, checksum)
    if kept is not None and segmenter.loa is not None:
        loa.carry(segmenter.loa, kept)
    if segmenter.estimator is None and len(library) ** 2 <= ALL_PAIRS:
        loa.require([torch.arange(len(library))])
    loa.save()
