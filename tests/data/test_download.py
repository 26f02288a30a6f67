"""Public data sets against a server of our own that cuts, lies and fails, and archives that mean harm."""

import hashlib
import http.server
import io
import json
import os
import shutil
import stat
import struct
import tarfile
import threading
import zipfile
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import pytest

from oasis_monai.data import download as module
from oasis_monai.data.archives import LARGEST_READ, Limits, unpack
from oasis_monai.data.cases import find_cases
from oasis_monai.data.download import SOURCES, download, find_source
from oasis_monai.utils.errors import ConfigError, DataError, OasisError
from tests.helpers.command import run

FAST = (0.0, 0.0, 0.0)
RANDOM = bytes(os.urandom(300_000))


def quiet(_):
    """No log."""


class Server(http.server.ThreadingHTTPServer):
    """Serves ``files`` (path -> bytes); ``plan`` says, request by request, what goes wrong; ``asked`` keeps the ranges."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.plan, self.asked = {}, [], []
        self.base = f"http://127.0.0.1:{self.server_port}"


class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *_):
        """Silence."""

    def do_GET(self):
        wanted = self.headers.get("Range")
        self.server.asked.append(wanted)
        what = self.server.plan.pop(0) if self.server.plan else "fine"
        body = self.server.files.get(self.path)
        if isinstance(what, int) or body is None:
            self.send_error(what if isinstance(what, int) else 404)
            return
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and "no range" not in what else 0
        if start >= len(body):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(body)}")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        start = 0 if what == "wrong range" else start
        if wanted and "no range" not in what:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        if what != "no length":
            self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        half = start + (len(body) - start) // 2
        self.wfile.write(body[start:half] if "cut" in what else body[start:])


@pytest.fixture
def server():
    made = Server()
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield made
    made.shutdown()
    made.server_close()
    thread.join()


def zipped(files, packing=zipfile.ZIP_DEFLATED):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", packing) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return out.getvalue()


def tarred(*members, mode="w"):
    """Members are (name, content) or TarInfo."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as archive:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                archive.addfile(info, io.BytesIO(member[1]))
    return out.getvalue()


CASES = {f"training_data/Case0{i}{end}": RANDOM[:50_000] for i in range(2) for end in (".mhd", ".raw", "_segmentation.mhd")}


@pytest.fixture
def source(server):
    """PROMISE12 as this server has it."""
    body = zipped(CASES)
    server.files["/training_data.zip"] = body
    return find_source("promise12", {"url": server.base, "md5": hashlib.md5(body).hexdigest()})


def fetch(source, output, **more):
    return download(source, output, **{"accept_license": True, "waits_s": FAST, "progress": False, "log": quiet, **more})


def content_of(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != "source.json"}


WANTED = {name.removeprefix("training_data/"): content for name, content in CASES.items()}


def test_a_data_set_is_there_whole_and_the_second_run_says_so(server, source, tmp_path):
    folder = fetch(source, tmp_path / "new" / "data")
    assert folder == tmp_path / "new" / "data" / "training_data"
    assert content_of(folder) == WANTED
    assert [case.id for case in find_cases(folder.parent, "promise12")] == ["Case00", "Case01"]
    told = json.loads((folder / "source.json").read_text())
    assert (told["md5"], told["url"]) == (source.md5, f"{server.base}/training_data.zip")
    assert "must cite" in told["licence"]
    assert {p.name for p in folder.parent.iterdir()} == {"training_data", ".lock"}
    lines = []
    assert fetch(source, folder.parent, accept_license=False, log=lines.append) == folder
    assert len(server.asked) == 1
    assert lines == [f"PROMISE12 is already in {folder}"]


@pytest.mark.parametrize(
    ("plan", "asked"),
    [
        ([], ["bytes=1000-"]),
        (["no range"], ["bytes=1000-"]),
        (["wrong range"], ["bytes=1000-", None]),
        (["no length"], ["bytes=1000-"]),
        ([503, 500, 429], ["bytes=1000-"] * 4),
    ],
)
def test_a_part_is_gone_on_with(server, source, tmp_path, plan, asked):
    (tmp_path / "training_data.zip.part").write_bytes(server.files["/training_data.zip"][:1000])
    server.plan = plan
    assert content_of(fetch(source, tmp_path)) == WANTED
    assert server.asked == asked
    assert not list(tmp_path.glob("*.part"))


