"""With a model: scans are segmented in the background, files that are dropped too, and corrections teach the model."""

import io
import shutil
import stat
import zipfile

import nibabel
import numpy as np
import pytest

from oasis_monai.data.phantom import make_phantom
from oasis_monai.review.jobs import DONE, FAILED, Jobs
from oasis_monai.review.server import ReviewOptions
from oasis_monai.settings import build
from oasis_monai.utils.errors import OasisError
from oasis_monai.utils.files import write_text
from oasis_monai.workflows.model_folder import ModelRecord
from oasis_monai.workflows.train import train_model
from tests.conftest import TINY, merged
from tests.helpers.dicom_series import write_series
from tests.review.conftest import serving

pytestmark = pytest.mark.slow


def write_scan(path, index, size="tiny"):
    scan = make_phantom(index, size=size)
    nibabel.save(nibabel.Nifti1Image(scan.image, scan.affine), path)
    return path


@pytest.fixture(scope="module")
def trained(phantom, tmp_path_factory):
    base = tmp_path_factory.mktemp("model")
    options = {"cache": str(base / "c"), "data": {"root": str(phantom)}, "training": {"iterations": 4}}
    return train_model(build(merged(TINY, options)), base / "m", lambda _: None)


@pytest.fixture
def model(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "model")


@pytest.fixture
def scans(tmp_path):
    folder = tmp_path / "scans"
    folder.mkdir()
    write_scan(folder / "one.nii.gz", 21)
    write_scan(folder / "two.nii.gz", 22)
    return folder


@pytest.fixture
def reviewing(model, scans, tmp_path, monkeypatch):
    """Function: a server of this model."""
    monkeypatch.setattr("oasis_monai.evaluation.contours.overlay", lambda path, *a, **k: write_text(path, "png"))

    def start(scans=scans, **options):
        cache = str(tmp_path / "cache")
        return serving(tmp_path / "out", model=model, scans=scans, options=ReviewOptions(**options), cache=cache)

    return start


def correct(server, case, place):
    voxels, version = server.drawing(case)
    voxels[place] = 1
    assert server.put(case, voxels, version, save=True).status_code == 200
    return voxels


def taught(server, how):
    assert server.ask("POST", f"api/teach/{how}").status_code == 202
    server.review.jobs.join()
    return server.get("api/worklist").json()["jobs"][-1]


