"""A model folder: trained once, used on scans it has never seen, and never trusted when it is not what it was."""

import json
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from oasis_monai.data.io import read_image, read_volume
from oasis_monai.data.types import Case
from oasis_monai.settings import build
from oasis_monai.utils.errors import ConfigError, OasisError
from oasis_monai.utils.files import file_digest
from oasis_monai.utils.tensor_files import load_tensors, save_tensors
from oasis_monai.workflows.library import remove_atlas
from oasis_monai.workflows.model import load_model
from oasis_monai.workflows.segment import segment_scans
from oasis_monai.workflows.train import train_model
from tests.conftest import CASES, JOINT, JOINT_2D, TINY, TINY_2D, merged, overrides
from tests.helpers.command import run


def quiet(_):
    """No log."""


@pytest.fixture(scope="module")
def settings(phantom, tmp_path_factory):
    cache = {"cache": str(tmp_path_factory.mktemp("cache")), "data": {"root": str(phantom)}}
    return build(merged(TINY, cache, {"training": {"iterations": 40}}))


@pytest.fixture(scope="module")
def trained(settings, tmp_path_factory):
    return train_model(settings, tmp_path_factory.mktemp("model") / "m", quiet)


@pytest.fixture
def model(trained, tmp_path):
    """A copy that a test may spoil."""
    return Path(shutil.copytree(trained, tmp_path / "model"))


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """Two scans of other patients, one as .mhd and one as .nii.gz, without labels; a third on an oblique grid as .mha."""
    from oasis_monai.data.phantom import write_phantom

    made, folder = tmp_path_factory.mktemp("other"), tmp_path_factory.mktemp("scans")
    write_phantom(made, cases=3, size="tiny", seed=77)
    for ending in (".mhd", ".raw"):
        shutil.copy(made / f"Case00{ending}", folder)
    image, geometry = read_image(made / "Case01.mhd")
    nibabel.save(nibabel.Nifti1Image(image[0].numpy().astype(np.int16), geometry.affine), folder / "second.nii.gz")
    header = (made / "Case02.mhd").read_bytes().replace(b"ElementDataFile = Case02.raw", b"ElementDataFile = LOCAL")
    (folder / "third.mha").write_bytes(header + (made / "Case02.raw").read_bytes())
    return folder


@pytest.fixture
def no_pictures(monkeypatch):
    """Drawing takes most of a tiny scan's time."""
    monkeypatch.setattr("oasis_monai.evaluation.contours.overlay", lambda *a, **k: None)


def overlap(found, truth):
    return 2 * float((found & truth).sum()) / float(found.sum() + truth.sum())


def label_on(path):
    image, geometry = read_image(path)
    return image[0].numpy() == 1, geometry


def test_new_scans_come_back_on_their_own_grid_and_in_their_own_format(trained, scans, tmp_path):
    lines = []
    out = tmp_path / "out"
    assert segment_scans(trained, scans, out, n=3, log=lines.append, save_probability=True) == []
    endings = {"Case00": ".mhd", "second": ".nii.gz", "third": ".mha"}
    for case, ending in endings.items():
        (scan,) = (p for p in scans.iterdir() if p.name == f"{case}{ending}")
        label, grid = label_on(out / f"{case}_segmentation{ending}")
        _, native = read_image(scan)
        assert grid.shape == native.shape
        np.testing.assert_allclose(grid.affine, native.affine, atol=1e-4)
        told = json.loads((out / f"{case}.json").read_text())
        ml = label.sum() * abs(np.linalg.det(native.affine[:3, :3])) / 1000
        assert told["volume_ml"]["prostate"] == pytest.approx(ml, abs=0.01)
        assert 3 < ml < 150
        assert len(told["atlases"]) == 1
        assert {a["case"] for a in told["atlases"][0]} <= {f"Case{i:02d}" for i in range(CASES)}
        distances = [a["distance"] for a in told["atlases"][0]]
        assert len(distances) == 3
        assert distances == sorted(distances)
        assert sum(told["weights"][0]) == pytest.approx(1, abs=1e-5)
        assert told["asked"]["method"] == "OASIS"
        assert (out / f"{case}_probability{ending}").exists()
        assert (out / f"{case}.png").read_bytes()[:4] == b"\x89PNG"
        assert any(line.startswith(f"{case}: prostate ") for line in lines)
    assert lines[-1].startswith("3 of 3 scans")


