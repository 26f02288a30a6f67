"""New scans come in the forms of labelled ones: a model of two channels finds its own among three, however they lie."""

import json
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

import oasis_monai
from oasis_monai import scans_in
from oasis_monai.data.io import read_image
from oasis_monai.data.scans import find_scans
from oasis_monai.data.settings import DataSettings
from oasis_monai.settings import build
from oasis_monai.transforms import LoadVolume
from oasis_monai.utils.errors import ConfigError, DataError
from oasis_monai.workflows.library import add_atlas, remove_atlas
from oasis_monai.workflows.segment import segment_scans
from oasis_monai.workflows.train import train_model
from tests.conftest import TINY, merged
from tests.helpers.channels import NAMES, write_two_channels
from tests.helpers.command import run
from tests.helpers.dicom_series import write_series
from tests.helpers.runs import quiet

NEW = "Case05"


@pytest.fixture(scope="module")
def known(tmp_path_factory, phantom):
    """A folder of cases with two channels, and a model of the first four."""
    base = tmp_path_factory.mktemp("inputs")
    cases = write_two_channels(base / "set", phantom, 6)
    data = {"root": str(base / "set"), "layout": "nnunet", "labels": {"gland": 1}, "include": [c.id for c in cases[:4]]}
    settings = build(merged(TINY, {"data": data, "cache": str(base / "c"), "n": 2, "training": {"iterations": 2}}))
    return cases, oasis_monai.load_model(train_model(settings, base / "m", quiet), device="cpu")


@pytest.fixture(scope="module")
def three(known, tmp_path_factory):
    """The images T2, ADC and a third one of a new case, the paths by name."""
    case = known[0][5]
    folder = tmp_path_factory.mktemp("three")
    found = dict(zip(NAMES, (case.image, case.channels[0][0]), strict=True))
    image = nibabel.load(case.image)
    found["DWI"] = folder / "dwi.nii.gz"
    nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj)[::-1], image.affine), found["DWI"])
    return found


@pytest.fixture(scope="module")
def expected(known, three):
    """What the model makes of the two channels, in its order."""
    return known[1].segment([three[name] for name in NAMES], n=2).label


def table(folder, three):
    (folder / "scans.csv").write_text(f"id,DWI,adc,T2\nnew,{three['DWI']},{three['ADC']},{three['T2']}\n")
    return folder / "scans.csv", None


def nnunet(folder, three):
    """``imagesTs`` of a data set whose channels stand in another order."""
    (folder / "imagesTs").mkdir()
    for number, name in enumerate(("ADC", "DWI", "T2")):
        shutil.copy(three[name], folder / "imagesTs" / f"new_{number:04d}.nii.gz")
    (folder / "dataset.json").write_text(json.dumps({"channel_names": {"0": "ADC", "1": "DWI", "2": "T2"}, "labels": {}}))
    return folder, None


def images_alone(folder, three):
    root, _ = nnunet(folder, three)
    return root / "imagesTs", None


def templates(folder, three):
    (folder / "new").mkdir()
    for name, path in three.items():
        shutil.copy(path, folder / "new" / f"{name.lower()}.nii.gz")
    return folder, {"image": {name: f"{{case}}/{name.lower()}.nii.gz" for name in sorted(three)}}


def case_folders(folder, three):
    return templates(folder, three)[0], None


def datalist(folder, three):
    order = ("DWI", "T2", "ADC")
    for name in order:
        shutil.copy(three[name], folder / f"{name}.nii.gz")
    entry = {"image": [f"{name}.nii.gz" for name in order], "id": "new"}
    about = {"channel_names": dict(zip("012", order, strict=True)), "training": [], "test": [entry]}
    (folder / "list.json").write_text(json.dumps(about))
    return folder / "list.json", None


def one_file(folder, three):
    """``imagesTs`` of the Decathlon: all channels in one file."""
    (folder / "imagesTs").mkdir()
    order = ("ADC", "DWI", "T2")
    images = [nibabel.load(three[name]) for name in order]
    stacked = np.stack([np.asarray(image.dataobj, np.float32) for image in images], -1)
    nibabel.save(nibabel.Nifti1Image(stacked, images[0].affine), folder / "imagesTs" / "new.nii.gz")
    (folder / "dataset.json").write_text(json.dumps({"modality": dict(zip("012", order, strict=True)), "labels": {}}))
    return folder, None


