"""Figures: what is drawn, read off matplotlib's own lines, and what a file or a page gets of it."""

import numpy as np
import pytest
from matplotlib.colors import to_hex

from oasis_monai.evaluation.comparison import audit
from oasis_monai.evaluation.figures import COLOURS, dsc_over_n, fold_audit, learning_curve, svg_element, write_figure
from tests.helpers import study_rows
from tests.helpers.study_rows import GROUPS, study

METHODS = ["ConvNet2D", "FwoW", "OASIS", "OASIS 3D"]


def dsc(method, n, i, protocol):
    return (
        {"ConvNet2D": 0.5, "FwoW": 0.6, "OASIS": 0.7, "OASIS 3D": 0.75}[method]
        + 0.01 * n
        + 0.01 * i
        + 0.1 * (protocol == "slice")
    )


def lines(ax):
    return [(line.get_xdata(), line.get_ydata()) for line in ax.lines]


def test_each_method_is_a_line_over_n_and_a_network_is_level():
    figure = dsc_over_n(study(METHODS, ns=(1, 2, 4), protocols=("patient", "slice"), dsc=dsc))
    left, right = figure.axes
    assert [ax.get_title() for ax in figure.axes] == ["prostate, patient folds", "prostate, slice folds"]
    network, fwow, oasis, volumes = lines(left)
    assert network == (pytest.approx([1, 4]), pytest.approx([54.5, 54.5]))
    assert fwow == (pytest.approx([1, 2, 4]), pytest.approx([65.5, 66.5, 68.5]))
    assert oasis[1] == pytest.approx([75.5, 76.5, 78.5])
    assert volumes[1] == pytest.approx([80.5, 81.5, 83.5])
    assert lines(right)[1][1] == pytest.approx([75.5, 76.5, 78.5])
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == METHODS


def test_the_band_is_the_interval_of_the_mean():
    figure = dsc_over_n(study(["OASIS"], ns=(1, 2), dsc=dsc))
    band = figure.axes[0].collections[0].get_paths()[0].vertices
    half = 2.2621572 * np.std(np.arange(10), ddof=1) / np.sqrt(10)  # Student's t, 9 degrees of freedom
    at_one = band[band[:, 0] == 1, 1]
    assert (at_one.min(), at_one.max()) == pytest.approx((75.5 - half, 75.5 + half))


def test_a_variant_shares_its_method_s_colour_and_differs_in_dash():
    figure = dsc_over_n(study(METHODS, dsc=dsc))
    drawn = {text.get_text(): line for text, line in zip(figure.legends[0].get_texts(), figure.axes[0].lines, strict=True)}
    assert drawn["OASIS"].get_color() == drawn["OASIS 3D"].get_color()
    assert drawn["OASIS"].get_linestyle() != drawn["OASIS 3D"].get_linestyle()
    assert len({drawn[m].get_color() for m in METHODS}) == 3
    assert {to_hex(line.get_color()) for line in drawn.values()} <= set(COLOURS)


def test_only_the_methods_asked_for():
    figure = dsc_over_n(study(METHODS, dsc=dsc), ["FwoW"])
    assert len(figure.axes[0].lines) == 1


@pytest.mark.parametrize("scores", [study(METHODS, ns=(6,), dsc=dsc), study(["ConvNet2D"], dsc=dsc), study(["OASIS"]).iloc[:0]])
def test_no_curve_without_a_second_n(scores):
    assert dsc_over_n(scores) is None


def test_the_audit_draws_both_protocols_the_fall_and_the_printed_values():
    scores = study(["FwoW", "OASIS"], ns=(1, 2, 4), protocols=("patient", "slice"), dsc=dsc)
    best = audit(scores, GROUPS).tidy.query("n == 'n*'")
    figure = fold_audit(scores, best, printed=True)
    left, right = figure.axes
    styles = [line.get_linestyle() for line in left.lines]
    assert styles == ["-", "--"] * 2
    assert left.lines[0].get_ydata() == pytest.approx(left.lines[1].get_ydata() + 10)
    assert [t.get_text() for t in right.texts] == ["FwoW  \N{MINUS SIGN}10.0", "OASIS  \N{MINUS SIGN}10.0"]
    assert right.lines[1].get_ydata() == pytest.approx([88.5, 78.5])
    marks = [tuple(c.get_offsets()[0]) for c in left.collections if len(c.get_offsets()) == 1 and c.get_offsets()[0][0] > 0]
    assert (2.0, 85.68) in marks
    assert (4.0, 92.81) in marks
    assert "arXiv 1912.02417" in figure.get_supxlabel()
    assert "arXiv" not in fold_audit(scores, best).get_supxlabel()


def test_no_audit_with_one_protocol():
    scores = study(["OASIS"], protocols=("patient", "slice"), dsc=dsc)
    best = audit(scores, GROUPS).tidy.query("n == 'n*'")
    assert fold_audit(scores[scores["protocol"] == "patient"], best) is None


def test_the_learning_curve_s_means_and_dots():
    figure = learning_curve(study_rows.learning())
    ax = figure.axes[0]
    assert [t.get_text() for t in ax.get_xticklabels()] == ["4", "8"]
    means = [line.get_ydata() for line in ax.lines if len(line.get_xdata()) == 2 and line.get_marker() in "os^D"]
    assert means[0] == pytest.approx([64.45, 68.45])
    assert means[1] == pytest.approx([66.45, 70.45])
    dots = [line for line in ax.lines if line.get_marker() == "."]
    assert sum(len(line.get_ydata()) for line in dots) == 40
    assert learning_curve(study_rows.learning(sizes=(4,))) is None


@pytest.mark.parametrize("ending", ["svg", "png"])
def test_the_same_figure_gives_the_same_bytes(tmp_path, ending):
    scores = study(METHODS, dsc=dsc)
    for name in "ab":
        write_figure(tmp_path / f"{name}.{ending}", dsc_over_n(scores))
    assert (tmp_path / f"a.{ending}").read_bytes() == (tmp_path / f"b.{ending}").read_bytes()


def test_a_page_s_drawing_takes_the_page_s_ink_and_names_stay_text():
    evil = study(["<script>alert(1)</script>", "$x_{"], labels=("<b>",))
    text = svg_element(dsc_over_n(evil))
    assert text.startswith("<svg")
    assert "currentColor" in text
    assert "#010203" not in text
    assert "<script" not in text
    assert "<b>" not in text