def test_the_patients_it_was_trained_on_are_segmented_plausibly(trained, phantom, tmp_path, no_pictures):
    scans = tmp_path / "scans"
    scans.mkdir()
    for i in range(CASES):
        for ending in (".mhd", ".raw"):
            shutil.copy(phantom / f"Case{i:02d}{ending}", scans)
    dice = {}
    for method, n in (("OASIS", 3), ("FwoW", 1)):
        segment_scans(trained, scans, tmp_path / method, n=n, method=method, log=quiet)
        parts = [
            (tmp_path / method / f"Case{i:02d}_segmentation.mhd", phantom / f"Case{i:02d}_segmentation.mhd") for i in range(CASES)
        ]
        dice[method] = [overlap(label_on(a)[0], label_on(b)[0]) for a, b in parts]
    # the nearest atlas of a scan that is in the library is itself: only the working grid's coarseness is lost
    assert min(dice["FwoW"]) > 0.75
    assert np.mean(dice["OASIS"]) > 0.6


def test_finished_scans_are_skipped_until_something_changes(model, scans, tmp_path, no_pictures):
    out, own = tmp_path / "out", Path(shutil.copytree(scans, tmp_path / "scans"))

    def skipped(**more):
        lines = []
        assert segment_scans(model, own, out, **{"n": 2, "method": "FwoW", **more}, log=lines.append) == []
        return sum("skipped" in line for line in lines)

    assert skipped() == 0
    assert skipped() == 3
    assert skipped(overwrite=True) == 0
    assert skipped(n=1) == 0
    assert skipped(n=1) == 3
    (out / "second.json").write_text("{")
    assert skipped(n=1) == 2
    (out / "Case00_segmentation.mhd").unlink()
    assert skipped(n=1) == 2
    raw = own / "Case00.raw"
    raw.write_bytes(raw.read_bytes()[::-1])
    assert skipped(n=1) == 2
    told = json.loads((model / "model.json").read_text())
    (model / "model.json").write_text(json.dumps({**told, "note": "another model"}))
    assert skipped(n=1) == 0


def test_one_bad_scan_does_not_stop_the_others_and_the_exit_code_tells(trained, scans, tmp_path):
    own = Path(shutil.copytree(scans, tmp_path / "scans"))
    (own / "Case00.raw").write_bytes(b"short")
    faults = segment_scans(trained, own, tmp_path / "a", n=1, method="FwoW", log=quiet)
    assert {fault.case for fault in faults} == {"Case00"}
    done = run("segment", f"model={trained}", f"input={own}", f"output={tmp_path / 'b'}", "n=1", "methods=FWAL", cwd=tmp_path)
    assert done.code == 2
    assert done.err.startswith("error: Case00: ")
    assert len(done.err.splitlines()) == 1
    assert "2 of 3 scans segmented" in done.out
    for folder in ("a", "b"):
        assert {p.name for p in (tmp_path / folder).glob("*.json")} == {"second.json", "third.json"}
    (own / "Case00.mhd").unlink()
    done = run("segment", f"model={trained}", f"input={own}", f"output={tmp_path / 'b'}", "n=1", "methods=FWAL", cwd=tmp_path)
    assert (done.code, done.err) == (0, "")
    assert done.out.count("skipped") == 2


