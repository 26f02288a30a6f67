"""The library of a model folder is edited whole or not at all, and the model that results is what it says it is."""

import json
import os
import shutil
import signal
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from oasis_monai.atlases.library import AtlasLibrary
from oasis_monai.atlases.slices import adjacent_slice_atlases, append_atlas_channels
from oasis_monai.data.io import read_image, read_volume
from oasis_monai.data.types import Case
from oasis_monai.segmentation.loa import LoaTable
from oasis_monai.settings import build
from oasis_monai.utils.errors import ConfigError, DataError, OasisError
from oasis_monai.utils.tensor_files import load_tensors
from oasis_monai.workflows import library as atlases
from oasis_monai.workflows.library import add_atlas, list_atlases, remove_atlas
from oasis_monai.workflows.model import load_model
from oasis_monai.workflows.prepare import find_and_check, prepare
from oasis_monai.workflows.segment import segment_scans
from oasis_monai.workflows.train import train_model
from tests.conftest import JOINT, JOINT_2D, TINY, TINY_2D, merged
from tests.helpers.command import CONTEXT, Command, run
from tests.helpers.dicom_series import write_series

OLD, NEW, LAST = [f"Case{i:02d}" for i in range(4)], "Case04", "Case05"
KINDS = {
    "volumes": [TINY],
    "slices": [TINY, TINY_2D],
    "joint volumes": [TINY, JOINT],
    "joint slices": [TINY, JOINT, TINY_2D, JOINT_2D],
}


def quiet(_):
    """No log."""


@pytest.fixture(scope="module")
def make_trained(phantom, tmp_path_factory):
    """Function: the model of a kind, trained once on four cases."""
    made = {}

    def make(kind):
        if kind not in made:
            base = tmp_path_factory.mktemp("models")
            data = {"data": {"root": str(phantom), "include": OLD}, "cache": str(base / "cache")}
            settings = build(merged(*KINDS[kind], data))
            made[kind] = settings, train_model(settings, base / "model", quiet)
        return made[kind]

    return make


@pytest.fixture
def model(make_trained, tmp_path):
    """A copy of the model of volumes that a test may edit."""
    return Path(shutil.copytree(make_trained("volumes")[1], tmp_path / "model"))


def content(folder):
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if p.is_file() and p.name != ".lock"}


def files(phantom, case):
    return phantom / f"{case}.mhd", phantom / f"{case}_segmentation.mhd"


def cases(model):
    return list(dict.fromkeys(load_model(model).segmenter.library.cases))


@pytest.mark.parametrize("kind", KINDS)
def test_an_added_case_is_an_atlas_like_those_of_training_and_removed_leaves_no_trace(make_trained, phantom, tmp_path, kind):
    _, trained = make_trained(kind)
    model = Path(shutil.copytree(trained, tmp_path / "model"))
    before = content(model)
    assert add_atlas(model, *files(phantom, NEW), log=quiet) == NEW
    segmenter = load_model(model).segmenter
    found = segmenter.library
    both = build(merged(*KINDS[kind], {"data": {"root": str(phantom), "include": [*OLD, NEW]}}))
    wanted = prepare(both, find_and_check(both, None, quiet), None, quiet).library
    assert found.cases == wanted.cases
    for name in ("images", "labels", "features", "slices", *(["context", "thumbnails"] if "slices" in kind else [])):
        torch.testing.assert_close(getattr(found, name), getattr(wanted, name), msg=name)
    if "joint" in kind:
        row = len(found) - (1 if "slices" not in kind else len([c for c in found.cases if c == NEW]))
        image = found.images[row:]
        if "slices" in kind:
            own = torch.cat([found.context[row:, :1], image, found.context[row:, 1:]], 1)
            near = adjacent_slice_atlases(own, load_model(trained).segmenter.library)
            shown = append_atlas_channels(own, found, near)
            estimate = segmenter.estimator.without_views()(shown)[:, 1:]
        else:
            estimate = segmenter.estimator.without_views().volume(image[0])[1:][None]
        torch.testing.assert_close(found.estimates[row:].float(), estimate, atol=2e-3, rtol=0)
        torch.testing.assert_close(found.estimates[:row], load_model(trained).segmenter.library.estimates)
    remove_atlas(model, NEW, log=quiet)
    after = content(model)
    assert set(after) == set(before)
    for name in ("library.safetensors", "model.json", "stm.safetensors"):
        assert after[name] == before[name], name
    rows = torch.arange(min(len(found), 4))
    torch.testing.assert_close(load_model(model).segmenter.loa.matrix(rows), load_model(trained).segmenter.loa.matrix(rows))


