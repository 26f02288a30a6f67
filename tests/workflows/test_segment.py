"""What a folder of scans gives: formats, doubts, a table that tells of every scan, and no scan that stops the others."""

import csv
import errno
import json
import os
import shutil
import signal
import time
from dataclasses import replace

import nibabel
import numpy as np
import pydicom
import pytest
import torch

from oasis_monai.atlases.features import embedder, target_features
from oasis_monai.atlases.library import build_library
from oasis_monai.data.formats.dicom_labels import read_dicom_label, reference_of
from oasis_monai.data.formats.dispatch import write_array
from oasis_monai.data.io import read_image
from oasis_monai.data.settings import DataSettings
from oasis_monai.data.types import Case
from oasis_monai.networks.warp import folding_voxels
from oasis_monai.segmentation import flags
from oasis_monai.settings import build
from oasis_monai.transforms.preprocessing import PreprocessCache, Preprocessing
from oasis_monai.utils.errors import ConfigError, DataError, OasisError
from oasis_monai.workflows.crossval import crossval
from oasis_monai.workflows.model import Model, load_model
from oasis_monai.workflows.segment import segment_scans
from oasis_monai.workflows.segment_table import FILE, read_record
from oasis_monai.workflows.train import train_model
from tests.conftest import CASES, JOINT, TINY, merged
from tests.helpers.command import Command, run
from tests.helpers.dicom_series import write_series
from tests.helpers.real import real_data


def quiet(_):
    """No log."""


@pytest.fixture(scope="module")
def model(phantom, tmp_path_factory):
    base = tmp_path_factory.mktemp("model")
    settings = build(merged(TINY, {"cache": str(base / "c"), "data": {"root": str(phantom)}, "training": {"iterations": 30}}))
    return train_model(settings, base / "m", quiet)


@pytest.fixture
def images(phantom, tmp_path):
    """The scans of three cases of the phantom as .mhd."""
    folder = tmp_path / "scans"
    folder.mkdir()
    for i in range(3):
        for ending in (".mhd", ".raw"):
            shutil.copy(phantom / f"Case{i:02d}{ending}", folder)
    return folder


@pytest.fixture
def no_pictures(monkeypatch):
    """Titles of the pictures that would have been drawn."""
    titles = []
    monkeypatch.setattr("oasis_monai.evaluation.contours.overlay", lambda path, *a, **k: titles.append(a[4]))
    return titles


def told(out, case):
    return json.loads((out / f"{case}.json").read_text())


def table(out):
    with open(out / FILE, newline="") as stream:
        return {row["case"]: row for row in csv.DictReader(stream)}


def states(out):
    """Case -> status; that the tiny working grid cuts some phantoms off is beside the point."""
    return {case: row["status"].replace("flagged", "done") for case, row in table(out).items()}


def oblique(affine):
    turn = np.eye(4)
    angle = np.radians(8)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    return turn @ affine


def test_a_series_gives_the_label_of_the_same_scan_in_nifti(model, phantom, tmp_path, no_pictures):
    image, geometry = read_image(phantom / "Case01.mhd")
    array, affine = image[0].numpy().astype(np.int16), oblique(geometry.affine)
    write_series(tmp_path / "in" / "first", array, affine, name="IM{}", series="1.2.1", order=range(array.shape[2])[::-1])
    write_series(tmp_path / "in" / "second", array[..., ::-1], affine, series="1.2.2")
    write_series(tmp_path / "in" / "holed", array, affine, series="1.2.3", skip=(4,))
    nibabel.save(nibabel.Nifti1Image(array, affine), tmp_path / "in" / "whole.nii.gz")
    faults = segment_scans(model, tmp_path / "in", tmp_path / "out", n=2, log=quiet)
    assert [fault.case for fault in faults] == ["holed"]
    assert "(1 missing?)" in str(faults[0])
    labels = {name: nibabel.load(tmp_path / "out" / f"{name}_segmentation.nii.gz") for name in ("first", "second", "whole")}
    voxels = {name: np.asarray(label.dataobj) for name, label in labels.items()}
    assert voxels["whole"].sum() > 50
    np.testing.assert_array_equal(voxels["first"], voxels["whole"])
    np.testing.assert_allclose(labels["first"].affine, labels["whole"].affine, atol=1e-4)
    assert not np.array_equal(voxels["second"], voxels["whole"])
    assert table(tmp_path / "out")["first"]["prostate_ml"] == table(tmp_path / "out")["whole"]["prostate_ml"]
    # above its folders a result would be the next run's scan
    with pytest.raises(ConfigError, match=r"^output: expected a folder other than the scans' own"):
        segment_scans(model, tmp_path / "in", tmp_path / "in", n=2, log=quiet)
    # one file of a series stands for it
    assert segment_scans(model, tmp_path / "in" / "first" / "IM3", tmp_path / "one", n=2, log=quiet) == []
    again = np.asarray(nibabel.load(tmp_path / "one" / "first_segmentation.nii.gz").dataobj)
    np.testing.assert_array_equal(again, voxels["whole"])


