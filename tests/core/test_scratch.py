"""Scratch of killed processes is found and removed, that of living ones never; locks let one process in at a time."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from flawscope import scratch
from flawscope.errors import StorageError
from flawscope.files import atomic_file, atomic_folder, locked, temporary_folder, write_bytes
from flawscope.scratch import exchange, is_scratch, recover, remove_leftovers

HOLDERS = {
    "a file": "from flawscope.files import atomic_file\nwith atomic_file(path) as temporary:",
    "a folder": "from flawscope.files import atomic_folder\nwith atomic_folder(path) as temporary:",
    "a temporary folder": "from flawscope.files import temporary_folder\nwith temporary_folder(path.parent) as _:",
    "a common folder": "from flawscope.files import temporary_folder\nwith temporary_folder(path.parent, 'run') as _:",
    "a lock": "from flawscope.files import locked\nwith locked(path):",
}


@contextlib.contextmanager
def process(code, path):
    """A process that runs `code` up to the point where it prints, and waits there."""
    child = subprocess.Popen(
        [sys.executable, "-c", f"import sys, pathlib\npath = pathlib.Path(sys.argv[1])\n{code}", str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert child.stdout.readline() == b"there\n"
        yield child
    finally:
        child.kill()
        child.communicate()


def holder(kind, path):
    return process(f"{HOLDERS[kind]}\n    print('there', flush=True)\n    sys.stdin.read()", path)


def names(folder):
    return sorted(entry.name for entry in folder.iterdir())


@pytest.mark.parametrize("kind", HOLDERS)
def test_what_a_living_process_holds_stays_and_what_a_killed_one_left_goes(tmp_path, kind):
    with holder(kind, tmp_path / "output") as child:
        (held,) = names(tmp_path)
        assert is_scratch(held)
        remove_leftovers(tmp_path)
        assert names(tmp_path) == [held]
        child.send_signal(signal.SIGKILL)
        child.wait()
        assert names(tmp_path) == [held]
    remove_leftovers(tmp_path)
    assert names(tmp_path) == []


def make_file(folder):
    write_bytes(folder / "output", b"x")


def make_durable_file(folder):
    write_bytes(folder / "output", b"x", durable=True)


def make_folder(folder):
    with atomic_folder(folder / "output"):
        pass


def make_and_remove_a_temporary_folder(folder):
    with temporary_folder(folder):
        pass
    (folder / "output").mkdir()


@pytest.mark.parametrize("write", [make_file, make_durable_file, make_folder, make_and_remove_a_temporary_folder])
@pytest.mark.parametrize("kind", HOLDERS)
def test_the_next_writer_in_a_folder_removes_what_a_killed_one_left(tmp_path, kind, write):
    with holder(kind, tmp_path / "killed"):
        pass
    assert len(names(tmp_path)) == 1
    write(tmp_path)
    assert names(tmp_path) == ["output"]


@pytest.mark.parametrize("kind", HOLDERS)
def test_sigint_leaves_nothing(tmp_path, kind):
    with holder(kind, tmp_path / "output") as child:
        child.send_signal(signal.SIGINT)
        child.wait()
        assert names(tmp_path) == []


def test_what_is_not_scratch_of_ours_stays(tmp_path):
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "f").write_bytes(b"x")
    (tmp_path / ".flawscope-link.tmp").symlink_to("target")
    os.mkfifo(tmp_path / ".flawscope-pipe.tmp")
    (tmp_path / ".other-12345678.tmp").write_bytes(b"x")
    (tmp_path / ".flawscope-notes").write_bytes(b"x")
    before = names(tmp_path)
    remove_leftovers(tmp_path)
    assert names(tmp_path) == before
    assert (tmp_path / "target" / "f").read_bytes() == b"x"


def test_what_belongs_to_another_user_stays(tmp_path, monkeypatch):
    (tmp_path / ".flawscope-abcdefgh.tmp").write_bytes(b"x")
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    remove_leftovers(tmp_path)
    assert names(tmp_path) == [".flawscope-abcdefgh.tmp"]


def test_what_another_machine_is_writing_stays_though_its_lock_does_not_show_here(tmp_path, monkeypatch):
    monkeypatch.setattr(scratch, "_machine", lambda: "0123abcd")
    with scratch.scratch_file(tmp_path) as live, scratch.scratch_folder(tmp_path) as folder:
        monkeypatch.setattr(scratch, "_machine", lambda: "4567abcd")
        monkeypatch.setattr(scratch, "_try_lock", lambda descriptor: True)
        remove_leftovers(tmp_path)
        assert names(tmp_path) == sorted([live.name, folder.name])
        # Nobody has written into it for two days: whoever made it is dead.
        os.utime(live, (0, live.stat().st_mtime - 2 * 86400))
        remove_leftovers(tmp_path)
        assert names(tmp_path) == [folder.name]
        monkeypatch.setattr(scratch, "_machine", lambda: "0123abcd")
        remove_leftovers(tmp_path)
        assert names(tmp_path) == []


def test_where_nothing_can_be_locked_nothing_is_taken_for_a_leftover(tmp_path, monkeypatch):
    (tmp_path / ".flawscope-abcdefgh.tmp").write_bytes(b"x")

    def no_locks(descriptor, how):
        raise OSError("no locks available")

    monkeypatch.setattr(scratch.fcntl, "flock", no_locks)
    with atomic_folder(tmp_path / "d") as folder:
        (folder / "f").write_bytes(b"x")
    assert names(tmp_path) == [".flawscope-abcdefgh.tmp", "d"]
    with pytest.raises(StorageError, match="d: could not be written: no locks available"), locked(tmp_path / "d"):
        pass


# --- an output that stepped aside


SWAP = """
from flawscope import scratch
from flawscope.files import atomic_folder
scratch.exchange = lambda one, other: False
real, calls = pathlib.Path.replace, []
def replace(self, target):
    calls.append(1)
    if len(calls) == 2:
        print('there', flush=True)
        sys.stdin.read()
    return real(self, target)
