"""One command trains, one segments, one scores: no YAML, no grid, and nothing but a folder of scans."""

import json
import math
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest

import oasis_monai
from oasis_monai.data.cases import find_cases
from oasis_monai.data.io import read_volume
from oasis_monai.data.phantom import write_phantom
from oasis_monai.data.settings import DataSettings
from oasis_monai.evaluation.quality import aurc
from oasis_monai.settings import build
from oasis_monai.workflows.library import remove_atlas
from oasis_monai.workflows.plan import read_plan
from oasis_monai.workflows.same_structures import with_labels_of
from oasis_monai.workflows.train import train_model
from tests.conftest import TINY, merged
from tests.helpers.command import run
from tests.helpers.runs import scores_of

FEW = {"training": {"iterations": 2, "minutes": None}, "joint": {"tta_views": 0}}
QUICK = ["training.iterations=4", "training.minutes=null", "joint.tta_views=0", "progress=false"]


@pytest.fixture(scope="module")
def others(tmp_path_factory):
    """Scans of other patients: the phantom's with later seeds."""
    folder = tmp_path_factory.mktemp("others")
    write_phantom(folder, cases=3, size="tiny", seed=5)
    return folder


@pytest.fixture(scope="module")
def trained(phantom, tmp_path_factory):
    """The folder of a model, and what was said, of the one command."""
    folder = tmp_path_factory.mktemp("trained")
    done = run("train", f"data.root={phantom}", "model=m", *QUICK, cwd=folder)
    assert (done.code, done.err) == (0, "")
    return folder / "m", done.out


def test_train_tells_its_plan_and_keeps_it_with_the_concrete_values(trained):
    model, said = trained
    plan = read_plan(model)
    assert "\n".join(plan.lines()) in said
    settings = json.loads((model / "model.json").read_text())["settings"]
    for group, values in plan.values.items():
        for key, value in values.items():
            assert settings[group][key] == value, (group, key)
    absent = {key for key, value in settings["preprocessing"].items() if value is None}
    assert absent <= {"window", "fine_factor"}  # none but in CT, none where structures are thick


def test_a_model_is_scored_on_other_cases(trained, others, tmp_path):
    model, _ = trained
    done = run(
        "evaluate",
        f"model={model}",
        f"data.root={others}",
        "n=2",
        "output=e",
        "save_segmentations=true",
        "progress=false",
        cwd=tmp_path,
    )
    assert (done.code, done.err) == (0, "")
    scores = scores_of(tmp_path / "e")
    assert sorted(set(scores["case"])) == ["Case00", "Case01", "Case02"]
    assert set(scores["region"]) == {"whole", "apex", "mid", "base"}
    for case in find_cases(others, "promise12"):  # Dice by hand, from the label that was written
        (file,) = (tmp_path / "e" / "segmentations").glob(f"{case.id}__*.nii.gz")
        found = np.asarray(nibabel.load(file).dataobj) > 0
        truth = read_volume(case, (0, 1)).label[0].numpy() > 0
        both = found.sum() + truth.sum()
        dsc = scores.loc[(scores["case"] == case.id) & (scores["region"] == "whole"), "dsc"].item()
        assert dsc == pytest.approx(2 * (found & truth).sum() / both)
    quality = pd.read_csv(tmp_path / "e" / "quality.csv")
    assert len(quality) == 3
    whole = scores[scores["region"] == "whole"].set_index("case")["dsc"]
    assert quality.set_index("case")["dsc"].to_dict() == pytest.approx(whole.to_dict(), abs=1e-6)
    page = (tmp_path / "e" / "report.html").read_text()
    assert "a trained model on other cases" in page
    assert "AURC" in page
    assert "Cross-validation with" not in page
    record = json.loads((tmp_path / "e" / "run.json").read_text())
    assert (record["task"], record["left_out"]) == ("evaluate", {})
    mae = (quality["predicted_dsc"] - quality["dsc"]).abs().mean()
    area = aurc(quality["predicted_dsc"], quality["dsc"])
    assert f"{mae:.3f}" in done.out
    assert f"{area:.3f}" in done.out
    again = run("evaluate", f"model={model}", f"data.root={others}", "n=1", "output=e", cwd=tmp_path)
    assert again.code == 2
    assert "overwrite=true" in again.err


