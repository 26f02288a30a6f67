"""The page's case browser: what is embedded is what was scored, nothing of the data is markup, and it works in a browser."""

import base64
import html
import io
import json
import re
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image

from oasis_monai.evaluation import report
from oasis_monai.evaluation import scores as tables
from oasis_monai.evaluation.case_view import load_browser, write_browser
from oasis_monai.evaluation.report import StudyParts, browse
from oasis_monai.evaluation.tables import Cell, Grid
from tests.evaluation.test_report import EVIL, Page, rows

SHAPE = (64, 60, 6)
SPACING_MM = (1.0, 1.0, 3.0)
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--virtual-time-budget=4000"),
)


def block(x, value=1):
    label = np.zeros(SHAPE, np.uint8)
    label[x : x + 20, 20:40, 1:5] = value
    return label


def run_folder(folder, cases=("Case00", "Case01"), names=None, labels=("prostate",)):
    """Scores and browser files of a run: Case00's result is good, Case01's poor."""
    scored = rows(cases=len(cases), names=dict(enumerate(cases)), labels=labels)
    tables.write_scores(folder / "scores.csv", [r | {"dsc": r["dsc"] - 0.2 * (r["case"] == cases[-1])} for r in scored])
    for i, case in enumerate(cases):
        image = np.random.default_rng(i).normal(100, 20, SHAPE)
        results = {"FwoW-6": block(24 + i), "OASIS-6": block(21 + 3 * i)}
        atlases = [[["Case05", -1, 0.25], ["Case06", -1, 0.5]]]
        weights = {"OASIS-6": [[0.75, 0.25]]}
        write_browser(
            folder / "browser", case, "patient", i, image, block(20), results, SPACING_MM, list(labels), atlases, weights
        )
    return folder


def with_uncertainty(folder):
    """A run of one case whose result is doubtful in a square of 10 x 8 voxels, fully, and nowhere else."""
    tables.write_scores(folder / "scores.csv", rows(cases=1))
    doubt = np.zeros(SHAPE, np.float32)
    doubt[30:40, 22:30, :] = 1
    image = np.random.default_rng(0).normal(100, 20, SHAPE)
    results = {"FwoW-6": block(24), "OASIS-6": block(21)}
    more = {"uncertain": {"OASIS-6": doubt}}
    write_browser(folder / "browser", "Case00", "patient", 0, image, block(20), results, SPACING_MM, ["prostate"], **more)
    return folder, doubt


def entries(text):
    """(attributes, JSON) of every case in a page."""
    found = re.findall(r'<script type="application/json" ([^>]*)>(.*?)</script>', text, re.DOTALL)
    return [(dict(re.findall(r'data-(\w+)="([^"]*)"', attributes)), json.loads(body)) for attributes, body in found]


def decoded(text, shape):
    """Run lengths read as the page's script reads them, back in (x, y, z)."""
    flat = np.zeros(np.prod(shape), np.uint8)
    place, expected, structure = 0, 0, 1
    for run in text.split(",") if text else []:
        *named, length = (int(part, 36) for part in run.split(":"))
        value = named[0] if named else expected
        flat[place : place + length] = value
        place += length
        structure = value or structure
        expected = 0 if value else structure
    return flat.reshape(shape).transpose(2, 1, 0)[::-1, ::-1]


@pytest.mark.parametrize("seed", range(4))
def test_run_lengths_are_the_mask(seed):
    random = np.random.default_rng(seed)
    mask = (random.random((7, 5, 3)) < 0.4) * random.integers(1, 40, (7, 5, 3))
    assert np.array_equal(decoded(browse.run_lengths(mask.astype(np.uint8)), (3, 5, 7)), mask)


@pytest.mark.parametrize("mask", [np.zeros((4, 3, 2), np.uint8), np.ones((4, 3, 2), np.uint8)])
def test_run_lengths_of_nothing_and_of_everything(mask):
    text = browse.run_lengths(mask)
    assert text == ("" if not mask.any() else "1:o")
    assert np.array_equal(decoded(text, (2, 3, 4)), mask)