def test_a_scan_finds_the_added_case_among_its_atlases(model, phantom, tmp_path, monkeypatch):
    monkeypatch.setattr("oasis_monai.evaluation.contours.overlay", lambda *a, **k: None)

    def nearest():
        segment_scans(model, phantom / f"{NEW}.mhd", tmp_path / "o", n=1, method="FwoW", log=quiet)
        told = json.loads((tmp_path / "o" / f"{NEW}.json").read_text())
        return told["atlases"][0][0]["case"], told["atlases"][0][0]["distance"]

    assert nearest()[0] in OLD
    add_atlas(model, *files(phantom, NEW), case="mine", log=quiet)
    assert nearest() == ("mine", 0.0)
    label, truth = (
        read_image(p)[0] == 1 for p in (tmp_path / "o" / f"{NEW}_segmentation.mhd", phantom / f"{NEW}_segmentation.mhd")
    )
    assert 2 * float((label & truth).sum()) / float(label.sum() + truth.sum()) > 0.75  # the working grid is coarse
    remove_atlas(model, "mine", log=quiet)
    assert nearest()[0] in OLD


@pytest.mark.parametrize("gone", OLD)
def test_the_overlaps_of_those_that_stay_are_kept_and_are_true(model, gone):
    remove_atlas(model, gone, log=quiet)
    kept = load_tensors(model / "loa.safetensors")[0]
    assert len(kept["values"]) == 3 * 2
    segmenter = load_model(model).segmenter
    fresh = LoaTable(segmenter.library, segmenter.aligner).matrix(torch.arange(3))
    torch.testing.assert_close(segmenter.loa.matrix(torch.arange(3)), fresh)
    assert fresh.unique().numel() > 4  # or a wrong order would not be seen


def test_overlaps_of_another_library_are_never_used(model, phantom):
    old = (model / "loa.safetensors").read_bytes()
    remove_atlas(model, OLD[0], log=quiet)
    add_atlas(model, *files(phantom, NEW), log=quiet)
    (model / "loa.safetensors").write_bytes(old)  # as a run does that began before the edit and ends after it
    segmenter = load_model(model).segmenter
    fresh = LoaTable(segmenter.library, segmenter.aligner).matrix(torch.arange(4))
    torch.testing.assert_close(segmenter.loa.matrix(torch.arange(4)), fresh)


def test_the_list_tells_ids_images_volumes_and_features(model, make_trained, phantom):
    preprocessing = make_trained("volumes")[0].preprocessing
    add_atlas(model, *files(phantom, NEW), case="new one", log=quiet)
    head, *lines, total = list_atlases(model).splitlines()
    assert head.split() == ["case", "images", "prostate", "ml", "trained", "on"]
    assert [line[:8].strip() for line in lines] == [*OLD, "new one"]
    for line, case in zip(lines, [*OLD, NEW], strict=True):
        images, volume, trained = line[8:].split()
        made = preprocessing.apply(read_volume(Case(case, *files(phantom, case)), (0, 1)))
        ml = float(made.label.sum()) * np.prod(made.geometry.spacing_mm) / 1000
        assert (images, trained) == ("1", "yes" if case in OLD else "no")
        assert float(volume) == pytest.approx(ml, abs=0.06)
    assert total == "5 cases, 5 images, selected by intensity (l2)"


def spoilt_label(change):
    def spoil(phantom, folder):
        image, geometry = read_image(phantom / f"{NEW}.mhd")
        label = read_image(phantom / f"{NEW}_segmentation.mhd")[0][0].numpy().astype(np.uint8)
        affine = geometry.affine.copy()
        for name, array in (("scan.nii", image[0].numpy().astype(np.int16)), ("label.nii", change(label, affine))):
            nibabel.save(nibabel.Nifti1Image(array, affine if name == "label.nii" else geometry.affine), folder / name)
        return folder / "scan.nii", folder / "label.nii", "x"

    return spoil


def moved(label, affine):
    affine[:3, 3] += 10
    return label


def far_away(label, _):
    corner = np.zeros_like(label)
    corner[:2, :2, :2] = 1
    return corner


