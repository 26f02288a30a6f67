"""``oasis-monai review`` as a real process, used as the page uses it."""

import os
import re
import signal
import time

import requests

from tests.helpers.command import Command


class Reviewing:
    """The command, started, with a session that has its token."""

    def __init__(self, *arguments, cwd, seconds=120):
        self.command = Command("review", *arguments, "review.open=false", cwd=cwd)
        self.end = time.monotonic() + seconds
        said = re.compile(r"^review: (http://127.0.0.1:\d+)/\?token=(\S+)$", re.M)
        out = self.command.folder / "out"
        self.address, self.token = self.until(lambda: out.exists() and said.search(out.read_text())).groups()
        self.session = requests.Session()
        self.session.trust_env = False
        self.session.headers["Authorization"] = f"Bearer {self.token}"

    def until(self, look):
        """Wait for what ``look`` finds."""
        while time.monotonic() < self.end and self.command.process.is_alive():
            if found := look():
                return found
            time.sleep(0.1)
        raise AssertionError(f"nothing to see; {self.command.wait(10)}")

    def listing(self):
        return self.session.get(f"{self.address}/api/worklist", timeout=30).json()

    def draw(self, case, save):
        """Draw a bar in the middle of a scan; -> all voxels."""
        path = f"{self.address}/api/scans/{case}/drawing"
        drawing = self.session.get(path, timeout=30)
        x, y, z = map(int, drawing.headers["x-shape"].split(","))
        voxels = bytearray(drawing.content)
        for place in range(x // 2 - 3, x // 2 + 3):
            voxels[place + x * (y // 2) + x * y * (z // 2)] = 1
        headers = {"If-Match": drawing.headers["etag"]}
        answer = self.session.put(f"{path}?save={str(save).lower()}", data=bytes(voxels), headers=headers, timeout=30)
        assert answer.status_code == 200, answer.text
        return bytes(voxels)

    def interrupt(self):
        """Ctrl-C; -> what it left as a command."""
        os.kill(self.command.process.pid, signal.SIGINT)
        return self.command.wait()


def review_and_correct(*arguments, cwd):
    """Start the command, wait until its scans are segmented, correct the first one, and end it; -> what it left as a command."""
    words = [word for word in arguments if word != "review"]
    reviewing = Reviewing(*words, cwd=cwd)
    reviewing.until(lambda: all(job["status"] == "done" for job in reviewing.listing()["jobs"]))
    reviewing.draw(reviewing.listing()["scans"][0]["id"], save=True)
    return reviewing.interrupt()
