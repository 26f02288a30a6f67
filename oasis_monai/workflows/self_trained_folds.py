"""The models of folds that are trained on with scans without labels (:mod:`.self_training`), beside those that are not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from oasis_monai.atlases.features import embedder
from oasis_monai.atlases.library import AtlasLibrary
from oasis_monai.data.folds import Fold, Split
from oasis_monai.data.types import Case
from oasis_monai.segmentation.alignment import FieldCache
from oasis_monai.segmentation.build import build_segmenter
from oasis_monai.segmentation.estimate import ESTIMATE_VERSION
from oasis_monai.segmentation.segmenter import Segmenter
from oasis_monai.settings import REST, Settings
from oasis_monai.training.tracking import Tracking
from oasis_monai.utils.device import resolve_device
from oasis_monai.utils.files import digest, file_digest, locked, write_json
from oasis_monai.workflows.fold_models import (
    REGISTRATION,
    SLICES,
    VOLUME,
    FoldModels,
    segmenter_options,
    views_identity,
)
from oasis_monai.workflows.further_training import FURTHER_VERSION
from oasis_monai.workflows.model_folder import LIBRARY_PART, LOA_FILE, read_networks, write_parts
from oasis_monai.workflows.prepare import Dataset, Log
from oasis_monai.workflows.self_training import SELF_TRAINING_VERSION, self_train
from oasis_monai.workflows.training_record import fold_name
from oasis_monai.workflows.unlabelled_scans import rest_of

SELF_TRAINED = "self-training"
"""What is trained after a fold's networks: all of them, on from where they are."""
RECORD = "self_training.json"
"""Written last: what it names is whole."""


def models_for(
    settings: Settings, dataset: Dataset, split: Split, cache: Path, log: Log, tracking: Tracking | None = None
) -> FoldModels:
    """The models of folds that the settings ask for.

    Args:
        tracking: where their trainings are recorded.
    """
    kind = FoldModels if settings.unlabelled is None else SelfTrainedFolds
    return kind(settings, dataset, split, cache, log, tracking)


def unlabelled_record(models: FoldModels, folds: Sequence[Fold]) -> dict[str, Any]:
    """What the record of a run says of scans without labels: the budget of the training with them, and fold by fold which were
    there and which were kept. Nothing where there were none."""
    if not isinstance(models, SelfTrainedFolds) or SELF_TRAINED not in models.needed():
        return {}
    how, rounds = models.settings.self_training, {fold.index: models.told(fold) for fold in folds}
    one_round = how.budget(models.settings.training)
    budget = {key: None if (own := getattr(one_round, key)) is None else how.rounds * own for key in ("iterations", "minutes")}
    told = {str(index): found["rounds"] for index, found in rounds.items() if found is not None}
    return {"unlabelled": {"training": budget, "folds": told}}


