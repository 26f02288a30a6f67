"""Selection against brute force in float64, and the library's own rules."""

import math

import numpy as np
import pytest
import torch

from oasis_monai.atlases import selection as module
from oasis_monai.atlases.features import embedder, volume_features
from oasis_monai.atlases.library import AtlasLibrary, build_library
from oasis_monai.atlases.selection import DISTANCES, nearest
from oasis_monai.data.types import Geometry, Preprocessed
from oasis_monai.segmentation.segmenter import Segmenter
from oasis_monai.utils.errors import ConfigError, DataError


def seeded(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def one_distance(f, g, library, distance):
    """method.md's formulas for one pair, in numpy's float64 and in no clever form."""
    f, g, library = (np.asarray(x, np.float64) for x in (f, g, library))
    if distance == "l2":
        unit = [x / np.linalg.norm(x) if np.linalg.norm(x) > 0 else x for x in (f, g)]
        return np.linalg.norm(unit[0] - unit[1])
    if distance == "zscore":
        sd = library.std(0)
        keep = library.max(0) > library.min(0)
        return np.linalg.norm((f - g)[keep] / sd[keep])
    spread = np.var(f) + np.var(g)
    return 0.0 if max(np.ptp(f), np.ptp(g)) == 0 else 0.5 * np.var(f - g) / spread


def brute_force(queries, library, n, distance, exclude=None):
    indices, distances = [], []
    for q, query in enumerate(queries):
        row = [
            (float(np.float32(one_distance(query, g, library, distance))), i)
            for i, g in enumerate(library)
            if exclude is None or exclude[0][q] != exclude[1][i]
        ]
        best = sorted(row)[:n]
        indices.append([i for _, i in best])
        distances.append([d for d, _ in best])
    return torch.tensor(indices), torch.tensor(distances)


def agree(found, wanted):
    assert found[0].dtype == torch.int64
    assert found[1].dtype == torch.float32
    assert found[0].tolist() == wanted[0].tolist()
    torch.testing.assert_close(found[1], wanted[1], rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("chunk", [1, 7, 4096])
def test_nearest_is_brute_force_for_any_chunk(distance, chunk):
    library, queries = seeded(0, 90, 20) * 3 + 5, seeded(1, 6, 20) * 3 + 5
    groups = torch.arange(6) % 3, torch.arange(90) // 30
    for exclude in (None, groups):
        agree(nearest(queries, library, 9, distance, exclude, chunk), brute_force(queries, library, 9, distance, exclude))


@pytest.mark.parametrize("distance", DISTANCES)
def test_a_small_query_block_changes_nothing(distance, monkeypatch):
    library, queries = seeded(0, 60, 12), seeded(1, 11, 12)
    groups = torch.arange(11) % 4, torch.arange(60) % 4
    whole = nearest(queries, library, 5, distance, groups)
    monkeypatch.setattr(module, "QUERIES", 3)
    agree(nearest(queries, library, 5, distance, groups), whole)


def test_distances_in_an_analytic_world():
    queries, library = torch.tensor([[3.0, 0, 0, 0]]), torch.tensor([[0, 2.0, 0, 0], [5.0, 0, 0, 0], [-1.0, 0, 0, 0]])
    indices, distances = nearest(queries, library, 3, "l2")
    assert indices.tolist() == [[1, 0, 2]]
    torch.testing.assert_close(distances, torch.tensor([[0, math.sqrt(2), 2]]))
    # sd of the two features over the library: 1 and 10; the third does not vary
    queries, library = torch.tensor([[1.0, 10, 99]]), torch.tensor([[1.0, -10, 7], [-1.0, 10, 7]])
    indices, distances = nearest(queries, library, 2, "zscore")
    assert indices.tolist() == [[0, 1]]  # both at 2 standard deviations: the lower index first
    torch.testing.assert_close(distances, torch.tensor([[2.0, 2.0]]))
    # opposite vectors 1, equal up to an offset 0, uncorrelated of any scale 1/2
    queries = torch.tensor([[1.0, -1, 1, -1]])
    library = torch.tensor([[-1.0, 1, -1, 1], [8.0, 6, 8, 6], [50.0, 50, -50, -50]])
    indices, distances = nearest(queries, library, 3, "variance")
    assert indices.tolist() == [[1, 2, 0]]
    torch.testing.assert_close(distances, torch.tensor([[0, 0.5, 1]]))


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("copies", [3, 80])
def test_near_duplicates_are_ordered_and_ties_go_to_the_lower_index(distance, copies):
    """Distances far below the rounding of a float32 product (1e-4 and less of the norm), and exact copies."""
    base = seeded(2, 64) * 2 + 1
    steps = torch.randperm(copies, generator=torch.Generator().manual_seed(3))
    direction = seeded(4, 64)
    near = base + direction * (1e-5 * (1 + steps[:, None]))
    library = torch.cat([seeded(5, 40, 64), near, near, seeded(6, 40, 64)])
    queries = base[None]
    for chunk in (16, 4096):
        agree(nearest(queries, library, 5, distance, chunk=chunk), brute_force(queries, library, 5, distance))
    groups = torch.tensor([1]), torch.zeros(len(library), dtype=torch.int64)
    groups[1][40 : 40 + copies] = 1
    found = nearest(queries, library, 4, distance, groups, 16)
    agree(found, brute_force(queries, library, 4, distance, groups))
    assert not set(found[0][0].tolist()) & set(range(40, 40 + copies))


@pytest.mark.parametrize("distance", DISTANCES)
def test_all_rows_equal_gives_the_first_rows(distance):
    indices, distances = nearest(torch.ones(2, 8) * 0.1, torch.ones(100, 8) * 0.1, 4, distance)
    assert indices.tolist() == [[0, 1, 2, 3]] * 2
    assert distances.tolist() == [[0.0] * 4] * 2


@pytest.mark.parametrize("distance", DISTANCES)
def test_constant_and_zero_vectors_give_finite_distances(distance):
    library = torch.cat([torch.zeros(1, 10), torch.full((1, 10), 0.1), torch.full((1, 10), 7.3), seeded(0, 20, 10)])
    queries = torch.cat([torch.zeros(1, 10), torch.full((1, 10), 0.7), seeded(1, 1, 10)])
    found = nearest(queries, library, 23, distance)
    assert torch.isfinite(found[1]).all()
    agree(found, brute_force(queries, library, 23, distance))


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1e25])
def test_the_scale_of_the_features_does_not_matter(distance, scale):
    library, queries = seeded(0, 70, 16).double(), seeded(1, 5, 16).double()
    found = nearest(queries * scale, library * scale, 4, distance)
    agree(found, brute_force(queries, library, 4, distance))


