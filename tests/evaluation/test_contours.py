"""overlays: what is in the picture, where and in what proportion; read back as pixels."""

import subprocess
import sys

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from oasis_monai.evaluation import contours as overlays
from oasis_monai.utils.errors import DataError

SHAPE = (40, 32, 12)


def pixels(path):
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def panels(path):
    """The picture without heading and legend, where a coloured sample line stands."""
    p = pixels(path)
    return p[int(0.12 * len(p)) : int(0.9 * len(p))]


def red(p):
    return (p[..., 0] > 190) & (p[..., 1] < 90) & (p[..., 2] < 90)


def yellow(p):
    return (p[..., 0] > 190) & (p[..., 1] > 170) & (p[..., 2] < 90)


def box(mask):
    rows, columns = np.nonzero(mask)
    return rows.min(), rows.max(), columns.min(), columns.max()


def block(x, y, z=(3, 9), value=1):
    label = np.zeros(SHAPE, np.uint8)
    label[slice(*x), slice(*y), slice(*z)] = value
    return label


@pytest.fixture
def image():
    return np.random.default_rng(0).normal(100, 5, SHAPE)


def draw(tmp_path, image, truth, result, spacing=(1.0, 1.0, 3.0), title="Case00", **options):
    overlays.overlay(tmp_path / "o.png", image, truth, result, spacing, title, **options)
    return panels(tmp_path / "o.png")


def test_reference_is_red_and_result_yellow_on_grey(tmp_path, image):
    p = draw(tmp_path, image, block((8, 16), (8, 16)), block((22, 30), (8, 16)))
    assert red(p).sum() > 300
    assert yellow(p).sum() > 300
    rest = p[~(p.max(axis=2) - p.min(axis=2) > 20)]
    assert len(rest) > 0.9 * p.shape[0] * p.shape[1]


def test_without_reference_only_yellow(tmp_path, image):
    p = draw(tmp_path, image, None, block((8, 16), (8, 16)))
    assert not red(pixels(tmp_path / "o.png")).any()
    assert yellow(p).sum() > 300


def test_display_is_radiological_with_anterior_at_the_top(tmp_path, image):
    """RAS: high x is the patient's right, so the left of the picture; high y is anterior, so the top."""
    right_posterior, left_anterior = block((28, 36), (3, 9)), block((4, 12), (23, 29))
    p = draw(tmp_path, image, right_posterior, left_anterior, slices=1, zoom=False)
    top_red, _, _, right_red = box(red(p))
    _, bottom_yellow, left_yellow, _ = box(yellow(p))
    assert right_red < left_yellow
    assert bottom_yellow < top_red


def test_contour_lies_on_the_structure_s_own_grey_edge(tmp_path):
    """An image that is bright exactly inside the structure: grey picture and contour are turned the same way."""
    label = block((6, 14), (18, 26))
    p = draw(tmp_path, 100.0 * label, label, label, slices=1, zoom=False)
    top, bottom, left, right = box(red(p) | yellow(p))
    assert p[top + 8 : bottom - 7, left + 8 : right - 7].min() > 180
    beside = np.ones(p.shape[:2], bool)
    beside[top - 8 : bottom + 9, left - 8 : right + 9] = False
    near = np.s_[top - 14 : bottom + 15, left - 14 : right + 15]
    assert p[near][beside[near]].max() < 20


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 3.0), (2.0, 1.0, 3.0), (0.5, 1.0, 3.0)])
@pytest.mark.parametrize("zoom", [True, False])
def test_proportion_follows_the_spacing(tmp_path, image, spacing, zoom):
    p = draw(tmp_path, image, block((10, 26), (10, 22)), block((10, 26), (10, 22)), spacing, slices=1, zoom=zoom)
    top, bottom, left, right = box(red(p))
    line = 4  # the drawn line's own width in pixels, about
    assert (right - left - line) / (bottom - top - line) == pytest.approx(16 * spacing[0] / (12 * spacing[1]), rel=0.06)


def test_zoom_enlarges_and_a_structure_at_the_edge_is_closed(tmp_path, image):
    label = block((0, 8), (0, 8))
    wide = box(red(draw(tmp_path, image, label, label, slices=1, zoom=False)))
    near = box(red(draw(tmp_path, image, label, label, slices=1, zoom=True)))
    assert near[1] - near[0] > 1.3 * (wide[1] - wide[0])
    p = draw(tmp_path, image, label, label, slices=1)
    top, bottom, left, right = box(red(p))
    outline = red(p) | yellow(p)
    assert outline[bottom - 1, left:right].mean() > 0.8  # the sides on the picture's edge are drawn too
    assert outline[top:bottom, right - 1].mean() > 0.8


def test_slices_spread_over_the_structure_from_near_one_end_to_near_the_other():
    chosen = overlays._slice_numbers(np.arange(10, 35), 50, 4)
    assert chosen == [12, 19, 25, 32]
    assert overlays._slice_numbers(np.array([7, 8]), 50, 4) == [7, 8]
    assert overlays._slice_numbers(np.array([7]), 50, 4) == [7]
    assert overlays._slice_numbers(np.arange(10, 35), 50, 1) == [22]
    assert len(overlays._slice_numbers(np.array([], int), 50, 3)) == 3


def test_empty_structures_are_said_in_the_heading(tmp_path, image, monkeypatch):
    headings = []
    figure = overlays._figure
    monkeypatch.setattr(overlays, "_figure", lambda n, aspect, text: headings.append(text) or figure(n, aspect, text))
    empty, full = np.zeros(SHAPE, np.uint8), block((8, 16), (8, 16))
    for truth, result in ((full, empty), (empty, full), (empty, empty), (None, empty), (full, full)):
        p = draw(tmp_path, image, truth, result)
        assert red(p).any() == (truth is full)
        assert yellow(p).any() == (result is full)
    assert headings == [
        "Case00: result is empty",
        "Case00: reference is empty",
        "Case00: reference and result are empty",
        "Case00: result is empty",
        "Case00",
    ]


