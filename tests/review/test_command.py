"""The command itself: what it refuses in one line, and that a kill loses nothing."""

import pytest

from tests.helpers.command import run
from tests.helpers.reviewing import Reviewing

pytestmark = pytest.mark.slow


def test_a_killed_server_comes_back_with_its_drafts_token_and_port(results):
    first = Reviewing(f"results={results}", cwd=results.parent)
    drawn = first.draw("sure", save=False)
    assert first.command.kill_after(0)
    second = Reviewing(f"results={results}", cwd=results.parent)
    assert (second.address, second.token) == (first.address, first.token)
    answer = first.session.get(f"{first.address}/api/scans/sure/drawing", timeout=30)  # the tab that was open all the time
    assert answer.content == drawn
    assert answer.headers["x-source"] == "draft"
    busy = run("review", f"results={results}", "review.open=false", cwd=results.parent)
    assert (busy.code, "in use by process" in busy.err) == (2, True)
    done = second.interrupt()
    assert (done.code, "interrupted" in done.err) == (130, True)
    assert "Traceback" not in done.err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "model: expected"),
        (["input=scans"], "add model=DIR"),
        (["results=nothing"], "results: expected the folder"),
        (["results=results", "output=other"], "output: expected null"),
        (["results=results", "review.port=80"], "review.port: expected null or a number"),
        (["results=results", "+review.colour=red"], "review.colour: expected port"),
        (["model=nothing"], "model: expected a folder written by"),
    ],
)
def test_what_cannot_be_is_told_in_one_line(results, words, told):
    done = run("review", *words, "review.open=false", cwd=results.parent)
    assert done.code == 2
    (line,) = done.err.strip().splitlines()
    assert told in line