@pytest.mark.parametrize(
    ("what", "error", "match"),
    [
        (
            lambda p, _: (*files(p, NEW), OLD[1]),
            ConfigError,
            f"^case: expected an id that is not in the library, found '{OLD[1]}'",
        ),
        (lambda p, _: (*files(p, OLD[2]), None), ConfigError, f"^case: expected an id .* found '{OLD[2]}'"),
        (lambda p, _: (*files(p, OLD[2]), "twin"), DataError, f"^twin: image: .* found the voxels of {OLD[2]}, an atlas"),
        (lambda p, _: (*files(p, NEW), "a/b"), ConfigError, "^case: expected a name without /"),
        (lambda p, _: (*files(p, NEW), " "), ConfigError, "^case: expected a name"),
        (lambda p, _: (p, files(p, NEW)[1], "x"), DataError, "scan: expected one scan, found 7 scans"),
        (lambda p, _: (p / "none.mhd", files(p, NEW)[1], "x"), DataError, "^root: expected an existing folder"),
        (lambda p, _: (files(p, NEW)[0], p / "none.mhd", "x"), DataError, "^x: none.mhd file: expected a readable file"),
        (spoilt_label(lambda label, _: label * 7), DataError, r"^x: label.nii label values: expected only 0, 1, found 7 \("),
        (spoilt_label(lambda label, _: label * 0), DataError, "^x: label: expected some of it in the working field of view"),
        (spoilt_label(moved), DataError, "^x: label geometry: expected the image's grid, found origin off by 10 mm"),
        (spoilt_label(far_away), DataError, "^x: label: expected some of it in the working field of view, found nothing"),
    ],
)
def test_what_cannot_be_added_changes_nothing(model, phantom, tmp_path, what, error, match):
    before = content(model)
    image, label, case = what(phantom, tmp_path)
    with pytest.raises(error, match=match) as told:
        add_atlas(model, image, label, case, log=quiet)
    assert "\n" not in str(told.value)
    assert content(model) == before


def test_the_same_scan_in_another_format_is_the_same_scan(model, phantom, tmp_path):
    image, geometry = read_image(phantom / f"{OLD[2]}.mhd")
    nibabel.save(nibabel.Nifti1Image(image[0].numpy().astype(np.int16), geometry.affine), tmp_path / "copy.nii.gz")
    with pytest.raises(DataError, match=f"found the voxels of {OLD[2]}"):
        add_atlas(model, tmp_path / "copy.nii.gz", files(phantom, OLD[2])[1], log=quiet)


def test_a_series_becomes_an_atlas(model, phantom, tmp_path):
    image, geometry = read_image(phantom / f"{NEW}.mhd")
    write_series(tmp_path / "scan", image[0].numpy(), geometry.affine)
    assert add_atlas(model, tmp_path / "scan", files(phantom, NEW)[1], log=quiet) == "scan"
    twin = Path(shutil.copytree(model, tmp_path / "twin"))
    remove_atlas(twin, "scan", log=quiet)
    add_atlas(twin, *files(phantom, NEW), log=quiet)
    torch.testing.assert_close(
        AtlasLibrary.load(model / "library.safetensors").images, AtlasLibrary.load(twin / "library.safetensors").images
    )


def test_what_cannot_be_removed(model):
    with pytest.raises(ConfigError, match=r"^remove: expected a case of the library: Case00, Case01, Case02, Case03, found 'x'"):
        remove_atlas(model, "x", log=quiet)
    lines = []
    for case in OLD[:3]:
        remove_atlas(model, case, log=lines.append)
    assert lines == ["note: the library has 1 atlases left; segment with n=1 or less"]
    with pytest.raises(ConfigError, match=r"^remove: expected a library that keeps 1 atlases or more"):
        remove_atlas(model, OLD[3], log=quiet)
    assert cases(model) == [OLD[3]]


def test_a_library_that_has_changed_is_not_edited(model, phantom):
    raw = bytearray((model / "library.safetensors").read_bytes())
    raw[-1] ^= 1
    (model / "library.safetensors").write_bytes(raw)
    before = content(model)
    for edit in (lambda: add_atlas(model, *files(phantom, NEW), log=quiet), lambda: remove_atlas(model, OLD[0], log=quiet)):
        with pytest.raises(OasisError, match=r"^model: expected library\.safetensors as it was written"):
            edit()
    assert content(model) == before


STEPS = ("save", "write_json", "replace", "keep_pairs")


