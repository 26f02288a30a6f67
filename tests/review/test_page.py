"""The page in a real Chromium: what is drawn is what is saved, to the voxel, and nothing of it is lost."""

import time

import nibabel
import numpy as np
import pytest

from benchmarks.review.chromium import chromium, find_chromium
from tests.review.conftest import TOKEN, serving

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_chromium() is None, reason="no Chromium is installed, which these tests draw with"),
]


@pytest.fixture(scope="module")
def browser():
    with chromium() as running:
        yield running


def opened(browser, server, case, view="axial"):
    """A tab that shows a scan; one plane alone, as 3D without a graphics card takes seconds."""
    tab = browser.tab()
    tab.resize(1000, 700)
    cookie = {"name": f"oasis_review_{server.port}", "value": TOKEN, "url": server.address}
    tab.send("Network.setCookie", **cookie)
    tab.go(f"{server.address}/static/niivue.LICENSE.txt")
    tab.wait("location.pathname.startsWith('/static')")
    tab.run(f"localStorage.setItem('view', '{view}')")
    tab.go(f"{server.address}/#{case}")
    tab.wait(f"globalThis.review?.shown?.id === '{case}'")
    return tab


def bitmap(tab):
    """The page's drawing, counted voxel by voxel from its bytes."""
    return np.array(tab.run("Array.from(review.viewer.voxels)"), np.uint8)


def middle(tab):
    box = "document.getElementById('canvas').getBoundingClientRect()"
    return tab.run(f"((r) => [r.x + r.width / 2, r.y + r.height / 2])({box})")


def square(tab, side=60):
    x, y = middle(tab)
    return [(x, y), (x + side, y), (x + side, y + side), (x, y + side), (x, y)]


def test_draw_save_reload_and_the_voxels_are_equal(browser, results):
    """Brush, outline that is filled, eraser, undo; by keys; on swapped, flipped and oblique axes."""
    with serving(results) as server:
        tab = opened(browser, server, "tilted")
        start = bitmap(tab)
        assert np.array_equal(start, server.drawing("tilted")[0].ravel(order="F"))
        tab.run("review.viewer.put(new Uint8Array(review.viewer.voxels.length), true)")  # nothing is in the way
        tab.press("f")
        tab.drag(square(tab))
        filled = bitmap(tab)
        tab.press("b")
        tab.drag([(x + 75, y) for x, y in square(tab)[:2]])
        brushed = bitmap(tab)
        tab.press("u")
        undone = bitmap(tab)
        tab.press("e")
        tab.drag(square(tab)[:2])
        drawn = bitmap(tab)
        assert 0 < drawn.sum() < filled.sum() < brushed.sum()
        assert np.array_equal(undone, filled)
        tab.press("s")
        tab.wait("document.getElementById('kept').textContent.startsWith('saved')")
        assert tab.run("review.kept")
        tab.run("globalThis.old = true")
        tab.send("Page.reload")
        tab.wait("!globalThis.old && globalThis.review?.shown?.source === 'corrected'")
        assert np.array_equal(bitmap(tab), drawn)
        saved = nibabel.as_closest_canonical(nibabel.load(results / "tilted_corrected.nii.gz"))
        assert np.array_equal(np.asarray(saved.dataobj).ravel(order="F"), drawn)
        assert tab.run("document.querySelector('#list [data-id=tilted] b').className") == "corrected"
        assert [one for one in tab.said if "favicon" not in one] == []  # the licence's plain text has none
        tab.close()


