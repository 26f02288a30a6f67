"""Table 1, ablations, audit and learning curve: numbers worked out by hand, and what is written for people."""

import math

import pandas as pd
import pytest

from oasis_monai.evaluation.comparison import PRINTED, ablation, audit, table1, write_table
from oasis_monai.evaluation.learning_curve import learning_table, read_learning, write_learning
from oasis_monai.evaluation.tables import Cell, Grid, best_bold, latex, markdown
from oasis_monai.networks.segmentation import NETWORKS
from oasis_monai.utils.errors import DataError
from tests.helpers import study_rows
from tests.helpers.study_rows import CASES, GROUPS, study


def dsc(method, n, i, protocol):
    """OASIS best at n = 4, FwoW at 2, always 0.1 apart; slice folds 0.2 above patient folds."""
    level = {"OASIS": 0.7, "FwoW": 0.6, "ConvNet3D": 0.65, "ConvNet2D": 0.5, "OASIS 3D": 0.75}.get(method, 0.55)
    best = {"OASIS": 4, "FwoW": 2}.get(method, n)
    return level + 0.2 * (protocol == "slice") - 0.01 * abs(n - best) + 0.002 * i


def texts(grid):
    return {(row[0].text, row[1].text.split(",")[0]): [c.text for c in row[2:]] for row in grid.rows}


def test_table1_has_the_paper_s_rows_measured_beside_printed():
    made = table1(study(["ConvNet2D", "FwoW", "OASIS", "ConvNet3D", "OASIS 3D", "majority"], dsc=dsc), GROUPS, "patient")
    (grid,) = made.grids
    names = [row[0].text for row in grid.rows]
    assert names == [
        *("ConvNet2D", "ConvNet2D", "FwoW-2", "FwoW-n*", "FWAL-4", "FWAL", "ConvNet3D", "ConvNet3D"),
        *("OASIS-4", "OASIS-n*", "OASIS 3D-n*"),
    ]
    told = texts(grid)
    assert told["OASIS-4", "printed"][:9] == [f"{v:.2f}" for v in PRINTED["OASIS"][1]]
    assert told["FWAL", "not measured"][0] == "\N{EN DASH}"
    at = grid.head.index("DSC % whole") - 2
    assert told["OASIS-n*", "measured"][at].startswith("70.9 [")  # 70 + mean of 0.2 * 0..9
    assert "measured, n = 4, 4, 4, 4, 4" in [row[1].text for row in grid.rows]
    difference = told["FwoW-n*", "measured"][-2]
    assert difference == "+10.0 [+10.0, +10.0]"
    assert told["OASIS-n*", "measured"][-2:] == ["\N{EN DASH}"] * 2
    assert any("hidden test set" in note for note in grid.notes)


def test_table1_tidy_rows_carry_means_and_the_corrected_p():
    tidy = table1(study(["FwoW", "OASIS", "ConvNet3D"], dsc=dsc), GROUPS, "patient").tidy
    at = tidy[(tidy.metric == "dsc") & (tidy.region == "whole")].set_index(["source", "method"])
    assert at.loc[("measured", "OASIS"), "mean"] == pytest.approx(70.9)
    assert at.loc[("measured", "FwoW"), "difference"] == pytest.approx(10.0)
    assert at.loc[("measured", "FwoW"), "p"] == pytest.approx(2 / 2**10)
    assert at.loc[("measured", "FwoW"), "p_holm"] == pytest.approx(2 * 2 / 2**10)  # two rows are compared
    assert at.loc[("printed", "OASIS"), "mean"] == 92.81
    assert (tidy[tidy.source == "measured"].cases == len(CASES)).all()


def test_misses_are_counted_and_count():
    scores = study(["FwoW", "OASIS"], dsc=dsc)
    hit = (scores.method == "OASIS") & (scores.n == 4) & (scores.case == "Case03") & (scores.region == "apex")
    scores.loc[hit, ["status", "dsc"]] = ["miss", 0.0]
    made = table1(scores, GROUPS, "patient", printed=False)
    at = made.grids[0].head.index("cases / misses") - 2
    assert texts(made.grids[0])["OASIS-n*", "measured"][at] == "10 / 1"
    apex = made.tidy[(made.tidy.method == "OASIS") & (made.tidy.metric == "dsc") & (made.tidy.region == "apex")]
    assert apex["misses"].item() == 1
    assert apex["mean"].item() == pytest.approx(70.9 - 70.6 / 10)


def test_slice_folds_have_no_volume_network_and_say_so():
    made = table1(study(["OASIS"], protocols=("slice",), dsc=dsc), GROUPS, "slice")
    assert texts(made.grids[0])["ConvNet3D", "not measured"][0] == "\N{EN DASH}"
    assert any("no slice folds" in note for note in made.grids[0].notes)


def test_a_table_per_label_and_no_printed_values_where_there_are_none():
    made = table1(study(["OASIS", "FwoW"], labels=("anterior", "posterior"), dsc=dsc), GROUPS, "patient", printed=False)
    assert [grid.title.split(", ")[1] for grid in made.grids] == ["anterior", "posterior"]
    assert set(made.tidy.source) == {"measured"}


def test_ablation_compares_variants_of_one_kind_at_one_n():
    methods = ["OASIS", "FwoW", "OASIS 3D", "OASIS 3D, beta = 0", "ConvNet3D", "ConvNet2D", "majority"]
    scores = study(methods, dsc=dsc)
    three = ablation(scores, "OASIS 3D", 4, "patient")
    assert [row[0].text for row in three.grids[0].rows] == ["ConvNet3D", "OASIS 3D-4", "OASIS 3D-4, beta = 0"]
    two = ablation(scores, "OASIS", 4, "patient")
    assert [row[0].text for row in two.grids[0].rows] == ["ConvNet2D", "FwoW-4", "OASIS-4", "majority-4"]
    assert two.grids[0].rows[1][-2].text == "+12.0 [+12.0, +12.0]"  # 10 points, and FwoW is 2 steps from its best n
    assert ablation(scores, "OASIS", 4, "slice").grids == []


