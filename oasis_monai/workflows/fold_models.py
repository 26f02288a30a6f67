"""Train or load the networks of each fold: those of the atlas methods, with their library, and the comparison networks."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from oasis_monai.atlases.library import AtlasLibrary
from oasis_monai.data.folds import Fold, Split
from oasis_monai.networks.registration import SpatialTransformModel
from oasis_monai.networks.segmentation import Predictor
from oasis_monai.networks.slice_unet import WINDOW, SliceUNet, SliceUNetEnsemble
from oasis_monai.segmentation.alignment import FieldCache
from oasis_monai.segmentation.build import SegmenterOptions, TrainedNetworks, build_estimator, build_segmenter
from oasis_monai.segmentation.estimate import ESTIMATE_VERSION, estimate_atlases
from oasis_monai.segmentation.learned_fusion import LEARNED_FUSION_VERSION, LearnedFusions
from oasis_monai.segmentation.methods import needs_alignment
from oasis_monai.segmentation.segmenter import Segmenter
from oasis_monai.segmentation.views import VIEWS_VERSION, ViewSettings
from oasis_monai.settings import Settings
from oasis_monai.training.boxes import train_box_network
from oasis_monai.training.registration import train_registration
from oasis_monai.training.segmentation import train_segmentation, train_volume_network
from oasis_monai.training.slices import train_slice_network
from oasis_monai.training.tracking import Tracking, Watch
from oasis_monai.training.trainer import TRAINING_VERSION, FitContext
from oasis_monai.utils.device import resolve_device
from oasis_monai.utils.files import digest, file_digest, locked
from oasis_monai.utils.tensor_files import load_if_whole, save_tensors
from oasis_monai.workflows.cross_fit import cross_fitted
from oasis_monai.workflows.prepare import Dataset, Log
from oasis_monai.workflows.training_record import fold_name, held_out

SEEDS_APART = 10**7  # between the folds of two seeds; members of an ensemble are 1000 apart
REGISTRATION = "registration network"
SLICES = "slice network"
VOLUME = "volume network"
BOXES = "box network"
_IDENTITIES = {REGISTRATION: "registration", SLICES: "slices", VOLUME: "volume", BOXES: "boxes"}
_FILES = {REGISTRATION: "stm.safetensors", SLICES: "estimator.safetensors", BOXES: "estimator.safetensors"}


@dataclass(frozen=True)
class FoldModel:
    """The trained models of one fold.

    Args:
        segmenter: the fold's atlases with their networks, for the methods that fuse atlases; None without such methods.
        predictors: the segmentation networks, by method name.
    """

    segmenter: Segmenter | None
    predictors: dict[str, Predictor]


def segmenter_options(settings: Settings, same_case: bool = False) -> SegmenterOptions:
    """The options of a segmenter from the settings.

    Args:
        same_case: under slice folds an atlas may be aligned to another slice of its own case.
    """
    return SegmenterOptions(
        distance=settings.features.distance,
        temperature=settings.temperature,
        batch=settings.align_batch,
        joint=settings.joint,
        network=settings.network,
        same_case=same_case,
        views=ViewSettings(settings.views, settings.views_below, settings.preprocessing.slice_axis),
        window=None if settings.preprocessing.fine_factor is None else WINDOW,
        box_factor=settings.preprocessing.box_factor,
    )


def with_embedding(identity: dict[str, Any], embedding: str) -> dict[str, Any]:
    """An identity in which the features' weights are named by what they are, not by where their file lies."""
    features = identity.get("features")
    return {**identity, "features": {**features, "weights": embedding}} if features else identity


def ignore_identity(settings: Settings) -> dict[str, Any]:
    """What a name holds of ``data.ignore`` and ``data.structures``: nothing where they are not set."""
    ignored = {} if settings.data.ignore is None else {"ignore": settings.data.ignore}
    return ignored | ({"structures": [list(own) for own in settings.data.members]} if settings.data.structures else {})


def views_identity(settings: Settings) -> dict[str, Any]:
    """What a name holds of the search for views: nothing where none is looked for."""
    searches = settings.views != "none" and settings.uses_joint_model and settings.has_volume_network
    return {"views": [settings.views, settings.views_below, VIEWS_VERSION]} if searches else {}


def fusion_identity(settings: Settings) -> dict[str, Any]:
    """What a name holds of learned fusion: nothing where nothing is learned."""
    return {"fusion": LEARNED_FUSION_VERSION} if settings.uses_joint_model and settings.joint.fusion == "learned" else {}


def self_training_identity(settings: Settings, dataset: Dataset) -> dict[str, Any]:
    """What a name holds of scans without labels: nothing where there are none."""
    if settings.unlabelled is None:
        return {}
    return {"self_training": asdict(settings.self_training), "scans without labels": sorted(dataset.pool_scans.values())}


