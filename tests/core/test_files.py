"""Outputs appear whole or not at all."""

from __future__ import annotations

import errno
import functools
import hashlib
import os
import shutil
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from odd_files import ODD, refuse_listing
from output_folders import fill, tree

from flawscope import scratch
from flawscope.errors import ArgumentError, DataError, StorageError
from flawscope.files import (
    atomic_file,
    atomic_folder,
    check_new_file,
    check_new_files,
    check_replaceable,
    is_litter,
    sha256_file,
    storage_errors,
    write_bytes,
    write_text,
)


def test_text_of_strangers_is_written_and_their_folder_names_are_not(tmp_path):
    write_text(tmp_path / "a.txt", os.fsdecode(b"\xff.png"))
    assert (tmp_path / "a.txt").read_bytes() == rb"\xff.png"
    with pytest.raises(ArgumentError, match="expected a folder name in UTF-8"):
        check_replaceable(tmp_path / os.fsdecode(b"\xff.flaw"), None)


@pytest.mark.parametrize("name", [".", "/", "..", "made/.."])
def test_what_no_folder_can_be_renamed_to_is_refused_before_the_work(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ArgumentError, match="expected the name of a folder to make"), atomic_folder(Path(name)):
        pytest.fail("nothing may be made")
    assert not list(tmp_path.iterdir())
    with pytest.raises(ArgumentError, match="expected a file name, got a folder"):
        check_new_file(Path("/"))
    check_new_files(Path("/"), overwrite=True)


# --- hashes


@pytest.mark.parametrize("size", [0, 1, (1 << 20) - 1, 1 << 20, (1 << 20) + 1])
def test_the_hash_is_that_of_all_bytes(tmp_path, size):
    data = bytes(range(256)) * (size // 256) + bytes(size % 256)
    (tmp_path / "f").write_bytes(data)
    assert sha256_file(tmp_path / "f") == hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("kind", ODD)
def test_what_is_no_file_has_no_hash(tmp_path, kind):
    ODD[kind](tmp_path / "f")
    with pytest.raises(OSError, match=r"not a file|No such file|Is a directory|Too many levels"):
        sha256_file(tmp_path / "f")


def test_a_folder_that_cannot_be_listed_is_not_taken_for_an_empty_one_and_replaced(tmp_path, monkeypatch):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "theirs").touch()
    with monkeypatch.context() as patched:
        refuse_listing(patched, tmp_path / "d")
        with pytest.raises(DataError, match="expected a folder that can be listed"):
            check_replaceable(tmp_path / "d", "run.json")
        with pytest.raises(DataError, match="expected a folder that can be listed"), atomic_folder(tmp_path / "d"):
            pass
    assert (tmp_path / "d" / "theirs").exists()


# --- litter


@pytest.mark.parametrize(
    "name", [".DS_Store", "Thumbs.db", "thumbs.db", "ehthumbs.db", "Desktop.ini", ".nfs000000000012", "._000.png"]
)
def test_what_systems_leave_is_litter(name):
    assert is_litter(name)
    assert is_litter(name.upper())


@given(st.text(alphabet="abcdefgDS_.0", min_size=1, max_size=12).filter(lambda name: not name.startswith("._")))
def test_other_names_are_not_litter(name):
    assert is_litter(name) == (name.lower() == ".ds_store")


@pytest.mark.parametrize(
    "name", ["DS_Store", "xThumbs.db", "Thumbs.db.png", "desktop.ini.png", "nfs1", ".n", "_.png", "."]
)
def test_names_like_litter_are_not_litter(name):
    assert not is_litter(name)


# --- one file