@dataclass(frozen=True)
class SelfTrainedFolds(FoldModels):
    """Models of folds that are trained on labelled cases first, exactly as :class:`.FoldModels`, and then on with scans without
    labels. Comparison networks stay as they are."""

    @property
    def base(self) -> FoldModels:
        """The models before, with all networks that pseudo labels need."""
        method = "OASIS-joint" if self.settings.registration.joint else "OASIS"
        settings = replace(self.settings, unlabelled=None, methods=(method,))
        return FoldModels(settings, self.dataset, self.split, self.cache, self.log, self.tracking)

    def scans(self, fold: Fold) -> dict[str, Case]:
        """The scans without labels that a fold's model is trained on with."""
        if self.settings.unlabelled == REST:
            return rest_of(self.settings, self.dataset, fold)
        return dict(self.dataset.pool)

    def needed(self) -> list[str]:
        networks = list(self.settings.networks)
        if super().needed() == networks:  # no method uses what is trained on
            return networks
        return [*self.base.needed(), SELF_TRAINED, *networks]

    def folder(self, fold: Fold, network: str = REGISTRATION) -> Path:
        if network != SELF_TRAINED:
            return super().folder(fold, network)
        settings, scans = self.settings, self.scans(fold)
        contents = self.dataset.pool_scans if settings.unlabelled != REST else self.dataset.scans
        joint = settings.joint if settings.registration.joint else None
        identity = {
            "before": [super(SelfTrainedFolds, self).folder(fold, name).name for name in self._before()],
            "scans": {case: contents[case] for case in scans},
            "patients": {case: scan.patient for case, scan in scans.items() if scan.patient != case},
            "self_training": asdict(settings.self_training),
            "training": [settings.training.minutes, settings.training.iterations],
            "selection": settings.features.distance,
            "inference": None if joint is None else [joint.estimate_weight, joint.tta_flip, joint.tta_views, joint.recentre],
            "version": [FURTHER_VERSION, SELF_TRAINING_VERSION, ESTIMATE_VERSION],
            **views_identity(replace(settings, methods=self.base.settings.methods, views=settings.self_training.views)),
        }
        return self.cache / "models" / digest(identity)

    def trained(self, fold: Fold, network: str = REGISTRATION) -> bool:
        if network != SELF_TRAINED:
            return super().trained(fold, network)
        return self.told(fold) is not None

    def told(self, fold: Fold) -> dict[str, Any] | None:
        """What a finished self-training left to say: its rounds and parts; None where it is not finished or damaged."""
        folder = self.folder(fold, SELF_TRAINED)
        try:
            told: dict[str, Any] = json.loads((folder / RECORD).read_text(encoding="utf-8"))
            whole = all(file_digest(folder / name) == checksum for name, checksum in told["checksums"].items())
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return told if whole else None

    def train(self, fold: Fold, network: str = REGISTRATION, library: AtlasLibrary | None = None) -> nn.Module:
        if network != SELF_TRAINED:
            return super().train(fold, network, library)
        made = self.segmenter(fold).aligner
        assert made is not None
        return made.model

    def segmenter(self, fold: Fold) -> Segmenter:
        if SELF_TRAINED not in self.needed():
            return super().segmenter(fold)
        before = self.base.segmenter(fold)  # outside the lock: it waits for locks of its own
        folder, device = self.folder(fold, SELF_TRAINED), resolve_device(self.settings.device)
        with locked(folder):
            told = self.told(fold)
            if told is None:
                told = self._train(fold, before, folder, device)
        library = AtlasLibrary.load(folder / LIBRARY_PART, check=False)  # its digest was just compared
        networks = read_networks(self.settings, library, lambda name: folder / name)
        options = segmenter_options(self.settings, self._same_case)
        return build_segmenter(library, networks, options, device, folder / LOA_FILE, told["checksums"][LIBRARY_PART])

    def fields(self, fold: Fold, case: str) -> FieldCache | None:
        found = super().fields(fold, case)
        return None if found is None else replace(found, folder=self.folder(fold, SELF_TRAINED) / "fields")

    def _before(self) -> list[str]:
        joint = self.settings.registration.joint
        return [REGISTRATION, *([SLICES] if joint else []), *([VOLUME] if joint and self.settings.has_volume_network else [])]

    def _train(self, fold: Fold, before: Segmenter, folder: Path, device: str) -> dict[str, Any]:
        """Train on, and keep what results; -> what there is to say."""
        features = self.settings.features
        embed = embedder(features.name, features.weights, device)
        shutil.rmtree(folder / "fields", ignore_errors=True)  # of a model that was lost
        which = f"fold {fold.index + 1} of {len(self.split.folds)}, " if len(self.split.folds) > 1 else ""
        tracking = self.tracking and self.tracking.within(fold_name(fold, len(self.split.folds), SELF_TRAINED))
        scans = self.scans(fold)
        made = self_train(before, self.settings, scans, embed, folder, device, lambda line: self.log(which + line), tracking)
        told = {"rounds": made.to_json(), "checksums": write_parts(folder, made.segmenter)}
        write_json(folder / RECORD, told)
        return told