def calibration_path(settings: Settings, dataset: Dataset) -> Path:
    """Where a cross-validation leaves what predicts the Dice of scans, for the model that ``train`` fits with the same settings
    on the same cases. Methods, n, folds and corruptions are not in the name: see
    :func:`oasis_monai.evaluation.quality_tables.keep_calibrations`."""
    identity = {
        **with_embedding(settings.identity(), dataset.embedding),
        "content": dataset.identity(case for case in dataset.cases if dataset.cases[case].split != "test"),  # as train takes them
        "labels": list(settings.data.label_values),
        "version": TRAINING_VERSION,
        "selection": {**asdict(settings.features), "weights": dataset.embedding},
        "temperature": settings.temperature,
        "estimate": ESTIMATE_VERSION,
    }
    identity |= {k: getattr(settings.joint, k) for k in ("estimate_weight", "tta_flip", "tta_views", "recentre")}
    identity |= ignore_identity(settings) | views_identity(settings) | fusion_identity(settings)
    identity |= self_training_identity(settings, dataset)
    return Path(settings.cache) / "calibrations" / f"{digest(identity)}.json"


def is_for_new_scans(settings: Settings, split: Split) -> bool:
    """Whether what a cross-validation has found out counts for new scans, so that a model of the same settings gets it: of all
    folds and all training patients. Not of slice folds, and not of centres left out: a new scan mostly comes from a centre of the
    model's."""
    return split.honest and split.protocol != "centre" and settings.fold is None and settings.train_cases is None


def training_seed(seed: int, fold: int) -> int:
    """The seed of a fold's networks: fold i of one seed never starts as fold j of another."""
    return seed * SEEDS_APART + fold


