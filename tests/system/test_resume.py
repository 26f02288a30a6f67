"""What was computed once is found again, what is no longer true is not, and a kill costs nothing but time."""

import random
import shutil
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from oasis_monai.data.folds import Split, make_split
from oasis_monai.utils.tensor_files import load_tensors
from oasis_monai.workflows.crossval import crossval
from oasis_monai.workflows.fold_models import REGISTRATION, SLICES, FoldModels, calibration_path, training_seed
from tests.conftest import CASES, JOINT, overrides
from tests.helpers.command import Command, run
from tests.helpers.runs import REGIONS, THREE, copied, pixels, quiet, scores_of


def test_a_sweep_over_n_pays_for_training_and_alignment_once(settings, tmp_path, aligned):
    base = {"methods": ["FwoW", "FWAL"], "k": 2}
    crossval(settings(base, {"n": 1}), tmp_path / "a", quiet)
    assert sum(aligned) == CASES
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("stm.safetensors")}
    assert len(stamps) == 2
    crossval(settings(base, {"n": 3}), tmp_path / "b", quiet)
    assert sum(aligned) == 3 * CASES
    crossval(settings(base, {"n": [1, 2, 3], "methods": ["majority", "STAPLE", "FWAL"]}), tmp_path / "c", quiet)
    assert sum(aligned) == 3 * CASES
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("stm.safetensors")} == stamps
    joined = scores_of(tmp_path / "c")
    for n, name in ((1, "a"), (3, "b")):
        alone = scores_of(tmp_path / name).query("method == 'FWAL'").reset_index(drop=True)
        again = joined.query(f"method == 'FWAL' and n == {n}").reset_index(drop=True)
        pd.testing.assert_frame_equal(alone, again)


def test_what_a_fold_model_is_named_by(prepared):
    settings, data = prepared()
    cases = dict.fromkeys(data.targets, 1)
    cache = Path(settings.cache)

    def folder(settings=settings, data=data, seed=0, protocol=None):
        split = make_split(cases, 5, seed)
        if protocol:
            split = Split(protocol, seed, split.folds)
        return FoldModels(settings, data, split, cache, quiet).folder(split.folds[2])

    name = folder()
    assert folder(replace(settings, n=(5,), methods=("STAPLE",), align_batch=2, overlays=9)) == name
    train = make_split(cases, 5, 0).folds[2].train
    inside, outside = next(iter(train)), next(case for case in cases if case not in train)
    assert folder(data=replace(data, content={**data.content, outside: "x"})) == name
    changed = [
        folder(data=replace(data, content={**data.content, inside: "x"})),
        folder(replace(settings, seed=1)),
        folder(replace(settings, training=replace(settings.training, lr=1.0))),
        folder(replace(settings, data=replace(settings.data, labels={"prostate": 2}))),
        folder(seed=1),
        folder(protocol="slice"),
    ]
    assert len({name, *changed}) == 7


def test_minutes_of_a_gpu_are_not_those_of_a_cpu(prepared, monkeypatch):
    """A network of minutes is another one on another device; one of steps is the same."""
    settings, data = prepared()
    split = make_split(dict.fromkeys(data.targets, 1), 5, 0)
    cache = Path(settings.cache)

    def folder(device, **training):
        monkeypatch.setattr("oasis_monai.workflows.fold_models.resolve_device", lambda _: device)
        asked = replace(settings, training=replace(settings.training, **training))
        return FoldModels(asked, data, split, cache, quiet).folder(split.folds[0])

    assert folder("cpu", iterations=None, minutes=1.0) != folder("cuda", iterations=None, minutes=1.0)
    assert folder("cuda:0", iterations=None, minutes=1.0) == folder("cuda:1", iterations=None, minutes=1.0)
    assert folder("cpu", iterations=5, minutes=None) == folder("cuda", iterations=5, minutes=None)


