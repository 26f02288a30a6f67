"""What happens to a command while it runs: another run, Ctrl-C, a full disk, a damaged cache, hostile files."""

import os
import pickle
import shutil
import signal
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml

from oasis_monai.data.dataset_yaml import check_data_files
from oasis_monai.utils.errors import ConfigError
from oasis_monai.utils.files import exclusive_folder
from oasis_monai.utils.tensor_files import load_tensors
from oasis_monai.workflows.crossval import crossval
from tests.conftest import JOINT, overrides
from tests.helpers.command import Command, run
from tests.system.test_cli import refused
from tests.utils.test_files import Payload

FEW = {"data": {"include": [f"Case{i:02d}" for i in range(4)]}, "k": 2, "fold": 0, "n": [1], "methods": ["OASIS"]}


@pytest.fixture
def words(config):
    return overrides(config(FEW))


@pytest.mark.parametrize(
    ("task", "key"), [("crossval", "hydra.run.dir"), ("study", "hydra.run.dir"), ("train", "model"), ("segment", "output")]
)
def test_a_second_run_into_a_folder_is_refused_at_once_and_changes_nothing(words, tmp_path, task, key):
    folder = tmp_path / "r"
    with exclusive_folder(folder, key):
        (folder / ".hydra").mkdir()
        (folder / ".hydra" / "overrides.yaml").write_text("of the first run")
        before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
        started = time.monotonic()
        done = run(task, *words, f"{key}=r", "model=m" if key != "model" else "k=2", "input=.", cwd=tmp_path)
        assert time.monotonic() - started < 60
        found = f"error: {key}: expected a folder no other run writes to, found 'r, in use by process {os.getpid()}'"
        refused(done, found, f"wait for that run to end or give another {key}=DIR")
        assert done.code == 2
        assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before
    assert not (tmp_path / "cache").exists()


def test_ctrl_c_is_one_line_and_130_and_leaves_whole_files_to_go_on_from(words, tmp_path):
    long = [*words, "training.iterations=null", "training.minutes=600", "training.checkpoint_minutes=1e-9", "hydra.run.dir=r"]
    command, models = Command(*long, cwd=tmp_path), tmp_path / "cache" / "models"
    deadline = time.monotonic() + 300
    while not list(models.glob("*/stm.safetensors")):
        assert time.monotonic() < deadline
        assert command.process.is_alive(), command.wait()
        time.sleep(0.05)
    os.kill(command.process.pid, signal.SIGINT)
    done = command.wait(60)
    assert done.code == 130
    assert done.err == "interrupted: run the same command again to continue; finished work is kept\n"
    (path,) = models.glob("*/stm.safetensors")
    assert load_tensors(path)[1]["step"] >= 1
    assert {p.name for p in path.parent.iterdir()} <= {".lock", "stm.safetensors", "history.csv"}
    assert not (tmp_path / "r" / ".running").exists()


def test_a_full_disk_is_one_line_and_the_same_command_goes_on_afterwards(words, tmp_path):
    cache = tmp_path / "cache"
    done = run(*words, "hydra.run.dir=r", cwd=tmp_path, file_bytes=12_000)  # enough for the preprocessed cases
    refused(done, f"error: cannot read or write {cache / 'models'}", "stm.safetensors: File too large. Free some space")
    assert done.code == 2
    kept = [p for p in cache.rglob("*") if p.is_file() and p.suffix in (".image", ".label", ".safetensors")]
    assert len(kept) >= 8
    for path in kept:
        load_tensors(path)
    assert not [p for p in cache.rglob(".*") if p.is_file() and p.name != ".lock"]
    done = run(*words, "hydra.run.dir=r", cwd=tmp_path)
    assert (done.code, done.err) == (0, "")
    assert len(pd.read_csv(tmp_path / "r" / "scores.csv")) > 0


