"""Changed scans are what they claim to be, and no prediction is calibrated on what it is tested with."""

import numpy as np
import pandas as pd
import pytest
import torch

from benchmarks.robustness import adapt, failures, off_centre, suspects, unlabelled, views
from oasis_monai.data.types import Geometry, Volume
from oasis_monai.evaluation.suspects import Finding
from oasis_monai.transforms.corruptions import draw_corruptions
from tests.conftest import JOINT, TINY, merged, overrides


def test_a_scan_that_is_padded_has_its_structure_aside_of_its_centre_by_so_much():
    affine = np.array([[-2.0, 0, 0, 7], [0, 0, 1.0, 8], [0, 3.0, 0, 9], [0, 0, 0, 1]])  # axes: left, superior, anterior
    label = torch.zeros(1, 60, 10, 100, dtype=torch.uint8)
    label[:, 28:32, 4:6, 48:52] = 1
    volume = Volume("c", label.float(), label, Geometry((60, 10, 100), affine))

    def aside(scan):
        at = np.argwhere(scan.label[0].numpy()).mean(0) - (np.array(scan.geometry.shape) - 1) / 2
        return scan.geometry.affine[:3, :3] @ at

    assert aside(volume) == pytest.approx([0, 0, 0])
    for direction, expected in enumerate(([-20, 0, 0], [20, 0, 0], [0, -20, 0], [0, 20, 0])):
        made = off_centre.padded(volume, 20, direction)
        assert aside(made) == pytest.approx(expected)  # the centre went the other way
        world = made.geometry.affine @ [*np.argwhere(made.label[0].numpy())[0], 1]
        assert world == pytest.approx(affine @ [28, 4, 48, 1])  # the patient did not move
    assert off_centre.padded(volume, 0, 2).geometry.shape == (60, 10, 100)


def test_an_enlarged_scan_has_the_same_voxels_of_another_size():
    affine = np.array([[-2.0, 0, 0, 7], [0, 0, 1.0, 8], [0, 3.0, 0, 9], [0, 0, 0, 1]])
    label = torch.zeros(1, 4, 5, 6, dtype=torch.uint8)
    volume = Volume("c", label.float(), label, Geometry((4, 5, 6), affine))
    made = views.enlarged(volume, 1.5)
    assert made.geometry.spacing_mm == pytest.approx((3, 4.5, 1.5))
    assert made.geometry.voxel_ml == pytest.approx(1.5**3 * volume.geometry.voxel_ml)
    assert made.label is volume.label


def viewed(case, change, search, dsc, agreement=0.95, tried=0, flags="", fold=0):
    """A row of the benchmark of views."""
    about = {"fold": fold, "label": "a", "view": "", "seconds": 1.0 + tried, "tried": tried, "flags": flags}
    told = {"agreement": agreement, "networks": agreement, "atlases": agreement}
    return about | told | {"case": case, "change": change, "views": search, "dsc": dsc}


def test_a_changed_scan_is_kept_flagged_or_a_silent_failure():
    """Each is compared with the same case, untouched and segmented in the same way."""
    rows = [viewed(case, "untouched", search, dsc) for case, dsc in (("x", 0.9), ("y", 0.8)) for search in views.SEARCHES]
    rows += [viewed("x", "halved", "none", 0.85), viewed("x", "halved", "doubtful", 0.885, tried=4, flags="view")]
    rows += [viewed("y", "halved", "none", 0.785), viewed("y", "halved", "doubtful", 0.7, agreement=0.5)]
    told = views.judged(pd.DataFrame(rows)).set_index(["case", "change", "views"])
    halved = told.xs("halved", level="change")
    assert halved["kept"].to_dict() == {
        ("x", "none"): False,
        ("x", "doubtful"): True,
        ("y", "none"): True,
        ("y", "doubtful"): False,
    }
    assert halved["flagged"].to_dict() == {
        ("x", "none"): False,  # a silent failure
        ("x", "doubtful"): True,
        ("y", "none"): False,
        ("y", "doubtful"): True,  # the parts disagree
    }
    assert told.xs("untouched", level="change")["kept"].all()
    lines = views.table(told.reset_index()).splitlines()
    assert lines[0].startswith(
        "| scans | DSC, views=none | lowest, views=none | kept, views=none | kept or flagged, views=none |"
    )
    cells = lines[3].strip("| ").split(" | ")
    assert cells[:7] == ["halved", "81.8", "78.5", "1 of 2", "1 of 2", "0 of 2", "1.0"]
    assert cells[7:] == ["79.2", "70.0", "1 of 2", "2 of 2", "2 of 2", "3.0", "1 of 2", "5.0"]
    assert lines[4].startswith("| **all** |")
    assert len(lines) == 5


