"""Serve a model's bundle by MONAI Label (its ``monaibundle`` app), and compare with ``oasis-monai segment``.

    python -m benchmarks.interoperability.monai_label models/prostate scans --python ~/monailabel/bin/python

MONAI Label has an environment of its own, with this program in it (docs/howto/monai.md). A server is started on the
loopback interface, asked through its REST interface for the label of every scan (NIfTI), and for its epistemic scores.
Every voxel and every affine must be those of ``segment`` (class indices, as MONAI Label numbers structures), and the
bundle must stay as it was written. The exit status is 1 where something differs.
"""

from __future__ import annotations

import argparse
import contextlib
import http
import json
import os
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.command_line import command_parser
from oasis_monai.data.io import read_image
from oasis_monai.workflows.bundle import write_bundle
from oasis_monai.workflows.model import load_model
from oasis_monai.workflows.segment import segment_scans

NAME = "tried_scan_segmentation"
START_S, ANSWER_S = 600, 600


@contextlib.contextmanager
def served(python: str, folder: Path, log: Path) -> Iterator[str]:
    """Address of a MONAI Label server of the app and the studies in ``folder``; it ends with the block."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    conf = {"models": NAME, "epistemic_model": NAME, "epistemic_simulation_size": "3"}
    conf |= {"zoo_source": "ngc", "skip_trainers": "true", "sam2": "false"}  # a bundle that lies there needs no network
    command = [
        python,
        "-m",
        "monailabel.main",
        "start_server",
        "--app",
        str(folder / "app"),
        "--studies",
        str(folder / "studies"),
    ]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    for key, value in conf.items():
        command += ["--conf", key, value]
    quiet = {**os.environ, "MONAI_LABEL_DATASTORE_AUTO_RELOAD": "false"}
    with log.open("wb") as told:
        server = subprocess.Popen(command, stdout=told, stderr=told, env=quiet)
        try:
            address = f"http://127.0.0.1:{port}"
            _wait(server, address, log)
            yield address
        except urllib.error.HTTPError as error:  # its page says nothing of the cause, its log does
            raise SystemExit(f"MONAI Label: {error} ({error.url})\n{log.read_text(errors='replace')[-4000:]}") from None
        finally:
            server.terminate()
            server.wait(60)


def _wait(server: subprocess.Popen[bytes], address: str, log: Path) -> None:
    end = time.monotonic() + START_S
    while time.monotonic() < end:
        if server.poll() is not None:
            raise SystemExit(f"MONAI Label ended:\n{log.read_text(errors='replace')[-3000:]}")
        with contextlib.suppress(urllib.error.URLError, ConnectionError):
            ask(address, "/info/")
            return
        time.sleep(1)
    raise SystemExit(f"MONAI Label did not answer within {START_S} s; see {log}")


def ask(address: str, path: str, method: str = "GET", body: Any = None) -> bytes:
    """What a server answers."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(address + path, data, {"Content-Type": "application/json"}, method=method)
    with urllib.request.urlopen(request, timeout=ANSWER_S) as answer:
        found: bytes = answer.read()
    return found


def score(address: str) -> None:
    """Have the server score the scans; it does one such task at a time, and begins with one of its own."""
    end = time.monotonic() + ANSWER_S
    while True:
        try:
            ask(address, f"/scoring/{NAME}?run_sync=true", "POST", {"max_workers": 1})
            return
        except urllib.error.HTTPError as error:
            if error.code != http.HTTPStatus.TOO_MANY_REQUESTS or time.monotonic() > end:
                raise
        time.sleep(2)


def differences(found: Path, wanted: Path, values: Sequence[int]) -> tuple[int, float]:
    """Voxels at which a label of class indices is not one of label ``values``, and the largest difference of their affines, mm.

    All voxels count as different where the shapes are.
    """
    (label, grid), (own, native) = read_image(found), read_image(wanted)
    if label.shape != own.shape:
        return own.numel(), float(np.abs(grid.affine - native.affine).max())
    indices = np.searchsorted(values, own.numpy())
    return int((label.numpy() != indices).sum()), float(np.abs(grid.affine - native.affine).max())


def try_model(model: Path, scans: Path, python: str, work: Path, method: str | None, share_atlases: bool) -> dict[str, Any]:
    """Serve, ask, compare; -> what was found."""
    subprocess.run(
        [python, "-m", "monailabel.main", "apps", "--download", "--name", "monaibundle", "--output", str(work / "download")],
        check=True,
        capture_output=True,
    )
    (app,) = (path.parent for path in (work / "download").rglob("main.py"))
    shutil.move(app, work / "app")
    bundle = write_bundle(model, work / "app" / "model" / NAME, method=method, share_atlases=share_atlases)
    before = {path: path.stat().st_mtime_ns for path in bundle.rglob("*") if path.is_file()}
    (work / "studies").mkdir()
    names = sorted(path.name.removesuffix(".nii.gz") for path in scans.glob("*.nii.gz"))
    for name in names:
        shutil.copyfile(scans / f"{name}.nii.gz", work / "studies" / f"{name}.nii.gz")
    own_method = "estimate" if not share_atlases else method
    segment_scans(model, work / "studies", work / "own", method=own_method, postprocessing="none", views="none")
    values = load_model(model).settings.data.label_values
    found: dict[str, Any] = {"scans": {}}
    with served(python, work, work / "server.log") as address:
        info = json.loads(ask(address, "/info/"))
        found["labels"] = info["models"][NAME]["labels"]
        for name in names:
            started = time.monotonic()
            query = urllib.parse.urlencode({"image": name, "output": "image"})
            answer = work / f"{name}_answer.nii.gz"
            answer.write_bytes(ask(address, f"/infer/{NAME}?{query}", "POST"))
            voxels, mm = differences(answer, work / "own" / f"{name}_segmentation.nii.gz", values)
            found["scans"][name] = {"voxels": voxels, "mm": mm, "seconds": round(time.monotonic() - started, 2)}
        score(address)
        store = json.loads(ask(address, "/datastore/?output=all"))
        for name in names:
            found["scans"][name]["entropy"] = store["objects"][name]["image"]["info"].get("epistemic_entropy")
    after = {path: path.stat().st_mtime_ns for path in bundle.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    found["bundle_unchanged"] = before == after
    return found


def parser() -> argparse.ArgumentParser:
    made = command_parser("benchmarks.interoperability.monai_label", __doc__)
    made.add_argument("model", type=Path, help="folder written by oasis-monai train")
    made.add_argument("scans", type=Path, help="folder of NIfTI scans (.nii.gz)")
    made.add_argument("--python", required=True, help="Python of the environment of MONAI Label")
    made.add_argument("--method", help="as methods= of oasis-monai bundle")
    made.add_argument("--without-atlases", action="store_true", help="as share_atlases=false of oasis-monai bundle")
    return made


def main() -> int:
    given = parser().parse_args()
    with tempfile.TemporaryDirectory(prefix="monai_label_") as work:
        found = try_model(given.model, given.scans, given.python, Path(work), given.method, not given.without_atlases)
    print(json.dumps(found, indent=2))
    scans = found["scans"].values()
    same = scans and all(one["voxels"] == 0 and one["mm"] < 1e-3 for one in scans)
    return 0 if same and found["bundle_unchanged"] and all(one["entropy"] is not None for one in scans) else 1


if __name__ == "__main__":
    raise SystemExit(main())
