"""report: the page parsed as a browser would see it; inert, self-contained, sortable, and whole sentences where pieces lack."""

import ast
import base64
import configparser
import hashlib
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from oasis_monai.evaluation import report
from oasis_monai.evaluation import scores as tables
from oasis_monai.evaluation.quality_tables import COLUMNS, write_quality
from oasis_monai.evaluation.report import pictures
from oasis_monai.transforms.corruptions import UNTOUCHED
from oasis_monai.utils.errors import DataError

EVIL = "<img src=x onerror=alert(1)>"
VOID = {"meta", "img", "br", "path", "use", "input"}


class Page(HTMLParser):
    """Every element with its attributes and the text below it; complains about tags that do not nest."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.stack = [], []
        self.feed(text)
        self.close()
        assert not self.stack, [e["tag"] for e in self.stack]

    def handle_starttag(self, tag, attrs):
        element = {"tag": tag, "attrs": dict(attrs), "text": "", "inside": [e["tag"] for e in self.stack]}
        self.elements.append(element)
        if tag not in VOID:
            self.stack.append(element)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag):
        if tag in VOID:
            return
        assert self.stack, f"</{tag}> closes nothing"
        assert self.stack[-1]["tag"] == tag, f"</{tag}> closes <{self.stack[-1]['tag']}>"
        self.stack.pop()

    def handle_data(self, data):
        for element in self.stack:
            element["text"] += data

    def all(self, tag, **attrs):
        return [e for e in self.elements if e["tag"] == tag and all(e["attrs"].get(k) == v for k, v in attrs.items())]

    @property
    def text(self):
        return " ".join(self.all("main")[0]["text"].split())


def rows(cases=5, ns=(6,), methods=("FwoW", "OASIS"), labels=("prostate",), protocol="patient", names=None):
    out = []
    for i in range(cases):
        for method in methods:
            for n in ns:
                for label in labels:
                    for region in tables.REGIONS:
                        dsc = 0.5 + 0.3 * (method == "OASIS") + 0.02 * i + 0.001 * n
                        numbers = {"rvd_percent": -3.0, "arvd_percent": 3.0, "hd_mm": 9.0, "hd95_mm": 5.0, "abd_mm": 1.5}
                        place = {"protocol": protocol, "fold": i % 5 if protocol == "patient" else -1, "label": label}
                        place |= {"case": (names or {}).get(i, f"Case{i:02d}"), "region": region, "method": method, "n": n}
                        sizes = {"reference_ml": 40.0, "volume_ml": 39.0}
                        out.append(place | {"status": "ok", "dsc": dsc} | numbers | sizes)
    return out


def png(seed=0):
    stream = io.BytesIO()
    noise = np.random.default_rng(seed).integers(0, 255, (20, 40, 3), dtype=np.uint8)
    Image.fromarray(noise).save(stream, format="PNG")
    return stream.getvalue()


RUN = {
    "task": "crossval", "protocol": "patient", "folds": 5, "seed": 7, "command": "oasis-monai data=phantom", "device": "cpu",
    "data": {"name": "phantom", "cases": 5, "citation": "Somebody 2014, doi 10.1/x", "licence": "research use"},
    "settings": {"registration": {"loss": {"gamma": 0.01}}, "n": [2, 6]}, "versions": {"torch": "2.13.0"}, "threads": 2,
    "commit": "abc1234", "split_hash": "0f3a", "timings_s": {"train": 119.4, "align": 12.34, "all": 3725}, "notes": ["A note."],
}  # fmt: skip


def make(folder, score_rows, run=RUN, pictures=()):
    folder.mkdir(exist_ok=True)
    tables.write_scores(folder / "scores.csv", score_rows)
    if run is not None:
        (folder / "run.json").write_text(json.dumps(run))
    for i, name in enumerate(pictures):
        (folder / "overlays").mkdir(exist_ok=True)
        (folder / "overlays" / name).write_bytes(png(i))
    path = report.write_report(folder)
    assert path == folder / "report.html"
    return Page(path.read_text(encoding="utf-8"))


def sections(page):
    return {e["text"]: e for e in page.all("h2")}


def test_the_page_says_what_was_run_and_what_came_out(tmp_path):
    page = make(tmp_path, rows())
    assert "5 cases of phantom, segmented by FwoW and OASIS from n = 6 atlases." in page.text
    assert "Cross-validation with 5 folds, split by patient: no scan of a test patient is among the atlases" in page.text
    assert "patient folds (honest)" in page.text
    # OASIS: 0.806 + 0.02 i, i = 0..4: mean 0.846, sd 0.0316228, half width 2.776445 * sd / sqrt 5 = 0.0392649
    assert "84.6 % [80.7, 88.5]" in page.text.replace("%[", "% [")
    assert "80.6 %Case00" in page.text.replace("% Case", "%Case")
    assert "30.0 points of DSC above FwoW-6" in page.text
    for fact in ("oasis-monai data=phantom", "abc1234", "0f3a", "Somebody 2014", "research use", "2.13.0", "A note."):
        assert fact in page.text
    assert "registration.loss.gamma" in page.text
    for duration in ("1 min 59 s", "12.3 s", "1 h 02 min"):
        assert duration in page.text


def test_the_slice_protocol_is_named_and_warned_of(tmp_path):
    page = make(tmp_path, rows(protocol="slice"), RUN | {"protocol": "slice"})
    assert "slice folds (the paper's protocol: slices of one patient on both sides)" in page.text
    assert "These scores do not show how well a new patient is segmented." in page.text
    assert "not complete" not in page.text


def test_everything_from_data_is_inert(tmp_path):
    evil_run = json.loads(json.dumps(RUN).replace("phantom", EVIL).replace("A note.", EVIL))
    evil_run["settings"] = {EVIL: {EVIL: EVIL}}
    evil_run["timings_s"] = {EVIL: EVIL}
    evil_run["commit"] = '"><script>'
    evil_run["data"] |= {"citation": EVIL, "licence": EVIL}
    quote = "\" onmouseover=alert(1) x='"
    scores = rows(names={0: EVIL, 1: quote}, labels=(EVIL, quote), methods=("OASIS", EVIL), ns=(2, 6))
    page = make(tmp_path, scores, evil_run, [f"{EVIL}__OASIS-6.png", f"{quote}__OASIS-6.png".replace("/", "")])
    assert EVIL in page.text
    for element in page.elements:
        assert not [name for name in element["attrs"] if name.startswith("on")], element
    assert len(page.all("img")) == 2
    assert all(e["attrs"]["src"].startswith("data:image/png;base64,") for e in page.all("img"))
    assert len(page.all("script")) == 1


def test_nothing_is_fetched_and_only_our_script_may_run(tmp_path):
    page = make(tmp_path, rows(ns=(2, 6)), pictures=["Case00__OASIS-6.png"])
    for element in page.elements:
        assert element["tag"] not in {"link", "iframe", "object", "embed", "base", "form", "audio", "video"}
        for name, value in element["attrs"].items():
            if name in {"src", "href", "xlink:href", "action", "srcset", "data", "poster"}:
                assert value.startswith(("data:image/png;base64,", "data:image/webp;base64,", "#")), (
                    element["tag"],
                    name,
                    value[:80],
                )
            if name == "style" or name == "clip-path":
                assert not re.search(r"url\((?!#)", value)
    assert not re.search(r"url\(|@import", page.all("style")[0]["text"])
    script = page.all("script")[0]["text"]
    policy = page.all("meta", **{"http-equiv": "Content-Security-Policy"})[0]["attrs"]["content"]
    assert "default-src 'none'" in policy
    assert f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" in policy
    assert not re.search(r"fetch|XMLHttp|import|eval|innerHTML", script)


def test_sortable_cells_carry_their_numbers(tmp_path):
    page = make(tmp_path, rows())
    buttons = [e for e in page.all("button") if "data-column" in e["attrs"]]
    assert "missed" in {b["text"] for b in buttons}
    for line in report_rows(tmp_path):
        assert all("data-v" in cell for cell in line if "svg" not in cell)
    table = results(tmp_path)
    whole = [float(line[4]["data-v"]) for line in table["whole"]]
    assert whole == pytest.approx([0.546, 0.846])
    assert [line[2]["data-v"] for line in table["whole"]] == ["0.0", "0.0"]  # misses beside the mean


class _Rows(HTMLParser):
    """tbody attributes -> its rows -> its cells' attributes."""

    def __init__(self, text):
        super().__init__()
        self.bodies = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        if tag == "tbody":
            self.bodies.append((dict(attrs), []))
        elif tag == "tr" and self.bodies:
            self.bodies[-1][1].append([])
        elif tag in {"td", "th"} and self.bodies and self.bodies[-1][1]:
            self.bodies[-1][1][-1].append(dict(attrs))
        elif tag == "svg" and self.bodies and self.bodies[-1][1]:
            self.bodies[-1][1][-1][-1]["svg"] = True
        elif tag == "table":
            self.bodies.append(({}, []))


