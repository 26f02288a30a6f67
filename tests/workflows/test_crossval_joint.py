"""Cross-validation of joint models: what is kept of their networks, and the predicted DSC."""

import json
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from oasis_monai.evaluation.quality import cross_fitted
from oasis_monai.evaluation.reliability_tables import read_reliability
from oasis_monai.evaluation.report import write_report
from oasis_monai.utils.errors import ConfigError
from oasis_monai.utils.tensor_files import load_tensors
from oasis_monai.workflows.crossval import crossval
from tests.conftest import CASES, JOINT, JOINT_2D, merged
from tests.helpers.runs import THREE, quiet, scores_of


@pytest.mark.parametrize("dims", [2, 3])
def test_a_joint_model_repeats_itself_and_its_networks_are_kept(settings, tmp_path, dims):
    """Slices under slice folds, whose atlases may be of the target's own scan; volumes under patient folds."""
    more = [JOINT_2D, {"folds": "slice"}] if dims == 2 else []
    given = {"methods": ["FwoW", "majority", "OASIS", "estimate", "OASIS-joint"], "n": [1, 2], "k": 2}
    asked = settings(JOINT, *more, given, dims=dims)
    first = crossval(asked, tmp_path / "a", quiet)
    models = tmp_path / "cache" / "models"
    assert len(list(models.iterdir())) == 2 * (3 if dims == 3 else 2)  # a fold: STM, slice network, and in 3D the volume network
    before = {p: p.stat().st_mtime_ns for p in models.glob("*/*.safetensors") if p.stem != "loa"}
    tables = list(models.glob("*/loa.safetensors"))
    assert len(tables) == 2
    for path in tables:  # pairs are aligned by what the segmentation networks make of the atlases, so they are told by these
        assert load_tensors(path)[1]["of"]
    assert crossval(asked, tmp_path / "b", quiet).read_bytes() == first.read_bytes()
    assert before == {p: p.stat().st_mtime_ns for p in models.glob("*/*.safetensors") if p.stem != "loa"}
    fresh = replace(asked, cache=str(tmp_path / "fresh"))
    assert crossval(fresh, tmp_path / "c", quiet).read_bytes() == first.read_bytes()


def test_the_estimate_alone_trains_no_stm(settings, tmp_path):
    crossval(settings(JOINT, {"methods": "estimate", "fold": 0}), tmp_path / "a", quiet)
    assert not list((tmp_path / "cache" / "models").glob("*/stm.safetensors"))
    assert set(scores_of(tmp_path / "a").method) == {"estimate"}


def test_more_atlases_beside_a_slice_than_there_are(settings, tmp_path):
    given = settings(JOINT, JOINT_2D, {"methods": "estimate", "k": 2, "data": {"include": THREE[:2]}}, dims=2)
    with pytest.raises(ConfigError, match=r"^joint\.atlases: expected 0, as a fold has 0 atlases for a slice, found 2"):
        crossval(given, tmp_path / "a", quiet)


def test_predicted_dsc_never_sees_its_own_fold_and_is_kept_for_training(settings, tmp_path):
    asked = settings(merged(JOINT, {"methods": ["FwoW", "majority", "OASIS-joint"], "n": [1, 3]}))
    crossval(asked, tmp_path / "a", quiet)
    table, scores = pd.read_csv(tmp_path / "a" / "quality.csv"), scores_of(tmp_path / "a")
    whole = scores[(scores.region == "whole") & scores.method.isin(["majority", "OASIS-joint"])]
    keys = ["case", "method", "n", "label"]
    joined = table.merge(whole, on=keys, suffixes=("", "_scored"))
    assert len(joined) == len(table) == CASES * 2 * 2  # FwoW warps nothing that could agree
    assert joined.dsc.to_numpy() == pytest.approx(joined.dsc_scored.to_numpy(), abs=1e-6)
    part = table[(table.method == "OASIS-joint") & (table.n == 3)].reset_index(drop=True)
    values = part[["networks", "atlases"]].to_numpy()
    predicted, flags = cross_fitted(values, part.dsc.to_numpy(), part.fold.tolist())
    assert part.predicted_dsc.to_numpy() == pytest.approx(predicted, abs=1e-4)
    assert part.flag.tolist() == flags.tolist()
    kept = list((Path(asked.cache) / "calibrations").glob("*.json"))
    assert any(path.read_bytes() == (tmp_path / "a" / "calibration.json").read_bytes() for path in kept)
    reliable = read_reliability(tmp_path / "a" / "reliability.csv")
    assert set(zip(reliable.method, reliable.n, strict=True)) == {(m, n) for m in ("majority", "OASIS-joint") for n in (1, 3)}
    assert reliable.groupby(["method", "n", "when"])["share"].sum().to_numpy() == pytest.approx(1)
    told = json.loads((tmp_path / "a" / "calibration.json").read_text())
    after = reliable[reliable.when == "after"].groupby(["method", "n"])["temperature"].first()
    for (method, n), temperature in after.items():
        assert told[f"{method}-{n}"]["prostate"]["temperature"] == pytest.approx(temperature, abs=1e-5)
    page = write_report(tmp_path / "a").read_text()
    for shown in ("<h2>Predicted DSC</h2>", "<h2>Probabilities</h2>", "OASIS-joint-3", "Predicted DSC of all methods"):
        assert shown in page


def test_part_of_the_folds_calibrates_nothing(settings, tmp_path):
    asked = settings({"methods": ["OASIS"], "fold": 0, "seed": 7})
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "calibration.json").write_text("of a run before, with all folds")
    crossval(asked, tmp_path / "a", quiet)
    assert (tmp_path / "a" / "quality.csv").is_file()
    assert not (tmp_path / "a" / "calibration.json").exists()
