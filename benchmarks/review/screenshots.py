"""Pictures of every state of the review page, of the phantom: empty, working, result, doubtful, corrected, conflict, error.

    python -m benchmarks.review.screenshots --model models/demo --output docs/howto/review

Needs Chromium, and a model of the phantom.
"""

from __future__ import annotations

import argparse
import io
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.command_line import command_parser
from benchmarks.review.chromium import Page, chromium
from oasis_monai.data.formats.dispatch import write_array
from oasis_monai.data.phantom import make_phantom
from oasis_monai.data.types import Geometry
from oasis_monai.utils.files import atomic_path

SIZE = (1280, 800)
COLOURS = 224
"""Of a picture: the page has few, and its files stay small."""
MINUTES = 10 * 60.0
STATES = ("empty", "working", "result", "doubtful", "corrected", "conflict", "error")


def write_scans(folder: Path) -> dict[str, Path]:
    """Three scans of the phantom that no model of the demo has seen: one as it is, one with noise in place of a third of its
    slices, and one that is damaged."""
    made = {}
    for name, index in (("patient-a", 30), ("patient-b", 31), ("patient-c", 32)):
        scan = make_phantom(index, size="demo")
        image = scan.image.astype(np.float32)
        if name == "patient-b":  # the middle third of the slices: what is there can only be guessed
            third = image.shape[2] // 3
            noise = np.random.default_rng(0).normal(image.mean(), image.std(), (*image.shape[:2], third))
            image[..., third : 2 * third] = noise
        if name == "patient-c":
            image[0, 0, 0] = np.nan
        made[name] = folder / f"{name}.nii.gz"
        write_array(made[name], image, Geometry(image.shape, scan.affine))
    return made


def save(page: Page, path: Path) -> None:
    """Write a picture of the page with few colours."""
    from PIL import Image

    page.run("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    picture = Image.open(io.BytesIO(page.picture())).convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
    with atomic_path(path) as temporary:
        picture.save(temporary, format="PNG", optimize=True)
    print(path, flush=True)


def drop(page: Page, path: Path, seconds: float = MINUTES) -> None:
    """Drop a file and wait until it is shown, or has failed. One that is there is opened."""
    name = path.name.removesuffix(".nii.gz")
    if page.run(f"document.querySelector('#list [data-id=\"{name}\"]') !== null"):
        page.run(f"location.hash = '{name}'")
    else:
        page.give_file("#file", path)
    told = "document.getElementById('empty').textContent.includes('could not be segmented')"
    page.wait(f"review.shown?.id === '{name}' || (location.hash === '#{name}' && {told})", seconds)


def fill(page: Page) -> None:
    """Draw an outline beside the cross, which is filled."""
    x, y, width, height = page.run(
        "(() => { const r = document.getElementById('canvas').getBoundingClientRect(); return [r.x, r.y, r.width, r.height]; })()"
    )
    centre, radius = (x + 0.31 * width, y + 0.68 * height), 0.05 * width
    angles = np.linspace(0, 2 * np.pi, 24)
    page.press("f")
    page.drag([(centre[0] + radius * np.cos(a), centre[1] + radius * np.sin(a)) for a in angles])


def take_pictures(address: str, scans: dict[str, Path], output: Path, states: list[str]) -> None:
    """Bring the page into these states, in their order, and write a picture of each."""
    with chromium() as browser:
        page = browser.tab()
        page.resize(*SIZE)
        page.go(address)
        reading = "document.getElementById('empty').textContent === 'Reading the scan ...'"
        page.wait(f"document.getElementById('place').textContent && !({reading})", MINUTES)
        for state in (one for one in STATES if one in states):
            _REACH[state](page, scans)
            save(page, output / f"{state}.png")
        if page.said:
            print("the page said:", *page.said, sep="\n")


def _reach_working(page: Page, scans: dict[str, Path]) -> None:
    page.give_file("#file", scans["patient-a"])
    page.wait("document.querySelector('.job.running')", MINUTES)


def _reach_doubtful(page: Page, scans: dict[str, Path]) -> None:
    drop(page, scans["patient-b"])
    page.press("v")
    page.wait("review.viewer.hasOverlay", MINUTES)


def _reach_corrected(page: Page, scans: dict[str, Path]) -> None:
    drop(page, scans["patient-b"])
    fill(page)
    page.press("s")
    page.wait("document.getElementById('kept').textContent.startsWith('saved')", MINUTES)
    page.wait("document.querySelector('#list [data-id=\"patient-b\"] b').className === 'corrected'", MINUTES)
    if page.run("document.getElementById('uncertainty').value > 0"):
        page.press("v")


def _reach_conflict(page: Page, scans: dict[str, Path]) -> None:
    page.run("review.shown.version -= 1")  # as if another tab had saved since
    page.press("e")
    fill(page)
    page.press("s")
    page.wait("document.getElementById('banner').textContent.includes('Another tab')", MINUTES)


def _reach_error(page: Page, scans: dict[str, Path]) -> None:
    page.run("document.querySelector('#banner button')?.click()")
    page.wait("document.getElementById('banner').hidden && (review.shown === null || review.kept)", MINUTES)
    drop(page, scans["patient-c"])


_REACH = {
    "empty": lambda page, scans: page.wait("document.getElementById('empty').textContent.includes('No scans yet')"),
    "working": _reach_working,
    "result": lambda page, scans: drop(page, scans["patient-a"]),
    "doubtful": _reach_doubtful,
    "corrected": _reach_corrected,
    "conflict": _reach_conflict,
    "error": _reach_error,
}


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = command_parser("benchmarks.review.screenshots", __doc__)
    parser.add_argument("--model", type=Path, required=True, help="folder of a model of the phantom")
    parser.add_argument("--output", type=Path, required=True, help="folder for the pictures")
    parser.add_argument("--states", nargs="+", choices=STATES, default=list(STATES), help="which pictures to take (all)")
    parser.add_argument("--results", type=Path, help="a folder of results to begin with")
    return parser


def main() -> None:
    """Take the pictures."""
    asked = parser().parse_args()
    with tempfile.TemporaryDirectory() as folder:
        scans = write_scans(Path(folder))
        if asked.results is not None:
            shutil.copytree(asked.results, Path(folder) / "results")
        words = ["review", f"model={asked.model.resolve()}", "output=results", "review.open=false"]
        command = [sys.executable, "-u", "-m", "oasis_monai", *words]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=folder) as server:
            try:
                assert server.stdout is not None
                line = next(one for one in server.stdout if one.startswith("review: "))
                take_pictures(line.split()[1], scans, asked.output, asked.states)
            finally:
                server.terminate()


if __name__ == "__main__":
    main()
