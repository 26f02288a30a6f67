"""Who may talk to the page: this machine's user alone.

The server listens on 127.0.0.1, where every web site that the browser has open may send requests too. A request must name the
host that the server has (a site that points its own name at 127.0.0.1 does not), carry the token (in the address of the first
visit, then in a cookie that no other site's request brings along), and not come from another site's page.
"""

from __future__ import annotations

import hmac
import json
import os
import secrets
from http.cookies import CookieError, SimpleCookie
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

HOSTS = ("127.0.0.1", "localhost")
SAFE = ("GET", "HEAD")
HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; "
        "connect-src 'self' data: blob:; worker-src 'self' blob:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}
"""Of every answer: nothing from elsewhere, nothing kept by the browser (scans are of patients)."""


class Access:
    """ASGI middleware that lets in whoever has the token.

    Args:
        app: what answers.
        token: the secret.
        port: of the server.
    """

    def __init__(self, app: Any, token: str, port: int) -> None:
        self.app, self.token, self.port = app, token, port
        self.cookie = f"oasis_review_{port}"  # cookies do not know ports
        self.hosts = {f"{host}:{port}" for host in HOSTS}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer one request, or refuse it."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        refusal = self._foreign(scope["method"], headers)
        if refusal is not None:
            await _answer(send, 403, refusal)
            return
        given = parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[0]
        if scope["path"] == "/" and scope["method"] in SAFE and self._right(given):
            cookie = f"{self.cookie}={self.token}; Path=/; HttpOnly; SameSite=Strict"
            await _answer(send, 303, "", {"location": "/", "set-cookie": cookie})  # out of the address and the history
            return
        bearer = headers.get("authorization", "")
        if not (self._right(_cookie(headers.get("cookie", ""), self.cookie)) or self._right(bearer.removeprefix("Bearer "))):
            remedy = "open the address that the command printed, with its token"
            await _answer(send, 401, f"no token, or a wrong one: {remedy}")
            return
        await self.app(scope, receive, _with_headers(send))

    def _foreign(self, method: str, headers: dict[str, str]) -> str | None:
        """Why a request comes from another site, None where it does not."""
        if headers.get("host", "").lower() not in self.hosts:
            return "this page is served to 127.0.0.1 alone"
        origin = headers.get("origin")
        if origin is not None and origin.lower() not in {f"http://{host}" for host in self.hosts}:
            return "a page of another site may not talk to this one"
        if method not in SAFE and headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
            return "a page of another site may not change anything here"
        return None

    def _right(self, given: str) -> bool:
        return hmac.compare_digest(given.encode(), self.token.encode())


def _cookie(text: str, name: str) -> str:
    try:
        found = SimpleCookie(text).get(name)
    except CookieError:
        return ""
    return "" if found is None else found.value


async def _answer(send: Any, status: int, text: str, more: dict[str, str] | None = None) -> None:
    body = json.dumps({"error": text}).encode()
    headers = {**HEADERS, "content-type": "application/json", "content-length": str(len(body)), **(more or {})}
    pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": pairs})
    await send({"type": "http.response.body", "body": body})


def _with_headers(send: Any) -> Any:
    async def sending(message: Any) -> None:
        if message["type"] == "http.response.start":
            own = {name.lower() for name, _ in message["headers"]}
            more = [(name.encode(), value.encode()) for name, value in HEADERS.items() if name.encode() not in own]
            message = {**message, "headers": [*message["headers"], *more]}
        await send(message)

    return sending


def keep_token(file: Path) -> tuple[str, int]:
    """The token and port of this folder's server: those of before, so that a page that is still open goes on after a restart.

    Args:
        file: where they are kept, for its owner alone; another user's file, or one that others may read, does not count.

    Returns:
        The token, and the port to try (0: any).
    """
    try:
        with open(file, encoding="utf-8") as stream:
            stat = os.fstat(stream.fileno())
            found = json.load(stream)
        token, port = found["token"], found["port"]
        private = stat.st_uid == os.getuid() and stat.st_mode & 0o077 == 0
        if private and isinstance(token, str) and len(token) >= 32 and isinstance(port, int) and 1024 <= port < 65536:
            return token, port
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return secrets.token_urlsafe(32), 0


def write_token(file: Path, token: str, port: int) -> None:
    """Keep what :func:`keep_token` reads."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.unlink(missing_ok=True)
    handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(handle, "w", encoding="utf-8") as stream:
        json.dump({"token": token, "port": port}, stream)
