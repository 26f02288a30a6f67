"""What people type and where they type it: paths and names with any characters, and a working folder that stays as it is."""

import shutil
from pathlib import Path

import pytest

from oasis_monai.evaluation.scores import read_scores
from tests.conftest import overrides
from tests.helpers.command import run

ODD = 'größe = [1], {x} (it\'s ~ a$b) "q"'
NAME = ODD.replace(",", ";")  # in a sweep a comma stands between names
FAST = {"methods": ["FwoW"], "n": 1, "k": 2, "browser": False}


def test_folders_and_a_data_set_may_have_any_name(config, phantom, tmp_path):
    shutil.copytree(phantom, tmp_path / ODD)
    (tmp_path / f"conf {ODD}" / "data").mkdir(parents=True)
    (tmp_path / f"conf {ODD}" / "data" / f"{NAME}.yaml").write_text("{layout: promise12, labels: {prostate: 1}}")
    words = [word for word in overrides(config(FAST)) if not word.startswith(("data.", "cache="))]
    words += [f"--config-dir=conf {ODD}", f"data={NAME}", f"+data.name={NAME}", f"+data.root={ODD}", f"cache=cache {ODD}"]
    done = run(*words, f"hydra.run.dir=run {ODD}", cwd=tmp_path)
    assert done.code == 0, done.err
    assert len(read_scores(tmp_path / f"run {ODD}" / "scores.csv"))
    assert NAME.replace("'", "&#39;").replace('"', "&#34;") in (tmp_path / f"run {ODD}" / "report.html").read_text()
    done = run("-m", *words, "fold=0,1", f"hydra.sweep.dir=sweep {ODD}", cwd=tmp_path)
    assert done.code == 0, done.err
    assert (tmp_path / f"sweep {ODD}" / "scores.csv").read_bytes() == (tmp_path / f"run {ODD}" / "scores.csv").read_bytes()
    done = run("report", f"output=run {ODD}", cwd=tmp_path)
    assert done.code == 0, done.err
    assert {path.name for path in tmp_path.iterdir() if path.name[0] != "."} == {
        *(ODD, f"conf {ODD}", f"cache {ODD}", f"run {ODD}", f"sweep {ODD}")
    }


def test_labels_of_the_command_line_are_those_of_the_run(config, tmp_path):
    done = run("check", *overrides(config()), "data.labels={gland: 1}", cwd=tmp_path)
    assert done.code == 0, done.err
    done = run("check", *overrides(config()), "data.labels={größe: 1, (b): x}", cwd=tmp_path)
    assert done.err.startswith("error: data.labels: expected a map of a text to a whole number, found {'größe': 1, '(b)': 'x'}")


@pytest.mark.parametrize("task", ["check", "task=check", "phantom", "segment", "library"])
def test_a_task_whose_results_go_elsewhere_leaves_the_working_folder_as_it_is(config, tmp_path, task):
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    words = [word for word in overrides(config()) if not word.startswith("cache=")]
    more = {"check": [f"output={there}"], "phantom": [f"data.root={there}"], "segment": [f"input={there}", f"output={there}/o"]}
    if task in ("segment", "library"):  # there is no such model, which is told as ever
        words += [f"model={there}", "methods=OASIS", "n=1"]
        there.mkdir()
    done = run(task, *words, *more.get(task, []), cwd=here)
    assert done.code == (2 if task in ("segment", "library") else 0), done.err
    assert all(line.startswith("error: ") for line in done.err.splitlines())
    assert [path for path in here.iterdir() if not path.name.startswith(".command-")] == []


def test_a_run_folder_that_is_asked_for_is_made(config, tmp_path):
    assert run("check", *overrides(config()), "hydra.run.dir=r", cwd=tmp_path).code == 0
    assert (Path(tmp_path) / "r" / ".hydra" / "config.yaml").is_file()


def test_check_looks_at_the_data_whatever_the_other_settings_are(config, phantom, tmp_path):
    data = Path(shutil.copytree(phantom, tmp_path / "data"))
    (data / "Case03_segmentation.raw").unlink()
    words = [word for word in overrides(config()) if not word.startswith("data.root=")]
    done = run("check", *words, "data.root=data", "preprocessing.size=[15,16,8]", "output=o", cwd=tmp_path)
    assert done.code == 2
    first, second = done.err.splitlines()
    assert first.startswith("error: preprocessing.size: expected multiples of (2, 2, 2)")
    assert second.startswith("error: Case03: ")
    assert "Case03" in (tmp_path / "o" / "check.csv").read_text()
    assert done.out.endswith("7 cases, 1 errors, 0 warnings; the data was looked at, but the settings cannot work\n")
    done = run("check", *words, f"data.root={phantom}", "n=none", cwd=tmp_path)
    assert (done.code, len(done.err.splitlines())) == (2, 1)
    assert "7 cases, 0 errors" in done.out
