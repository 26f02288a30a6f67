"""Learned fusion: how much each network and the aligned atlases count in the result of a joint model.

A joint model has up to three opinions of every voxel: those of its networks, and the vote of the aligned atlases. They are pooled
logarithmically (Genest and Zidek, Combining probability distributions, Statistical Science 1986): the score of a class is a
weighted sum of the networks' log probabilities and of the atlases' votes, and the softmax of the scores is the result. An atlas
votes for one class, so that its votes add up like evidence; a network's probability is one opinion, however sure it sounds. The
two or three weights are a logistic regression on scans that the networks have not seen: those that the folds of a
cross-validation test.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from oasis_monai.data.types import IGNORE
from oasis_monai.utils.files import locked, write_json

SMALLEST = 1e-6
"""Probabilities below it are taken for it: beyond, a network's logarithm says nothing about the structure any more."""
SURE = 0.98
"""A voxel on which all opinions name one class with more than this has nothing to teach."""
VOXELS, VALUES = 4000, 60_000  # of a case's sample; fewer voxels where there are many classes
FEWEST_PATIENTS = 4
"""Fewer patients fit no weights."""
RIDGE = 1e-4  # keeps the weights finite where the opinions are never wrong
LEARNED_FUSION_VERSION = 1


@dataclass(frozen=True)
class Sample:
    """Doubtful voxels of a labelled scan.

    Args:
        scores: (V + 1, C, m) float32, what each opinion adds to the score of a class: log probabilities of V networks, then the
            votes of the atlases.
        label: (m,) int64, the classes that are right.
    """

    scores: torch.Tensor
    label: torch.Tensor


@dataclass(frozen=True)
class LearnedFusion:
    """A learned fusion of networks and atlases.

    Args:
        networks: the weight of each network's log probability, 0 or more; the slice network first.
        atlases: the weight of the atlases' vote, 0 or more.
        patients: on how many it was fitted.

    Examples:
        >>> import torch
        >>> from oasis_monai.segmentation.learned_fusion import LearnedFusion
        >>> networks = torch.tensor([[[0.6], [0.4]], [[0.3], [0.7]]])  # two networks, two classes, one voxel
        >>> votes = torch.tensor([[0.0], [1.0]])
        >>> LearnedFusion((0.5, 0.5), 1.0, 20)(networks, votes)
        tensor([[0.2310],
                [0.7690]])
    """

    networks: tuple[float, ...]
    atlases: float
    patients: int

    def __call__(self, network_probabilities: torch.Tensor, votes: torch.Tensor) -> torch.Tensor:
        """(V, C, \\*S) probabilities and (C, \\*S) votes, each of sum 1 over C -> (C, \\*S) float32 probability.

        Raises:
            ValueError: it was fitted for another number of networks.
        """
        if len(network_probabilities) != len(self.networks):
            raise ValueError(f"expected the opinions of {len(self.networks)} networks, found {len(network_probabilities)}")
        total = self.atlases * votes.float()
        for weight, one in zip(self.networks, network_probabilities, strict=True):  # not all at once: classes may be many
            total += weight * _scores(one).to(total)
        return torch.softmax(total, 0)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "networks": [round(weight, 6) for weight in self.networks],
            "atlases": round(self.atlases, 6),
            "patients": self.patients,
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> LearnedFusion:
        """What :meth:`to_json` gave.

        Raises:
            KeyError, TypeError, ValueError: it is something else.
        """
        made = cls(tuple(float(weight) for weight in values["networks"]), float(values["atlases"]), int(values["patients"]))
        weights = (*made.networks, made.atlases)
        if not all(np.isfinite(weights)) or min(weights) < 0:
            raise ValueError(f"weights of 0 or more, found {weights}")
        return made


LearnedFusions = Mapping[int, LearnedFusion]
"""By the number of atlases that are fused."""


def _scores(probability: torch.Tensor) -> torch.Tensor:
    return probability.float().clamp_min(SMALLEST).log()