def test_a_part_that_is_complete_needs_no_byte_more(server, source, tmp_path):
    (tmp_path / "training_data.zip.part").write_bytes(server.files["/training_data.zip"])
    assert content_of(fetch(source, tmp_path)) == WANTED
    assert server.asked == []


@pytest.mark.parametrize("part", [b"something else", b"x" * 10**6])
def test_a_part_of_another_file_is_downloaded_anew(server, source, tmp_path, part):
    (tmp_path / "training_data.zip.part").write_bytes(part)
    assert content_of(fetch(source, tmp_path)) == WANTED
    assert server.asked[-1] is None


def test_a_connection_cut_again_and_again_is_resumed(server, source, tmp_path):
    server.plan = ["cut"] * 6  # more often than there are waits: bytes arrived every time
    assert content_of(fetch(source, tmp_path)) == WANTED
    starts = [int(r[6:-1]) for r in server.asked[1:]]
    assert starts == sorted(set(starts))
    assert len(starts) == 6


def test_a_connection_that_is_cut_for_good_leaves_a_part_to_go_on_with(server, source, tmp_path):
    server.plan = ["cut", *[502] * 4]
    with pytest.raises(OasisError, match=r"failed: HTTP 502 .*run the command again to continue"):
        fetch(source, tmp_path)
    size = (tmp_path / "training_data.zip.part").stat().st_size
    assert 0 < size < len(server.files["/training_data.zip"])
    assert content_of(fetch(source, tmp_path)) == WANTED
    assert server.asked[-1] == f"bytes={size}-"


def test_a_server_without_ranges_that_always_cuts_ends(server, source, tmp_path):
    server.plan = ["no range, cut"] * 50
    with pytest.raises(OasisError, match="the connection ended too early"):
        fetch(source, tmp_path)
    assert len(server.asked) < 10


@pytest.mark.parametrize(("code", "tries"), [(404, 1), (403, 1), (500, 4), (503, 4)])
def test_http_errors(server, source, tmp_path, code, tries):
    server.plan = [code] * 10
    with pytest.raises(OasisError) as error:
        fetch(source, tmp_path)
    line = str(error.value)
    assert line.startswith(f"download of {source.url} failed: HTTP {code} ")
    assert source.page in line
    assert str(tmp_path) in line
    assert len(server.asked) == tries
    assert not (tmp_path / "training_data").exists()


def test_without_a_network_one_line_says_where_to_get_it_by_hand(source, tmp_path):
    (tmp_path / "free").mkdir()
    gone = replace(source, url="http://127.0.0.1:9/training_data.zip")
    lines = []
    with pytest.raises(OasisError) as error:
        fetch(gone, tmp_path, log=lines.append)
    (line,) = str(error.value).splitlines()
    assert "Connection refused" in line
    assert f"download training_data.zip from {SOURCES['promise12'].page} yourself, put it into {tmp_path}" in line
    assert sum("next try in" in text for text in lines) == len(FAST)


def test_an_archive_fetched_by_hand_is_used_and_kept(server, source, tmp_path):
    by_hand = tmp_path / "training_data.zip"
    by_hand.write_bytes(server.files["/training_data.zip"][:-1])
    with pytest.raises(DataError, match=rf"training_data\.zip: expected md5 {source.md5}, found .*; remove it and run again"):
        fetch(source, tmp_path)
    by_hand.write_bytes(server.files["/training_data.zip"])
    assert content_of(fetch(source, tmp_path)) == WANTED
    assert by_hand.exists()
    assert server.asked == []


