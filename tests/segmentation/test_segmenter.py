"""The method against the same method written slowly: one atlas at a time, in float64, formula by formula."""

import numpy as np
import pytest
import torch

from oasis_monai.atlases.library import AtlasLibrary
from oasis_monai.data.types import Geometry, Preprocessed
from oasis_monai.networks import warp
from oasis_monai.segmentation import fusion
from oasis_monai.segmentation.alignment import Aligner, FieldCache
from oasis_monai.segmentation.loa import LoaTable
from oasis_monai.segmentation.methods import ESTIMATE, INTERPOLATION, METHODS, check_methods, methods_that_need, needs_alignment
from oasis_monai.segmentation.pipeline import check_choice
from oasis_monai.segmentation.segmenter import Segmenter
from oasis_monai.transforms.labels import decide
from oasis_monai.utils.errors import ConfigError

ALL = tuple(m for m in METHODS if m not in (*methods_that_need(ESTIMATE, list(METHODS)), INTERPOLATION))
CLASSES = 3


class Known(torch.nn.Module):
    """A network whose field is known: coarse, smooth, and another one for every pair."""

    def __init__(self):
        super().__init__()
        self.unused = torch.nn.Parameter(torch.zeros(1))
        self.pairs = 0

    def field(self, atlas, target):
        self.pairs += len(atlas)
        dims = atlas.ndim - 2
        size = tuple(s // 2 for s in atlas.shape[2:])
        axes = torch.meshgrid(*[torch.linspace(0, 3, s) for s in size], indexing="ij")
        strength = (3 * (atlas - 0.7 * target)).flatten(1).mean(1).view(-1, *[1] * (dims + 1))
        return strength * torch.stack([torch.sin(a + i) for i, a in enumerate(axes)])[None].expand(len(atlas), -1, *size)


def world(dims, cases=5, per_case=1, seed=0):
    """A library of blobs of three classes, and a target."""
    random = torch.Generator().manual_seed(seed)
    size = (12, 10, 8)[:dims]

    def image(count):
        coarse = torch.rand(count, 1, *[4] * dims, generator=random)
        return torch.nn.functional.interpolate(coarse, size=size, mode="trilinear" if dims == 3 else "bilinear")

    images = image(cases * per_case)
    labels = (images > 0.45).to(torch.uint8) + (images > 0.6).to(torch.uint8)
    names = tuple(f"c{i // per_case}" for i in range(cases * per_case))
    slices = torch.arange(len(names)) % per_case if dims == 2 else torch.full((len(names),), -1)
    features = torch.randn(len(names), 6, generator=random)
    library = AtlasLibrary(images, labels, features, names, slices, CLASSES)
    depth = 3 if dims == 2 else 1
    picture = image(depth)
    picture = picture[0] if dims == 3 else picture.movedim(0, -1)
    grid = Geometry(tuple(picture.shape[1:]), np.eye(4))
    return library, Preprocessed("t", picture, None, grid, grid), torch.randn(depth, 6, generator=random)


def segmenter(library, batch=8, **more):
    return Segmenter(library, Aligner(Known(), batch=batch), **more)


# The method once more ------------------------------------------------------------------------------------------------------


def hot(label):
    return torch.stack([(label[0] == c).double() for c in range(CLASSES)])


def pull(atlas_image, target_image, *moving):
    """Every channel stack of ``moving`` (C, *S) through the field of this pair."""
    field = Known().field(atlas_image[None], target_image[None]).half().float()
    ddf = warp.resize_ddf(field, atlas_image.shape[1:])
    return [warp.warp(m[None].float(), ddf)[0].double() for m in moving]


def correlation(a, b):
    a, b = (x.double().flatten() - x.double().mean() for x in (a, b))
    return float((a @ b) / (a.norm() * b.norm()))


def dice(a, b):
    return float(
        np.mean([2 * float((a[c] * b[c]).sum() + 5e-6) / float(a[c].sum() + b[c].sum() + 1e-5) for c in range(1, CLASSES)])
    )


def clipped(values):
    values = np.maximum(np.array(values, float), 0)
    return values / values.sum() if values.sum() > 0 else np.full(len(values), 1 / len(values))


def slow(library, target, features, method, n, temperature):
    """(C, *S) probability and (n,) weights of one target image (1, *S)."""
    units = [f.double() / f.double().norm() for f in (*library.features, features)]
    distances = [float((f - units[-1]).norm()) for f in units[:-1]]
    rows = sorted(range(len(distances)), key=distances.__getitem__)[:n]
    if method == "FwoW":
        weights = clipped([correlation(library.images[r], target) for r in rows])
        return sum(w * hot(library.labels[r]) for w, r in zip(weights, rows, strict=True)), weights
    pulled = [pull(library.images[r], target, library.images[r], hot(library.labels[r])) for r in rows]
    labels = [label for _, label in pulled]
    if method == "STAPLE":
        return fusion.staple(torch.stack([decide(label.float()) for label in labels]), CLASSES).double(), None
    if method == "majority":
        weights = np.full(n, 1 / n)
    elif method == "FWAL":
        weights = clipped([correlation(image, target) for image, _ in pulled])
    else:
        o = np.ones((n, n))
        for j in range(n):
            for k in range(n):
                if j != k and method == "OASIS-consensus":
                    o[j, k] = dice(labels[k], labels[j])
                elif j != k:
                    onto, atlas = library.images[rows[j]], library.images[rows[k]]
                    o[j, k] = dice(pull(atlas, onto, hot(library.labels[rows[k]]))[0], hot(library.labels[rows[j]]))
        if method == "OASIS-conditioned":
            trust = np.exp(-np.array([distances[r] for r in rows]) / temperature)
            weights = clipped(trust / trust.sum() @ o)
        else:
            weights = clipped([o[[j for j in range(n) if j != k], k].mean() for k in range(n)]) if n > 1 else np.ones(1)
    return sum(w * label for w, label in zip(weights, labels, strict=True)), weights


@pytest.mark.parametrize("dims", [2, 3])
def test_every_method_is_its_formula(dims):
    library, target, features = world(dims)
    results, *_ = segmenter(library, batch=2, temperature=0.3)(target, features, ALL, (1, 2, 4))
    assert set(results) == {(m, n) for m in ALL for n in (1, 2, 4)}
    images = [target.image] if dims == 3 else list(target.image.movedim(-1, 0))
    for (method, n), result in results.items():
        for i, image in enumerate(images):
            wanted, weights = slow(library, image, features[i], method, n, 0.3)
            found = result.probability if dims == 3 else result.probability[..., i]
            torch.testing.assert_close(found.double(), wanted, atol=2e-5, rtol=0, msg=f"{method}-{n} image {i}")
            if weights is None:
                assert result.weights is None
            else:
                np.testing.assert_allclose(result.weights[i], weights, atol=2e-5)
    different = {m: results[m, 4].probability for m in ALL}
    pairs = [(a, b) for a in ALL for b in ALL if a < b]
    assert all(not torch.allclose(different[a], different[b], atol=1e-4) for a, b in pairs)  # no rule stands in for another


@pytest.mark.parametrize("dims", [2, 3])
def test_asked_alone_or_together_in_any_order_and_batch_the_answer_is_the_same(dims):
    library, target, features = world(dims)
    together, chosen, _ = segmenter(library)(target, features, ALL, (4, 1, 3))
    for batch in (1, 8):
        for method in ALL:
            for n in (1, 3, 4):
                alone, few, _ = segmenter(library, batch)(target, features, (method,), (n,))
                assert set(alone) == {(method, n)}
                assert torch.equal(few.indices, chosen.indices[:, :n])
                torch.testing.assert_close(alone[method, n].probability, together[method, n].probability, atol=1e-5, rtol=0)
    backwards, *_ = segmenter(library)(target, features, ALL[::-1], (3, 4, 1))
    assert all(torch.equal(backwards[key].probability, together[key].probability) for key in together)


def test_the_order_of_the_library_changes_nothing():
    library, target, features = world(3)
    order = torch.tensor([3, 0, 4, 2, 1])
    straight, first, _ = segmenter(library)(target, features, ALL, (3,))
    mixed, second, _ = segmenter(library.subset(order))(target, features, ALL, (3,))
    assert torch.equal(order[second.indices], first.indices)
    for key, result in straight.items():
        torch.testing.assert_close(mixed[key].probability, result.probability, atol=1e-5, rtol=0)


def test_a_target_with_its_label_is_refused():
    library, target, features = world(3)
    labelled = Preprocessed("t", target.image, (target.image > 0).to(torch.uint8), target.geometry, target.native)
    with pytest.raises(ValueError, match="t: a target must come without its label"):
        segmenter(library)(labelled, features, ("FwoW",), (1,))


def test_fuse_without_warping_needs_no_network():
    library, target, features = world(3)
    alone, *_ = Segmenter(library)(target, features, ("FwoW",), (2,))
    stub = segmenter(library)
    beside, *_ = stub(target, features, ("FwoW",), (2,))
    assert torch.equal(alone["FwoW", 2].probability, beside["FwoW", 2].probability)
    assert stub.aligner.model.pairs == 0
    with pytest.raises(ValueError, match="need an aligner"):
        Segmenter(library)(target, features, ("FWAL",), (2,))


@pytest.mark.parametrize("dims", [2, 3])
def test_a_targets_own_case_is_no_atlas(dims):
    library, target, features = world(dims, cases=3, per_case=2 if dims == 2 else 1)
    n = 2
    _, free, _ = segmenter(library)(target, features, ("FwoW",), (n,))
    own = library.cases[int(free.indices[0, 0])]
    _, barred, _ = segmenter(library)(target, features, ("FwoW",), (n,), exclude_patient=own)
    assert own not in {library.cases[i] for i in barred.indices.flatten().tolist()}
    same, *_ = segmenter(library)(target, features, ALL, (n,), exclude_patient=own)
    apart, *_ = segmenter(library.subset([i for i, case in enumerate(library.cases) if case != own]))(target, features, ALL, (n,))
    for key, result in same.items():
        torch.testing.assert_close(result.probability, apart[key].probability, atol=1e-5, rtol=0)
    with pytest.raises(ConfigError, match=rf"^n: expected 1 to {len(library) - len(library) // 3}"):
        segmenter(library)(target, features, ("FwoW",), (len(library),), exclude_patient=own)


def test_only_some_slices_are_segmented_and_the_rest_is_background():
    library, target, features = world(2)
    whole, *_ = segmenter(library)(target, features, ALL, (2,))
    only = torch.tensor([0, 2])
    some, chosen, _ = segmenter(library)(target, features, ALL, (2,), only=only)
    assert len(chosen.indices) == 2
    for key, result in some.items():
        assert result.probability.shape == whole[key].probability.shape
        torch.testing.assert_close(result.probability[..., only], whole[key].probability[..., only], atol=1e-5, rtol=0)
        assert bool((result.probability[0, ..., 1] == 1).all())
        assert bool((result.probability[1:, ..., 1] == 0).all())


@pytest.mark.parametrize("dims", [2, 3])
def test_probabilities_sum_to_one(dims):
    library, target, features = world(dims)
    results, *_ = segmenter(library)(target, features, ALL, (1, 4))
    for result in results.values():
        total = result.probability.sum(0)
        torch.testing.assert_close(total, torch.ones_like(total), atol=1e-5, rtol=0)
        assert result.probability.min() >= -1e-6


def test_every_pair_is_aligned_once_for_all_rules_and_numbers(tmp_path):
    library, target, features = world(3)
    stub = segmenter(library, loa=None)
    fields = FieldCache(tmp_path, "k")
    stub(target, features, ("FWAL", "OASIS-consensus", "STAPLE", "majority"), (1, 2), fields)
    assert stub.aligner.model.pairs == 2
    stub(target, features, ("FWAL",), (4, 2), fields)
    assert stub.aligner.model.pairs == 4
    stub(target, features, ("FWAL", "majority"), (1, 3), fields)
    assert stub.aligner.model.pairs == 4
    stub(target, features, ("OASIS",), (3,), fields)
    assert stub.aligner.model.pairs == 4 + 3 * 2
    stub(target, features, ("OASIS", "OASIS-conditioned"), (4,), fields)
    assert stub.aligner.model.pairs == 4 + 4 * 3


def test_kept_fields_and_overlaps_give_what_fresh_ones_give(tmp_path):
    library, target, features = world(3)
    fresh, *_ = segmenter(library)(target, features, ALL, (2, 4))
    for round_ in range(2):
        aligner = Aligner(Known())
        stub = Segmenter(library, aligner, LoaTable(library, aligner, tmp_path / "loa.safetensors"))
        kept, *_ = stub(target, features, ALL, (4, 2), FieldCache(tmp_path, "k"))
        stub.loa.save()
        assert all(torch.equal(kept[key].probability, fresh[key].probability) for key in fresh)
        assert (stub.aligner.model.pairs == 0) == (round_ == 1)


def test_damaged_or_foreign_fields_are_made_anew(tmp_path):
    library, target, features = world(3)
    fresh, *_ = segmenter(library)(target, features, ("FWAL",), (3,))
    segmenter(library)(target, features, ("FWAL",), (3,), FieldCache(tmp_path, "k"))
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-5])
    again, *_ = segmenter(library)(target, features, ("FWAL",), (3,), FieldCache(tmp_path, "k"))
    assert torch.equal(again["FWAL", 3].probability, fresh["FWAL", 3].probability)
    other = features.flip(1)  # other atlases are nearest now: nothing kept may be used
    wanted, chosen, _ = segmenter(library)(target, other, ("FWAL",), (3,))
    found, *_ = segmenter(library)(target, other, ("FWAL",), (3,), FieldCache(tmp_path, "k"))
    assert not torch.equal(chosen.indices, segmenter(library).select(features, 3).indices)
    assert torch.equal(found["FWAL", 3].probability, wanted["FWAL", 3].probability)