def test_what_is_left_out_and_what_a_header_leaves_open_is_logged(model, images, tmp_path, no_pictures):
    """A label lies where each program shows its scan, whose sform and qform differ."""
    image, grid = read_image(images / "Case00.mhd")
    (tmp_path / "in").mkdir()
    scan = nibabel.Nifti1Image(image[0].numpy(), None)
    scan.set_qform(grid.affine, 1)
    scan.set_sform(grid.affine + np.outer([1, 0, 0, 0], [0, 0, 0, 15.0]), 2)
    nibabel.save(scan, tmp_path / "in" / "scan.nii.gz")
    (tmp_path / "in" / "other.mnc").touch()
    lines = []
    assert segment_scans(model, tmp_path / "in", tmp_path / "out", n=1, method="FwoW", log=lines.append) == []
    warned = [line for line in lines if line.startswith("warning: ")]
    assert len(warned) == 2
    assert "other.mnc, left out" in warned[0]
    assert "the sform (code 2) is used" in warned[1]
    label = nibabel.load(tmp_path / "out" / "scan_segmentation.nii.gz")
    np.testing.assert_array_equal(label.get_sform(), scan.get_sform())
    np.testing.assert_allclose(label.get_qform(), scan.get_qform(), atol=1e-5)
    assert (int(label.header["sform_code"]), int(label.header["qform_code"])) == (2, 1)


def test_labels_come_in_the_format_that_is_asked_for(model, images, tmp_path, no_pictures):
    out = tmp_path / "out"
    found = {}
    for kind in (None, "nii.gz", "mha", "mhd", "nii", "nrrd"):
        more = {"file_format": kind, "save_probability": kind == "mha"}
        assert segment_scans(model, images / "Case00.mhd", out, n=1, method="FwoW", log=quiet, **more) == []
        name = told(out, "Case00")["label"]
        assert name == f"Case00_segmentation.{kind or 'mhd'}"
        found[kind] = read_image(out / name)
    assert (out / "Case00_probability.mha").exists()
    _, native = read_image(images / "Case00.mhd")
    for label, geometry in found.values():
        assert torch.equal(label, found[None][0])
        np.testing.assert_allclose(geometry.affine, native.affine, atol=1e-4)
    with pytest.raises(
        ConfigError,
        match=r"^format: expected null .* or one of mhd, mha, nii, nii\.gz, nrrd, seg\.nrrd, dicom-seg, rtstruct, found 'png'",
    ):
        segment_scans(model, images, out, n=1, log=quiet, file_format="png")


@pytest.mark.parametrize("labels", [{"zone": 1, "gland": 2}, {"gland": 2, "zone": 1}])
def test_every_structure_keeps_its_value_whatever_its_name_and_place_in_the_settings(
    phantom_two_labels, tmp_path, no_pictures, labels
):
    """A model's settings are kept as JSON, whose order is by name: that order must not number the classes."""
    data = {"root": str(phantom_two_labels), "labels": labels}
    model = train_model(build(merged(TINY, {"cache": str(tmp_path / "c"), "data": data})), tmp_path / "m", quiet)
    how = {"n": 1, "method": "FwoW", "log": quiet}  # an atlas gets its own label
    assert segment_scans(model, phantom_two_labels / "Case02.mhd", tmp_path / "o", **how) == []
    found = read_image(tmp_path / "o" / "Case02_segmentation.mhd")[0]
    truth = read_image(phantom_two_labels / "Case02_segmentation.mhd")[0]
    for name, value in labels.items():
        overlap = 2 * ((found == value) & (truth == value)).sum() / ((found == value).sum() + (truth == value).sum())
        assert overlap > 0.7, name
        voxel_ml = told(tmp_path / "o", "Case02")["volume_ml"][name] / (found == value).sum()
        assert voxel_ml == pytest.approx(np.prod(read_image(phantom_two_labels / "Case02.mhd")[1].spacing_mm) / 1000, rel=1e-2)
    record = json.loads((model / "model.json").read_text())
    (model / "model.json").write_text(json.dumps(record | {"format": 1}))  # of before, when it did
    with pytest.raises(OasisError, match=r"^model: expected format 2, found 1 in .*train it again"):
        load_model(model)


def test_a_scan_that_is_an_atlas_is_told_and_one_with_nothing_in_it_is_refused(model, phantom, images, tmp_path, no_pictures):
    image, geometry = read_image(phantom / "Case02.mhd")
    write_array(tmp_path / "in" / "renamed.nii.gz", image[0].numpy(), geometry)
    write_array(tmp_path / "in" / "new.nii.gz", image[0].numpy()[::-1].copy(), geometry)
    write_array(tmp_path / "in" / "flat.nii.gz", 0 * image[0].numpy() + 7, geometry)
    lines = []
    (fault,) = segment_scans(model, tmp_path / "in", tmp_path / "o", n=2, method="FwoW", log=lines.append)
    assert str(fault).startswith("flat: image: expected different intensities in the field of view, found one value everywhere")
    assert (told(tmp_path / "o", "renamed")["is_atlas"], told(tmp_path / "o", "new")["is_atlas"]) == ("Case02", None)
    assert [line.split(":")[0] for line in lines if "the model's atlas Case02, so the result is no test of accuracy" in line] == [
        "renamed"
    ]


def test_another_scan_of_the_same_name_takes_no_result_s_place(model, phantom, tmp_path, no_pictures):
    for case, folder in (("Case00", "a"), ("Case01", "b")):
        image, geometry = read_image(phantom / f"{case}.mhd")
        write_array(tmp_path / folder / "t2.nii.gz", image[0].numpy(), geometry)
    how = {"n": 1, "method": "FwoW", "log": quiet}
    assert segment_scans(model, tmp_path / "a", tmp_path / "o", **how) == []
    first = (tmp_path / "o" / "t2_segmentation.nii.gz").read_bytes()
    (fault,) = segment_scans(model, tmp_path / "b", tmp_path / "o", **how)
    assert str(fault).startswith("t2: output: expected no result of another scan of this name")
    assert str(tmp_path / "a" / "t2.nii.gz") in str(fault)
    assert (tmp_path / "o" / "t2_segmentation.nii.gz").read_bytes() == first
    # the same scan elsewhere, or another version of it in its place, is no other scan
    shutil.copytree(tmp_path / "a", tmp_path / "moved")
    assert segment_scans(model, tmp_path / "moved", tmp_path / "o", **how) == []
    shutil.copy(tmp_path / "b" / "t2.nii.gz", tmp_path / "a" / "t2.nii.gz")
    assert segment_scans(model, tmp_path / "a", tmp_path / "o", **how) == []
    assert (tmp_path / "o" / "t2_segmentation.nii.gz").read_bytes() != first
    assert segment_scans(model, tmp_path / "moved", tmp_path / "o", overwrite=True, **how) == []
    assert (tmp_path / "o" / "t2_segmentation.nii.gz").read_bytes() == first