def test_views_are_not_calibrated_on_their_own_fold_or_on_changes_that_no_run_would_make():
    random = np.random.default_rng(0)
    rows = pd.DataFrame(
        [
            viewed(f"c{i}", change, "none", dsc, dsc, fold=i % 3)
            for i in range(30)
            for change in views.CHANGES
            for dsc in [random.uniform(0.3, 0.9)]
        ]
    )
    told = views.judged(rows)
    assert np.allclose(told["predicted_dsc"], told["dsc"], atol=1e-6)  # the overlaps are the truth here
    mine = (rows["fold"] == 1) & (rows["change"] == "inverted")
    other = rows.copy()
    other.loc[(rows["fold"] == 1) | rows["change"].isin(["inverted", "halved", "enlarged 2 times", "moved by 40 mm"]), "dsc"] = (
        0.1
    )
    again = views.judged(other)
    assert np.allclose(again["predicted_dsc"][mine], told["predicted_dsc"][mine])
    other.loc[rows["change"] == "upside down", "dsc"] = 0.1
    assert not np.allclose(views.judged(other)["predicted_dsc"][mine], told["predicted_dsc"][mine])


def test_nothing_is_calibrated_on_its_own_fold_its_own_corruption_or_what_a_run_would_not_have_made():
    random = np.random.default_rng(0)
    names = [failures.UNTOUCHED, *failures.CORRUPTIONS]
    rows = pd.DataFrame(
        [
            {"fold": i % 3, "case": f"c{i}", "corruption": c, "label": "a", "dsc": d, "networks": d, "atlases": d, "flags": ""}
            for i in range(30)
            for c in names
            for d in [random.uniform(0.3, 0.9)]
        ]
    )
    told = failures.predicted(rows, 2, 0)
    assert np.allclose(told["predicted_dsc"], told["dsc"], atol=1e-6)  # the overlaps are the truth here
    made = {(f"c{i}", name) for i in range(30) for name, _ in draw_corruptions(f"c{i}", 2, 0)} | {
        (f"c{i}", names[0]) for i in range(30)
    }
    mine = (rows["fold"] == 1) & (rows["corruption"] == "noise")
    other = rows.copy()
    not_made = np.array([key not in made for key in zip(rows["case"], rows["corruption"], strict=True)])
    other.loc[(rows["fold"] == 1) | (rows["corruption"] == "noise") | not_made, "dsc"] = 0.1
    again = failures.predicted(other, 2, 0)
    assert np.allclose(again["predicted_dsc"][mine], told["predicted_dsc"][mine])
    untouched = rows["corruption"] == failures.UNTOUCHED
    other.loc[~untouched, "dsc"] = 0.1
    assert np.allclose(failures.predicted(other, 0, 0)["predicted_dsc"][mine], told["predicted_dsc"][mine], atol=1e-6)
    text = failures.table(told)
    assert "| **all** | 330 |" in text
    assert f"| 1.00 | {int((told['dsc'] < 0.7).sum())} |" in text


def test_one_fold_is_segmented_as_it_is_corrupted_and_padded(phantom, tmp_path):
    small = merged(TINY, JOINT, {"cache": str(tmp_path / "cache"), "fold": 0})
    for own in ("data", "methods", "n"):  # named below, or set by the benchmark
        del small[own]
    words = ["--n", "2", "--output", str(tmp_path), f"data.root={phantom}", *overrides(small)]
    failures.main(words)
    corrupted = pd.read_csv(tmp_path / "failures.csv")
    views.main(["--change", "halved", "--change", "inverted", "--views", "none", *words])
    viewed_rows = pd.read_csv(tmp_path / "views.csv")
    assert set(viewed_rows["change"]) == {"untouched", "halved", "inverted"}
    assert set(viewed_rows["views"]) == {"none"}
    assert (viewed_rows[viewed_rows["change"] == "untouched"]["kept"]).all()
    off_centre.main(words)
    padded = pd.read_csv(tmp_path / "offcentre.csv")
    cases = set(corrupted["case"])
    assert len(cases) == 2  # of seven in five folds
    untouched = corrupted[corrupted["corruption"] == failures.UNTOUCHED]
    assert set(corrupted["corruption"]) == {failures.UNTOUCHED, *failures.CORRUPTIONS}
    assert corrupted[["dsc", "predicted_dsc"]].stack().between(0, 1).all()
    assert len(padded) == len(cases) * len(off_centre.ASIDE_MM) * 2
    still = padded[(padded["aside_mm"] == 0) & padded["follows"]]  # the same scan, grid and model
    assert dict(zip(still["case"], still["dsc"], strict=True)) == dict(zip(untouched["case"], untouched["dsc"], strict=True))
    assert (tmp_path / "failures.png").stat().st_size > 1000