@pytest.mark.parametrize(
    ("task", "key"), [("crossval", "hydra.run.dir"), ("crossval", "cache"), ("train", "model"), ("check", "output")]
)
def test_a_folder_that_cannot_be_written_is_told_before_anything_is_trained(words, tmp_path, task, key):
    (tmp_path / "file").touch()
    given = [word for word in words if not word.startswith(f"{key}=")]
    done = run(task, *given, f"{key}=file/x", cwd=tmp_path)
    refused(done, "cannot read or write file/x", ": Not a directory. Correct that and run the same command again.")
    assert done.code == 2
    assert not (tmp_path / "cache" / "models").exists()


def spoilt(content, damage):
    if damage == "flip":
        changed = bytearray(content)
        changed[len(changed) // 2] ^= 16
        return bytes(changed)
    return b"" if damage == "empty" else content[: len(content) // 2]


@pytest.fixture(scope="module")
def finished(phantom, tmp_path_factory):
    """A finished run of a joint model and a network: settings, scores, and its cache."""
    from oasis_monai.settings import build
    from tests.conftest import TINY, merged

    folder = tmp_path_factory.mktemp("finished")
    methods = {"methods": ["FWAL", "OASIS", "OASIS-joint", "U-Net3D"], "n": [2], "browser": False}
    settings = build(merged(TINY, JOINT, FEW, methods, {"data": {"root": str(phantom)}, "cache": str(folder / "cache")}))
    return settings, crossval(settings, folder / "r", lambda _: None).read_bytes(), folder / "cache"


@pytest.mark.parametrize("damage", ["cut", "empty", "flip"])
def test_a_cache_of_which_every_file_is_damaged_gives_the_same_scores_and_a_warning_each(finished, tmp_path, caplog, damage):
    from dataclasses import replace

    settings, scores, cache = finished
    own = Path(shutil.copytree(cache, tmp_path / "cache"))
    spoiled = [p for p in own.rglob("*") if p.suffix in (".image", ".label", ".safetensors")]
    kinds = {p.parent.name if p.suffix != ".safetensors" else p.stem.split("-")[0] for p in spoiled}
    assert {"preprocessed", "stm", "estimator", "network", "estimates", "loa"} <= kinds
    assert {"features", "fields"} <= {p.parent.name for p in spoiled}
    for path in spoiled:
        path.write_bytes(spoilt(path.read_bytes(), damage))
    again = crossval(replace(settings, cache=str(own)), tmp_path / "r", lambda _: None)
    assert again.read_bytes() == scores
    told = " ".join(record.getMessage() for record in caplog.records)
    for name in ("preprocessed", "features", "stm.safetensors", "estimator.safetensors", "network.safetensors"):
        assert name in told
    made = [p for p in own.rglob("*") if p.suffix in (".image", ".label", ".safetensors")]
    assert all(load_tensors(p) for p in made)  # whole again


@pytest.mark.parametrize("how", ["pickle", "torch"])
def test_weights_that_are_a_program_are_not_run(words, tmp_path, how):
    trap, evil = tmp_path / "trap", tmp_path / "evil.pth"
    if how == "pickle":
        evil.write_bytes(pickle.dumps({"features.weight": Payload(trap)}, protocol=2))
    else:
        torch.save({"features.weight": Payload(trap)}, evil)
    for name in ("densenet121", "efficientnet-lite0"):
        given = [word for word in words if not word.startswith("features.")]
        done = run(*given, f"features.name={name}", f"features.weights={evil}", cwd=tmp_path)
        refused(
            done,
            "error: features.weights: expected a file with a state dict",
            "evil.pth, which it does not",
            "give features.weights=PATH",
        )
        assert not trap.exists()


PROGRAM = "hydra:\n  callbacks:\n    evil:\n      _target_: pathlib.Path.touch\n      _args_: [trap]\n"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("_target_: pathlib.Path.touch\n_args_: [trap]\nname: evil\nroot: .\n", "names no program, found '_target_'"),
        (f"# @package _global_\ndata: {{root: .}}\n{PROGRAM}", "names no program, found '_target_'"),
        ("# @package _global_\ndata: {root: .}\nhydra: {run: {dir: trap}}\n", "expected the keys augmentation, data, defaults"),
        ("# @package _global_\ndata: {root: .}\ncache: trap\n", "found 'cache'; give it on the command line"),
        ("# @package hydra.job.env_set\nroot: .\n", "expected the package _global_, or none, found 'hydra.job.env_set'"),
        (
            "# @package _global_\ndefaults: [override /hydra/launcher: joblib]\n",
            "defaults: expected names of data sets, or override /GROUP: NAME",
        ),
        ("# mine\n# @package _global_\ndata: {root: .}\n", "in the first line, found 'it further down'; move it up"),
        ("#@package hydra.job.env_set\nroot: .\n", "found 'hydra.job.env_set'"),
        ("# @package _global_\ndefaults: [/hydra/callbacks: x]\n", "found {'/hydra/callbacks': 'x'}"),
        (
            "# @package _global_\ndefaults:\n  - {override /loss: eq1, override /hydra/launcher: joblib}\n",
            "found {'override /loss'",
        ),
        ("# @package _global_\ndefaults: /hydra/callbacks\n", "found '/hydra/callbacks'"),
        ("# @ package hydra.job\nroot: .\n", "found 'hydra.job'"),
        ("# @package _global_\ndefaults: [override /loss: ../../trap]\n", "found {'override /loss': '../../trap'}"),
        ("defaults: [sub/../../trap]\n", "found 'sub/../../trap'"),
        # slips of somebody who means well
        ("data: {root: .}\n", "expected # @package _global_ in the first line, as there is data, found 'none'; add that line"),
        ("root: .\npreprocessing: {size: [8, 8, 8]}\n", "in the first line, as there is preprocessing"),
        (
            "root: .\n  layout: msd\n",
            "expected YAML, found 'mapping values are not allowed here (line 2, column 9)'; correct that",
        ),
        ("root: .\n\tlayout: msd\n", "(line 2, column 1)"),
        ("labels: {a: 1\n", "expected YAML, found"),
    ],
)
def test_a_data_set_s_yaml_names_no_program_and_no_place_to_write(tmp_path, text, found):
    folder = tmp_path / "conf" / "data"
    folder.mkdir(parents=True)
    (folder / "evil.yaml").write_text(text)
    done = run("--config-dir", "conf", "check", "data=evil", cwd=tmp_path)
    refused(done, f"error: {Path('conf/data/evil.yaml')}", found)
    (folder / "sub").mkdir()
    (folder / "evil.yaml").rename(folder / "sub" / "evil.yaml")
    with pytest.raises(ConfigError, match=r"sub/evil\.yaml"):
        check_data_files(["--config-dir", str(tmp_path / "conf"), "data=sub/evil"])
    assert not (tmp_path / "trap").exists()


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("# @package _global_\nhydra: {run: {dir: trap}}\n", "expected no package, found '_global_'"),
        ("a: [&a {_target_: os.system}, *a]\n", "names no program, found '_target_'"),
        ("a: &a [*a]\n", "expected plain values, found 'found unconstructable recursive node'"),
    ],
)
def test_nor_does_what_it_may_choose_wherever_that_lies_and_however_it_is_asked_for(tmp_path, text, found):
    conf = tmp_path / "conf"
    for folder in ("data", "preprocessing", "elsewhere"):
        (conf / folder).mkdir(parents=True)
    (conf / "elsewhere" / "evil.yaml").write_text(text)
    (conf / "data" / "mine.yaml").write_text(
        "# @package _global_\ndefaults: [override /preprocessing: sub/evil]\ndata: {root: .}\n"
    )
    (conf / "preprocessing" / "sub").symlink_to(conf / "elsewhere", target_is_directory=True)
    for option in ("--config-dir", "--config-di", "-cd"):
        refused(run(f"{option}={conf}", "check", "data=mine", cwd=tmp_path), "preprocessing/sub/evil.yaml", found)
    assert not (tmp_path / "trap").exists()


