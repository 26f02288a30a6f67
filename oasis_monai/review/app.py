"""What the page asks for: the worklist, voxels, drawings, verdicts, dropped files and teaching, over HTTP."""

from __future__ import annotations

import functools
import gzip
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from importlib import resources
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from oasis_monai.review import grids
from oasis_monai.review.atlas_pictures import AtlasPictures
from oasis_monai.review.drawings import ACCEPTED, REJECTED, RESULT, Drawings, StaleVersionError
from oasis_monai.review.jobs import Jobs, explained
from oasis_monai.review.segmenting import ARCHIVE, TAKEN, Segmenting, TooLargeError
from oasis_monai.review.teaching import Teacher
from oasis_monai.review.worklist import Entry, Worklist
from oasis_monai.utils.errors import OasisError

JSON_BYTES = 2**16
STATIC = {
    "review.css": "text/css",
    "review.js": "text/javascript",
    "viewer.js": "text/javascript",
    "server.js": "text/javascript",
    "niivue.umd.js": "text/javascript",
    "niivue.LICENSE.txt": "text/plain",
}
"""The files of the page; nothing else is served by name."""
STALE = "Another tab has changed this scan since you opened it. Nothing of yours was sent, and nothing of the other tab is lost."


@dataclass(frozen=True)
class Review:
    """All that the page works with.

    Args:
        worklist, drawings, jobs: of the folder of results.
        segmenting, teacher, pictures: with the model; None without one.
        channels: the names of a scan's images, as far as the model says.
    """

    worklist: Worklist
    drawings: Drawings
    jobs: Jobs
    segmenting: Segmenting | None = None
    teacher: Teacher | None = None
    pictures: AtlasPictures | None = None
    channels: tuple[str, ...] = ()


def make_app(review: Review) -> Starlette:
    """The application; :class:`.Access` has to stand before it."""
    pages = _Pages(review)
    scan = "/api/scans/{case}"
    routes = [
        Route("/", pages.index),
        Route("/static/{name}", pages.static),
        Route("/api/worklist", pages.worklist),
        Route(f"{scan}/image", pages.image),
        Route(f"{scan}/uncertainty", pages.uncertainty),
        Route(f"{scan}/drawing", pages.drawing, methods=["GET"]),
        Route(f"{scan}/drawing", pages.keep, methods=["PUT"]),
        Route(f"{scan}/verdict", pages.decide, methods=["PUT"]),
        Route(f"{scan}/atlases/{{number:int}}", pages.atlas),
        Route("/api/dropped/{name}", pages.drop, methods=["PUT"]),
        Route("/api/teach/{how}", pages.teach, methods=["POST"]),
    ]
    handlers: Any = {HTTPException: _refused, OasisError: _faulty, StaleVersionError: _stale, Exception: _failed}
    return Starlette(routes=routes, exception_handlers=handlers)


def _refused(request: Request, error: Any) -> Response:
    return JSONResponse({"error": str(error.detail)}, error.status_code, headers=error.headers)


def _faulty(request: Request, error: Any) -> Response:
    return JSONResponse({"error": str(error)}, 422)


def _stale(request: Request, error: Any) -> Response:
    return JSONResponse({"error": STALE, "version": error.version}, 409)


def _failed(request: Request, error: Any) -> Response:
    full = isinstance(error, OSError) and error.errno
    return JSONResponse({"error": explained(error)}, 507 if full else 500)


async def _body(request: Request, limit: int) -> bytes:
    """The body of a request, refused as soon as it is too long."""
    announced = request.headers.get("content-length", "0")
    if not announced.isdecimal() or int(announced) > limit:
        raise HTTPException(413, f"a body of at most {limit} bytes is taken")
    parts, size = [], 0
    try:
        async for part in request.stream():
            size += len(part)
            if size > limit:
                raise HTTPException(413, f"a body of at most {limit} bytes is taken")
            parts.append(part)
    except ClientDisconnect as error:
        raise HTTPException(400, "the connection ended before the body did") from error
    return b"".join(parts)


def _version(request: Request) -> int:
    """The version of the scan that the page has read."""
    text = request.headers.get("if-match", "").strip('"')
    if not text.isdecimal() or len(text) > 15:
        raise HTTPException(428, "say which version is changed, If-Match: VERSION")
    return int(text)


