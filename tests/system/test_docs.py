"""The commands, code and links of README.md and docs/ work: each is run, in order, on the phantom at a small size."""

import re
import shlex
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest

from oasis_monai.data.io import read_image
from oasis_monai.utils.files import write_text
from tests.conftest import JOINT, TINY, merged, overrides
from tests.helpers.command import python, run

ROOT = Path(__file__).resolve().parents[2]
PAGES = ["README.md", *sorted(str(p.relative_to(ROOT)) for p in (ROOT / "docs").glob("*.md"))]
# what makes a command quick; its own values of these keys are for real scans
SMALL = {
    k: v
    for k, v in (word.split("=", 1) for word in overrides(merged(TINY, JOINT, {"data": {}, "cache": "cache"})))
    if not k.startswith("data.") and k != "methods"
}
TASKS_OF_A_MODEL = ("segment", "library", "bundle", "report")


def blocks(page, kind):
    return re.findall(rf"```{kind}\n(.*?)```", (ROOT / page).read_text(), flags=re.S)


def commands(page):
    """Every ``oasis-monai`` line of a page, as words."""
    lines = [line for block in blocks(page, "sh") for line in block.replace("\\\n", " ").splitlines()]
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("oasis-monai ")]


def composed(words):
    """The words as they stand, only composed: a key or a value that does not exist fails."""
    return [*words, "--cfg", "job"] if "--cfg" not in words else list(words)


def shrunk(words, data):
    """The words with the phantom's folder and small networks."""
    if set(words) & set(TASKS_OF_A_MODEL):
        return list(words)
    own = [w for w in words if w.split("=", 1)[0].lstrip("+") not in SMALL]
    # commands of these tests are daemons, which may have no workers (tests/utils/test_processes.py has)
    kept = [w for w in own if not w.startswith(("data.root=", "preprocessing=", "workers="))]
    root = [] if any(w.startswith("--config-dir") for w in words) else [f"data.root={data}"]
    return [*kept, *root, *(f"{k}={v}" for k, v in SMALL.items())]


@pytest.fixture(scope="module")
def world(tmp_path_factory, phantom, phantom_two_labels):
    """A folder with what the pages speak of: data sets in both layouts, new scans, a folder of settings."""
    base = tmp_path_factory.mktemp("docs")
    for i in range(7):
        for source, target in ((f"Case{i:02d}", "imagesTr"), (f"Case{i:02d}_segmentation", "labelsTr")):
            image, geometry = read_image(phantom_two_labels / f"{source}.mhd")
            values = image[0].numpy().astype(np.uint8 if target == "labelsTr" else np.float32)
            (base / "msd" / target).mkdir(parents=True, exist_ok=True)
            nibabel.save(nibabel.Nifti1Image(values, geometry.affine), base / "msd" / target / f"c{i}.nii.gz")
    (base / "scans").mkdir()
    for ending in (".mhd", ".raw"):
        shutil.copy(phantom / f"Case01{ending}", base / "scans")
    text = (phantom / "Case02.mhd").read_text()
    write_text(base / "scan.mhd", text.replace("Case02.raw", "scan.raw"))
    shutil.copy(phantom / "Case02.raw", base / "scan.raw")
    image, geometry = read_image(phantom_two_labels / "Case00.mhd")
    noisy = image[0].numpy() + np.random.default_rng(0).normal(0, 5, image.shape[1:]).astype(np.float32)  # no atlas's voxels
    nibabel.save(nibabel.Nifti1Image(noisy, geometry.affine), base / "scan.nii.gz")
    label, _ = read_image(phantom_two_labels / "Case00_segmentation.mhd")
    nibabel.save(nibabel.Nifti1Image(label[0].numpy().astype(np.uint8), geometry.affine), base / "label.nii.gz")
    return base


@pytest.mark.parametrize("page", PAGES)
def test_every_command_of_a_page_runs(page, world, phantom, tmp_path):
    cwd = Path(shutil.copytree(world, tmp_path / "w"))
    for block in blocks(page, "yaml"):
        if "# my_conf/data/liver.yaml" in block:
            write_text(cwd / "my_conf/data/liver.yaml", re.sub(r"root: \S+", f"root: {cwd / 'msd'}", block))
    for words in commands(page):
        done = run(*composed([w for w in words if w not in ("-m", "--multirun")]), cwd=cwd)
        if "-m" not in words:
            assert done.code == 0, (words, done.err)
        if any(w.startswith(("experiment=", "hydra/launcher=")) or w in ("download", "--cfg") for w in words):
            continue  # composed alone: test_cli, test_download and test_sweeps run them with small settings
        done = run(*shrunk(words, phantom), cwd=cwd)
        assert done.code == 0, (words, done.out[-500:], done.err)
    code = [block for block in blocks(page, "python") if "distributed" not in block]
    if code:
        python("\n".join(code), cwd=cwd)


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)\)", (ROOT / page).read_text()):
        if not target.startswith(("http:", "https:")):
            assert ((ROOT / page).parent / target).exists(), target


def test_the_readme_can_be_read_at_one_sitting():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 200


def test_code_places_of_the_method_exist():
    """``module.name`` and ``module.py`` in docs/method.md."""
    text = (ROOT / "docs/method.md").read_text()
    for module in set(re.findall(r"`(\w+)\.py`", text)):
        assert (ROOT / "oasis_monai" / f"{module}.py").is_file(), module
    for module, name in set(re.findall(r"`([a-z_]+)\.([A-Za-z_]+)`", text)):
        path = ROOT / "oasis_monai" / f"{module}.py"
        if path.is_file() and name != "py":
            assert re.search(rf"^(def|class) {name}\b|^    {name}:", path.read_text(), flags=re.M), f"{module}.{name}"