def test_anonymous_results_do_not_say_where_the_scan_lies(model, phantom, tmp_path, no_pictures):
    for case, folder in (("Case00", "DOE^JANE"), ("Case01", "ROE^JOHN")):
        image, geometry = read_image(phantom / f"{case}.mhd")
        write_array(tmp_path / folder / "t2.nii.gz", image[0].numpy(), geometry)
    how = {"n": 1, "method": "FwoW", "data": DataSettings(anonymous=True)}
    lines = []
    assert segment_scans(model, tmp_path / "DOE^JANE", tmp_path / "o", log=lines.append, **how) == []
    written = [path.read_bytes() for path in (tmp_path / "o").iterdir() if path.suffix in (".json", ".csv")]
    assert len(written) == 3
    assert not any(b"DOE" in text for text in (*written, *map(str.encode, lines)))
    (fault,) = segment_scans(model, tmp_path / "ROE^JOHN", tmp_path / "o", log=quiet, **how)
    assert "output: expected no result of another scan of this name, found that of another scan" in str(fault)
    assert segment_scans(model, tmp_path / "DOE^JANE", tmp_path / "o", log=lines.append, **how) == []


def test_a_label_in_memory_has_values_above_255(model, images):
    image, geometry = read_image(images / "Case00.mhd")
    found = load_model(model).segment(image[0].numpy(), geometry.affine, n=1)
    large = replace(found, label_values=(0, 60_000)).label
    assert set(large.unique().tolist()) == {0, 60_000}
    torch.testing.assert_close(large == 60_000, found.label == 1)


def test_a_finished_scan_without_the_probability_that_is_asked_for_is_not_finished(model, images, tmp_path, no_pictures):
    how = {"n": 1, "method": "FwoW", "log": quiet}
    for asked in (False, True):
        assert segment_scans(model, images / "Case00.mhd", tmp_path / "o", save_probability=asked, **how) == []
        assert (tmp_path / "o" / "Case00_probability.mhd").exists() == asked


def test_the_uncertainty_is_written_when_asked_for_and_kept_beside_what_was_written_before(model, images, tmp_path, no_pictures):
    out, scan, how = tmp_path / "o", images / "Case00.mhd", {"n": 3, "log": quiet, "file_format": "nii.gz"}
    assert segment_scans(model, scan, out, save_probability=True, **how) == []
    assert told(out, "Case00")["files"] == ["Case00_segmentation.nii.gz", "Case00_probability.nii.gz"]
    assert segment_scans(model, scan, out, save_uncertainty=True, **how) == []
    both = {"Case00_segmentation.nii.gz", "Case00_uncertainty.nii.gz", "Case00_probability.nii.gz"}
    assert set(told(out, "Case00")["files"]) == both
    assert both <= {path.name for path in out.iterdir()}
    written = nibabel.load(out / "Case00_uncertainty.nii.gz")
    label = nibabel.load(out / "Case00_segmentation.nii.gz")
    assert written.get_data_dtype() == np.float32
    assert np.allclose(written.affine, label.affine)
    values = written.get_fdata()
    assert values.shape == label.shape
    assert values.min() == 0
    assert 0.3 < values.max() <= 1
    found = load_model(model).segment(scan, n=3, save_probability=False, save_uncertainty=True)
    assert found.probability is None
    torch.testing.assert_close(found.uncertainty, torch.from_numpy(values).float())
    assert load_model(model).segment(scan, n=3).uncertainty is None
    # another number of atlases is another result: nothing of this one stays
    assert segment_scans(model, scan, out, **how | {"n": 1}) == []
    assert not (out / "Case00_uncertainty.nii.gz").exists()


def test_a_probability_of_another_result_is_never_taken_for_its_own(model, images, tmp_path, no_pictures):
    out, how = tmp_path / "o", {"method": "FwoW", "log": quiet}
    scan = images / "Case00.mhd"
    assert segment_scans(model, scan, out, n=1, save_probability=True, **how) == []
    of_one = (out / "Case00_probability.zraw").read_bytes()
    assert segment_scans(model, scan, out, n=1, file_format="nii.gz", **how) == []  # the same result: both formats are right
    assert (out / "Case00_segmentation.mhd").exists()
    (out / "Case00_probability.nii.gz").write_bytes(b"the user's")
    assert segment_scans(model, scan, out, n=3, **how) == []
    left = {path.name for path in out.iterdir() if "Case00_" in path.name}
    assert left == {"Case00_segmentation.mhd", "Case00_segmentation.zraw", "Case00_probability.nii.gz"}
    assert segment_scans(model, scan, out, n=3, save_probability=True, **how) == []
    assert (out / "Case00_probability.zraw").read_bytes() != of_one
    assert told(out, "Case00")["files"] == ["Case00_segmentation.mhd", "Case00_probability.mhd"]