def test_masks_slices_scores_and_atlases_of_the_page_are_those_of_the_files(tmp_path):
    page = report.write_report(run_folder(tmp_path)).read_text(encoding="utf-8")
    views = load_browser({tmp_path / "browser": ""})
    found = entries(page)
    assert [a["name"] for a, _ in found] == ["Case01", "Case00"]  # worst first
    assert [a["dsc"] for a, _ in found] == ["62.6", "80.6"]
    for _, entry in found:
        view = views[entry["case"]]
        assert np.array_equal(decoded(entry["reference"], entry["size"]), view.reference)
        for name, text in entry["results"].items():
            assert np.array_equal(decoded(text, entry["size"]), view.results[name])
        depth, height, width = entry["size"]
        picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(entry["image"].split(",")[1]))).convert("L")).astype(int)
        assert picture.shape == (depth * height, width)
        shown = picture.reshape(depth, height, width)[3]
        expected = view.image[::-1, ::-1, 3].T.astype(int)  # patient's right on the left, anterior on top
        assert abs(shown - expected).mean() < 12 < abs(shown[::-1] - expected).mean()
        assert entry["weights"] == {"OASIS-6": [[0.75, 0.25]]}
        assert entry["atlases"]["OASIS-6"][0][0] == ["Case05", -1, 0.25]
        assert ["DSC % whole", "62.6" if entry["case"] == "Case01" else "80.6"] in entry["scores"]["OASIS-6"]


def test_a_case_of_many_slices_is_a_sheet_of_columns(tmp_path):
    """WebP ends at 16383 pixels: 70 slices of 300 rows do not fit one below the other."""
    shape = (40, 300, 70)
    tables.write_scores(tmp_path / "scores.csv", rows(cases=1))
    image = np.broadcast_to(np.arange(70.0), shape)
    nothing = np.zeros(shape, np.uint8)
    write_browser(tmp_path / "browser", "Case00", "patient", 0, image, nothing, {"OASIS-6": nothing}, SPACING_MM, ["prostate"])
    ((_, entry),) = entries(report.write_report(tmp_path).read_text(encoding="utf-8"))
    depth, height, width = entry["size"]
    sheet = np.asarray(Image.open(io.BytesIO(base64.b64decode(entry["image"].split(",")[1]))).convert("L")).astype(int)
    assert entry["columns"] == 2
    assert sheet.shape == (35 * height, 2 * width)
    for z in (0, 1, 35, depth - 1):
        row, column = divmod(z, entry["columns"])
        shown = sheet[row * height : (row + 1) * height, column * width : (column + 1) * width]
        assert abs(shown.mean() - 255 * z / 69) < 6


def test_names_stay_text_wherever_they_stand(tmp_path):
    evil = ["</script><script>alert(1)</script>", '"><img src=x onerror=alert(1)>']
    text = report.write_report(run_folder(tmp_path, evil, labels=(EVIL,))).read_text(encoding="utf-8")
    page = Page(text)
    assert not [e for e in page.elements if "onerror" in e["attrs"]]
    assert len([e for e in page.all("script") if e["attrs"].get("type") != "application/json"]) == 1
    assert {html.unescape(e["attrs"]["data-name"]) for e in page.all("script", type="application/json")} == set(evil)
    assert {entry["case"] for _, entry in entries(text)} == set(evil)


def test_without_files_there_is_no_browser_and_beyond_the_limit_the_best_are_left_out(tmp_path, monkeypatch):
    run_folder(tmp_path)
    size = len(entries_text(report.write_report(tmp_path).read_text(encoding="utf-8"))[0])
    monkeypatch.setattr(browse, "MAX_BROWSER_BYTES", size + 10)
    text = report.write_report(tmp_path).read_text(encoding="utf-8")
    assert [a["name"] for a, _ in entries(text)] == ["Case01"]
    assert "Cases left out to limit the size of this page: 1, those with the highest DSC." in text
    shutil.rmtree(tmp_path / "browser")
    text = report.write_report(tmp_path).read_text(encoding="utf-8")
    assert entries(text) == []
    assert "Case browser" not in text


