"""A trained model looks at labels: whose it doubts, what it has learned from itself, and what is told of both."""

import shutil

import numpy as np
import pytest
import torch

from oasis_monai.data.found import find_data
from oasis_monai.data.io import read_volume, write_label
from oasis_monai.data.phantom import write_phantom
from oasis_monai.data.settings import DataSettings
from oasis_monai.evaluation.suspects import read_suspects
from oasis_monai.settings import build
from oasis_monai.workflows import label_check
from oasis_monai.workflows.label_check import check_labels
from oasis_monai.workflows.model import Model, load_model
from oasis_monai.workflows.train import train_model
from tests.conftest import TINY, merged
from tests.helpers.command import run
from tests.helpers.runs import quiet


@pytest.fixture(scope="module")
def folder(phantom, tmp_path_factory):
    """The folder of a model of the phantom."""
    base = tmp_path_factory.mktemp("model")
    own = {"cache": str(base / "c"), "data": {"root": str(phantom)}, "methods": "OASIS", "n": 2}
    return train_model(build(merged(TINY, own)), base / "m", quiet)


@pytest.fixture(scope="module")
def model(folder):
    return load_model(folder, "cpu")


@pytest.fixture
def others(tmp_path):
    """Scans of other patients, one of them with its label upside down."""
    write_phantom(tmp_path / "others", cases=3, size="tiny", seed=5)
    found = find_data(DataSettings(root=str(tmp_path / "others")))
    volume = read_volume(found.cases[1], (0, 1))
    label = np.roll(volume.label[0].numpy(), 3, 2)
    write_label(found.cases[1].label, label, volume.geometry, (0, 1))
    return tmp_path / "others"


@pytest.fixture
def perfect(monkeypatch, others):
    """A model that knows the true labels and is sure of them: what it says then is our doing."""
    truth = {}
    for seed, root in ((5, others.parent / "true"),):
        write_phantom(root, cases=3, size="tiny", seed=seed)
        truth |= {case.id: read_volume(case, (0, 1)).label[0] for case in find_data(DataSettings(root=str(root))).cases}
    describe = Model.describe

    def described(self, found, save_probability=False, **more):
        result = describe(self, found, save_probability, **more)
        label = truth[result.case]
        object.__setattr__(result, "classes", label)
        object.__setattr__(result, "probability", torch.stack([label == 0, label == 1]).float())
        one = result.predictions["prostate"]
        object.__setattr__(one, "value", 0.95)
        return result

    monkeypatch.setattr(Model, "describe", described)


def test_a_wrong_label_is_told_in_a_line_and_shown(model, others, perfect, tmp_path):
    found = find_data(DataSettings(root=str(others)))
    said = []
    faults = check_labels(model, found.data, found.cases, said.append, tmp_path / "out")
    assert [(fault.case, fault.field, fault.severity) for fault in faults] == [("Case01", "label", "warning")]
    (line,) = map(str, faults)
    assert line.startswith("Case01: label: expected a Dice of about 0.95 with the model's result, found the reference looks")
    upwards = read_volume(found.cases[1], (0, 1)).geometry.affine[2, 2] > 0  # the label was moved along the file's last axis
    assert f"shifted by 3 slices towards the {'head' if upwards else 'feet'}" in line
    assert "look at slices " in line
    assert "weaker" not in line
    assert "weaker" not in " ".join(said)
    rows = read_suspects(tmp_path / "out" / "suspects.csv")
    assert rows["case"].tolist()[0] == "Case01"
    assert set(rows["case"]) == {"Case00", "Case01", "Case02"}
    assert [path.name for path in (tmp_path / "out" / "suspects").iterdir()] == ["Case01.png"]
    page = (tmp_path / "out" / "suspects.html").read_text()
    assert "1. Case01" in page
    assert "data:image" in page


@pytest.mark.parametrize("renamed", [False, True])
def test_its_own_cases_are_segmented_without_their_patient(model, phantom, tmp_path, monkeypatch, renamed):
    """Also where the same scan lies in other files: then its voxels tell."""
    used = []
    find = Model.find

    def watched(self, volume, method, n, exclude_patient=None):
        found = find(self, volume, method, n, exclude_patient)
        used.append((volume.case, exclude_patient, {atlas.case for row in found.atlases for atlas in row}))
        return found

    monkeypatch.setattr(Model, "find", watched)
    monkeypatch.setattr(label_check, "SUSPECT", -100.0)
    copied, prefix = shutil.copytree(phantom, tmp_path / "data"), "X" if renamed else ""
    for path in sorted(copied.iterdir()) if renamed else ():
        if path.suffix == ".mhd":
            path.write_text(path.read_text().replace(path.stem, f"X{path.stem}"))
        path.rename(copied / f"X{path.name}")
    names = [f"{prefix}{name}" for name in ("Case00", "Case03")]
    listed = [f"{name},{copied}/{name}.mhd,{copied}/{name}_segmentation.mhd" for name in names]
    (tmp_path / "cases.csv").write_text("\n".join(["case,image,label", *listed]))
    found = find_data(DataSettings(root=str(tmp_path / "cases.csv")))
    said = []
    faults = check_labels(model, found.data, found.cases, said.append)
    counted = [one for one in used if one[1] is not None]
    assert [(case, person) for case, person, _ in counted] == [(names[0], "Case00"), (names[1], "Case03")]
    assert len(used) == (4 if renamed else 2)  # found to be an atlas only once it was seen
    assert all(person not in atlases for _, person, atlases in counted)
    assert len(faults) == 2
    why = "it is the model's atlas Case0" if renamed else "the networks were trained on it, as Case0"
    assert all(f"(weaker evidence: {why}" in fault.remedy for fault in faults)
    assert any("2 of 2 labels looked at are of the model's training" in line for line in said)


def test_a_case_that_cannot_be_segmented_stops_nothing(model, others, tmp_path):
    found = find_data(DataSettings(root=str(others)))
    volume = read_volume(found.cases[0], (0, 1))
    two = torch.cat([volume.image, volume.image]).numpy()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            label_check, "read_volume",
            lambda case, *a, **k: read_volume(case, *a, **k) if case.id != "Case00" else
            type(volume)(case.id, torch.from_numpy(two), volume.label, volume.geometry),
        )  # fmt: skip
        faults = check_labels(model, found.data, found.cases, quiet)
    assert "Case00: channels: expected the model's 1, found 2" in str(faults[0])
    assert faults[0].severity == "warning"


def test_the_command_looks_at_labels(folder, others, tmp_path):
    done = run("check", f"data.root={others}", f"model={folder}", "output=out", "progress=false", cwd=tmp_path)
    assert (done.code, done.err) == (0, "")
    assert (tmp_path / "out" / "check.csv").is_file()
    assert (tmp_path / "out" / "suspects.csv").is_file()
    assert "suspects: out/suspects.html" in done.out
    wrong = run("check", f"data.root={others}", "model=nothing", cwd=tmp_path)
    assert wrong.code == 2
    assert "model: expected a folder written by `oasis-monai train`" in wrong.err
