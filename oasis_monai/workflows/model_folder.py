"""A trained model as one folder.

A model folder holds ``stm.safetensors`` (weights), ``library.safetensors`` (atlases with features), ``loa.safetensors`` (pairs
computed so far), of a joint model also ``estimator.safetensors`` and ``volume.safetensors``, and ``model.json`` (settings,
versions, cases, checksums), written last: a folder without it is no model, and a part counts only with the checksum it names.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch

from oasis_monai.atlases.features import Embedder, embedder
from oasis_monai.atlases.library import AtlasLibrary
from oasis_monai.evaluation.quality import Calibration
from oasis_monai.evaluation.quality_tables import calibrations_of
from oasis_monai.networks.segmentation import make_network
from oasis_monai.networks.slice_unet import make_slice_network
from oasis_monai.segmentation.alignment import Aligner
from oasis_monai.segmentation.estimate import Estimator, make_volume_network
from oasis_monai.segmentation.loa import LoaTable
from oasis_monai.segmentation.segmenter import Segmenter
from oasis_monai.settings import Settings, build
from oasis_monai.training.registration import make_registration_network
from oasis_monai.training.trainer import load_weights
from oasis_monai.utils.device import resolve_device
from oasis_monai.utils.errors import OasisError
from oasis_monai.utils.files import digest, file_digest
from oasis_monai.utils.tensor_files import load_tensors
from oasis_monai.workflows.fold_models import voice

FORMAT = 2
RECORDED = ("embedding", "cases", "trained_on", "atlases", "calibration")  # what ``model.json`` always tells
STM_PART, LIBRARY_PART, LOA_FILE = "stm.safetensors", "library.safetensors", "loa.safetensors"
ESTIMATOR_PART, VOLUME_PART = "estimator.safetensors", "volume.safetensors"  # of a joint model
NEXT_LIBRARY = "library.next.safetensors"
"""An edited library until it takes the place of :data:`LIBRARY_PART`: whichever has the checksum of ``model.json`` counts."""
ALL_PAIRS = 2500  # LOA of every pair is computed with the model up to so many; a library of slices computes what it uses
Log = Callable[[str], None]
T = TypeVar("T")


def voxel_volume_ml(spacing_mm: tuple[float, float, float]) -> float:
    """Millilitres of one voxel."""
    return spacing_mm[0] * spacing_mm[1] * spacing_mm[2] / 1000


def describe(library: AtlasLibrary, case: str, labels: Mapping[str, int], voxel_ml: float) -> dict[str, Any]:
    """What ``model.json`` tells of a case of the library: images, and volume of every label on the working grid."""
    label = library.labels[[i for i, name in enumerate(library.cases) if name == case]]
    volumes = {name: round(int((label == i).sum()) * voxel_ml, 3) for i, name in enumerate(labels, 1)}
    return {"images": len(label), "volume_ml": volumes}


def keep_pairs(
    segmenter: Segmenter, library: AtlasLibrary, folder: Path, checksum: str, kept: torch.Tensor | None = None
) -> None:
    """Write the LOA table of a model's library: of a small one that asks for pairs (OASIS-joint asks none) all of them.

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


def read_record(folder: Path) -> dict[str, Any]:
    """What ``model.json`` tells.

    Raises:
        OasisError: it is no model folder, or of another format.
    """
    try:
        record = json.loads((folder / "model.json").read_text(encoding="utf-8"))
        found = record["format"]
        if found == FORMAT:
            _ = dict(record["checksums"]), dict(record["settings"]), [record[key] for key in RECORDED]
    except (OSError, ValueError, KeyError, TypeError) as error:
        found_text = f"{folder} without a readable model.json"
        raise OasisError(
            f"model: expected a folder written by `oasis-monai train`, found {found_text}; train again or correct the path"
        ) from error
    if found != FORMAT:
        raise OasisError(f"model: expected format {FORMAT}, found {found} in {folder}; train it again with this version")
    return dict(record)


