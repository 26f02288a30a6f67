"""tables: the summary against numbers worked out by hand, the CSV byte for byte, joins that agree and that do not."""

import math
import random

import pytest

from oasis_monai.evaluation import scores as tables
from oasis_monai.utils.errors import DataError

NAN = math.nan
METRIC_NAMES = ("dsc", "rvd_percent", "arvd_percent", "hd_mm", "hd95_mm", "abd_mm")


def row(case="Case00", dsc=0.9, **changes):
    base = {
        "protocol": "patient", "fold": 0, "case": case, "label": "prostate", "region": "whole", "method": "OASIS", "n": 6,
        "status": "ok", "dsc": dsc, "rvd_percent": -5.0, "arvd_percent": 5.0, "hd_mm": 10.0, "hd95_mm": 6.0, "abd_mm": 2.0,
        "reference_ml": 40.0, "volume_ml": 38.0,
    }  # fmt: skip
    return base | changes


def miss(case, **changes):
    penalty = {"hd_mm": 200.0, "hd95_mm": 200.0, "abd_mm": 200.0, "rvd_percent": -100.0, "arvd_percent": 100.0}
    return row(case, 0.0, status="miss", volume_ml=0.0, **penalty, **changes)


def absent(case, **changes):
    return row(case, status="absent", **dict.fromkeys(METRIC_NAMES, NAN), reference_ml=0.0, volume_ml=0.0) | changes


def read(tmp_path, rows, name="scores.csv"):
    tables.write_scores(tmp_path / name, rows)
    return tables.read_scores(tmp_path / name)


def test_summary_by_hand(tmp_path):
    """DSC 0.8, 0.9, a miss (0) and a false positive (0), with one absent row that must not enter."""
    false_positive = row("Case03", 0.0, status="false_positive", rvd_percent=NAN, arvd_percent=NAN, hd_mm=100.0, reference_ml=0.0)
    rows = [row("Case00", 0.8, rvd_percent=10.0), row("Case01", 0.9), miss("Case02"), false_positive, absent("Case04")]
    (line,) = tables.summarise(read(tmp_path, rows)).to_dict("records")

    assert [line[k] for k in ("cases", "misses", "false_positives", "absent")] == [4, 1, 1, 1]
    assert (line["lowest_dsc"], line["lowest_case"]) == (0.0, "Case02")
    assert line["dsc_mean"] == pytest.approx(0.425)
    # deviations .375 .475 -.425 -.425: squares .140625 + .225625 + .180625 + .180625 = .7275; / 3 = .2425
    sd = math.sqrt(0.2425)
    assert line["dsc_sd"] == pytest.approx(sd)
    assert line["dsc_median"] == pytest.approx(0.4)
    half = 3.182446305 * sd / 2  # t(0.975, 3) from a printed table
    assert line["dsc_ci_low"] == 0.0  # 0.425 - 0.784 is below what a DSC can be
    assert line["dsc_ci_high"] == pytest.approx(min(0.425 + half, 1.0)) == 1.0
    assert line["hd_mm_mean"] == pytest.approx((10 + 10 + 200 + 100) / 4)
    # the false positive has no relative volume: three values, t(0.975, 2) = 4.302652730
    assert line["rvd_percent_mean"] == pytest.approx((10 - 5 - 100) / 3)
    sd = math.sqrt(sum((v + 95 / 3) ** 2 for v in (10, -5, -100)) / 2)
    assert line["rvd_percent_ci_high"] == pytest.approx(-95 / 3 + 4.302652730 * sd / math.sqrt(3))
    assert line["rvd_percent_ci_low"] == -100.0  # a volume cannot shrink by more


def test_interval_inside_the_range_is_not_cut(tmp_path):
    (line,) = tables.summarise(read(tmp_path, [row(f"Case{i}", d) for i, d in enumerate((0.70, 0.74, 0.78))])).to_dict("records")
    half = 4.302652730 * 0.04 / math.sqrt(3)
    assert (line["dsc_ci_low"], line["dsc_ci_high"]) == (pytest.approx(0.74 - half), pytest.approx(0.74 + half))


def test_one_case_has_no_spread_and_no_case_has_no_mean(tmp_path):
    summary = tables.summarise(read(tmp_path, [row("Case00", 0.8), absent("Case00", region="apex")]))
    whole, apex = summary.to_dict("records")
    assert (whole["cases"], whole["dsc_mean"], whole["dsc_median"]) == (1, 0.8, 0.8)
    assert all(math.isnan(whole[f"dsc_{name}"]) for name in ("sd", "ci_low", "ci_high"))
    assert (apex["cases"], apex["absent"], apex["lowest_case"]) == (0, 1, "")
    assert all(math.isnan(apex[f"{m}_{s}"]) for m in METRIC_NAMES for s in tables.STATISTICS)
    tables.write_summary(tmp_path / "summary.csv", summary)
    header, first, second = (line.split(",") for line in (tmp_path / "summary.csv").read_text().splitlines())
    assert dict(zip(header, first, strict=True))["dsc_ci_low"] == ""
    assert dict(zip(header, second, strict=True))["dsc_mean"] == ""


