"""Self-training: what a model labels surely enough among scans without labels, it is trained on with.

The model segments every scan that nobody labelled. Those results on which its parts agree become *pseudo labels*, and the
networks are trained on with them beside the true labels. (Lee, Pseudo-Label, ICML workshop 2013; for cardiac MR: Bai et al.,
MICCAI 2017, doi 10.1007/978-3-319-66185-8_29; with changed images for the student: Xie et al., Noisy Student, CVPR 2020, arXiv
1911.04252.) It helps where a result is better than each network that it is made of: there are two networks, copies for test-time
augmentation, other views of doubtful scans, and the aligned atlases.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from oasis_monai.data.types import IGNORE
from oasis_monai.training.trainer import TrainingSettings
from oasis_monai.utils.config import require


@dataclass(frozen=True)
class SelfTraining:
    """How a model is trained on with scans that nobody labelled. The fields are the keys of ``conf/self_training``.

    The training before it, with labelled scans alone, has the budget of ``training``.

    Args:
        minutes, iterations: the budget of all rounds together, as those of ``training``; both None: as much.
        rounds: how often the scans are segmented and trained with, 1 or more; the rounds share the budget. A scan that the first
            networks do not recognise is often one for those of the next round.
        views: whether the scans are also seen in other views, ``none``, ``doubtful`` or ``all``
            (:mod:`oasis_monai.segmentation.views`). A search takes ten times as long.
        least_agreement: how much networks and atlases must agree on a scan, 0 to 1; others are left out of the round.
        most_uncertain: voxels that are more uncertain count in no loss, 0 to 1 (:mod:`oasis_monai.segmentation.uncertainty`); 1:
            all count.
        share: part of the draws that go to pseudo-labelled scans, above 0 and below 1.
        rate: learning rates relative to those of ``training`` and ``joint``, above 0.

    Raises:
        ConfigError: naming ``self_training.<key>``; of ``views`` by :class:`oasis_monai.settings.Settings`.

    Examples:
        >>> SelfTraining(rounds=2).budget(TrainingSettings(minutes=20.0)).minutes
        10.0
        >>> SelfTraining(minutes=12.0, rounds=1).budget(TrainingSettings(minutes=20.0)).minutes
        12.0
    """

    minutes: float | None = None
    iterations: int | None = None
    rounds: int = 2
    views: str = "none"
    least_agreement: float = 0.8
    most_uncertain: float = 1.0
    share: float = 0.5
    rate: float = 0.5

    def __post_init__(self) -> None:
        require(
            self,
            "self_training",
            ("minutes", self.minutes is None or self.minutes > 0, "a positive number of minutes, or null"),
            ("iterations", self.iterations is None or self.iterations > 0, "a positive number of steps, or null"),
            ("rounds", self.rounds > 0, "1 or more"),
            ("least_agreement", 0 <= self.least_agreement <= 1, "0 to 1"),
            ("most_uncertain", 0 <= self.most_uncertain <= 1, "0 to 1"),
            ("share", 0 < self.share < 1, "a part of the draws, above 0 and below 1"),
            ("rate", self.rate > 0, "a positive number"),
        )

    def budget(self, training: TrainingSettings) -> TrainingSettings:
        """The settings of the training with labels, with the budget of one round."""
        if self.minutes is not None or self.iterations is not None:
            training = replace(training, minutes=self.minutes, iterations=self.iterations)
        return training.part(1 / self.rounds)


def ignore_uncertain(label: torch.Tensor, uncertainty: torch.Tensor, most: float) -> torch.Tensor:
    """A pseudo label without what its model does not know.

    Args:
        label: class indices.
        uncertainty: of the same shape, 0 to 1.
        most: voxels above it become :data:`.IGNORE`.

    Examples:
        >>> ignore_uncertain(torch.tensor([0, 1, 1]), torch.tensor([0.1, 0.2, 0.95]), 0.9)
        tensor([  0,   1, 255])
    """
    return torch.where(uncertainty > most, IGNORE, label)