def test_a_centre_is_scored_without_the_scans_that_its_model_was_adapted_with(phantom, tmp_path):
    quick = {"folds": "centre", "fold": "north", "views": "none", "joint": {"tta_views": 0}}
    small = merged(TINY, JOINT, {"cache": str(tmp_path / "cache")}, quick)
    for own in ("data", "methods", "n"):
        del small[own]
    centres = "data.centre={north:'Case0[0-3]$',south:'Case0[4-6]$'}"
    words = ["--scans", "2", "--own", "1", "--minutes", "0.001", "--n", "2", "--output", str(tmp_path)]
    adapt.main([*words, f"data.root={phantom}", centres, *overrides(small)])
    rows = pd.read_csv(tmp_path / "adapt.csv")
    assert rows[["dsc", "agreement"]].stack().between(0, 1).all()
    new, own = rows[rows["kind"] == adapt.NEW], rows[rows["kind"] == adapt.OWN]
    assert set(new["case"]) < {f"Case0{i}" for i in range(4)}
    assert new["case"].nunique() == 2  # the other two it was adapted with
    assert all(sorted(part["model"]) == ["adapt", "before", "library add"] for _, part in new.groupby("case"))
    assert set(own["case"]) < {f"Case0{i}" for i in range(4, 7)}
    assert sorted(own["model"]) == ["adapt", "before"]
    assert new.groupby("case")["dsc"].nunique().max() > 1  # the models are not the same


def test_the_gain_of_a_patient_in_several_draws_counts_once():
    def row(patient, draw, model, dsc, kind=adapt.NEW, centre="a"):
        return dict(
            zip(
                ("centre", "draw", "model", "case", "patient", "kind", "label", "dsc", "agreement"),
                (centre, draw, model, patient, patient, kind, "gland", dsc, dsc),
                strict=True,
            )
        )

    rows = [row("p", 0, model, dsc) for model, dsc in ((adapt.BEFORE, 0.8), (adapt.ADDED, 0.7), (adapt.ADAPTED, 0.86))]
    rows += [row("p", 1, model, dsc) for model, dsc in ((adapt.BEFORE, 0.8), (adapt.ADDED, 0.7), (adapt.ADAPTED, 0.82))]
    rows += [row("q", 1, model, dsc) for model, dsc in ((adapt.BEFORE, 0.6), (adapt.ADDED, 0.6), (adapt.ADAPTED, 0.7))]
    rows += [row("o", 1, model, dsc, adapt.OWN) for model, dsc in ((adapt.BEFORE, 0.9), (adapt.ADAPTED, 0.88))]
    line = adapt.table(pd.DataFrame(rows)).splitlines()[2].split(" | ")
    assert line[:3] == ["| a", "2", "70.0"]
    assert line[6:8] == ["77.0", "70.0"]
    assert line[8].startswith("+7.0 [")  # of +4 and +10
    assert line[-2:] == ["90.0", "88.0 |"]


def test_planted_labels_are_what_they_claim_to_be():
    random = np.random.default_rng(0)
    label = np.zeros((12, 10, 9), np.uint8)
    label[3:8, 2:5, 1:7] = 1
    label[3:5, 5:8, 2:4] = 2
    moved = suspects.shifted(label, 2, random)
    assert any(
        np.array_equal(moved[..., a], label[..., b]) for a, b in ((slice(2, None), slice(-2)), (slice(-2), slice(2, None)))
    )
    assert any(np.array_equal(suspects.mirrored(label, 2, random), np.flip(label, axis)) for axis in range(3))
    robbed = suspects.without_a_third(label, 2, random)
    gone = np.flatnonzero((robbed != label).any(axis=(0, 1)))
    assert gone.tolist() == list(range(gone[0], gone[0] + 2))  # of its six slices
    assert not robbed[..., gone].any()
    swapped = suspects.swapped(label, 2, random)
    assert np.array_equal(swapped == 1, label == 2)
    assert np.array_equal(swapped == 2, label == 1)


def test_a_label_is_placed_centre_on_centre_in_millimetres():
    fine, coarse = (Geometry(shape, np.diag([*mm, 1.0])) for shape, mm in (((9, 9, 5), (1, 1, 3)), ((5, 7, 5), (2, 2, 3))))
    label = np.zeros(fine.shape, np.uint8)
    label[3:6, 4, 2] = 1  # 3 mm round the centre
    made = suspects.placed(label, fine, coarse)
    assert np.argwhere(made).tolist() == [[2, 3, 2]]
    assert np.array_equal(suspects.placed(label, fine, fine), label)


