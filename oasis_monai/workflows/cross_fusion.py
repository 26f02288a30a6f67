"""Learned fusion in a cross-validation: each fold fuses by weights that the scans of the other folds have taught.

Every case is segmented once more before it is scored, by the models of the folds that test it and in the place where its grid is;
its label is compared with what came of it. The weights for a fold come from the cases of the others. (The networks of those folds
have seen the labels of this one; three numbers of a sum over all other patients hold nothing of them. Post-processing and the
predicted Dice are decided likewise.)
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from oasis_monai.atlases.features import Embedder
from oasis_monai.data.folds import Fold, Split
from oasis_monai.segmentation.learned_fusion import (
    LearnedFusion,
    Sample,
    draw_sample,
    fit_learned_fusion,
    keep_fusions,
    plain_fusions,
)
from oasis_monai.segmentation.pipeline import Scan, segment_case
from oasis_monai.settings import Settings
from oasis_monai.utils.errors import with_case_in_errors
from oasis_monai.utils.files import write_json
from oasis_monai.workflows.fold_models import FoldModels, OpenModels, calibration_path, is_for_new_scans
from oasis_monai.workflows.prepare import Dataset, Log

FILE = "fusion.json"
"""In the folder of a cross-validation: the weights of networks and atlases for a new scan, and those that each fold used."""
METHOD = "OASIS-joint"


def fusion_path(settings: Settings, dataset: Dataset) -> Path:
    """Where a cross-validation leaves its weights for the model that ``train`` fits with the same settings on the same cases:
    beside the calibrations, under their name."""
    return Path(settings.cache) / "fusion" / calibration_path(settings, dataset).name


@dataclass
class CrossFusion:
    """The learned fusion of one cross-validation.

    Args:
        folds: those that are scored. One alone has no others to learn from.
    """

    settings: Settings
    dataset: Dataset
    split: Split
    folds: Sequence[Fold]
    _samples: dict[int, list[tuple[int, str, Sample]]] = field(default_factory=lambda: defaultdict(list), repr=False)
    _fusions: dict[int, dict[int, LearnedFusion]] = field(default_factory=dict, repr=False)

    @property
    def learns(self) -> bool:
        """Whether each fold can learn from others, and a method of the run fuses networks and atlases."""
        settings = self.settings
        return settings.joint.fusion == "learned" and METHOD in settings.methods and len(self.folds) > 1

    def learn(self, trained: OpenModels, models: FoldModels, embed: Embedder) -> None:
        """Segment every case by the folds that test it, and keep what its doubtful voxels teach."""
        from tqdm import tqdm

        if not self.learns:
            return
        tests = [(fold, case) for fold in self.folds for case in sorted(fold.test)]
        for fold, case in tqdm(tests, desc="learn fusion", disable=not self.settings.progress, leave=False):
            with with_case_in_errors(case):
                self._add(fold, case, trained, models, embed)

    def _add(self, fold: Fold, case: str, trained: OpenModels, models: FoldModels, embed: Embedder) -> None:
        segmenter, dataset, slices = trained[fold].segmenter, self.dataset, self.settings.spatial_dims == 2
        assert segmenter is not None
        only = torch.tensor(fold.test[case]) if slices else None
        patient = dataset.patients[case]
        found = segment_case(
            segmenter,
            Scan(dataset.targets[case], None, dataset.library.features[dataset.rows(case)]),
            embed,
            (METHOD,),
            self.settings.n,
            models.fields(fold, case),
            patient if self.split.honest else None,
            only,
            keep_opinions=True,
        )
        label = dataset.library.finest_label_of(case)
        for (_, n), result in found.results.items():
            opinions = result.opinions
            assert opinions is not None
            sample = draw_sample(opinions, label) if only is None else draw_sample(opinions[..., only], label[..., only])
            if sample is not None:
                self._samples[n].append((fold.index, patient, sample))

    def fusions(self, without: Fold | None = None) -> dict[int, LearnedFusion]:
        """The weights by the number of atlases: of all folds, or for one fold of all others."""
        index = -1 if without is None else without.index
        if index not in self._fusions:
            made = {
                n: fit_learned_fusion([(p, one) for fold, p, one in held if fold != index]) for n, held in self._samples.items()
            }
            self._fusions[index] = {n: learned for n, learned in made.items() if learned is not None}
        return self._fusions[index]

    def write(self, run_dir: Path, log: Log) -> None:
        """Write :data:`FILE` into a run's folder, and for a model of the same settings what all folds teach; nothing where
        nothing was learned."""
        (run_dir / FILE).unlink(missing_ok=True)
        whole = self.fusions()
        if not whole:
            return
        by_fold = {str(fold.index): plain_fusions(self.fusions(fold)) for fold in self.folds}
        write_json(run_dir / FILE, {"method": METHOD, "weights": plain_fusions(whole), "in_folds": by_fold})
        if is_for_new_scans(self.settings, self.split):
            keep_fusions(fusion_path(self.settings, self.dataset), whole)
        for n, learned in sorted(whole.items()):
            weights = ", ".join(f"{name} {weight:.2f}" for name, weight in self._named(learned))
            log(f"fusion of {METHOD}-{n}: weights {weights} ({learned.patients} patients)")

    def _named(self, learned: LearnedFusion) -> list[tuple[str, float]]:
        names = ("slice network", "volume network")
        return [*zip(names, learned.networks, strict=False), ("atlases", learned.atlases)]