@given(st.binary(max_size=100))
def test_bytes_come_back(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "bytes"
    write_bytes(path, data)
    assert path.read_bytes() == data


def test_text_is_stored_in_utf_8(tmp_path):
    write_text(tmp_path / "t", "Prüfung\r\n5 µm")
    assert (tmp_path / "t").read_bytes() == "Prüfung\r\n5 µm".encode()


def test_missing_folders_are_made(tmp_path):
    write_bytes(tmp_path / "a" / "b" / "f", b"x")
    assert tree(tmp_path) == {"a": None, "a/b": None, "a/b/f": b"x"}


def test_an_existing_file_is_replaced_only_at_the_end(tmp_path):
    path = tmp_path / "f"
    path.write_bytes(b"old")
    with atomic_file(path) as temporary:
        temporary.write_bytes(b"new")
        assert path.read_bytes() == b"old"
        assert temporary.parent == path.parent  # the same file system, so that renaming is atomic
        assert temporary.name.startswith(".")  # readers of datasets pass over it
    assert tree(tmp_path) == {"f": b"new"}


def test_a_file_in_a_closed_folder_is_written_beside_the_folder(tmp_path):
    folder = tmp_path / "d"
    folder.mkdir()
    with atomic_file(folder / "f", beside=folder, durable=True) as temporary:
        assert temporary.parent == tmp_path
        assert list(folder.iterdir()) == []
        temporary.write_bytes(b"x")
    assert tree(tmp_path) == {"d": None, "d/f": b"x"}


@pytest.mark.parametrize("error", [KeyError("mine"), KeyboardInterrupt()])
@pytest.mark.parametrize("old", [None, b"old"])
def test_a_failure_leaves_what_was_there(tmp_path, error, old):
    path = tmp_path / "f"
    if old is not None:
        path.write_bytes(old)
    before = tree(tmp_path)
    with pytest.raises(type(error)), atomic_file(path) as temporary:  # noqa: PT012
        temporary.write_bytes(b"half")
        raise error
    assert tree(tmp_path) == before


def test_a_full_disk_is_named_and_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "f"
    path.write_bytes(b"old")

    def full(self, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    message = r"f: could not be written: the disk is full. Nothing was left behind. Free space or choose another place"
    with pytest.raises(StorageError, match=message):
        write_bytes(path, b"new")
    assert tree(tmp_path) == {"f": b"old"}


def test_a_parent_that_is_a_file_is_a_storage_error(tmp_path):
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(StorageError, match=r"file/f: could not be written: (Not a directory|File exists)"):
        write_bytes(tmp_path / "file" / "f", b"y")
    assert tree(tmp_path) == {"file": b"x"}


def test_a_folder_is_not_replaced_by_a_file(tmp_path):
    (tmp_path / "d").mkdir()
    with pytest.raises(StorageError, match="d: could not be written: Is a directory"):
        write_bytes(tmp_path / "d", b"x")
    assert tree(tmp_path) == {"d": None}


def test_a_name_too_long_is_a_storage_error(tmp_path):
    with pytest.raises(StorageError, match="could not be written: File name too long"):
        write_bytes(tmp_path / ("n" * 300), b"x")


@pytest.mark.parametrize(("umask", "file", "folder"), [(0o022, 0o644, 0o755), (0o077, 0o600, 0o700)])
def test_permissions_follow_the_umask(tmp_path, umask, file, folder):
    previous = os.umask(umask)
    try:
        write_bytes(tmp_path / "f", b"x")
        with atomic_folder(tmp_path / "d") as temporary:
            (temporary / "deep").mkdir()
            (temporary / "deep" / "f").write_bytes(b"x")
        assert os.umask(umask) == umask  # asking for the umask did not change it
    finally:
        os.umask(previous)
    modes = {name: stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("f", "d", "d/deep", "d/deep/f")}
    assert modes == {"f": file, "d": folder, "d/deep": folder, "d/deep/f": file}


# --- a folder


def test_a_folder_appears_whole(tmp_path):
    with atomic_folder(tmp_path / "a" / "d") as folder:
        (folder / "f").write_bytes(b"x")
        assert not (tmp_path / "a" / "d").exists()
        assert folder.parent == tmp_path / "a"
    assert tree(tmp_path) == {"a": None, "a/d": None, "a/d/f": b"x"}


def test_an_earlier_output_is_replaced_whole(tmp_path):
    fill(tmp_path / "d", mark=b"1", old=b"1")
    fill(tmp_path / "d", replace_if="mark", overwrite=True, own=("old",), mark=b"2")
    assert tree(tmp_path) == {"d": None, "d/mark": b"2"}


@pytest.mark.parametrize("error", [KeyError("mine"), KeyboardInterrupt()])
def test_a_failure_inside_leaves_the_earlier_folder(tmp_path, error):
    fill(tmp_path / "d", mark=b"1")
    with pytest.raises(type(error)), atomic_folder(tmp_path / "d", replace_if="mark", overwrite=True) as folder:  # noqa: PT012
        (folder / "mark").write_bytes(b"half")
        raise error
    assert tree(tmp_path) == {"d": None, "d/mark": b"1"}


@pytest.fixture
def no_exchange(monkeypatch):
    """A file system that cannot exchange two names: the earlier folder steps aside for a moment."""
    monkeypatch.setattr(scratch, "exchange", lambda one, other: False)


@pytest.mark.usefixtures("no_exchange")
def test_an_earlier_output_is_replaced_where_names_cannot_be_exchanged(tmp_path):
    fill(tmp_path / "d", mark=b"1", old=b"1")
    fill(tmp_path / "d", replace_if="mark", overwrite=True, own=("old",), mark=b"2")
    assert tree(tmp_path) == {"d": None, "d/mark": b"2"}


@pytest.mark.usefixtures("no_exchange")
@pytest.mark.parametrize("position", [0, 1])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), KeyboardInterrupt()])
def test_a_failure_while_swapping_leaves_the_earlier_folder(tmp_path, monkeypatch, position, error):
    fill(tmp_path / "d", mark=b"1")
    real, calls = Path.replace, []

    def replace(self, target):
        calls.append(target)
        if len(calls) == position + 1:
            raise error
        return real(self, target)

    monkeypatch.setattr(Path, "replace", replace)
    expected = StorageError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(expected, match="the disk is full" if expected is StorageError else "^$"):
        fill(tmp_path / "d", replace_if="mark", overwrite=True, mark=b"2")
    assert tree(tmp_path) == {"d": None, "d/mark": b"1"}