def bodies(folder):
    return _Rows((folder / "report.html").read_text()).bodies


def report_rows(folder):
    return [row for attrs, lines in bodies(folder) for row in lines if len(row) > 1 and "scope" in row[0]]


def results(folder):
    found = [(attrs, lines[1:]) for attrs, lines in bodies(folder) if "data-region" in attrs]
    return {tables.REGIONS[int(attrs["data-region"])]: lines for attrs, lines in found}


def test_columns_of_head_and_rows_agree(tmp_path):
    page = make(tmp_path, rows(labels=("anterior", "posterior"), ns=(2, 6)))
    columns = [int(b["attrs"]["data-column"]) for b in page.all("button") if "data-column" in b["attrs"]]
    assert columns[:14] == [0, 1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 12, 13, 14]  # 8 is the drawing
    assert {len(line) for lines in results(tmp_path).values() for line in lines} == {15}
    counts = dict(zip(tables.PIECES, (3, 2, 1, 4), strict=True))
    page = make(tmp_path, [r | {"nsd": 0.75, **(counts if r["region"] == "whole" else {})} for r in rows()])
    columns = [int(b["attrs"]["data-column"]) for b in page.all("button") if "data-column" in b["attrs"]]
    assert columns[:15] == [0, 1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 12, 13, 14, 15]
    assert {len(line) for lines in results(tmp_path).values() for line in lines} == {16}
    text = (tmp_path / "report.html").read_text()
    cases = len({r["case"] for r in rows()})
    assert f"{2 * cases}/{cases}/{4 * cases}" in text
    assert "2/1/4" in text
    assert "75.0" in text