def test_the_audit_s_leakage_is_the_paired_difference():
    scores = study(["OASIS", "FwoW", "ConvNet2D"], protocols=("patient", "slice"), dsc=dsc)
    made = audit(scores, GROUPS)
    at = made.tidy.set_index(["method", "n"])
    assert at.loc[("OASIS", "n*"), "leak"] == pytest.approx(20.0)
    assert at.loc[("OASIS", "1"), "slice_mean"] == pytest.approx(90.9 - 3.0)
    assert at.loc[("ConvNet2D", "0"), "leak"] == pytest.approx(20.0)
    assert [row[0].text for row in made.grids[0].rows] == ["ConvNet2D", "FwoW-n*", "OASIS-n*"]
    assert audit(study(["OASIS"], dsc=dsc), GROUPS).grids == []


def test_the_learning_curve_survives_its_file_and_pairs_cases(tmp_path):
    write_learning(tmp_path / "l.csv", study_rows.learning().to_dict("records"))
    frame = read_learning(tmp_path / "l.csv")
    made = learning_table(frame)
    at = made.tidy.set_index(["method", "train_cases"])
    assert at.loc[("OASIS 3D", 4), "mean"] == pytest.approx(66.45)
    assert at.loc[("U-Net3D", 8), "main_minus"] == pytest.approx(2.0)
    assert at.loc[("U-Net3D", 8), "cases"] == 10
    assert made.grids[0].head == ("method", "4 patients", "8 patients")
    bold = {row[0].text: [c.bold for c in row[1:]] for row in made.grids[0].rows}
    assert bold == {"U-Net3D": [False, False], "OASIS 3D": [True, True]}


@pytest.mark.parametrize(("text", "match"), [(None, "learning curve's scores"), ("a,b\n1,2\n", "no train_cases")])
def test_a_learning_file_that_is_none(tmp_path, text, match):
    if text is not None:
        (tmp_path / "l.csv").write_text(text)
    with pytest.raises(DataError, match=match):
        read_learning(tmp_path / "l.csv")


def test_a_case_that_would_count_twice_in_the_learning_curve_is_refused(tmp_path):
    rows = study_rows.learning().to_dict("records")
    write_learning(tmp_path / "l.csv", [*rows, {**rows[0], "n": 2}])
    with pytest.raises(DataError, match="one row per train_cases x case x label x region x method, found 4, Case00"):
        read_learning(tmp_path / "l.csv")


def test_every_network_has_its_place_in_the_tables_of_its_kind():
    scores = study_rows.study(["OASIS", "OASIS 3D", *NETWORKS], ns=(2,))
    assert set(NETWORKS) <= set(table1(scores, study_rows.GROUPS, "patient", printed=False).tidy["method"])
    for reference, dims in (("OASIS", 2), ("OASIS 3D", 3)):
        own = {name for name, of in NETWORKS.items() if of == dims}
        assert set(ablation(scores, reference, 2, "patient").tidy["method"]) == {reference, *own}


def test_every_form_is_written(tmp_path):
    write_table(tmp_path, "table1", table1(study(["OASIS", "FwoW"], dsc=dsc), GROUPS, "patient"))
    assert {p.name for p in tmp_path.iterdir()} == {"table1.csv", "table1.md", "table1.tex"}
    assert pd.read_csv(tmp_path / "table1.csv").method.tolist().count("OASIS") == 18


GRID = Grid(
    "g",
    "A & B <script> 50 %",
    ("method", "DSC_whole %"),
    ((Cell("a|b*", 1.0), Cell("1.0 ± 2", 1.0, True)), (Cell("x_1 #"), Cell("\N{MINUS SIGN}3", -3.0))),
    ("Note $5 ~ ^ { }.",),
)


def test_markdown_escapes_and_keeps_its_columns():
    text = markdown(GRID)
    assert "**1.0 ± 2**" in text
    assert "a\\|b\\*" in text
    assert "<script" not in text.replace("\\<", "")
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len(lines) == 4
    assert all(line.replace("\\|", "").count("|") == 3 for line in lines)


def test_latex_escapes_every_special_mark():
    text = latex(GRID)
    body = text[text.index("\\toprule") :]
    for escaped in (r"\_1 \#", r"$\pm$", r"\$5", r"\textasciicircum{}", r"\textasciitilde{}", r"\{ \}"):
        assert escaped in body
    assert r"\textbf{1.0 $\pm$ 2}" in body
    assert "$-$3" in body
    assert body.count("\\\\") == 3
    assert text.splitlines()[0].startswith("% A & B")


def test_best_bold_marks_every_tie_and_no_undefined_value():
    columns = [[Cell("a", 1.0), Cell("b", 2.0), Cell("c", 2.0), Cell("d", math.nan)]] * 2
    up, down = best_bold(columns, [True, False])
    assert [c.bold for c in up] == [False, True, True, False]
    assert [c.bold for c in down] == [True, False, False, False]
    assert not any(c.bold for c in best_bold([[Cell("d", math.nan)]], [True])[0])


def test_a_row_too_short_is_refused():
    with pytest.raises(ValueError, match="expected 2 cells in every row, found 1"):
        Grid("g", "t", ("a", "b"), ((Cell("x"),),))