pathlib.Path.replace = replace
with atomic_folder(path, replace_if="mark", overwrite=True) as folder:
    (folder / "mark").write_bytes(b"new")
"""


def earlier(path):
    path.mkdir()
    (path / "mark").write_bytes(b"old")
    return path


def test_an_output_that_a_killed_process_had_moved_aside_is_put_back_for_a_reader(tmp_path):
    path = earlier(tmp_path / "d")
    with process(SWAP, path):
        assert not path.exists()
    recover(path)
    assert (path / "mark").read_bytes() == b"old"
    remove_leftovers(tmp_path)
    assert names(tmp_path) == ["d"]


def test_an_output_that_a_killed_process_had_moved_aside_is_put_back_for_a_writer(tmp_path):
    path = earlier(tmp_path / "d")
    with process(SWAP, path):
        assert not path.exists()
    write_bytes(tmp_path / "other", b"x", durable=True)
    assert names(tmp_path) == ["d", "other"]
    assert (path / "mark").read_bytes() == b"old"


def test_a_reader_waits_while_a_living_process_swaps(tmp_path):
    path = earlier(tmp_path / "d")
    with process(SWAP, path) as child:
        threading.Timer(0.2, child.stdin.close).start()
        recover(path)
        assert (path / "mark").read_bytes() == b"new"
        child.wait()
        child.stdin = None
    assert names(tmp_path) == ["d"]


def test_recover_leaves_what_is_there(tmp_path):
    path = earlier(tmp_path / "d")
    aside = tmp_path / ".flawscope-abcdefgh.old"
    aside.mkdir()
    (aside / "d").mkdir()
    recover(path)
    assert (path / "mark").read_bytes() == b"old"
    recover(tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_two_names_change_places(tmp_path):
    one, other = earlier(tmp_path / "one"), tmp_path / "other"
    other.mkdir()
    if not exchange(one, other):
        pytest.skip("this file system cannot exchange names")
    assert not (one / "mark").exists()
    assert (other / "mark").read_bytes() == b"old"
    with pytest.raises(FileNotFoundError):
        exchange(one, tmp_path / "none")


def test_there_is_no_moment_without_the_folder(tmp_path):
    path = earlier(tmp_path / "d")
    (tmp_path / "other").mkdir()
    if not exchange(path, tmp_path / "other") or not exchange(path, tmp_path / "other"):
        pytest.skip("this file system cannot exchange names")
    stop, missed, seen = threading.Event(), [], []

    def watch():
        while not stop.is_set():
            seen.append(1)
            try:
                (path / "mark").read_bytes()
            except FileNotFoundError:
                missed.append(1)

    watcher = threading.Thread(target=watch)
    watcher.start()
    for number in range(100):
        with atomic_folder(path, replace_if="mark", overwrite=True) as folder:
            (folder / "mark").write_bytes(bytes([number]))
    stop.set()
    watcher.join()
    assert seen
    assert not missed


# --- locks


def test_a_lock_lets_one_process_in_and_leaves_nothing(tmp_path):
    path = tmp_path / "count"
    path.write_text("0")
    code = """
