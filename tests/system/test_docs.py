"""The commands, code and links of README.md and docs/ work: each is run, in order, on the phantom at a small size."""

import re
import shlex
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest

from oasis_monai.data.io import read_image
from oasis_monai.data.phantom import make_phantom, write_phantom
from oasis_monai.utils.files import write_text
from tests.conftest import JOINT, TINY, merged, overrides
from tests.helpers.command import python, run
from tests.helpers.dicom_series import write_series
from tests.helpers.reviewing import review_and_correct

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "oasis_monai"
PAGES = ["README.md", "CONTRIBUTING.md", *sorted(str(p.relative_to(ROOT)) for p in (ROOT / "docs").rglob("*.md"))]
RUN = ["README.md", "docs/getting_started.md", *(page for page in PAGES if page.startswith("docs/howto/"))]
RUN.remove("docs/howto/container.md")  # its commands are docker's
RUN.remove("docs/howto/gpu.md")  # its commands need one
COMPOSED = ["docs/reference/options.md", "docs/results/paper.md", "docs/howto/gpu.md"]  # at a full size they take hours
# what makes a command quick; its own values of these keys are for real scans
SMALL = {
    k: v
    for k, v in (word.split("=", 1) for word in overrides(merged(TINY, JOINT, {"data": {}, "cache": "cache"})))
    if not k.startswith("data.") and k != "methods"
}
TASKS_OF_A_MODEL = ("segment", "evaluate", "review", "library", "bundle", "report")


def blocks(page, kind):
    return re.findall(rf"```{kind}\n(.*?)```", (ROOT / page).read_text(), flags=re.S)


def commands(page):
    """Every ``oasis-monai`` line of a page, as words."""
    lines = [line for block in blocks(page, "sh") for line in block.replace("\\\n", " ").splitlines()]
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("oasis-monai ")]


def composed(words):
    """The words as they stand, only composed: a key or a value that does not exist fails. Of a sweep, its first job."""
    sweep = "-m" in words
    first = [word.partition(",")[0] if sweep and "[" not in word else word for word in words if word != "-m"]
    return [*first, "--cfg", "job"] if "--cfg" not in first else first


def shrunk(words, data):
    """The words with the phantom's folder and small networks."""
    if "adapt" in words:  # what is small is the model's
        return [*words, "training.iterations=2", "training.minutes=null"]
    if set(words) & set(TASKS_OF_A_MODEL):
        return [f"data.root={data}" if word.startswith("data.root=/") else word for word in words]
    own = [w for w in words if w.split("=", 1)[0].lstrip("+") not in SMALL]
    # commands of these tests are daemons, which may have no workers (tests/utils/test_processes.py has)
    kept = [w for w in own if not w.startswith(("data.root=", "preprocessing=", "workers="))]
    root = [] if any(w.startswith("--config-dir") for w in words) else [f"data.root={data}"]
    folds = [] if any(w.startswith(("fold=", "k=", "folds=")) for w in kept) or "-m" in kept else ["k=2"]
    return [*kept, *root, *folds, *(f"{k}={v}" for k, v in SMALL.items())]


@pytest.fixture(scope="module")
def world(tmp_path_factory, phantom, phantom_two_labels):
    """A folder with what the pages speak of: data sets in both layouts, new scans, a folder of settings."""
    base = tmp_path_factory.mktemp("docs")
    write_phantom(base / "OTHER", cases=2, size="tiny", seed=5)
    for i in range(7):
        for source, target in ((f"Case{i:02d}", "imagesTr"), (f"Case{i:02d}_segmentation", "labelsTr")):
            image, geometry = read_image(phantom_two_labels / f"{source}.mhd")
            values = image[0].numpy().astype(np.uint8 if target == "labelsTr" else np.float32)
            (base / "msd" / target).mkdir(parents=True, exist_ok=True)
            nibabel.save(nibabel.Nifti1Image(values, geometry.affine), base / "msd" / target / f"c{i}.nii.gz")
    new = make_phantom(30, size="tiny")
    (base / "new_scans").mkdir()
    nibabel.save(nibabel.Nifti1Image(new.image, new.affine), base / "new_scans/first.nii.gz")
    (base / "scans").mkdir()
    for ending in (".mhd", ".raw"):
        shutil.copy(phantom / f"Case01{ending}", base / "scans")
    text = (phantom / "Case02.mhd").read_text()
    write_text(base / "scan.mhd", text.replace("Case02.raw", "scan.raw"))
    shutil.copy(phantom / "Case02.raw", base / "scan.raw")
    image, geometry = read_image(phantom_two_labels / "Case00.mhd")
    noisy = image[0].numpy() + np.random.default_rng(0).normal(0, 5, image.shape[1:]).astype(np.float32)  # no atlas's voxels
    nibabel.save(nibabel.Nifti1Image(noisy, geometry.affine), base / "scan.nii.gz")
    write_series(base / "series", image[0].numpy().astype(np.int16), geometry.affine, **{"0020|0052": "1.2.3.9"})
    (told,) = [block for block in blocks("docs/howto/segment.md", "yaml") if "SNOMED" in block]
    write_text(base / "segments.yaml", told)
    label, _ = read_image(phantom_two_labels / "Case00_segmentation.mhd")
    nibabel.save(nibabel.Nifti1Image(label[0].numpy().astype(np.uint8), geometry.affine), base / "label.nii.gz")
    return base