def test_the_json_counts_folding_voxels_of_every_atlas(model, images, tmp_path, monkeypatch, no_pictures):
    """The fields are made to fold: with the network's own the counts would be zeros."""
    monkeypatch.setattr(
        "oasis_monai.segmentation.alignment.Aligner.fields", lambda self, a, t: torch.randn(len(a), 3, *a.shape[2:]).half() * 2
    )
    kept = []
    monkeypatch.setattr(
        "oasis_monai.workflows.scan_result.folding_voxels",
        lambda fields, size: kept.append(folding_voxels(fields, size)) or kept[-1],
    )
    assert segment_scans(model, images / "Case00.mhd", tmp_path / "o", n=3, log=quiet) == []
    found = told(tmp_path / "o", "Case00")
    counts = [atlas["folding_voxels"] for atlas in found["atlases"][0]]
    assert counts == kept[0].tolist()
    assert min(counts) > 0
    assert found["folding_voxels"] == sum(counts)
    assert found["field_voxels"] == 3 * 16 * 16 * 8
    assert "folding" in [flag["name"] for flag in found["flags"]]
    assert segment_scans(model, images / "Case01.mhd", tmp_path / "o", n=3, method="FwoW", log=quiet) == []
    found = told(tmp_path / "o", "Case01")
    assert found["folding_voxels"] is None
    assert [atlas["folding_voxels"] for atlas in found["atlases"][0]] == [None] * 3


def test_another_part_of_the_body_is_flagged_everywhere_and_the_models_own_is_not(model, images, tmp_path, no_pictures):
    image, geometry = read_image(images / "Case01.mhd")
    stripes = np.indices(image[0].shape)[0] % 16 > 7
    nibabel.save(nibabel.Nifti1Image((900 * stripes).astype(np.int16), geometry.affine), images / "stripes.nii")
    lines = []
    assert segment_scans(model, images, tmp_path / "o", n=2, method="FwoW", log=lines.append) == []
    doubts = {case: [flag["name"] for flag in told(tmp_path / "o", case)["flags"]] for case in ("Case00", "Case01", "stripes")}
    assert flags.UNLIKE_ATLASES in doubts["stripes"]
    assert flags.UNLIKE_ATLASES not in doubts["Case00"] + doubts["Case01"]
    rows = table(tmp_path / "o")
    assert rows["stripes"]["status"] == "flagged"
    assert rows["stripes"]["flags"].split(";") == doubts["stripes"]
    assert rows["Case01"]["status"] == ("flagged" if doubts["Case01"] else "done")
    (line,) = [line for line in lines if line.startswith("stripes ") and "flagged" in line]
    assert "unlike_atlases" in line
    (title,) = [title for title in no_pictures if title.startswith("stripes")]
    assert title == f"stripes  FwoW-2  [{', '.join(doubts['stripes'])}]"
    # the sentence is told when it happens
    assert any(line.startswith("stripes: prostate") and "differs from all atlases" in line for line in lines)


def test_nothing_found_is_flagged(model, images, tmp_path, monkeypatch, no_pictures):
    library = load_model(model).segmenter.library
    monkeypatch.setattr(type(library), "load", classmethod(lambda cls, path, check=True: library))
    library.labels.zero_()
    assert segment_scans(model, images / "Case00.mhd", tmp_path / "o", n=1, method="FwoW", log=quiet) == []
    assert [flag["name"] for flag in told(tmp_path / "o", "Case00")["flags"]] == ["empty"]
    assert told(tmp_path / "o", "Case00")["volume_ml"] == {"prostate": 0.0}


def failing(error, case):
    real = Model.segment_volume

    def segment_volume(self, volume, *how):
        if volume.case == case:
            raise error
        return real(self, volume, *how)

    return segment_volume


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (RuntimeError("sizes do not\nmatch"), "RuntimeError: sizes do not match"),
        (KeyError("x"), "KeyError: 'x'"),
        (MemoryError(), "MemoryError:"),
        (PermissionError(errno.EACCES, "Permission denied", "f"), "PermissionError: [Errno 13] Permission denied: 'f'"),
    ],
)
def test_whatever_happens_to_one_scan_the_others_are_done(model, images, tmp_path, monkeypatch, no_pictures, error, text):
    monkeypatch.setattr(Model, "segment_volume", failing(error, "Case01"))
    lines = []
    (fault,) = segment_scans(model, images, tmp_path / "o", n=1, method="FwoW", log=lines.append)
    assert str(fault).startswith(f"Case01: segment: expected a scan that this model can segment, found {text}")
    assert {p.name for p in (tmp_path / "o").glob("*.json")} == {"Case00.json", "Case02.json"}
    rows = table(tmp_path / "o")
    assert states(tmp_path / "o") == {"Case00": "done", "Case01": "failed", "Case02": "done"}
    assert rows["Case01"]["reason"] == str(fault).removeprefix("Case01: ")
    assert lines[-1].startswith("2 of 3 scans segmented")
    (line,) = [line for line in lines if line.startswith("Case01  failed")]
    assert text in line


def test_a_full_disk_ends_the_run(model, images, tmp_path, monkeypatch, no_pictures):
    monkeypatch.setattr(Model, "segment_volume", failing(OSError(errno.ENOSPC, "No space left on device", "o/x"), "Case01"))
    with pytest.raises(OSError, match="No space left"):
        segment_scans(model, images, tmp_path / "o", n=1, method="FwoW", log=quiet)
    assert {p.name for p in (tmp_path / "o").glob("*.json")} == {"Case00.json"}