def test_a_command_without_settings_of_one_s_own_has_none_to_look_at(tmp_path):
    for words in ([], ["check"], ["--config-dir"], ["--config-dir", str(tmp_path), "check"], [f"-cd={tmp_path / 'none'}"]):
        check_data_files(words)
    (tmp_path / "data").mkdir()
    fine = ["include: [0001-23-45, 2020-13-99]\n", "- 1\n", "a: [\n", "", "defaults: [promise12, _self_]\nname: mine\n"]
    for text in fine:  # what is wrong with some of them is nobody's concern: the command does not choose them
        (tmp_path / "data" / "mine.yaml").write_text(text)
        check_data_files(["--config-dir", str(tmp_path)])


def test_a_data_set_s_yaml_brings_its_own_grid_and_the_command_line_has_the_last_word(phantom, tmp_path):
    folder = tmp_path / "conf" / "data"
    folder.mkdir(parents=True)
    own = "preprocessing: {size: [64, 96, 32], spacing_mm: [1.5, 1.0, 3.0]}\ndefaults: [override /registration: joint3d_fine]\n"
    data = f"data: {{name: mine, root: {phantom}, layout: promise12, labels: {{gland: 1}}}}\n"
    (folder / "mine.yaml").write_text(f"# @package _global_\n{own}{data}")
    words = ["--config-dir=conf", "data=mine", "--cfg", "job"]
    for more, grid in (([], "[64, 96, 32]"), (["preprocessing.size=[64,64,32]"], "[64, 64, 32]")):
        done = run(*words, *more, cwd=tmp_path)
        assert done.code == 0, done.err
        config = yaml.safe_load(done.out)
        assert str(config["preprocessing"]["size"]) == grid
        assert config["preprocessing"]["spacing_mm"] == [1.5, 1.0, 3.0]
        assert config["registration"]["field_stride"] == [2, 2, 2]
        assert config["data"]["name"] == "mine"