def test_planted_labels_are_ranked_among_cases_with_failing_scans():
    """Right labels agree with results; of every corrupted scan the result is wrong, and its parts say so."""

    def row(case, kind, share, dsc, variant=0):
        counts = torch.tensor([[[share * 1e4, 1e4]], [[share * 1e4, 1e4]]], dtype=torch.float64)
        found = [Finding(f"c{case}", "gland", dsc, (), "only the border differs", ())]
        return {"case": f"c{case}", "fold": case % 4, "variant": variant, "agreement": counts, "kind": kind, "findings": found}

    random = np.random.default_rng(0)
    rows = [row(i, suspects.RIGHT, share, share) for i, share in enumerate(random.uniform(0.85, 0.95, 21))]
    rows += [row(i, suspects.CORRUPTED, 0.2, 0.1) for i in range(21)]
    rows += [row(i, "shifted", 0.9, 0.5, variant) for i in range(21) for variant in range(suspects.VARIANTS)]
    planted = suspects.drawn(pd.DataFrame(rows), ["gland"], ["shifted"], draws=8, seed=0)
    assert len(planted) == 8 * 3
    assert (planted["rank"] <= 3).all()
    assert (planted["rank_by_dice"] > 3).all()
    assert (planted["innocent_suspects"] == 0).all()
    assert "| **all** | 24 | 100.0 % | 100.0 % | 0.0 % | 2 | 100.0 % |" in suspects.table(planted, 21)


def test_unlabelled_scans_are_measured_on_cases_that_no_training_has_seen(phantom, tmp_path):
    small = merged(TINY, JOINT, {"cache": str(tmp_path / "cache"), "k": 3, "joint": {"tta_views": 0}})
    small = merged(small, {"training": {"iterations": 2}, "self_training": {"least_agreement": 0.0, "rounds": 1}})
    for own in ("data", "methods", "n"):
        del small[own]
    words = [f"data.root={phantom}", *overrides(small), "--output", str(tmp_path), "--sizes", "2", "--folds", "1", "--longer"]
    unlabelled.main(words)
    rows, scans = pd.read_csv(tmp_path / "unlabelled.csv"), pd.read_csv(tmp_path / "unlabelled_scans.csv")
    assert set(rows["model"]) == {unlabelled.BEFORE, unlabelled.LONGER, unlabelled.AFTER}
    assert rows.groupby("case")["model"].nunique().eq(3).all()
    assert rows["dsc"].between(0, 1).all()
    assert set(rows["labelled"]) == set(scans["labelled"]) == {2}
    assert not set(rows["case"]) & set(scans["case"])
    assert len(set(rows["case"]) | set(scans["case"])) == 7 - 2  # but for the labelled ones
    lines = (tmp_path / "unlabelled.md").read_text().splitlines()
    assert [line.split(" | ")[1] for line in lines[2:]] == [unlabelled.BEFORE, unlabelled.LONGER, unlabelled.AFTER]
    before = rows[rows["model"] == unlabelled.BEFORE]
    assert f"{100 * before['dsc'].mean():.1f} [" in lines[2]


def test_gains_of_unlabelled_scans_are_paired_and_only_kept_labels_are_told_as_trained_with():
    about = {"labelled": 4, "fold": 0, "kind": "test case", "label": "a"}
    rows = [
        {**about, "model": model, "case": case, "patient": case, "dsc": dsc}
        for model, scores in ((unlabelled.BEFORE, (0.6, 0.8, 0.7)), (unlabelled.AFTER, (0.7, 0.9, 0.8)))
        for case, dsc in zip("xyz", scores, strict=True)
    ]
    scans = {**about, "kind": unlabelled.SCANS, "model": unlabelled.AFTER, "round": 1}
    rows += [
        {**scans, "case": case, "dsc": dsc, "refused": refused}
        for case, dsc, refused in (("p", 0.9, ""), ("q", 0.8, ""), ("r", 0.3, "agreement below 0.8"))
    ]
    lines = unlabelled.table(pd.DataFrame(rows)).splitlines()
    assert lines[2] == "| 4 | labelled alone | 3 | 70.0 [45.2, 94.8] | 60.0 |  |  |  |  |  |"
    assert (
        lines[3] == "| 4 | with unlabelled | 3 | 80.0 [55.2, 104.8] | 70.0 | +10.0 [+10.0, +10.0] | 3 | 2 | 85.0, 80.0 | 30.0 |"
    )
    assert len(lines) == 4