def test_a_file_that_is_not_the_published_one_is_not_unpacked(server, source, tmp_path):
    wrong = replace(source, md5="0" * 32)
    with pytest.raises(DataError, match=f"expected md5 {'0' * 32}, found {source.md5}"):
        fetch(wrong, tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {".lock"}
    assert len(server.asked) == 1


def test_what_is_there_and_not_ours_is_left_alone(source, tmp_path):
    (tmp_path / "training_data").mkdir()
    (tmp_path / "training_data" / "mine").write_text("x")
    with pytest.raises(DataError, match=r"found a folder without source\.json"):
        fetch(source, tmp_path)
    (tmp_path / "training_data" / "source.json").write_text(json.dumps({"md5": "other", "name": "Other"}))
    with pytest.raises(DataError, match="found Other"):
        fetch(source, tmp_path)
    assert (tmp_path / "training_data" / "mine").exists()


Usage = namedtuple("Usage", "total used free")


@pytest.mark.parametrize("times", [1, 1.9])
def test_a_disk_too_small_is_told_before_the_download(server, source, tmp_path, monkeypatch, times):
    size = len(server.files["/training_data.zip"])
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(0, 0, int(times * size)))
    with pytest.raises(DataError, match=r"GB free for training_data\.zip and its content, found 0\.00 GB"):
        fetch(source, tmp_path)
    assert not any(part.stat().st_size for part in tmp_path.glob("*.part"))


@pytest.mark.slow
def test_a_disk_that_fills_up_is_one_line_and_the_same_command_goes_on(server, source, tmp_path):
    words = ("download", "data=promise12", f"download.url={server.base}", f"download.md5={source.md5}", "output=d")
    done = run(*words, "accept_license=true", cwd=tmp_path, file_bytes=10_000)
    assert done.code == 2
    assert len(done.err.splitlines()) == 1
    assert "training_data.zip.part: File too large. Free some space" in done.err
    assert content_of(fetch(source, tmp_path / "d")) == WANTED
    assert server.asked[1] == "bytes=10000-"


def test_a_disk_that_fills_up_while_unpacking_leaves_nothing_half_done(server, source, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("oasis_monai.data.archives.shutil.copyfileobj", full)
        with pytest.raises(OSError, match="No space left") as error:
            fetch(source, tmp_path)
    assert error.value.filename == str(tmp_path / "training_data")
    assert {p.name for p in tmp_path.iterdir()} == {".lock", "training_data.zip.part"}
    assert content_of(fetch(source, tmp_path)) == WANTED
    assert len(server.asked) == 1  # nothing was downloaded again


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(("answer", "accepted"), [("y\n", True), (" YES \n", True), ("n\n", False), ("\n", False), ("", False)])
def test_a_person_at_a_terminal_is_asked(source, tmp_path, monkeypatch, capsys, answer, accepted):
    monkeypatch.setattr("sys.stdin", Terminal(answer))
    if accepted:
        assert fetch(source, tmp_path, accept_license=False, log=print).is_dir()
    else:
        with pytest.raises(ConfigError, match=r"^accept_license: expected true, to accept the licence of PROMISE12"):
            fetch(source, tmp_path, accept_license=False, log=print)
    out = capsys.readouterr().out
    assert out.index("no redistribution") < out.index("Litjens") < out.index("Do you accept this licence? [y/n]")


def test_without_a_terminal_the_licence_has_to_be_accepted_by_key(server, source, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    with pytest.raises(ConfigError, match=r"^accept_license: .*add accept_license=true"):
        fetch(source, tmp_path, accept_license=False)
    assert server.asked == []


@pytest.mark.slow
def test_by_the_command_line(server, source, tmp_path):
    words = ("download", "data=promise12", f"download.url={server.base}", f"download.md5={source.md5}", "output=d")
    done = run(*words, cwd=tmp_path)
    assert done.code == 2
    assert done.err.startswith("error: accept_license: expected true")
    assert "no redistribution" in done.out
    done = run(*words, "accept_license=true", cwd=tmp_path)
    assert (done.code, done.err) == (0, "")
    assert done.out.splitlines()[-1] == f"data: {Path('d') / 'training_data'}"
    assert content_of(tmp_path / "d" / "training_data") == WANTED
    (tmp_path / "other").mkdir()
    done = run("download", "data=promise12", f"download.url={server.base}/x.zip", "output=o", "accept_license=true", cwd=tmp_path)
    assert done.code == 2
    assert len(done.err.splitlines()) == 1
    assert done.err.startswith(f"error: download of {server.base}/x.zip failed: HTTP 404")


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (
            ["output=o"],
            "error: data.source: expected a data set to download, one of promise12, promise12-test, Task01_BrainTumour",
        ),
        (["msd=Task99"], "error: output: expected the folder to put the data set in"),
        (["msd=Task99", "output=o"], "error: data.source: expected a data set to download"),
        (["data=promise12", "download.url=file:///etc/passwd"], "error: download.url: expected an address that starts with http"),
        (["data=promise12", "accept_license=perhaps"], "error: accept_license: expected true or false"),
    ],
)
def test_what_cannot_work_is_one_line(tmp_path, words, match):
    done = run("download", *words, cwd=tmp_path)
    assert done.code == 2
    assert done.err.startswith(match)
    assert len(done.err.splitlines()) == 1


