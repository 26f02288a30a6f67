"""Nothing of a target's label reaches what segments it, and no patient is on both sides."""

from pathlib import Path

import numpy as np
import pytest

from oasis_monai.data.folds import make_split
from oasis_monai.workflows.crossval import crossval
from oasis_monai.workflows.fold_models import FoldModels
from tests.conftest import CASES, JOINT, merged
from tests.helpers.runs import NETS, PLAIN, copied, pixels, quiet, scores_of


@pytest.mark.parametrize(
    ("model", "methods"), [({}, PLAIN), (JOINT, ["OASIS", "estimate", "OASIS-joint"])], ids=["plain", "joint"]
)
def test_garbage_in_the_targets_labels_changes_no_segmentation(settings, phantom, tmp_path, model, methods):
    """The label of a test case reaches nothing but the score: not selection, not training, not fusion."""
    data = copied(phantom, tmp_path)
    base = merged(model, {"data": {"root": str(data)}, "methods": methods, "n": [2], "fold": 1, "save_segmentations": True})
    crossval(settings(base, {"cache": str(tmp_path / "one")}), tmp_path / "a", quiet)
    tested = set(scores_of(tmp_path / "a").case)
    assert 0 < len(tested) < CASES
    for number, case in enumerate(sorted(tested)):
        path = data / f"{case}_segmentation.raw"
        garbage = np.random.default_rng(number).random(path.stat().st_size) < 0.5
        path.write_bytes(garbage.astype(np.uint8).tobytes())
    crossval(settings(base, {"cache": str(tmp_path / "two")}), tmp_path / "b", quiet)
    before, after = pixels(tmp_path / "a"), pixels(tmp_path / "b")
    assert set(before) == set(after)
    assert len(before) == len(tested) * len(methods)
    assert all(np.array_equal(before[name], after[name]) for name in before)
    assert scores_of(tmp_path / "b").dsc.max() < scores_of(tmp_path / "a").dsc.max()
    # and no model: what a fold is trained on has not changed
    models = [sorted(p.name for p in (tmp_path / cache / "models").iterdir()) for cache in ("one", "two")]
    assert models[0] == models[1]


def test_garbage_in_an_atlas_label_does_change_segmentations(settings, phantom, tmp_path):
    """The counterpart: the test above would find a label that reached the method."""
    data = copied(phantom, tmp_path)
    base = {"data": {"root": str(data)}, "methods": ["FwoW"], "n": [2], "fold": 1, "save_segmentations": True}
    crossval(settings(base), tmp_path / "a", quiet)
    tested = set(scores_of(tmp_path / "a").case)
    for i in range(CASES):
        if f"Case{i:02d}" not in tested:
            path = data / f"Case{i:02d}_segmentation.raw"
            path.write_bytes(np.roll(np.frombuffer(path.read_bytes(), np.uint8), 40).tobytes())
    crossval(settings(base), tmp_path / "b", quiet)
    before, after = pixels(tmp_path / "a"), pixels(tmp_path / "b")
    assert any(not np.array_equal(before[name], after[name]) for name in before)


def test_a_network_never_sees_the_label_of_its_target(settings, phantom, tmp_path):
    data = copied(phantom, tmp_path)
    base = NETS | {"data": {"root": str(data)}, "methods": ["U-Net3D"], "fold": 1, "save_segmentations": True}
    crossval(settings(base, {"cache": str(tmp_path / "one")}), tmp_path / "a", quiet)
    for case in set(scores_of(tmp_path / "a").case):
        path = data / f"{case}_segmentation.raw"
        path.write_bytes(np.roll(np.frombuffer(path.read_bytes(), np.uint8), 40).tobytes())
    crossval(settings(base, {"cache": str(tmp_path / "two")}), tmp_path / "b", quiet)
    before, after = pixels(tmp_path / "a"), pixels(tmp_path / "b")
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[name], after[name]) for name in before)


def test_targets_travel_without_labels_and_libraries_without_targets(prepared):
    for dims in (2, 3):
        settings, data = prepared(dims=dims)
        assert all(target.label is None for target in data.targets.values())
        counts = {case: len(data.rows(case)) for case in data.targets}
        split = make_split(counts, 5, 0, "patient", dims)
        models = FoldModels(settings, data, split, Path(settings.cache), quiet)
        for fold in split.folds:
            assert set(models.library(fold).cases) == set(fold.train)
    settings, data = prepared({"folds": "slice"}, dims=2)
    split = make_split(counts | {case: len(data.rows(case)) for case in data.targets}, 3, 0, "slice", 2)
    for fold in split.folds:
        library = FoldModels(settings, data, split, Path(settings.cache), quiet).library(fold)
        held = {(case, number) for case, numbers in fold.test.items() for number in numbers}
        assert not held & set(zip(library.cases, library.slices.tolist(), strict=True))


def test_a_patient_on_both_sides_stops_the_run(settings, tmp_path, monkeypatch):
    monkeypatch.setattr(np, "setdiff1d", lambda everyone, tested: everyone)  # by which those to train on are found
    with pytest.raises(ValueError, match=r"\['Case\d\d'.*\] on both sides"):
        crossval(settings({"methods": ["FwoW"]}), tmp_path / "a", quiet)
    assert not (tmp_path / "a" / "scores.csv").exists()
