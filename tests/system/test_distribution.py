"""What users install: the wheel holds all that the program reads, and runs without the repository."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built as ``pip install`` builds it, from a copy of what the project tracks."""
    source, made = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    tracked = subprocess.run(["git", "archive", "HEAD"], cwd=ROOT, capture_output=True, check=False)
    if tracked.returncode:
        pytest.skip("needs a git checkout, to know which files belong to the project")
    subprocess.run(["tar", "x", "-C", source], input=tracked.stdout, check=True)
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--disable-pip-version-check", "-w", made, source]
    subprocess.run(command, check=True, timeout=300)
    return next(made.glob("oasis_monai-*.whl"))


def test_the_wheel_holds_every_file_of_the_package(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    package = {p.relative_to(ROOT) for p in (ROOT / "oasis_monai").rglob("*") if p.is_file() and "__pycache__" not in p.parts}
    conf = {Path("oasis_monai", p.relative_to(ROOT)) for p in (ROOT / "conf").rglob("*.yaml")}
    assert {str(path) for path in package | conf} <= names
    assert not [name for name in names if name.startswith(("tests/", "benchmarks/", "docs/"))]


def test_it_demonstrates_itself_from_an_empty_folder(wheel, tmp_path):
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    work = tmp_path / "empty"
    work.mkdir()
    options = ["phantom.cases=4", "phantom.size=tiny", "training.iterations=1", "k=2", "n=1", "methods=[FwoW]", "corruptions=0"]
    run = subprocess.run(
        [sys.executable, "-m", "oasis_monai", "demo", *options, "workers=1", "overlays=0", "features=intensity"],
        cwd=work, env=os.environ | {"PYTHONPATH": str(site)}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert "FwoW" in run.stdout
    assert (work / "outputs" / "demo" / "report.html").is_file()
    assert f"report: {work / 'outputs' / 'demo' / 'report.html'}" in run.stdout