def entries_text(text):
    return re.findall(r'<script type="application/json" [^>]*>(.*?)</script>', text, re.DOTALL)


def test_a_study_s_parts_stand_on_the_page(tmp_path):
    grid = Grid("t1", "Table <1>", ("method", "DSC %"), ((Cell("A & B"), Cell("81.0 [80.0, 82.0]", 81.0, True)),), ("Note <b>.",))
    picture = tmp_path / "f.png"
    Image.new("RGB", (4, 4)).save(picture)
    parts = StudyParts((grid,), (("A figure", "<svg></svg>", "its note"),), (("A picture", picture, "p"),), {})
    page = Page(report.write_report(run_folder(tmp_path), parts).read_text(encoding="utf-8"))
    assert "Table <1>" in page.text
    assert "Note <b>." in page.text
    links = [e["attrs"]["href"] for e in page.all("a")]
    ids = {e["attrs"]["id"] for e in page.elements if "id" in e["attrs"]}
    assert links == ["#t1", "#a-figure", "#a-picture"]
    assert {link[1:] for link in links} <= ids
    cell = next(e for e in page.all("td") if e["attrs"].get("data-v") == "81.0")
    assert cell["text"] == "81.0[80.0, 82.0]"


def test_what_differs_in_each_arm_is_told(tmp_path):
    run_folder(tmp_path)
    arms = {EVIL: {"settings": {"loss": {"beta": 0.0, "alpha": 1.0}, "new": 3}}, "same": {"settings": {"loss": {"alpha": 1.0}}}}
    run = {"task": "study", "settings": {"loss": {"beta": 1.0, "alpha": 1.0}}, "arms": arms}
    (tmp_path / "run.json").write_text(json.dumps(run))
    page = Page(report.write_report(tmp_path).read_text(encoding="utf-8"))
    told = [" ".join(e["text"].split()) for e in page.all("details") if e["text"].startswith("What differs")]
    assert told == [f"What differs in {EVIL} (2) loss.beta0.0 new3"]


@pytest.fixture(scope="module")
def chromium():
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        pytest.skip("no chromium on this machine: install it to have the page opened by a test")
    return found