def test_an_interrupted_run_keeps_what_is_finished(model, images, tmp_path, monkeypatch, no_pictures):
    with monkeypatch.context() as patch:
        patch.setattr(Model, "segment_volume", failing(KeyboardInterrupt(), "Case01"))
        with pytest.raises(KeyboardInterrupt):
            segment_scans(model, images, tmp_path / "o", n=1, method="FwoW", log=quiet)
    assert states(tmp_path / "o") == {"Case00": "done"}
    lines = []
    assert segment_scans(model, images, tmp_path / "o", n=1, method="FwoW", log=lines.append) == []
    assert sum("skipped" in line for line in lines) == 1


def test_the_interrupt_key_ends_with_its_own_code_and_says_how_to_go_on(model, phantom, tmp_path):
    scans = tmp_path / "scans"
    scans.mkdir()
    for i in range(2 * CASES):
        for ending in (".mhd", ".raw"):
            text = (phantom / f"Case{i % CASES:02d}{ending}").read_bytes()
            (scans / f"s{i:02d}{ending}").write_bytes(text.replace(f"Case{i % CASES:02d}.raw".encode(), f"s{i:02d}.raw".encode()))
    words = ("segment", f"model={model}", f"input={scans}", "output=o", "n=1", "methods=FwoW")
    command = Command(*words, cwd=tmp_path)
    while not (tmp_path / "o" / "s00.json").exists() and command.process.is_alive():
        time.sleep(0.02)
    os.kill(command.process.pid, signal.SIGINT)
    done = command.wait()
    assert done.code == 130
    assert done.err == "interrupted: run the same command again to continue; finished work is kept\n"
    finished = len(list((tmp_path / "o").glob("*.json")))
    assert len(table(tmp_path / "o")) == finished
    assert not [p for p in (tmp_path / "o").iterdir() if p.name.startswith(".")]


def test_the_table_tells_of_every_scan_of_the_folder_and_of_earlier_runs(model, images, tmp_path, no_pictures):
    out = tmp_path / "o"
    how = {"n": 1, "method": "FwoW", "log": quiet}
    assert segment_scans(model, images / "Case02.mhd", out, **how) == []
    (out / "other.json").write_text('{"not": "ours"}')
    (images / "Case01.raw").write_bytes(b"short")
    assert len(segment_scans(model, images / "Case01.mhd", out, **how)) == 1
    segment_scans(model, images, out, **how)
    rows = table(out)
    assert states(out) == {"Case00": "done", "Case01": "failed", "Case02": "skipped"}
    assert list(rows["Case00"]) == ["case", "status", "prostate_ml", "prostate_predicted_dsc", "calibrated", "flags", "reason"]
    assert rows["Case00"]["prostate_predicted_dsc"] == ""  # FwoW compares nothing
    assert float(rows["Case02"]["prostate_ml"]) == told(out, "Case02")["volume_ml"]["prostate"]
    assert rows["Case01"]["prostate_ml"] == ""
    assert "Case01.mhd" in rows["Case01"]["reason"] or "Case01.raw" in rows["Case01"]["reason"]
    segment_scans(model, images / "Case00.mhd", out, **how)
    assert states(out) == {"Case00": "skipped", "Case02": "skipped"}
    assert read_record(out / "other.json") is None


def test_the_command_line_says_it_all(model, images, tmp_path):
    (images / "Case01.raw").write_bytes(b"short")
    words = ("segment", f"model={model}", f"input={images}", "output=o", "n=1", "methods=FwoW", "format=mha")
    done = run(*words, cwd=tmp_path)
    assert done.code == 2
    assert done.err.startswith("error: Case01: ")
    assert len(done.err.splitlines()) == 1
    lines = done.out.splitlines()
    head = next(i for i, line in enumerate(lines) if line.startswith("case "))
    assert lines[head].split() == ["case", "status", "prostate", "ml", "flags", "and", "faults"]
    assert [line.split()[0] for line in lines[head + 1 : head + 4]] == list(states(tmp_path / "o"))
    assert lines[head + 2].split()[1] == states(tmp_path / "o")["Case01"] == "failed"
    assert "expected" in lines[head + 2]
    assert lines[head + 4] == "2 of 3 scans segmented into o"
    assert (tmp_path / "o" / "Case00_segmentation.mha").exists()
    assert run(*words[:-1], "format=png", cwd=tmp_path).err.startswith("error: format: expected null")


def test_hippocampi_are_unlike_prostates_and_held_out_prostates_are_not():
    """The rule on real scans, with the default preprocessing and features: no training is needed for it."""
    prostates, hippocampi = real_data("promise12"), real_data("hippocampus")
    store = PreprocessCache(None, Preprocessing(size=(96, 96, 32), spacing_mm=(1.0, 1.0, 3.0), intensity="local"), (0, 1))
    embed = embedder("efficientnet-lite0")
    own = [Case(f"Case{i:02d}", prostates / f"Case{i:02d}.mhd") for i in (0, 10, 16, 28, 5, 30)]
    items = [store.get(Case(c.id, c.image, c.image.with_name(f"{c.id}_segmentation.mhd"))) for c in own[:4]]
    library = build_library(items, 3, embed, 2)
    limit = flags.typical_distance(library, "l2")

    def flagged(case):
        features = target_features(store.get(case), 3, embed)
        distances = (
            torch.nn.functional.normalize(library.features, dim=1) - torch.nn.functional.normalize(features, dim=1)
        ).norm(dim=1)
        return flags.unlike_atlases(distances.min()[None], limit) is not None

    assert [flagged(case) for case in own[4:]] == [False, False]
    others = [Case(p.name[:15], p) for p in sorted((hippocampi / "imagesTr").iterdir())[:2]]
    assert [flagged(case) for case in others] == [True, True]