def test_the_decathlon_is_as_monai_has_it():
    from monai.apps import DecathlonDataset

    for task, url in DecathlonDataset.resource.items():
        found = find_source(task)
        assert (found.url, found.md5, found.folder) == (url, DecathlonDataset.md5[task], task)
        assert found.licence == "CC-BY-SA 4.0"
    moved = find_source("Task04_Hippocampus", {"url": "https://mirror.example/a/"})
    assert moved.url == "https://mirror.example/a/Task04_Hippocampus.tar"
    assert moved.md5 == DecathlonDataset.md5["Task04_Hippocampus"]


@pytest.mark.parametrize(
    "mirror", [{"url": "ftp://a/b.zip"}, {"url": "http:///b.zip"}, {"url": 5}, {"md5": "x"}, {"sha": "1"}, 7]
)
def test_a_mirror_that_is_none(mirror):
    with pytest.raises(ConfigError, match=r"^download"):
        find_source("promise12", mirror)


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_a_decathlon_archive(server, tmp_path, mode):
    names = ["./Task04_Hippocampus/imagesTr/a.nii.gz", "./Task04_Hippocampus/labelsTr/a.nii.gz", "./._Task04_Hippocampus"]
    folder = tarfile.TarInfo("./Task04_Hippocampus")
    folder.type = tarfile.DIRTYPE
    body = tarred(folder, *((name, RANDOM[:999]) for name in names), mode=mode)
    server.files["/Task04_Hippocampus.tar"] = body
    source = find_source("Task04_Hippocampus", {"url": server.base, "md5": hashlib.md5(body).hexdigest()})
    found = fetch(source, tmp_path)
    assert sorted(content_of(found)) == ["imagesTr/a.nii.gz", "labelsTr/a.nii.gz"]
    assert [case.id for case in find_cases(tmp_path, "msd")] == ["a"]


# archives that mean harm


def link(name, target, kind):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def zip_link():
    info = zipfile.ZipInfo("link")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return zipped({info: "/etc/passwd"})


def encrypted():
    body = bytearray(zipped({"a": b"x"}))
    for signature, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        body[body.index(signature) + at] |= 1
    return bytes(body)


def lying_size():
    """The directory says 1 byte, the content is more."""
    body = bytearray(zipped({"a": b"x" * 100}, zipfile.ZIP_STORED))
    body[body.index(b"PK\x01\x02") + 24 : body.index(b"PK\x01\x02") + 28] = struct.pack("<I", 1)
    return bytes(body)


def long_header():
    """A header that says its text is gigabytes long."""
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, LARGEST_READ * 100
    return info.tobuf() + bytes(2**16)


def many(count):
    return zipped({str(i): b"" for i in range(count)})


