"""``oasis-monai review``: serve the page to this machine until the command is ended."""

from __future__ import annotations

import socket
import webbrowser
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from oasis_monai.review.access import Access, keep_token, write_token
from oasis_monai.review.drawings import FOLDER, Drawings
from oasis_monai.review.jobs import Jobs
from oasis_monai.review.worklist import Worklist
from oasis_monai.utils.errors import ConfigError, OasisError
from oasis_monai.utils.files import exclusive_folder
from oasis_monai.workflows.model_folder import ModelRecord
from oasis_monai.workflows.segment import SegmentOptions

KEPT = ".server"
"""In the review's folder: token and port, for their owner alone."""
Log = Callable[[str], None]


def tell(line: str) -> None:
    """Print a line at once, also into a file or a pipe: the command does not end."""
    print(line, flush=True)


@dataclass(frozen=True)
class ReviewOptions:
    """The options ``review.*``.

    Args:
        port: to listen on; None: that of the last time, else any that is free.
        upload_mb: MiB that a dropped file may have.
        minutes: of the further training with corrected scans.
        open: open the page in the browser.
    """

    port: int | None = None
    upload_mb: float = 2048.0
    minutes: float = 2.0
    open: bool = True

    def __post_init__(self) -> None:
        port = self.port
        if port is not None and (isinstance(port, bool) or not isinstance(port, int) or not 1024 <= port < 65536):
            raise ConfigError("review.port", "null or a number from 1024 to 65535", port)
        for key in ("upload_mb", "minutes"):
            value = getattr(self, key)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 10**6:
                raise ConfigError(f"review.{key}", "a positive number", value)
        if not isinstance(self.open, bool):
            raise ConfigError("review.open", "true or false", self.open)


@dataclass
class Server:
    """A review that is ready to be served.

    Args:
        output: the folder of the results.
        model: the folder of a trained model; None: only look at results, and correct them.
        scans: what to segment; None: nothing.
        options: of the page.
        segment: of :func:`oasis_monai.segment`.
        cache: for a further training.
    """

    output: Path
    model: Path | None = None
    scans: Path | None = None
    options: ReviewOptions = field(default_factory=ReviewOptions)
    segment: SegmentOptions = field(default_factory=lambda: SegmentOptions())
    cache: str = "outputs/cache"

    def make(self) -> Any:
        """The review of :class:`.Review`, with its scans found and the first jobs queued.

        Raises:
            OasisError: no model, no scans, or results that cannot be read.
        """
        from oasis_monai.review.app import Review
        from oasis_monai.review.atlas_pictures import AtlasPictures
        from oasis_monai.review.segmenting import Segmenting
        from oasis_monai.review.teaching import Teacher

        labels = None if self.model is None else ModelRecord.read(self.model).settings().data.labels
        worklist = Worklist(self.output, labels)
        drawings, jobs = Drawings(self.output, worklist.label_values), Jobs()
        if self.model is None:
            return Review(worklist, drawings, jobs)
        machine = self.segment.get("device", "auto"), self.segment.get("batch", 8)
        upload = int(self.options.upload_mb * 2**20)
        segmenting = Segmenting(self.model, self.output, worklist, drawings, jobs, self.segment, upload)
        teacher = Teacher(self.model, worklist, drawings, *machine, self.cache, self.options.minutes)
        segmenting.start(self.scans)
        channels, pictures = ModelRecord.read(self.model).channels, AtlasPictures(self.model, self.output)
        return Review(worklist, drawings, jobs, segmenting, teacher, pictures, channels)

    def run(self, log: Log = tell) -> None:
        """Serve until the process is told to end.

        Raises:
            ConfigError: the port is taken, or another process reviews this folder.
            OasisError: as :meth:`make`.
        """
        uvicorn = require_server()
        from oasis_monai.review.app import make_app

        if self.model is None and not self.output.is_dir():
            raise ConfigError("results", "the folder of a finished `segment`", str(self.output), "correct the path")
        with exclusive_folder(self.output, "output"):
            kept = self.output / FOLDER / KEPT
            token, port = keep_token(kept)
            listener = listen(self.options.port or port, wanted=self.options.port is not None)
            with listener:
                port = listener.getsockname()[1]
                app = Access(make_app(self.make()), token, port)
                write_token(kept, token, port)
                address = f"http://127.0.0.1:{port}/?token={token}"
                log(f"review: {address}")
                log("Keep this address to yourself: whoever has it can use the page. Ctrl-C ends it; what was drawn is kept.")
                if self.options.open:
                    webbrowser.open(address)
                config = uvicorn.Config(app, log_level="warning", server_header=False, timeout_graceful_shutdown=3)
                uvicorn.Server(config).run(sockets=[listener])


def require_server() -> Any:
    """The library that serves; an OasisError says how to get it."""
    try:
        import starlette  # noqa: F401
        import uvicorn
    except ImportError as error:
        remedy = 'install them: pip install "oasis-monai[review]"'
        raise OasisError(f"review: expected starlette and uvicorn, found no {error.name}; {remedy}") from error
    return uvicorn


def listen(port: int, wanted: bool) -> socket.socket:
    """A socket on 127.0.0.1 alone.

    Args:
        port: the one to take, 0 for any.
        wanted: whether no other will do.

    Raises:
        ConfigError: it is taken.
    """
    found = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind(("127.0.0.1", port))
    except OSError as error:
        if wanted:
            found.close()
            raise ConfigError("review.port", "a port that is free", port, "give another, or leave it out") from error
        found.bind(("127.0.0.1", 0))
    found.listen()
    return found