def with_calibration(model, tmp_path, told):
    copy = shutil.copytree(model, tmp_path / "calibrated")
    record = json.loads((copy / "model.json").read_text())
    assert record["calibration"] is None  # nothing was cross-validated with these settings
    (copy / "model.json").write_text(json.dumps(record | {"calibration": told}))
    return copy


def test_the_predicted_dsc_is_the_calibration_of_the_agreement(model, images, tmp_path, no_pictures):
    one = images / "Case00.mhd"
    plain, fine = [], []
    segment_scans(model, one, tmp_path / "a", n=3, log=plain.append)
    raw = told(tmp_path / "a", "Case00")
    agreement = raw["agreement"]["prostate"]
    assert agreement["networks"] is None  # a plain model has no networks beside its atlases
    assert 0 < agreement["atlases"] <= 1
    assert raw["predicted_dsc"] == {"prostate": agreement["atlases"]}
    assert not raw["calibrated"]

    fitted = {"sources": ["atlases"], "weights": [0.5], "offset": 0.4, "spread": 0.03, "cases": 20}
    other = with_calibration(model, tmp_path, {"OASIS-4": {"prostate": fitted}})
    segment_scans(other, one, tmp_path / "other", n=3, log=quiet)
    assert not told(tmp_path / "other", "Case00")["calibrated"]  # another n is another method
    assert told(tmp_path / "other", "Case00")["predicted_dsc"] == raw["predicted_dsc"]
    shutil.rmtree(other)
    good = with_calibration(model, tmp_path, {"OASIS-3": {"prostate": fitted}})
    segment_scans(good, one, tmp_path / "b", n=3, log=fine.append)
    line = told(tmp_path / "b", "Case00")
    assert line["calibrated"]
    assert line["predicted_dsc"]["prostate"] == pytest.approx(0.4 + 0.5 * agreement["atlases"], abs=2e-4)
    assert "prostate agreement %" in "\n".join(plain)
    assert "prostate DSC % predicted" in "\n".join(fine)
    row = table(tmp_path / "b")["Case00"]
    assert float(row["prostate_predicted_dsc"]) == line["predicted_dsc"]["prostate"]
    assert (table(tmp_path / "a")["Case00"]["calibrated"], row["calibrated"]) == ("false", "true")
    # of a model before there were intervals
    assert raw["dsc_interval_90"] == line["dsc_interval_90"] == {"prostate": None}
    assert "prostate_predicted_low" not in row
    assert "90 %" not in "\n".join([*plain, *fine])
    shutil.rmtree(good)

    bad = with_calibration(model, tmp_path, {"OASIS-3": {"prostate": fitted | {"weights": [0.0]}}})
    lines = []
    segment_scans(bad, one, tmp_path / "c", n=3, log=lines.append)
    assert "unsure" in [flag["name"] for flag in told(tmp_path / "c", "Case00")["flags"]]
    assert table(tmp_path / "c")["Case00"]["status"] == "flagged"
    assert any("predicted DSC prostate 40 %" in line for line in lines)
    shutil.rmtree(bad)

    odd = with_calibration(model, tmp_path, {"OASIS-3": {"prostate": {"sources": ["os.system"]}}})
    with pytest.raises(OasisError, match=r"^model: calibration: expected method -> label -> weights"):
        segment_scans(odd, one, tmp_path / "d", n=3, log=quiet)


@pytest.mark.parametrize(("factor", "ends"), [(0.4, (0.532, 0.828)), (None, (0.0, 1.0))])
def test_the_interval_of_the_predicted_dsc_is_told_everywhere(model, images, tmp_path, no_pictures, factor, ends):
    """0.68 +- 0.4 x (1.05 - 0.68); of too few patients it holds everything."""
    interval = {"level": 0.9, "factor": factor, "patients": 20, "held": [18, 20], "held_corrupted": [37, 40]}
    fitted = {"sources": ["atlases"], "weights": [0.0], "offset": 0.68, "spread": 0.03, "cases": 20, "interval": interval}
    copy = with_calibration(model, tmp_path, {"OASIS-3": {"prostate": fitted}})
    lines = []
    assert segment_scans(copy, images / "Case00.mhd", tmp_path / "a", n=3, log=lines.append) == []
    assert told(tmp_path / "a", "Case00")["dsc_interval_90"]["prostate"] == pytest.approx(ends)
    row = table(tmp_path / "a")["Case00"]
    assert [float(row[f"prostate_predicted_{end}"]) for end in ("low", "high")] == pytest.approx(ends)
    low, high = (f"{100 * end:.0f}" for end in ends)
    assert any(f"predicted DSC prostate 68 % (90 % interval {low} to {high} %)" in line for line in lines)
    assert any(f"68 ({low}-{high})" in line for line in lines)
    result = load_model(copy, "cpu").segment(images / "Case00.mhd", n=3)
    assert result.predictions["prostate"].interval == pytest.approx(ends)


def test_probabilities_are_given_at_the_temperature_of_the_model_and_labels_stay(model, images, tmp_path):
    fitted = {"sources": ["atlases"], "weights": [0.5], "offset": 0.4, "spread": 0.03, "cases": 20, "temperature": 2.0}
    warm = load_model(with_calibration(model, tmp_path, {"OASIS-3": {"prostate": fitted}}), "cpu")
    scan = images / "Case00.mhd"
    plain, found = load_model(model, "cpu").segment(scan, n=3), warm.segment(scan, n=3)
    assert torch.equal(plain.classes, found.classes)
    assert (plain.temperature, found.temperature) == (None, 2.0)
    assert found.to_json()["probability_temperature"] == 2.0
    roots = plain.probability.sqrt()
    torch.testing.assert_close(found.probability, roots / roots.sum(0))
    assert not torch.allclose(found.probability, plain.probability)
    assert warm.segment(scan, n=2).temperature is None  # another n is another method