FORMS = [table, nnunet, images_alone, templates, case_folders, datalist, one_file]


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
def test_the_model_s_channels_are_found_in_every_form(form, known, three, expected, tmp_path):
    model = known[1]
    assert model.record.channels == NAMES
    (tmp_path / "in").mkdir()
    root, how = form(tmp_path / "in", three)
    data = None if how is None else DataSettings(**how)
    assert segment_scans(model.folder, root, tmp_path / "out", quiet, n=2, data=data) == []
    label, _ = read_image(tmp_path / "out" / "new_segmentation.nii.gz")
    assert torch.equal(label[0].to(torch.uint8), expected)
    if how is None:
        assert torch.equal(model.segment(root, n=2).label, expected)
    if how is None and form is not one_file:
        (item,) = scans_in(str(root), NAMES)
        images = [read_image(three[name])[0] for name in NAMES]
        assert torch.equal(LoadVolume()(item["image"]).as_tensor(), torch.cat(images))


def test_a_file_with_more_channels_is_nothing_that_a_path_tells(three, tmp_path):
    root, _ = one_file(tmp_path, three)
    with pytest.raises(DataError, match=r"^new: channels: expected T2, ADC alone, found others too in new.nii.gz"):
        scans_in(str(root), NAMES)


def test_channels_of_other_names_are_told(three, tmp_path):
    told = []
    (tmp_path / "two.csv").write_text(f"id,t2w,adcmap\nnew,{three['T2']},{three['ADC']}\n")
    (case,) = find_scans(tmp_path / "two.csv", None, NAMES, told.append)
    assert [source[0] for source in case.sources] == [three["T2"], three["ADC"]]
    assert "t2w, adcmap, taken in this order" in str(*told)
    root = table(tmp_path, three)[0]
    with pytest.raises(
        ConfigError, match=r"^data.channels: expected the model's channels T2, PD, found .*DWI, adc, T2.*; name them"
    ):
        find_scans(root, None, ("T2", "PD"))
    with pytest.raises(ConfigError, match="add the images of the others"):
        find_scans(root, None, ("T2", "PD", "T1", "ADC"))
    (case,) = find_scans(root, DataSettings(channels=("DWI", "T2")), NAMES)  # what the user says counts
    assert [source[0] for source in case.sources] == [three["DWI"], three["T2"]]


def test_a_line_of_a_table_becomes_an_atlas(known, three, tmp_path):
    cases, model = known
    folder = Path(shutil.copytree(model.folder, tmp_path / "m"))
    assert add_atlas(folder, table(tmp_path, three)[0], cases[5].label, device="cpu", log=quiet) == "new"
    added = oasis_monai.load_model(folder, device="cpu")
    assert added.segment([three[name] for name in NAMES], n=2).is_atlas == "new"
    remove_atlas(folder, "new", "cpu", log=quiet)
    words = [f"add=[{three['T2']},{three['ADC']}]", f"label={cases[5].label}", "case=again", "device=cpu"]
    done = run("library", "model=m", *words, cwd=tmp_path)
    assert (done.code, done.err) == (0, "")
    assert oasis_monai.load_model(folder, device="cpu").segment([three[name] for name in NAMES], n=2).is_atlas == "again"


def test_a_labelled_folder_gives_its_scans(phantom, tmp_path):
    """Images and labels in two folders: the labels are no scans."""
    for kind, tail in (("images", ""), ("labels", "_segmentation")):
        (tmp_path / kind).mkdir()
        for number in range(3):
            image, grid = read_image(phantom / f"Case{number:02d}{tail}.mhd")
            nibabel.save(nibabel.Nifti1Image(image[0].numpy(), grid.affine), tmp_path / kind / f"p{number}.nii.gz")
    assert [(c.id, c.image.parent.name, c.label is None) for c in find_scans(tmp_path)] == [
        (f"p{number}", "images", True) for number in range(3)
    ]


def test_dicom_series_of_a_folder_come_with_their_names(phantom, tmp_path):
    image, grid = read_image(phantom / "Case00.mhd")
    write_series(tmp_path / "in" / "first", image[0].numpy().astype(np.int16), grid.affine, series="1.2.1")
    (case,) = find_scans(tmp_path / "in", None, ("image",))
    assert (case.id, case.label) == ("first", None)
    assert torch.allclose(LoadVolume()(scans_in(str(tmp_path / "in"))[0]["image"]).as_tensor(), image, atol=0.5)