def test_a_draft_is_kept_by_itself_and_comes_back_after_the_server_died(browser, results):
    with serving(results) as server:
        tab = opened(browser, server, "sure")
        tab.press("b")
        tab.drag(square(tab))
        drawn = bitmap(tab)
        tab.wait("document.getElementById('kept').textContent.startsWith('draft kept')", 30)
        assert np.array_equal(server.drawing("sure")[0].ravel(order="F"), drawn)
    tab.drag([(x + 70, y) for x, y in square(tab)])  # the server is gone
    more = bitmap(tab)
    assert more.sum() > drawn.sum()
    tab.wait("document.getElementById('banner').textContent.includes('does not answer')", 30)
    with serving(results, port=server.port) as again:  # the same command once more: same port, same token
        end = time.monotonic() + 30
        while time.monotonic() < end and not np.array_equal(again.drawing("sure")[0].ravel(order="F"), more):
            time.sleep(0.3)
        assert np.array_equal(again.drawing("sure")[0].ravel(order="F"), more)
        assert not (results / "sure_corrected.nii.gz").exists()
        tab.close()


def test_another_channel_is_shown_and_what_was_drawn_stays(browser, results, tmp_path):
    path = tmp_path / "scans" / "sure.nii.gz"
    first = nibabel.load(path)
    voxels = np.asarray(first.dataobj)
    nibabel.save(nibabel.Nifti1Image(np.stack([voxels, voxels.max() - voxels], -1), first.affine), path)
    with serving(results, channels=("T2", "ADC")) as server:
        tab = opened(browser, server, "sure")
        assert tab.run("[...document.getElementById('channel').options].map((one) => one.textContent)") == ["T2", "ADC"]
        seen = "review.viewer.nv.volumes[0].img"
        before = np.array(tab.run(f"Array.from({seen})"))
        tab.press("b")
        tab.drag(square(tab))
        drawn, place = bitmap(tab), tab.run("review.viewer.place")
        for wanted in (voxels.max() - before, before):
            tab.press("c")
            tab.wait(f"review.viewer.nv.volumes.length === 1 && Math.abs({seen}[0] - {wanted[0]}) < 0.5")
            tab.run("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
            assert np.allclose(np.array(tab.run(f"Array.from({seen})")), wanted)
            assert np.array_equal(bitmap(tab), drawn)
            assert np.allclose(tab.run("review.viewer.place"), place)
        tab.close()


def test_of_two_tabs_the_second_is_asked(browser, results):
    with serving(results) as server:
        voxels, version = server.drawing("sure")
        tab = opened(browser, server, "sure")
        voxels[0, 0, 0] = 1
        assert server.put("sure", voxels, version).status_code == 200  # another tab
        tab.press("b")
        tab.drag(square(tab))
        mine = bitmap(tab)
        tab.press("s")
        tab.wait("document.getElementById('banner').textContent.includes('Another tab')")
        assert np.array_equal(server.drawing("sure")[0], voxels)  # theirs stands
        tab.run("[...document.querySelectorAll('#banner button')].find((b) => b.textContent.startsWith('Keep')).click()")
        tab.wait("review.kept")
        assert np.array_equal(server.drawing("sure")[0].ravel(order="F"), mine)
        tab.close()


def test_keys_decide_and_move_and_a_finger_draws(browser, results):
    with serving(results) as server:
        tab = opened(browser, server, "unknown")  # nothing is predicted: it comes first
        tab.press("a")
        tab.wait("document.querySelector('#list [data-id=unknown] b').className === 'accepted'")
        tab.press("j")
        tab.wait("review.shown?.id === 'tilted'")
        tab.press("x")
        tab.wait("document.querySelector('#list [data-id=tilted] b').className === 'rejected'")
        assert {k: v["verdict"] for k, v in server.entries().items()} == {"unknown": "accepted", "tilted": "rejected", "sure": ""}
        tab.resize(1000, 700, touch=True)
        before = bitmap(tab).copy()
        tab.press("1")
        tab.swipe(square(tab))
        assert (bitmap(tab) != before).sum() > 0
        shown = "[...document.querySelectorAll('button')].filter((b) => b.offsetParent)"
        assert tab.run(f"{shown}.every((b) => b.getBoundingClientRect().height >= 39)")
        tab.close()
