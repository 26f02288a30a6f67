"""Train a model on with scans that nobody labelled: segment them, keep what is sure, train, and perhaps again.

The labelled cases stay the only atlases of the model that results: what is fused must be true. Pseudo-labelled scans are in the
training of all networks, in the pairs of the registration network too, where they share the draws with the true ones.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from oasis_monai.atlases.features import Embedder
from oasis_monai.atlases.library import AtlasLibrary, build_library
from oasis_monai.data.io import read_volume
from oasis_monai.data.types import Case, Preprocessed
from oasis_monai.segmentation.agreement import overlaps
from oasis_monai.segmentation.build import build_segmenter
from oasis_monai.segmentation.pipeline import CaseResult, Scan, check_choice, number_of_atlases, segment_case
from oasis_monai.segmentation.result import Key
from oasis_monai.segmentation.segmenter import Segmenter
from oasis_monai.segmentation.views import AS_IT_IS, AtlasVolumes, result_agreement
from oasis_monai.settings import Settings
from oasis_monai.training.self_training import SelfTraining, ignore_uncertain
from oasis_monai.training.tracking import Tracking
from oasis_monai.transforms.labels import ignored, structures
from oasis_monai.transforms.preprocessing import PreprocessCache
from oasis_monai.utils.errors import with_case_in_errors
from oasis_monai.utils.tensor_files import load_if_whole, save_tensors
from oasis_monai.workflows.fold_models import segmenter_options
from oasis_monai.workflows.further_training import networks_of, train_further

SELF_TRAINING_VERSION = 1
"""In the name of everything that comes of it; raise it when the same scans and settings would give another model."""
KEPT = ""
"""The reason not to keep a scan that is kept."""
Log = Callable[[str], None]


@dataclass(frozen=True)
class PseudoLabel:
    """What a model made of one scan without a label.

    Args:
        case: the scan.
        agreement: of networks and atlases, 0 to 1; a structure of a size that no labelled case comes near counts as 0.
        refused: why the scan is not trained with; empty where it is.
        view: the view of the scan that was segmented.
        ignored: part of the voxels of the working grid that are too uncertain to count.
    """

    case: str
    agreement: float
    refused: str
    view: str
    ignored: float


@dataclass(frozen=True)
class SelfTrained:
    """A segmenter that was trained on with scans without labels.

    Args:
        segmenter: with the labelled cases as atlases.
        rounds: what it made of every scan, round by round.
    """

    segmenter: Segmenter
    rounds: tuple[tuple[PseudoLabel, ...], ...]

    def to_json(self) -> list[dict[str, Any]]:
        """The rounds as plain values."""
        return [{"kept": sum(not one.refused for one in found), "scans": [plain(one) for one in found]} for found in self.rounds]


def plain(one: PseudoLabel) -> dict[str, Any]:
    """A pseudo label without its voxels, as plain values."""
    return {**asdict(one), "agreement": round(one.agreement, 4), "ignored": round(one.ignored, 6)}


def self_train(
    segmenter: Segmenter,
    settings: Settings,
    scans: Mapping[str, Case],
    embed: Embedder,
    folder: Path | None = None,
    device: str = "cpu",
    log: Log = lambda _: None,
    tracking: Tracking | None = None,
) -> SelfTrained:
    """Train a segmenter on with scans without labels; the segmenter itself stays as it is.

    A round segments every scan with the networks so far, and trains them on with the labelled cases and with those results whose
    parts agree. Where none does, the networks stay as they are.

    Args:
        segmenter: trained on labelled cases, which are its library.
        settings: those of its training; ``self_training`` says how.
        scans: checked (:mod:`.unlabelled_scans`), by ids that no labelled case has. Their labels, if any, are not read.
        embed: gives the features of scans.
        folder: where pseudo labels and resumable checkpoints go, a folder for each round; None keeps nothing.
        device: where it runs.
        log: gets a line for each round.
        tracking: where the trainings are recorded.

    Raises:
        OasisError: the loss is no longer finite, or memory has run out; the last checkpoint stays.
    """
    how, found = settings.self_training, list[tuple[PseudoLabel, ...]]()
    further = replace(settings, training=how.budget(settings.training))
    for number in range(1, how.rounds + 1):
        own = None if folder is None else folder / f"round{number}"
        options = segmenter_options(replace(settings, views=how.views))
        looks = build_segmenter(segmenter.library, networks_of(segmenter), options, device)
        labeller = Labeller(looks, settings, embed, own)
        made = {name: labeller.label(name, case) for name, case in scans.items()}
        told = tuple(one for one, _ in made.values())
        found.append(told)
        kept = [target for one, target in made.values() if not one.refused and target is not None]
        about = f"round {number} of {how.rounds}: {len(kept)} of {len(told)} unlabelled scans"
        log(f"{about} have an agreement of {how.least_agreement:g} or more and are trained with")
        if not kept:
            break
        people = {name: case.patient for name, case in scans.items()}
        new = build_library(kept, segmenter.spatial_dims, embed, segmenter.library.classes, people)
        watched = tracking and tracking.within(f"round{number}")
        segmenter = _trained_on(segmenter, further, new, own, device, watched)
    return SelfTrained(segmenter, tuple(found))


def _trained_on(
    segmenter: Segmenter,
    settings: Settings,
    new: AtlasLibrary,
    folder: Path | None,
    device: str,
    tracking: Tracking | None,
) -> Segmenter:
    """The segmenter with networks that were trained on with pseudo-labelled scans, and with the atlases that it has."""
    how, own = settings.self_training, segmenter.library
    made = train_further(segmenter, settings, new, folder, device, how.share, how.rate, tracking)
    library = made.library.subset(range(len(own)))  # with the new networks' estimates
    return build_segmenter(library, networks_of(made), segmenter_options(settings), device)


def read_pseudo_labels(folder: Path, number: int, scans: Sequence[str]) -> dict[str, tuple[PseudoLabel, torch.Tensor]]:
    """What a round left in the folder of a self-training, for those who know the truth.

    Args:
        number: of the round, from 1 on.
        scans: their ids.

    Returns:
        Scan -> what the round says of it, and its (1, x, y, z) label on the working grid, also where it was not trained with.
    """
    found = {}
    for name in scans:
        if (stored := load_if_whole(_label_file(folder / f"round{number}", name))) is not None:
            found[name] = PseudoLabel(**stored[1]), stored[0]["label"]
    return found


def _label_file(folder: Path, name: str) -> Path:
    """The file of a scan's pseudo label in the folder of a round; its id may hold any signs."""
    return folder / "labels" / f"{hashlib.sha256(name.encode()).hexdigest()[:20]}.safetensors"


