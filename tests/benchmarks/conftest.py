"""A clock for the tests of what is timed."""

import time

import pytest


@pytest.fixture
def clock(monkeypatch):
    """A clock that only goes on when told."""
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(time, "process_time", lambda: 2 * now[0])  # two threads at work

    def pass_seconds(seconds):
        now[0] += seconds

    return pass_seconds