def test_groups_are_kept_apart_and_ordered(tmp_path):
    rows = [
        row(method=m, n=n, region=r, protocol=p, fold=-1)
        for m in ("zeta", "STAPLE", "OASIS", "FwoW") for n in (12, 2) for r in ("base", "apex", "whole")
        for p in ("slice", "patient")
    ]  # fmt: skip
    summary = tables.summarise(read(tmp_path, rows))
    assert len(summary) == len(rows)
    keys = list(zip(summary["protocol"], summary["method"], summary["n"], summary["region"], strict=True))
    assert keys[:4] == [("patient", "FwoW", 2, r) for r in ("whole", "apex", "base")] + [("patient", "FwoW", 12, "whole")]
    assert [k[1] for k in keys[::6]] == ["FwoW", "OASIS", "STAPLE", "zeta"] * 2


def test_csv_bytes_do_not_depend_on_order_and_read_back_exactly(tmp_path):
    rows = [row("Case10", 0.1 + 0.2), row("Case9", 1 / 3, rvd_percent=-0.0), absent('a,"b"\nc', label="Ünïcode")]
    rows += [row("Case10", region="apex"), row("Case10", method="FwoW", n=12), row("NA", label="1"), row("007", 1.0)]
    shuffled = random.Random(0).sample(rows, len(rows))
    first = read(tmp_path, rows)
    tables.write_scores(tmp_path / "again.csv", shuffled)
    assert (tmp_path / "scores.csv").read_bytes() == (tmp_path / "again.csv").read_bytes()
    tables.write_scores(tmp_path / "again.csv", first.to_dict("records"))  # through a reader and back
    assert (tmp_path / "scores.csv").read_bytes() == (tmp_path / "again.csv").read_bytes()
    assert first.set_index(["case", "region", "method"]).loc[("Case10", "whole", "OASIS"), "dsc"] == 0.1 + 0.2
    assert {"NA", "007", 'a,"b"\nc'} <= set(first["case"])
    text = (tmp_path / "scores.csv").read_text()
    assert text.splitlines()[0] == (
        "protocol,fold,case,patient,centre,label,region,method,n,status,dsc,rvd_percent,arvd_percent,hd_mm,hd95_mm,abd_mm,"
        "reference_ml,volume_ml,nsd,tolerance_mm,reference_pieces,found_pieces,missed_pieces,false_pieces"
    )
    assert "-0.0" not in text
    assert "nan" not in text.lower()


BAD_ROWS = [
    ({"status": "lost"}, "status.*expected one of ok, miss, false_positive, absent, found 'lost'"),
    ({"region": "middle"}, "region.*expected one of whole, apex, mid, base, found 'middle'"),
    ({"protocol": "random"}, "protocol.*expected one of patient, centre, file, slice"),
    ({"case": ""}, "case.*expected a name"),
    ({"label": 1}, "label.*expected a name, found 1"),
    ({"dsc": 83.0}, "dsc.*from 0 to 1, found 83.0"),
    ({"dsc": NAN}, "dsc.*status ok.*finite"),
    ({"hd_mm": math.inf}, "hd_mm.*finite"),
    ({"hd_mm": NAN, "status": "false_positive"}, "hd_mm.*finite"),
    ({"abd_mm": -1.0}, "abd_mm.*from 0"),
    ({"rvd_percent": -101.0}, "rvd_percent.*from -100"),
    ({"volume_ml": "much"}, "volume_ml.*found 'much'"),
    ({"n": 2.5}, "n in.*whole number from 0, found 2.5"),
    ({"n": -1}, "n in.*whole number from 0"),
    ({"fold": NAN}, "fold.*whole number from -1"),
    ({"colour": "red"}, "columns.*found colour"),
]


@pytest.mark.parametrize(("change", "match"), BAD_ROWS)
def test_bad_rows_are_one_line_errors_and_leave_the_old_file(tmp_path, change, match):
    tables.write_scores(tmp_path / "scores.csv", [row()])
    before = (tmp_path / "scores.csv").read_bytes()
    with pytest.raises(DataError, match=match) as error:
        tables.write_scores(tmp_path / "scores.csv", [row() | change])
    assert "\n" not in str(error.value)
    assert (tmp_path / "scores.csv").read_bytes() == before


