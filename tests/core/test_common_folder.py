"""A folder that processes have in common: one for all who say its name, and gone with the last of them."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from flawscope import scratch
from flawscope.errors import StorageError
from flawscope.files import temporary_folder
from flawscope.scratch import is_scratch, remove_leftovers

CODE = """
import sys, pathlib
from flawscope.files import temporary_folder
with temporary_folder(pathlib.Path(sys.argv[1]), "run") as folder:
    print(folder, flush=True)
    sys.stdin.read()
"""


class Member:
    """Another process that is in the folder."""

    def __init__(self, parent: Path) -> None:
        self._child = subprocess.Popen(
            [sys.executable, "-c", CODE, str(parent)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._child.stdout is not None
        self.folder = Path(self._child.stdout.readline().strip())

    def leave(self) -> None:
        self._child.communicate("")
        assert self._child.returncode == 0

    def kill(self) -> None:
        self._child.kill()
        self._child.communicate()


@contextlib.contextmanager
def members(parent: Path, count: int) -> Iterator[list[Member]]:
    found = [Member(parent) for _ in range(count)]
    try:
        yield found
    finally:
        for member in found:
            member.kill()


def entries(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_it_is_one_folder_that_goes_with_the_last_who_leaves(tmp_path: Path) -> None:
    with members(tmp_path, 2) as (one, other):
        assert one.folder == other.folder
        assert is_scratch(one.folder.name)
        assert stat.S_IMODE(one.folder.stat().st_mode) == 0o700
        (one.folder / "bank").write_bytes(b"x")
        with temporary_folder(tmp_path, "run") as folder, temporary_folder(tmp_path, "another") as elsewhere:
            assert folder == one.folder != elsewhere
        assert entries(tmp_path) == [one.folder.name]
        one.leave()
        remove_leftovers(tmp_path)
        assert (other.folder / "bank").read_bytes() == b"x"
        other.leave()
    assert entries(tmp_path) == []


def test_whoever_is_killed_leaves_it_to_the_others_and_all_to_the_next_run(tmp_path: Path) -> None:
    with members(tmp_path, 2) as (one, other):
        (one.folder / "bank").write_bytes(b"x")
        one.kill()
        remove_leftovers(tmp_path)
        assert (other.folder / "bank").exists()
        other.kill()
        assert entries(tmp_path) == [one.folder.name]
    with temporary_folder(tmp_path, "the next run") as folder:
        assert entries(tmp_path) == [folder.name]
    assert entries(tmp_path) == []


def test_the_last_of_those_who_were_not_killed_removes_it(tmp_path: Path) -> None:
    with members(tmp_path, 2) as (one, other):
        one.kill()
        other.leave()
    assert entries(tmp_path) == []


def test_many_who_come_and_go_at_once_are_never_in_a_folder_that_is_gone(tmp_path: Path) -> None:
    wrong: list[object] = []

    def come_and_go(number: int) -> None:
        try:
            for turn in range(40):
                with temporary_folder(tmp_path, "run") as folder:
                    mine = folder / f"{number}-{turn}"
                    mine.write_bytes(b"x")
                    if mine.read_bytes() != b"x":
                        wrong.append(mine)
        except BaseException as err:
            wrong.append(err)

    threads = [threading.Thread(target=come_and_go, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert entries(tmp_path) == []


def test_one_that_was_removed_while_it_was_waited_for_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, waits = fcntl.flock, 0

    def flock(descriptor: int, how: int) -> None:
        nonlocal waits
        before(descriptor, how)
        if how == fcntl.LOCK_SH:
            waits += 1
            if waits == 1:  # as by whoever took it for a leftover
                (found,) = tmp_path.iterdir()
                found.rmdir()

    monkeypatch.setattr(scratch.fcntl, "flock", flock)
    with temporary_folder(tmp_path, "run") as folder:
        assert folder.is_dir()
    assert waits == 2
    assert entries(tmp_path) == []


def test_where_folders_have_locks_for_readers_alone_there_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = fcntl.flock

    def flock(descriptor: int, how: int) -> None:
        if how & fcntl.LOCK_EX:
            raise OSError(errno.EBADF, "as some network file systems")
        before(descriptor, how)

    monkeypatch.setattr(scratch.fcntl, "flock", flock)
    with pytest.raises(StorageError, match="folders cannot be locked there"), temporary_folder(tmp_path, "run"):
        pass
    assert entries(tmp_path) == []


@pytest.mark.parametrize("harm", ["open to others", "a file", "a link", "of another user"])
def test_what_is_not_ours_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, harm: str) -> None:
    with temporary_folder(tmp_path, "run") as folder:
        pass
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    if harm == "a file":
        folder.write_bytes(b"theirs")
        folder.chmod(0o600)
    elif harm == "a link":
        folder.symlink_to(tmp_path / "elsewhere")
    else:
        folder.mkdir()
        folder.chmod(0o777 if harm == "open to others" else 0o700)
    monkeypatch.setattr(scratch, "remove_leftovers", lambda parent: None)
    monkeypatch.setattr("flawscope.files.remove_leftovers", lambda parent: None)
    if harm == "of another user":
        monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(StorageError), temporary_folder(tmp_path, "run"):
        pass
    assert entries(tmp_path) == sorted([folder.name, "elsewhere"])
