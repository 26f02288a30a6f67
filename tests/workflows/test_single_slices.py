"""Data sets of images of two dimensions, one a case, with a dozen structures: from folds to the page and new pictures."""

import json

import numpy as np
import pytest
from PIL import Image

from oasis_monai.evaluation.report.page import write_report
from oasis_monai.settings import build
from oasis_monai.workflows.crossval import crossval
from oasis_monai.workflows.segment import segment_scans
from oasis_monai.workflows.train import train_model
from tests.conftest import JOINT, JOINT_2D, TINY, TINY_2D, merged
from tests.helpers.runs import quiet, scores_of

CASES, SIDE = 6, 48
VALUES = [7 * number + 5 for number in range(12)]


def picture(case):
    """Discs in a body, and their label; some lack one."""
    random = np.random.default_rng(case)
    y, x = np.mgrid[:SIDE, :SIDE]
    down, right = random.integers(-1, 2, 2)
    label = np.zeros((SIDE, SIDE), np.uint8)
    for number, value in enumerate(VALUES):
        i, j = divmod(number, 4)
        if number != case:
            label[(y - 9 - down - 14 * i) ** 2 + (x - 6 - right - 12 * j) ** 2 < 16] = value
    return np.clip(60 + label + random.normal(0, 6, label.shape), 0, 255).astype(np.uint8), label


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("pictures")
    for case in range(CASES):
        for name, values in zip(("", "_label"), picture(case), strict=True):
            Image.fromarray(values).save(root / f"c{case}{name}.png", dpi=(25.4, 25.4))  # pixels of 1 mm
    return root


@pytest.fixture(scope="module")
def asked(folder, tmp_path_factory):
    cache = str(tmp_path_factory.mktemp("cache"))

    def make(*more):
        data = {"data": {"root": str(folder)}, "cache": cache, "n": [2], "overlays": 1}
        grid = {"preprocessing": {"size": [64, 64], "spacing_mm": [1.0, 1.0], "intensity": "zscore"}}
        return merged({**TINY, "data": {}}, TINY_2D, JOINT, JOINT_2D, grid, data, *more)

    return make


def test_folds_find_every_structure_and_the_page_shows_them(asked, tmp_path):
    settings = build(asked({"k": 3, "methods": ["majority", "OASIS", "STAPLE", "OASIS-joint"]}))
    run = tmp_path / "run"
    crossval(settings, run, quiet)
    scores = scores_of(run)
    assert set(scores.label) == {f"label_{value}" for value in VALUES}
    good = scores[(scores.method == "majority") & (scores.status == "ok")]
    assert good.dsc.mean() > 0.6
    assert (scores[scores.status == "absent"].reference_ml == 0).all()
    assert len(scores[(scores.method == "majority") & (scores.reference_ml == 0)]) == CASES  # each case lacks one
    page = write_report(run).read_text()
    assert all(f"label_{value}" in page for value in VALUES)
    assert len(list((run / "overlays").glob("*.png"))) == 4
    assert "c0" in page


def test_new_pictures_get_labels_of_their_own_size_and_values(asked, folder, tmp_path):
    settings = build(asked({"data": {"include": [f"c{case}" for case in range(CASES - 1)]}}))
    model = train_model(settings, tmp_path / "model", quiet)
    assert segment_scans(model, folder / "c5.png", tmp_path / "seg", n=2, method="majority", log=quiet) == []
    (file,) = (tmp_path / "seg").glob("c5_segmentation*")
    found, (_, truth) = np.asarray(Image.open(file)) if file.suffix == ".png" else None, picture(5)
    assert found.shape == truth.shape
    assert set(np.unique(found)) <= {0, *VALUES}
    usual = [value for number, value in enumerate(VALUES) if number != 5]
    dice = [2 * ((found == v) & (truth == v)).sum() / ((found == v).sum() + (truth == v).sum()) for v in usual]
    assert min(dice) > 0.2
    assert np.mean(dice) > 0.6
    told = json.loads((tmp_path / "seg" / "c5.json").read_text())
    assert told["volume_ml"]["label_5"] == pytest.approx(0.001 * (found == 5).sum())