def test_by_the_command_line_from_training_to_a_single_scan(settings, scans, phantom, tmp_path):
    words = overrides(merged(TINY, {"data": {"root": str(phantom)}, "cache": settings.cache, "training": {"iterations": 40}}))
    done = run("train", *words, "model=m", cwd=tmp_path)
    assert (done.code, done.err) == (0, "")
    done = run("segment", "model=m", f"input={scans / 'second.nii.gz'}", "output=o", "n=2", cwd=tmp_path)
    assert (done.code, done.err) == (0, "")
    assert sorted(p.name for p in (tmp_path / "o").iterdir()) == [
        *("second.json", "second.png", "second_segmentation.nii.gz", "segment.csv", "statistics.csv")
    ]
    done = run("segment", "model=m", f"input={scans}", "output=o", f"n={CASES + 1}", cwd=tmp_path)
    assert done.code == 2
    assert done.err.startswith(f"error: n: expected 1 to {CASES}, the model's atlases, found {CASES + 1}")


def spoil_bytes(name):
    def spoil(folder):
        raw = bytearray((folder / name).read_bytes())
        raw[-1] ^= 1
        (folder / name).write_bytes(raw)

    return spoil


def other_setting(folder):
    path = folder / "model.json"
    told = json.loads(path.read_text())
    told["settings"]["temperature"] *= 2
    path.write_text(json.dumps(told))


def pickled(folder):
    """Weights that make a file when they are unpickled."""
    from tests.utils.test_files import Payload

    torch.save({"model": Payload(folder / "trap")}, folder / "stm.safetensors")


def told_without(key):
    def spoil(folder):
        path = folder / "model.json"
        path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != key}))

    return spoil


def told_otherwise(**change):
    def spoil(folder):
        path = folder / "model.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | change))

    return spoil


@pytest.mark.parametrize(
    ("spoil", "match"),
    [
        (spoil_bytes("stm.safetensors"), "^model: expected stm.safetensors as it was written"),
        (spoil_bytes("library.safetensors"), "^model: expected library.safetensors as it was written"),
        (lambda f: (f / "stm.safetensors").unlink(), "^model: expected stm.safetensors as it was written"),
        (lambda f: (f / "model.json").unlink(), "^model: expected a folder written by .oasis-monai train."),
        (lambda f: (f / "model.json").write_text("[1]"), "^model: expected a folder written by"),
        (lambda f: (f / "model.json").write_text("{"), "^model: expected a folder written by"),
        (lambda f: shutil.rmtree(f), "^model: expected a folder written by"),
        (told_otherwise(format=99), "^model: expected format 2, found 99"),
        (told_otherwise(checksums={}), "^model: expected model.json as it was written"),
        (told_without("trained_on"), "^model: expected a folder written by"),
        (told_otherwise(checksums=None), "^model: "),
        (told_otherwise(settings={"magic": 1}), "^magic: expected one of"),
        (told_otherwise(settings={"_target_": "os.system"}), "^_target_: expected one of"),
        (other_setting, "^model: expected model.json as it was written, found changed settings"),
        (pickled, "^model: expected stm.safetensors as it was written"),
    ],
)
def test_a_folder_that_is_not_the_model_it_was_is_refused(model, scans, tmp_path, spoil, match):
    spoil(model)
    with pytest.raises(OasisError, match=match) as error:
        segment_scans(model, scans, tmp_path / "out", n=1, log=quiet)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()
    assert not (model / "trap").exists()


def test_weights_of_a_network_with_other_layers_are_told_in_one_line(model):
    record = json.loads((model / "model.json").read_text())
    weights = {"model.layer.weight": torch.zeros(2, 2)}
    save_tensors(model / "stm.safetensors", weights)
    record["checksums"]["stm.safetensors"] = file_digest(model / "stm.safetensors")
    (model / "model.json").write_text(json.dumps(record))
    with pytest.raises(OasisError, match=r"^model: expected weights of this version's \w+ in stm\.safetensors, found another"):
        load_model(model)