def _known(answer: Callable[[Any, Request], Awaitable[Response]]) -> Callable[[Any, Request], Awaitable[Response]]:
    """Answer 404 for a scan that is not in the worklist, or has no result."""

    @functools.wraps(answer)
    async def answered(self: Any, request: Request) -> Response:
        try:
            await run_in_threadpool(self.review.worklist.record, request.path_params["case"])
        except KeyError:
            raise HTTPException(404, "no such scan, or it has no result yet") from None
        return await answer(self, request)

    return answered


def _remarks(record: Any) -> list[str]:
    """Why a result is no test of accuracy: the scan, or its patient, is among the atlases."""
    told = []
    if atlas := record.get("is_atlas"):
        told.append(f"This scan is the model's atlas {atlas}: the result is no test of accuracy.")
    if theirs := record.get("atlases_of_patient"):
        told.append(f"Of this patient, too: {', '.join(theirs)} among the model's atlases. The result is no test of accuracy.")
    return told


class _Pages:
    """The answers, one method each."""

    def __init__(self, review: Review) -> None:
        self.review = review
        self.files = resources.files("oasis_monai.review") / "static"

    async def index(self, request: Request) -> Response:
        return Response((self.files / "index.html").read_bytes(), media_type="text/html")

    async def static(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name not in STATIC:
            raise HTTPException(404, "no such file")
        packed = self.files / f"{name}.gz"
        if packed.is_file():
            data, kind = packed.read_bytes(), STATIC[name]
            if "gzip" in request.headers.get("accept-encoding", ""):
                return Response(data, media_type=kind, headers={"content-encoding": "gzip"})
            return Response(gzip.decompress(data), media_type=kind)
        return Response((self.files / name).read_bytes(), media_type=STATIC[name])

    async def worklist(self, request: Request) -> Response:
        return JSONResponse(await run_in_threadpool(self._worklist))

    def _worklist(self) -> dict[str, Any]:
        review = self.review
        teacher, segmenting = review.teacher, review.segmenting
        return {
            "scans": [self._entry(entry) for entry in review.worklist.entries()],
            "structures": list(review.worklist.labels),
            "jobs": review.jobs.to_json(),
            "channels": list(review.channels),
            "model": None if teacher is None else teacher.model.resolve().name,
            "folder": str(review.worklist.output),
            "endings": [*TAKEN, ARCHIVE] if segmenting is not None else [],
            "upload_bytes": 0 if segmenting is None else segmenting.upload_bytes,
            "minutes": 0 if teacher is None else teacher.minutes,
        }

    def _entry(self, entry: Entry) -> dict[str, Any]:
        review, record = self.review, entry.record
        state = review.drawings.state(entry.id)
        intervals = record.get("dsc_interval_90") or {}
        return {
            "id": entry.id,
            "status": entry.status,
            "reason": entry.reason,
            "least": entry.least,
            "predicted": dict(record.get("predicted_dsc", {})),
            "intervals": {name: ends for name, ends in intervals.items() if ends is not None},
            "calibrated": record.get("calibrated") is True,
            "volumes_ml": dict(record.get("volume_ml", {})),
            "flags": list(record.get("flags", [])),
            "atlases": [] if review.pictures is None else review.pictures.used(record),
            "remarks": _remarks(record),
            "uncertainty": bool(record) and review.worklist.map_file(record, "uncertainty") is not None,
            "version": state.version,
            "verdict": state.verdict,
            "atlas": state.atlas,
        }

    @_known
    async def image(self, request: Request) -> Response:
        case = await self._case(request)
        channel = request.query_params.get("channel", "0")
        if not channel.isdecimal() or len(channel) > 4:
            raise HTTPException(400, "channel is a number")
        data = await run_in_threadpool(grids.image_for_page, case, int(channel))
        return Response(data, media_type="application/octet-stream")

    @_known
    async def uncertainty(self, request: Request) -> Response:
        case = await self._case(request)
        path = self.review.worklist.map_file(self.review.worklist.record(case.id), "uncertainty")
        if path is None:
            raise HTTPException(404, "this result was made without save_uncertainty=true")
        geometry = await run_in_threadpool(self.review.worklist.geometry, case.id)
        data = await run_in_threadpool(grids.map_for_page, path, geometry)
        return Response(data, media_type="application/octet-stream")

    @_known
    async def drawing(self, request: Request) -> Response:
        case = await self._case(request)
        of = RESULT if request.query_params.get("of") == RESULT else ""

        def read() -> tuple[bytes, str, int, tuple[int, ...]]:
            geometry = self.review.worklist.geometry(case.id)
            label = self.review.worklist.label_file(case.id)
            classes, source, version = self.review.drawings.read(case, label, geometry, of)
            return grids.as_bytes(classes), source, version, grids.page_shape(geometry)

        data, source, version, shape = await run_in_threadpool(read)
        headers = {"etag": f'"{version}"', "x-source": source, "x-shape": ",".join(map(str, shape))}
        return Response(data, media_type="application/octet-stream", headers=headers)

    @_known
    async def keep(self, request: Request) -> Response:
        case, version = await self._case(request), _version(request)
        geometry = await run_in_threadpool(self.review.worklist.geometry, case.id)
        x, y, z = grids.page_shape(geometry)
        data = await _body(request, x * y * z)

        def write() -> int:
            review = self.review
            drawn = grids.from_bytes(data, geometry, len(review.worklist.label_values))
            if request.query_params.get("save") == "true":
                label = review.worklist.label_file(case.id)
                saved = review.drawings.save(case, label, drawn, geometry, version)
                if review.teacher is not None:
                    review.teacher.write_table(review.teacher.corrected())
                return saved.version
            return review.drawings.keep_draft(case, drawn, geometry, version).version

        new = await run_in_threadpool(write)
        return JSONResponse({"version": new}, headers={"etag": f'"{new}"'})

    @_known
    async def decide(self, request: Request) -> Response:
        version = _version(request)
        try:
            verdict = json.loads(await _body(request, JSON_BYTES))["verdict"]
        except (ValueError, KeyError, TypeError):
            raise HTTPException(400, 'send {"verdict": ...}') from None
        if verdict not in ("", ACCEPTED, REJECTED):
            raise HTTPException(400, f"a verdict is {ACCEPTED}, {REJECTED} or empty; a correction is saved as a drawing")
        state = await run_in_threadpool(self.review.drawings.decide, request.path_params["case"], verdict, version)
        return JSONResponse({"version": state.version}, headers={"etag": f'"{state.version}"'})

    @_known
    async def atlas(self, request: Request) -> Response:
        record = self.review.worklist.record(request.path_params["case"])
        if self.review.pictures is None:
            raise HTTPException(404, "no model was given, so its atlases cannot be shown")
        path = await run_in_threadpool(self.review.pictures.picture, record, request.path_params["number"])
        if path is None:
            raise HTTPException(404, "this atlas is not in the model any more")
        return Response(path.read_bytes(), media_type="image/png")

    async def drop(self, request: Request) -> Response:
        segmenting = self.review.segmenting
        if segmenting is None:
            raise HTTPException(404, "no model was given, so nothing can be segmented: start with model=DIR")
        announced = request.headers.get("content-length", "0")
        try:
            if not announced.isdecimal() or int(announced) > segmenting.upload_bytes:
                raise TooLargeError(segmenting.upload_bytes)
            case = await segmenting.take(request.path_params["name"], request.stream())
        except TooLargeError as error:
            raise HTTPException(413, str(error)) from error
        except ClientDisconnect as error:
            raise HTTPException(400, "the connection ended before the file did") from error
        return JSONResponse({"case": case.id}, 201)

    async def teach(self, request: Request) -> Response:
        teacher, jobs = self.review.teacher, self.review.jobs
        works = {} if teacher is None else {"atlases": teacher.add_atlases, "adapt": teacher.adapt}
        how = request.path_params["how"]
        if how not in works:
            raise HTTPException(404, "no such way to teach" if works else "no model was given: start with model=DIR")
        if jobs.busy(how):
            raise HTTPException(409, "this is being done already")
        title = "Make corrected scans atlases" if how == "atlases" else "Train further with corrected scans"
        jobs.add(how, title, works[how])
        return JSONResponse({}, 202)

    async def _case(self, request: Request) -> Any:
        return await run_in_threadpool(self.review.worklist.case, request.path_params["case"])
