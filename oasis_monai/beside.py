"""The two atlases that a joint model of slices is shown beside a slice: one for each of its neighbours in the scan.

Atlases chosen for fusion should look like the slice. Those shown beside it should say where the structure comes from and where
it goes, so each is the atlas most like the slice *below* or *above*; of a scan of which some slices are labelled, these are the
next labelled ones (found in nine of ten slices; in four of ten among the two nearest by ImageNet features).
"""

from __future__ import annotations

import torch

from oasis_monai.features import thumbnails
from oasis_monai.library import AtlasLibrary
from oasis_monai.nearest import Pair, nearest
from oasis_monai.networks.slice_unet import REACH
from oasis_monai.transforms.labels import foreground


def flanking(slices: torch.Tensor, library: AtlasLibrary, exclude: Pair | None = None) -> torch.Tensor:
    """(Q, 3, x, y) slices between their neighbours -> (Q, 2) rows of the library: the atlas most like the slice below, and that
    most like the slice above. Never the same: of the pairs of two, the one that is more like both.

    Args:
        exclude: as for :func:`oasis_monai.nearest.nearest`.

    Raises:
        ConfigError: fewer than two atlases are available to some slice.
    """
    known = library.thumbnails if library.thumbnails is not None else thumbnails(library.images)
    (below, near), (above, far) = (nearest(thumbnails(side), known, 2, "l2", exclude) for side in (slices[:, :1], slices[:, 2:]))
    rows = torch.stack([below[:, 0], above[:, 0]], 1)
    # correlation = 1 - distance^2 / 2
    give_way = near[:, 0].square() + far[:, 1].square() > near[:, 1].square() + far[:, 0].square()
    second = torch.where(give_way, below[:, 1], above[:, 1])
    clash = rows[:, 0] == rows[:, 1]
    rows[clash & give_way, 0], rows[clash & ~give_way, 1] = second[clash & give_way], second[clash & ~give_way]
    return rows


def beside_atlases(
    slices: torch.Tensor, library: AtlasLibrary, rows: torch.Tensor, shape: torch.Tensor | None = None
) -> torch.Tensor:
    """Put atlases beside slices.

    Args:
        slices: (B, 3, x, y), each between its neighbours.
        rows: (B, k) of the library: the atlases of each.
        shape: (B, C-1, x, y) signed distance to where each structure is expected (slice folds: :mod:`oasis_monai.between`).

    Returns:
        (B, 3 + k * C, x, y): per atlas its image, then its structures, unaligned; with a shape C-1 channels more,
        ``1 + distance / REACH``, so that 0, what lies beyond an image, means far outside.
    """
    parts = [slices]
    for column in rows.unbind(1):
        parts += [library.images[column].float(), foreground(library.labels[column], library.classes)]
    return torch.cat(parts if shape is None else [*parts, 1 + shape / REACH], 1)
