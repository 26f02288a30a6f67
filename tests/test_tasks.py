"""What jobs of a sweep that end at once leave."""

import contextlib
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from oasis_monai import tasks
from oasis_monai.evaluation import report
from oasis_monai.evaluation import scores as tables
from oasis_monai.utils import files
from oasis_monai.utils.files import locked, write_text
from oasis_monai.workflows import crossval, sweep
from oasis_monai.workflows.plan import Planned


@pytest.mark.slow
@pytest.mark.parametrize("slow", ["join", "page"])
def test_jobs_that_end_at_once_leave_the_whole_sweep(settings, tmp_path, monkeypatch, slow):
    """Job 1 gets its scores when job 0 has read those there are, and job 0 writes what it made of them as late as it can."""
    made = settings({"k": 2, "methods": ["FwoW"], "browser": False})
    whole = crossval.crossval(made, tmp_path / "whole", lambda _: None)
    head, *rows = whole.read_text().splitlines()
    reading, arrived, this = threading.Event(), threading.Event(), threading.local()

    def scored(settings, run_dir, **_):
        if run_dir.name == "1":
            assert reading.wait(60)
        own = [row for row in rows if row.split(",")[1] == run_dir.name]
        write_text(run_dir / "scores.csv", "\n".join([head, *own]) + "\n")
        return run_dir / "scores.csv"

    def late():
        """Hold up the first job until the second has joined or, as it should, come to a lock."""
        if this.number == "1":
            return False
        reading.set()
        assert arrived.wait(60)
        return True

    @contextlib.contextmanager
    def lock(folder):
        if this.number == "1":
            arrived.set()
        with locked(folder):
            yield

    join, page = sweep.join_scores, report.write_report

    def slow_join(paths):
        result = join(paths)
        late()
        return result

    def slow_page(folder):
        path = page(folder)
        text = path.read_text()
        if folder == tmp_path / "sweep" and late():
            write_text(path, text)
        return path

    monkeypatch.setattr(files, "locked", lock)
    monkeypatch.setattr(tasks, "_planned", lambda _: Planned(None, made, {}))
    monkeypatch.setattr(crossval, "crossval", scored)
    monkeypatch.setattr(sweep, "join_scores", slow_join if slow == "join" else join)
    monkeypatch.setattr(report, "write_report", slow_page if slow == "page" else page)

    def job(number):
        this.number = number
        tasks._crossval({}, dict.fromkeys(tasks.JOB_KEYS), tmp_path / "sweep" / number, tmp_path / "sweep")
        if number == "1":
            arrived.set()

    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(job, number) for number in "01"]:
            done.result()
    joined = tmp_path / "sweep"
    assert (joined / "scores.csv").read_bytes() == whole.read_bytes()
    tables.write_summary(tmp_path / "summary.csv", tables.summarise(tables.read_scores(whole)))
    assert (joined / "summary.csv").read_bytes() == (tmp_path / "summary.csv").read_bytes()
    before = (joined / "report.html").read_bytes()
    assert page(joined).read_bytes() == before
