"""The import contract of pyproject.toml holds for the package, and fails for a copy of it with a forbidden import."""

import shutil
import sys
from pathlib import Path

import pytest

from tests.helpers.command import completed

pytestmark = pytest.mark.fast

ROOT = Path(__file__).resolve().parents[2]
LINT = "import sys; sys.path[0] = ''; from importlinter.cli import lint_imports_command; lint_imports_command()"


@pytest.fixture
def copy(tmp_path):
    shutil.copytree(ROOT / "oasis_monai", tmp_path / "oasis_monai", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def lint(folder):
    """Exit code and output of import-linter on the package in ``folder``."""
    done = completed(sys.executable, "-c", LINT, "--no-cache", cwd=folder)
    return done.code, done.out + done.err


def append(path, text):
    path.write_text(path.read_text() + text if path.exists() else text)


def test_the_package_keeps_the_contract(copy):
    code, text = lint(copy)
    assert code == 0, text
    assert "3 kept, 0 broken" in text


def test_the_names_of_the_library_may_come_from_any_layer(copy):
    append(copy / "oasis_monai/__init__.py", "\nfrom oasis_monai.workflows.train import train\n")
    code, text = lint(copy)
    assert code == 0, text


@pytest.mark.parametrize(
    ("module", "line", "found"),
    [
        ("utils/files.py", "import oasis_monai.networks.warp", "oasis_monai.utils.files -> oasis_monai.networks.warp"),
        ("networks/warp.py", "from oasis_monai.data import types", "oasis_monai.networks.warp -> oasis_monai.data.types"),
        ("data/io.py", "from oasis_monai.networks import warp", "oasis_monai.data.io -> oasis_monai.networks.warp"),
        ("segmentation/loa.py", "from oasis_monai.training import trainer", "segmentation.loa -> oasis_monai.training.trainer"),
        ("evaluation/tables.py", "from oasis_monai import settings", "oasis_monai.evaluation.tables -> oasis_monai.settings"),
        ("workflows/train.py", "from oasis_monai.tasks import download", "oasis_monai.workflows.train -> oasis_monai.tasks"),
        ("workflows/train.py", "import hydra", "oasis_monai.workflows.train -> hydra"),
        ("tasks.py", "from omegaconf import OmegaConf", "oasis_monai.tasks -> omegaconf"),
        ("data/types.py", "from oasis_monai.data import io", "No cycles are allowed in oasis_monai.data"),
        ("plans.py", "pass", "not listed as layers:\n\n- oasis_monai.plans"),
    ],
)
def test_a_forbidden_import_is_found_inside_a_function_too(copy, module, line, found):
    append(copy / "oasis_monai" / module, f"\n\ndef planted():\n    {line}\n    return 1\n")
    code, text = lint(copy)
    assert code == 1
    assert found in text, text
