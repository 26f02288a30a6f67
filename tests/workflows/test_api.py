"""The commands as functions: the same files as the command line with the same options, and errors in the place of exit codes."""

import json
import logging
import shutil

import pandas as pd
import pytest
import torch

import oasis_monai
from oasis_monai.data.phantom import write_phantom
from oasis_monai.utils.errors import ConfigError, DataError, OasisError
from tests.conftest import CASES, JOINT, TINY, merged, overrides
from tests.helpers.command import run

PLAIN = {k: v for k, v in TINY.items() if k not in ("data", "n", "methods", "progress")} | {"data.root": "data"}
TRAINING = merged(PLAIN, JOINT)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A folder with ``data``, ``scans`` and a model trained by the command line, ``by_command``."""
    folder = tmp_path_factory.mktemp("api")
    write_phantom(folder / "data", cases=CASES, size="tiny")
    write_phantom(folder / "other", cases=2, size="tiny", seed=7)
    (folder / "scans").mkdir()
    for path in folder.glob("other/Case??.*"):
        shutil.copy(path, folder / "scans")
    done = run("train", *overrides(TRAINING), "cache=cache_of_command", "model=by_command", cwd=folder)
    assert done.code == 0, done.err
    return folder


@pytest.fixture(autouse=True)
def in_base(base, monkeypatch):
    monkeypatch.chdir(base)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix == ".safetensors"}


def test_training_gives_the_weights_of_the_command_line_byte_for_byte(base, capfd):
    torch.rand(5)  # whatever was drawn before
    model = oasis_monai.train("by_function", TRAINING, cache="cache_of_function")
    assert capfd.readouterr() == ("", "")
    found, wanted = contents(base / "by_function"), contents(base / "by_command")
    assert len(found) > 3
    assert found == wanted
    told, same = (json.loads((base / name / "model.json").read_text()) for name in ("by_function", "by_command"))
    assert told["checksums"].keys() == same["checksums"].keys()
    for key in ("atlases", "cases", "embedding", "trained_on", "seed"):
        assert told[key] == same[key]
    for key in ("cache", "progress", "n"):
        told["settings"].pop(key), same["settings"].pop(key)
    assert told["settings"] == same["settings"]
    assert len(model.segmenter.library) == CASES


def test_other_options_give_other_weights(base):
    oasis_monai.train("other_seed", TRAINING, cache="cache_of_function", seed=1)
    assert contents(base / "other_seed") != contents(base / "by_command")


def test_segmenting_gives_the_files_of_the_command_line(base, capfd):
    done = run("segment", "model=by_command", "input=scans", "output=out_command", "n=2", "format=nii.gz", cwd=base)
    assert (done.code, done.err) == (0, "")
    capfd.readouterr()
    assert oasis_monai.segment("by_command", "scans", "out_function", n=2, file_format="nii.gz") == []
    model = oasis_monai.load_model("by_command")
    for name in ("Case00", "Case01"):
        label = f"{name}_segmentation.nii.gz"
        result = model.segment(f"scans/{name}.mhd", n=2)
        result.save(base / "out_model" / label)
        wanted = (base / "out_command" / label).read_bytes()
        assert (base / "out_function" / label).read_bytes() == wanted
        assert (base / "out_model" / label).read_bytes() == wanted
        told = json.loads((base / "out_command" / f"{name}.json").read_text())
        assert json.loads((base / "out_function" / f"{name}.json").read_text()) == told
        assert told.items() >= json.loads(result.save_report(base / "report.json").read_text()).items()
    assert capfd.readouterr() == ("", "")


def test_cross_validating_gives_the_scores_of_the_command_line(base, capfd):
    options = {**PLAIN, "k": 2, "n": [1, 2], "methods": ["FwoW"]}
    done = run("crossval", *overrides(options), "cache=cache_of_command", "hydra.run.dir=run_command", cwd=base)
    assert done.code == 0, done.err
    capfd.readouterr()
    found = oasis_monai.cross_validate("run_function", options, cache="cache_of_function")
    assert capfd.readouterr() == ("", "")
    assert (base / "run_function/scores.csv").read_bytes() == (base / "run_command/scores.csv").read_bytes()
    assert str(found.run_dir) == "run_function"
    assert set(found.scores["case"]) == {f"Case{i:02d}" for i in range(CASES)}
    whole = found.scores[(found.scores["region"] == "whole") & (found.scores["n"] == 2)]["dsc"].mean()
    table = found.summary
    row = table[(table["region"] == "whole") & (table["n"] == 2)]
    assert row["dsc_mean"].item() == pytest.approx(whole)
    assert "<html" in found.report.read_text()
    assert isinstance(found.scores, pd.DataFrame)


def test_progress_is_told_to_pythons_logging(base, caplog):
    with caplog.at_level(logging.INFO, "oasis_monai"):
        oasis_monai.segment("by_command", "scans", "out_logged", n=1)
    assert any(record.message.startswith("Case00: prostate ") for record in caplog.records)


def test_one_bad_scan_is_a_fault_and_the_others_are_done(base):
    shutil.copytree("scans", "scans_bad", dirs_exist_ok=True)
    (base / "scans_bad/Case00.raw").write_bytes(b"short")
    (fault,) = oasis_monai.segment("by_command", "scans_bad", "out_bad", n=1, method="FwoW")
    assert fault.case == "Case00"
    assert (base / "out_bad/Case01_segmentation.mhd").is_file()


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"colour": 1}, "^colour: expected one of"),
        ({"training": {"colour": 1}}, r"^training\.colour: expected one of"),
        ({"training.colour": 1}, r"^training\.colour: expected one of"),
        ({3: 4}, "^3: expected one of"),
        ({"model": "x"}, "^model: expected one of"),
        ({"estimator.share": 0.5}, r"^estimator\.share: expected its new name joint\.slice_budget, .*write joint\.slice_budget"),
        ({"estimator": {"share": 0.5}}, "^estimator: expected its new name joint, .*write joint"),
        ({"training": {"pairs": 2}}, r"^training\.pairs: .*write training\.nearest_partners"),
        ({"registration": "unet"}, "^registration: expected a preset, one of .*unet3d"),
        ({"experiment": "prostate"}, "^experiment: expected a preset, one of"),
        ({"training": 3}, "^training: expected a group of settings, found 3"),
        ({"training": {"iterations": 1, "minutes": None, "lr": -1}}, r"^training\.lr: expected"),
        ({"device": "cuda:99"}, "^device: expected cpu, auto, or a GPU this machine has, found 'cuda:99'"),
    ],
)
@pytest.mark.parametrize("function", [oasis_monai.train, oasis_monai.cross_validate])
def test_options_that_cannot_work_are_refused(base, function, options, match):
    with pytest.raises(ConfigError, match=match):
        function("refused", {**TRAINING, "cache": "cache_of_refused", "k": 2, "n": 1, **options})
    assert not (base / "refused" / "model.json").exists()
    assert not (base / "refused" / "scores.csv").exists()


@pytest.mark.parametrize("function", [oasis_monai.train, oasis_monai.cross_validate])
def test_faults_of_the_data_are_errors(base, function):
    with pytest.raises(DataError, match="expected an existing folder, found none at nowhere"):
        function("refused", data={"root": "nowhere", "labels": {"prostate": 1}})
    with pytest.raises(ConfigError, match=r"^data: expected a preset, one of .*promise12"):
        function("refused", data="promise21")


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"model": "data"}, "^model: expected a folder written by"),
        ({"input": "nowhere"}, "expected an existing folder, found none at nowhere"),
        ({"output": "scans"}, "^output: expected a folder other than the scans' own"),
        ({"method": "Oasis"}, "^methods: expected one or more of"),
        ({"n": CASES + 1}, f"^n: expected 1 to {CASES}, the model's atlases"),
        ({"n": "2"}, "^n: expected a whole number, found '2'"),
        ({"device": "cuda:99"}, "^device: expected cpu, auto, or a GPU this machine has"),
        ({"batch": 0}, "^batch: expected 1 or more"),
        ({"file_format": "dcm"}, "^format: expected null"),
        ({"methods": "OASIS"}, "^methods: expected one of .*method"),
    ],
)
def test_a_call_of_segment_that_cannot_work_is_refused(base, given, match):
    with pytest.raises(OasisError, match=match):
        oasis_monai.segment(**{"model": "by_command", "input": "scans", "output": "refused", **given})
    assert not list(base.glob("refused/*.json"))
