"""Search for atlases in libraries of any size: exactly, or in very large ones among candidates that an index finds.

Up to :data:`EXACT` rows, and wherever the library faiss is not installed, this is :func:`oasis_monai.atlases.selection.nearest`:
every distance is computed. Above, an index of faiss (inverted lists of vectors in eight bits; Jégou et al. 2011, doi
10.1109/TPAMI.2010.57; Johnson et al., arXiv 1702.08734) finds :data:`CANDIDATES` rows for each query by the features' first
principal axes. Their distances are then computed as in the exact search, from the features themselves. So distances and their
order are always exact, and what the index may miss is a neighbour: docs/howto/scale.md states how often.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from typing import Any

import torch

from oasis_monai.atlases.selection import Pair, check_search, mean_and_deviation, nearest, pair_distances, prepare_features

EXACT = 100_000
"""Most rows that are always searched exactly: about a second of one core for ten slices of 1000 features."""
CANDIDATES = 200
"""Least rows of which the distances are computed for each query."""
AXES = 64
"""Principal axes that the index holds; ImageNet features have little variance beyond."""
CELLS, VISITED = 1024, 64
"""Inverted lists of the index, and those nearest to a query that are searched."""
SAMPLE = 50_000
"""Rows from which axes and cells are computed."""
BLOCK = 4096


@dataclass(frozen=True, eq=False)
class Neighbours:
    """The features of a library, to be searched. The index is made at the first search, and held in memory: 72 bytes a row.

    Args:
        features: (N, F) any float type, also memory-mapped.
        distance: of :func:`oasis_monai.atlases.selection.nearest`. ``variance`` is always searched exactly: it is no distance
            between points.
        exact: most rows that are searched exactly.
    """

    features: torch.Tensor
    distance: str = "l2"
    exact: int = EXACT

    @property
    def is_exact(self) -> bool:
        """Whether every distance is computed."""
        return len(self.features) <= self.exact or self.distance == "variance" or find_spec("faiss") is None

    def nearest(self, queries: torch.Tensor, n: int, exclude: Pair | None = None) -> Pair:
        """Arguments, result and errors of :func:`oasis_monai.atlases.selection.nearest`."""
        if self.is_exact:
            return nearest(queries, self.features, n, self.distance, exclude)
        check_search(queries, self.features, n, self.distance, exclude)
        indices, distances = torch.empty(len(queries), n, dtype=torch.int64), torch.empty(len(queries), n)
        groups = torch.zeros(len(queries)) if exclude is None else exclude[0].cpu()
        for group in groups.unique():
            own = (groups == group).nonzero()[:, 0]
            left_out = None if exclude is None else (exclude[1].cpu() == group).nonzero()[:, 0]
            found = self._candidates(queries[own], n, left_out)
            for query, rows in zip(own.tolist(), found, strict=True):
                indices[query], distances[query] = self._among(queries[query][None], rows, n, exclude, query)
        return indices, distances

    def _among(self, query: torch.Tensor, rows: torch.Tensor, n: int, exclude: Pair | None, number: int) -> Pair:
        """The n nearest of some rows (ascending), or of all where these are too few."""
        if len(rows) < n:
            one = None if exclude is None else (exclude[0][number : number + 1], exclude[1])
            found, gaps = nearest(query, self.features, n, self.distance, one)
            return found[0], gaps[0]
        a, b = (
            prepare_features(x, what, self.distance, self._scale)
            for x, what in ((query, "target"), (self.features[rows], "library"))
        )
        gaps, order = pair_distances(a, b, self.distance)[0].sort(stable=True)
        return rows[order[:n]], gaps[:n]

    def _candidates(self, queries: torch.Tensor, n: int, left_out: torch.Tensor | None) -> list[torch.Tensor]:
        """Rows for each query, ascending, none of them among those left out."""
        import faiss

        chosen: dict[str, Any] = {}
        if left_out is not None and len(left_out):
            unwanted = faiss.IDSelectorBatch(left_out.numpy())  # held: the selector has only its address
            chosen["sel"] = faiss.IDSelectorNot(unwanted)
        parameters: Any = faiss.SearchParametersIVF  # its types are those of C++
        wanted = parameters(nprobe=min(VISITED, self._index.nlist), **chosen)
        _, found = self._index.search(self._projected(queries, "target").numpy(), max(CANDIDATES, 10 * n), params=wanted)
        return [rows[rows >= 0].sort().values for rows in torch.from_numpy(found)]

    @cached_property
    def _scale(self) -> Pair | None:
        return mean_and_deviation(self.features, BLOCK) if self.distance == "zscore" else None

    @cached_property
    def _axes(self) -> Pair:
        """The mean (F,) and the first principal axes (F, A) of a sample."""
        sample = prepare_features(self.features[self._sampled()], "library", self.distance, self._scale)
        mean = sample.mean(0)
        sample -= mean
        _, axes = torch.linalg.eigh(sample.T @ sample)  # ascending
        return mean, axes[:, -AXES:]

    def _sampled(self) -> torch.Tensor:
        rows = len(self.features)
        return torch.arange(rows) if rows <= SAMPLE else torch.linspace(0, rows - 1, SAMPLE, dtype=torch.float64).long()

    def _projected(self, rows: torch.Tensor, what: str) -> torch.Tensor:
        """(R, F) features -> (R, A) float32 places along the axes."""
        mean, axes = self._axes
        return ((prepare_features(rows, what, self.distance, self._scale) - mean) @ axes).float().contiguous()

    @cached_property
    def _index(self) -> Any:
        import faiss

        sample = self._projected(self.features[self._sampled()], "library")
        cells = min(CELLS, max(1, len(sample) // 39))  # faiss wants that many rows a cell
        index = faiss.index_factory(sample.shape[1], f"IVF{cells},SQ8")
        index.train(sample.numpy())
        for block in self.features.split(BLOCK):
            index.add(self._projected(block, "library").numpy())
        return index