def test_what_the_model_has_learned_from_is_told_and_left_out(trained, phantom, others, tmp_path):
    model, _ = trained
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    for number, case in enumerate([*find_cases(phantom, "promise12")[:2], *find_cases(others, "promise12")[:1]]):
        for path, tail in ((case.image, ""), (case.label, "_segmentation")):
            text = path.read_text().replace(path.with_suffix(".raw").name, f"Case{50 + number}{tail}.raw")
            (mixed / f"Case{50 + number}{tail}.mhd").write_text(text)
            (mixed / f"Case{50 + number}{tail}.raw").write_bytes(path.with_suffix(".raw").read_bytes())
    data = {"root": str(mixed), "layout": "promise12", "labels": {"prostate": 1}}
    found = oasis_monai.evaluate(model, tmp_path / "e", data=data, n=2, overlays=0, browser=False, cache=str(tmp_path / "c"))
    assert set(found.scores["case"]) == {"Case52"}
    left_out = json.loads((tmp_path / "e" / "run.json").read_text())["left_out"]
    assert left_out == {"Case50": "Case00", "Case51": "Case01"}
    (row,) = found.quality.to_dict("records")
    assert row["cases"] == 1
    assert math.isnan(row["r"])
    alone = {**data, "include": ["Case50"]}
    with pytest.raises(oasis_monai.DataError, match="1 of 1 are atlases of the model"):
        oasis_monai.evaluate(model, tmp_path / "e2", data=alone, n=2, cache=str(tmp_path / "c"))
    kept = oasis_monai.evaluate(
        model, tmp_path / "e3", data=alone, n=2, cache=str(tmp_path / "c"), training_cases=True, overlays=0, browser=False
    )
    assert set(kept.scores["case"]) == {"Case50"}


@pytest.fixture(scope="module")
def persons(tmp_path_factory):
    """Two structures, two scans of each person but the last, two centres, a split; and a model of the training part."""
    folder = tmp_path_factory.mktemp("persons")
    write_phantom(folder / "p", cases=8, size="tiny", labels=2)
    lines = ["id,image,label,patient,centre,split"]
    people = ["anna", "berta", "berta", "carla", "anna", "dora", "emma", "fay"]
    for number, (who, part) in enumerate(zip(people, ["train"] * 4 + ["test"] * 4, strict=True)):
        lines.append(f"c{number},p/Case{number:02d}.mhd,p/Case{number:02d}_segmentation.mhd,{who},{'AB'[number % 2]},{part}")
    (folder / "cases.csv").write_text("\n".join(lines) + "\n")
    more = {"data": {"root": str(folder / "cases.csv"), "layout": "auto", "labels": {}, "regions": []}}
    settings = build(merged(TINY, more, {"cache": str(folder / "c"), "training": {"iterations": 2}}))
    return folder, train_model(settings, folder / "m", lambda _: None)


def test_other_scans_of_its_patients_and_what_the_split_keeps_are_left_out(persons, tmp_path):
    folder, model = persons
    assert json.loads((model / "model.json").read_text())["trained_on"] == ["c0", "c1", "c2", "c3"]
    options = {"n": 2, "overlays": 0, "browser": False, "cache": str(folder / "c"), "data": {"root": str(folder / "cases.csv")}}
    found = oasis_monai.evaluate(model, tmp_path / "e", options)
    assert set(found.scores["case"]) == {"c5", "c6", "c7"}
    assert json.loads((tmp_path / "e" / "run.json").read_text())["left_out"] == {"c4": "c0"}  # another scan of anna
    assert len(found.quality) == len(set(found.scores["label"])) == 2
    assert (found.quality["cases"] == 3).all()
    assert found.quality["aurc"].between(0, 1).all()
    centres = pd.read_csv(tmp_path / "e" / "centres.csv")
    assert set(centres["centre"]) == {"A", "B"}
    page = (tmp_path / "e" / "report.html").read_text()
    assert "AURC" in page
    kept = oasis_monai.evaluate(model, tmp_path / "e2", options, training_cases=True)
    assert set(kept.scores["case"]) == {"c4", "c5", "c6", "c7"}