def test_the_weights_of_the_features_count_by_what_they_are(prepared):
    """The same file at another place is the same; another file at the same place is not."""
    settings, data = prepared(JOINT)
    split = make_split(dict.fromkeys(data.targets, 1), 5, 0)

    def names(data=data, weights=None):
        asked = replace(settings, features=replace(settings.features, weights=weights))
        models = FoldModels(asked, data, split, Path(settings.cache), quiet)
        return models.folder(split.folds[0]), calibration_path(asked, data)

    assert names(weights="here.pth") == names(weights="there.pth")
    here, changed = names(weights="here.pth"), names(replace(data, embedding="other weights"), "here.pth")
    assert all(one != other for one, other in zip(here, changed, strict=True))


def test_folds_of_two_seeds_never_start_alike():
    seeds = [training_seed(seed, fold) + 1000 * member for seed in range(4) for fold in range(10) for member in range(3)]
    assert len(set(seeds)) == len(seeds)
    assert [training_seed(0, fold) for fold in range(5)] == [0, 1, 2, 3, 4]


def test_a_joint_stm_is_named_by_the_estimates_it_is_trained_on(prepared):
    settings, data = prepared(JOINT)
    split = make_split(dict.fromkeys(data.targets, 1), 5, 0)

    def folder(network, mirror):
        asked = replace(settings, joint=replace(settings.joint, tta_flip=mirror))
        return FoldModels(asked, data, split, Path(settings.cache), quiet).folder(split.folds[0], network)

    assert folder(REGISTRATION, True) != folder(REGISTRATION, False)
    assert folder(SLICES, True) == folder(SLICES, False)  # its mirrored copies come after training


def test_a_changed_scan_is_aligned_again(settings, phantom, tmp_path):
    """Fields belong to the scan they were made for, also where its nearest atlases stay the same."""
    data = copied(phantom, tmp_path)
    asked = settings({"data": {"root": str(data)}, "methods": ["FWAL"], "n": [2], "fold": 1, "save_probability": True})
    crossval(asked, tmp_path / "a", quiet)
    case = scores_of(tmp_path / "a").case[0]
    path = data / f"{case}.raw"
    values = np.frombuffer(path.read_bytes(), "<i2").astype(np.int32)
    path.write_bytes(np.clip(values + np.random.default_rng(0).integers(0, 9, values.size), 0, 32000).astype("<i2").tobytes())
    crossval(asked, tmp_path / "b", quiet)
    crossval(replace(asked, cache=str(tmp_path / "fresh")), tmp_path / "c", quiet)
    kept, fresh = (pixels(tmp_path / name) for name in ("b", "c"))
    assert all(np.array_equal(kept[name], fresh[name]) for name in fresh)
    assert any(not np.array_equal(fresh[name], old) for name, old in pixels(tmp_path / "a").items())


def test_nothing_aligned_by_a_lost_model_is_used(settings, tmp_path):
    asked = settings({"fold": 0, "methods": ["OASIS", "FWAL"], "n": [3]})
    first = crossval(asked, tmp_path / "a", quiet)
    (folder,) = (tmp_path / "cache" / "models").iterdir()
    # another model's alignments lie where those of the lost model were
    other = replace(asked, training=replace(asked.training, lr=0.3))
    crossval(other, tmp_path / "b", quiet)
    (wrong,) = (f for f in (tmp_path / "cache" / "models").iterdir() if f != folder)
    for path in (*folder.glob("fields/*"), folder / "loa.safetensors"):
        shutil.copy(wrong / path.relative_to(folder), path)
    assert crossval(asked, tmp_path / "c", quiet).read_bytes() != first.read_bytes()
    (folder / "stm.safetensors").write_bytes(b"lost")
    assert crossval(asked, tmp_path / "d", quiet).read_bytes() == first.read_bytes()


KILLED = {
    "training": {"iterations": 8, "checkpoint_minutes": 1e-9},
    "k": 2,
    "n": [1, 2],
    "methods": ["OASIS", "OASIS-consensus"],  # STAPLE would load its part of ITK at every start
    "data": {"include": ["Case00", "Case01", "Case02", "Case03", "Case04"]},
}