@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), KeyboardInterrupt()])
def test_a_failure_to_exchange_leaves_the_earlier_folder(tmp_path, monkeypatch, error):
    fill(tmp_path / "d", mark=b"1")

    def fail(one, other):
        raise error

    monkeypatch.setattr(scratch, "exchange", fail)
    with pytest.raises((StorageError, KeyboardInterrupt)):
        fill(tmp_path / "d", replace_if="mark", overwrite=True, mark=b"2")
    assert tree(tmp_path) == {"d": None, "d/mark": b"1"}


@pytest.mark.usefixtures("no_exchange")
def test_an_earlier_folder_that_cannot_be_moved_back_is_not_deleted(tmp_path, monkeypatch):
    fill(tmp_path / "d", mark=b"1")
    real, calls = Path.replace, []

    def replace(self, target):
        calls.append(target)
        if len(calls) > 1:
            raise OSError(errno.EIO, "Input/output error")
        return real(self, target)

    monkeypatch.setattr(Path, "replace", replace)
    with pytest.raises(StorageError, match="d: could not be written: Input/output error"):
        fill(tmp_path / "d", replace_if="mark", overwrite=True, mark=b"2")
    assert [data for name, data in tree(tmp_path).items() if name.endswith("/d/mark")] == [b"1"]
    # The next writer puts it back.
    monkeypatch.undo()
    fill(tmp_path / "other", f=b"x")
    assert tree(tmp_path) == {"d": None, "d/mark": b"1", "other": None, "other/f": b"x"}


def test_what_cannot_be_deleted_afterwards_does_not_undo_the_new_folder(tmp_path, monkeypatch):
    fill(tmp_path / "d", mark=b"1")
    monkeypatch.setattr(shutil, "rmtree", lambda path, ignore_errors=False: None)
    fill(tmp_path / "d", replace_if="mark", overwrite=True, mark=b"2")
    assert (tmp_path / "d" / "mark").read_bytes() == b"2"


def test_a_linked_folder_is_replaced_and_its_target_is_left(tmp_path):
    fill(tmp_path / "target", mark=b"1")
    (tmp_path / "d").symlink_to("target")
    fill(tmp_path / "d", replace_if="mark", overwrite=True, mark=b"2")
    assert not (tmp_path / "d").is_symlink()
    assert tree(tmp_path) == {"d": None, "d/mark": b"2", "target": None, "target/mark": b"1"}


# --- what may be replaced


@pytest.mark.parametrize("marker", [None, "mark"])
def test_nothing_and_an_empty_folder_may_be_replaced(tmp_path, marker):
    check_replaceable(tmp_path / "none", marker)
    (tmp_path / "empty").mkdir()
    check_replaceable(tmp_path / "empty", marker)
    fill(tmp_path / "empty", replace_if=marker, f=b"x")
    assert tree(tmp_path) == {"empty": None, "empty/f": b"x"}


@pytest.mark.parametrize(
    ("marker", "message"),
    [
        (None, "d: expected a new folder, got a folder with other files. Choose another name or empty it"),
        ("mark", "d: expected a new folder or one with mark, got a folder with other files"),
    ],
)
def test_a_foreign_folder_is_refused_and_left(tmp_path, marker, message):
    (tmp_path / "d" / "mark").mkdir(parents=True)  # a folder of that name is no mark
    (tmp_path / "d" / "f").write_bytes(b"x")
    before = tree(tmp_path)
    for call in (check_replaceable, lambda path, mark: fill(path, replace_if=mark, f=b"y")):
        with pytest.raises(ArgumentError, match=message):
            call(tmp_path / "d", marker)
    assert tree(tmp_path) == before


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "d").write_bytes(b"x")
    with pytest.raises(ArgumentError, match="d: expected a folder name that is free, got an existing file"):
        fill(tmp_path / "d", f=b"y")


# --- errors


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "the disk is full"),
        (PermissionError(errno.EACCES, "Permission denied"), "Permission denied"),
        (OSError(errno.EROFS, "Read-only file system"), "Read-only file system"),
        (OSError("a plain sentence"), "a plain sentence"),
    ],
)
def test_a_system_error_names_path_and_reason(error, reason):
    message = f"^here: could not be written: {reason}[.] Nothing was left"
    with pytest.raises(StorageError, match=message) as caught, storage_errors(Path("here")):
        raise error
    assert caught.value.__cause__ is error


def test_other_errors_pass_through():
    with pytest.raises(KeyError, match="mine"), storage_errors(Path("here")):
        raise KeyError("mine")


def test_a_place_below_a_file_is_refused_before_the_work(tmp_path):
    program = tmp_path / "run.sh"
    program.write_text("exit 0")
    program.chmod(0o755)
    for check in (check_new_file, check_new_files, functools.partial(check_replaceable, marker="run.json")):
        with pytest.raises(StorageError, match=r"run\.sh is a file"):
            check(program / "new" / "out.csv")


def test_a_name_too_long_is_told_before_the_work(tmp_path):
    with pytest.raises(StorageError, match="File name too long"):
        check_new_file(tmp_path / ("x" * 300))
