"""A bundle without atlases holds nothing of a training scan; evaluate.json, names, large files and scoring suit others."""

import csv
import json
import shutil
import warnings
from itertools import pairwise
from pathlib import Path

import monai.bundle
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser

from oasis_monai.data.io import read_image
from oasis_monai.data.types import IGNORE
from oasis_monai.settings import build
from oasis_monai.utils.errors import ConfigError, DataError
from oasis_monai.utils.tensor_files import load_tensors
from oasis_monai.workflows.bundle import (
    EstimateNetwork,
    HideUnlabelledd,
    OasisNetwork,
    ReadReferenced,
    labelled_scans_in,
    write_bundle,
    zoo,
)
from oasis_monai.workflows.bundle.sampling import drawn_atlases, thinned
from oasis_monai.workflows.model import load_model
from oasis_monai.workflows.segment import segment_scans
from oasis_monai.workflows.train import train_model
from tests.conftest import FINE, JOINT, TINY, merged

CASES = ("SmithJohn01", "DoeJane02", "RoeRichard03")
NAME = "gland_mr_segmentation"


def quiet(_):
    """No log."""


@pytest.fixture(autouse=True)
def no_warnings():
    """MONAI warns of every configuration file it reads."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.fixture(scope="module")
def root(phantom, tmp_path_factory):
    """Folder of three training cases under the names of their patients, label value 3; models and bundles go there too."""
    folder = tmp_path_factory.mktemp("sharing")
    (folder / "data").mkdir()
    for number, name in enumerate(CASES):
        for kind in ("", "_segmentation"):
            text = (phantom / f"Case0{number}{kind}.mhd").read_text()
            (folder / "data" / f"{name}{kind}.mhd").write_text(text.replace(f"Case0{number}{kind}.raw", f"{name}{kind}.raw"))
            voxels = (phantom / f"Case0{number}{kind}.raw").read_bytes()
            voxels = bytes(3 * b for b in voxels) if kind else voxels
            (folder / "data" / f"{name}{kind}.raw").write_bytes(voxels)
    return folder


@pytest.fixture(scope="module")
def trained(root):
    """Function: the folder of a joint model, trained once, on its working grid or with a fine grid."""
    made = {}

    def make(kind="joint"):
        if kind not in made:
            data = {"root": str(root / "data"), "layout": "paired_files", "labels": {"gland": 3}, "licence": "CC0", "regions": []}
            more = [JOINT, FINE] if kind == "fine" else [JOINT]
            made[kind] = train_model(build(merged(TINY, *more, {"cache": str(root / "cache"), "data": data})), root / kind, quiet)
        return made[kind]

    return make


@pytest.fixture(scope="module")
def alone(root, trained):
    """The bundle of the joint model without its atlases."""
    return write_bundle(trained(), root / NAME, share_atlases=False, log=quiet)


@pytest.fixture(scope="module")
def shared(root, trained):
    """The bundle of the same model with its atlases."""
    return write_bundle(trained(), root / "with" / NAME, 2, log=quiet)


def network_of(bundle, **more):
    config = json.loads((bundle / "configs" / "train.json").read_text())["network_def"]
    kind = {"OasisNetwork": OasisNetwork, "EstimateNetwork": EstimateNetwork}[config.pop("_target_").rpartition(".")[2]]
    network = kind(**config, **more).eval()
    network.load_state_dict(torch.load(bundle / "models" / "model.pt", weights_only=True))
    return network


def parts_of_training(model, root):
    """Byte strings of what a training scan is made of, as it is in the model and as it is in the files: rows of 32 bytes of every
    image, label, feature and estimate, a few of each. Rows of one value say nothing of anybody."""
    tensors = load_tensors(model / "library.safetensors")[0]
    sources = [t.contiguous().numpy().tobytes() for t in tensors.values() if t.numel() > 99]
    sources += [path.read_bytes() for path in sorted((root / "data").glob("*.raw"))]
    parts = set()
    for source in sources:
        rows = [source[i : i + 32] for i in range(0, len(source) - 32, 32)]
        told = sorted({row for row in rows if len(set(row)) > 1})
        parts |= set(told[:: len(told) // 12 + 1])
    return parts


def test_without_atlases_nothing_of_a_training_scan_is_in_it(trained, alone, shared, root):
    model = trained()
    parts, words = parts_of_training(model, root), [name.encode() for name in (*CASES, "Smith", "Jane", "Roe")]
    assert len(parts) > 80

    def held(bundle):
        bytes_of = [path.read_bytes() for path in bundle.rglob("*") if path.is_file()]
        names = "\n".join(str(path.relative_to(bundle)) for path in bundle.rglob("*")).encode()
        return sum(part in one for one in bytes_of for part in parts), [
            w for w in words if any(w in o for o in [*bytes_of, names])
        ]

    assert held(alone) == (0, [])
    found, told = held(shared)  # what is looked for can be found
    assert found > 30
    assert told
    state = torch.load(alone / "models" / "model.pt", weights_only=True)
    record = load_model(model)
    weights = {f"slice_network.{k}" for k in record.segmenter.estimator.model.state_dict()}
    weights |= {f"volume_network.{k}" for k in record.segmenter.estimator.volume_network.model.state_dict()}
    assert set(state) == weights
    assert not (alone / "models" / "oasis").exists()
    readme = (alone / "docs" / "README.md").read_text()
    assert "3 labelled images,\nand none of these images" in readme
    assert "oasis-monai segment model=" not in readme


@pytest.mark.parametrize("kind", ["joint", "fine"])
def test_it_says_what_the_method_estimate_says(trained, root, tmp_path, kind):
    model = trained(kind)
    bundle = write_bundle(model, tmp_path / NAME, share_atlases=False, log=quiet)
    names = {"meta_file": str(bundle / "configs" / "metadata.json"), "config_file": str(bundle / "configs" / "inference.json")}
    monai.bundle.verify_net_in_out("network_def", **names, device="cpu")
    scan = root / "data" / f"{CASES[0]}.mhd"
    (tmp_path / "scans").mkdir()
    for path in scan.parent.glob(f"{CASES[0]}.*"):
        shutil.copy(path, tmp_path / "scans")
    where = {"dataset_dir": str(tmp_path / "scans"), "output_dir": str(tmp_path / "run")}
    monai.bundle.run(**names, bundle_root=str(bundle), **where)
    own = {"method": "estimate", "views": "none", "postprocessing": "none"}
    assert segment_scans(model, tmp_path / "scans", tmp_path / "own", log=quiet, **own) == []
    (found,) = (tmp_path / "run").glob("*.nii.gz")
    (wanted,) = (path for path in (tmp_path / "own").glob("*_segmentation.mh[ad]"))
    assert torch.equal(read_image(found)[0], read_image(wanted)[0])
    with_atlases = write_bundle(model, tmp_path / "with" / NAME, 2, "estimate", log=quiet)
    image = torch.randn(1, 2 if kind == "fine" else 1, *network_of(bundle).grid)
    assert torch.equal(network_of(bundle)(image), network_of(with_atlases)(image))


@pytest.mark.parametrize("method", ["OASIS-joint", "OASIS", "majority", "FwoW"])
def test_a_method_of_atlases_is_refused_without_them(trained, tmp_path, method):
    with pytest.raises(ConfigError, match=r"^methods: expected estimate, as share_atlases=false leaves the atlases out, found"):
        write_bundle(trained(), tmp_path / "b", method=method, share_atlases=False, log=quiet)
    assert not (tmp_path / "b").exists()


def test_a_model_without_an_estimate_of_its_own_is_refused(root, trained, tmp_path):
    data = {"root": str(root / "data"), "layout": "paired_files", "labels": {"gland": 3}, "regions": []}
    plain = train_model(build(merged(TINY, {"cache": str(root / "cache"), "data": data})), tmp_path / "plain", quiet)
    with pytest.raises(ConfigError, match=r"^share_atlases: expected true for .*, found 'a model without one'"):
        write_bundle(plain, tmp_path / "b", share_atlases=False, log=quiet)
    joint = {"decoder": [8, 8, 8, 8], "atlases": 2}
    with pytest.raises(ConfigError, match=r"^joint.atlases: expected 0"):
        EstimateNetwork((32, 32), 2, joint)


def test_evaluate_json_gives_the_dice_of_every_labelled_scan(alone, root, tmp_path):
    """Against sums over the files that inference.json writes; a voxel that nobody labelled does not count."""
    configs = alone / "configs"
    both = [str(configs / "inference.json"), str(configs / "evaluate.json")]
    where = {"bundle_root": str(alone), "dataset_dir": str(root / "data")}
    before = {path: path.stat().st_mtime_ns for path in alone.rglob("*")}
    monai.bundle.run(config_file=both, **where, output_dir=str(tmp_path / "scores"))
    monai.bundle.run(config_file=both[0], **where, output_dir=str(tmp_path / "labels"))
    assert {path: path.stat().st_mtime_ns for path in alone.rglob("*")} == before
    with (tmp_path / "scores" / "val_mean_dice_raw.csv").open() as file:
        rows = list(csv.DictReader(file))
    found = {Path(row["filename"]).stem: float(row["class0"]) for row in rows}
    assert set(found) == set(CASES)
    for name in CASES:
        (label,) = (read_image(p)[0] == 3 for p in [tmp_path / "labels" / f"{name}_segmentation.nii.gz"])
        truth = read_image(root / "data" / f"{name}_segmentation.mhd")[0] == 3
        wanted = 2 * float((label & truth).sum()) / float(label.sum() + truth.sum())
        assert found[name] == pytest.approx(wanted, abs=1e-5)
    assert not list((tmp_path / "scores").glob("*.nii.gz"))


def test_references_are_read_as_for_a_training(root, tmp_path):
    """Label values, other structures as background, unlabelled voxels; and these hide what is compared."""
    item = labelled_scans_in(str(root / "data"))[0]
    assert [Path(item[key]).name for key in ("image", "label")] == [
        f"{sorted(CASES)[0]}.mhd",
        f"{sorted(CASES)[0]}_segmentation.mhd",
    ]
    label = root / "data" / f"{CASES[0]}_segmentation.mhd"
    scan = root / "data" / f"{CASES[0]}.mhd"
    for path in (label, label.with_suffix(".raw")):
        shutil.copy(path, tmp_path)
    raw = bytearray((tmp_path / label.name).with_suffix(".raw").read_bytes())
    raw[:4] = [9, 7, 3, 0]
    (tmp_path / label.name).with_suffix(".raw").write_bytes(bytes(raw))
    item = {"image": str(scan), "label": str(tmp_path / label.name)}
    read = ReadReferenced("label", [0, 3], background=[9], ignore=7)(item)
    assert read["label"].as_tensor()[0, :4, 0, 0].tolist() == [0, IGNORE, 1, 0]
    with pytest.raises(DataError, match="7"):
        ReadReferenced("label", [0, 3], background=[9])(item)
    pred = torch.ones_like(read["label"])
    hidden = HideUnlabelledd(["pred", "label"], "label")({**read, "pred": pred})
    assert hidden["pred"][0, :4, 0, 0].tolist() == [1, 0, 1, 1]
    assert hidden["label"][0, :4, 0, 0].tolist() == [0, 0, 1, 0]


def restored_by_monai_label(label, image):
    """What ``Restored`` of MONAI Label 0.8.5 does last with every label: nearest voxels at the size in ``spatial_shape`` of
    the image's metadata, and its ``original_affine``. It compares sizes by NumPy, which cannot do so with a tensor."""
    current, made = label.shape[1:], label.as_tensor()[0]
    size = image.meta.get("spatial_shape", current)[-len(current) :]
    if np.any(np.not_equal(current, size)):
        for axis, n in enumerate(size):
            made = made.index_select(axis, (torch.arange(n) * made.shape[axis]) // n)
    return made, np.asarray(image.meta["original_affine"])


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
def test_what_monai_label_does_after_its_steps_changes_nothing(alone, root, tmp_path, order):
    """It takes ``preprocessing`` and ``postprocessing``, saves by itself, and numbers structures as ``channel_def``."""
    from oasis_monai.data.formats.dispatch import write_array
    from oasis_monai.data.types import Geometry

    image, grid = read_image(root / "data" / f"{CASES[1]}.mhd")
    turned = np.ascontiguousarray(image[0].numpy().transpose(order))
    write_array(tmp_path / "scan.nii.gz", turned, Geometry(turned.shape, grid.affine[:, [*order, 3]]))
    parser = ConfigParser()
    parser.read_config(str(alone / "configs" / "inference.json"))
    item = {"image": str(tmp_path / "scan.nii.gz")}
    for step in parser.get_parsed_content("preprocessing").transforms:
        item = step(item)
    item["pred"] = network_of(alone)(item["image"][None])[0]
    steps = parser.get_parsed_content("postprocessing").transforms
    assert not any("Save" in type(step).__name__ for step in steps)
    for step in steps:
        item = step(item)
    label, affine = restored_by_monai_label(item["pred"], item["image"])
    assert torch.equal(label, item["pred"].as_tensor()[0])
    assert tuple(label.shape) == turned.shape
    np.testing.assert_allclose(affine, item["pred"].affine, atol=1e-6)
    np.testing.assert_allclose(affine, grid.affine[:, [*order, 3]], atol=1e-4)
    known = json.loads((alone / "configs" / "metadata.json").read_text())["network_data_format"]["outputs"]["pred"]["channel_def"]
    assert known == {"0": "background", "1": "gland"}
    assert set(label.unique().tolist()) <= {0, 1}


@pytest.mark.parametrize("which", ["alone", "shared"])
def test_draws_differ_in_training_mode_only(which, request):
    """As MONAI Label's scoring draws: a network with ``dropout`` in training mode, also when it is copied."""
    import copy

    bundle = request.getfixturevalue(which)
    network, image = network_of(bundle, dropout=0.5), torch.randn(1, 1, *network_of(bundle).grid)
    certain = network_of(bundle)(image)
    assert torch.equal(network(image), certain)
    draws = [copy.deepcopy(network).train()(image) for _ in range(4)]
    assert any(not torch.equal(a, b) for a, b in pairwise(draws))
    for draw in draws:
        torch.testing.assert_close(draw.sum(1), torch.ones_like(draw[:, 0]))
    assert torch.equal(network.eval()(image), certain)  # a draw leaves the weights as they are
    with pytest.raises(ConfigError, match=r"^dropout: expected a probability"):
        network_of(bundle, dropout=1.0)


def test_a_draw_keeps_the_mean_and_enough_atlases(alone):
    slices = network_of(alone).slice_network
    before = slices.last[0].weight.clone()
    weights = torch.stack([thinned(slices, 0.25).last[0].weight.detach() for _ in range(400)])
    kept = weights.ne(0).any(3).any(3).any(1).float().mean(0)
    torch.testing.assert_close(kept, torch.full_like(kept, 0.75), rtol=0, atol=0.1)
    torch.testing.assert_close(weights.mean(0), before, rtol=0.15, atol=1e-4)
    assert torch.equal(slices.last[0].weight, before)
    rows = [drawn_atlases(10, 4, 0.5).tolist() for _ in range(300)]
    assert all(row == sorted(set(row)) and len(row) >= 4 for row in rows)
    assert 4.9 < np.mean([len(row) for row in rows]) < 5.7  # 5, and a little more where at least 4 are kept
    assert set().union(*rows) == set(range(10))


@pytest.mark.parametrize(
    ("name", "fits"),
    [
        ("prostate_mr_segmentation", True),
        ("wholeBody_ct_segmentation", True),
        ("prostate", False),
        ("my-prostate_segmentation", False),
        ("lesion_detection_segmentation", False),
        ("DeepEdit_mr_segmentation", False),
    ],
)
def test_a_name_that_others_would_not_understand_is_told(name, fits):
    assert (zoo.name_note(name) is None) == fits


def test_large_files_are_listed_as_monai_downloads_them(alone, trained, tmp_path, monkeypatch):
    import hashlib

    import yaml

    assert not (alone / zoo.LIST).exists()
    monkeypatch.setattr(zoo, "LARGEST", 100_000)
    told = []
    bundle = write_bundle(trained(), tmp_path / NAME, share_atlases=False, log=told.append)
    listed = yaml.safe_load((bundle / zoo.LIST).read_text())["large_files"]
    assert [one["path"] for one in listed] == ["models/model.pt"]
    assert listed[0]["hash_val"] == hashlib.sha256((bundle / "models" / "model.pt").read_bytes()).hexdigest()
    assert any("models/model.pt" in line for line in told)
    monai.bundle.download_large_files(str(bundle))  # it is there: nothing is asked of any address
    (bundle / "models" / "model.pt").write_bytes(b"x")
    with pytest.raises(ValueError, match="hash"):
        monai.bundle.download_large_files(str(bundle))