@dataclass(frozen=True)
class FoldModels:
    """Trains or loads the networks of a fold and wires the fold's library to them.

    Models lie under ``cache/models``, each in a folder named by all that decides its weights (never n, nor anything of
    inference), so that every run that needs one finds it.

    Args:
        tracking: where trainings are recorded; None: nowhere.
    """

    settings: Settings
    dataset: Dataset
    split: Split
    cache: Path
    log: Log
    tracking: Tracking | None = None
    _digests: dict[int, str] = field(default_factory=dict, repr=False, compare=False)

    def library(self, fold: Fold) -> AtlasLibrary:
        """The training atlases of a fold: a copy that holds nothing of its test images (but that a slice knows the images, never
        the labels, of the slices beside it: a scan is always whole)."""
        whole = self.dataset.library
        numbers = (whole.slices.clamp_min(0)).tolist()  # a volume is image 0 of its case
        keep = [i for i, case in enumerate(whole.cases) if numbers[i] in set(fold.train.get(case, ()))]
        known = [i for i in keep if i not in self.dataset.unlabelled]
        return whole.subset(torch.tensor(known))

    def atlases(self, fold: Fold) -> AtlasLibrary:
        """Those of :meth:`library` that can be aligned and fused: not the cases of volumes without any structure."""
        library = self.library(fold)
        keep = [row for row, case in enumerate(library.cases) if case not in self.dataset.no_atlases]
        return library if len(keep) == len(library) else library.subset(keep)

    def needed(self) -> list[str]:
        """The networks that the settings' methods need: :data:`REGISTRATION` (a joint one brings those of its estimate along),
        those of the estimate alone, and names of segmentation networks."""
        settings, own = self.settings, list[str]()
        if needs_alignment(settings.methods):
            own = [REGISTRATION]
        elif settings.uses_joint_model:
            own = self._of_the_estimate()
        if settings.uses_joint_model and settings.has_box_network:
            own = [*own, BOXES]
        return [*own, *settings.networks]

    def folder(self, fold: Fold, network: str = REGISTRATION) -> Path:
        """Where a network of the fold lives."""
        content = self.dataset.identity(fold.train)
        own = with_embedding(self.settings.identity(_IDENTITIES.get(network, network)), self.dataset.embedding)
        if self.settings.training.minutes is not None:  # minutes of a GPU are other steps than those of a CPU
            own["device"] = resolve_device(self.settings.device).partition(":")[0]
        identity: dict[str, Any] = {**own, "split": fold.key(), "content": content, "version": TRAINING_VERSION}
        identity |= {"labels": list(self.settings.data.label_values), "protocol": self.split.protocol}
        identity |= ignore_identity(self.settings)
        return self.cache / "models" / digest(identity)

    def trained(self, fold: Fold, network: str = REGISTRATION) -> bool:
        """Whether a network of the fold is finished."""
        stored = load_if_whole(self._file(fold, network))
        return stored is not None and bool(stored[1].get("done"))

    def missing(self, fold: Fold) -> list[str]:
        """The networks the methods need that are not trained yet."""
        return [name for name in self.needed() if not self.trained(fold, name)]

    def trainings(self, folds: Sequence[Fold]) -> list[tuple[str, Path]]:
        """The name and the folder of every network that the methods need."""
        count = len(self.split.folds)
        return [(fold_name(fold, count, name), self.folder(fold, name)) for fold in folds for name in self.needed()]

    def train(self, fold: Fold, network: str = REGISTRATION, library: AtlasLibrary | None = None) -> nn.Module:
        """A network of the fold, trained if need be."""
        settings = self.settings
        if library is None:
            library = self.atlases(fold) if network == REGISTRATION else self.library(fold)
        if network == REGISTRATION and settings.registration.joint:
            # before the lock: waiting for another lock while holding one could deadlock
            library = self.with_estimates(fold, library)
        start = self.train(fold, SLICES, library) if network == BOXES else None  # before the lock, as above
        context = self._context(fold, network, library)
        assert context.folder is not None
        with locked(context.folder):  # jobs of one sweep may want the same fold at the same time
            if network == SLICES:
                return train_slice_network(context, settings.joint)
            if network == VOLUME:
                return train_volume_network(context, settings.joint, settings.network)
            if start is not None:
                return train_box_network(context, self.dataset.parts, settings.joint, start)
            if network != REGISTRATION:
                return train_segmentation(context, network, settings.compared_network())
            if not self.trained(fold):  # results of a model that was lost or damaged are no longer valid
                (context.folder / "loa.safetensors").unlink(missing_ok=True)
                shutil.rmtree(context.folder / "fields", ignore_errors=True)
                if settings.registration.joint and settings.joint.cross_fit_budget:
                    whole = replace(context, training=settings.training)
                    context = replace(context, library=cross_fitted(whole, settings.joint))
            return train_registration(context, settings.registration, settings.loss)

    def segmenter(self, fold: Fold) -> Segmenter:
        """The fold's library with the networks that the methods need."""
        settings, library = self.settings, self.atlases(fold)
        slices, volume, registration, loa_of = None, None, None, ""
        if settings.uses_joint_model:
            slices, volume = self._estimate_networks(fold)
        if needs_alignment(settings.methods):
            if settings.uses_joint_model:
                library = self.with_estimates(fold, library)
            trained = self.train(fold, REGISTRATION, library)
            assert isinstance(trained, SpatialTransformModel)
            registration = trained
            if settings.registration.joint:  # its pairs depend on the estimates
                loa_of = self._estimate_digest(fold)
        return build_segmenter(
            library,
            TrainedNetworks(registration, slices, volume, self._box_network(fold)),
            self._options(),
            resolve_device(settings.device),
            self.folder(fold) / "loa.safetensors",
            loa_of,
        )

    def with_estimates(self, fold: Fold, library: AtlasLibrary) -> AtlasLibrary:
        """The fold's library with what the joint model's segmentation networks make of its atlases, computed once."""
        if library.estimates is not None:
            return library
        joint = self.settings.joint
        networks = TrainedNetworks(None, *self._estimate_networks(fold))
        path = self.folder(fold, SLICES) / f"estimates-{digest([joint.tta_flip])}.safetensors"
        stored = load_if_whole(path)
        of = self._estimate_digest(fold)
        if stored is None or stored[1].get("networks") != of:
            estimator = build_estimator(networks, self._options(), resolve_device(self.settings.device))
            assert estimator is not None
            estimates = estimate_atlases(estimator, library, joint.atlases, self._same_case)
            save_tensors(path, {"estimates": estimates}, {"networks": of})
            return library.with_estimates(estimates)
        return library.with_estimates(stored[0]["estimates"])

    def model(self, fold: Fold) -> FoldModel:
        """All that the settings' methods need, trained if need be."""
        settings = self.settings
        device = resolve_device(settings.device)
        windows = settings.align_batch if settings.preprocessing.fine_factor is None else 1  # those of a fine grid are large
        predictors = {
            name: Predictor(self.train(fold, name), name, settings.compared_network(), device, windows)
            for name in settings.networks
        }
        return FoldModel(self.segmenter(fold) if settings.atlas_methods else None, predictors)

    def fields(self, fold: Fold, case: str) -> FieldCache | None:
        """Where the fields onto a test case of the fold are kept: the fold's model, the scan, and how atlases are chosen. None
        where no method aligns."""
        if REGISTRATION not in self.needed():
            return None
        features, joint = self.settings.features, self.settings.joint
        parts: list[Any] = [features.name, self.dataset.embedding, features.distance, fold.index, self.dataset.scans[case]]
        if self.settings.uses_joint_model:  # its fields depend on the estimate
            parts += [self._estimate_digest(fold), joint.tta_flip, joint.tta_views, ESTIMATE_VERSION]
        return FieldCache(self.folder(fold) / "fields", digest(parts))

    @property
    def _same_case(self) -> bool:
        """Under slice folds an atlas may be aligned to another slice of its own case."""
        return not self.split.honest

    def _options(self) -> SegmenterOptions:
        return segmenter_options(self.settings, self._same_case)

    def _of_the_estimate(self) -> list[str]:
        return [SLICES, *([VOLUME] if self.settings.has_volume_network else [])]

    def _estimate_networks(self, fold: Fold) -> tuple[SliceUNet | SliceUNetEnsemble, nn.Module | None]:
        """The joint model's segmentation networks of the fold, trained if need be on all of its cases."""
        library = self.library(fold)
        slices = self.train(fold, SLICES, library)
        assert isinstance(slices, SliceUNet | SliceUNetEnsemble)
        return slices, self.train(fold, VOLUME, library) if self.settings.has_volume_network else None

    def _box_network(self, fold: Fold) -> SliceUNet | None:
        if not (self.settings.uses_joint_model and self.settings.has_box_network):
            return None
        trained = self.train(fold, BOXES)
        assert isinstance(trained, SliceUNet)
        return trained

    def _file(self, fold: Fold, network: str) -> Path:
        return self.folder(fold, network) / _FILES.get(network, "network.safetensors")

    def _estimate_digest(self, fold: Fold) -> str:
        """What a fold's estimate is made by, read once: its trained networks do not change any more."""
        if fold.index not in self._digests:
            self._digests[fold.index] = file_digest(*(self._file(fold, name) for name in self._of_the_estimate()))
        return self._digests[fold.index]

    def _context(self, fold: Fold, network: str, library: AtlasLibrary) -> FitContext:
        settings = self.settings
        training = settings.training
        if network == REGISTRATION and settings.registration.joint:
            training = training.part(settings.joint.budgets(settings.spatial_dims)[2])
        folds = len(self.split.folds)
        spacings = [self.dataset.targets[case].geometry.spacing_mm[: settings.spatial_dims] for case in library.cases]
        return FitContext(
            library,
            torch.tensor(spacings, dtype=torch.float64),
            training,
            training_seed(settings.seed, fold.index),
            self.folder(fold, network),
            resolve_device(settings.device),
            settings.augmentation,
            settings.progress,
            name=network
            if folds == 1
            else f"fold {fold.index + 1} of {folds}{f' ({fold.name})' if fold.name else ''}, {network}",
            same_case=self._same_case,
            distance=settings.features.distance,
            anywhere=settings.anywhere,
            estimate_dice=settings.joint.estimate_dice,
            watch=self._watch(fold, network),
        )

    def _watch(self, fold: Fold, network: str) -> Watch | None:
        """What is shown of a training: its loss, and how well it does on some test cases, by which nothing is chosen."""
        if self.tracking is None:
            return None
        settings, dataset = self.settings, self.dataset
        tracking = self.tracking.within(fold_name(fold, len(self.split.folds), network))
        watch = Watch(tracking, lambda: held_out(dataset.library, fold, settings.seed, dataset.unlabelled))
        joint = network == REGISTRATION and settings.registration.joint
        return watch.changed(lambda images: self._estimated(fold, images)) if joint else watch

    def _estimated(self, fold: Fold, images: AtlasLibrary) -> AtlasLibrary | None:
        """Held-out volumes with the estimates that a joint registration network needs; slices have none here."""
        if self.settings.spatial_dims == 2:
            return None
        networks = TrainedNetworks(None, *self._estimate_networks(fold))
        estimator = build_estimator(networks, self._options(), resolve_device(self.settings.device))
        assert estimator is not None
        return images.with_estimates(estimate_atlases(estimator, images))


class OpenModels:
    """The models of a run's folds, put together when they are first asked for.

    Every case belongs to one fold, so one model is held at a time, with one copy of the atlases. Only under slice folds slices of
    one case belong to several folds: there all models stay.

    Args:
        models: trains or loads them.

    Attributes:
        fusions: the learned fusions of a fold; none at first.
    """

    def __init__(self, models: FoldModels) -> None:
        self._models = models
        self.fusions: Callable[[Fold], LearnedFusions] = lambda _: {}
        self._open: dict[int, FoldModel] = {}

    def __getitem__(self, fold: Fold) -> FoldModel:
        if fold.index not in self._open:
            if self._models.split.honest:
                self.close()
            self._open[fold.index] = self._models.model(fold)
        model = self._open[fold.index]
        if model.segmenter is not None:
            model.segmenter.fusions = self.fusions(fold)
        return model

    def close(self) -> None:
        """Write the LOA pairs that were computed with the open models, and let these go."""
        for model in self._open.values():
            if model.segmenter is not None and model.segmenter.loa is not None:
                model.segmenter.loa.save()
        self._open.clear()
