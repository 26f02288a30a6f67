"""The case browser's files and Fig. 4: crop, grey window, what is joined, and where the contours lie."""

import numpy as np
import pytest
from PIL import Image

from oasis_monai.evaluation.case_grid import case_grid, ranked_cases
from oasis_monai.evaluation.case_view import load_browser, write_browser

SHAPE = (80, 70, 6)
SPACING_MM = (1.0, 2.0, 3.0)


def block(x=(30, 50), y=(30, 40), z=(1, 5), value=1):
    label = np.zeros(SHAPE, np.uint8)
    label[slice(*x), slice(*y), slice(*z)] = value
    return label


def image(seed=0):
    return np.random.default_rng(seed).normal(100, 10, SHAPE).astype(np.float32)


def write(folder, case="Case00", results=None, reference=None, protocol="patient", **more):
    results = results if results is not None else {"OASIS-6": block(), "ConvNet3D": block((0, 50))}
    given = {
        "spacing_mm": SPACING_MM,
        "labels": ["prostate"],
        "atlases": [[["Case01", -1, 0.5]]],
        "weights": {"OASIS-6": [[1.0]]},
    }
    return write_browser(
        folder, case, protocol, 2, image(), block() if reference is None else reference, results, **(given | more)
    )


def test_what_is_written_is_read_cropped_by_thirty_millimetres(tmp_path):
    write(tmp_path)
    (view,) = load_browser({tmp_path: ""}).values()
    assert view.crop == (0, 80, 15, 55)  # 30 voxels of 1 mm, 15 of 2 mm
    assert view.image.shape == view.reference.shape == (80, 40, 6)
    assert np.array_equal(view.reference, block()[:, 15:55])
    assert np.array_equal(view.results["OASIS-6"], block()[:, 15:55])
    assert (view.case, view.protocol, view.fold, view.spacing_mm, view.labels) == (
        "Case00",
        "patient",
        2,
        SPACING_MM,
        ("prostate",),
    )
    assert view.atlases == {"OASIS-6": [[["Case01", -1, 0.5]]]}
    assert view.weights == {"OASIS-6": [[1.0]]}


def test_voxels_beyond_the_crop_are_counted(tmp_path):
    far = block(y=(0, 70))
    write(tmp_path, results={"OASIS-6": far})
    (view,) = load_browser({tmp_path: ""}).values()
    assert view.outside == {"OASIS-6": int(far.sum() - far[:, 15:55].sum())}
    assert view.outside["OASIS-6"] == 20 * 30 * 4


def test_without_a_reference_the_whole_plane_is_kept(tmp_path):
    write(tmp_path, reference=np.zeros(SHAPE, np.uint8))
    (view,) = load_browser({tmp_path: ""}).values()
    assert view.crop == (0, 80, 0, 70)


@pytest.mark.parametrize(
    ("values", "low", "high"),
    [(np.full(SHAPE, 7.0), 0, 0), (np.full(SHAPE, np.nan), 0, 0), (np.linspace(0, 1, np.prod(SHAPE)).reshape(SHAPE), 0, 255)],
)
def test_the_grey_window(tmp_path, values, low, high):
    path = write_browser(tmp_path, "c", "patient", 0, values, block(), {}, SPACING_MM, ["a"])
    assert path.exists()
    (view,) = load_browser({tmp_path: ""}).values()
    assert (view.image.min(), view.image.max()) == (low, high)


def test_runs_are_joined_by_case_and_their_methods_renamed(tmp_path):
    write(tmp_path / "a")
    write(tmp_path / "b", results={"OASIS-6": block((31, 50)), "ConvNet3D": block((1, 50))})
    write(tmp_path / "c", results={"OASIS-6": block((32, 50))})
    write(tmp_path / "s", protocol="slice")
    views = load_browser(
        {tmp_path / "a": "", tmp_path / "b": " 3D", tmp_path / "c": " 3D, beta = 0", tmp_path / "none": ""}, "patient"
    )
    assert set(views["Case00"].results) == {"OASIS-6", "ConvNet3D", "OASIS 3D-6", "OASIS 3D-6, beta = 0"}
    assert views["Case00"].results["ConvNet3D"][0].any()  # the first run's stands
    assert "OASIS 3D-6" in views["Case00"].weights
    assert load_browser({tmp_path / "a": ""}, "slice") == {}
    assert set(load_browser({tmp_path / "s": ""}, "slice")) == {"Case00"}


def test_a_damaged_file_is_left_out_and_another_grid_not_mixed_in(tmp_path):
    write(tmp_path / "a")
    path = write(tmp_path / "a", case="Case01")
    path.write_bytes(path.read_bytes()[:-5])
    write(tmp_path / "b", results={"FWAL-6": block()}, reference=block((20, 30)))
    views = load_browser({tmp_path / "a": "", tmp_path / "b": ""})
    assert set(views) == {"Case00"}
    assert "FWAL-6" not in views["Case00"].results


def test_what_fuses_no_atlas_has_a_name_without_n_and_no_atlases(tmp_path):
    write(tmp_path / "a", results={"OASIS-joint-6": block(), "estimate": block(), "U-Net3D": block()})
    (view,) = load_browser({tmp_path / "a": " 3D"}).values()
    assert set(view.results) == {"OASIS-joint 3D-6", "estimate 3D", "U-Net3D"}
    assert set(view.atlases) == {"OASIS-joint 3D-6"}


def test_shapes_that_differ_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"Case00: expected image, reference and results of one shape"):
        write(tmp_path, results={"OASIS-6": block()[1:]})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("dsc", "expected"),
    [
        ({"a": 0.5, "b": 0.9, "c": 0.7}, [("best", "b"), ("median", "c"), ("worst", "a")]),
        ({"a": 0.5, "b": 0.9, "c": 0.7, "d": 0.6}, [("best", "b"), ("median", "d"), ("worst", "a")]),
        ({"a": 0.5, "b": 0.9}, [("best", "b"), ("median", "a")]),
        ({"a": 0.5}, [("best", "a")]),
        ({}, []),
    ],
)
def test_best_median_worst(dsc, expected):
    assert ranked_cases(dsc) == expected


def test_fig4_has_a_field_per_case_and_method_in_red_and_yellow(tmp_path):
    write(tmp_path / "a", results={"FwoW-6": block((10, 30)), "OASIS-6": block()})
    (view,) = load_browser({tmp_path / "a": ""}).values()
    view.image[:] = 100
    assert case_grid(tmp_path / "f.png", [("best", view)], ["FwoW-6", "OASIS-6"], {("Case00", "OASIS-6"): 1.0})
    p = np.asarray(Image.open(tmp_path / "f.png").convert("RGB")).astype(int)
    red = (p[..., 0] > 190) & (p[..., 1] < 90) & (p[..., 2] < 90)
    yellow = (p[..., 0] > 190) & (p[..., 1] > 170) & (p[..., 2] < 90)
    half = p.shape[1] // 2
    # the first result lies off to the patient's left of the reference, which a radiologist sees on the right
    assert np.nonzero(yellow[:, :half])[1].mean() > np.nonzero(red[:, :half])[1].mean() + 20
    middle = [np.nonzero(mask[:, half:])[1].mean() for mask in (red, yellow)]
    assert abs(middle[0] - middle[1]) < 3
    assert not case_grid(tmp_path / "none.png", [], ["OASIS-6"], {})
    assert not (tmp_path / "none.png").exists()