@pytest.mark.parametrize("distance", DISTANCES)
def test_float16_memory_mapped_library(distance, tmp_path):
    stored = seeded(0, 120, 16).numpy().astype(np.float16)
    np.save(tmp_path / "library.npy", stored)
    library = torch.from_numpy(np.load(tmp_path / "library.npy", mmap_mode="r+"))
    queries = seeded(1, 4, 16)
    agree(nearest(queries, library, 6, distance, chunk=50), brute_force(queries, stored.astype(np.float64), 6, distance))


@pytest.mark.parametrize("distance", DISTANCES)
def test_inputs_stay_as_they_are(distance):
    library, queries = seeded(0, 30, 6).double(), seeded(1, 3, 6).double()
    before = library.clone(), queries.clone()
    nearest(queries, library, 2, distance)
    assert torch.equal(library, before[0])
    assert torch.equal(queries, before[1])


BAD = [
    ({"n": 0}, ConfigError, "n: expected 1 to 10"),
    ({"n": -1}, ConfigError, "n: expected 1 to 10"),
    ({"n": 11}, ConfigError, "n: expected 1 to 10.* found 11"),
    ({"n": 6, "exclude": (torch.tensor([0, 1]), torch.arange(10) // 5)}, ConfigError, "n: expected 1 to 5.* found 6"),
    ({"distance": "cosine"}, ConfigError, "distance: expected one of l2, zscore, variance"),
    ({"chunk": 0}, ConfigError, "chunk: expected at least 1"),
    ({"queries": torch.ones(2, 5)}, ConfigError, "features: expected .*the same features"),
    ({"exclude": (torch.tensor([0]), torch.arange(10))}, ConfigError, "exclude: expected groups of shape"),
    ({"queries": torch.tensor([[1.0, math.nan, 1], [1, 2, 3]])}, DataError, "features of the target: expected finite"),
    ({"library": torch.full((10, 3), math.inf)}, DataError, "features of the library: expected finite"),
]


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize(("change", "error", "match"), BAD)
def test_bad_arguments(change, error, match, distance):
    arguments = {"queries": seeded(1, 2, 3), "library": seeded(0, 10, 3), "n": 2, "distance": distance} | change
    with pytest.raises(error, match=match) as caught:
        nearest(**arguments)
    assert "\n" not in str(caught.value)


# --- the library --------------------------------------------------------------------------------------------------------------


def item(case, slices=3, shape=(6, 5), seed=0, top=1):
    size = (1, *shape, slices)
    image = torch.rand(*size, generator=torch.Generator().manual_seed(seed))
    label = torch.zeros(size, dtype=torch.uint8)
    label[:, 1:3, 2:4, 0] = top  # only the first slice has the structure
    geometry = Geometry((*shape, slices), np.eye(4))
    return Preprocessed(case, image, label, geometry, geometry)


@pytest.fixture
def embed():
    return embedder("intensity")


@pytest.fixture
def two(embed):
    return build_library([item("a", seed=1), item("b", slices=2, seed=2)], 2, embed, 2)


def test_every_slice_is_an_atlas_also_without_label(two, embed):
    a, b = item("a", seed=1), item("b", slices=2, seed=2)
    assert two.cases == ("a", "a", "a", "b", "b")
    assert two.slices.tolist() == [0, 1, 2, 0, 1]
    assert two.spatial_dims == 2
    for row, (source, z) in enumerate([(a, 0), (a, 1), (a, 2), (b, 0), (b, 1)]):
        assert torch.equal(two.images[row], source.image[..., z])
        assert torch.equal(two.labels[row], source.label[..., z])
        torch.testing.assert_close(two.features[row], embed(source.image[None, ..., z])[0])


def test_a_volume_is_one_atlas(embed):
    library = build_library([item("a", seed=1), item("b", seed=2)], 3, embed, 2)
    assert library.cases == ("a", "b")
    assert library.slices.tolist() == [-1, -1]
    assert library.spatial_dims == 3
    assert torch.equal(library.images[1], item("b", seed=2).image)
    torch.testing.assert_close(library.features[1], volume_features(item("b", seed=2).image, embed))


def test_own_case_is_never_selected(two):
    segmenter = Segmenter(two)
    for row, case in enumerate(two.cases):
        rest = [i for i, other in enumerate(two.cases) if other != case]
        chosen = segmenter.select(two.features[[row]], 2, exclude_patient=case)
        assert set(chosen.indices[0].tolist()) <= set(rest)
        assert segmenter.select(two.features[[row]], 1, exclude_patient="elsewhere").indices.tolist() == [[row]]
        assert segmenter.select(two.features[[row]], 1).indices.tolist() == [[row]]
    with pytest.raises(ConfigError, match="n: expected 1 to 2, "):
        segmenter.select(two.features[[0]], 3, exclude_patient="a")


def test_subset_and_merge_are_consistent(two, embed):
    a, b = (two.subset([i for i, case in enumerate(two.cases) if case == own]) for own in "ab")
    again = a.merge(b)
    assert again.cases == two.cases
    for name in ("images", "labels", "features", "slices"):
        assert torch.equal(getattr(again, name), getattr(two, name))
    some = two.subset([4, 0])
    assert some.cases == ("b", "a")
    assert some.slices.tolist() == [1, 0]
    assert torch.equal(some.images, two.images[[4, 0]])
    assert two.subset(two.slices == 1).cases == ("a", "b")
    with pytest.raises(DataError, match="a: slice 0: expected each atlas once"):
        two.merge(a)
    with pytest.raises(DataError, match="grid, features, classes"):
        two.merge(build_library([item("c", shape=(7, 5))], 2, embed, 2))


def test_saved_and_loaded(two, tmp_path):
    path = tmp_path / "library.safetensors"
    two.save(path)
    back = AtlasLibrary.load(path)
    assert (back.cases, back.classes) == (two.cases, two.classes)
    for name in ("images", "labels", "features", "slices"):
        assert torch.equal(getattr(back, name), getattr(two, name))
        assert getattr(back, name).dtype == getattr(two, name).dtype
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    with pytest.raises(DataError, match=r"library\.safetensors: expected a whole atlas library.* build the library again"):
        AtlasLibrary.load(path)
    with pytest.raises(DataError, match="whole atlas library"):
        AtlasLibrary.load(tmp_path / "absent")


def test_all_faults_at_once(embed):
    from dataclasses import replace

    items = [
        item("good"),
        replace(item("unlabelled"), label=None),
        item("wide", shape=(7, 5)),
        item("three", top=2),
        replace(item("cut"), label=item("cut").label[..., :2]),
    ]
    with pytest.raises(DataError) as caught:
        build_library(items, 2, embed, 2)
    assert [(f.case, f.field) for f in caught.value.faults] == [
        ("unlabelled", "label"),
        ("wide", "grid"),
        ("three", "label"),
        ("cut", "label"),
    ]
    with pytest.raises(DataError, match="deep: grid"):
        build_library([item("good"), item("deep", slices=4)], 3, embed, 2)


@pytest.mark.parametrize(
    ("arguments", "match"), [(([item("a")], 4), "spatial_dims: expected 2 or 3"), (([], 2), "cases: expected at least one")]
)
def test_library_settings(arguments, match, embed):
    with pytest.raises(ConfigError, match=match):
        build_library(*arguments, embed, 2)


def test_rows_must_agree(two):
    with pytest.raises(DataError, match="atlas library, slices: expected 5 rows"):
        AtlasLibrary(two.images, two.labels, two.features, two.cases, two.slices[1:], 2)


@pytest.mark.parametrize("dims", [2, 3])
def test_a_twin_is_the_case_all_of_whose_voxels_are_the_scan_s(dims):
    blank, own, other = torch.zeros(1, 8, 8, 3), torch.rand(1, 8, 8, 3), torch.rand(1, 8, 8, 3)
    own[..., 0] = other[..., 0] = 0  # the first slice alone does not tell them apart
    images = torch.cat([v[None] if dims == 3 else v.movedim(-1, 0) for v in (blank, other, own)])
    cases = ("blank", "other", "own") if dims == 3 else tuple(name for name in ("blank", "other", "own") for _ in range(3))
    count = len(images)
    slices = torch.full((count,), -1) if dims == 3 else torch.arange(3).repeat(3)
    library = AtlasLibrary(images, torch.zeros_like(images, dtype=torch.uint8), torch.zeros(count, 2), cases, slices, 2)
    assert library.twin(own, 0.01, dict.fromkeys(cases)) == "own"
    assert library.twin(own + 0.02, 0.01, dict.fromkeys(cases)) is None
    assert library.twin(own, 0.01, ["blank", "other"]) is None
    assert library.twin(own[:, :4], 0.01, cases) is None