def test_groups_have_tabs_only_where_there_is_a_choice(tmp_path):
    page = make(tmp_path, rows(labels=("anterior", "posterior")))
    axes = [b["attrs"]["data-axis"] for b in page.all("button") if "data-axis" in b["attrs"]]
    assert axes == ["label"] * 2 + ["region"] * 4
    groups = [attrs for attrs, _ in bodies(tmp_path) if "data-region" in attrs]
    assert len({(g["data-label"], g["data-region"]) for g in groups}) == 8
    page = make(tmp_path, [r for r in rows() if r["region"] == "whole"])
    assert not [b for b in page.all("button") if "data-axis" in b["attrs"]]


def test_cases_stand_worst_first_with_misses_named_and_absent_last(tmp_path):
    data = rows(methods=("OASIS",))
    for r in data:
        if r["case"] == "Case03" and r["region"] == "apex":
            r |= {"status": "miss", "dsc": 0.0, "rvd_percent": -100.0, "arvd_percent": 100.0, "volume_ml": 0.0}
        if r["case"] == "Case04":
            r |= dict.fromkeys(tables.METRICS, float("nan")) | {"status": "absent", "reference_ml": 0.0, "volume_ml": 0.0}
        if r["case"] == "Case02":
            r |= {"dsc": 0.1}
    page = make(tmp_path, data)
    case_table = [
        line for attrs, lines in bodies(tmp_path) if "data-region" not in attrs for line in lines if "data-v" in line[0]
    ]
    assert [line[0]["data-v"] for line in case_table] == ["Case02", "Case00", "Case01", "Case03", "Case04"]
    assert "apex miss" in page.text
    assert "whole absent, apex absent" in page.text
    assert float(results(tmp_path)["apex"][0][2]["data-v"]) == 1  # the miss, beside the mean it lowers


