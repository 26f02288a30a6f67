"""The results of one run are not replaced by those of another without a word, and the same run goes on."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

import oasis_monai
from oasis_monai.utils.errors import ConfigError
from oasis_monai.workflows.crossval import crossval
from oasis_monai.workflows.study import check_study, run_study
from oasis_monai.workflows.train import train_model
from tests.conftest import overrides
from tests.helpers.command import run
from tests.helpers.runs import copied, quiet, scores_of

FAST = {"methods": ["FwoW"], "n": [1], "k": 2, "browser": False}


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def changed(folder, case):
    """The data set with other voxels in one scan."""
    path = folder / f"{case}.raw"
    values = np.frombuffer(path.read_bytes(), "<i2")
    path.write_bytes((values[::-1]).tobytes())


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"n": [2]}, r"n=\[1\] \(now \[2\]\)"),
        ({"methods": ["majority"]}, r"methods=\[\"FwoW\"\] \(now \[\"majority\"\]\)"),
        ({"fold": 1}, r"fold=null \(now 1\)"),
        ({"training": {"iterations": 5}}, r"training.iterations=4 \(now 5\)"),
        ({"data": {"include": ["Case00", "Case01", "Case02"]}}, r"data.include=\[\] \(now "),
        ({"seed": 1, "k": 3, "fold": 1, "corruptions": 1, "temperature": 1.0}, "and 2 more settings|, 2 more settings"),
    ],
)
def test_other_settings_do_not_replace_results_in_silence(settings, tmp_path, change, told):
    crossval(settings(FAST), tmp_path / "a", quiet)
    before = contents(tmp_path / "a")
    with pytest.raises(ConfigError, match=f"^run_dir: expected a folder without .* {told}") as caught:
        crossval(settings(FAST, change), tmp_path / "a", quiet)
    assert str(caught.value).endswith("; give another run_dir=DIR, or add overwrite=true to replace them")
    assert contents(tmp_path / "a") == before


def test_other_data_do_not_replace_results_in_silence_and_with_overwrite_nothing_of_them_stays(settings, phantom, tmp_path):
    data = copied(phantom, tmp_path)
    asked = settings(FAST, {"data": {"root": str(data)}, "save_segmentations": True, "corruptions": 1})
    crossval(asked, tmp_path / "a", quiet)
    before = contents(tmp_path / "a")
    for case in ("Case03", "Case05"):
        for path in data.glob(f"{case}*"):
            path.unlink()
    for moved in (asked, replace(asked, data=replace(asked.data, root=str(shutil.copytree(data, tmp_path / "moved"))))):
        with pytest.raises(ConfigError, match="with those of other scans or labels'; give another"):
            crossval(moved, tmp_path / "a", quiet)
    assert contents(tmp_path / "a") == before
    crossval(replace(asked, corruptions=0), tmp_path / "a", quiet, overwrite=True)
    crossval(replace(asked, corruptions=0), tmp_path / "b", quiet)
    assert set(contents(tmp_path / "a")) == set(contents(tmp_path / "b"))
    assert scores_of(tmp_path / "a").equals(scores_of(tmp_path / "b"))


def test_the_same_run_goes_on_also_elsewhere_and_otherwise_shown(settings, phantom, tmp_path):
    asked = settings(FAST)
    first = crossval(asked, tmp_path / "a", quiet).read_bytes()
    data = replace(asked.data, root=str(copied(phantom, tmp_path)), name="renamed")
    again = replace(asked, data=data, cache=str(tmp_path / "cache"), overlays=1, browser=True, threads=1, align_batch=3)
    assert crossval(again, tmp_path / "a", quiet).read_bytes() == first


def test_scores_whose_run_is_unknown_are_not_replaced(settings, tmp_path):
    crossval(settings(FAST), tmp_path / "a", quiet)
    (tmp_path / "a" / "run.json").unlink()
    with pytest.raises(ConfigError, match=r"with those of a run that has no readable run\.json'"):
        crossval(settings(FAST), tmp_path / "a", quiet)


def test_a_run_that_ends_early_leaves_no_scores_under_the_name_of_another(settings, tmp_path, monkeypatch):
    """Its record is there before its scores, and those of the run before are gone with their record."""
    crossval(settings(FAST), tmp_path / "a", quiet)
    with monkeypatch.context() as patch:
        patch.setattr("oasis_monai.workflows.crossval.CrossValidation.score", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            crossval(settings(FAST, {"n": [2]}), tmp_path / "a", quiet, overwrite=True)
    assert json.loads((tmp_path / "a" / "run.json").read_text())["settings"]["n"] == [2]
    assert not (tmp_path / "a" / "scores.csv").exists()
    crossval(settings(FAST, {"n": [3]}), tmp_path / "a", quiet)  # there is nothing to lose


def test_a_study_of_other_data_is_refused_and_one_with_another_arm_goes_on(config, phantom, tmp_path):
    data = copied(phantom, tmp_path)
    base = config(FAST, {"data": {"root": str(data)}})
    arms = {"one": {"settings": {"methods": ["FwoW"]}}}
    run_study(check_study({"arms": arms, "main": "FwoW", "n": 1}), base, tmp_path / "s", quiet)
    more = {**arms, "two": {"suffix": " b", "settings": {"n": [2]}}}
    run_study(check_study({"arms": more, "main": "FwoW", "n": 1}), base, tmp_path / "s", quiet)
    assert set(scores_of(tmp_path / "s").method) == {"FwoW", "FwoW b"}
    study = check_study({"arms": arms, "main": "FwoW", "n": 1})
    before = contents(tmp_path / "s")
    with pytest.raises(ConfigError, match=r"k=2 \(now 3\)"):
        run_study(study, base | {"k": 3}, tmp_path / "s", quiet)
    changed(data, "Case02")
    with pytest.raises(ConfigError, match="other scans or labels"):
        run_study(study, base, tmp_path / "s", quiet)
    assert contents(tmp_path / "s") == before
    run_study(study, base, tmp_path / "s", quiet, overwrite=True)
    assert set(scores_of(tmp_path / "s").method) == {"FwoW"}


def test_a_model_is_not_replaced_by_one_of_other_data_or_settings(settings, phantom, tmp_path):
    data = copied(phantom, tmp_path)
    asked = settings({"data": {"root": str(data)}})
    train_model(asked, tmp_path / "m", quiet)
    before = contents(tmp_path / "m")
    train_model(asked, tmp_path / "m", quiet)
    for name in ("stm.safetensors", "library.safetensors"):
        assert (tmp_path / "m" / name).read_bytes() == before[name]
    before = contents(tmp_path / "m")
    with pytest.raises(ConfigError, match=r"^model: expected .* training.iterations=4 \(now 5\)"):
        train_model(replace(asked, training=replace(asked.training, iterations=5)), tmp_path / "m", quiet)
    changed(data, "Case02")
    with pytest.raises(ConfigError, match=r"^model: expected .* other scans or labels"):
        train_model(asked, tmp_path / "m", quiet)
    assert contents(tmp_path / "m") == before
    train_model(asked, tmp_path / "m", quiet, overwrite=True)


def test_the_command_line_and_python_have_the_way_on(config, tmp_path):
    words = overrides(config(FAST))
    assert run(*words, "hydra.run.dir=r", cwd=tmp_path).code == 0
    done = run(*words, "hydra.run.dir=r", "seed=1", cwd=tmp_path)
    assert done.code == 2
    folder = tmp_path / "r"
    assert done.err.splitlines() == [
        "error: hydra.run.dir: expected a folder without the results of another run, "
        f"found '{folder} with those of seed=0 (now 1)'"
        "; give another hydra.run.dir=DIR, or add overwrite=true to replace them"
    ]
    assert run(*words, "hydra.run.dir=r", cwd=tmp_path).code == 0
    assert run(*words, "hydra.run.dir=r", "seed=1", "overwrite=true", cwd=tmp_path).code == 0
    assert json.loads((tmp_path / "r" / "run.json").read_text())["seed"] == 1
    asked = config(FAST, {"data": {"labels": {"prostate": 1}}})
    with pytest.raises(ConfigError, match=r"^run_dir: .* seed=1 \(now 0\)"):
        oasis_monai.cross_validate(tmp_path / "r", asked)
    assert len(oasis_monai.cross_validate(tmp_path / "r", asked, overwrite=True).scores)


def test_the_jobs_of_another_sweep_are_not_replaced(config, tmp_path):
    words = [word for word in overrides(config(FAST)) if not word.startswith("seed=")]
    assert run("-m", *words, "seed=0,1", "hydra.sweep.dir=s", cwd=tmp_path).code == 0
    done = run("-m", *words, "seed=2,3", "hydra.sweep.dir=s", cwd=tmp_path)
    assert done.code != 0
    found = f"{tmp_path / 's' / '0'} with those of seed=0 (now 2)"
    assert f"error: hydra.sweep.dir: expected a folder without the results of another run, found '{found}'" in done.err
    assert "give another hydra.sweep.dir=DIR, or add overwrite=true" in done.err