def when(condition):
    """Wait until a condition on the cache holds."""
    end = time.monotonic() + 600
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_killed_at_any_moment_and_started_again_the_scores_are_the_same_bytes(config, tmp_path):
    words = overrides(config(KILLED))
    started = time.monotonic()
    done = run(*words, "cache=whole", "hydra.run.dir=whole-run", cwd=tmp_path)
    seconds = time.monotonic() - started
    assert done.code == 0, done.err
    models = tmp_path / "killed" / "models"
    moments = [
        lambda: any(load_tensors(p)[1]["step"] >= 2 for p in models.glob("*/stm.safetensors")),  # in training
        lambda: len(list(models.glob("*/stm.safetensors"))) == 2,  # in the second fold's training
        lambda: len(list(models.glob("*/fields/*.safetensors"))) >= 1,  # in segmentation
        lambda: len(list(models.glob("*/fields/*.safetensors"))) >= 4,
    ]
    again = [*words, "cache=killed", "hydra.run.dir=killed-run"]
    killed = 0
    for moment in moments:
        command = Command(*again, cwd=tmp_path)
        when(lambda moment=moment, command=command: moment() or not command.process.is_alive())
        killed += command.kill_after(0)
    at_random = random.Random(7)
    for _ in range(2):
        killed += Command(*again, cwd=tmp_path).kill_after(at_random.uniform(0.1, 0.8) * seconds)
    assert killed >= 3  # the random ones may come too late on what is nearly finished
    done = run(*again, cwd=tmp_path)
    assert done.code == 0, done.err
    for name in ("scores.csv", "summary.csv", "split.json"):
        assert (tmp_path / "killed-run" / name).read_bytes() == (tmp_path / "whole-run" / name).read_bytes()


def test_a_multirun_over_n_and_fold_joins_its_jobs(config, tmp_path):
    words = [w for w in overrides(config({"k": 2, "methods": ["FwoW", "FWAL"]})) if not w.startswith("n=")]
    done = run("-m", "n=1,2", "fold=0,1", "hydra.sweep.dir=sweep", *words, cwd=tmp_path)
    assert done.code == 0, done.err
    sweep = tmp_path / "sweep"
    rows = scores_of(sweep)
    assert len(rows) == CASES * len(REGIONS) * 2 * 2
    assert set(rows.n) == {1, 2}
    jobs = pd.concat([scores_of(sweep / str(i)) for i in range(4)])
    assert [set(scores_of(sweep / str(i)).fold) for i in range(4)] == [{0}, {1}, {0}, {1}]
    keys = ["case", "region", "method", "n"]
    pd.testing.assert_frame_equal(
        jobs.sort_values(keys).reset_index(drop=True), rows.sort_values(keys).reset_index(drop=True), check_like=True
    )
    assert (sweep / "report.html").stat().st_size > 1000
    assert len(list((tmp_path / "cache" / "models").glob("*/stm.safetensors"))) == 2  # each fold once, whatever n
    one = run(*words, "n=[1,2]", "hydra.run.dir=one", cwd=tmp_path)
    assert one.code == 0, one.err
    assert (tmp_path / "one" / "scores.csv").read_bytes() == (sweep / "scores.csv").read_bytes()


def test_slice_folds_by_multirun_leave_whole_cases(config, tmp_path):
    asked = config({"folds": "slice", "k": 2, "data": {"include": THREE}, "methods": ["FwoW", "FWAL"], "n": 1}, dims=2)
    done = run("-m", "fold=0,1", "hydra.sweep.dir=sweep", *overrides(asked), cwd=tmp_path)
    assert done.code == 0, done.err
    assert "folds [1] are not trained yet" in done.out
    rows = scores_of(tmp_path / "sweep")
    assert sorted(set(rows.case)) == THREE
    assert len(rows) == 3 * len(REGIONS) * 2
    assert set(rows.fold) == {-1}
