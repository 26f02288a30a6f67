"""Ctrl-C ends a command wherever it falls."""

import os
import signal
import sys
import time
import weakref

import pytest

from oasis_monai.utils.interrupts import repeated
from tests.helpers.command import python

LOST = """
import os, signal, sys, time, weakref
import oasis_monai.tasks
from oasis_monai.__main__ import main

class Thing: pass

def task(*_):
    thing = Thing()
    watch = weakref.ref(thing, lambda _: os.kill(os.getpid(), signal.SIGINT))
    del thing  # Python runs the callback here and drops what it raises
    for i in range(600):
        time.sleep(0.1)
    print("went on to the end")

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
oasis_monai.tasks.run_task = task
sys.stderr = sys.stdout
sys.argv = ["oasis-monai", "hydra.run.dir=r"]
try:
    main()
except SystemExit as end:
    print("code", end.code)
"""


class Thing:
    pass


def dropped(callback):
    """Run ``callback`` where Python drops what it raises."""
    thing = Thing()
    watch = weakref.ref(thing, lambda _: callback())
    del thing
    return watch


@pytest.mark.slow
def test_a_command_ends_though_ctrl_c_fell_into_a_callback(tmp_path):
    out = python(LOST, cwd=tmp_path)
    assert out == "interrupted: run the same command again to continue; finished work is kept\ncode 130\n"


def test_an_interrupt_that_a_callback_dropped_comes_again_until_it_is_heard():
    calls = []

    def slow():  # the repetition meets a callback too
        calls.append("slow")
        dropped(lambda: os.kill(os.getpid(), signal.SIGINT))
        time.sleep(0.5)
        calls.append("not to be reached")

    def wait():
        dropped(slow)
        time.sleep(5)
        calls.append("not to be reached")

    with repeated(), pytest.raises(KeyboardInterrupt):
        wait()
    assert calls == ["slow"]


def test_what_else_is_dropped_is_told_as_before(monkeypatch):
    told = []
    monkeypatch.setattr(sys, "unraisablehook", told.append)
    before = sys.unraisablehook
    with repeated():
        dropped(lambda: 1 // 0)
    assert [d.exc_type for d in told] == [ZeroDivisionError]
    assert sys.unraisablehook is before