def test_every_fault_is_named_and_many_are_counted(tmp_path):
    with pytest.raises(DataError) as error:
        tables.write_scores(tmp_path / "s.csv", [row(f"Case{i:02d}", 2.0) for i in range(25)])
    lines = str(error.value).splitlines()
    assert len(lines) == 21
    assert lines[19].startswith("Case19: dsc")
    assert "5 more" in lines[20]


def test_two_rows_of_one_key_and_missing_columns(tmp_path):
    with pytest.raises(DataError, match=r"Case00.*one row per"):
        tables.write_scores(tmp_path / "s.csv", [row(), row()])
    with pytest.raises(DataError, match="found no dsc, hd_mm"):
        tables.write_scores(tmp_path / "s.csv", [{k: v for k, v in row().items() if k not in ("dsc", "hd_mm")}])


def _edit(text):
    return lambda path: path.write_text(text(path.read_text()))


DAMAGED = [
    (_edit(lambda t: t.replace("hd95_mm", "hd96_mm")), "expected the columns .* found no hd95_mm"),
    (_edit(lambda t: t.replace(",ok,", ",fine,")), "Case00: status .* found 'fine'"),
    (_edit(lambda t: t.replace(",0.9,", ",0.9,,")), "fields in every row, found a longer row"),
    (_edit(lambda t: t[: t.rindex(",")]), "fields in every row, found a shorter row"),
    (_edit(lambda t: ""), "found no protocol"),
    (lambda p: p.write_bytes(b"\xff\xfe\x00"), "a readable CSV in UTF-8"),
    (lambda p: p.unlink(), "found no file"),
]


@pytest.mark.parametrize(("damage", "match"), DAMAGED)
def test_damaged_files(tmp_path, damage, match):
    path = tmp_path / "scores.csv"
    tables.write_scores(path, [row()])
    damage(path)
    with pytest.raises(DataError, match=match):
        tables.read_scores(path)


def test_further_columns_are_left_out_and_no_rows_are_fine(tmp_path):
    path = tmp_path / "scores.csv"
    tables.write_scores(path, [row()])
    path.write_text("\n".join(f"{line},{i}" for i, line in enumerate(path.read_text().splitlines())))
    assert list(tables.read_scores(path).columns) == list(tables.SCORE_COLUMNS)
    empty = tables.summarise(read(tmp_path, []))
    assert (len(empty), list(empty.columns)) == (0, list(tables.SUMMARY_COLUMNS))
    assert tables.summary_text(empty) == "No scores yet.\n"


def test_join_unites_and_collapses(tmp_path):
    a, b = row("Case00"), absent("Case01", fold=1)
    jobs = {"a.csv": [a, b], "b.csv": [b, row("Case02", fold=2)], "c.csv": [row("Case00", n=2)]}
    for name, rows in jobs.items():
        tables.write_scores(tmp_path / name, rows)
    joined = tables.join_scores([tmp_path / name for name in jobs])
    tables.write_scores(tmp_path / "joined.csv", joined.to_dict("records"))
    tables.write_scores(tmp_path / "once.csv", [a, b, row("Case02", fold=2), row("Case00", n=2)])
    assert (tmp_path / "joined.csv").read_bytes() == (tmp_path / "once.csv").read_bytes()


def test_join_names_contradictions(tmp_path):
    tables.write_scores(tmp_path / "a.csv", [row("Case00", 0.9), row("Case01"), row("Case02")])
    tables.write_scores(tmp_path / "b.csv", [row("Case00", 0.8), row("Case01"), row("Case02", n=2, fold=3)])
    with pytest.raises(DataError) as error:
        tables.join_scores([tmp_path / "a.csv", tmp_path / "b.csv"])
    lines = str(error.value).splitlines()
    assert len(lines) == 2
    first, second = (next(line for line in lines if line.startswith(case)) for case in ("Case00", "Case02"))
    assert "dsc of OASIS-6 prostate whole (patient folds): expected 0.9 as in" in first
    assert "found 0.8 in" in first
    assert "a.csv" in first
    assert "b.csv" in first
    assert "fold: expected 0 as in" in second  # another key, but the patients were split otherwise


def test_paired_difference_by_hand(tmp_path):
    rows = [row(f"Case{i}", d) for i, d in enumerate((0.80, 0.90, 0.70))] + [row("Case3", 0.5), absent("Case4")]
    rows += [row(f"Case{i}", d, method="FwoW") for i, d in enumerate((0.50, 0.62, 0.38))] + [row("Case4", 0.1, method="FwoW")]
    (line,) = tables.paired_difference(read(tmp_path, rows), ("OASIS", 6), ("FwoW", 6)).to_dict("records")
    # differences .30 .28 .32: mean .30, sd .02
    half = 4.302652730 * 0.02 / math.sqrt(3)
    assert (line["cases"], line["unpaired"]) == (3, 2)
    assert [line[k] for k in ("mean", "sd", "ci_low", "ci_high")] == pytest.approx([0.30, 0.02, 0.30 - half, 0.30 + half])
    with pytest.raises(ValueError, match="metric: expected one of dsc"):
        tables.paired_difference(read(tmp_path, rows), ("OASIS", 6), ("FwoW", 6), metric="dice")


