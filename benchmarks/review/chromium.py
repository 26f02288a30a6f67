"""Drive an installed Chromium without a window, by its DevTools protocol. WebGL is computed on the CPU (SwiftShader).

Protocol: https://chromedevtools.github.io/devtools-protocol/
"""

from __future__ import annotations

import base64
import contextlib
import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    *("--headless=new", "--no-sandbox", "--no-first-run", "--disable-extensions", "--disable-background-networking"),
    *("--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--hide-scrollbars", "--disable-dev-shm-usage"),
    "--remote-debugging-port=0",
)


def find_chromium() -> str | None:
    """The path of a Chromium, None where there is none."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Page:
    """One tab.

    Args:
        address: of its DevTools.
    """

    def __init__(self, address: str) -> None:
        from websockets.sync.client import connect

        self._open = contextlib.ExitStack()
        self._socket = self._open.enter_context(connect(address, max_size=2**28, proxy=None))
        self._number = 0
        self.said: list[str] = []
        for domain in ("Page", "Runtime", "Log"):
            self.send(f"{domain}.enable")

    def send(self, method: str, timeout: float = 60.0, **params: Any) -> dict[str, Any]:
        """Call a method and return its result; what the page says meanwhile is added to :attr:`said`.

        Raises:
            RuntimeError: the browser refuses it.
            TimeoutError: no answer.
        """
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": params}))
        end = time.monotonic() + timeout
        while True:
            told = json.loads(self._socket.recv(timeout=max(0.1, end - time.monotonic())))
            self._note(told)
            if told.get("id") == self._number:
                if "error" in told:
                    raise RuntimeError(f"{method}: {told['error']['message']}")
                return dict(told["result"])

    def _note(self, told: dict[str, Any]) -> None:
        params = told.get("params", {})
        if told.get("method") == "Runtime.exceptionThrown":
            details = params["exceptionDetails"]
            self.said.append(f"exception: {details.get('exception', {}).get('description', details['text'])}")
        elif told.get("method") == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.said.append(f"{params['entry']['text']} {params['entry'].get('url', '')}")
        elif told.get("method") == "Runtime.consoleAPICalled" and params["type"] == "error":
            self.said.append(" ".join(str(one.get("value", one.get("description"))) for one in params["args"]))
        elif told.get("method") == "Page.javascriptDialogOpening":  # leaving with something unsaved
            self._number += 1
            call = {"id": self._number, "method": "Page.handleJavaScriptDialog", "params": {"accept": True}}
            self._socket.send(json.dumps(call))

    def run(self, script: str) -> Any:
        """The value of an expression of JavaScript, awaited.

        Raises:
            RuntimeError: it throws.
        """
        done = self.send("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in done:
            details = done["exceptionDetails"]
            raise RuntimeError(details.get("exception", {}).get("description", details["text"]))
        return done["result"].get("value")

    def wait(self, script: str, seconds: float = 60.0) -> None:
        """Wait until an expression is true.

        Raises:
            TimeoutError: it never is.
        """
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            with contextlib.suppress(RuntimeError):  # the page is being loaded
                if self.run(f"Boolean({script})"):
                    return
            time.sleep(0.1)
        raise TimeoutError(f"{script} is not true after {seconds:g} s; the page said {self.said[-5:]}")

    def go(self, address: str) -> None:
        """Open an address."""
        self.send("Page.navigate", url=address)

    def resize(self, width: int, height: int, touch: bool = False) -> None:
        """The size of the window."""
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.send("Emulation.setTouchEmulationEnabled", enabled=touch)

    def press(self, key: str, control: bool = False) -> None:
        """Press a key."""
        text = key if len(key) == 1 and not control else ""
        self.send("Input.dispatchKeyEvent", type="keyDown", key=key, modifiers=2 if control else 0, text=text)
        self.send("Input.dispatchKeyEvent", type="keyUp", key=key, modifiers=2 if control else 0)

    def drag(self, points: list[tuple[float, float]]) -> None:
        """Draw a line with the mouse's left button."""
        for number, (x, y) in enumerate(points):
            kind = "mousePressed" if number == 0 else "mouseMoved"
            if number == 0:
                self.send("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
            self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", buttons=1, clickCount=1)
        x, y = points[-1]
        self.send("Input.dispatchMouseEvent", type="mouseReleased", x=x, y=y, button="left", buttons=0, clickCount=1)

    def swipe(self, points: list[tuple[float, float]]) -> None:
        """Draw a line with a finger."""
        for number, (x, y) in enumerate(points):
            kind = "touchStart" if number == 0 else "touchMove"
            self.send("Input.dispatchTouchEvent", type=kind, touchPoints=[{"x": x, "y": y}])
            time.sleep(0.05)
        self.send("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])

    def give_file(self, selector: str, path: Path) -> None:
        """Choose a file in an ``input`` of the page."""
        root = self.send("DOM.getDocument")["root"]["nodeId"]
        node = self.send("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.send("DOM.setFileInputFiles", nodeId=node, files=[str(path)])

    def picture(self) -> bytes:
        """A PNG of the window."""
        return base64.b64decode(self.send("Page.captureScreenshot", format="png", timeout=120)["data"])

    def close(self) -> None:
        """Close the connection."""
        self._open.close()


class Browser:
    """A browser that runs.

    Args:
        port: of its DevTools.
    """

    def __init__(self, port: int) -> None:
        self.port = port

    def tab(self) -> Page:
        """A new tab."""
        with urlopen(f"http://127.0.0.1:{self.port}/json/version") as answer:
            address = json.load(answer)["webSocketDebuggerUrl"]
        made = _ask(address, "Target.createTarget", url="about:blank")["targetId"]
        return Page(f"ws://127.0.0.1:{self.port}/devtools/page/{made}")


def _ask(address: str, method: str, **params: Any) -> Any:
    from websockets.sync.client import connect

    with connect(address, proxy=None) as socket:
        socket.send(json.dumps({"id": 1, "method": method, "params": params}))
        while (told := json.loads(socket.recv(timeout=30))).get("id") != 1:
            pass
    return told["result"]


@contextlib.contextmanager
def chromium(seconds: float = 60.0) -> Iterator[Browser]:
    """A Chromium with a profile of its own, ended afterwards.

    Raises:
        FileNotFoundError: there is none.
        TimeoutError: it does not start.
    """
    program = find_chromium()
    if program is None:
        raise FileNotFoundError(f"expected one of {', '.join(NAMES)}, found none; install Chromium")
    with tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True) as profile:
        process = subprocess.Popen(
            [program, *FLAGS, f"--user-data-dir={profile}", "about:blank"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            yield Browser(_port(Path(profile) / "DevToolsActivePort", process, seconds))
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(10)


def _port(file: Path, process: Any, seconds: float) -> int:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if process.poll() is not None:
            raise TimeoutError(f"Chromium ended with code {process.returncode}")
        with contextlib.suppress(OSError, IndexError, ValueError):
            return int(file.read_text(encoding="utf-8").splitlines()[0])
        time.sleep(0.1)
    raise TimeoutError(f"Chromium did not start in {seconds:g} s")
