"""A search by an index gives exact distances, nothing that was excluded, and all but never misses a neighbour."""

import pytest
import torch

from oasis_monai.atlases import neighbours
from oasis_monai.atlases.neighbours import Neighbours
from oasis_monai.atlases.selection import nearest
from oasis_monai.utils.errors import ConfigError, DataError

ROWS, FEATURES, N = 3000, 40, 6


@pytest.fixture(scope="module")
def library():
    """Features that vary along eight directions and a little beyond, on very different scales."""
    random = torch.Generator().manual_seed(0)
    features = torch.randn(ROWS, 8, generator=random) @ torch.randn(8, FEATURES, generator=random)
    features += 0.1 * torch.randn(ROWS, FEATURES, generator=random)
    return features * torch.logspace(-1, 1, FEATURES) + 3


@pytest.fixture
def indexed(monkeypatch):
    pytest.importorskip("faiss", reason="needs pip install .[faiss]")
    monkeypatch.setattr(neighbours, "CELLS", 20)
    monkeypatch.setattr(neighbours, "VISITED", 12)
    monkeypatch.setattr(neighbours, "SAMPLE", 1000)
    monkeypatch.setattr(neighbours, "AXES", 12)


@pytest.mark.parametrize("distance", ["l2", "zscore"])
def test_an_index_finds_the_neighbours_of_an_exact_search(indexed, library, distance):
    queries = library[::50] + 0.01
    search = Neighbours(library.half(), distance, exact=100)
    assert not search.is_exact
    rows, gaps = search.nearest(queries, N)
    expected, theirs = nearest(queries, library.half(), N, distance)
    found = torch.tensor([len(set(a.tolist()) & set(b.tolist())) for a, b in zip(rows, expected, strict=True)])
    assert float(found.float().mean()) / N > 0.99
    whole = found == N
    assert torch.equal(rows[whole], expected[whole])
    assert torch.equal(gaps[whole], theirs[whole])  # to the bit: of the whole library's scale, not of the candidates'


def test_what_is_excluded_is_never_found(indexed, library):
    queries, own = library[:4], torch.tensor([1, 2, 1, 7])
    groups = torch.arange(ROWS) % 3
    search = Neighbours(library, exact=100)
    rows, _ = search.nearest(queries, N, (own, groups))
    assert not (groups[rows] == own[:, None]).any()
    assert rows[3, 0] == 3  # nothing is of group 7, so the row itself is there
    expected, _ = nearest(queries, library, N, exclude=(own, groups))
    assert torch.equal(rows[:, 0], expected[:, 0])


def test_where_an_index_finds_too_few_all_rows_are_searched(indexed, library, monkeypatch):
    """Of the lists beside a query all rows are excluded."""
    monkeypatch.setattr(neighbours, "VISITED", 1)
    near = nearest(library[:1], library, ROWS - 10)[0][0]
    groups = torch.zeros(ROWS, dtype=torch.int64)
    groups[near] = 1
    asked = library[:1], 4, (torch.tensor([1]), groups)
    rows, gaps = Neighbours(library, exact=100).nearest(*asked)
    expected, theirs = nearest(asked[0], library, 4, exclude=asked[2])
    assert torch.equal(rows, expected)
    assert torch.equal(gaps, theirs)


def test_equal_distances_are_in_order_of_the_rows(indexed, library):
    doubled = torch.cat([library, library[:100]])
    rows, gaps = Neighbours(doubled, exact=100).nearest(library[:100], 2)
    assert torch.equal(rows, torch.stack([torch.arange(100), ROWS + torch.arange(100)], 1))
    assert float(gaps.max()) == 0


def test_small_libraries_and_variance_are_searched_exactly(library, monkeypatch):
    assert Neighbours(library).is_exact
    assert Neighbours(library, "variance", exact=1).is_exact
    monkeypatch.setattr(neighbours, "find_spec", lambda _: None)
    alone = Neighbours(library, exact=1)  # without faiss
    assert alone.is_exact
    assert all(map(torch.equal, alone.nearest(library[:5], N), nearest(library[:5], library, N)))


def test_arguments_and_features_are_checked_as_in_an_exact_search(indexed, library):
    search = Neighbours(library, exact=100)
    with pytest.raises(ConfigError, match="n: expected 1 to 3000"):
        search.nearest(library[:1], ROWS + 1)
    with pytest.raises(ConfigError, match="features"):
        search.nearest(library[:1, :5], 1)
    with pytest.raises(DataError, match="features of the target: expected finite"):
        search.nearest(torch.full((1, FEATURES), torch.nan), 1)
    assert search.nearest(library[:0], 2)[0].shape == (0, 2)
