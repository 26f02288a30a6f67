"""What the server answers: order, drawings to the voxel, conflicts, limits, and what a crash leaves."""

import http.client
import os

import nibabel
import numpy as np
import pytest

from oasis_monai.review import drawings, grids
from oasis_monai.utils.errors import ConfigError
from tests.review.conftest import TILTED, TOKEN, read_state, serving, write_result


def test_the_least_certain_scan_comes_first(served):
    assert [one["id"] for one in served.get("api/worklist").json()["scans"]] == ["unknown", "tilted", "sure"]
    one = served.entries()["tilted"]
    assert (one["least"], one["status"], one["verdict"], one["version"]) == (0.4, "done", "", 0)
    assert [flag["name"] for flag in one["flags"]] == ["unsure"]
    assert one["uncertainty"]


def world_of(array, affine):
    """Each labelled voxel's place in the world, by a slow loop of its own: {(x, y, z) in mm: value}."""
    return {tuple(np.round(affine[:3, :3] @ place + affine[:3, 3], 3)): array[tuple(place)] for place in np.argwhere(array)}


def test_what_the_page_draws_is_saved_in_the_same_place_of_the_world(served, results, tmp_path):
    """Swapped, flipped, oblique axes: the page's voxel (right, front, up) is the file's voxel at that place."""
    before = nibabel.load(results / "tilted_segmentation.nii.gz")
    voxels, version = served.drawing("tilted")
    image = nibabel.Nifti1Image.from_bytes(served.get("api/scans/tilted/image").content)
    assert voxels.shape == image.shape == nibabel.as_closest_canonical(before).shape
    scan = nibabel.load(tmp_path / "scans/tilted.nii.gz")
    assert np.array_equal(image.get_fdata(), nibabel.as_closest_canonical(scan).get_fdata())
    assert np.array_equal(voxels, np.asarray(nibabel.as_closest_canonical(before).dataobj))
    voxels[1:4, 2, 0] = 1
    voxels[-1, -1, -1] = 1
    answer = served.put("tilted", voxels, version, save=True)
    assert answer.status_code == 200, answer.text
    saved = nibabel.load(results / "tilted_corrected.nii.gz")
    assert saved.shape == scan.shape
    assert np.allclose(saved.affine, scan.affine, atol=1e-5)
    canonical = nibabel.as_closest_canonical(saved)
    assert world_of(np.asarray(saved.dataobj), saved.affine) == world_of(voxels, canonical.affine)
    assert np.array_equal(np.asarray(before.dataobj), np.asarray(nibabel.load(results / "tilted_segmentation.nii.gz").dataobj))
    assert served.entries()["tilted"]["verdict"] == "corrected"


def test_values_of_the_files_are_kept(tmp_path):
    results = tmp_path / "results"
    results.mkdir()
    label = write_result(results, tmp_path / "scans", "two", 0.9, labels=(4, 300))
    with serving(results) as server:
        assert server.get("api/worklist").json()["structures"] == ["part4", "part300"]
        voxels, version = server.drawing("two")
        assert set(np.unique(voxels)) == {0, 1, 2}
        server.put("two", voxels, version, save=True)
    assert np.array_equal(np.asarray(nibabel.load(results / "two_corrected.nii.gz").dataobj), label)


def test_structures_that_cannot_be_told_apart_need_the_model(tmp_path):
    results = tmp_path / "results"
    results.mkdir()
    write_result(results, tmp_path / "scans", "two", 0.9, labels=(1, 2))
    text = (results / "two.json").read_text()
    (results / "two.json").write_text(text.replace('"part2"', '"part9"').replace('"part1"', '"part8"'))
    with serving(results) as server:  # by their volumes they can
        assert server.get("api/worklist").json()["structures"] == ["part8", "part9"]
    import json

    record = json.loads(text)
    record["volume_ml"] = dict.fromkeys(record["volume_ml"], record["volume_ml"]["part1"])
    (results / "two.json").write_text(json.dumps(record))
    with pytest.raises(ConfigError, match="add model=DIR"), serving(results):
        pass


def test_a_draft_survives_the_server_and_is_not_the_saved_label(results):
    with serving(results) as server:
        voxels, version = server.drawing("sure")
        voxels[0, 0, 0] = 1
        assert server.put("sure", voxels, version).json()["version"] == 1
    assert not (results / "sure_corrected.nii.gz").exists()
    with serving(results) as server:  # another one, after a crash
        again, version = server.drawing("sure")
        assert np.array_equal(again, voxels)
        assert version == 1
        assert server.get("api/scans/sure/drawing").headers["x-source"] == "draft"
        assert server.get("api/scans/sure/drawing?of=result").content != again.tobytes(order="F")
        server.put("sure", again, version, save=True)
        assert server.get("api/scans/sure/drawing").headers["x-source"] == "corrected"
    assert not list((results / "review").glob("*draft*"))


@pytest.mark.parametrize("step", ["write_label", "write_json", "remove_array"])
def test_a_save_that_dies_at_any_step_loses_nothing(results, monkeypatch, step):
    """The voxels are those of the draft or those of the save, never fewer, whatever was written last."""
    with serving(results) as server:
        voxels, version = server.drawing("sure")
        voxels[0, 0, :2] = 1
        server.put("sure", voxels, version)
        newer = voxels.copy()
        newer[1, 1, :2] = 1

        def dies(*_, **__):
            raise OSError(28, "No space left on device")

        module = grids if step == "write_label" else drawings
        with monkeypatch.context() as broken:
            broken.setattr(module, step, dies)
            answer = server.put("sure", newer, 1, save=True)
        assert answer.status_code == 507
        assert "No space left" in answer.json()["error"]
    with serving(results) as server:
        again, version = server.drawing("sure")
        assert any(np.array_equal(again, one) for one in (voxels, newer))
        assert server.put("sure", newer, version, save=True).status_code == 200
        assert np.array_equal(server.drawing("sure")[0], newer)


