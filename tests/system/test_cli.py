"""The command line: every way to get it wrong is a clear line and a non-zero exit, never a stack of frames."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from oasis_monai.__main__ import TASKS, USAGE
from oasis_monai.segmentation.methods import ESTIMATE, METHODS, USUAL_ATLASES, methods_that_need, result_keys
from oasis_monai.settings import build
from oasis_monai.tasks import JOB_KEYS
from tests.conftest import CASES, overrides
from tests.helpers.command import python, run

ROOT = Path(__file__).resolve().parents[2]
EXPERIMENTS = sorted(path.stem for path in (ROOT / "conf" / "experiment").glob("*.yaml"))


def test_help_imports_nothing_heavy():
    heavy = ["torch", "monai", "itk", "hydra", "omegaconf", "numpy", "pandas", "scipy", "matplotlib", "nibabel"]
    code = (
        "import sys; sys.argv = ['oasis-monai', '--help']\n"
        "from oasis_monai.__main__ import main; main()\n"
        f"print('HEAVY', [m for m in {heavy} if m in sys.modules])"
    )
    out = python(code)
    assert out.endswith("HEAVY []\n")
    assert all(f"\n  {task} " in out for task in TASKS)


def test_the_help_shows_the_defaults():
    shown = {}
    for word in USAGE.split("frequent options")[1].split("examples")[0].split():
        key, _, value = word.partition("=")
        shown.setdefault(key, value)  # the first is the default, others are what else there is
    conf = ROOT / "conf"
    settings = yaml.safe_load((conf / "config.yaml").read_text())
    settings["n"] = settings["n"] or USUAL_ATLASES  # null: so many, where there are
    for key in ("n", "k", "folds", "seed", "device", "spatial_dims"):
        assert shown[key].split("|")[0] == str(settings[key]), key
    assert float(shown["training.minutes"]) == yaml.safe_load((conf / "training" / "default.yaml").read_text())["minutes"]


def test_the_library_imports_without_hydra_and_loads_monai_and_itk_only_when_used():
    code = """
import importlib, pathlib, sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in ('hydra', 'omegaconf'):
            raise ImportError('no ' + name)
sys.meta_path.insert(0, Refuse())
import oasis_monai
root = pathlib.Path(oasis_monai.__file__).parent
parts = [p.relative_to(root.parent).with_suffix('').parts for p in sorted(root.rglob('*.py')) if p.stem != '__main__']
names = ['.'.join(p for p in part if p != '__init__') for part in parts]
for name in names:
    if 'transforms' not in name:  # these are MONAI's own kind
        importlib.import_module(name)
print(len(names) > 25, sorted(m for m in ('monai', 'itk', 'scipy', 'matplotlib') if m in sys.modules))
for name in names:
    importlib.import_module(name)