def test_a_model_trained_after_a_cross_validation_takes_its_calibration(phantom, tmp_path):
    given = {"cache": str(tmp_path / "c"), "data": {"root": str(phantom)}, "training": {"iterations": 3}, "methods": "OASIS"}
    settings = build(merged(TINY, given))
    crossval(settings, tmp_path / "run", quiet)
    folder = train_model(settings, tmp_path / "m", quiet)
    kept = json.loads((folder / "model.json").read_text())["calibration"]
    assert kept == json.loads((tmp_path / "run" / "calibration.json").read_text())
    assert kept["OASIS-" + str(settings.n[0])]["prostate"]["cases"] == CASES
    other = build(merged(TINY, given, {"seed": 3}))
    assert json.loads((train_model(other, tmp_path / "o", quiet) / "model.json").read_text())["calibration"] is None


def test_a_method_that_fuses_no_atlas_finds_its_calibration_and_two_that_found_nothing_are_unsure(
    phantom, images, tmp_path, no_pictures, monkeypatch
):
    given = {"cache": str(tmp_path / "c"), "data": {"root": str(phantom)}}
    made = train_model(build(merged(TINY, JOINT, given)), tmp_path / "m", quiet)
    fitted = {"sources": ["networks", "atlases"], "weights": [0.5, 0.0], "offset": 0.3, "spread": 0.01, "cases": 9}
    copy = with_calibration(made, tmp_path, {"estimate": {"prostate": fitted}})
    for folder, values in (("a", [[0.9, np.nan]]), ("b", [[np.nan, np.nan]])):
        monkeypatch.setattr("oasis_monai.workflows.scan_result.overlaps", lambda _, values=values: np.array(values))
        assert segment_scans(copy, images / "Case00.mhd", tmp_path / folder, n=1, method="estimate", log=quiet) == []
        line = told(tmp_path / folder, "Case00")
        assert line["calibrated"]
        assert line["predicted_dsc"]["prostate"] == pytest.approx(0.75 if folder == "a" else 0.3)
        assert ("unsure" in {flag["name"] for flag in line["flags"]}) is (folder == "b")


def test_another_embedding_network_than_in_training_is_refused(model, images, tmp_path):
    """Distances between vectors of two networks mean nothing, and nothing else would tell."""
    copy = shutil.copytree(model, tmp_path / "m")
    record = json.loads((copy / "model.json").read_text())
    assert record["embedding"] == embedder(record["settings"]["features"]["name"]).key
    (copy / "model.json").write_text(json.dumps(record | {"embedding": "another"}))
    with pytest.raises(OasisError, match=r"^model: expected the embedding network another, found .*features\.weights"):
        segment_scans(copy, images, tmp_path / "o", n=1, log=quiet)


def test_a_dicom_series_gets_its_result_as_dicom_that_refers_to_it_and_others_are_refused_in_a_line(
    model, phantom, tmp_path, no_pictures
):
    """The same voxels as in NIfTI; colours and codes as they are asked for; a scan in another format is told."""
    image, geometry = read_image(phantom / "Case01.mhd")
    array = image[0].numpy().astype(np.int16)
    write_series(tmp_path / "in" / "series", array, oblique(geometry.affine), series="1.2.1", **{"0020|0052": "1.2.9"})
    nibabel.save(nibabel.Nifti1Image(array, geometry.affine), tmp_path / "in" / "whole.nii.gz")
    how = {"n": 2, "method": "FwoW", "log": quiet, "segments": {"prostate": {"code": [41216001, "SCT", "Prostate"]}}}
    assert segment_scans(model, tmp_path / "in" / "series", tmp_path / "out", **how) == []
    wanted, grid = read_image(tmp_path / "out" / "series_segmentation.nii.gz")
    for kind, ending in (("dicom-seg", "seg.dcm"), ("rtstruct", "rtstruct.dcm"), ("seg.nrrd", "seg.nrrd")):
        faults = segment_scans(model, tmp_path / "in", tmp_path / "out", file_format=kind, save_probability=True, **how)
        path = tmp_path / "out" / f"series_segmentation.{ending}"
        record = told(tmp_path / "out", "series")
        assert record["label"] == path.name
        assert {path.name, "series_segmentation.nii.gz", "series_probability.nii.gz"} <= set(record["files"])
        if kind == "seg.nrrd":
            assert faults == []
            found = read_image(path)[0][0].numpy()
        else:
            assert [str(fault).split("; ")[0] for fault in faults] == [
                "whole: whole.nii.gz format: expected a DICOM series, to which DICOM SEG and RTSTRUCT refer, found another format"
            ]
            found, _ = read_dicom_label(path, grid)
            assert "1.2.1" in reference_of(path).series or kind == "dicom-seg"
            data = pydicom.dcmread(path)
            item = (data.SegmentSequence if kind == "dicom-seg" else data.RTROIObservationsSequence)[0]
            codes = item.SegmentedPropertyTypeCodeSequence if kind == "dicom-seg" else item.RTROIIdentificationCodeSequence
            assert codes[0].CodeMeaning == "Prostate"
        np.testing.assert_array_equal(found, wanted[0].numpy())
    with pytest.raises(ConfigError, match=r"^format: expected scans that are DICOM series, .* found 'rtstruct of whole.nii.gz';"):
        segment_scans(model, tmp_path / "in" / "whole.nii.gz", tmp_path / "o", file_format="rtstruct", **how)
    with pytest.raises(ConfigError, match=r"^segments.gland: expected one of prostate, found"):
        segment_scans(model, tmp_path / "in" / "series", tmp_path / "o", n=2, log=quiet, segments={"gland": {}})
    result = load_model(model).segment(tmp_path / "in" / "series", n=2, method="FwoW")
    result.save(tmp_path / "again.rtstruct.dcm", scan=tmp_path / "in" / "series")
    np.testing.assert_array_equal(read_dicom_label(tmp_path / "again.rtstruct.dcm", grid)[0], wanted[0].numpy())
    with pytest.raises(DataError, match=r"^other: scan: expected the series that was segmented, found direction off by"):
        replace(result, case="other", geometry=geometry).save(tmp_path / "no.seg.dcm", scan=tmp_path / "in" / "series")