def test_two_tabs_do_not_overwrite_each_other(served, results):
    first, version = served.drawing("sure")
    second = first.copy()
    first[0, 0, 0], second[1, 1, 1] = 1, 1
    assert served.put("sure", first, version).status_code == 200
    for save in (False, True):
        answer = served.put("sure", second, version, save)
        assert answer.status_code == 409
        assert answer.json()["version"] == 1
        assert "Another tab" in answer.json()["error"]
    headers = {"If-Match": f'"{version}"'}
    assert served.ask("PUT", "api/scans/sure/verdict", data='{"verdict": "accepted"}', headers=headers).status_code == 409
    assert np.array_equal(served.drawing("sure")[0], first)
    assert read_state(results, "sure")["verdict"] == ""
    assert served.ask("PUT", "api/scans/sure/verdict", data='{"verdict": "accepted"}').status_code == 428


def test_verdicts_are_kept(served, results):
    for version, verdict in enumerate(("accepted", "rejected", "")):
        headers = {"If-Match": f'"{version}"'}
        answer = served.ask("PUT", "api/scans/sure/verdict", json={"verdict": verdict}, headers=headers)
        assert answer.json() == {"version": version + 1}
        assert served.entries()["sure"]["verdict"] == verdict == read_state(results, "sure")["verdict"]
    for wrong in ('{"verdict": "corrected"}', '{"verdict": 3}', "[]", "{", '{"other": 1}'):
        assert served.ask("PUT", "api/scans/sure/verdict", data=wrong, headers={"If-Match": "3"}).status_code == 400


def test_drawings_that_cannot_be_are_refused(served, results):
    voxels, version = served.drawing("sure")
    for wrong, code in ((voxels.tobytes()[:-1], 422), (voxels.tobytes() + b"0", 413), (b"\x07" * voxels.size, 422), (b"", 422)):
        answer = served.ask("PUT", "api/scans/sure/drawing", data=wrong, headers={"If-Match": f'"{version}"'})
        assert answer.status_code == code, wrong[:4]
    assert not list((results / "review").glob("sure*"))


@pytest.mark.parametrize("path", ["nobody", "..%2F..%2Fsecret", "%2e%2e", "sure.json", "sure%00"])
def test_no_path_leads_out_of_the_worklist(served, path):
    for part in ("image", "drawing", "uncertainty", "atlases/0"):
        assert served.get(f"api/scans/{path}/{part}").status_code == 404


@pytest.mark.parametrize(
    "path", ["/static/../app.py", "/static/%2e%2e/app.py", "/static/..%2fapp.py", "/static//etc/passwd", "/../../etc/passwd"]
)
def test_no_path_leads_out_of_the_pages_files(served, path):
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=10)  # sends a path as it stands
    connection.request("GET", path, headers={"Authorization": f"Bearer {TOKEN}"})
    assert connection.getresponse().status == 404


def test_a_record_that_names_files_elsewhere_is_left_out(results, tmp_path):
    (tmp_path / "elsewhere.nii.gz").write_bytes(b"x")
    text = (results / "sure.json").read_text()
    (results / "evil.json").write_text(
        text.replace('"case": "sure"', '"case": "evil"').replace(
            '"sure_segmentation.nii.gz",\n  "predicted', '"../elsewhere.nii.gz",\n  "predicted'
        )
    )
    (results / "sneaky.json").write_text(text)  # another case than its name
    with serving(results) as server:
        assert set(server.entries()) == {"sure", "tilted", "unknown"}


def test_a_scan_that_is_gone_is_told_in_one_line(served, tmp_path):
    os.rename(tmp_path / "scans", tmp_path / "moved")
    answer = served.get("api/scans/sure/image")
    assert answer.status_code == 422
    assert "input=DIR" in answer.json()["error"]


def test_the_map_lies_on_the_page_as_the_scan_does(served):
    voxels, _ = served.drawing("tilted")
    shown = nibabel.Nifti1Image.from_bytes(served.get("api/scans/tilted/uncertainty").content)
    assert np.array_equal(shown.get_fdata() > 0, voxels > 0)
    assert not np.allclose(TILTED, shown.affine)  # the page's grid has no obliquity
    assert served.get("api/scans/tilted/image?channel=1").status_code == 422
    assert served.get("api/scans/tilted/image?channel=x").status_code == 400


def test_without_a_model_nothing_is_segmented_or_taught(served):
    assert served.ask("PUT", "api/dropped/a.nii.gz", data=b"x").status_code == 404
    assert served.ask("POST", "api/teach/atlases").status_code == 404
    assert served.get("api/worklist").json()["model"] is None


def test_the_page_and_the_viewer_come_from_the_package(served):
    page = served.get("")
    assert page.status_code == 200
    for name in ("review.js", "viewer.js", "server.js", "review.css", "niivue.umd.js", "niivue.LICENSE.txt"):
        answer = served.get(f"static/{name}")
        assert answer.status_code == 200
        assert "no-store" in answer.headers["cache-control"]
    plain = served.get("static/niivue.umd.js", headers={"Accept-Encoding": "identity"})
    assert plain.content == served.get("static/niivue.umd.js").content
    assert "Redistributions in binary form" in served.get("static/niivue.LICENSE.txt").text
