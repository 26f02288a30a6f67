"""A trained model as one folder, and its use on new scans.

A model folder holds ``stm.safetensors`` (weights), ``library.safetensors`` (atlases with features), ``loa.safetensors`` (pairs
computed so far) and ``model.json`` (settings, versions, checksums), written last: a folder without it is no model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from oasis_monai.align import Aligner, LoaTable
from oasis_monai.errors import ConfigError, DataError, Fault, OasisError
from oasis_monai.estimation import VOLUME_NETWORK, make_estimator, make_whole
from oasis_monai.estimator import Estimator
from oasis_monai.features import Embedder, embedder, slice_features, volume_features
from oasis_monai.files import digest, file_digest, load_tensors, locked, save_tensors, write_json
from oasis_monai.fitting import network_weights
from oasis_monai.fold_models import FoldModels, voice
from oasis_monai.folds import Fold, Split
from oasis_monai.library import AtlasLibrary
from oasis_monai.prepare import find_and_check, prepare, resolve_device
from oasis_monai.preprocess import PreprocessCache, restore
from oasis_monai.record import Clock, run_record
from oasis_monai.segment import JOINT_METHODS, Segmenter, check_methods, result_keys
from oasis_monai.segnets import make_network
from oasis_monai.settings import Settings, build
from oasis_monai.supervised import Predictor
from oasis_monai.training import make_stm
from oasis_monai.types import Case, Preprocessed

FORMAT = 1
PARTS = ("stm.safetensors", "library.safetensors")
ESTIMATOR_PART, VOLUME_PART = "estimator.safetensors", "volume.safetensors"  # of a joint model
ALL_PAIRS = 2500  # LOA of every pair is computed with the model up to so many; a library of slices computes what it uses
Log = Callable[[str], None]


def train_model(settings: Settings, folder: Path, log: Log = print) -> Path:
    """Fit the STM on all cases of the data set and write the model folder.

    Training goes on from its checkpoint in ``settings.cache`` when it was interrupted.
    """
    cache, clock = Path(settings.cache), Clock()
    settings = replace(settings, methods=("OASIS-joint",) if settings.registration.joint else ("OASIS",))
    with clock("check and read"):
        cases = find_and_check(settings, cache, log)
        prepared = prepare(settings, cases, cache, log)
    images = {case: tuple(range(len(prepared.rows(case)))) for case in prepared.targets}
    everything = Fold(0, images, {})
    models = FoldModels(settings, prepared, Split("patient", settings.seed, (everything,)), cache, log)
    with clock("train"):
        segmenter = models.segmenter(everything)
    assert segmenter.aligner is not None
    assert segmenter.loa is not None
    with locked(folder), clock("write"):
        (folder / "model.json").unlink(missing_ok=True)  # from here to the last line the folder is no model
        (folder / "loa.safetensors").unlink(missing_ok=True)  # pairs of the model that was here before
        weights = {f"model.{k}": v for k, v in segmenter.aligner.model.state_dict().items()}
        save_tensors(folder / "stm.safetensors", weights)
        parts = [*PARTS]
        if segmenter.estimator is not None:
            own = {f"model.{k}": v.contiguous() for k, v in segmenter.estimator.model.state_dict().items()}
            save_tensors(folder / ESTIMATOR_PART, own)
            parts.append(ESTIMATOR_PART)
            if isinstance(segmenter.estimator.whole, Predictor):
                own = {f"model.{k}": v for k, v in segmenter.estimator.whole.model.state_dict().items()}
                save_tensors(folder / VOLUME_PART, own)
                parts.append(VOLUME_PART)
        segmenter.library.save(folder / "library.safetensors")
        loa = LoaTable(segmenter.library, segmenter.aligner, folder / "loa.safetensors")
        if segmenter.estimator is None and len(segmenter.library) ** 2 <= ALL_PAIRS:  # OASIS-joint asks no pairs
            loa.require([torch.arange(len(segmenter.library))])
        loa.save()
        record = run_record("train", settings, None, len(cases), clock.seconds)
        checksums = {name: file_digest(folder / name) for name in parts}
        checksums["settings"] = digest(record["settings"])
        write_json(folder / "model.json", {**record, "format": FORMAT, "checksums": checksums, "cases": list(prepared.cases)})
    return folder


def load_model(folder: Path, device: str = "auto", batch: int = 8) -> tuple[Settings, Segmenter]:
    """Read a model folder.

    Raises:
        OasisError: it is no model folder, of another format, or a file of it has changed.
    """
    import json

    try:
        record = json.loads((folder / "model.json").read_text(encoding="utf-8"))
        found, checksums, plain = record["format"], dict(record["checksums"]), dict(record["settings"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        found_text = f"{folder} without a readable model.json"
        raise OasisError(
            f"model: expected a folder written by `oasis-monai train`, found {found_text}; train again or correct the path"
        ) from error
    if found != FORMAT:
        raise OasisError(f"model: expected format {FORMAT}, found {found} in {folder}; train it again with this version")
    settings = build(plain)
    if checksums.get("settings", digest(plain)) != digest(plain):
        raise OasisError(f"model: expected model.json as it was written, found other settings in {folder}; copy the model again")
    with_volume = settings.registration.joint and settings.estimator.shares(settings.spatial_dims)[1] > 0
    for name in (*PARTS, *([ESTIMATOR_PART] if settings.registration.joint else []), *([VOLUME_PART] if with_volume else [])):
        if not (folder / name).is_file() or file_digest(folder / name) != checksums.get(name):
            raise OasisError(
                f"model: expected {name} as it was written, found it absent or changed in {folder}; copy the model again"
            )
    library = AtlasLibrary.load(folder / "library.safetensors")
    network = make_stm(library, settings.registration)
    network.load_state_dict(network_weights(load_tensors(folder / "stm.safetensors")[0]))
    aligner = Aligner(network, resolve_device(device), batch)
    loa = LoaTable(library, aligner, folder / "loa.safetensors")
    more: dict[str, Any] = {}
    if settings.registration.joint:
        net = make_estimator(library.classes, settings.estimator, pretrained=False)
        net.load_state_dict(network_weights(load_tensors(folder / ESTIMATOR_PART)[0]))
        whole = None
        if with_volume:
            volume = make_network(VOLUME_NETWORK, library.classes, settings.network)
            volume.load_state_dict(network_weights(load_tensors(folder / VOLUME_PART)[0]))
            whole = make_whole(volume, settings.network, resolve_device(device))
        where, stride = resolve_device(device), settings.estimator.volume_stride
        estimator = Estimator(net, settings.estimator.mirror, where, whole=whole, stride=stride)
        more = {"estimator": estimator, **voice(settings.estimator)}
    return settings, Segmenter(library, aligner, loa, settings.features.distance, settings.temperature, **more)


def target_features(target: Preprocessed, spatial_dims: int, embed: Embedder) -> torch.Tensor:
    """(T, F) features of a target: one row for a volume, one per slice."""
    return slice_features(target.image, embed) if spatial_dims == 2 else volume_features(target.image, embed)[None]


def segment_scans(
    model: Path,
    scans: Path,
    output: Path,
    n: int = 6,
    method: str | None = None,
    device: str = "auto",
    batch: int = 8,
    save_probability: bool = False,
    overwrite: bool = False,
    log: Log = print,
) -> list[Fault]:
    """Segment one scan or every scan of a folder. Each gets its label on its own grid in its own file format, a picture, and a
    JSON file (written last) that tells how it came about. Scans already finished are skipped unless ``overwrite``.

    Args:
        method: how to fuse; None: as suits the model, ``OASIS-joint`` for a joint one and ``OASIS`` for another.

    Returns:
        A fault per scan that could not be segmented; the others are done all the same.
    """
    from oasis_monai.cases import find_cases

    if method is not None:
        check_methods([method])
    cases = find_cases(scans, "folder")
    if output.resolve() in {case.image.resolve().parent for case in cases}:  # X_segmentation there may be X's reference
        raise ConfigError("output", "a folder other than the scans' own", str(output), "give another output=DIR")
    settings, segmenter = load_model(model, device, batch)
    if method is None:
        method = "OASIS" if segmenter.estimator is None else "OASIS-joint"
    if method in JOINT_METHODS and segmenter.estimator is None:
        raise ConfigError("methods", "a method of this model, which is not a joint one", method, "add methods=OASIS")
    if not 1 <= n <= len(segmenter.library):
        raise ConfigError("n", f"1 to {len(segmenter.library)}, the model's atlases", n)
    embed = embedder(settings.features.name, settings.features.weights, resolve_device(device))
    store = PreprocessCache(None, settings.preprocessing, settings.data.label_values)
    identity = {"model": file_digest(model / "model.json"), "method": method, "n": n}
    faults: list[Fault] = []
    for case in cases:
        try:
            asked = {**identity, "image": store.content(case.image)}
            if not overwrite and _finished(output / f"{case.id}.json", asked):
                log(f"{case.id}: finished before, skipped")
                continue
            log(_segment_one(case, settings, segmenter, store, embed, output, method, n, save_probability, asked))
        except DataError as error:
            faults += [replace(f, case=case.id) for f in error.faults]
            log(f"{case.id}: failed")
    if segmenter.loa is not None and not faults:
        try:
            segmenter.loa.save()
        except OSError:  # a model folder that is read-only serves as well, it only learns nothing
            log(f"warning: {model} cannot be written; new LOA pairs are not kept")
    log(f"{len(cases) - len({f.case for f in faults})} of {len(cases)} scans segmented into {output}")
    return faults


def _finished(path: Path, asked: dict[str, Any]) -> bool:
    import json

    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        return bool(told["asked"] == asked and path.with_name(told["label"]).is_file())
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _ending(path: Path) -> str:
    return ".nii.gz" if path.name.endswith(".nii.gz") else path.suffix


def _segment_one(
    case: Case,
    settings: Settings,
    segmenter: Segmenter,
    store: PreprocessCache,
    embed: Embedder,
    output: Path,
    method: str,
    n: int,
    save_probability: bool,
    asked: dict[str, Any],
) -> str:
    """Segment one scan; -> a line about it."""
    from oasis_monai.overlays import overlay
    from oasis_monai.volumes import read_image, to_canonical, write_label, write_probability

    target = store.get(case.without_label())
    features = target_features(target, settings.spatial_dims, embed)
    results, chosen = segmenter(target, features, (method,), (n,))
    result = results[result_keys((method,), (n,))[0]]
    back = restore(result.probability, target.geometry, target.native, save_probability, case.id)
    ending = _ending(case.image)
    label_file = output / f"{case.id}_segmentation{ending}"
    write_label(label_file, back.label, back.geometry, settings.data.label_values)
    if back.probability is not None:
        write_probability(output / f"{case.id}_probability{ending}", back.probability, back.geometry)
    image, geometry = read_image(case.image)
    shown, spacing_mm = to_canonical(image[0].numpy(), geometry.affine)
    label, _ = to_canonical(back.label.numpy(), geometry.affine)
    overlay(
        output / f"{case.id}.png",
        shown,
        None,
        label,
        spacing_mm,
        f"{case.id}  {method}-{n}",
        labels=dict(enumerate(settings.data.labels, 1)),
    )
    voxel_ml = spacing_mm[0] * spacing_mm[1] * spacing_mm[2] / 1000
    volumes = {name: round(float((back.label == i).sum()) * voxel_ml, 3) for i, name in enumerate(settings.data.labels, 1)}
    library = segmenter.library
    atlases = [
        [
            {"case": library.cases[row], "slice": int(library.slices[row]), "distance": round(float(d), 6)}
            for row, d in zip(rows.tolist(), distances.tolist(), strict=True)
        ]
        for rows, distances in zip(chosen.indices, chosen.distances, strict=True)
    ]
    weights = None if result.weights is None else [[round(float(w), 6) for w in row] for row in result.weights]
    write_json(
        output / f"{case.id}.json",
        {"asked": asked, "case": case.id, "label": label_file.name, "volume_ml": volumes, "atlases": atlases, "weights": weights},
    )
    return f"{case.id}: " + ", ".join(f"{name} {ml:.1f} ml" for name, ml in volumes.items())