@dataclass(frozen=True)
class Labeller:
    """Segments scans, and makes pseudo labels of what is sure.

    Args:
        folder: of the round, where they are kept, so that an interrupted command segments no scan again; None keeps nothing.
    """

    segmenter: Segmenter
    settings: Settings
    embed: Embedder
    folder: Path | None

    def label(self, name: str, case: Case) -> tuple[PseudoLabel, Preprocessed | None]:
        """What is known of a scan, and the scan on the working grid with its pseudo label where it is kept.

        The label is that of the scan as it is, round its centre, also where the structures were found in another view or on a
        moved grid: so the networks learn from it what they did not recognise before.
        """
        bare = replace(case.without_label(), id=name)
        path = None if self.folder is None else _label_file(self.folder, name)
        stored = None if path is None else load_if_whole(path)
        if stored is not None:
            told = PseudoLabel(**stored[1])
            return told, None if told.refused else _with_labels(self._target(bare), stored[0])
        with with_case_in_errors(name):
            told, target = self.make_label(bare)
        if path is not None:
            save_tensors(path, _labels_of(target), asdict(told))
        return told, None if told.refused else target

    @cached_property
    def _sizes(self) -> AtlasVolumes:
        """How large the labelled cases have their structures."""
        return AtlasVolumes.of(self.segmenter.library.labels, self.segmenter.library.classes, self.segmenter.library.structures)

    def _target(self, bare: Case) -> Preprocessed:
        settings = self.settings
        folder = Path(settings.cache) / "preprocessed"
        return PreprocessCache(folder, settings.preprocessing, settings.data.label_values).get(bare)

    def make_label(self, bare: Case) -> tuple[PseudoLabel, Preprocessed]:
        """Segment a scan, and say whether its result is trained with; the scan on the working grid has it as its label."""
        settings, how = self.settings, self.settings.self_training
        volume = read_volume(bare, settings.data.label_values)
        n = number_of_atlases(self.segmenter, None)
        method = check_choice(self.segmenter, None, n)
        found = segment_case(self.segmenter, Scan.of_volume(volume, settings.preprocessing), self.embed, (method,), (n,))
        (key,) = found.results
        label = found.restore()[key].label
        if how.most_uncertain < 1:
            label = ignore_uncertain(label, found.uncertainty(key), how.most_uncertain)
        target = settings.preprocessing.apply(replace(volume, label=label[None]))
        assert target.label is not None
        agreement = self._agreement(found, key)
        told = PseudoLabel(
            bare.id,
            agreement,
            _refused(agreement, target.label, how),
            found.view.name or AS_IT_IS,
            float(ignored(target.label).float().mean()),
        )
        return told, target

    def _agreement(self, found: CaseResult, key: Key) -> float:
        """How much the parts of a result agree: the mean of networks and atlases, then of the structures."""
        result = found.results[key]
        if result.agreement is None:
            return 0.0
        if self.segmenter.spatial_dims == 3:
            return result_agreement(result.agreement, result.probability, self._sizes)
        values = overlaps(result.agreement)
        return float(np.nanmean(values)) if not np.isnan(values).all() else 0.0


def _labels_of(target: Preprocessed) -> dict[str, torch.Tensor]:
    """The label of a scan on each grid that it has."""
    grids = {"label": target.label, "fine": None if target.fine is None else target.fine.label}
    return {name: label for name, label in grids.items() if label is not None}


def _with_labels(target: Preprocessed, labels: Mapping[str, torch.Tensor]) -> Preprocessed:
    """A scan with what :func:`_labels_of` made of it."""
    fine = None if target.fine is None else replace(target.fine, label=labels["fine"])
    return replace(target, label=labels["label"], fine=fine)


def _refused(agreement: float, label: torch.Tensor, how: SelfTraining) -> str:
    """Why a pseudo label is not trained with; empty where it is."""
    if not bool(structures(label).any()):
        return "nothing was found in the field of view"
    if agreement < how.least_agreement:
        return f"agreement below {how.least_agreement:g}"
    return KEPT
