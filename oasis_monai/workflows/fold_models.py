"""The trained networks of each fold: the STM with its atlas library, and the segmentation networks it is compared with."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from oasis_monai.atlases.library import AtlasLibrary
from oasis_monai.data.folds import Fold, Split
from oasis_monai.networks.segmentation import Predictor
from oasis_monai.networks.slice_unet import JointSettings, SliceUNet, SliceUNetEnsemble
from oasis_monai.segmentation.alignment import Aligner, FieldCache
from oasis_monai.segmentation.estimate import Estimator, estimate_atlases, make_volume_network
from oasis_monai.segmentation.loa import LoaTable
from oasis_monai.segmentation.methods import needs_alignment
from oasis_monai.segmentation.segmenter import Segmenter
from oasis_monai.settings import Settings
from oasis_monai.training.registration import train_registration
from oasis_monai.training.segmentation import train_network, train_volume_network
from oasis_monai.training.slices import train_slice_network
from oasis_monai.training.trainer import TRAINING_VERSION
from oasis_monai.utils.device import resolve_device
from oasis_monai.utils.files import digest, file_digest, locked
from oasis_monai.utils.processes import side_by_side
from oasis_monai.utils.tensor_files import load_if_whole, save_tensors
from oasis_monai.workflows.prepare import Dataset, Log

STM = "STM"
ESTIMATOR = "estimator"
VOLUME = "volume network"
_FILES = {STM: "stm.safetensors", ESTIMATOR: "estimator.safetensors"}


@dataclass(frozen=True)
class FoldModel:
    """What segments the test images of one fold.

    Args:
        segmenter: the fold's atlases with their STM, for the methods that fuse atlases; None without such methods.
        predictors: the segmentation networks, by method name.
    """

    segmenter: Segmenter | None
    predictors: dict[str, Predictor]


def voice(settings: JointSettings) -> dict[str, Any]:
    """What a :class:`oasis_monai.segmentation.segmenter.Segmenter` has to know of its estimator."""
    return {"estimator_atlases": settings.atlases, "vote": settings.estimate_weight, "recentre": settings.recentre}


def calibration_path(settings: Settings, content: Mapping[str, str]) -> Path:
    """Where a cross-validation leaves what predicts the DSC of scans, for the model that ``train`` fits with the same settings
    on the same cases. Methods, n, folds and corruptions are not in the name: see
    :func:`oasis_monai.evaluation.quality_tables.keep_calibrations`."""
    identity = {
        **settings.identity(),
        "content": dict(content),
        "labels": list(settings.data.label_values),
        "version": TRAINING_VERSION,
        "selection": asdict(settings.features),
        "temperature": settings.temperature,
    }
    identity |= {k: getattr(settings.joint, k) for k in ("estimate_weight", "tta_flip", "tta_views", "recentre")}
    return Path(settings.cache) / "calibrations" / f"{digest(identity)}.json"


class FoldModels:
    """Trains or loads the networks of a fold and wires the fold's library to them.

    Models lie under ``cache/models``, each in a folder named by all that decides its weights (never n, nor anything of
    inference), so that every run that needs one finds it.
    """

    def __init__(self, settings: Settings, prepared: Dataset, split: Split, cache: Path, log: Log) -> None:
        self.settings, self.prepared, self.split, self.cache, self.log = settings, prepared, split, cache, log

    def library(self, fold: Fold) -> AtlasLibrary:
        """The training atlases of a fold: a copy that holds nothing of its test images (but that a slice knows the images, never
        the labels, of the slices beside it: a scan is always whole)."""
        whole = self.prepared.library
        numbers = (whole.slices.clamp_min(0)).tolist()  # a volume is image 0 of its case
        keep = [i for i, case in enumerate(whole.cases) if numbers[i] in set(fold.train.get(case, ()))]
        return whole.subset(torch.tensor(keep))

    def needed(self) -> list[str]:
        """The networks that the settings' methods need: :data:`STM` (a joint one brings those of its estimator along),
        those of the estimator alone, and names of segmentation networks."""
        own = (
            [STM]
            if needs_alignment(self.settings.methods)
            else self._of_the_estimator()
            if self.settings.uses_joint_model
            else []
        )
        return [*own, *self.settings.networks]

    def _of_the_estimator(self) -> list[str]:
        return [ESTIMATOR, *([VOLUME] if self.settings.joint.budgets(self.settings.spatial_dims)[1] else [])]

    def folder(self, fold: Fold, network: str = STM) -> Path:
        """Where a network of the fold lives."""
        content = {case: self.prepared.content[case] for case in fold.train}
        identities = {STM: self.settings.identity, ESTIMATOR: self.settings.slice_network_identity}
        identities[VOLUME] = self.settings.volume_identity
        own = identities[network]() if network in identities else self.settings.network_identity(network)
        identity: dict[str, Any] = {**own, "split": fold.key(), "content": content, "version": TRAINING_VERSION}
        identity |= {"labels": list(self.settings.data.label_values), "protocol": self.split.protocol}
        return self.cache / "models" / digest(identity)

    def trained(self, fold: Fold, network: str = STM) -> bool:
        """Whether a network of the fold is finished."""
        stored = load_if_whole(self.folder(fold, network) / _FILES.get(network, "network.safetensors"))
        return stored is not None and bool(stored[1].get("done"))

    def missing(self, fold: Fold) -> list[str]:
        """The networks the methods need that are not trained yet."""
        return [name for name in self.needed() if not self.trained(fold, name)]

    def train(self, fold: Fold, network: str = STM, library: AtlasLibrary | None = None) -> nn.Module:
        """A network of the fold, trained if need be."""
        settings, library = self.settings, library or self.library(fold)
        folder, device = self.folder(fold, network), resolve_device(settings.device)
        seed, name = settings.seed + fold.index, f"{network} fold {fold.index}"
        training = settings.training
        if network == STM and settings.registration.joint:  # before the lock: a lock held in wait for another's may never open
            library = self.with_estimates(fold, library)
            training = training.part(settings.joint.budgets(settings.spatial_dims)[2])
        with locked(folder):  # jobs of one sweep may want the same fold at the same time
            how = (settings.training, seed, folder, device, settings.augmentation, settings.progress, name)
            if network == ESTIMATOR:
                return train_slice_network(library, self._spacing_mm(), settings.joint, *how, same_case=self._same_case)
            if network == VOLUME:
                return train_volume_network(library, self._spacing_mm(), settings.joint, settings.network, *how)
            if network != STM:
                return train_network(network, library, self._spacing_mm(), settings.network, *how)
            if not self.trained(fold):  # what was aligned by a model that was lost or damaged is no longer true
                (folder / "loa.safetensors").unlink(missing_ok=True)
                shutil.rmtree(folder / "fields", ignore_errors=True)
            return train_registration(
                library,
                self._spacing_mm(),
                settings.registration,
                settings.loss,
                training,
                seed,
                folder,
                device,
                same_case=self._same_case,
                distance=settings.features.distance,
                augmentation=settings.augmentation,
                progress=settings.progress,
                name=name,
            )

    def segmenter(self, fold: Fold) -> Segmenter:
        """The fold's library with its STM (where a method aligns)."""
        settings, library = self.settings, self.library(fold)
        more: dict[str, Any] = {"distance": settings.features.distance, "temperature": settings.temperature}
        more["same_case"] = self._same_case
        if settings.uses_joint_model:
            more |= {"estimator": self.estimator(fold, library)} | voice(settings.joint)
        if not needs_alignment(settings.methods):
            return Segmenter(library, **more)
        if settings.uses_joint_model:
            library = self.with_estimates(fold, library)
        aligner = Aligner(self.train(fold, STM, library), resolve_device(settings.device), settings.align_batch)
        of = file_digest(*self._estimator_files(fold)) if settings.registration.joint else ""  # a joint STM sees estimates
        loa = LoaTable(library, aligner, self.folder(fold) / "loa.safetensors", of)
        return Segmenter(library, aligner, loa, **more)

    def estimator(self, fold: Fold, library: AtlasLibrary) -> Estimator:
        """The joint model's segmentation network of the fold, trained if need be."""
        network = self.train(fold, ESTIMATOR, library)
        assert isinstance(network, SliceUNet | SliceUNetEnsemble)
        settings, device = self.settings, resolve_device(self.settings.device)
        whole = None
        if VOLUME in self._of_the_estimator():
            whole = make_volume_network(
                self.train(fold, VOLUME, library), settings.joint.volume_network, settings.network, device
            )
        how = settings.joint
        return Estimator(network, how.tta_flip, device, whole=whole, stride=how.volume_stride, tta_views=how.tta_views)

    def _estimator_files(self, fold: Fold) -> list[Path]:
        return [self.folder(fold, name) / _FILES.get(name, "network.safetensors") for name in self._of_the_estimator()]

    def with_estimates(self, fold: Fold, library: AtlasLibrary) -> AtlasLibrary:
        """The fold's library with what the joint model's segmentation network makes of its atlases, computed once."""
        if library.estimates is not None:
            return library
        settings = self.settings
        network = self.estimator(fold, library)
        path = self.folder(fold, ESTIMATOR) / f"estimates-{digest([settings.joint.tta_flip])}.safetensors"
        stored = load_if_whole(path)
        of = file_digest(*self._estimator_files(fold))
        if stored is None or stored[1].get("networks") != of:
            made = estimate_atlases(network, library, settings.joint.atlases, self._same_case)
            save_tensors(path, {"estimates": made}, {"networks": of})
            return library.with_estimates(made)
        return library.with_estimates(stored[0]["estimates"])

    @property
    def _same_case(self) -> bool:
        """Under slice folds an atlas may meet another slice of its own case."""
        return self.split.protocol == "slice"

    def model(self, fold: Fold) -> FoldModel:
        """All that the settings' methods need, trained if need be."""
        settings = self.settings
        predictors = {}
        for name in settings.networks:
            network = self.train(fold, name)
            device = resolve_device(settings.device)
            predictors[name] = Predictor(network, name, settings.network, device, settings.align_batch)
        return FoldModel(self.segmenter(fold) if settings.atlas_methods else None, predictors)

    def fields(self, fold: Fold, case: str) -> FieldCache:
        """Where the fields onto a test case of the fold are kept: the fold's model, the scan, and how atlases are chosen."""
        features = self.settings.features
        parts: list[Any] = [features.name, features.weights, features.distance, fold.index, self.prepared.scans[case]]
        if self.settings.uses_joint_model:  # its fields depend on the estimate
            parts += [
                file_digest(*self._estimator_files(fold)),
                self.settings.joint.tta_flip,
                self.settings.joint.tta_views,
            ]
        chosen = digest(parts)
        return FieldCache(self.folder(fold) / "fields", chosen)

    def _spacing_mm(self) -> tuple[float, ...]:
        geometry = next(iter(self.prepared.targets.values())).geometry
        return geometry.spacing_mm[: self.settings.spatial_dims]


def train_ahead(jobs: Sequence[tuple[Settings, int, str]], workers: int, log: Log) -> None:
    """Train networks side by side: (settings, fold, network) each; they are found in the cache afterwards."""
    named = [(f"{network}, fold {fold}", (_quiet(settings), fold, network)) for settings, fold, network in jobs]
    side_by_side(_train, named, workers, lambda name, minutes: log(f"trained {name}: {minutes:.1f} min"))


def _quiet(settings: Settings) -> dict[str, Any]:
    return settings.to_json() | {"progress": False, "workers": 1}


def _train(plain: dict[str, Any], fold: int, network: str) -> None:
    from oasis_monai.settings import build
    from oasis_monai.workflows.fold_models import FoldModels
    from oasis_monai.workflows.prepare import find_and_check, prepare, split_of

    settings = build(plain)
    cache = Path(settings.cache)
    prepared = prepare(settings, find_and_check(settings, cache, _silent), cache, _silent)
    split = split_of(settings, prepared)
    FoldModels(settings, prepared, split, cache, _silent).train(split.folds[fold], network)


def _silent(_: str) -> None:
    """The parent logs."""