def test_corrections_become_atlases_once_and_train_a_new_model(reviewing, model, tmp_path, monkeypatch):
    before = ModelRecord.read(model).values["cases"]
    with reviewing(minutes=0.001) as server:
        server.review.jobs.join()
        assert {one["status"] for one in server.entries().values()} == {"done"}
        assert server.entries()["one"]["uncertainty"]
        assert server.get("api/scans/one/atlases/0").content == b"png"
        assert server.get("api/scans/one/atlases/99").status_code == 404
        job = taught(server, "adapt")
        assert (job["status"], "expected a corrected one" in job["text"]) == (FAILED, True)
        middle = tuple(slice(n // 2 - 2, n // 2 + 2) for n in server.drawing("one")[0].shape)
        correct(server, "one", middle)
        trained = taught(server, "adapt")
        assert trained["status"] == DONE, trained["text"]
        adapted = ModelRecord.read(tmp_path / "out" / "adapted_model")
        assert adapted.values["cases"] == [*before, "one"]
        assert "one" in adapted.values["trained_on"]
        assert taught(server, "atlases")["text"] == "1 new atlases: one"
        assert ModelRecord.read(model).values["cases"] == [*before, "one"]
        assert server.entries()["one"]["atlas"] == "one"
        assert taught(server, "atlases")["text"].startswith("0 new atlases")
        volume = ModelRecord.read(model).values["atlases"]["one"]["volume_ml"]["prostate"]
        correct(server, "one", tuple(slice(s.start - 3, s.stop + 3) for s in middle))
        assert taught(server, "atlases")["text"] == "1 new atlases: one"  # of the newer label
        assert ModelRecord.read(model).values["cases"] == [*before, "one"]
        assert ModelRecord.read(model).values["atlases"]["one"]["volume_ml"]["prostate"] > volume
    record = ModelRecord.read(model).version
    times = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*_segmentation*")}
    with reviewing() as server:  # the model has changed: what nobody has worked on is segmented again, the other result stays
        server.review.jobs.join()
        assert server.review.worklist.record("two")["asked"]["model"] == record
        assert server.review.worklist.record("one")["asked"]["model"] != record
    after = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*_segmentation*")}
    assert after["one_segmentation.nii.gz"] == times["one_segmentation.nii.gz"]


def test_a_dropped_file_is_segmented_and_others_are_refused(reviewing, tmp_path):
    good = write_scan(tmp_path / "new scan.nii.gz", 23).read_bytes()
    with reviewing(scans=None, upload_mb=1) as server:
        assert server.entries() == {}
        inbox = tmp_path / "out/review/dropped"
        for name, data, code in (
            ("scan.nii.gz", b"no scan", 422),
            ("scan.exe", good, 422),
            (".scan.nii.gz", good, 422),
            ("scan.mhd", good, 422),
            ("large.nii.gz", b"0" * (2**20 + 1), 413),
            ("cut.nii.gz", good[: len(good) // 2], 422),
        ):
            assert server.ask("PUT", f"api/dropped/{name}", data=data).status_code == code, name
        chunks = iter([b"0" * 2**19] * 3)  # no length is announced
        assert server.ask("PUT", "api/dropped/large.nii.gz", data=chunks).status_code == 413
        assert server.ask("PUT", "api/dropped/..%2F..%2Fscan.nii.gz", data=good).status_code in (404, 422)
        assert not inbox.exists() or list(inbox.iterdir()) == []
        assert server.entries() == {}
        assert server.ask("PUT", "api/dropped/new scan.nii.gz", data=good).json() == {"case": "new_scan"}
        assert server.ask("PUT", "api/dropped/new scan.nii.gz", data=good).json() == {"case": "new_scan-2"}
        assert server.entries()["new_scan"]["status"] in ("waiting", "working", "done")
        server.review.jobs.join()
        assert {one["status"] for one in server.entries().values()} == {"done"}
        assert np.prod(server.drawing("new_scan")[0].shape) > 0
    (tmp_path / "out/new_scan-2.json").unlink()  # as if the process had died before
    with reviewing(scans=None) as server:
        server.review.jobs.join()
        assert {name: one["status"] for name, one in server.entries().items()} == {"new_scan": "done", "new_scan-2": "done"}


def zipped(entries):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries:
            archive.writestr(name, data)
    return buffer.getvalue()


def test_a_zip_of_a_series_is_segmented_and_what_is_not_one_scan_is_refused_whole(reviewing, tmp_path):
    scan = make_phantom(23, size="tiny")
    files = []
    for number in (1, 2):
        write_series(tmp_path / f"{number}", scan.image, scan.affine, series=f"1.2.{number}")
        files.append([(f"export/{number}/{path.name}", path.read_bytes()) for path in sorted((tmp_path / f"{number}").iterdir())])
    link = zipfile.ZipInfo("export/1/link.dcm")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    good = zipped(files[0])
    with reviewing(scans=None, upload_mb=1) as server:
        for wrong, told in (
            (zipped([*files[0], ("../../../../leaked.dcm", b"x")]), "leads out of it"),
            (zipped([*files[0], (link, "/etc/hostname")]), "a link"),
            (zipped([*files[0], ("zeros", bytes(5 * 2**20))]), "decompression bomb"),
            (zipped(files[0] + files[1]), "2 scans"),
            (zipped([("read.me", b"nothing")]), "expected"),
            (good[: len(good) // 2], "complete archive"),
        ):
            answer = server.ask("PUT", "api/dropped/series.zip", data=wrong)
            assert (answer.status_code, told in answer.json()["error"]) == (422, True), answer.json()
        assert list((tmp_path / "out/review/dropped").iterdir()) == []
        assert not list(tmp_path.rglob("leaked.dcm"))
        assert server.entries() == {}
        case = server.ask("PUT", "api/dropped/series.ZIP", data=good).json()["case"]
        server.review.jobs.join()
        assert {name: one["status"] for name, one in server.entries().items()} == {case: "done"}
        assert sorted(server.drawing(case)[0].shape) == sorted(scan.image.shape)
    (tmp_path / f"out/{case}.json").unlink()  # as if the process had died before
    with reviewing(scans=None) as server:
        server.review.jobs.join()
        assert {name: one["status"] for name, one in server.entries().items()} == {case: "done"}


def test_a_scan_that_cannot_be_segmented_says_why_and_stops_no_other(reviewing, scans):
    image = nibabel.load(scans / "one.nii.gz")
    values = image.get_fdata(dtype=np.float32)
    values[0, 0, 0] = np.nan
    nibabel.save(nibabel.Nifti1Image(values, image.affine), scans / "one.nii.gz")
    with reviewing() as server:
        server.review.jobs.join()
        entries = server.entries()
        assert (entries["one"]["status"], entries["two"]["status"]) == ("failed", "done")
        assert "NaN" in entries["one"]["reason"]
        assert [one["id"] for one in server.get("api/worklist").json()["scans"]] == ["one", "two"]
        assert server.get("api/scans/one/image").status_code == 404


@pytest.mark.fast
def test_jobs_run_in_order_and_a_failure_stops_none():
    jobs, seen = Jobs(), []

    def work(name, error=None):
        def run(job):
            job.log(f"at {name}")
            seen.append(name)
            if error is not None:
                raise error
            return f"{name} done"

        return run

    for name, error in (("a", None), ("b", OasisError("b cannot")), ("c", KeyError("bug")), ("d", None)):
        jobs.add("segment", name, work(name, error))
    jobs.join()
    told = jobs.to_json()
    assert seen == ["a", "b", "c", "d"]
    assert [one["status"] for one in told] == [DONE, FAILED, FAILED, DONE]
    assert [one["text"] for one in told][:2] == ["a done", "b cannot"]
    assert "an error of the program" in told[2]["text"]
    assert not jobs.busy("segment")
