"""The benchmarks' own arithmetic: what is compared must be compared fairly. The programs beside us are not installed here."""

import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

HERE = Path(__file__).resolve().parents[2] / "benchmarks"
if not HERE.is_dir():
    pytest.skip("the benchmarks are not here", allow_module_level=True)
sys.path.insert(0, str(HERE))

import failures  # noqa: E402
import floor  # noqa: E402
import growth  # noqa: E402
import measure  # noqa: E402
import methods  # noqa: E402
import offcentre  # noqa: E402
import one  # noqa: E402
import peers  # noqa: E402
import registry  # noqa: E402
import report  # noqa: E402
import speed  # noqa: E402
import stages  # noqa: E402
from oasis_monai.data.types import Geometry, Volume  # noqa: E402
from oasis_monai.settings import build  # noqa: E402
from oasis_monai.transforms.corruptions import drawn  # noqa: E402
from world import World, configuration  # noqa: E402

SIZE = (6, 5, 4)


@pytest.fixture
def world():
    random = np.random.default_rng(0)

    def images(*count):
        return random.random((*count, *SIZE)).astype(np.float32)

    def labels(*count):
        return (random.random((*count, *SIZE)) > 0.5).astype(np.uint8)

    return World(
        (1.0, 2.0, 3.0),
        *(images(5), images(5), labels(5), labels(5)),
        *(images(2), labels(2), images(2, 3), labels(2, 3)),
        *(("a", "b"), ("c", "d", "e"), "root"),
    )


def test_a_world_comes_back_as_it_was(world, tmp_path):
    world.save(tmp_path)
    again = World.load(tmp_path)
    assert all(np.array_equal(value, vars(again)[key]) for key, value in vars(world).items())
    assert again.dims == 3
    assert isinstance(again.train, tuple)


def still(fixed, moving, label):
    """No alignment at all, with a field of zeros."""
    return [methods.Aligned(y.astype(float), lambda y=y: np.zeros((*y.shape, 3))) for y in label]