def test_a_yaml_saved_by_a_windows_editor_is_read_and_no_file_blocks_another(phantom, tmp_path):
    """Notepad's "UTF-8 with BOM" is read in every group; other encodings are told where they are chosen."""
    data, grids = tmp_path / "conf" / "data", tmp_path / "conf" / "preprocessing"
    data.mkdir(parents=True)
    grids.mkdir()
    values = f"data: {{name: größe, root: {phantom}, layout: promise12, labels: {{gland: 1}}}}\n"
    text = f"# @package _global_\r\ndefaults: [override /preprocessing: own]\r\n{values}"
    grids.joinpath("own.yaml").write_text("size: [32, 32, 16]\nspacing_mm: [3.0, 3.0, 4.0]\n", encoding="utf-8-sig")
    for name, encoding in (("bom", "utf-8-sig"), ("good", "utf-8"), ("wide", "utf-16"), ("ansi", "cp1252")):
        (data / f"{name}.yaml").write_bytes(text.encode(encoding))
    (data / "slip.yaml").write_text("data: {root: .}\n")
    (data / "old.yaml").write_text("# @package _global_\ndata: {root: ., only: [a]}\n")
    for name in ("bom", "good"):
        done = run("--config-dir=conf", f"data={name}", "--cfg", "job", cwd=tmp_path)
        assert done.code == 0, done.err
        config = yaml.safe_load(done.out)
        assert (config["data"]["name"], config["preprocessing"]["size"]) == ("größe", [32, 32, 16])
    for name, found in (("wide", "UTF-16"), ("ansi", "another byte in line 3")):
        text = f"expected text in UTF-8, found '{found}'; save the file again as UTF-8"
        refused(run("--config-dir=conf", "check", f"data={name}", cwd=tmp_path), f"{name}.yaml", text)
    for name in ("slip", "old"):
        refused(run("--config-dir=conf", "check", f"data={name}", cwd=tmp_path), f"{name}.yaml")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
@pytest.mark.parametrize("task", ["crossval", "train"])
def test_a_gpu_asked_for_but_absent_is_told_before_anything_is_read(words, tmp_path, task):
    words = [word for word in words if not word.startswith("fold=")]
    done = run(task, *words, "device=cuda", "model=m", cwd=tmp_path)
    refused(done, "error: device: expected cpu, auto, or a GPU this machine has, found 'cuda'; set device=auto")
    assert not (tmp_path / "cache" / "models").exists()