def test_killed_while_it_is_written_a_folder_is_no_model_and_then_is_one_again(settings, model, monkeypatch):
    from oasis_monai.atlases.library import AtlasLibrary

    class Killed(BaseException):
        pass

    def killed(*_):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(AtlasLibrary, "save", killed)
        with pytest.raises(Killed):
            train_model(settings, model, quiet)
    with pytest.raises(OasisError, match=r"^model: expected a folder written by"):
        load_model(model)
    before = {p.name for p in model.iterdir()}
    train_model(settings, model, quiet)
    assert load_model(model).settings.to_json()["training"] == settings.to_json()["training"]
    assert not [name for name in before if name.startswith(".") and name != ".lock"]


def test_the_folder_tells_how_it_was_made(trained, settings):
    told = json.loads((trained / "model.json").read_text())
    assert build(told["settings"]).preprocessing == settings.preprocessing
    assert told["settings"]["data"]["labels"] == {"prostate": 1}
    assert told["settings"]["features"] == {"name": "intensity", "weights": None, "distance": "l2"}
    assert {"oasis-monai", "python", "torch", "monai", "numpy", "itk", "nibabel"} <= told["versions"].keys()
    parts = {p.name for p in trained.glob("*.safetensors")} - {"loa.safetensors"}  # which is made anew when it is damaged
    assert parts == {"stm.safetensors", "library.safetensors"}
    assert told["checksums"].keys() == parts | {"settings"}
    assert all(told["checksums"][name] == file_digest(trained / name) for name in parts)
    assert told["cases"] == told["trained_on"] == list(told["atlases"]) == [f"Case{i:02d}" for i in range(CASES)]
    assert load_tensors(trained / "loa.safetensors")[1] == {"of": told["checksums"]["library.safetensors"]}


def test_a_damaged_table_of_overlaps_is_made_anew(model, trained):
    (model / "loa.safetensors").write_bytes(b"x")
    rows = torch.arange(4)
    assert torch.equal(load_model(model).segmenter.loa.matrix(rows), load_model(trained).segmenter.loa.matrix(rows))


def test_no_training_takes_the_place_of_a_library_that_was_edited(settings, model):
    remove_atlas(model, "Case01")
    with pytest.raises(
        ConfigError, match=r"^model: expected a folder without a model.* with an edited library'; .*overwrite=true"
    ):
        train_model(settings, model, quiet)
    assert len(load_model(model).segmenter.library) == CASES - 1
    train_model(settings, model, quiet, overwrite=True)
    assert len(load_model(model).segmenter.library) == CASES


def test_a_model_trained_into_the_same_folder_keeps_nothing_of_the_one_before(settings, trained, model):
    from dataclasses import replace

    rows = torch.arange(4)
    before = load_model(trained).segmenter.loa.matrix(rows)
    other = replace(settings, training=replace(settings.training, iterations=5, lr=0.05))
    train_model(other, model, quiet, overwrite=True)
    found = load_model(model).segmenter
    fresh = type(found.loa)(found.library, found.aligner)
    torch.testing.assert_close(found.loa.matrix(rows), fresh.matrix(rows), atol=1e-5, rtol=0)
    assert not torch.allclose(fresh.matrix(rows), before, atol=1e-4)


@pytest.mark.parametrize("dims", [2, 3])
def test_one_case_is_refused_before_any_network_is_trained(phantom, tmp_path, monkeypatch, dims):
    monkeypatch.setattr(
        "oasis_monai.workflows.fold_models.FoldModels.train", lambda *_, **__: pytest.fail("a network was trained")
    )
    more = {"cache": str(tmp_path / "c"), "data": {"root": str(phantom), "include": ["Case00"]}}
    settings = build(merged(TINY, JOINT, *([TINY_2D, JOINT_2D] if dims == 2 else []), more))
    with pytest.raises(ConfigError, match=r"^data: expected at least two training patients to form pairs, found '1'"):
        train_model(settings, tmp_path / "m", quiet)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"n": 0}, f"^n: expected 1 to {CASES}"),
        ({"n": CASES + 1}, f"^n: expected 1 to {CASES}"),
        ({"method": "oasis"}, "^methods: expected one or more of"),
        ({"device": "cuda:77"}, "^device: expected cpu"),
    ],
)
def test_what_cannot_work(trained, scans, tmp_path, arguments, match):
    with pytest.raises(ConfigError, match=match):
        segment_scans(trained, scans, tmp_path / "out", **{"n": 1, **arguments}, log=quiet)