def test_console_table(tmp_path):
    rows = [row("Case00", 0.80), row("Case01", 0.84), miss("Case00", region="apex"), row("Case01", 0.7, region="apex")]
    rows += [row("Case00", 0.6, method="FwoW"), absent("Case01", method="FwoW")]
    title, head, fwow, oasis, note = tables.summary_text(tables.summarise(read(tmp_path, rows))).splitlines()
    assert title == "prostate, patient folds (honest)"
    assert head.split()[:2] == ["method", "n"]
    assert " ".join(oasis.split()) == "OASIS 6 82.0 ± 2.8 [56.6, 100.0] 80.0 (Case00) 35.0 6.0 5.0 0/1 2 0"
    assert " ".join(fwow.split()) == "FwoW 6 60.0 60.0 (Case00) - 6.0 5.0 0/- 1 1"
    assert "Misses count" in note
    slices = tables.summary_text(tables.summarise(read(tmp_path, [row(protocol="slice", fold=-1)])))
    assert slices.startswith("prostate, slice folds (the paper's protocol: slices of one patient on both sides)\n")


def test_surface_dice_and_pieces_are_summed_up_where_they_are_known(tmp_path):
    pieces = {"reference_pieces": 3, "found_pieces": 2, "missed_pieces": 1, "false_pieces": 0}
    rows = [row("Case00", nsd=0.8, tolerance_mm=2.0, **pieces), row("Case01", nsd=0.6, tolerance_mm=2.0, **pieces)]
    rows += [row("Case00", region="apex", nsd=0.5, tolerance_mm=2.0)]
    scores = read(tmp_path, rows)
    lines = (tmp_path / "scores.csv").read_text().splitlines()
    assert [line.split(",")[-6:] for line in lines[1:]] == [
        ["0.8", "2.0", "3", "2", "1", "0"],
        ["0.6", "2.0", "3", "2", "1", "0"],
        ["0.5", "2.0", "", "", "", ""],
    ]
    summary = tables.summarise(scores)
    whole, apex = summary.to_dict("records")
    assert (whole["nsd_mean"], whole["reference_pieces"], whole["missed_pieces"]) == (pytest.approx(0.7), 6, 2)
    assert whole["nsd_ci_high"] == 1.0
    assert math.isnan(apex["reference_pieces"])
    tables.write_summary(tmp_path / "summary.csv", summary)
    header, first, _ = (line.split(",") for line in (tmp_path / "summary.csv").read_text().splitlines())
    assert dict(zip(header, first, strict=True))["reference_pieces"] == "6"
    text = tables.summary_text(summary)
    assert "NSD %" in text
    assert "70.0" in text
    assert "4/2/0" in text
    with pytest.raises(DataError, match=r"nsd.*from 0 to 1, found 1.2"):
        tables.write_scores(tmp_path / "bad.csv", [row(nsd=1.2)])


def test_a_file_of_before_has_no_surface_dice_and_no_pieces(tmp_path):
    read(tmp_path, [row("Case00", 0.8), absent("Case01")])
    lines = [line.split(",")[: -len(tables.LATER)] for line in (tmp_path / "scores.csv").read_text().splitlines()]
    (tmp_path / "old.csv").write_text("".join(",".join(line) + "\n" for line in lines))
    scores = tables.read_scores(tmp_path / "old.csv")
    assert scores[list(tables.LATER)].isna().all(axis=None)
    summary = tables.summarise(scores)
    assert summary["nsd_mean"].isna().all()
    assert not tables.of_several_pieces(summary)
    text = tables.summary_text(summary)
    assert "80.0" in text
    assert "NSD" not in text
    assert "pieces" not in text


def test_labels_with_numbers_are_in_the_order_of_the_numbers_in_tables(tmp_path):
    scores = read(tmp_path, [row(label=name) for name in ("label_103", "aorta", "label_13", "label_2")])
    assert scores["label"].tolist() == ["aorta", "label_103", "label_13", "label_2"]  # a file stays as it was
    summary = tables.summarise(scores)
    assert summary["label"].tolist() == ["aorta", "label_2", "label_13", "label_103"]
    text = tables.summary_text(summary)
    assert text.index("label_2,") < text.index("label_13,") < text.index("label_103,")