def test_classes_differ_by_line_style(tmp_path, image):
    one, two = block((8, 24), (8, 24)), block((8, 24), (8, 24), value=2)
    solid = red(draw(tmp_path, image, one, 0 * one, slices=1)).sum()
    both = block((8, 24), (8, 24), (3, 6)) + block((8, 24), (8, 24), (6, 9), value=2)
    p = draw(tmp_path, image, both, 0 * both, slices=2, labels={1: "anterior $x_{", 2: "posterior"})
    half = p.shape[1] // 2
    first, second = red(p[:, :half]).sum(), red(p[:, half:]).sum()
    assert first == pytest.approx(solid, rel=0.1)
    assert 0.4 * first < second < 0.85 * first  # dashed
    alone = red(draw(tmp_path, image, two, 0 * two, slices=1)).sum()
    assert alone == pytest.approx(solid, rel=0.1)  # a class that is alone is solid whatever its number


@pytest.mark.parametrize("values", [0.0, np.nan, 1e30])
def test_flat_and_undefined_images_still_draw(tmp_path, values):
    label = block((8, 16), (8, 16))
    assert red(draw(tmp_path, np.full(SHAPE, values), label, label, title="$x_{ <b> \\frac")).any()


def test_the_same_input_gives_the_same_bytes(tmp_path, image):
    label = block((8, 16), (8, 16))
    draw(tmp_path, image, label, label)
    first = (tmp_path / "o.png").read_bytes()
    draw(tmp_path, image, label, label)
    assert (tmp_path / "o.png").read_bytes() == first


BAD = [
    ({"image": np.zeros((4, 4))}, "Case00: image of the overlay: expected an array"),
    ({"result": np.zeros((4, 4, 4))}, "Case00: result of the overlay: expected shape"),
    ({"truth": np.zeros((4, 4, 4))}, "Case00: reference of the overlay: expected shape"),
    ({"spacing_mm": (1.0, 0.0, 1.0)}, "Case00: spacing of the overlay: expected three positive numbers"),
    ({"spacing_mm": (1.0, 1.0)}, "Case00: spacing of the overlay"),
]


@pytest.mark.parametrize(("change", "match"), BAD)
def test_bad_input(tmp_path, change, match):
    good = {"image": np.zeros(SHAPE), "truth": None, "result": np.zeros(SHAPE), "spacing_mm": (1.0, 1.0, 1.0), "title": "Case00"}
    with pytest.raises(DataError, match=match):
        overlays.overlay(tmp_path / "o.png", **(good | change))
    assert not (tmp_path / "o.png").exists()


@pytest.mark.slow
def test_pyplot_is_never_loaded(tmp_path):
    code = (
        "import sys, numpy as np; from oasis_monai.evaluation.contours import overlay; loaded = 'matplotlib' in sys.modules;"
        f"overlay({str(tmp_path / 'o.png')!r}, np.zeros((9, 9, 9)), None, np.ones((9, 9, 9)), (1, 1, 1), 'c');"
        "sys.exit(loaded or 'matplotlib.pyplot' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_what_nobody_labelled_has_a_grey_outline_and_is_no_structure(tmp_path, image):
    """Its colour is not that of a structure: red and yellow stay, and the heading says nothing of another class."""
    truth = block((8, 16), (8, 16))
    plain = draw(tmp_path, image, truth, truth, zoom=False)
    unknown = truth.copy()
    unknown[22:30] = 255
    marked = draw(tmp_path, image, unknown, truth, zoom=False)
    assert red(marked).sum() == pytest.approx(red(plain).sum(), rel=0.05)
    assert yellow(marked).sum() == pytest.approx(yellow(plain).sum(), rel=0.05)
    assert (marked != plain).any(axis=2).sum() > 30


@pytest.mark.parametrize("count", [2, 5, 60])
@pytest.mark.parametrize("inches", [4.5, 10.0])
def test_a_legend_stays_within_its_picture_and_says_how_many_it_leaves_out(count, inches):
    figure = Figure(figsize=(inches, 3))
    FigureCanvasAgg(figure)
    names = [f"structure {number} of many" for number in range(count)]
    overlays._legend(figure, names, True, True)
    figure.canvas.draw()
    (legend,) = figure.legends
    assert legend.get_window_extent().x1 <= figure.bbox.x1
    told = [text.get_text() for text in legend.get_texts()][3:]
    left = count - sum(text in names for text in told)
    assert told[count - left :] == ([f"and {left} more"] if left else [])


def test_structures_that_share_voxels_have_an_outline_each(tmp_path):
    """One round all classes of a structure, as of its mask alone."""
    label = np.zeros((40, 40, 3), np.uint8)
    label[5:30, 5:30], label[10:20, 10:20] = 1, 2
    image = np.random.default_rng(0).random(label.shape)
    overlays.overlay(tmp_path / "one.png", image, None, label, (1, 1, 1), "x", structures={"whole": (1, 2)})
    overlays.overlay(tmp_path / "mask.png", image, None, (label > 0).astype(np.uint8), (1, 1, 1), "x")
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "mask.png").read_bytes()
    overlays.overlay(tmp_path / "two.png", image, None, label, (1, 1, 1), "x", structures={"whole": (1, 2), "core": (2,)})
    assert (tmp_path / "two.png").read_bytes() != (tmp_path / "one.png").read_bytes()