@pytest.mark.parametrize(
    ("methods", "match"),
    [([], "one or more of"), (["oasis"], "found .'oasis'."), (["FWAL", "x", "y"], "found .'FWAL', 'x', 'y'.")],
)
def test_unknown_methods(methods, match):
    with pytest.raises(ConfigError, match=f"^methods: .*{match}"):
        check_methods(methods)


def test_known_methods():
    assert check_methods(["OASIS", "FwoW", "OASIS"]) == ("OASIS", "FwoW")
    assert [m for m in METHODS if not needs_alignment([m])] == ["FwoW", "estimate", "interpolation"]
    assert needs_alignment(["FwoW", "STAPLE"])


def test_a_method_without_atlases_asks_for_none_of_them():
    made = segmenter(world(2, cases=2, per_case=1)[0], estimator=object())
    assert check_choice(made, "estimate", 99) == "estimate"
    with pytest.raises(ConfigError, match=r"^n: expected 1 to 2"):
        check_choice(made, "FwoW", 99)


def test_interpolation_is_no_method_for_a_new_scan():
    library, target, features = world(2)
    made = segmenter(library)
    with pytest.raises(ConfigError, match=r"^methods: expected a method for new scans, found 'interpolation'"):
        check_choice(made, "interpolation", 1)
    with pytest.raises(ValueError, match="needs slices of the target"):
        made(target, features, ("interpolation",), (1,))


def test_atlases_beyond_one_batch_are_warped_twice_for_all_methods(monkeypatch):
    """Once to weigh them, by whatever rules, and once to fuse: not once per rule."""
    library, target, features = world(3)
    made, warped = segmenter(library, batch=2), []
    real = made.aligner.warped
    monkeypatch.setattr(made.aligner, "warped", lambda *how: warped.append(1) or real(*how))
    made(target, features, ("FWAL", "majority"), (4,))
    assert len(warped) == 2
