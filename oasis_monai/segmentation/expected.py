"""What the training labels of a model show of each structure: is it usually there, how large, in one place or several.

The coarse pass of a model with boxes (:mod:`.boxes`) may miss a small structure that every patient has, and take something far
away for one that lies in one place. Both are known from the atlases' labels on the working grid.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from oasis_monai.atlases.library import AtlasLibrary
from oasis_monai.segmentation.anatomy import FEWEST
from oasis_monai.transforms.components import bounding_box, connected
from oasis_monai.transforms.labels import ignored

USUAL = 0.5
"""A structure in at least so many of the training labels is expected in a new scan."""


@dataclass(frozen=True)
class Expected:
    """What to expect of a scan, by class.

    Args:
        extents: of the structures that are usually there: the median of working voxels along x, y, z.
        one_place: those that lie in one place in every training label: pieces at most two working voxels apart.
    """

    extents: Mapping[int, tuple[int, int, int]] = field(default_factory=dict)
    one_place: frozenset[int] = frozenset()

    @classmethod
    def of(cls, library: AtlasLibrary) -> Expected:
        """Of volumes, for structures that :data:`.FEWEST` labels or more show.

        Of labels with voxels that nobody labelled nothing is said: what is absent there may be there.
        """
        labels = [label[0] for label in library.labels if not bool(ignored(label).any())]
        extents, one_place = dict[int, tuple[int, int, int]](), set[int]()
        for number in range(1, library.classes):
            masks = [(label == number).numpy() for label in labels]
            boxes = [(mask, box) for mask in masks if (box := bounding_box(mask)) is not None]
            if len(boxes) < FEWEST:
                continue
            if len(boxes) >= USUAL * len(labels):
                x, y, z = np.median([[s.stop - s.start for s in box] for _, box in boxes], 0).round().astype(int).tolist()
                extents[number] = (x, y, z)
            if all(joined(mask[box])[1] == 1 for mask, box in boxes):
                one_place.add(number)
        return cls(extents, frozenset(one_place))


def joined(mask: np.ndarray) -> tuple[np.ndarray, int]:
    """(x, y, z) bool -> its places as numbers 1, 2, ... (0 elsewhere), and how many: pieces at most two voxels apart are one.

    Examples:
        >>> import numpy as np
        >>> row = np.array([1, 0, 0, 1, 0, 0, 0, 1], bool)[:, None, None]
        >>> joined(row)[0][:, 0, 0].tolist()
        [1, 0, 0, 1, 0, 0, 0, 2]
    """
    from scipy.ndimage import binary_dilation

    numbered, count = connected(binary_dilation(np.pad(mask, 1), np.ones((3, 3, 3))))
    return numbered[1:-1, 1:-1, 1:-1] * mask, count