print('fine')
"""
    assert python(code) == "True []\nfine\n"


def test_no_module_but_the_porch_names_hydra():
    for path in (ROOT / "oasis_monai").rglob("*.py"):
        if path.name != "__main__.py":
            text = path.read_text()
            assert "import hydra" not in text
            assert "omegaconf" not in text.replace("omegaconf-free", ""), path


def test_a_data_set_s_yaml_need_not_name_what_the_command_line_may(words, tmp_path):
    (tmp_path / "conf" / "data").mkdir(parents=True)
    (tmp_path / "conf" / "data" / "mine.yaml").write_text(
        "# @package _global_\ndata: {name: mine, root: x, layout: msd, labels: {a: 1}}\n"
    )
    done = run("--config-dir=conf", "data=mine", "data.include=[UP07,8]", "data.regions=[whole]", "--cfg", "job", cwd=tmp_path)
    assert done.code == 0, done.err
    assert yaml.safe_load(done.out)["data"]["include"] == ["UP07", 8]
    config = {key: value for key, value in yaml.safe_load(done.out).items() if key not in JOB_KEYS}
    assert build(config).data.include == ("UP07", "8")
    (tmp_path / "conf" / "data" / "nameless.yaml").write_text("name: mine\nroot: x\nlayout: msd\n")
    done = run("--config-dir=conf", "check", "data=nameless", cwd=tmp_path)
    refused(done, "error: root: expected an existing folder, found none at x")


def refused(done, *parts, lines=1):
    """One line (or so many) on stderr, no stack, no success."""
    assert done.code > 0
    assert "Traceback" not in done.err + done.out
    assert "Error executing job" not in done.err
    for part in parts:
        assert part in done.err
    if lines:
        assert len(done.err.strip().splitlines()) == lines, done.err


@pytest.fixture
def words(config):
    return overrides(config())


REFUSED = [
    (["tarin"], "error: task: expected one of crossval, study, train"),
    (["train", "segment"], "error: task: expected one of"),
    (["task=foo"], "error: task: expected one of ['crossval'"),
    (["=3"], "error: task: expected one of crossval, study, train"),
    (["overlays=-1"], "error: overlays: expected 0 or more cases to draw, found -1"),
    (["check", "data.root="], "error: data.root: expected the folder of the data set"),
    (["check", "data.layout=folder"], "error: data.layout: expected one of ['auto', "),
    (["preprocessing.size=[100000,100000,1000]"], "error: preprocessing.size: expected at most 268,435,456 voxels"),
    (
        ["train", "model=m", "methods=[U-Net3D]", "network.unet=[4,8]"],
        "error: methods: expected one or more methods that fuse atlases",
    ),
    (["train", "model=m", "fold=0"], "error: fold: expected null: train uses all cases (crossval holds some out), found 0"),
    (["train", "model=m", "train_cases=2"], "error: train_cases: expected null: train uses all cases"),
    (
        ["segment", "model=m", "input=nix", "output=o", "n=1", "methods=OASIS"],
        "error: input: expected a scan or a folder of scans, found 'nix'",
    ),
    (["segment", "model=m", "input=.", "output=o", "n=[1,2]"], "error: n: expected one number: a scan gets one result"),
    (["bundle", "model=m", "output=o", "n=1", "methods=[OASIS,FwoW]"], "error: methods: expected one method: a scan gets one"),
    (["library", "model=m", "add=nix", "label=nix"], "error: add: expected an existing file, found 'nix'"),
    (["+colour=red"], "error: colour: expected one of"),
    (["+training.epochs=3"], "error: training.epochs: expected one of"),
    (["training.batch=1.5"], "error: training.batch: expected a whole number, found 1.5"),
    (["n=two"], "error: n: expected"),
    (["n=[1,99]"], "error: n: expected 1 to 5, the atlases of the smallest fold"),
    (["phantom", "seed=abc"], "error: seed: expected a whole number"),
    (["phantom", "data.root="], "error: data.root: expected the folder to write the phantom to"),
    (["folds=slice"], "error: folds: expected patient where an atlas is a volume"),
    (["preprocessing.size=[15,16,8]"], "error: preprocessing.size: expected multiples of (2, 2, 2)"),
    (["preprocessing=paper"], "error: preprocessing."),
    (["device=cuda:99"], "error: device: expected cpu, auto, or a GPU this machine has, found 'cuda:99'"),
    (["features=densenet", "features.name=densenet121", "features.weights=/nowhere/x.pth"], "/nowhere/x.pth"),
    (["data.root=/nowhere"], "error: root: expected an existing folder, found none at /nowhere"),
    (["train"], "error: model: expected the folder to write the model to"),
    (["segment", "model=m", "input=i"], "error: output: expected a folder"),
    (
        ["segment", "model=m", "input=/nowhere", "output=o", "n=1", "methods=OASIS"],
        "error: input: expected a scan or a folder of scans, found '/nowhere'",
    ),
    (["segment", "model=m", "input=i", "output=o", "n=none"], "error: n: expected"),
    (["segment", "model=m", "input=i", "output=o", "overwrite=5"], "error: overwrite: expected true or false"),
    (["segment", "model=m", "input=i", "output=o", "align_batch=x"], "error: align_batch: expected a whole number"),
    (["n=0"], "error: n: expected a number of atlases of 1 or more, or a list of them, found 0"),
    (["k=99"], "error: k: expected no more folds than cases (7), found 99; take fewer folds or add cases"),
    (["+training._target_=os.system"], "error: training._target_: expected one of"),
    (["+_target_=os.system"], "error: _target_: expected one of"),
    (["+data._target_=os.system"], "error: data._target_: expected one of"),
    (["report"], "error: output: expected the folder of a finished run"),
    (["report", "output=/nowhere"], "/nowhere"),
]


@pytest.mark.parametrize(("more", "part"), REFUSED, ids=[" ".join(more) for more, _ in REFUSED])
def test_a_mistake_is_one_line(words, tmp_path, more, part):
    refused(run(*words, *more, cwd=tmp_path), part)


@pytest.mark.parametrize(
    ("more", "parts"),
    [
        (["colour=red"], ["Could not override 'colour'"]),
        (["data=brain"], ["Could not find 'data/brain'", "promise12"]),
        (["experiment=nothing"], ["experiment/nothing"]),
        (["n=[1,2"], ["no viable alternative at input '[1,2'"]),
    ],
)
def test_hydras_own_refusals_are_short_messages(words, tmp_path, more, parts):
    refused(run(*words, *more, cwd=tmp_path), *parts, lines=None)


def test_a_folder_that_cannot_be_written_is_one_line(words, tmp_path):
    (tmp_path / "cache").write_text("a file, not a folder")
    refused(run(*words, cwd=tmp_path), "cache", "Correct that")


def test_a_broken_data_set_tells_all_its_faults(words, phantom, tmp_path):
    data = Path(shutil.copytree(phantom, tmp_path / "data"))
    (data / "Case02.raw").write_bytes(b"short")
    (data / "Case05_segmentation.mhd").unlink()
    for task in ("check", "crossval"):  # files that do not pair up come before what is in them
        done = run(task, *words, f"data.root={data}", cwd=tmp_path)
        refused(done, "Case05: label: expected one label file, found none", "Case02: Case02.mhd ElementDataFile", lines=2)
    shutil.copy(phantom / "Case05_segmentation.mhd", data)
    (data / "Case05_segmentation.raw").write_bytes(b"\7" * (data / "Case05_segmentation.raw").stat().st_size)
    for task in ("check", "crossval", "train"):
        model = [f"model={tmp_path / 'm'}"] if task == "train" else []
        done = run(task, *words, f"data.root={data}", *model, cwd=tmp_path)
        refused(
            done, "error: Case02: ", "error: Case05: Case05_segmentation.mhd label values: expected only 0, 1, found 7", lines=2
        )
        assert done.code == 2


def test_check_of_a_good_data_set(words, tmp_path):
    done = run("check", *words, cwd=tmp_path)
    assert (done.code, done.err) == (0, "")
    assert f"{CASES} cases, 0 errors, 0 warnings" in done.out


def test_check_looks_at_the_field_of_view(words, tmp_path):
    done = run("check", *words, "preprocessing.spacing_mm=[0.5,0.5,0.5]", cwd=tmp_path)
    assert done.code == 0
    assert done.out.count("expected all of it in the working field of view") == CASES


def test_crossval_prints_a_summary_and_report_writes_the_page_again(words, tmp_path):
    done = run(*words, "methods=FwoW", "hydra.run.dir=r", cwd=tmp_path)  # crossval is the default
    assert (done.code, done.err) == (0, "")
    assert "FwoW" in done.out
    page = tmp_path / "r" / "report.html"
    before = page.read_bytes()
    page.unlink()
    done = run("report", "output=r", cwd=tmp_path)
    assert (done.code, done.err) == (0, "")
    assert page.read_bytes() == before
    assert json.loads((tmp_path / "r" / "run.json").read_text())["command"].startswith("oasis-monai data.name=phantom")
    assert (tmp_path / "r" / ".hydra" / "config.yaml").exists()  # the resolved configuration


def composed(*words):
    from hydra import compose, initialize_config_module
    from omegaconf import OmegaConf

    with initialize_config_module("oasis_monai.conf", version_base="1.3"):
        return OmegaConf.to_container(compose("config", overrides=list(words)), resolve=True)


def settings_of(config):
    from oasis_monai.settings import build
    from oasis_monai.tasks import JOB_KEYS

    return build({key: value for key, value in config.items() if key not in JOB_KEYS})


def test_phantom_task_writes_where_the_demo_reads(monkeypatch, tmp_path, capsys):
    from oasis_monai.data import phantom
    from oasis_monai.tasks import run_task

    asked = []
    monkeypatch.setattr(phantom, "write_phantom", lambda root, **more: asked.append((root, more)) or ["Case00"])
    run_task(composed("task=phantom", "data=phantom", "seed=3"), tmp_path, None)
    usual = {"seed": 3, "kind": "prostate", "size": "demo", "cases": 20}
    assert asked == [(Path(composed("experiment=demo")["data"]["root"]), usual)]
    run_task(composed("task=phantom", "data=phantom_ct", "phantom.size=tiny", "phantom.cases=2"), tmp_path, None)
    assert asked[1] == (Path(composed("data=phantom_ct")["data"]["root"]), {"seed": 0, "kind": "ct", "size": "tiny", "cases": 2})
    assert "1 cases in" in capsys.readouterr().out


GROUPS = [(p.parent.name, p.stem) for p in sorted((ROOT / "conf").glob("*/*.yaml")) if p.parent.name != "experiment"]


def test_every_group_option_is_a_valid_setting():
    assert len(GROUPS) > 10
    for group, name in GROUPS:
        flat = ["spatial_dims=2", "preprocessing=physical2d", "registration=unet2d"]
        dims3 = group not in ("preprocessing", "registration") or "3d" in name
        if (group, name) in (("joint", "slices"), ("registration", "joint2d")):
            dims3, flat = False, ["spatial_dims=2", "preprocessing=local2d", "registration=joint2d"]
        if (group, name) == ("preprocessing", "physical3d"):
            flat, dims3 = ["registration=unet3d"], False
        settings = settings_of(composed(*([] if dims3 else flat), f"{group}={name}"))
        assert settings.to_json()


def test_there_are_experiments():
    assert {"demo", "paper"} <= set(EXPERIMENTS)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_committed_experiment_composes_and_runs_on_the_phantom(name, phantom, phantom_two_labels, tmp_path):
    from oasis_monai.workflows.crossval import crossval

    config = composed(f"experiment={name}")
    settings_of(composed(f"experiment={name}", "device=cpu"))  # that of a GPU is refused where there is none
    first = (ROOT / "conf" / "experiment" / f"{name}.yaml").read_text().splitlines()[:2]
    assert any(line.startswith("# ") for line in first)
    dims = config["spatial_dims"]
    physical = config["preprocessing"]["name"] == "physical"
    joint, two = config["registration"]["joint"], len(config["data"]["labels"]) == 2
    size, spacing_mm = ([32, 32, 8], [2.5, 2.5, 8]) if joint else ([16, 16, 8], [5, 5, 8])
    small = [
        f"data.root={phantom_two_labels if two else phantom}",
        "data.layout=promise12",
        *(["data.patient="] if two else ["data.labels={prostate:1}"]),  # the phantom's cases are no two sides of anybody
        f"data.include={[f'Case{i:02d}' for i in range(4)]}".replace(" ", ""),
        f"preprocessing.size={size[:dims]}".replace(" ", ""),
        *([f"preprocessing.spacing_mm={spacing_mm[:dims]}".replace(" ", "")] if physical else []),
        *(
            ["joint.slices_per_step=2", "registration.field_stride=[1]", "network.convnet=[4,8]", "network.unet=[4,8]"]
            if joint
            else []
        ),
        "device=cpu",
        "features=intensity",
        "registration.channels=[4,8]",
        "training.iterations=2",
        "training.minutes=null",
        "training.batch=2",
        "n=[1,2]",
        "k=2",
        "overlays=0",
        "progress=false",
        "tracking=none",
        f"cache={tmp_path / 'cache'}",
    ]
    if name == "accuracy_gpu":
        return is_accuracy_with_other_budgets()
    if config["study"] is not None:
        return runs_as_a_study(name, small, tmp_path)
    settings = settings_of(composed(f"experiment={name}", *small))
    crossval(settings, tmp_path / "r", lambda _: None)
    rows = pd.read_csv(tmp_path / "r" / "scores.csv")
    results = len(result_keys(settings.atlas_methods, (1, 2))) + len(settings.networks)
    assert len(rows) == 4 * len(settings.data.labels) * len(settings.data.regions) * results
    assert set(rows.protocol) == {settings.folds}
    whole = rows[rows.region == "whole"].groupby("method").dsc.mean()
    # two steps of training leave the fields near the identity: every rule is about as good as no warping. What rests on a
    # network's own segmentation is worth nothing yet
    fused = whole[[m for m in whole.index if m not in (*settings.networks, *methods_that_need(ESTIMATE, list(METHODS)))]]
    assert fused.between(0.3, 0.98).all()
    assert np.ptp(fused) < 0.25


def test_the_paper_s_own_arms_keep_its_weights_of_eq_1():
    loss = composed("experiment=paper")["loss"]
    assert (loss["alpha"], loss["beta"], loss["gamma"]) == (1.0, 1.0, 0.01)


def test_the_paper_s_joint_arms_train_the_networks_of_experiment_accuracy():
    from oasis_monai.tasks import JOB_KEYS
    from oasis_monai.workflows.study import check_study, plan

    def arms(name):
        config = composed(f"experiment={name}")
        rest = {key: value for key, value in config.items() if key not in JOB_KEYS}
        return {job.name: job.settings for job in plan(check_study(config["study"]), rest)}

    paper, accuracy = arms("paper"), arms("accuracy")
    for one, other in (("joint_slices", "slices"), ("joint_volumes", "volumes")):
        for network in ("registration", "slices", "volume"):
            assert paper[one].identity(network) == accuracy[other].identity(network), (one, network)


def is_accuracy_with_other_budgets():
    """Its jobs are those of ``experiment=accuracy``, which runs here: only device, budgets and what a step holds differ."""
    from oasis_monai.workflows.study import check_study, plan

    def jobs(name):
        config = composed(f"experiment={name}", "device=cpu")
        rest = {key: value for key, value in config.items() if key not in JOB_KEYS}
        found = {}
        for job in plan(check_study(config["study"]), rest):
            values = job.settings.to_json()
            for group, keys in {"": ["workers"], "training": ["minutes", "batch", "amp"], "joint": ["slices_per_step"]}.items():
                for key in keys:
                    (values[group] if group else values).pop(key)
            found[job.name] = values
        return found

    assert jobs("accuracy_gpu") == jobs("accuracy")
    assert composed("experiment=accuracy_gpu")["device"] == "cuda"


def runs_as_a_study(name, small, tmp_path):
    """A study's arms at the smallest sizes: those of three dimensions need sizes of their own."""
    from oasis_monai.tasks import run_task
    from oasis_monai.workflows.study import check_study

    whole = composed(f"experiment={name}")
    study = check_study(whole["study"])
    words = [*small, "registration.field_stride=[1]", "network.convnet=[4,8]", "network.unet=[4,8]", "study.n=2"]
    if study.learning is not None:
        words.append("study.learning.train_cases=[2]")
        words += [f"study.learning.arms.{arm}.n=2" for arm, values in study.learning.arms.items() if "n" in values]
    for arm, values in study.arms.items():
        at = f"study.arms.{arm}.settings"
        given = values.settings
        dims = given.get("spatial_dims", whole["spatial_dims"])
        joint = given.get("registration", {}).get("joint", whole["registration"]["joint"])
        size, spacing_mm = ([32, 32, 8], [2.5, 2.5, 8]) if joint else ([16, 16, 8], [5, 5, 8])
        if "preprocessing" in given:
            for key, value in (("size", size), ("spacing_mm", spacing_mm)):
                words.append(f"{at}.preprocessing.{key}={value[:dims]}".replace(" ", ""))
        if "field_stride" in given.get("registration", {}):
            words.append(f"{at}.registration.field_stride=[1]")
        if "channels" in given.get("registration", {}):
            words.append(f"{at}.registration.channels=[4,8]")
        if "minutes" in given.get("training", {}):
            words.append(f"{at}.training.minutes=null")
        if isinstance(values.settings.get("n"), int):
            words.append(f"{at}.n=2")
        elif "n" in values.settings:
            words.append(f"{at}.n=[1,2]")
    words.append(f"browser={str(name == 'paper').lower()}")
    run_task(composed(f"experiment={name}", *words), tmp_path / "r", None)
    rows = pd.read_csv(tmp_path / "r" / "scores.csv")
    curve = pd.read_csv(tmp_path / "r" / "learning.csv")
    if name.startswith("accuracy"):
        assert set(curve["method"]) == {"ConvNet3D", "U-Net3D", "OASIS-joint 3D", "estimate 3D"}
        assert {"OASIS-joint", "OASIS-joint 3D", "estimate 3D", "U-Net3D"} <= set(rows["method"])
        assert "OASIS-joint 3D" in (tmp_path / "r" / "results" / "table1_patient.md").read_text(encoding="utf-8")
        return
    methods = {"ConvNet2D", "ConvNet3D", "U-Net3D", "FwoW", "FWAL", "OASIS", "OASIS 3D", "OASIS 3D, beta = 0", "majority 3D"}
    assert methods <= set(rows["method"])
    assert rows[rows["method"] == "OASIS"].groupby(["protocol", "n"])["case"].nunique().tolist() == [4] * 4
    fused = rows[(rows["region"] == "whole") & rows["method"].str.startswith(("FwoW", "OASIS"))]
    assert fused.groupby("method")["dsc"].mean().between(0.3, 0.98).all()
    assert {"OASIS-joint", "OASIS-joint 3D"} <= set(rows["method"])
    assert set(curve["method"]) == {"ConvNet3D", "U-Net3D", "OASIS 3D"}
    assert (tmp_path / "r" / "results" / "table1_slice.md").exists()
    assert "Case browser" in (tmp_path / "r" / "report.html").read_text(encoding="utf-8")