def test_a_model_keeps_the_codes_that_it_was_trained_with_and_those_of_segment_come_in_their_place(
    phantom, tmp_path, no_pictures
):
    more = {"cache": str(tmp_path / "c"), "data": {"root": str(phantom), "include": ["Case00", "Case01"]}}
    settings = build(merged(TINY, more, {"training": {"iterations": 1}}))
    gland = {"prostate": {"color": "#0072b2", "code": [41216001, "SCT", "Prostate"]}}
    with pytest.raises(ConfigError, match=r"^segments.gland: expected one of prostate, found"):
        train_model(settings, tmp_path / "m", quiet, segments={"gland": {}})
    model = train_model(settings, tmp_path / "m", quiet, segments=gland)
    image, geometry = read_image(phantom / "Case02.mhd")
    series = tmp_path / "in" / "series"
    write_series(series, image[0].numpy().astype(np.int16), oblique(geometry.affine), series="1.2.1", **{"0020|0052": "1.2.9"})

    def written(folder, **how):
        assert segment_scans(folder, series, tmp_path / "out", n=1, log=quiet, file_format="dicom-seg", **how) == []
        item = pydicom.dcmread(tmp_path / "out" / "series_segmentation.seg.dcm").SegmentSequence[0]
        return item.SegmentedPropertyTypeCodeSequence[0].CodeMeaning, item.RecommendedDisplayCIELabValue

    coded, blue = written(model)
    assert coded == "Prostate"
    other, orange = written(model, segments={"prostate": {"code": ["1", "SCT", "Gland"]}})
    assert other == "Gland"
    assert orange != blue  # nothing of the model's: the colour is the first of the palette
    load_model(model).segment(series, n=1).save(tmp_path / "x.seg.dcm", scan=series)
    item = pydicom.dcmread(tmp_path / "x.seg.dcm").SegmentSequence[0]
    assert item.RecommendedDisplayCIELabValue == blue

    record = json.loads((model / "model.json").read_text())
    for told_of, match in (
        ({"prostate": {"color": "blue"}}, r"^model: segments\.prostate\.color: expected"),
        (["x"], r"^model: "),
    ):
        copy = shutil.copytree(model, tmp_path / "copy", dirs_exist_ok=True)
        (copy / "model.json").write_text(json.dumps(record | {"segments": told_of}))
        with pytest.raises(OasisError, match=match):
            segment_scans(copy, series, tmp_path / "no", n=1, log=quiet)
    del record["segments"]  # as models of before
    (copy / "model.json").write_text(json.dumps(record))
    assert written(copy) == ("Tissue", orange)
    assert "segments" not in json.loads((train_model(settings, tmp_path / "m", quiet) / "model.json").read_text())


def test_statistics_tell_what_nibabel_and_the_scan_say_and_stay_of_scans_that_were_finished(model, images, tmp_path, no_pictures):
    out, how = tmp_path / "o", {"n": 1, "method": "FwoW", "log": quiet}
    for scan in (images / "Case00.mhd", images / "Case01.mhd", images / "Case00.mhd"):
        assert segment_scans(model, scan, out, file_format="nii.gz", **how) == []
    with open(out / "statistics.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [(row["case"], row["structure"]) for row in rows] == [("Case00", "prostate"), ("Case01", "prostate")]
    for row in rows:
        label = nibabel.load(out / f"{row['case']}_segmentation.nii.gz")
        inside = np.asarray(label.dataobj) == 1
        values = read_image(images / f"{row['case']}.mhd")[0][0].numpy()[inside]
        centres = nibabel.affines.apply_affine(label.affine, np.argwhere(inside))
        mm3 = inside.sum() * np.abs(np.linalg.det(label.affine[:3, :3]))
        wanted = {"voxels": inside.sum(), "volume_mm3": mm3, "volume_ml": mm3 / 1000}
        wanted |= {"intensity_mean": values.mean(), "intensity_sd": values.std()}
        for k, (axis, index) in enumerate(zip("xyz", "ijk", strict=True)):
            half = np.abs(label.affine[k, :3]).sum() / 2
            wanted |= {f"center_{axis}_mm": centres[:, k].mean(), f"box_min_{axis}_mm": centres[:, k].min() - half}
            wanted |= {
                f"box_max_{axis}_mm": centres[:, k].max() + half,
                f"box_last_{index}_voxel": np.argwhere(inside)[:, k].max(),
            }
        for name, value in wanted.items():
            assert float(row[name]) == pytest.approx(value, rel=1e-4, abs=1e-3), name
        assert float(row["surface_mm2"]) > 4.8 * float(row["volume_mm3"]) ** (2 / 3)  # that of a ball
        assert float(table(out)[row["case"]]["prostate_ml"]) == pytest.approx(float(row["volume_ml"]), abs=1e-3)
