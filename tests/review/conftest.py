"""A finished ``segment`` folder without a model's work: scans of the phantom with their true labels as results."""

import json
import threading
from contextlib import contextmanager
from dataclasses import dataclass, replace

import nibabel
import numpy as np
import pytest
import requests

from oasis_monai.data.formats.dispatch import write_array
from oasis_monai.data.phantom import make_phantom
from oasis_monai.data.types import Geometry
from oasis_monai.review.access import Access
from oasis_monai.review.app import make_app
from oasis_monai.review.server import Server, listen
from oasis_monai.utils.files import write_json

TOKEN = "t" * 43
COS, SIN = np.cos(0.2), np.sin(0.2)
TILTED = np.array([[0.0, -2.0, 0, 7.0], [2.5 * COS, 0.0, 4.0 * SIN, -9.0], [2.5 * SIN, 0, -4.0 * COS, 11.0], [0, 0, 0, 1]])
"""An affine whose axes are swapped, flipped and oblique."""


def write_result(folder, scans, case, predicted, index=0, affine=None, flags=(), labels=(1,)):
    """One scan and its result, as ``segment`` leaves them; -> the label's voxels on the scan's own grid."""
    phantom = make_phantom(index, size="tiny")
    affine = phantom.affine if affine is None else affine
    label = phantom.label.astype(np.uint8 if max(labels) < 256 else np.int32) * labels[0]
    for number, extra in enumerate(labels[1:], 1):
        label[: 3 * number] = extra
    scans.mkdir(exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(np.round(phantom.image).astype(np.float32), affine), scans / f"{case}.nii.gz")
    names = [f"part{value}" for value in labels]
    ml = abs(np.linalg.det(affine[:3, :3])) / 1000
    volumes = {name: round(float((label == value).sum()) * ml, 3) for name, value in zip(names, labels, strict=True)}
    write_array(folder / f"{case}_segmentation.nii.gz", label, Geometry(label.shape, affine))
    write_array(folder / f"{case}_uncertainty.nii.gz", (label > 0) * np.float32(0.5), Geometry(label.shape, affine))
    record = {
        "asked": {"image": "x"},
        "case": case,
        "scan": str(scans / f"{case}.nii.gz"),
        "label": f"{case}_segmentation.nii.gz",
        "files": [f"{case}_segmentation.nii.gz", f"{case}_uncertainty.nii.gz"],
        "volume_ml": volumes,
        "predicted_dsc": dict.fromkeys(names, predicted),
        "calibrated": True,
        "flags": [{"name": name, "text": "look at it"} for name in flags],
        "atlases": [[{"case": "Case01", "slice": -1, "distance": 0.1, "folding_voxels": 0}]],
        "weights": [[1.0]],
    }
    write_json(folder / f"{case}.json", record)
    return label


@dataclass
class Served:
    """A server that runs, and the folder that it has."""

    port: int
    review: object
    session: requests.Session

    @property
    def address(self):
        return f"http://127.0.0.1:{self.port}"

    def ask(self, method, path, **more):
        return self.session.request(method, f"{self.address}/{path}", timeout=30, **more)

    def get(self, path, **more):
        return self.ask("GET", path, **more)

    def drawing(self, case):
        """Voxels (x, y, z) as the page has them, and the version."""
        answer = self.get(f"api/scans/{case}/drawing")
        shape = [int(n) for n in answer.headers["x-shape"].split(",")]
        version = int(answer.headers["etag"].strip('"'))
        return np.frombuffer(answer.content, np.uint8).reshape(shape, order="F").copy(), version

    def put(self, case, voxels, version, save=False):
        path = f"api/scans/{case}/drawing{'?save=true' if save else ''}"
        return self.ask("PUT", path, data=voxels.tobytes(order="F"), headers={"If-Match": f'"{version}"'})

    def entries(self):
        return {one["id"]: one for one in self.get("api/worklist").json()["scans"]}


@contextmanager
def serving(output, token=TOKEN, port=0, channels=None, **options):
    """Serve a folder in a thread of this process; ``channels``: their names, which only a model knows."""
    import uvicorn

    review = Server(output, **options).make()
    review = review if channels is None else replace(review, channels=channels)
    with listen(port, wanted=bool(port)) as listener:
        number = listener.getsockname()[1]
        config = uvicorn.Config(Access(make_app(review), token, number), log_level="error")
        server = uvicorn.Server(config)
        server.install_signal_handlers = lambda: None
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        session = requests.Session()
        session.trust_env = False
        session.headers["Authorization"] = f"Bearer {token}"
        try:
            yield Served(number, review, session)
        finally:
            server.should_exit = True
            thread.join(20)


@pytest.fixture
def results(tmp_path):
    """A folder with the results of three scans; the second one's axes are swapped, flipped and oblique."""
    output = tmp_path / "results"
    output.mkdir()
    for index, (case, predicted, affine) in enumerate((("sure", 0.9, None), ("tilted", 0.4, TILTED), ("unknown", None, None))):
        write_result(output, tmp_path / "scans", case, predicted, index, affine, ("unsure",) if case == "tilted" else ())
    return output


@pytest.fixture
def served(results):
    with serving(results) as server:
        yield server


def read_state(results, case):
    return json.loads((results / "review" / f"{case}.json").read_text())