def test_pictures_lowest_median_highest_then_the_others(tmp_path):
    names = [f"Case{i:02d}__OASIS-6.png" for i in range(5)] + ["Case00__FwoW-6.png", "plain.png"]
    page = make(tmp_path, rows(), pictures=names)
    captions = [e["text"] for e in page.all("figcaption")]
    assert captions[:3] == [
        "lowest: Case00 · OASIS-6 · DSC 80.6 %",
        "median: Case02 · OASIS-6 · DSC 84.6 %",
        "highest: Case04 · OASIS-6 · DSC 88.6 %",
    ]
    assert sorted(captions[3:]) == [
        "Case00 · FwoW-6 · DSC 50.6 %",
        "Case01 · OASIS-6 · DSC 82.6 %",
        "Case03 · OASIS-6 · DSC 86.6 %",
        "plain",
    ]
    shown = page.all("img")
    assert ["details" in e["inside"] for e in shown] == [False] * 3 + [True] * 4
    assert base64.b64decode(shown[0]["attrs"]["src"].split(",")[1]) == png(0)


def outlined(shape=(60, 200)):
    """(H, W, 3) of coloured lines on noisy grey, as a PNG and as an array."""
    grey = np.random.default_rng(0).integers(60, 120, shape).astype(np.uint8)
    rgb = np.repeat(grey[..., None], 3, axis=2)
    rgb[10:40, [20, 60]] = (255, 42, 42)
    rgb[[10, 39], 20:61] = (255, 225, 0)
    rgb[5, 5:30] = (160, 90, 80)  # a line's soft edge
    stream = io.BytesIO()
    Image.fromarray(rgb).save(stream, format="PNG")
    return stream.getvalue(), rgb


def test_a_picture_s_outlines_are_kept_and_its_greys_are_made_small(tmp_path):
    data, rgb = outlined()
    (tmp_path / "overlays").mkdir()
    (tmp_path / "overlays" / "Case00__OASIS-6.png").write_bytes(data)
    layers = [e["attrs"]["src"] for e in make(tmp_path, rows()).all("img")]
    assert [src.split(";")[0] for src in layers] == ["data:image/webp", "data:image/png"]
    below, above = (Image.open(io.BytesIO(base64.b64decode(src.split(",")[1]))) for src in layers)
    outlines = np.asarray(above.convert("RGBA")).astype(int)
    coloured = rgb.max(axis=2) != rgb.min(axis=2)
    assert np.array_equal(outlines[..., 3] > 0, coloured)
    assert set(np.unique(outlines[..., 3])) == {0, 255}
    assert np.array_equal(outlines[coloured][:, :3], rgb[coloured])
    grey = np.asarray(below.convert("L")).astype(int)
    assert grey.shape == coloured.shape
    assert abs(grey - rgb[..., 0])[~coloured].mean() < 8
    assert sum(len(src) for src in layers) < 0.8 * len(data)


def test_a_grey_picture_is_one_layer_and_one_of_many_colours_stays_as_it_is(tmp_path):
    (tmp_path / "overlays").mkdir()
    grey = np.random.default_rng(0).integers(60, 120, (90, 90)).astype(np.uint8)
    Image.fromarray(grey).save(tmp_path / "overlays" / "Case00__OASIS-6.png")
    page = make(tmp_path, rows(), pictures=["Case02__OASIS-6.png"])
    lowest, median = (e["attrs"]["src"] for e in page.all("img"))
    assert lowest.startswith("data:image/webp;")
    assert base64.b64decode(median.split(",")[1]) == png(0)


def test_what_a_kill_left_of_a_picture_is_none(tmp_path):
    page = make(tmp_path, rows(), pictures=["Case00__OASIS-6.png", ".Case01__OASIS-6.png.k3x_9.png"])
    assert [e["text"] for e in page.all("figcaption")] == ["lowest: Case00 · OASIS-6 · DSC 80.6 %"]


def test_pictures_beyond_the_limit_stay_outside_and_no_picture_is_no_data_uri(tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "MAX_PICTURE_BYTES", int(2.5 * len(png())))
    (tmp_path / "overlays").mkdir()
    (tmp_path / "overlays" / "Case03__OASIS-6.png").write_text("<svg onload=alert(1)>")
    page = make(tmp_path, rows(), pictures=["Case00__OASIS-6.png", "Case02__OASIS-6.png", "Case01__OASIS-6.png"])
    assert [e["text"][:6] for e in page.all("figcaption")] == ["lowest", "median"]
    assert "Pictures left out to limit the size of this page: 1. They are in the folder overlays." in page.text
    assert "There is no picture of OASIS-6 for these cases: highest (Case04)." in page.text