def test_results_never_go_among_the_scans(trained, phantom, tmp_path):
    """``Case00_segmentation.mhd`` beside ``Case00.mhd`` may be its reference, drawn by hand."""
    data = Path(shutil.copytree(phantom, tmp_path / "data"))
    before = {p.name: p.read_bytes() for p in data.iterdir()}
    for scan in (data, data / "Case00.mhd"):
        with pytest.raises(ConfigError, match=r"^output: expected a folder other than the scans' own"):
            segment_scans(trained, scan, data, n=1, method="FwoW", log=quiet)
    assert {p.name: p.read_bytes() for p in data.iterdir()} == before


def test_a_model_of_slices(phantom, scans, tmp_path, no_pictures):
    more = {"cache": str(tmp_path / "c"), "data": {"root": str(phantom), "include": ["Case00", "Case01", "Case02"]}}
    settings = build(merged(TINY, TINY_2D, more))
    model = train_model(settings, tmp_path / "m", quiet)
    assert segment_scans(model, scans / "second.nii.gz", tmp_path / "o", n=2, method="OASIS", log=quiet) == []
    told = json.loads((tmp_path / "o" / "second.json").read_text())
    label, geometry = label_on(tmp_path / "o" / "second_segmentation.nii.gz")
    assert len(told["atlases"]) == len(told["weights"]) == geometry.shape[2]
    assert all(len(slices) == 2 and all(a["slice"] >= 0 for a in slices) for slices in told["atlases"])
    assert 0 < label.sum() < label.size / 4


@pytest.mark.parametrize("dims", [2, 3])
def test_a_joint_model(phantom, scans, tmp_path, no_pictures, dims):
    """All of its networks travel in the folder; it segments as the model that was just trained does, and none may be missing."""
    more = {"cache": str(tmp_path / "c"), "data": {"root": str(phantom), "include": ["Case00", "Case01", "Case02"]}}
    settings = build(merged(TINY, JOINT, *([TINY_2D, JOINT_2D] if dims == 2 else []), more))
    model = train_model(settings, tmp_path / "m", quiet)
    segmenter = load_model(model).segmenter
    scan = Case("second", scans / "second.nii.gz")
    target = settings.preprocessing.apply(read_volume(scan, (0, 1)))
    features = torch.randn(target.image.shape[-1] if dims == 2 else 1, segmenter.library.features.shape[1])
    first = segmenter(target, features, ("OASIS", "estimate", "OASIS-joint"), (2,))[0]
    again = load_model(model).segmenter(target, features, ("OASIS", "estimate", "OASIS-joint"), (2,))[0]
    assert all(torch.equal(result.probability, again[key].probability) for key, result in first.items())
    kept = load_tensors(next((tmp_path / "c" / "models").glob("*/estimator.safetensors")))[0]
    weights = segmenter.estimator.model.state_dict()
    assert all(torch.equal(v, weights[k.removeprefix("model.")]) for k, v in kept.items())
    assert segment_scans(model, scans / "second.nii.gz", tmp_path / "o", n=2, method="OASIS-joint", log=quiet) == []
    assert label_on(tmp_path / "o" / "second_segmentation.nii.gz")[0].any()
    for part in ("estimator", *(["volume"] if dims == 3 else [])):
        spoilt = Path(shutil.copytree(model, tmp_path / part))
        (spoilt / f"{part}.safetensors").unlink()
        with pytest.raises(OasisError, match=rf"{part}\.safetensors as it was written"):
            load_model(spoilt)
