"""Files: whole or not at all whatever happens in between, and never believed when a byte of them has changed."""

import errno
import multiprocessing
import os
import pickle
import time
from pathlib import Path

import pytest
import torch

from oasis_monai.utils.errors import ConfigError, system_error_message
from oasis_monai.utils.files import atomic_path, exclusive_folder, write_json, write_text
from oasis_monai.utils.tensor_files import load_if_whole, load_tensors, save_tensors

FORK = multiprocessing.get_context("fork" if hasattr(os, "fork") else "spawn")
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs POSIX processes")
TENSORS = {"a": torch.arange(600.0).reshape(20, 30), "b": torch.tensor([1, 2])}
META = {"step": 3}


@pytest.fixture
def kept(tmp_path):
    path = tmp_path / "kept.safetensors"
    save_tensors(path, TENSORS, META)
    return path


def test_what_is_kept_comes_back(kept):
    tensors, meta = load_tensors(kept)
    assert meta == META
    assert all(torch.equal(tensors[k], v) for k, v in TENSORS.items())
    assert tensors.keys() == TENSORS.keys()


def test_every_damage_is_noticed_and_told_once(kept, caplog):
    """The file at many lengths, and with a bit flipped at many places: none of it is read as if it were whole."""
    whole = kept.read_bytes()
    for size in range(0, len(whole), 37):
        kept.write_bytes(whole[:size])
        assert load_if_whole(kept) is None
    for at in range(0, len(whole), 23):
        changed = bytearray(whole)
        changed[at] ^= 1 << (at % 8)
        kept.write_bytes(changed)
        assert load_if_whole(kept) is None
    kept.write_bytes(whole + b"\0")
    assert load_if_whole(kept) is None
    with pytest.raises(ValueError, match=r"kept\.safetensors: expected the content of its sha256, found other bytes; delete it"):
        load_tensors(kept)
    (record,) = caplog.records
    assert record.getMessage().startswith(f"warning: {kept} is damaged")
    kept.write_bytes(whole)
    assert load_if_whole(kept)[1] == META


def test_what_is_not_there_is_no_warning(tmp_path, caplog):
    assert load_if_whole(tmp_path / "absent.safetensors") is None
    assert caplog.records == []


class Payload:
    """Unpickled, it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (Path(self.path),))


@pytest.mark.parametrize("how", ["pickle", "torch"])
def test_a_pickle_in_the_place_of_a_checkpoint_is_not_run(kept, tmp_path, how):
    trap = tmp_path / "trap"
    if how == "pickle":
        kept.write_bytes(pickle.dumps(Payload(trap)))
    else:
        torch.save({"model": Payload(trap)}, kept)
    assert load_if_whole(kept) is None
    assert not trap.exists()
    pickle.loads(pickle.dumps(Payload(trap)))  # the trap does work
    assert trap.exists()


@pytest.mark.parametrize(
    "write", [lambda p: write_text(p, "new"), lambda p: write_json(p, {"new": 1}), lambda p: save_tensors(p, {})]
)
def test_a_full_disk_keeps_the_old_file_and_names_it(tmp_path, monkeypatch, write):
    path = tmp_path / "result"
    path.write_text("old")

    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left on device") as caught:
        write(path)
    assert system_error_message(caught.value) == (
        f"cannot read or write {path}: No space left on device. "
        "Free some space and run the same command again; finished work is kept."
    )
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {"result": "old"}


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file") as caught:
        write_text(tmp_path / "file" / "result", "new")
    assert str(tmp_path / "file") in system_error_message(caught.value)
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    with pytest.raises(PermissionError) as caught:
        write_text(closed / "result", "new")
    assert system_error_message(caught.value).startswith(f"cannot read or write {closed / 'result'}: Permission denied.")


def keep_writing(path):
    """Writes ever higher numbers until it is killed."""
    stored = load_if_whole(path)
    number = stored[1]["number"] if stored else 0
    while True:
        number += 1
        save_tensors(path, {"a": torch.full((50_000,), float(number))}, {"number": number})


@needs_fork
def test_killed_while_it_writes_the_file_is_the_old_one_or_the_new_one(tmp_path):
    """A process that only writes, killed again and again: what is there is always whole, and never goes back."""
    path, seen = tmp_path / "out" / "kept.safetensors", [0]
    for kill in range(8):
        process = FORK.Process(target=keep_writing, args=(path,))
        process.start()
        deadline = time.monotonic() + 60
        while not path.exists() or load_tensors(path)[1]["number"] == seen[-1]:  # whole whenever it is looked at
            assert time.monotonic() < deadline
        time.sleep(0.002 * kill)
        process.kill()
        process.join()
        tensors, meta = load_tensors(path)
        assert bool((tensors["a"] == meta["number"]).all())
        assert meta["number"] > seen[-1]
        seen.append(meta["number"])


def test_an_interrupt_in_a_write_leaves_nothing_behind(tmp_path):
    path = tmp_path / "result"

    def interrupted():
        with atomic_path(path) as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []


# Two runs in one folder -----------------------------------------------------------------------------------------------------


def hold(folder, held):
    with exclusive_folder(folder, "output"):
        held.set()
        time.sleep(60)


@needs_fork
def test_a_folder_has_one_run_at_a_time_and_is_free_when_that_ends_however_it_ends(tmp_path):
    folder, held = tmp_path / "out", FORK.Event()
    holder = FORK.Process(target=hold, args=(folder, held))
    holder.start()
    assert held.wait(60)
    started = time.monotonic()
    match = rf"^output: expected a folder no other run writes to, found .*process {holder.pid}'; wait for that run"
    with pytest.raises(ConfigError, match=match), exclusive_folder(folder, "output"):
        raise AssertionError("two runs in one folder")
    assert time.monotonic() - started < 5
    holder.kill()
    holder.join()
    with exclusive_folder(folder, "output"):
        (folder / "result").touch()
    assert [p.name for p in folder.iterdir()] == ["result"]


def test_a_folder_that_got_nothing_is_not_left_behind(tmp_path):
    with pytest.raises(ConfigError, match=r"^n: "), exclusive_folder(tmp_path / "a" / "out", "output"):
        raise ConfigError("n", "1", 2)
    assert not (tmp_path / "a" / "out").exists()
    (tmp_path / "mine").mkdir()
    with exclusive_folder(tmp_path / "mine", "output"):
        pass
    assert (tmp_path / "mine").exists()


def test_a_folder_that_cannot_be_claimed_is_named_itself(tmp_path):
    (tmp_path / "out" / ".running").mkdir(parents=True)  # as root, who may write everywhere, would still meet it
    with pytest.raises(IsADirectoryError) as caught, exclusive_folder(tmp_path / "out", "output"):
        raise AssertionError
    assert system_error_message(caught.value).startswith(f"cannot read or write {tmp_path / 'out'}: Is a directory")


def test_a_file_system_without_locks_is_worked_on_all_the_same(tmp_path, monkeypatch):
    fcntl = pytest.importorskip("fcntl")

    def refuse(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with exclusive_folder(tmp_path / "out", "output"):
        (tmp_path / "out" / "result").touch()
    assert (tmp_path / "out" / "result").exists()
