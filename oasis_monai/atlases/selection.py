"""The n nearest of many feature vectors, exact, with bounded memory.

Distances between feature vectors f (query) and g (library), as we read the paper's "normalised Euclidean":

- ``l2``: ||f/||f|| - g/||g||||; a zero vector stays zero.
- ``zscore``: ||(f - g)/sigma||, sigma the standard deviation of each feature over the library (divided by N). A feature that is
  constant over the library adds the same to every distance and is left out.
- ``variance``: Var(f - g) / (2 (Var f + Var g)), in 0..1; two constant vectors are at distance 0.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from oasis_monai.utils.errors import ConfigError, DataError, Fault

DISTANCES = ("l2", "zscore", "variance")
QUERIES = 1024  # queries ranked at a time
DOUBTFUL = 512  # queries searched exhaustively at a time
STEP = 128  # library rows per step of that search
MARGIN = 32  # candidates kept beyond n before exact distances decide
Pair = tuple[torch.Tensor, torch.Tensor]
FAR = 3e38  # finite in float32: infinity marks a barred row
PAIRS = 1 << 21  # numbers gathered at a time for exact distances (16 MiB in float64)
STATISTICS = 4096  # library rows per step of the zscore statistics; fixed, so that results do not depend on ``chunk``


def nearest(
    queries: torch.Tensor,
    library: torch.Tensor,
    n: int,
    distance: str = "l2",
    exclude: Pair | None = None,
    chunk: int = 4096,
) -> Pair:
    """The n nearest library rows of every query, exact, with bounded memory.

    Float32 matrix products rank blocks of the library by a *lower bound* of the distance (product minus its rounding error);
    n + 32 candidates stay, whose distances are computed directly in float64. Where the last candidate's bound does not rule
    out the rows left behind (more near-duplicates than candidates), the query goes through the library again with bounds in
    float64. So the result is that of brute force in float64, for any ``chunk``.

    Cost, 1,000 queries against 100,000 x 1000: 3 to 5 s of CPU time; 9 s where every query goes through twice (5 % of the
    library one and the same vector, at the n-th distance of all). Memory beside the inputs: below 0.3 GiB in both cases; it
    grows with chunk * (F + 1024), not with Q * N.

    Args:
        queries: (Q, F) any float type.
        library: (N, F) any float type, also float16 or memory-mapped: converted block by block.
        n: atlases per query, at least 1.
        distance: ``l2``, ``zscore`` or ``variance`` (module docstring).
        exclude: (Q,) and (N,) int64 groups; a row of the query's group is never returned. Cases as groups keep a target's
            own case away, row numbers its own slice.
        chunk: library rows per block.

    Returns:
        indices (Q, n) int64 and distances (Q, n) float32, ascending; equal float32 distances in order of the index.

    Raises:
        ConfigError: n below 1 or above the rows available to some query; unknown distance; another number of features.
        DataError: NaN or infinity among the features.
    """
    if distance not in DISTANCES:
        raise ConfigError("distance", f"one of {', '.join(DISTANCES)}", distance)
    if chunk < 1:
        raise ConfigError("chunk", "at least 1", chunk)
    if queries.ndim != 2 or library.ndim != 2 or queries.shape[1] != library.shape[1]:
        found = f"{tuple(queries.shape)} queries, {tuple(library.shape)} library"
        raise ConfigError("features", "(Q, F) queries and an (N, F) library", found, "use the same features for both")
    _check_n(n, len(queries), len(library), exclude)
    metric = _Metric(distance, library)
    parts = []
    for start in range(0, len(queries), QUERIES):
        rows = slice(start, start + QUERIES)
        groups = None if exclude is None else (exclude[0][rows].cpu(), exclude[1].cpu())
        parts.append(_nearest_block(queries[rows], library, n, metric, groups, chunk))
    if not parts:
        return torch.empty(0, n, dtype=torch.int64), torch.empty(0, n)
    return torch.cat([i for i, _ in parts]), torch.cat([d for _, d in parts])


def _check_n(n: int, queries: int, rows: int, exclude: Pair | None) -> None:
    available = rows
    if exclude is not None:
        if exclude[0].shape != (queries,) or exclude[1].shape != (rows,):
            found = f"{tuple(exclude[0].shape)} and {tuple(exclude[1].shape)}"
            raise ConfigError("exclude", f"groups of shape ({queries},) and ({rows},)", found)
        groups, counts = exclude[1].cpu().unique(return_counts=True)
        if queries and rows:
            place = torch.searchsorted(groups, exclude[0].cpu()).clamp_max(len(groups) - 1)
            available = rows - int((counts[place] * (groups[place] == exclude[0].cpu())).max())
    if not 1 <= n <= available:
        raise ConfigError("n", f"1 to {available}, the atlases available to every target", n, "choose another n or add cases")


class _Metric:
    """Vectors prepared so that a distance is one matrix product away, and exact distances of chosen pairs."""

    def __init__(self, name: str, library: torch.Tensor) -> None:
        self.name = name
        self.features = library.shape[1]
        if name == "zscore":
            self.mean, self.scale = _statistics(library)

    def prepare(self, raw: torch.Tensor, what: str) -> torch.Tensor:
        """(..., F) raw features -> (..., F) float64 of which the distance is a function of products."""
        x = _finite(raw, what)
        if self.name == "zscore":
            return x.sub_(self.mean).mul_(self.scale)
        if self.name == "variance":
            mean = x.mean(-1, keepdim=True)
            norm = torch.linalg.vector_norm(x.sub_(mean), dim=-1, keepdim=True)
            x[(norm <= 1e-12 * self.features**0.5 * mean.abs())[..., 0]] = 0  # constant, but for the rounding of its mean
            return x
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        return x.div_(torch.where(norm > 0, norm, torch.ones_like(norm)))

    def error(self, dtype: torch.dtype) -> float:
        """Relative to the norms' product, a dot product of F terms is rounded by at most F and a few half units."""
        return (self.features + 16) * torch.finfo(dtype).eps / 2

    def bound(self, a: Pair, b: Pair) -> torch.Tensor:
        """:func:`_with_norms` of (Q, F) and (M, F) prepared -> (Q, M) lower bounds of :meth:`exact`'s result."""
        error = self.error(a[0].dtype)
        total = a[1][:, None] + b[1]
        product = a[0] @ b[0].T
        if self.name == "variance":  # two constant vectors: 0 / tiny, which would bound their distance 0 by 1/2
            bound = product.div_(total.clamp_min(torch.finfo(total.dtype).tiny)).neg_().add_(0.5 - error)
            return bound.masked_fill_(total == 0, -error)
        return total.mul_(1 - error).sub_(product, alpha=2)

    def exact(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """(P, F), (P, F) prepared -> (P,) float64 squared distances (``variance``: distances) by direct differences."""
        squared = torch.linalg.vector_norm(a - b, dim=-1).square_()
        if self.name != "variance":
            return squared
        total = torch.linalg.vector_norm(a, dim=-1).square_() + torch.linalg.vector_norm(b, dim=-1).square_()
        return torch.where(total > 0, squared / (2 * total).clamp_min(torch.finfo(torch.float64).tiny), 0.0)

    def distance(self, squared: torch.Tensor) -> torch.Tensor:
        return (squared if self.name == "variance" else squared.sqrt()).float()


def _finite(raw: torch.Tensor, what: str) -> torch.Tensor:
    """A float64 copy on the CPU, known to be finite."""
    x = raw.to("cpu", torch.float64, copy=True)
    if not bool(torch.isfinite(x.sum(-1)).all()):  # one pass: NaN and infinity survive a sum
        raise DataError(
            Fault("", f"features of the {what}", "finite numbers", "NaN or infinity", "check the images they came from")
        )
    return x


def _with_norms(x: torch.Tensor, dtype: torch.dtype) -> Pair:
    """(M, F) prepared -> itself and its rows' squared norms as ``dtype``."""
    return x.to(dtype), torch.linalg.vector_norm(x, dim=1).square_().to(dtype)


def _statistics(library: torch.Tensor) -> Pair:
    """Mean and 1/standard deviation per feature in float64; 0 for a feature that is constant but for rounding."""
    mean = torch.zeros(library.shape[1], dtype=torch.float64)
    squares = torch.zeros_like(mean)
    rows = 0
    for start in range(0, len(library), STATISTICS):  # Chan's merge of block means and sums of squares
        block = _finite(library[start : start + STATISTICS], "library")
        shift = block.mean(0) - mean
        squares += (block - block.mean(0)).square().sum(0) + shift.square() * (rows * len(block) / (rows + len(block)))
        mean += shift * (len(block) / (rows + len(block)))
        rows += len(block)
    sd = (squares / rows).sqrt()
    varies = sd > 1e-7 * mean.abs()
    return mean, torch.where(varies, 1 / torch.where(varies, sd, torch.ones_like(sd)), torch.zeros_like(sd))


def _nearest_block(
    queries: torch.Tensor,
    library: torch.Tensor,
    n: int,
    metric: _Metric,
    groups: Pair | None,
    chunk: int,
) -> Pair:
    """:func:`nearest` for at most QUERIES queries."""
    a = metric.prepare(queries, "target")
    keep = min(n + MARGIN, len(library))
    low = torch.full((len(a), keep), torch.inf)
    where = torch.full((len(a), keep), -1)
    for start, bounds in _bounds(a, library, metric, groups, chunk):
        rows = torch.arange(start, start + bounds.shape[1]).expand_as(bounds)
        low, order = torch.cat([low, bounds], 1).topk(keep, dim=1, largest=False)
        where = torch.cat([where, rows], 1).gather(1, order)
    valid = torch.isfinite(low)  # a barred row has an infinite bound
    squared = torch.full(low.shape, torch.inf, dtype=torch.float64)
    owner, place = valid.nonzero(as_tuple=True)
    squared[owner, place] = _pairs(a, library, metric, owner, where[owner, place])
    indices, chosen = _ranked(squared, where, n, metric)
    # rows left behind have bounds of at least the last one kept; the slack is for distances that round to equal float32
    unsure = (low[:, -1].double() <= chosen[:, -1] * (1 + 1e-6)) & (keep < len(library))
    doubtful = unsure.nonzero()[:, 0]
    for again in doubtful.split(DOUBTFUL) if len(doubtful) else ():  # split of nothing is one empty part
        some = None if groups is None else (groups[0][again], groups[1])
        limit = chosen[again, -1] * (1 + 1e-6)
        indices[again], chosen[again] = _exhaustive(a[again], library, n, metric, some, chunk, limit)
    return indices, metric.distance(chosen)


def _bounds(
    a: torch.Tensor, library: torch.Tensor, metric: _Metric, groups: Pair | None, chunk: int, dtype: torch.dtype = torch.float32
) -> Iterator[tuple[int, torch.Tensor]]:
    """Per block of the library: its first row and the (Q, M) bounds, infinite where the groups agree."""
    query = _with_norms(a, dtype)
    for start in range(0, len(library), chunk):
        block = metric.prepare(library[start : start + chunk], "library")
        bounds = metric.bound(query, _with_norms(block, dtype))
        bounds.nan_to_num_(nan=-FAR, posinf=-FAR, neginf=-FAR)  # overflow: nothing is known, so not ruled out
        if groups is not None:
            bounds.masked_fill_(groups[0][:, None] == groups[1][None, start : start + chunk], torch.inf)
        yield start, bounds


def _pairs(a: torch.Tensor, library: torch.Tensor, metric: _Metric, owner: torch.Tensor, row: torch.Tensor) -> torch.Tensor:
    """(P,) float64 exact squared distances of query ``owner`` and library ``row``, in bounded pieces."""
    step = max(1, PAIRS // metric.features)
    parts = [
        metric.exact(a[i], metric.prepare(library[r], "library")) for i, r in zip(owner.split(step), row.split(step), strict=True)
    ]
    return torch.cat(parts) if parts else torch.empty(0, dtype=torch.float64)


def _ranked(squared: torch.Tensor, where: torch.Tensor, n: int, metric: _Metric) -> Pair:
    """The n smallest per query by (float32 distance, row)."""
    order = where.argsort(dim=1, stable=True)
    order = order.gather(1, metric.distance(squared).gather(1, order).argsort(dim=1, stable=True))[:, :n]
    return where.gather(1, order), squared.gather(1, order)


def _exhaustive(
    a: torch.Tensor, library: torch.Tensor, n: int, metric: _Metric, groups: Pair | None, chunk: int, limit: torch.Tensor
) -> Pair:
    """The n nearest of all rows, given ``limit`` (Q,), an upper bound of the n-th squared distance.

    Bounds from float64 products are so close that, rows being visited in order, a row of the n-th distance already met can be
    told to come too late: of many copies (blank slices) only the first few have their distance computed.
    """
    best = torch.full((len(a), n), torch.inf, dtype=torch.float64)
    where = torch.full((len(a), n), torch.iinfo(torch.int64).max)
    highest = metric.distance(limit)[:, None]
    for start, bounds in _bounds(a, library, metric, groups, chunk, torch.float64):
        least = metric.distance(bounds.clamp_min_(0))
        for offset in range(0, bounds.shape[1], STEP):
            part = least[:, offset : offset + STEP]
            hopeful = (part <= highest) & (part < metric.distance(best[:, -1:]))
            if not bool(hopeful.any()):
                continue
            owner, place = hopeful.nonzero(as_tuple=True)
            squared = torch.full(part.shape, torch.inf, dtype=torch.float64)
            squared[owner, place] = _pairs(a, library, metric, owner, start + offset + place)
            rows = torch.arange(start + offset, start + offset + part.shape[1]).expand_as(part)
            where, best = _ranked(torch.cat([best, squared], 1), torch.cat([where, rows], 1), n, metric)
    return where, best