MISSING = [
    ({"run": None}, "There is no run.json in this folder"),
    ({"score_rows": rows(cases=1)}, "There is only one case, so there is no standard deviation and no confidence interval."),
    ({}, "This run wrote no contour pictures."),
    ({"score_rows": rows(cases=2)}, "Only 2 of 5 cases are scored (fold 0, 1)"),
    ({"score_rows": rows(cases=2), "run": RUN | {"data": {"cases": list("abc")}}}, "Only 2 of 3 cases are scored"),
    ({"score_rows": []}, "No case is scored yet."),
    ({"score_rows": [], "run": RUN | {"protocol": "slice"}}, "The slice protocol is not complete: 0 of 5 cases are scored."),
    ({"score_rows": rows(protocol="slice", cases=3)}, "The slice protocol is not complete: 3 of 5 cases"),
    ({"score_rows": rows() + rows(protocol="slice")}, "This run used both protocols."),
    ({"run": {"data": None, "settings": [], "timings_s": 3, "notes": None}}, "This run wrote no contour pictures."),
]


@pytest.mark.parametrize(("change", "sentence"), MISSING)
def test_what_lacks_is_said(tmp_path, change, sentence):
    page = make(tmp_path / "run", **({"score_rows": rows()} | change))
    assert sentence in page.text


def test_the_curve_is_there_when_n_varies(tmp_path):
    assert "DSC over n" in sections(make(tmp_path / "a", rows(ns=(2, 6, 8))))
    assert "DSC over n" not in sections(make(tmp_path / "b", rows()))


MAIN = [
    (rows(ns=(2, 6, 8)), "OASIS-6, whole structure"),
    (rows(ns=(2, 4)), "OASIS-4, whole structure"),
    (rows(methods=("STAPLE", "FWAL")), "FWAL-6, whole structure"),
    (rows(protocol="slice") + rows(methods=("FwoW",), ns=(2,)), "FwoW-2, whole structure"),
]


@pytest.mark.parametrize(("score_rows", "title"), MAIN)
def test_the_method_shown_in_detail_is_never_chosen_by_its_score(tmp_path, score_rows, title):
    assert title in sections(make(tmp_path, score_rows))


def test_the_same_folder_gives_the_same_bytes(tmp_path):
    make(tmp_path, rows(ns=(2, 6)), pictures=["Case00__OASIS-6.png"])
    first = (tmp_path / "report.html").read_bytes()
    report.write_report(tmp_path)
    assert (tmp_path / "report.html").read_bytes() == first