import time
from flawscope.files import locked
for _ in range(20):
    with locked(path):
        number = int(path.read_text())
        time.sleep(0.001)
        path.write_text(str(number + 1))
"""
    children = [
        subprocess.Popen([sys.executable, "-c", f"import sys, pathlib\npath = pathlib.Path(sys.argv[1])\n{code}", path])
        for _ in range(4)
    ]
    assert [child.wait() for child in children] == [0] * 4
    assert path.read_text() == "80"
    assert names(tmp_path) == ["count"]


def test_a_lock_that_a_killed_process_held_is_free(tmp_path):
    with holder("a lock", tmp_path / "d"):
        pass
    with locked(tmp_path / "d"):
        pass
    assert names(tmp_path) == []


def test_names_as_long_as_names_can_be_are_locked_and_written(tmp_path):
    path = Path(tmp_path / ("n" * 255))
    with locked(path), atomic_file(path) as temporary:
        temporary.write_bytes(b"x")
    assert names(tmp_path) == [path.name]


# --- signals that end the command

INTERRUPTED = """
import contextlib, os, sys
from pathlib import Path
from flawscope import scratch
from flawscope.errors import StorageError
from flawscope.files import atomic_file, atomic_folder, locked, temporary_folder, write_bytes

exchange = scratch.exchange
EVENTS = ("open", "os.", "fcntl.flock", "shutil.rmtree")
left = None

def hear(event, arguments):
    global left
    if left is not None and event.startswith(EVENTS):
        left -= 1
        if left == 0:
            left = None
            raise SystemExit(143)  # as the handler of SIGTERM does, here just before something is done

sys.addaudithook(hear)
root = Path(sys.argv[1])

def new_file(path):
    with locked(path), atomic_file(path, durable=True) as temporary:
        temporary.write_bytes(b"after")

def new_folder(path):
    with locked(path), atomic_folder(path, replace_if="file", overwrite=True, durable=True) as temporary:
        (temporary / "file").write_bytes(b"after")

def moved_aside(path):
    scratch.exchange = lambda one, other: False  # as on file systems that cannot
    try:
        new_folder(path)
    finally:
        scratch.exchange = exchange

def no_output(path):
    with temporary_folder(path.parent) as temporary:
        (temporary / "inside").mkdir()
        (temporary / "inside" / "file").write_bytes(b"x")
    write_bytes(path, b"after")

def refused(path):
    with contextlib.suppress(StorageError), atomic_file(path) as temporary:
        raise FileExistsError(temporary)
    write_bytes(path, b"after")

def content(path):
    return (path / "file" if path.is_dir() else path).read_bytes() if path.exists() else b"before"

moments = 0
for work in (new_file, new_folder, moved_aside, no_output, refused):
    for is_there in (False, True):
        for moment in range(1, 1000):
            folder = root / f"{work.__name__}-{is_there}-{moment}"
            folder.mkdir()
            path = folder / "output"
            if is_there and work in (new_folder, moved_aside):
                path.mkdir()
                (path / "file").write_bytes(b"before")
            elif is_there:
                path.write_bytes(b"before")
            left = moment
            try:
                work(path)
                is_done = left is not None
            except SystemExit:
                is_done = False
            left = None
            names = [entry.name for entry in folder.iterdir()]
            assert names in ([], ["output"]), (folder, names)
            assert content(path) in (b"before", b"after"), folder
            if is_done:
                assert content(path) == b"after"
                break
            moments += 1
print(moments)
"""


def test_a_signal_at_any_moment_leaves_no_scratch_and_no_torn_output(tmp_path):
    process = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, process.stderr
    assert int(process.stdout) > 100


def test_a_command_that_only_locks_removes_what_killed_ones_left(tmp_path):
    with holder("a lock", tmp_path / "other"), holder("a file", tmp_path / "output"):
        assert len(names(tmp_path)) == 2
    with locked(tmp_path / "bundle"):
        assert len(names(tmp_path)) == 1
    assert names(tmp_path) == []
