"""Scans without labels are found and checked, labelled by the model, trained with, and told; those that are tested never are."""

import json
import shutil

import pytest

from oasis_monai.settings import build
from oasis_monai.workflows.model import load_model
from oasis_monai.workflows.train import train_model
from tests.conftest import JOINT, TINY, merged

LABELLED = [f"Case{i:02d}" for i in range(3)]
EVERYTHING = {"self_training": {"least_agreement": 0.0, "iterations": 2}, "training": {"iterations": 2}}


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """Folder of three scans without labels, of other people than the phantom's."""
    from oasis_monai.data.phantom import write_phantom

    made, folder = tmp_path_factory.mktemp("made"), tmp_path_factory.mktemp("unlabelled")
    write_phantom(made, cases=3, seed=5, size="tiny")
    for path in made.glob("Case??.*"):
        shutil.copy(path, folder / path.name)
    return folder


@pytest.fixture
def asked(phantom, scans, tmp_path):
    """Function: settings of a training with three labelled scans and three without."""

    def make(*more, **own):
        data = {"data": {"root": str(phantom), "include": LABELLED}, "cache": str(tmp_path / "cache"), "unlabelled": str(scans)}
        return build(merged(TINY, JOINT, data, EVERYTHING, *more, own))

    return make


def record(folder):
    return json.loads((folder / "model.json").read_text())


def test_a_model_is_trained_on_with_scans_without_labels_and_says_so(asked, tmp_path):
    said = []
    model = train_model(asked(), tmp_path / "model", said.append)
    told = record(model)
    names = [f"unlabelled-{case}" for case in LABELLED]
    assert told["cases"] == told["trained_on"] == LABELLED
    assert told["unlabelled"]["scans"] == names
    assert told["unlabelled"]["training"] == {"iterations": 2, "minutes": None}
    (only,) = told["unlabelled"]["rounds"]
    assert [one["case"] for one in only["scans"]] == names
    print(said, only)
    assert list(load_model(model).segmenter.library.cases) == LABELLED
