"""A model adapted to a new centre is a whole model of its own, says what it has learned from, and is better there."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import oasis_monai
from oasis_monai.data.folds import Fold, Split
from oasis_monai.data.io import read_volume
from oasis_monai.data.phantom import write_phantom
from oasis_monai.data.types import Case
from oasis_monai.settings import build
from oasis_monai.training.trainer import Trainer
from oasis_monai.utils.errors import ConfigError, DataError, OasisError
from oasis_monai.utils.files import file_digest
from oasis_monai.workflows import adapt as adapting
from oasis_monai.workflows.adapt import adapt_model
from oasis_monai.workflows.evaluate import evaluate_model
from oasis_monai.workflows.fold_models import FoldModels
from oasis_monai.workflows.further_training import share_draws, train_further, usual_share
from oasis_monai.workflows.library import add_atlas, remove_atlas
from oasis_monai.workflows.model import load_model
from oasis_monai.workflows.train import train_model
from tests.conftest import JOINT, JOINT_2D, TINY, TINY_2D, merged
from tests.helpers.command import run

OLD, NEW = [f"Case{i:02d}" for i in range(4)], [f"Case{i:02d}" for i in range(3)]
FILES = ("stm.safetensors", "estimator.safetensors", "volume.safetensors", "library.safetensors")


def quiet(_):
    """No log."""


@pytest.fixture(scope="module")
def centre(tmp_path_factory):
    """Three scans of another scanner: what is bright here is dark there."""
    folder = tmp_path_factory.mktemp("base") / "north"
    write_phantom(folder, cases=4, seed=9, size="tiny")
    for raw in folder.glob("Case??.raw"):
        voxels = np.fromfile(raw, dtype="<i2")
        (voxels.max() - voxels).astype("<i2").tofile(raw)
    (folder / "phantom.json").unlink()
    return folder


@pytest.fixture(scope="module")
def base(phantom, tmp_path_factory):
    """Function: the settings and the model of a kind, trained once on four cases."""
    made = {}

    def make(*kind):
        if (key := json.dumps(kind)) not in made:
            folder = tmp_path_factory.mktemp("models")
            data = {"data": {"root": str(phantom), "include": OLD}, "cache": str(folder / "cache")}
            settings = build(merged(TINY, *kind, data))
            made[key] = settings, train_model(settings, folder / "model", quiet)
        return made[key]

    return make


@pytest.fixture
def options(centre, tmp_path):
    """Function: settings for a training of three steps with the scans of the new centre."""

    def make(**more):
        data = {"root": str(centre), "include": NEW, **more.pop("data", {})}
        training = {"iterations": 3, "minutes": None, "checkpoint_minutes": 0, **more.pop("training", {})}
        return build({"data": data, "training": training, "cache": str(tmp_path / "cache"), "progress": False, **more})

    return make


def content(folder):
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if p.is_file() and p.name != ".lock"}


def parts(folder):
    """The files of a model that its training makes."""
    return {name: one for name, one in content(folder).items() if name in FILES}


def record(folder):
    return json.loads((folder / "model.json").read_text())


KINDS = {"joint": [JOINT], "joint slices": [JOINT, TINY_2D, JOINT_2D], "plain": []}


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_a_whole_model_beside_the_old_one(base, options, tmp_path, centre, kind):
    _, model = base(*KINDS[kind])
    before = content(model)
    said = []
    assert adapt_model(model, tmp_path / "new", options(), said.append) == tmp_path / "new"
    assert content(model) == before
    old, new, told = record(model), load_model(tmp_path / "new"), record(tmp_path / "new")
    names = [f"north-{case}" for case in NEW]  # the model has other cases of these ids
    assert any("Case00 becomes the atlas north-Case00" in line for line in said)
    library, own = new.segmenter.library, load_model(model).segmenter.library
    assert list(dict.fromkeys(library.cases)) == told["cases"] == told["trained_on"] == [*OLD, *names]
    assert torch.equal(library.images[: len(own)], own.images)  # the old atlases are kept
    assert library.cases[: len(own)] == own.cases
    for key in ("settings", "format", "calibration", "embedding", "channels"):
        assert told[key] == old[key]
    assert told["checksums"]["settings"] == old["checksums"]["settings"]
    for name in set(FILES) & set(before):
        assert told["checksums"][name] == file_digest(tmp_path / "new" / name)
        assert (tmp_path / "new" / name).read_bytes() != before[name]  # every network has learned
    (entry,) = told["adapted"]
    assert entry["model"] == file_digest(model / "model.json")
    assert entry["cases"] == names
    assert entry["training"] == {"iterations": 3, "minutes": None}
    for case in NEW:
        truth = read_volume(Case(case, centre / f"{case}.mhd", centre / f"{case}_segmentation.mhd"), (0, 1))
        there = told["atlases"][f"north-{case}"]["volume_ml"]["prostate"]
        expected = float(truth.label.sum()) * truth.geometry.voxel_ml
        assert there == pytest.approx(expected, rel=0.35)  # on a coarse grid
    if library.estimates is not None:  # those of the new networks, for old atlases too
        assert len(library.estimates) == len(library)
        assert not torch.equal(library.estimates[: len(own)], own.estimates)
    if kind == "joint":
        estimate = new.segmenter.estimator.without_views().volume(library.images[0])[1:]
        torch.testing.assert_close(library.estimates[0].float(), estimate, atol=2e-3, rtol=0)


def test_what_it_has_learned_from_is_not_tested_and_its_library_can_be_edited(base, options, tmp_path, centre):
    _, model = base()
    adapt_model(model, tmp_path / "new", options(), quiet)
    adapted = load_model(tmp_path / "new")
    said = []
    asked = options(data={"include": []})
    evaluate_model(adapted, asked.data, tmp_path / "scores", said.append, options=asked)
    left_out = json.loads((tmp_path / "scores" / "run.json").read_text())["left_out"]
    assert left_out == {case: f"north-{case}" for case in NEW}  # Case03 alone is new to it
    remove_atlas(tmp_path / "new", "north-Case00", log=quiet)
    told = record(tmp_path / "new")
    assert "north-Case00" in told["trained_on"]
    assert "north-Case00" not in told["cases"]
    with pytest.raises(ConfigError, match="output: expected a folder without another model"):
        adapt_model(model, tmp_path / "new", options(), quiet)  # the edit would be lost
    # and again, from there, with one more scan
    adapt_model(tmp_path / "new", tmp_path / "third", options(data={"include": ["Case03"]}), quiet)
    third = record(tmp_path / "third")
    assert [entry["cases"] for entry in third["adapted"]] == [[f"north-{c}" for c in NEW], ["north-Case03"]]
    assert set(third["trained_on"]) - set(third["cases"]) == {"north-Case00"}
    assert {"north-Case00", "north-Case03"} <= set(third["scans"])


def test_an_atlas_that_was_added_by_hand_counts_as_learned_from(base, options, tmp_path, centre):
    _, trained = base()
    model = Path(shutil.copytree(trained, tmp_path / "model"))
    add_atlas(model, centre / "Case03.mhd", centre / "Case03_segmentation.mhd", "mine", log=quiet)
    adapt_model(model, tmp_path / "new", options(), quiet)
    remove_atlas(tmp_path / "new", "mine", log=quiet)
    told = record(tmp_path / "new")
    assert "mine" in told["trained_on"]
    said, asked, adapted = [], options(data={"include": []}), load_model(tmp_path / "new")
    with pytest.raises(DataError, match="4 of 4 are atlases"):
        evaluate_model(adapted, asked.data, tmp_path / "scores", said.append, options=asked)
    assert "Case03: left out, as the networks were trained on it, as mine" in said


def test_structures_count_by_their_names_whatever_their_values(phantom_two_labels, tmp_path, options):
    data = {"root": str(phantom_two_labels), "labels": {"gland": 1, "core": 2}, "include": OLD[:2]}
    two = {"data": data, "cache": str(tmp_path / "cache")}
    model = train_model(build(merged(TINY, two, {"training": {"iterations": 1}})), tmp_path / "model", quiet)
    folder = tmp_path / "north"
    write_phantom(folder, cases=1, seed=9, size="tiny", labels=2)
    there = {"root": str(folder), "include": [], "labels": {"gland": 1, "core": 2}}
    one = adapt_model(model, tmp_path / "one", options(data=there), quiet)
    for raw in folder.glob("*_segmentation.raw"):
        voxels = np.fromfile(raw, dtype=np.uint8)
        np.array([0, 5, 2], np.uint8)[voxels].tofile(raw)
    other = adapt_model(model, tmp_path / "two", options(data={**there, "labels": {"core": 2, "gland": 5}}), quiet)
    first, second = (load_model(m).segmenter.library.labels for m in (one, other))
    assert set(first.unique().tolist()) == {0, 1, 2}
    assert torch.equal(first, second)
    assert parts(one) == parts(other)


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (
            {"labels": {"liver": 1}},
            ConfigError,
            "data.labels: expected the model's structures prostate, found 'liver: 1'; say which",
        ),
        ({"root": "no scans"}, DataError, "no scans"),
        ({"root": "PHANTOM"}, DataError, "Case02: image: expected scans that are new to the model, found the voxels of Case02"),
        ({"root": "UNLABELLED", "include": []}, ConfigError, "data.root: expected labelled scans in one of the layouts"),
    ],
)
def test_scans_that_cannot_be_used_are_one_clear_line_and_leave_nothing(
    base, options, tmp_path, phantom, centre, data, error, message
):
    if data.get("root") == "UNLABELLED":
        for name in ("Case00.mhd", "Case00.raw"):
            (tmp_path / "alone").mkdir(exist_ok=True)
            shutil.copy(centre / name, tmp_path / "alone" / name)
    places = {"PHANTOM": str(phantom), "UNLABELLED": str(tmp_path / "alone")}
    data = {**data, **({"root": places.get(data["root"], data["root"])} if "root" in data else {})}
    _, model = base()
    with pytest.raises(error) as raised:
        adapt_model(model, tmp_path / "new", options(data=data), quiet)
    assert message in str(raised.value)
    assert not (tmp_path / "new" / "model.json").exists()


def test_no_other_model_is_replaced(base, options, tmp_path):
    _, model = base()
    with pytest.raises(ConfigError, match="output: expected another folder than model"):
        adapt_model(model, model.parent / "x" / ".." / model.name, options(), quiet)
    other = Path(shutil.copytree(model, tmp_path / "other"))
    before = content(other)
    with pytest.raises(ConfigError, match="output: expected a folder without another model"):
        adapt_model(model, other, options(), quiet)
    assert content(other) == before
    adapt_model(model, other, options(), quiet, overwrite=True)
    again = parts(other)
    adapt_model(model, other, options(), quiet)  # the same once more
    assert parts(other) == again
    with pytest.raises(ConfigError, match="output: expected a folder without another model"):
        adapt_model(model, other, options(data={"include": NEW[:2]}), quiet)


class Killed(BaseException):
    """What no code expects."""


def test_it_goes_on_after_a_kill_and_ends_as_one_that_was_not(base, options, tmp_path, monkeypatch):
    _, model = base(JOINT)
    whole = adapt_model(model, tmp_path / "whole", replace(options(), cache=str(tmp_path / "other cache")), quiet)
    steps, descend, write = [], Trainer.descend, adapting.write_json

    def dies(self, loss):
        steps.append(1)
        if len(steps) in (2, 5):  # in the slice network, then in the STM
            raise Killed
        descend(self, loss)

    monkeypatch.setattr(Trainer, "descend", dies)
    for _ in range(2):
        with pytest.raises(Killed):
            adapt_model(model, tmp_path / "new", options(), quiet)
        assert not (tmp_path / "new" / "model.json").exists()

    def dies_while_writing(*_):
        raise Killed

    monkeypatch.setattr(adapting, "write_json", dies_while_writing)
    with pytest.raises(Killed):
        adapt_model(model, tmp_path / "new", options(), quiet)
    with pytest.raises(OasisError, match=r"without a readable model\.json"):
        load_model(tmp_path / "new")
    done = len(steps)
    monkeypatch.setattr(adapting, "write_json", write)
    adapt_model(model, tmp_path / "new", options(), quiet)
    assert len(steps) == done  # nothing is trained again
    assert parts(tmp_path / "new") == parts(whole)


def test_so_many_draws_are_new_however_many_there_are():
    for own, new, share in ((4, 23, 0.5), (30, 2, 0.25)):
        chances = share_draws(own, new, share)
        assert len(chances) == own + new
        assert float(chances[own:].sum()) == pytest.approx(share)
        assert float(chances.sum()) == pytest.approx(1)
        assert chances[:own].unique().numel() == chances[own:].unique().numel() == 1


def test_half_of_what_is_drawn_is_new_or_more_where_there_is_more():
    assert usual_share(30, 3) == 0.5
    assert usual_share(2, 8) == 0.8


def dice(segmenter, library):
    """Mean Dice of what the volume network makes of scans."""
    found = torch.stack([segmenter.estimator.network_probabilities(image)[1].argmax(0) for image in library.images]) == 1
    truth = library.labels[:, 0] == 1
    return float((2 * (found & truth).flatten(1).sum(1) / (found.flatten(1).sum(1) + truth.flatten(1).sum(1))).mean())


def test_it_learns_the_new_centre_and_does_not_forget_the_old_one(prepared, centre):
    """Training on from the phantom's weights with two scans of inverted contrast, tested on two others, and on two old ones that
    are no atlases. Without the old atlases the old centre is forgotten."""
    joint = {"slice_budget": 0.01, "volume_budget": 0.98, "volume_stride": [1, 1, 1]}
    more = {"joint": joint, "training": {"iterations": 150, "lr": 1e-2}, "network": {"unet": [8, 16]}}
    settings, dataset = prepared(JOINT, more)
    _, there = prepared(JOINT, more, {"data": {"root": str(centre)}})
    ids = list(dataset.cases)
    fold = Fold(0, {case: (0,) for case in ids[:5]}, {case: (0,) for case in ids[5:]})
    before = FoldModels(settings, dataset, Split("patient", 0, (fold,)), Path(settings.cache), quiet).segmenter(fold)
    new = replace(there.library.subset([0, 1]), cases=("n0", "n1"), patients=())
    unseen, old = there.library.subset([2, 3]), dataset.library.subset([5, 6])
    weights = {key: value.clone() for key, value in before.estimator.volume_network.model.state_dict().items()}
    shorter = replace(settings, training=replace(settings.training, iterations=100))
    after, alone = (train_further(before, shorter, new, share=share) for share in (0.5, 1.0))
    print([(dice(one, unseen), dice(one, old)) for one in (before, after, alone)])
    assert all(torch.equal(weights[key], value) for key, value in before.estimator.volume_network.model.state_dict().items())
    assert dice(after, unseen) > dice(before, unseen) + 0.1
    assert dice(after, old) > dice(alone, old) + 0.1


def test_the_command_has_a_budget_of_its_own_and_python_gives_the_same(base, centre, tmp_path):
    _, model = base()
    for words, minutes in ((["adapt"], 2.0), (["task=adapt"], 2.0), (["adapt", "training.minutes=5"], 5.0)):
        done = run(*words, "--cfg", "job", cwd=tmp_path)
        assert yaml.safe_load(done.out)["training"]["minutes"] == minutes, done.err
    words = ["data.include=[Case00]", "training.iterations=1", "training.minutes=null", "progress=false"]
    done = run("adapt", f"model={model}", f"data.root={centre}", "output=one", *words, cwd=tmp_path)
    assert done.code == 0, done.err
    assert "model: one" in done.out
    data = {"root": str(centre), "include": ["Case00"]}
    cache = str(tmp_path / "cache")
    made = oasis_monai.adapt(
        model, tmp_path / "two", {"data": data, "training.minutes": None}, cache=cache, training={"iterations": 1}
    )
    assert made.record.values["cases"] == record(tmp_path / "one")["cases"]
    assert parts(tmp_path / "one") == parts(tmp_path / "two")
    assert run("adapt", f"model={model}", cwd=tmp_path).err.startswith("error: output: expected the folder to write the adapted")
