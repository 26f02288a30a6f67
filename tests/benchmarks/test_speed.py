"""The speed comparison is fair: every method is scored and timed alike. The other programs are not installed here."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.speed import methods, one_method, peers, report, run, timing, training_steps
from benchmarks.speed.data import World, configuration
from oasis_monai.settings import build

ROOT = Path(__file__).resolve().parents[2]
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
    found = one_method.run_pairs(world, methods.Method("", align=still, batch=batch, repeats=2))
    wanted = [one_method.dice(a > 0, b > 0) for a, b in zip(world.moving_label, world.fixed_label, strict=True)]
    np.testing.assert_allclose(sorted(found["scores"]), sorted(wanted))
    assert len(found["times"]) == 2 * -(-5 // batch)
    assert len(found["fields"]) == 5


def test_a_case_is_scored_against_its_own_label(world):
    found = one_method.run_cases(world, methods.Method("", segment=lambda number: world.target_labels[number]))
    assert found["scores"] == [1.0, 1.0]
    assert len(found["times"]) == 2


def test_majority_counts_half_as_a_vote_for(world):
    two = replace(world, atlases=world.atlases[:, :2], atlas_labels=world.atlas_labels[:, :2])
    for each, rule in ((world, lambda votes: votes.sum(0) >= 2), (two, lambda votes: votes.any(0))):
        found = methods.majority(each, 1, lambda fixed, moving, label: still(None, None, label[None])[0])
        np.testing.assert_array_equal(found, rule(each.atlas_labels[1]))


def test_folds_are_those_of_the_field(tmp_path):
    field = np.zeros((1, 8, 8, 8, 3), np.float32)
    assert run.folded_percent(tmp_path / "absent.npy") is None
    np.save(tmp_path / "f.npy", field)
    assert run.folded_percent(tmp_path / "f.npy") == 0
    field[..., 0] = -2 * np.arange(8)[:, None, None]  # x - 2x: a mirror
    np.save(tmp_path / "f.npy", field)
    assert run.folded_percent(tmp_path / "f.npy") == 100


def test_every_method_has_a_maker():
    assert {name for name, entry in methods.ENTRIES.items() if not entry.network} == set(peers.MAKERS)


@pytest.mark.parametrize(("joint", "kept"), [(True, "OASIS-joint"), (False, "OASIS")])
def test_a_given_model_takes_the_place_of_its_kind(joint, kept, tmp_path):
    (tmp_path / "model.json").write_text(f'{{"settings": {{"registration": {{"joint": {str(joint).lower()}}}}}}}')
    selected = methods.select_methods(3, tmp_path, None)
    assert {"OASIS", "OASIS-joint"} & set(selected) == {kept}
    assert {"ANTs SyN", "MONAI VoxelMorph"} <= set(selected)
    assert set(methods.select_methods(2, None, ["elastix", "platipy"])) == {"elastix"}


def test_the_table_names_ratios_and_failures(tmp_path):
    row = {"dims": 3, "kind": "pair", "seconds_min": 1.0, "seconds_max": 3.0, "runs": 3, "dsc": 80.0, "dsc_sd": 1.0}
    row |= {"folded_percent": None, "peak_mb": 100.0, "working_mb": 50.0, "settings": "as shipped"}
    rows = [row | {"method": "OASIS STM", "seconds": 0.02}, row | {"method": "ANTs SyN", "seconds": 2.0}]
    report.write_report(rows, [("3D elastix", "exit -11")], tmp_path, 6, 2)
    text = (tmp_path / "speed.md").read_text()
    assert "| OASIS STM | 0.02 (1 to 3) | 100 | 80.0 (1.0) |" in text
    assert "- 3D elastix: exit -11" in text
    assert len((tmp_path / "speed.csv").read_text().splitlines()) == 3
    assert (tmp_path / "speed.png").stat().st_size > 1000


def test_a_child_does_not_inherit_its_parents_memory():
    if not Path("/proc/self/status").exists():
        pytest.skip("only Linux tells memory per program")
    held = np.ones(300 * 2**17)  # 300 MiB
    code = "from benchmarks.speed.timing import memory_mb; print(memory_mb().peak)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert float(done.stdout) < 150 < timing.memory_mb().peak
    assert held.sum() > 0


def test_seconds_are_of_the_runs_after_the_warm_up(clock):
    durations = iter([50, 3, 1, 2])
    assert timing.seconds(lambda: clock(next(durations)), 3) == (2, 1, 3)
    assert next(durations, None) is None


@pytest.mark.parametrize(("dims", "joint"), [(2, False), (3, False), (3, True)])
def test_the_models_of_ours_that_are_trained_have_settings_that_fit_their_grid(dims, joint, tmp_path):
    settings = build(configuration("scans", dims, joint, 2.0, ("Case00",), tmp_path))
    assert (settings.uses_joint_model, settings.spatial_dims, settings.training.minutes) == (joint, dims, 2.0)


class Steps:
    """A worker of known speed, whose loss is off by ``off``."""

    def __init__(self, seconds: float, off: float = 0.0) -> None:
        self.seconds, self.off, self.asked = seconds, off, []

    def ask(self, **what):
        self.asked.append(what)
        if "network" in what:
            return {}
        first, count = what["steps"]
        slow = 2 if first >= 6 else 1  # the machine is busy in a later round: both take twice as long
        return {"seconds": count * self.seconds * slow, "losses": [self.off + number for number in range(first, first + count)]}


def test_training_steps_are_compared_round_by_round():
    old, new = Steps(0.3), Steps(0.2, off=0.01)
    found = training_steps.compare([old, new], "U-Net3D", rounds=3, steps=2)
    assert found["ratio"] == pytest.approx(1.5)
    assert found["old"] == pytest.approx(200)
    assert found["apart"] == pytest.approx(0.01)
    assert old.asked == new.asked == [{"network": "U-Net3D"}, *({"steps": [first, 2]} for first in (0, 2, 4, 6))]
