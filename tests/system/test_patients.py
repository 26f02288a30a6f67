"""Several scans of a patient: nothing of one reaches what segments another, whatever step might carry it."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from oasis_monai.atlases.library import AtlasLibrary
from oasis_monai.atlases.slices import nearest_slice_atlases
from oasis_monai.data.folds import make_split
from oasis_monai.evaluation.report import write_report
from oasis_monai.segmentation.flags import typical_distance
from oasis_monai.segmentation.fusion import conditioned_weights, loa_weights
from oasis_monai.segmentation.loa import LoaTable
from oasis_monai.segmentation.segmenter import Segmenter
from oasis_monai.training.registration import Pairs
from oasis_monai.utils.errors import OasisError
from oasis_monai.workflows import crossval as module
from oasis_monai.workflows import train as train_module
from oasis_monai.workflows.crossval import crossval
from oasis_monai.workflows.fold_models import FoldModels
from oasis_monai.workflows.model import load_model
from oasis_monai.workflows.prepare import check_pairs, find_and_check, prepare, split_of
from oasis_monai.workflows.train import train_model
from tests.helpers.runs import copied, pixels, quiet, scores_of

PATIENTS = {f"Case{i:02d}": f"p{i // 2}" for i in range(7)}  # p0, p1, p2 with two scans, p3 with one


def known(cases, **more):
    """The cases with their patients, and two centres."""
    return [replace(c, patient=PATIENTS[c.id], centre="AB"[int(PATIENTS[c.id][1]) % 2], **more) for c in cases]


@pytest.fixture
def people(monkeypatch):
    """Runs of :func:`crossval` know the patients."""
    monkeypatch.setattr(module, "find_and_check", lambda *args: known(find_and_check(*args)))


@pytest.mark.usefixtures("people")
@pytest.mark.parametrize("folds", ["patient", "centre"])
def test_garbage_in_the_labels_of_a_tested_patient_changes_no_segmentation(settings, phantom, tmp_path, folds):
    data = copied(phantom, tmp_path)
    base = {"data": {"root": str(data)}, "methods": ["FwoW", "OASIS"], "n": [2], "fold": 1, "k": 3, "folds": folds}
    base["save_segmentations"] = True
    crossval(settings(base, {"cache": str(tmp_path / "one")}), tmp_path / "a", quiet)
    tested = set(scores_of(tmp_path / "a").case)
    assert {case for case in PATIENTS if PATIENTS[case] in {PATIENTS[c] for c in tested}} == tested
    assert len(tested) > 1
    for number, case in enumerate(sorted(tested)):
        path = data / f"{case}_segmentation.raw"
        path.write_bytes((np.random.default_rng(number).random(path.stat().st_size) < 0.5).astype(np.uint8).tobytes())
    crossval(settings(base, {"cache": str(tmp_path / "two")}), tmp_path / "b", quiet)
    before, after = pixels(tmp_path / "a"), pixels(tmp_path / "b")
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[name], after[name]) for name in before)
    assert scores_of(tmp_path / "b").dsc.max() < scores_of(tmp_path / "a").dsc.max()


@pytest.mark.usefixtures("people")
def test_the_run_and_its_page_say_who_was_tested_how(settings, tmp_path):
    crossval(settings({"methods": ["FwoW"], "folds": "centre"}), tmp_path / "a", quiet)
    scores = scores_of(tmp_path / "a")
    assert dict(zip(scores.case, scores.patient, strict=True)) == PATIENTS
    assert set(zip(scores.centre, scores.fold, strict=True)) == {("A", 0), ("B", 1)}
    record = json.loads((tmp_path / "a" / "run.json").read_text())
    assert record["folds"] == 2
    assert (record["data"]["cases"], record["data"]["patients"], record["data"]["centres"]) == (7, 4, 2)
    split = json.loads((tmp_path / "a" / "split.json").read_text())
    assert [fold["name"] for fold in split["folds"]] == ["A", "B"]
    assert split["cases"]["Case05"] == {"patient": "p2", "centre": "A"}
    assert (tmp_path / "a" / "centres.csv").read_text().count("\nA,") > 0
    page = write_report(tmp_path / "a").read_text()
    assert "7 cases of 4 patients" in page
    assert "leaving one centre out (2 centres)" in page
    assert "By centre, prostate" in page
    crossval(settings({"methods": ["FwoW"], "folds": "centre", "fold": "B"}), tmp_path / "b", quiet)
    assert "leaving one centre out (B)" in write_report(tmp_path / "b").read_text()


def test_without_several_cases_a_patient_s_name_changes_no_model_and_with_them_it_does(settings, tmp_path):
    made = settings()
    cases = find_and_check(made, None, quiet)

    def folder(cases):
        data = prepare(made, cases, None, quiet)
        split = make_split(dict.fromkeys(data.targets, 1), 3, 0)
        return FoldModels(made, data, split, tmp_path, quiet).folder(split.folds[0]), data.identity()

    plain = folder(cases)
    assert folder([replace(c, patient=f"x{c.id}", centre="A") for c in cases]) == plain
    assert folder(known(cases)) != plain


def sliced(prepared, dims):
    made, data = prepared(dims=dims)
    library = data.library
    return made, replace(library, patients=tuple(PATIENTS[case] for case in library.cases))


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("near", [0, 3])
def test_training_pairs_are_of_two_patients(prepared, dims, near):
    _, library = sliced(prepared, dims)
    atlases, targets = Pairs(library, near).draw(500, torch.Generator().manual_seed(0))
    assert all(library.patients[a] != library.patients[t] for a, t in zip(atlases.tolist(), targets.tolist(), strict=True))
    alone = replace(library, patients=("one",) * len(library))
    with pytest.raises(OasisError, match=r"at least two training patients to form pairs, found '1 patient"):
        Pairs(alone, near)


@pytest.mark.parametrize("dims", [2, 3])
def test_no_atlas_of_the_target_s_patient_is_selected_and_none_enters_its_loa_pairs(prepared, dims):
    _, library = sliced(prepared, dims)
    segmenter = Segmenter(library)
    others = sum(patient != "p1" for patient in library.patients)
    selection = segmenter.select(library.features[:2], others, "p1")
    assert {library.patients[i] for i in selection.indices.flatten().tolist()} == {"p0", "p2", "p3"}
    with pytest.raises(OasisError, match=f"1 to {others}"):
        segmenter.select(library.features[:2], others + 1, "p1")
    assert library.patient_of("Case03") == "p1"
    assert library.cases_of("p1") == ["Case02", "Case03"]
    assert typical_distance(replace(library, patients=("one",) * len(library)), "l2") is None


def test_beside_a_training_slice_stands_no_atlas_of_its_patient(prepared):
    _, library = sliced(prepared, 2)
    rows = torch.arange(len(library))
    near = nearest_slice_atlases(library, 2, False, rows)
    assert all(library.patients[a] != library.patients[row] for row in rows.tolist() for a in near[row].tolist())


def test_a_library_keeps_its_patients_and_one_of_an_earlier_version_has_each_case_by_itself(prepared, tmp_path):
    _, library = sliced(prepared, 3)
    library.save(tmp_path / "new.safetensors")
    assert AtlasLibrary.load(tmp_path / "new.safetensors").patients == library.patients
    part = library.subset([1, 4])
    assert part.patients == ("p0", "p2")
    assert part.merge(library.subset([6])).patients == ("p0", "p2", "p3")
    replace(library, patients=library.cases).save(tmp_path / "old.safetensors")
    assert b"patients" not in (tmp_path / "old.safetensors").read_bytes()
    assert AtlasLibrary.load(tmp_path / "old.safetensors").patients == library.cases
    with pytest.raises(OasisError, match="expected 7, one a row, found 1"):
        replace(library, patients=("a",))


def test_checks_count_patients(settings, tmp_path):
    made = settings({"k": 2, "methods": ["OASIS"], "n": [1]})
    two = [replace(c, patient=f"p{i % 2}") for i, c in enumerate(find_and_check(made, None, quiet))]
    data = prepare(made, two, None, quiet)
    with pytest.raises(OasisError, match="at least two training patients to form pairs, found '1'"):
        split_of(made, data)
    with pytest.raises(OasisError, match=r"k: expected no more folds than patients \(2\), found 3"):
        split_of(replace(made, k=3), data)
    check_pairs(made, make_split(dict.fromkeys(data.targets, 1), 3, 0))


def test_two_scans_of_a_patient_do_not_vouch_for_each_other(prepared):
    """What they overlap is neither computed nor counted: each weighs what atlases of others make of it."""
    _, library = sliced(prepared, 3)
    rows = torch.tensor([0, 1, 2, 4])  # p0 twice, p1, p2
    assert library.siblings(rows).nonzero().tolist() == [[0, 1], [1, 0]]
    overlaps = torch.rand(4, 4, generator=torch.Generator().manual_seed(0))
    known = overlaps.masked_fill(library.siblings(rows), torch.nan)
    raw = torch.tensor([
        (overlaps[2, 0] + overlaps[3, 0]) / 2,
        (overlaps[2, 1] + overlaps[3, 1]) / 2,
        (overlaps[0, 2] + overlaps[1, 2] + overlaps[3, 2]) / 3,
        (overlaps[0, 3] + overlaps[1, 3] + overlaps[2, 3]) / 3,
    ])  # fmt: skip
    assert torch.allclose(loa_weights(known), raw / raw.sum())
    assert torch.isfinite(conditioned_weights(known, torch.rand(4))).all()
    assert torch.equal(loa_weights(torch.tensor([[1.0, torch.nan], [torch.nan, 1.0]])), torch.tensor([0.5, 0.5]))

    class Counting(LoaTable):
        def _overlaps(self, pairs):
            asked.extend(map(tuple, pairs.tolist()))
            return torch.full((len(pairs),), 0.5)

    asked = []
    matrix = Counting(library, SimpleNamespace(batch=8)).matrix(rows)
    assert (0, 1) not in asked
    assert len(asked) == 10
    assert matrix.isnan().nonzero().tolist() == [[0, 1], [1, 0]]


def test_train_leaves_out_what_the_data_set_keeps_for_tests(settings, tmp_path, monkeypatch):
    kept = {"Case01", "Case06"}
    split = [replace(c, split="test" if c.id in kept else "train") for c in find_and_check(settings(), None, quiet)]
    monkeypatch.setattr(train_module, "find_and_check", lambda *args: split)
    monkeypatch.setattr(module, "find_and_check", lambda *args: split)
    said = []
    model = train_model(settings({"n": [1]}), tmp_path / "model", said.append)
    assert set(load_model(model).segmenter.library.cases) == set(PATIENTS) - kept
    assert any("2 of 7 cases are not trained with" in line for line in said)
    # and the split as the only fold tests them with that very training set
    crossval(settings({"methods": ["FwoW"], "folds": "file"}), tmp_path / "run", quiet)
    assert set(scores_of(tmp_path / "run").case) == kept
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (record["folds"], record["data"]["tested"]) == (1, 2)
    assert "Only" not in write_report(tmp_path / "run").read_text().partition("notices")[2][:400]