@pytest.mark.parametrize("batch", [1, 2, 6])
def test_every_pair_is_scored_once_whatever_the_batch(world, batch):
    found = one.run_pairs(world, methods.Method("", align=still, batch=batch, repeats=2))
    wanted = [one.dice(a > 0, b > 0) for a, b in zip(world.moving_label, world.fixed_label, strict=True)]
    np.testing.assert_allclose(sorted(found["scores"]), sorted(wanted))
    assert len(found["times"]) == 2 * -(-5 // batch)
    assert len(found["fields"]) == 5


def test_a_case_is_scored_against_its_own_label(world):
    found = one.run_cases(world, methods.Method("", segment=lambda number: world.target_labels[number]))
    assert found["scores"] == [1.0, 1.0]
    assert len(found["times"]) == 2


def test_majority_counts_half_as_a_vote_for(world):
    two = replace(world, atlases=world.atlases[:, :2], atlas_labels=world.atlas_labels[:, :2])
    for each, rule in ((world, lambda votes: votes.sum(0) >= 2), (two, lambda votes: votes.any(0))):
        found = methods.majority(each, 1, lambda fixed, moving, label: still(None, None, label[None])[0])
        np.testing.assert_array_equal(found, rule(each.atlas_labels[1]))


def test_folds_are_those_of_the_field(tmp_path):
    field = np.zeros((1, 8, 8, 8, 3), np.float32)
    assert speed.folded_percent(tmp_path / "absent.npy") is None
    np.save(tmp_path / "f.npy", field)
    assert speed.folded_percent(tmp_path / "f.npy") == 0
    field[..., 0] = -2 * np.arange(8)[:, None, None]  # x - 2x: a mirror
    np.save(tmp_path / "f.npy", field)
    assert speed.folded_percent(tmp_path / "f.npy") == 100


def test_every_method_has_a_maker():
    assert {name for name, entry in registry.ENTRIES.items() if not entry.network} == set(peers.MAKERS)


@pytest.mark.parametrize(("joint", "kept"), [(True, "OASIS-joint"), (False, "OASIS")])
def test_a_given_model_takes_the_place_of_its_kind(joint, kept, tmp_path):
    (tmp_path / "model.json").write_text(f'{{"settings": {{"registration": {{"joint": {str(joint).lower()}}}}}}}')
    chosen = registry.chosen(3, tmp_path, None)
    assert {"OASIS", "OASIS-joint"} & set(chosen) == {kept}
    assert {"ANTs SyN", "MONAI VoxelMorph"} <= set(chosen)
    assert set(registry.chosen(2, None, ["elastix", "platipy"])) == {"elastix"}


def test_the_table_names_ratios_and_failures(tmp_path):
    row = {"dims": 3, "kind": "pair", "seconds_min": 1.0, "seconds_max": 3.0, "runs": 3, "dsc": 80.0, "dsc_sd": 1.0}
    row |= {"folded_percent": None, "peak_mb": 100.0, "working_mb": 50.0, "settings": "as shipped"}
    rows = [row | {"method": "OASIS STM", "seconds": 0.02}, row | {"method": "ANTs SyN", "seconds": 2.0}]
    report.write(rows, [("3D elastix", "exit -11")], tmp_path, 6, 2)
    text = (tmp_path / "speed.md").read_text()
    assert "| OASIS STM | 0.02 (1 to 3) | 100 | 80.0 (1.0) |" in text
    assert "- 3D elastix: exit -11" in text
    assert len((tmp_path / "speed.csv").read_text().splitlines()) == 3
    assert (tmp_path / "speed.png").stat().st_size > 1000


@pytest.fixture
def clock(monkeypatch):
    """A clock that only goes on when told."""
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(time, "process_time", lambda: 2 * now[0])  # two threads at work

    def pass_seconds(seconds):
        now[0] += seconds

    return pass_seconds


def test_a_stage_within_another_counts_for_itself_alone(clock):
    class Program:
        def outer(self):
            clock(2)
            self.inner()
            clock(1)

        def inner(self):
            clock(5)

        @classmethod
        def made(cls):
            clock(7)
            return cls()

    found = stages.Stages()
    for name in ("outer", "inner", "made"):
        found.wrap(Program, name, name)
    program = Program.made()
    clock(100)  # between stages
    program.outer()
    assert found.spent == {"made": (7, 14), "outer": (3, 6), "inner": (5, 10)}
    assert "| inner | 2.500 | 5.000 | 33 % |" in stages.text(found.spent, runs=2)


def test_operations_and_bytes_of_a_product():
    a, b = torch.rand(8, 16), torch.rand(16, 4)
    flops, moved = floor.count(lambda: (a @ b).t())
    assert flops == 2 * 8 * 16 * 4
    assert moved == 4 * (8 * 16 + 16 * 4 + 8 * 4)  # the transposition is a view


def test_the_exponent_of_a_power_law():
    assert growth.exponent([(1, 9.0), (2, 3 * 2**1.5), (8, 3 * 8**1.5)]) == pytest.approx(1.5)


def test_a_child_does_not_inherit_its_parents_memory():
    if not Path("/proc/self/status").exists():
        pytest.skip("only Linux tells memory per program")
    held = np.ones(300 * 2**17)  # 300 MiB
    code = "from measure import memory_mb; print(memory_mb()[1])"
    done = subprocess.run([sys.executable, "-c", code], cwd=HERE, capture_output=True, text=True, check=True)
    assert float(done.stdout) < 150 < measure.memory_mb()[1]
    assert held.sum() > 0


def test_seconds_are_of_the_runs_after_the_warm_up(clock):
    durations = iter([50, 3, 1, 2])
    assert measure.seconds(lambda: clock(next(durations)), 3) == (2, 1, 3)
    assert next(durations, None) is None


@pytest.mark.parametrize(("dims", "joint"), [(2, False), (3, False), (3, True)])
def test_the_models_of_ours_that_are_trained_have_settings_that_fit_their_grid(dims, joint, tmp_path):
    settings = build(configuration("scans", dims, joint, 2.0, ("Case00",), tmp_path))
    assert (settings.uses_joint_model, settings.spatial_dims, settings.training.minutes) == (joint, dims, 2.0)


def test_a_scan_that_is_padded_has_its_structure_aside_of_its_centre_by_so_much():
    affine = np.array([[-2.0, 0, 0, 7], [0, 0, 1.0, 8], [0, 3.0, 0, 9], [0, 0, 0, 1]])  # axes: left, superior, anterior
    label = torch.zeros(1, 60, 10, 100, dtype=torch.uint8)
    label[:, 28:32, 4:6, 48:52] = 1
    volume = Volume("c", label.float(), label, Geometry((60, 10, 100), affine))

    def aside(scan):
        at = np.argwhere(scan.label[0].numpy()).mean(0) - (np.array(scan.geometry.shape) - 1) / 2
        return scan.geometry.affine[:3, :3] @ at

    assert aside(volume) == pytest.approx([0, 0, 0])
    for direction, expected in enumerate(([-20, 0, 0], [20, 0, 0], [0, -20, 0], [0, 20, 0])):
        made = offcentre.padded(volume, 20, direction)
        assert aside(made) == pytest.approx(expected)  # the centre went the other way
        world = made.geometry.affine @ [*np.argwhere(made.label[0].numpy())[0], 1]
        assert world == pytest.approx(affine @ [28, 4, 48, 1])  # the patient did not move
    assert offcentre.padded(volume, 0, 2).geometry.shape == (60, 10, 100)


def test_nothing_is_calibrated_on_its_own_fold_its_own_corruption_or_what_a_run_would_not_have_made():
    random = np.random.default_rng(0)
    names = [failures.UNTOUCHED, *failures.CORRUPTIONS]
    rows = pd.DataFrame(
        [
            {"fold": i % 3, "case": f"c{i}", "corruption": c, "label": "a", "dsc": d, "networks": d, "atlases": d, "flags": ""}
            for i in range(30)
            for c in names
            for d in [random.uniform(0.3, 0.9)]
        ]
    )
    told = failures.predicted(rows, 2, 0)
    assert np.allclose(told["predicted_dsc"], told["dsc"], atol=1e-6)  # the overlaps are the truth here
    made = {(f"c{i}", name) for i in range(30) for name, _ in drawn(f"c{i}", 2, 0)} | {(f"c{i}", names[0]) for i in range(30)}
    mine = (rows["fold"] == 1) & (rows["corruption"] == "noise")
    other = rows.copy()
    not_made = np.array([key not in made for key in zip(rows["case"], rows["corruption"], strict=True)])
    other.loc[(rows["fold"] == 1) | (rows["corruption"] == "noise") | not_made, "dsc"] = 0.1
    again = failures.predicted(other, 2, 0)
    assert np.allclose(again["predicted_dsc"][mine], told["predicted_dsc"][mine])
    untouched = rows["corruption"] == failures.UNTOUCHED
    other.loc[~untouched, "dsc"] = 0.1
    assert np.allclose(failures.predicted(other, 0, 0)["predicted_dsc"][mine], told["predicted_dsc"][mine], atol=1e-6)
    text = failures.table(told)
    assert "| **all** | 330 |" in text
    assert f"| 1.00 | {int((told['dsc'] < 0.7).sum())} |" in text