def calibrations(folder: Path) -> dict[str, dict[str, Calibration]]:
    """The model's calibrations of the predicted DSC by "method-n" and label; empty where it was trained without any.

    Raises:
        OasisError: ``model.json`` holds something else.
    """
    told = read_record(folder)["calibration"]
    try:
        return {} if told is None else calibrations_of(told)
    except ValueError as error:
        raise OasisError(f"model: {error} in {folder}/model.json; copy the model again") from error


def model_embedder(folder: Path, settings: Settings, device: str = "auto") -> Embedder:
    """What the model's atlases are described by, for the scans they are compared with.

    Raises:
        OasisError: the weights of this machine are other ones, with which distances would mean nothing.
    """
    made = embedder(settings.features.name, settings.features.weights, resolve_device(device))
    kept = read_record(folder)["embedding"]
    if kept != made.key:
        raise OasisError(
            f"model: expected the embedding network {kept}, found {made.key}; give features.weights as in training or train again"
        )
    return made


def part(folder: Path, record: Mapping[str, Any], name: str) -> Path:
    """The file of one part, its checksum verified.

    Raises:
        OasisError: it is absent or has changed.
    """
    for candidate in (name, NEXT_LIBRARY) if name == LIBRARY_PART else (name,):
        if (folder / candidate).is_file() and file_digest(folder / candidate) == record["checksums"].get(name):
            return folder / candidate
    raise OasisError(f"model: expected {name} as it was written, found it absent or changed in {folder}; copy the model again")


def load_model(folder: Path, device: str = "auto", batch: int = 8) -> tuple[Settings, Segmenter]:
    """Read a model folder.

    Raises:
        OasisError: it is no model folder, of another format, or a file of it has changed.
    """
    return retry_once(lambda: _load(folder, device, batch))


def retry_once(read: Callable[[], T]) -> T:
    """Read from a model folder that someone may be editing: what was not there as told may just have been replaced."""
    try:
        return read()
    except OasisError:
        return read()


def read_library(folder: Path) -> tuple[dict[str, Any], AtlasLibrary]:
    """What ``model.json`` tells, and the library it tells of.

    Raises:
        OasisError: as :func:`load_model`.
    """
    record = read_record(folder)
    return record, AtlasLibrary.load(part(folder, record, LIBRARY_PART), check=False)  # its digest was just compared


def _load(folder: Path, device: str, batch: int) -> tuple[Settings, Segmenter]:
    record = read_record(folder)
    settings, where = build(record["settings"]), resolve_device(device)  # before the library is read: it may be large
    if record["checksums"].get("settings") != digest(record["settings"]):
        raise OasisError(f"model: expected model.json as it was written, found other settings in {folder}; copy the model again")
    with_volume = settings.registration.joint and settings.joint.budgets(settings.spatial_dims)[1] > 0
    needed = [STM_PART, *([ESTIMATOR_PART] if settings.registration.joint else []), *([VOLUME_PART] if with_volume else [])]
    files = {name: part(folder, record, name) for name in needed}
    record, library = read_library(folder)
    network = _loaded(make_registration_network(library, settings.registration), files[STM_PART])
    aligner = Aligner(network, where, batch)
    loa = LoaTable(library, aligner, folder / LOA_FILE, record["checksums"][LIBRARY_PART])
    more: dict[str, Any] = {}
    if settings.registration.joint:
        net = make_slice_network(library.classes, settings.joint, pretrained=False)
        _loaded(net, files[ESTIMATOR_PART])
        whole = None
        if with_volume:
            kind = settings.joint.volume_network
            volume = _loaded(make_network(kind, library.classes, settings.network), files[VOLUME_PART])
            whole = make_volume_network(volume, kind, settings.network, where)
        how = settings.joint
        estimator = Estimator(net, how.tta_flip, where, whole=whole, stride=how.volume_stride, tta_views=how.tta_views)
        more = {"estimator": estimator, **voice(settings.joint)}
    return settings, Segmenter(library, aligner, loa, settings.features.distance, settings.temperature, **more)


def _loaded(network: torch.nn.Module, path: Path) -> torch.nn.Module:
    load_weights(network, load_tensors(path)[0], path)
    return network
