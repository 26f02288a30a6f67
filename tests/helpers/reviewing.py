"""``oasis-monai review`` as a real process, used as the page uses it."""

import os
import re
import signal
import time

import requests

from tests.helpers.command import Command


def review_and_correct(*arguments, cwd, seconds=120):
    """Start the command, wait until its scans are segmented, correct the first one, and end it; -> what it left as a command."""
    command = Command(*arguments, "review.open=false", cwd=cwd)
    out = command.folder / "out"
    end = time.monotonic() + seconds

    def until(look):
        while time.monotonic() < end and command.process.is_alive():
            if found := look():
                return found
            time.sleep(0.1)
        raise AssertionError(f"nothing to see; {command.wait(10)}")

    address, token = until(lambda: re.search(r"^review: (http://127.0.0.1:\d+)/\?token=(\S+)$", out.read_text(), re.M)).groups()
    session = requests.Session()
    session.trust_env = False
    session.headers["Authorization"] = f"Bearer {token}"

    def listing():
        return session.get(f"{address}/api/worklist", timeout=30).json()

    until(lambda: all(job["status"] == "done" for job in listing()["jobs"]))
    first = listing()["scans"][0]
    drawing = session.get(f"{address}/api/scans/{first['id']}/drawing", timeout=30)
    x, y, z = map(int, drawing.headers["x-shape"].split(","))
    voxels = bytearray(drawing.content)
    for place in range(x // 2 - 3, x // 2 + 3):
        voxels[place + x * (y // 2) + x * y * (z // 2)] = 1
    path = f"{address}/api/scans/{first['id']}/drawing?save=true"
    answer = session.put(path, data=bytes(voxels), headers={"If-Match": drawing.headers["etag"]}, timeout=30)
    assert answer.status_code == 200, answer.text
    os.kill(command.process.pid, signal.SIGINT)
    return command.wait()
