"""The command line as a real process of its own, without paying for its imports each time.

A fork server imports torch, MONAI, ITK and Hydra once; every command is a fork of it, with its own arguments, working directory
and output files, and can be killed like any process.
"""

import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

CONTEXT = multiprocessing.get_context("forkserver") if hasattr(os, "fork") else multiprocessing.get_context("spawn")
CONTEXT.set_forkserver_preload(["tests.helpers.preload"])


def _main(arguments, cwd, out, err, file_bytes=None):
    os.chdir(cwd)
    if file_bytes is not None:  # a disk that is full from there on, as far as this process can tell
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))
    for path, number in ((out, 1), (err, 2)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
    sys.argv = ["oasis-monai", *arguments]
    import torch

    torch.set_num_threads(1)
    from oasis_monai.__main__ import main

    try:
        main()
    finally:
        sys.stdout.flush()


@dataclass
class Done:
    """A command that has ended: negative code for the signal that killed it."""

    code: int
    out: str
    err: str


class Command:
    """``oasis-monai *arguments`` started in ``cwd``; no file it writes may get longer than ``file_bytes``."""

    def __init__(self, *arguments, cwd, file_bytes=None):
        self.folder = Path(tempfile.mkdtemp(dir=cwd, prefix=".command-"))
        files = [str(self.folder / name) for name in ("out", "err")]
        words = [str(a) for a in arguments]
        self.process = CONTEXT.Process(target=_main, args=(words, str(cwd), *files, file_bytes), daemon=True)
        self.process.start()
        self.started = time.monotonic()

    def kill_after(self, seconds):
        """SIGKILL so many seconds after the start; whether there was something left to kill."""
        self.process.join(max(0.0, self.started + seconds - time.monotonic()))
        alive = self.process.is_alive()
        self.process.kill()
        return self.wait().code < 0 and alive

    def wait(self, seconds=600):
        self.process.join(seconds)
        assert self.process.exitcode is not None, f"still running after {seconds} s"
        texts = [p.read_text() if (p := self.folder / name).exists() else "" for name in ("out", "err")]
        return Done(self.process.exitcode, *texts)


def run(*arguments, cwd, file_bytes=None):
    """Run a command to its end."""
    return Command(*arguments, cwd=cwd, file_bytes=file_bytes).wait()


def completed(*words, cwd=None):
    """A program run to its end in a process that has imported nothing."""
    done = subprocess.run(
        list(map(str, words)),
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    return Done(done.returncode, done.stdout, done.stderr)


def python(code, *arguments, cwd=None):
    """What a fresh interpreter prints; it has to succeed."""
    done = completed(sys.executable, "-c", code, *arguments, cwd=cwd)
    assert done.code == 0, done.err
    return done.out