def data_set(page):
    """The YAML file ``my_conf/data/liver.yaml``, as the page shows it or as the first page a reader sees does."""
    shown = [block for source in (page, "docs/howto/own_data.md") for block in blocks(source, "yaml")]
    return next(block for block in shown if "# my_conf/data/liver.yaml" in block)


@pytest.fixture
def follow(world, phantom, tmp_path):
    """Function: run every command of a page, in order; -> the folder they ran in."""

    def run_page(page):
        cwd = Path(shutil.copytree(world, tmp_path / "w"))
        write_text(cwd / "my_conf/data/liver.yaml", re.sub(r"root: [^\s,}]+", f"root: {cwd / 'msd'}", data_set(page)))
        for words in commands(page):
            done = run(*composed(words), cwd=cwd)
            assert done.code == 0, (words, done.err)
            if any(w.startswith(("experiment=", "hydra/launcher=")) or w in ("download", "--cfg") for w in words):
                continue  # composed alone: test_cli, test_download and test_sweeps run them with small settings
            small = shrunk(words, cwd / "msd" if page.endswith("getting_started.md") else phantom)
            if "review" in words:  # it serves until it is interrupted
                done = review_and_correct(*small, cwd=cwd)
                assert (done.code, "interrupted" in done.err) == (130, True), (words, done.err)
                continue
            done = run(*small, cwd=cwd)
            assert done.code == 0, (words, done.out[-500:], done.err)
        return cwd

    return run_page


def test_there_is_something_to_run():
    assert all(commands(page) for page in [*RUN, *COMPOSED])


@pytest.mark.parametrize("page", [page for page in RUN if not blocks(page, "python") or page == "README.md"])
def test_every_command_of_a_page_runs(page, follow):
    follow(page)


@pytest.mark.parametrize("page", COMPOSED)
def test_every_command_of_a_page_composes(page, tmp_path):
    for words in commands(page):
        done = run(*composed(words), cwd=tmp_path)
        assert done.code == 0, (words, done.err)


def test_commands_and_code_of_the_page_on_monai_run(follow):
    page = "docs/howto/monai.md"
    cwd = follow(page)
    assert python("\n".join(blocks(page, "python")), cwd=cwd).startswith("torch.Size([1, 48, 48, 32])")


def test_the_script_of_the_readme_runs_and_the_code_of_the_python_page_from_top_to_bottom(tmp_path):
    """One after the other in one folder: the training that both ask for is done once, here with half of the scans."""

    def with_fewer_scans(code):
        assert code.count('write_phantom("data/phantom")') == 1
        return code.replace('write_phantom("data/phantom")', 'write_phantom("data/phantom", cases=10)')

    (script,) = blocks("README.md", "python")
    assert len(script.strip().splitlines()) <= 15
    predicted = re.match(r"predicted Dice: (\d\.\d\d) ", python(with_fewer_scans(script), cwd=tmp_path))
    assert predicted is not None
    assert 0.3 < float(predicted[1]) <= 1
    label, _ = read_image(tmp_path / "scan20_label.nii.gz")
    assert set(label.unique().tolist()) == {0, 1}

    printed = python(with_fewer_scans("\n".join(blocks("docs/reference/python.md", "python"))), cwd=tmp_path)
    assert "OASIS-joint" in printed
    assert (tmp_path / "scan20.nii.gz").is_file()


def slug(heading):
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@pytest.mark.fast
@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    for target, anchor in re.findall(r"\]\(([^)#\s]*)#?([^)\s]*)\)", (ROOT / page).read_text()):
        if target.startswith(("http:", "https:")):
            continue
        path = (ROOT / page).parent / target if target else ROOT / page
        assert path.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", path.read_text(), flags=re.M)
            assert anchor in map(slug, headings), f"{target}#{anchor}"


@pytest.mark.fast
def test_the_readme_can_be_read_at_one_sitting():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 110
    assert len(text.split()) <= 900


@pytest.mark.fast
@pytest.mark.parametrize("page", [page for page in PAGES if ".py`" in (ROOT / page).read_text()])
def test_code_places_exist(page):
    """``networks/losses.py``: ``ncc``, relative to the package or to the checkout."""
    for place, name in re.findall(r"`([\w/]+\.py)`(?:: `(\w+)`)?", (ROOT / page).read_text()):
        if "NAME" in place:
            continue
        path = next((base / place for base in (PACKAGE, ROOT) if (base / place).is_file()), None)
        assert path is not None, place
        if name:
            assert re.search(rf"^(def|class) {name}\b|^    {name}:", path.read_text(), flags=re.M), f"{place}: {name}"