def _edit_and_die(model, image, label, step, after):
    """In a process of its own: add a case, killed before or after one step."""
    owner, name = {
        "save": (AtlasLibrary, "save"),
        "write_json": (atlases, "write_json"),
        "replace": (os, "replace"),
        "keep_pairs": (atlases, "keep_pairs"),
    }[step]
    real = getattr(owner, name)

    def dying(*arguments, **more):
        if step == "replace" and Path(arguments[0]).name != "library.next.safetensors":
            return real(*arguments, **more)
        if after:
            real(*arguments, **more)
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(owner, name, dying)
    torch.set_num_threads(1)
    add_atlas(model, image, label, log=quiet)


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("step", STEPS)
def test_an_edit_killed_in_the_middle_leaves_the_model_as_before_or_as_after(model, phantom, step, after):
    before = content(model)
    process = CONTEXT.Process(target=_edit_and_die, args=(model, *files(phantom, NEW), step, after))
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    made = STEPS.index(step) + after > 1
    assert cases(model) == [*OLD, *([NEW] if made else [])]
    segmenter = load_model(model).segmenter
    rows = torch.arange(len(segmenter.library))
    torch.testing.assert_close(segmenter.loa.matrix(rows), LoaTable(segmenter.library, segmenter.aligner).matrix(rows))
    if not made:
        add_atlas(model, *files(phantom, NEW), log=quiet)
    remove_atlas(model, NEW, log=quiet)
    assert set(content(model)) == set(before)
    assert content(model)["library.safetensors"] == before["library.safetensors"]


def test_two_edits_at_once_are_both_made(model, phantom, tmp_path):
    both = [
        Command("library", f"model={model}", f"add={image}", f"label={label}", f"hydra.run.dir={image.stem}", cwd=tmp_path)
        for image, label in (files(phantom, NEW), files(phantom, LAST))
    ]
    assert [(done.code, done.err) for done in (command.wait() for command in both)] == [(0, ""), (0, "")]
    assert sorted(cases(model)) == [*OLD, NEW, LAST]


def test_by_the_command_line(model, phantom, tmp_path):
    image, label = files(phantom, NEW)
    done = run("library", f"model={model}", f"add={image}", f"label={label}", "case=mine", cwd=tmp_path)
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith("added: mine\n")
    assert done.out.endswith("5 cases, 5 images, selected by intensity (l2)\n")
    done = run("library", f"model={model}", f"remove={OLD[0]}", cwd=tmp_path)
    assert (done.code, done.err) == (0, "")
    listed = run("library", f"model={model}", cwd=tmp_path)
    assert listed.out.splitlines() == done.out.splitlines()[-len(listed.out.splitlines()) :]
    assert "mine" in listed.out
    assert OLD[0] not in listed.out


@pytest.mark.parametrize(
    ("words", "match"),
    [
        ([], "error: model: expected the folder of a trained model"),
        (["model=nowhere"], "error: model: expected a folder written by `oasis-monai train`, found nowhere without"),
        (["model=m", "add=a.mhd"], "error: label: expected a file beside add=a.mhd, found None"),
        (["model=m", "label=a.mhd"], "error: add: expected a file beside label=a.mhd"),
        (["model=m", "add=a", "label=b", "remove=c"], "error: remove: expected one edit at a time"),
        (["model=m", "case=c"], "error: case: expected the id of a case to add"),
        (["model=nowhere", "remove=c"], "error: model: expected a folder written by"),
    ],
)
def test_what_the_command_line_refuses(tmp_path, words, match):
    done = run("library", *words, cwd=tmp_path)
    assert done.code == 2
    assert done.err.startswith(match)
    assert len(done.err.splitlines()) == 1
    assert not (tmp_path / "nowhere").exists()


def test_an_added_scan_of_a_patient_of_the_library_is_told_and_keeps_its_patient(model, phantom, tmp_path):
    said = []
    add_atlas(model, *files(phantom, NEW), patient="Case01", log=said.append)
    assert said[-1] == "note: Case04 is of the same patient as Case01"
    library = load_model(model).segmenter.library
    assert library.cases_of("Case01") == ["Case01", NEW]
    listed = list_atlases(model).splitlines()
    assert listed[0].split()[:2] == ["case", "patient"]
    assert next(line for line in listed if line.startswith(NEW)).split()[1] == "Case01"
    # and so is another scan of this patient, whoever says whose it is
    (tmp_path / "scans.csv").write_text(f"id,image,patient\nagain,{files(phantom, LAST)[0]},Case01\n")
    segment_scans(model, tmp_path / "scans.csv", tmp_path / "out", said.append, n=2)
    assert json.loads((tmp_path / "out" / "again.json").read_text())["atlases_of_patient"] == ["Case01", NEW]
    assert any("Case01, Case04 among the model's atlases are of this patient" in line for line in said)
    remove_atlas(model, NEW)
    assert load_model(model).segmenter.library.patients == tuple(OLD)