def draw_sample(opinions: torch.Tensor, label: torch.Tensor) -> Sample | None:
    """Doubtful voxels of a scan: where an opinion is unsure, or two name different classes. Always the same ones of a scan.

    Args:
        opinions: (V + 1, C, \\*S) probabilities: those of V networks, then the votes of the atlases.
        label: (\\*S) class indices; ignored voxels teach nothing.

    Returns:
        At most :data:`VOXELS` of them; None where there are none.
    """
    named = opinions.argmax(1)
    doubtful = (opinions.amax(1) < SURE).any(0) | (named != named[0]).any(0)
    places = torch.nonzero((doubtful & (label != IGNORE)).flatten())[:, 0]
    most = min(VOXELS, max(1, VALUES // opinions.shape[1]))
    if len(places) > most:
        order = torch.randperm(len(places), generator=torch.Generator().manual_seed(0))
        places = places[order[:most]]
    if not len(places):
        return None
    values = opinions.flatten(2)[..., places].float()
    scores = torch.cat([_scores(values[:-1]), values[-1:]])
    return Sample(scores, label.flatten()[places].long())


def fit_learned_fusion(samples: Sequence[tuple[str, Sample]]) -> LearnedFusion | None:
    """Fit the weights: a conditional logistic regression with weights of 0 or more, in which every patient counts the same.

    Args:
        samples: (patient, sample) of every case.

    Returns:
        None where there are fewer than :data:`FEWEST_PATIENTS`.
    """
    from scipy.optimize import minimize
    from scipy.special import log_softmax

    cases = Counter(patient for patient, _ in samples)
    if len(cases) < FEWEST_PATIENTS:
        return None
    # (opinions, C, M) of all, each voxel with its part of the mean
    scores = np.concatenate([one.scores.numpy() for _, one in samples], 2)
    label = np.concatenate([one.label.numpy() for _, one in samples])
    parts = np.concatenate([np.full(len(one.label), 1 / (len(one.label) * cases[p] * len(cases))) for p, one in samples])
    here = np.arange(len(label))
    right = (scores[:, label, here] * parts).sum(1)

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        log_probability = log_softmax(np.einsum("kcm,k->cm", scores, weights), 0)
        expected = np.einsum("kcm,cm->k", scores, np.exp(log_probability) * parts)
        value = -(parts * log_probability[label, here]).sum() + RIDGE * (weights**2).sum()
        return float(value), expected - right + 2 * RIDGE * weights

    networks = len(scores) - 1
    start = np.full(networks + 1, 1 / networks)
    found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=[(0, None)] * len(start))
    return LearnedFusion(tuple(float(weight) for weight in found.x[:-1]), float(found.x[-1]), len(cases))


def plain_fusions(fusions: LearnedFusions) -> dict[str, Any]:
    """Learned fusions as plain JSON values, which :func:`fusions_of` takes back."""
    return {str(n): one.to_json() for n, one in fusions.items()}


def fusions_of(record: Any) -> dict[int, LearnedFusion]:
    """Learned fusions from their plain JSON value.

    Raises:
        ValueError: it is none.
    """
    try:
        return {int(n): LearnedFusion.from_json(one) for n, one in record.items()}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"fusion: expected number of atlases -> weights, found {record!r}") from error


def read_fusions(path: Path) -> dict[int, LearnedFusion] | None:
    """Read what :func:`keep_fusions` wrote; None where it is absent or damaged (it can always be computed again)."""
    try:
        return fusions_of(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return None


def keep_fusions(path: Path, fusions: LearnedFusions) -> None:
    """Add fusions to those of earlier runs with other n; for the same n that of more patients stays, or the new one if they are
    equal."""
    with locked(path.parent):
        kept = read_fusions(path) or {}
        kept |= {n: new for n, new in fusions.items() if n not in kept or new.patients >= kept[n].patients}
        write_json(path, plain_fusions(kept))