HOSTILE = {
    "zip up": (zipped({"good": b"1", "../up": b"x"}), "a path within the archive"),
    "zip deep up": (zipped({"a/../../up": b"x"}), "a path within the archive"),
    "zip absolute": (zipped({"/tmp/absolute": b"x"}), "a path within the archive"),
    "zip backslash": (zipped({"..\\up": b"x"}), "a path within the archive"),
    "zip drive": (zipped({"C:/up": b"x"}), "a path within the archive"),
    "zip link": (zip_link(), "a file or a folder, found a link"),
    "zip encrypted": (encrypted(), "not encrypted"),
    "zip bomb": (zipped({"zeros": bytes(2**25)}), "bytes unpacked for a byte"),
    "zip bomb of many": (zipped({str(i): bytes(2**20) for i in range(40)}), "bytes unpacked for a byte"),
    "tar up": (tarred(("good", b"1"), ("../up", b"x")), "a path within the archive"),
    "tar nameless": (tarred(("./", b"x")), "a path within the archive"),
    "tar absolute": (tarred(("/tmp/absolute", b"x")), "a path within the archive"),
    "tar symlink": (tarred(("good", b"1"), link("s", "..", tarfile.SYMTYPE), ("s/x", b"x")), "found a link"),
    "tar hardlink": (tarred(("good", b"1"), link("h", "good", tarfile.LNKTYPE)), "found a link"),
    "tar device": (tarred(link("d", "", tarfile.CHRTYPE)), "found a link, device or pipe"),
    "tar pipe": (tarred(link("d", "", tarfile.FIFOTYPE)), "found a link, device or pipe"),
    "tar gz bomb": (tarred(("zeros", bytes(2**25)), mode="w:gz"), "bytes unpacked for a byte"),
    "tar header bomb": (long_header(), "a complete archive, found a header of"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_archive_is_refused_before_a_byte_is_written(server, tmp_path, name):
    body, match = HOSTILE[name]
    server.files["/training_data.zip"] = body
    source = find_source("promise12", {"url": server.base, "md5": hashlib.md5(body).hexdigest()})
    with pytest.raises(DataError, match=match) as error:
        fetch(source, tmp_path / "out")
    assert len(str(error.value).splitlines()) == 1
    assert {p.name for p in tmp_path.rglob("*")} == {"out", ".lock", "training_data.zip.part"}
    assert not Path("/tmp/absolute").exists()


@pytest.mark.parametrize(
    ("body", "limits", "match"),
    [
        (many(11), Limits(count=10), "at most 10 entries"),
        (zipped({"a": RANDOM}), Limits(total=1000), "GB unpacked, found more"),
        (lying_size(), Limits(), "a complete archive"),
        (zipped({"a": RANDOM})[:-100], Limits(), "a complete archive"),
        (tarred(("a", RANDOM))[:5000], Limits(), "a complete archive"),
        (tarred(("a", RANDOM), mode="w:gz")[:5000], Limits(), "a complete archive"),
        (b"PK" + bytes(100), Limits(), "a complete archive"),
        (b"<html>not found</html>" * 100, Limits(), "a complete archive"),
        (tarred(("a", b"1"), ("./a", b"2")), Limits(), "every path once"),
        (tarred(("a", b"1"), ("a/b", b"2")), Limits(), "every path once"),
    ],
)
def test_limits_and_damage(tmp_path, body, limits, match):
    (tmp_path / "x").write_bytes(body)
    with pytest.raises(DataError, match=match):
        unpack(tmp_path / "x", tmp_path / "out", limits)


def test_what_is_unpacked_has_no_mode_of_the_archives(tmp_path):
    info = tarfile.TarInfo("run")
    info.mode = 0o4777
    (tmp_path / "x.tar").write_bytes(tarred(info, ("sub/deep/file", b"1")))
    unpack(tmp_path / "x.tar", tmp_path / "out")
    assert not (tmp_path / "out" / "run").stat().st_mode & 0o7111
    assert (tmp_path / "out" / "sub" / "deep" / "file").read_bytes() == b"1"


def test_all_failures_are_for_the_user():
    assert issubclass(DataError, OasisError)
    assert all(wait > 0 for wait in module.WAITS_S)