@pytest.mark.parametrize(
    ("text", "match"), [("{", "run.json: expected a JSON object"), ("[1]", "found list"), ("\udcff", "expected a JSON object")]
)
def test_a_damaged_run_json_is_one_line(tmp_path, text, match):
    make(tmp_path, rows())
    (tmp_path / "run.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(DataError, match=match) as error:
        report.write_report(tmp_path)
    assert "\n" not in str(error.value)


def test_no_scores_is_an_error_and_writes_no_page(tmp_path):
    with pytest.raises(DataError, match=r"scores file: expected a CSV of scores, found no file .*run crossval first"):
        report.write_report(tmp_path)
    assert not list(tmp_path.iterdir())


def test_predictions_of_all_methods_stand_in_a_table(tmp_path):
    tmp_path.mkdir(exist_ok=True)
    lines = []
    for method, offset in (("OASIS", 0.05), ("FwoW", 0.2)):
        for i in range(4):
            for corruption in ("", "noise"):
                dsc = 0.6 + 0.05 * i
                told = {"dsc": dsc, "predicted_dsc": dsc - offset, "flag": dsc < 0.68, "networks": 0.5, "atlases": 0.5}
                place = {"protocol": "patient", "fold": i, "case": f"Case{i:02d}", "method": method, "n": 6, "label": "prostate"}
                lines.append(place | told | {"corruption": corruption or UNTOUCHED})
    write_quality(tmp_path / "quality.csv", pd.DataFrame(lines, columns=list(COLUMNS)))
    page = make(tmp_path, rows())
    assert "Predicted DSC" in sections(page)
    found = [[cell for cell in line if "data-v" in cell] for _, lines in bodies(tmp_path) for line in lines]
    shown = [[cell["data-v"] for cell in line] for line in found if len(line) == 10]
    main = [["prostate", "test scans", "4.0"], ["prostate", "corrupted copies", "4.0"], ["prostate", "both", "8.0"]]
    assert [line[1:4] for line in shown] == main * 3  # the main method's, then every method's
    # the surest first: 1, 2, 3, 4 results kept with mean losses 0.25, 0.275, 0.3 and 0.325; with the copies each twice
    single = (0.25 + 0.275 + 0.3 + 0.325) / 4
    losses = [0.25, 0.25, 0.3, 0.3, 0.35, 0.35, 0.4, 0.4]
    double = sum(sum(losses[:k]) / k for k in range(1, 9)) / 8
    for line, error, area in zip(shown, [0.05] * 3 + [0.2] * 3 + [0.05] * 3, [single, single, double] * 3, strict=True):
        assert float(line[4]) == pytest.approx(error)
        assert line[5] == ""  # no interval is known
        assert float(line[6]) == pytest.approx(100 * area)
        assert float(line[7]) == pytest.approx(1.0)
        assert line[8:] == ["1.0", "0.0"]  # all failures are flagged; no false alarm
    beside = f"{100 * single:.1f} [32.5; {100 * single:.1f}; 32.5]"  # a plain agreement that is always 0.5 tells nothing
    assert page.text.count(beside) == 6
    assert "held the true DSC" not in page.text
    assert "2 of 2" in page.text


def test_how_often_the_intervals_held_is_told_and_a_curve_is_drawn(tmp_path):
    tmp_path.mkdir(exist_ok=True)
    place = {
        "protocol": "patient",
        "method": "OASIS",
        "n": 6,
        "label": "prostate",
        "networks": 0.9,
        "atlases": 0.7,
        "flag": False,
    }
    lines = [
        place
        | {"fold": i, "case": f"Case{i:02d}", "dsc": 0.8, "predicted_dsc": 0.8 + 0.01 * i, "corruption": change}
        | {"predicted_low": 0.7 if i else 0.9, "predicted_high": 1.0}
        for change in (UNTOUCHED, "noise")
        for i in range(4)
    ]
    lines[-1]["predicted_low"] = lines[-1]["predicted_high"] = float("nan")
    write_quality(tmp_path / "quality.csv", pd.DataFrame(lines, columns=list(COLUMNS)))
    page = make(tmp_path, rows())
    # widths: 0.1 and three of 0.3; without the last copy two of 0.3
    told = (
        "prostate: the 90 % interval held the true DSC in 3 of 4 test scans (mean width 25 points) and in 2 of 3 corrupted copies"
    )
    assert told in page.text
    labels = [figure["attrs"].get("aria-label", "") for figure in page.all("figure")]
    assert sum(label.startswith("Risk-coverage curves") for label in labels) == 1


def test_templates_style_and_script_are_in_a_built_package(tmp_path):
    """What setup.cfg names as package data is every file beside the report's modules."""
    config = configparser.ConfigParser()
    config.read(Path(__file__).parents[2] / "setup.cfg")
    folder = Path(report.__file__).parent
    patterns = config["options.package_data"][report.__name__].split(", ")
    packed = {path for pattern in patterns for path in folder.glob(pattern)}
    there = {path for path in folder.rglob("*") if path.is_file() and path.suffix not in {".py", ".pyc"}}
    assert packed == there
    assert len({path.name for path in packed}) > 2


@pytest.mark.parametrize(
    "module",
    ["scores", "contours", "figures", "report/page", "report/quality", "report/results", "report/pictures", "report/text"],
)
def test_neither_torch_nor_pyplot_is_imported_here(module):
    tree = ast.parse((Path(report.__file__).parents[1] / f"{module}.py").read_text(encoding="utf-8"))
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not {n for n in names if n.split(".")[0] in {"torch", "monai", "hydra", "omegaconf"} or "pyplot" in n}
