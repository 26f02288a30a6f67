"""A study: arms planned and checked before anything runs, run side by side, resumed, joined, shown."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest

from oasis_monai.data.folds import patient_groups
from oasis_monai.evaluation.scores import read_scores
from oasis_monai.settings import Settings, build
from oasis_monai.tasks import run_task
from oasis_monai.utils.errors import ConfigError
from oasis_monai.workflows import study as module
from oasis_monai.workflows.crossval import crossval
from oasis_monai.workflows.study import Arm, Learning, Study, check_study, plan, run_study
from oasis_monai.workflows.study_report import write_results
from tests.conftest import JOINT, JOINT_2D, merged

NETS = {"network": {"convnet": [4, 8], "unet": [4, 8], "dynunet": [4, 8]}, "workers": 2, "k": 2}
PLAIN = {
    "arms": {
        "slices": {"protocols": ["slice", "patient"], "settings": {"methods": ["ConvNet2D", "FwoW", "OASIS"]}},
        "volumes": {
            "suffix": " 3D",
            "settings": {
                "spatial_dims": 3,
                "preprocessing": {"size": [16, 16, 8], "spacing_mm": [5.0, 5.0, 8.0]},
                "methods": ["U-Net3D", "FwoW", "OASIS"],
            },
        },
        "no_label_term": {"base": "volumes", "suffix": " 3D, beta = 0", "settings": {"methods": "OASIS", "loss": {"beta": 0.0}}},
    },
    "learning": {"arms": {"volumes": {"methods": ["U-Net3D", "OASIS"], "n": 2}}, "train_cases": [2]},
    "ablation": ["OASIS", "OASIS 3D"],
    "n": 2,
}


ALSO = {"arms": PLAIN["arms"] | {"also": {"base": "volumes", "suffix": ", again", "settings": {"n": 5, "methods": ["U-Net3D"]}}}}


@pytest.fixture
def base(config):
    return config(NETS, {"n": [1, 2], "browser": True}, dims=2)


def names(jobs):
    return [job.name for job in jobs]


def test_the_plan_lays_arms_over_the_base_and_over_each_other(base):
    jobs = {job.name: job for job in plan(check_study(PLAIN), base)}
    assert list(jobs) == [
        "slices-slice",
        "slices-patient",
        "volumes",
        "no_label_term",
        "learning-volumes-002",
        "learning-volumes-all",
    ]
    assert (jobs["slices-slice"].settings.folds, jobs["slices-patient"].settings.folds) == ("slice", "patient")
    assert jobs["slices-slice"].settings.spatial_dims == 2
    volumes, ablated = jobs["volumes"].settings, jobs["no_label_term"].settings
    assert (volumes.spatial_dims, ablated.spatial_dims) == (3, 3)
    assert (volumes.loss.beta, ablated.loss.beta) == (1.0, 0.0)
    assert ablated.methods == ("OASIS",)
    two, every = jobs["learning-volumes-002"], jobs["learning-volumes-all"]
    assert (two.settings.train_cases, every.settings.train_cases) == (2, None)
    assert (two.train_cases, every.train_cases, jobs["volumes"].train_cases) == (2, 0, None)
    assert (two.suffix, two.settings.methods) == (" 3D", ("U-Net3D", "OASIS"))
    assert base["spatial_dims"] == 2  # untouched


def test_a_learning_curve_fuses_no_more_atlases_than_it_has_and_may_take_some_folds(base):
    arms = {"v": Arm({"methods": ["OASIS"]}), "w": Arm({"methods": ["FwoW"]})}
    jobs = plan(Study(arms, Learning({"v": {"n": 6}, "w": {"n": 1}}, (2, 4), (1,))), base)[2:]
    assert names(jobs) == [f"learning-{arm}-{size}-1" for arm in "vw" for size in ("002", "004", "all")]
    assert [job.settings.n for job in jobs] == [(2,), (4,), (6,), (1,), (1,), (1,)]
    assert [job.settings.methods for job in jobs] == 3 * [("OASIS",)] + 3 * [("FwoW",)]
    assert {job.settings.fold for job in jobs} == {1}


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"arms": {}}, r"study\.arms: expected one or more named arms"),
        ({"arms": {"a/b": {}}}, r"study\.arms: expected names of letters"),
        ({"arms": {"a": {"protocols": ["random"]}}}, r"study\.arms\.a\.protocols"),
        ({"arms": {"a": {"colour": 1}}}, r"study\.arms\.a\.colour: .*unknown key"),
        ({"arms": {"a": {"settings": 3}}}, r"study\.arms\.a\.settings"),
        ({"learning": {"arms": {"x": {}}}}, r"study\.learning\.arms: expected names of the arms"),
        ({"learning": {"arms": {"volumes": 3}}}, r"study\.learning\.arms: expected names of arms, each with settings"),
        ({"learning": {"train_cases": [4]}}, r"study\.learning\.arms: expected names of arms, each with settings"),
        ({"learning": {"arms": {"volumes": {"k": 1}}}}, r"study\.learning\.arms\.volumes: k: expected"),
        ({"arms": {"a": {"base": "b"}, "b": {"base": "a"}}, "learning": None}, r"study\.arms\.a\.base: .*not in a circle|circle"),
        ({"arms": {"a": {"settings": {"methods": ["Oasis"]}}}, "learning": None}, r"study\.arms\.a: methods: expected"),
        ({"arms": {"a": {"settings": {"training": {"lr": -1}}}}, "learning": None}, r"study\.arms\.a: training\.lr"),
        ({"n": "six"}, r"study\.n: expected a whole number"),
        ({"arms": {"a": {"settings": {"methods": ["U-Net3D"]}}}, "learning": None}, r"study\.arms\.a: methods: .*spatial_dims=2"),
        # what would only be found, or not even be found, after hours of training
        ({"learning": {"arms": {"volumes": {}}}}, r"study\.learning: learning-volumes-004: n: expected one n, .*found \[1, 2\]"),
        (
            {"learning": {"arms": {"volumes": {"n": 2}, "no_label_term": {"n": 2, "methods": ["U-Net3D"]}}}},
            r"study\.learning: .*U-Net3D in learning-volumes-004 and learning-no_label_term-004",
        ),
        ({"learning": None} | ALSO, r"study\.arms: expected each method and n in one arm, found 'U-Net3D in volumes and also"),
        (
            {"learning": None, "arms": {"x": {"protocols": ["patient", "slice"]}, "x-patient": {}}},
            r"study\.arms: .*each folder once, found 'x-patient'",
        ),
        ({"learning": None, "arms": {"x": {"settings": {"k": 3}}}}, r"study\.arms: x: k: expected 2 as in all arms, found 3"),
        ({"learning": None, "arms": {"x": {"settings": {"seed": 3}}}}, r"study\.arms: x: seed: expected 0 as in all arms"),
        ({"learning": None, "arms": {"x": {"settings": {"fold": 1}}}}, r"study\.arms: x: fold: expected None as in all arms"),
        ({"main": "Oasis"}, r"study\.main: expected one of \['ConvNet2D', 'FwoW', .*found 'Oasis'"),
    ],
)
def test_what_cannot_work_is_said_before_anything_runs(base, change, match):
    with pytest.raises(ConfigError, match=match):
        plan(check_study(PLAIN | change), base)


def test_what_is_compared_with_nothing_is_told(base):
    asked = check_study(PLAIN | {"ablation": ["OASIS", "Oasis"], "learning": PLAIN["learning"] | {"main": "OASIS-3D"}})
    lines = module._unnamed(asked, plan(asked, base))
    assert [line.partition(" is not among")[0] for line in lines] == [
        "note: study.ablation: Oasis",
        "note: study.learning.main: OASIS-3D",
    ]
    assert module._unnamed(check_study(PLAIN), plan(check_study(PLAIN), base)) == []


def test_patient_folds_are_those_of_the_cross_validation(settings, prepared):
    asked, made = prepared()
    split = module.split_of(asked, made)
    expected = {case: fold.index for fold in split.folds for case in fold.test}
    assert patient_groups(sorted(expected), asked.k, asked.seed) == expected


def test_a_study_runs_is_joined_shown_and_goes_on_where_it_was(base, tmp_path):
    study, lines = check_study(PLAIN), []
    run_study(study, base, tmp_path / "run", lines.append)
    scores = read_scores(tmp_path / "run" / "scores.csv")
    assert set(scores[scores["protocol"] == "slice"]["method"]) == {"ConvNet2D", "FwoW", "OASIS"}
    patient = scores[scores["protocol"] == "patient"]
    assert set(patient["method"]) == {"ConvNet2D", "FwoW", "OASIS", "U-Net3D", "FwoW 3D", "OASIS 3D", "OASIS 3D, beta = 0"}
    assert patient.groupby(["method", "n", "region"])["case"].nunique().eq(7).all()
    curve = pd.read_csv(tmp_path / "run" / "learning.csv")
    assert set(curve["train_cases"]) == {0, 2}
    # a whole fold is the volumes arm's own model: the same scores, and trained once
    whole = curve[(curve["train_cases"] == 0) & (curve["method"] == "OASIS 3D") & (curve["region"] == "whole")]
    arm = scores[(scores["method"] == "OASIS 3D") & (scores["n"] == 2) & (scores["region"] == "whole")]
    assert whole.sort_values("case")["dsc"].tolist() == pytest.approx(arm.sort_values("case")["dsc"].tolist())
    trained = sum(line.startswith("trained") for line in lines)
    assert trained == 2 * (2 + 2 + 2 + 1 + 2)  # folds x (slices twice STM and ConvNet2D, volumes, beta = 0, two patients)
    told = json.loads((tmp_path / "run" / "run.json").read_text())
    assert told["arms"]["no_label_term"]["settings"]["loss"]["beta"] == 0.0

    # again: nothing is left to do; an arm that is lost is done again, from the models that are there
    first = (tmp_path / "run" / "scores.csv").read_bytes()
    (tmp_path / "run" / "arms" / "volumes" / ".stamp").unlink()
    lines.clear()
    run_study(study, base, tmp_path / "run", lines.append)
    assert "0 networks to train, 1 of 6 cross-validations to score" in lines
    assert (tmp_path / "run" / "scores.csv").read_bytes() == first

    page = write_results(study, base, tmp_path / "run")
    results = {p.name for p in (tmp_path / "run" / "results").iterdir()}
    for name in ("table1_patient", "table1_slice", "ablation_2d_patient", "ablation_3d_patient", "audit", "learning"):
        assert {f"{name}.csv", f"{name}.md", f"{name}.tex"} <= results
    for name in ("fig3", "audit", "learning"):
        assert {f"{name}.svg", f"{name}.png"} <= results
    text = page.read_text(encoding="utf-8")
    for piece in ("Table 1, prostate, slice folds", "What the folds do", "Learning curve", "Case browser", "OASIS 3D-2"):
        assert piece in text
    assert {p.name for p in (tmp_path / "run").glob("fig4_*.png")} == {
        *("fig4_2d_patient.png", "fig4_2d_slice.png", "fig4_3d_patient.png")
    }
    first = page.read_bytes()
    page.unlink()
    # the folder tells all that its page needs
    run_task({"task": "report", "output": str(tmp_path / "run"), **base}, tmp_path / "r", None)
    assert page.read_bytes() == first


def test_scores_that_a_killed_run_left_are_not_taken_for_those_of_before(base, tmp_path, monkeypatch):
    one, lines = check_study({"main": "FwoW", "arms": {"a": {"settings": {"methods": ["FwoW"]}}}}), []
    run_study(one, base, tmp_path / "run", lines.append)
    first = (tmp_path / "run" / "scores.csv").read_bytes()

    def killed(arms, workers, ended, cluster):
        whole(arms, workers, lambda *_: None)  # scored, but for the stamp
        raise KeyboardInterrupt

    whole = module.run_arms
    monkeypatch.setattr(module, "run_arms", killed)
    with pytest.raises(KeyboardInterrupt):
        run_study(one, merged(base, {"n": [3]}), tmp_path / "run", lines.append, overwrite=True)
    monkeypatch.setattr(module, "run_arms", whole)
    run_study(one, base, tmp_path / "run", lines.append)
    assert (tmp_path / "run" / "scores.csv").read_bytes() == first


def test_two_tables_of_one_kind_stand_side_by_side_and_a_page_is_made_again_from_the_folder(base, tmp_path):
    """Of a study whose arms alone name their methods: what is ``methods: null`` below them is another thing once decided."""
    arms = {"v": {"settings": {"methods": ["OASIS", "majority", "DynU-Net2D"]}}}
    study = check_study({"main": "majority", "arms": arms, "ablation": ["OASIS", "majority"], "n": 2})
    bare = merged(base, JOINT, JOINT_2D, {"methods": None, "n": [1, 2]})
    arms["v"]["settings"]["registration"] = {"joint": False}
    run_study(study, bare, tmp_path / "run", lambda _: None)
    page = write_results(study, bare, tmp_path / "run")
    tables = {p.stem for p in (tmp_path / "run" / "results").glob("*.csv")}
    assert {"ablation_2d_patient", "ablation_2d_patient_majority"} <= tables
    assert "DynU-Net2D" in (tmp_path / "run" / "results" / "table1_patient.md").read_text()
    assert {p.name for p in (tmp_path / "run").glob("fig4_*")} == {"fig4_2d_patient.png"}  # majority is none of its methods
    first = page.read_bytes()
    page.unlink()
    run_task({"task": "report", "output": str(tmp_path / "run"), **bare}, tmp_path / "r", None)
    assert page.read_bytes() == first


def test_another_setting_is_another_stamp(base, tmp_path, monkeypatch):
    one = {"main": "FwoW", "arms": {"a": {"protocols": ["patient"], "settings": {"methods": ["FwoW"]}}}}
    lines = []
    run_study(check_study(one), base, tmp_path / "run", lines.append)
    run_study(check_study(one), merged(base, {"n": [1, 3]}), tmp_path / "run", lines.append, overwrite=True)
    assert lines.count("0 networks to train, 1 of 1 cross-validations to score") == 2
    assert set(read_scores(tmp_path / "run" / "scores.csv")["n"]) == {1, 3}
    assert Path(tmp_path / "run" / "arms" / "a" / "browser").is_dir()
    # the same scans in another place are the same
    moved = shutil.copytree(base["data"]["root"], tmp_path / "moved")
    again = merged(base, {"n": [1, 3], "data": {"root": str(moved)}, "cache": str(tmp_path / "other"), "workers": 1})
    run_study(check_study(one), again, tmp_path / "run", lines.append)
    assert lines[-1] == "0 networks to train, 0 of 1 cross-validations to score"
    # another version whose networks are others under the same settings
    before = Settings.identity
    monkeypatch.setattr(Settings, "identity", lambda self: {**before(self), "version": "next"})
    run_study(check_study(one), again, tmp_path / "run", lines.append)
    assert lines[-2].endswith("1 of 1 cross-validations to score")


def test_a_study_by_jobs_of_a_cluster_is_what_one_process_makes(config, tmp_path):
    pytest.importorskip("submitit", reason="needs pip install .[submitit]")
    own = config(NETS, {"methods": ["U-Net3D", "FwoW"], "n": [1], "workers": 1, "fold": None})
    cluster = {"executor": "local", "jobs": 2, "cpus_per_task": 1}
    study = {"main": "FwoW", "n": 1, "arms": {"volumes": {}}}
    asked = {"task": "study", "study": study, "cluster": cluster, **own}
    run_task(asked, tmp_path / "run", None)
    alone = crossval(build(own | {"cache": str(tmp_path / "alone")}), tmp_path / "alone", lambda _: None)
    assert (tmp_path / "run" / "arms" / "volumes" / "scores.csv").read_bytes() == alone.read_bytes()
    submitted = list((tmp_path / "run" / ".submitit").glob("*_submitted.pkl"))
    assert len(submitted) == 3  # the network of each of two folds, then the arm