def test_a_training_scan_that_is_no_atlas_any_more_is_still_left_out(persons, tmp_path):
    folder, model = persons
    edited = Path(shutil.copytree(model, tmp_path / "m"))
    remove_atlas(edited, "c3", "cpu", log=lambda _: None)
    (tmp_path / "again.csv").write_text(
        "id,image,label,patient\n"
        + "".join(
            f"new{n},{folder}/p/Case{n:02d}.mhd,{folder}/p/Case{n:02d}_segmentation.mhd,{who}\n"
            for n, who in ((3, "somebody"), (7, "c0"), (6, "carla"))
        )
    )
    options = {"n": 2, "overlays": 0, "browser": False, "cache": str(folder / "c"), "data": {"root": str(tmp_path / "again.csv")}}
    found = oasis_monai.evaluate(edited, tmp_path / "e", options)
    assert set(found.scores["case"]) == {"new7"}  # c0 is a case's id there, and no person's
    assert json.loads((tmp_path / "e" / "run.json").read_text())["left_out"] == {"new3": "c3", "new6": "c3"}


@pytest.mark.parametrize(
    ("there", "labels", "background", "said"),
    [
        ({"a": 1, "b": 2}, {"a": 1, "b": 2}, (), ""),
        ({"B": 1, "a": 2}, {"b": 1, "a": 2}, (), ""),
        ({"tumour": 1, "a": 2, "b": 3}, {"a": 2, "b": 3}, (1,), "tumour count as background"),
        ({"label_1": 1, "label_2": 2}, {"a": 1, "b": 2}, (), "a is label_1 there, b is label_2 there"),
        ({"a": 1}, {"a": 1, "b": 2}, (), ""),
    ],
)
def test_structures_of_a_model_are_found_by_name_else_by_value(there, labels, background, said):
    data, told = with_labels_of({"a": 1, "b": 2}, DataSettings(labels=there))
    assert (dict(data.labels), data.background) == (labels, background)
    assert said in "".join(told)
    assert bool(said) == bool(told)


def test_a_value_that_means_something_else_is_no_structure_of_the_model():
    with pytest.raises(oasis_monai.ConfigError, match="the model's structures a, b, found 'a: 1, tumour: 2'"):
        with_labels_of({"a": 1, "b": 2}, DataSettings(labels={"a": 1, "tumour": 2}))


def test_structures_are_scored_by_name_whatever_the_order_of_their_values(phantom_two_labels, tmp_path):
    """The same scans with the values of both structures exchanged: every score stays what it was."""
    names = {"whole gland": 1, "inner part": 2}
    oasis_monai.train(tmp_path / "m", data={"root": str(phantom_two_labels), "labels": names}, **FEW)
    first, second = tmp_path / "first", tmp_path / "second"
    cases = find_cases(phantom_two_labels)[:2]
    for root, values in ((first, (0, 1, 2)), (second, (0, 2, 1))):
        (root / "labelsTr").mkdir(parents=True)
        (root / "imagesTr").mkdir()
        for case in cases:
            volume = read_volume(case, (0, 1, 2))
            label = np.array(values, np.uint8)[volume.label[0].numpy()]
            for folder, array in (("imagesTr", volume.image[0].numpy()), ("labelsTr", label)):
                nibabel.save(nibabel.Nifti1Image(array, volume.geometry.affine), root / folder / f"{case.id}.nii.gz")
        (root / "dataset.json").write_text(json.dumps({"labels": dict(zip(names, values[1:], strict=True))}))
    found = [
        oasis_monai.evaluate(
            tmp_path / "m",
            tmp_path / f"e_{root.name}",
            data={"root": str(root)},
            n=2,
            training_cases=True,
            save_segmentations=True,
            browser=False,
            overlays=1,
        )
        for root in (first, second)
    ]
    one, other = (e.scores.sort_values(["case", "label", "region"]).reset_index(drop=True) for e in found)
    pd.testing.assert_frame_equal(one, other)
    assert one["dsc"].max() > 0.3
    for file in (tmp_path / "e_second" / "segmentations").iterdir():  # written with the values of the data set
        swapped = np.array([0, 2, 1])[np.asarray(nibabel.load(tmp_path / "e_first" / "segmentations" / file.name).dataobj)]
        np.testing.assert_array_equal(np.asarray(nibabel.load(file).dataobj), swapped)
