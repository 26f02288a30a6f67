"""Whatever form a data set has, one command trains on it and one segments new scans: the same atlases, the same results."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
import pytest

from oasis_monai.atlases.library import AtlasLibrary
from oasis_monai.data.found import find_data
from oasis_monai.data.settings import DataSettings
from oasis_monai.data.types import IGNORE
from tests.helpers.command import run
from tests.helpers.input_forms import FORMS, REFERENCES, mixed_table
from tests.helpers.scans import phantom_scans, read_back, slice_scans

BUDGET = [
    *("registration=unet3d", "registration.channels=[4,8]", "registration.field_stride=[1]", "features=intensity"),
    *("training.iterations=2", "training.minutes=null", "progress=false"),
]
CASES = 6


@dataclass(frozen=True)
class Trained:
    """What the two commands left.

    Args:
        record: of the model.
        results: label file of each new scan, by case.
        root: of the labelled data set.
        folder: where the commands ran.
    """

    folder: Path
    record: dict
    library: AtlasLibrary
    results: dict
    root: str


@pytest.fixture(scope="module")
def scans():
    """Labelled and new scans of each kind. Their axes run in several directions; one of the new ones is oblique."""
    both = phantom_scans(CASES), phantom_scans(2, seed=5, first=1, name="p1{}")
    return {"plain": both, "two": both, "flat": tuple(map(slice_scans, both))}


@pytest.fixture(scope="module")
def trained(scans, tmp_path_factory):
    """Function: what the two commands make of a form, told of nothing but its own options and the budget."""

    def make(form):
        folder = tmp_path_factory.mktemp("form")
        root, new = form.write(folder / "data", *scans[form.scans])
        done = run("train", f"data.root={root}", "model=m", *form.options, *BUDGET, cwd=folder)
        assert (done.err, done.code) == ("", 0)
        assert "warning" not in done.out
        later = run("segment", "model=m", f"input={new}", "output=o", "n=3", *form.new, cwd=folder)
        assert (later.err, later.code) == ("", 0)
        assert "warning" not in later.out
        records = [json.loads(path.read_text()) for path in sorted((folder / "o").glob("*.json"))]
        results = {record["case"]: folder / "o" / record["label"] for record in records}
        record = json.loads((folder / "m" / "model.json").read_text())
        return Trained(folder, record, AtlasLibrary.load(folder / "m" / "library.safetensors"), results, str(root))

    return make


@pytest.fixture(scope="module")
def references(trained):
    """Function: the same of the plain data sets, each made when it is first asked for."""
    made = {}

    def get(kind):
        if kind not in made:
            made[kind] = trained(REFERENCES[kind])
        return made[kind]

    return get


def upright(values, affine):
    """Voxels with their axes closest to right, front and top, and the centres of the eight corner voxels in mm."""
    image = nibabel.as_closest_canonical(nibabel.Nifti1Image(np.asarray(values, np.int32), affine))
    ends = np.array(list(np.ndindex(2, 2, 2))) * (np.array(image.shape) - 1)
    return np.asarray(image.dataobj), nibabel.affines.apply_affine(image.affine, ends)


@pytest.mark.parametrize("name", [*REFERENCES, *FORMS])
def test_one_command_trains_and_one_segments(name, trained, references, scans):
    form = (REFERENCES | FORMS)[name]
    made = references(name) if name in REFERENCES else trained(form)
    data = made.record["settings"]["data"]
    assert (data["layout"], data["labels"], data["channels"]) == (form.layout, form.labels, list(form.channels))
    found = find_data(DataSettings(**{**data, "root": made.root}))
    cases = sorted(found.cases, key=lambda case: case.id)
    assert [case.patient for case in cases] == list(form.patients or [case.id for case in cases])
    assert [case.centre for case in cases] == list(form.centres or [""] * CASES)
    assert [case.fold for case in cases] == list(form.folds or [None] * CASES)
    assert made.library.cases == tuple(case.id for case in cases)
    assert made.library.patients == tuple(case.patient for case in cases)
    plain = references(form.scans)
    same_atlases(made, plain, form.partly)
    if form.scans == "two":  # its first channel is the image of the plain data set
        alone = references("plain").library
        np.testing.assert_allclose(made.library.images[:, :1].numpy(), alone.images.numpy(), atol=2e-3)
    check_results(made, plain, form, scans[form.scans][1])


def same_atlases(made, plain, partly):
    """The plan, the preprocessed images, the labels and the features are those of the same scans as MetaImage."""
    for group in ("preprocessing", "registration", "training"):
        assert made.record["settings"][group] == plain.record["settings"][group]
    ours, theirs = made.library, plain.library
    np.testing.assert_allclose(ours.images.numpy(), theirs.images.numpy(), atol=2e-3)
    known = ours.labels != IGNORE
    assert bool(known.all()) is not partly
    # a voxel on the border of what is known may go either way
    assert int((ours.labels != theirs.labels)[known].sum()) <= (10 if partly else 0)
    np.testing.assert_allclose(ours.features.numpy(), theirs.features.numpy(), atol=2e-3)


def check_results(made, plain, form, new):
    """Each label lies on its new scan's grid, has the data set's own value, and is the result of the plain data set."""
    ((_, value),) = form.labels.items()
    assert len(made.results) == len(new)
    for scan, ours, theirs in zip(new, made.results.values(), plain.results.values(), strict=True):
        label, corners = upright(*read_back(ours))
        image, places = upright(scan.image, scan.affine)
        assert label.shape == image.shape
        np.testing.assert_allclose(corners, places, atol=1e-3)
        assert set(np.unique(label)) == {0, value}
        reference = upright(*read_back(theirs))[0] > 0
        found = label > 0
        overlap = 2 * (found & reference).sum() / (found.sum() + reference.sum())
        assert overlap > (0.99 if form.patients is None and not form.partly else 0.9)  # who may be paired with whom is another


@pytest.fixture(scope="module")
def disk(scans, tmp_path_factory):
    """The tables of a disk of mixed formats."""
    return mixed_table(tmp_path_factory.mktemp("disk") / "data", *scans["plain"])


WRONG = {
    2: (",disk 0", ",gone", "list.csv line 2, column image: expected a file, "),
    3: (".mhd", ".mhd,x", "list.csv line 3, after column fold: expected 6 cells, one for each column, found 7"),
    4: ("p02.nii.gz", "p03.nii", "p02: list.csv line 4, column label: label geometry: expected the image's grid, "),
    5: (",1", ",second", "list.csv line 5, column fold: expected a whole number of 0 or more, found second"),
    6: (",drawn/p04.mgz", "", "list.csv line 6, column fold: expected 6 cells, one for each column, found 5"),
    7: ("drawn/p05.nii.gz", '"drawn/p05.nii.gz', "list.csv line 7, column label: expected 6 cells, "),
}
"""What is wrong in each line of a table: the right text, the wrong one, and what is said."""


def test_every_wrong_line_of_a_table_is_told_by_its_number_and_column(disk):
    table, _ = disk
    lines = [*table.read_text().splitlines(), ""]
    for number, (right, wrong, _) in WRONG.items():
        assert right in lines[number - 1], lines
        lines[number - 1] = lines[number - 1].replace(right, wrong, 1)
    table.with_name("list.csv").write_text("\n".join(lines))
    done = run("train", "data.root=list.csv", "model=m", *BUDGET, cwd=table.parent)
    assert done.code == 2
    told = {int(re.search(r"list\.csv line (\d+)", line)[1]): line for line in done.err.splitlines()}
    assert len(done.err.splitlines()) == len(WRONG)
    for number, (_, _, said) in WRONG.items():
        assert said in told[number], done.err


def test_a_wrong_line_of_new_scans_is_told_too(disk, references, tmp_path):
    _, table = disk
    table.with_name("list.csv").write_text("id,image\nx,p11.hdr\ny,p99.hdr\n")
    model = references("plain").folder / "m"
    done = run("segment", f"model={model}", f"input={table.with_name('list.csv')}", "output=o", cwd=tmp_path)
    assert (done.code, len(done.err.splitlines())) == (2, 1)
    assert "list.csv line 3, column image: expected a file" in done.err
    (table.parent / "cut.nii.gz").write_bytes(b"no scan")
    table.with_name("list.csv").write_text("id,image\nx,p11.hdr\ny,cut.nii.gz\n")
    done = run("segment", f"model={model}", f"input={table.with_name('list.csv')}", "output=o", "n=2", cwd=tmp_path)
    assert (done.code, len(done.err.splitlines())) == (2, 1)
    assert "y: list.csv line 3, column image: cut.nii.gz " in done.err
    assert "1 of 2 scans segmented" in done.out