def opened(chromium, page, tmp_path, fragment=""):
    """The page's document after its script has run, and what the browser logged."""
    command = [chromium, *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", "--enable-logging=stderr", "--dump-dom"]
    done = subprocess.run([*command, f"{page.as_uri()}{fragment}"], capture_output=True, text=True, timeout=120, check=True)
    state = re.search(r'<div class="browser"[^>]*>', done.stdout).group()
    return dict(re.findall(r'data-(\w+)="([^"]*)"', state)), done.stdout, done.stderr


def test_a_real_browser_draws_it_and_refuses_nothing_of_ours(tmp_path, chromium):
    page = report.write_report(run_folder(tmp_path))
    state, dom, log = opened(chromium, page, tmp_path)
    assert (state["case"], state["method"], state["picture"]) == ("Case01", "OASIS-6", "true")
    assert state["edges"] == "80 80"  # the outlines of two squares of 20 voxels
    assert state["slice"] in ("2", "3")
    assert "CONSOLE" not in log
    assert ">Case05</th>" in dom
    assert ">0.750</td>" in dom


def test_the_uncertainty_of_the_page_is_that_of_the_file(tmp_path):
    folder, doubt = with_uncertainty(tmp_path)
    (view,) = load_browser({folder / "browser": ""}).values()
    assert list(view.uncertain) == ["OASIS-6"]
    assert view.uncertain["OASIS-6"].max() == 255
    assert view.uncertain["OASIS-6"].sum() == 255 * doubt.sum()
    ((_, entry),) = entries(report.write_report(folder).read_text(encoding="utf-8"))
    kind, text = entry["uncertain"]["OASIS-6"].split(";base64,")
    assert kind == "data:image/webp"
    sheet = np.asarray(Image.open(io.BytesIO(base64.b64decode(text))).convert("L")).astype(int)
    depth, height, width = entry["size"]
    slices = sheet.reshape(-1, height, entry["columns"], width).transpose(0, 2, 1, 3).reshape(-1, height, width)[:depth]
    shown = browse.displayed(view.uncertain["OASIS-6"]).astype(int)
    assert np.abs(slices - shown).mean() < 3  # the picture is lossy
    wrong = {"uncertain": {"OASIS-6": doubt[:-1]}}
    with pytest.raises(ValueError, match="one shape"):
        write_browser(folder, "x", "patient", 0, doubt, block(20), {}, SPACING_MM, ["prostate"], **wrong)


def test_the_uncertainty_is_laid_over_the_slice_when_it_is_switched_on(tmp_path, chromium):
    page = report.write_report(with_uncertainty(tmp_path)[0])
    off, _, _ = opened(chromium, page, tmp_path)
    assert off["shaded"] == "0"
    on, _, log = opened(chromium, page, tmp_path, "#case=Case00&method=OASIS-6&uncertainty=1")
    assert "CONSOLE" not in log
    assert int(on["shaded"]) == pytest.approx(80, abs=25)  # 10 x 8 voxels, and what the lossy picture makes of their border
    other, dom, _ = opened(chromium, page, tmp_path, "#case=Case00&method=FwoW-6&uncertainty=1")
    assert other["shaded"] == "0"
    assert re.search(r'<button[^>]*data-toggle="doubt"[^>]*disabled', dom)


def test_a_link_opens_a_case_a_method_and_a_slice(tmp_path, chromium):
    page = report.write_report(run_folder(tmp_path))
    state, dom, _ = opened(chromium, page, tmp_path, "#case=Case00&method=FwoW-6&slice=1")
    assert (state["case"], state["method"], state["slice"]) == ("Case00", "FwoW-6", "0")
    assert state["edges"] == "0 0"  # nothing lies on the lowest slice
    assert "slice 1 of 6" in dom


ACTIONS = """
const press = key => document.querySelector(".browser").dispatchEvent(new KeyboardEvent("keydown", {key, bubbles: true}));
const click = selector => document.querySelector(selector).click();
const first = () => document.querySelector("tbody[data-region='0'] tr:not(.group) th").textContent;
const seen = {start: {...document.querySelector(".browser").dataset}, before: first()};
press("ArrowUp"); press("m"); press("t");
seen.keys = {...document.querySelector(".browser").dataset};
click("[data-axis=region][data-value='1']");
seen.shown = [...document.querySelectorAll("tbody[data-region]")].filter(body => !body.hidden).map(body => body.dataset.region);
click("thead [data-column='4']"); click("thead [data-column='4']");
seen.after = first();
document.body.dataset.seen = JSON.stringify(seen);
"""


def test_keys_tabs_and_headings_do_what_they_say(tmp_path, chromium):
    """The page with a second script that acts as its reader; only without the security policy may it run."""
    page = report.write_report(run_folder(tmp_path))
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page.read_text(encoding="utf-8"))
    page.write_text(text.replace("</body>", f"<script>{ACTIONS}</script></body>"), encoding="utf-8")
    _, dom, log = opened(chromium, page, tmp_path)
    assert "CONSOLE" not in log
    seen = json.loads(html.unescape(re.search(r'data-seen="([^"]*)"', dom).group(1)))
    start, keys = seen["start"], seen["keys"]
    assert int(keys["slice"]) == int(start["slice"]) + 1
    assert (start["method"], keys["method"]) == ("OASIS-6", "FwoW-6")
    assert keys["edges"].split() == ["0", "80"]  # the reference is hidden
    assert seen["shown"] == ["1"]
    assert (seen["before"], seen["after"]) == ("FwoW-6", "OASIS-6")  # by DSC, the highest first
