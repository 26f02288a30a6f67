"""One small synthetic data set for all tests, and the smallest configuration that runs the whole pipeline on it."""

import copy
import json
import os
import signal
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

from oasis_monai.utils import processes, startup

torch.set_num_threads(1)
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores Ctrl-C, and so would its children

processes.PRELOADED.append("tests.helpers.preload")  # one server for the workers and for the commands of tests.helpers.command
startup.UNUSED = ()  # a command called by a test would import MONAI without these, for all tests after it

SLOW = ("system", "workflows", "benchmarks")
"""Folders whose tests run whole commands; a test in them that does not is marked ``fast``."""

CASES = 7
TINY = {
    "data": {
        "name": "phantom",
        "layout": "promise12",
        "labels": {"prostate": 1},
        "regions": ["whole", "apex", "mid", "base"],
    },
    "preprocessing": {"size": [16, 16, 8], "spacing_mm": [5.0, 5.0, 8.0], "intensity": "zscore"},
    "features": {"name": "intensity"},
    "registration": {"channels": [4, 8], "field_stride": [1], "joint": False},
    "training": {"iterations": 4, "minutes": None, "batch": 2, "lr": 5e-3},
    "n": [1, 2],
    "methods": ["FwoW", "FWAL", "OASIS"],
    "overlays": 0,
    "corruptions": 0,
    "browser": False,
    "views": "none",
    "progress": False,
    "tracking": "none",
}
TINY_2D = {
    "spatial_dims": 2,
    "preprocessing": {"size": [16, 16], "spacing_mm": [5.0, 5.0]},
}

JOINT = {  # laid over TINY: the joint model, on slices large enough for its encoder
    "preprocessing": {"size": [32, 32, 8], "spacing_mm": [2.5, 2.5, 8.0], "intensity": "local"},
    "registration": {"joint": True},
    "joint": {"slices_per_step": 2, "decoder": [8, 8, 8, 8], "volume_stride": [2, 2, 1]},
    "network": {"unet": [4, 8], "dynunet": [4, 8]},
}
FINE = {"preprocessing": {"size": [16, 16, 8], "spacing_mm": [5.0, 5.0, 8.0], "fine_factor": [2, 2, 1], "intensity": "zscore"}}
"""Laid over JOINT: slices large enough for its encoder on the fine grid alone."""
JOINT_2D = {"preprocessing": {"size": [32, 32], "spacing_mm": [2.5, 2.5]}, "joint": {"atlases": 2}}


def pytest_collection_modifyitems(items):
    """Mark what ``make check`` leaves out."""
    for item in items:
        folder = item.path.relative_to(Path(__file__).parent).parts[0]
        if folder in SLOW and not item.get_closest_marker("fast"):
            item.add_marker("slow")


def merged(*parts):
    """Nested dicts laid over each other."""
    result = {}
    for part in parts:
        for key, value in part.items():
            both = key != "labels" and isinstance(value, dict) and isinstance(result.get(key), dict)
            result[key] = merged(result[key], value) if both else copy.deepcopy(value)
    return result


def overrides(config, prefix=""):
    """A nested dict as words of the command line."""
    words = []
    for key, value in config.items():
        if isinstance(value, dict) and key != "labels":
            words += overrides(value, f"{prefix}{key}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value, separators=(",", ":")).replace('"', "")
            words.append(f"{prefix}{key}={text}")
    return words


@pytest.fixture(scope="module", autouse=True)
def seeded_fixtures():
    """A module's fixtures draw the same numbers whichever tests ran before."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def seeded(seeded_fixtures):
    """A test draws the same numbers whichever tests ran before."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def phantom(tmp_path_factory):
    """Folder of the tiny phantom: read only."""
    from oasis_monai.data.phantom import write_phantom

    folder = tmp_path_factory.mktemp("phantom")
    write_phantom(folder, cases=CASES, size="tiny")
    return folder


@pytest.fixture(scope="session")
def phantom_two_labels(tmp_path_factory):
    """The same with two structures."""
    from oasis_monai.data.phantom import write_phantom

    folder = tmp_path_factory.mktemp("phantom2")
    write_phantom(folder, cases=CASES, size="tiny", labels=2)
    return folder


@pytest.fixture
def config(phantom, tmp_path):
    """Function: the tiny configuration, with what is given laid over it, as the plain dict ``settings.build`` takes."""

    def make(*more, dims=3):
        two = [TINY_2D] if dims == 2 else []
        return merged(TINY, {"data": {"root": str(phantom)}, "cache": str(tmp_path / "cache")}, *two, *more)

    return make


@pytest.fixture
def settings(config):
    """Function: :class:`Settings` of the tiny configuration with what is given laid over it."""
    from oasis_monai.settings import build

    return lambda *more, dims=3: build(config(*more, dims=dims))


@pytest.fixture
def prepared(settings, tmp_path):
    """Function: (settings, prepared data set) of the tiny configuration."""
    from oasis_monai.workflows.prepare import find_and_check, prepare

    def make(*more, dims=3):
        made = settings(*more, dims=dims)
        cache = Path(made.cache)
        return made, prepare(made, find_and_check(made, cache, lambda _: None), cache, lambda _: None)

    return make


@pytest.fixture
def aligned(monkeypatch):
    """Number of pairs the network has aligned, counted."""
    from oasis_monai.segmentation.alignment import Aligner

    counted = []
    whole = Aligner.fields

    def fields(self, atlases, targets):
        counted.append(len(atlases))
        return whole(self, atlases, targets)

    monkeypatch.setattr(Aligner, "fields", fields)
    return counted
