"""Files of others are opened without waiting and without an end to memory, and no folder is passed over."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from odd_files import ODD, refuse_listing

from flawscope.errors import DataError
from flawscope.open_files import list_folder, open_regular, read_regular, regular_path, walk_folder


@pytest.mark.parametrize("kind", ODD)
@pytest.mark.parametrize("read", [open_regular, regular_path, lambda path: read_regular(path, 100)])
def test_what_is_no_file_is_refused_at_once(tmp_path, kind, read):
    ODD[kind](tmp_path / "a")
    with pytest.raises(OSError, match=r"not a file|No such file|Is a directory|Too many levels"):
        read(tmp_path / "a")


@pytest.mark.parametrize(("kind", "word"), [("pipe", "pipe"), ("endless_device", "device"), ("socket", "socket")])
def test_the_reason_names_what_it_is(tmp_path, kind, word):
    ODD[kind](tmp_path / "a")
    with pytest.raises(OSError, match=f"it is a {word}, not a file"):
        open_regular(tmp_path / "a")


def test_a_pipe_that_takes_the_place_of_a_file_is_refused_too(tmp_path, monkeypatch):
    path = tmp_path / "a"
    path.write_bytes(b"1")
    before = path.stat()
    path.unlink()
    os.mkfifo(path)
    monkeypatch.setattr(os, "stat", lambda path: before)
    opened = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(OSError, match="it is a pipe"):
        open_regular(path)
    assert len(list(Path("/proc/self/fd").iterdir())) == opened


@pytest.mark.parametrize("name", ["a\0b", "\ud800"])
def test_a_name_that_no_system_takes_is_an_error_of_the_file(tmp_path, name):
    with pytest.raises(OSError, match=r"null byte|surrogates"):
        read_regular(tmp_path / name, 100)


@given(st.integers(0, 70), st.integers(0, 70))
def test_a_file_is_read_up_to_its_bound(tmp_path_factory, size, most):
    path = tmp_path_factory.getbasetemp() / "bounded"
    path.write_bytes(bytes(range(size)))
    if size <= most:
        assert read_regular(path, most) == bytes(range(size))
    else:
        with pytest.raises(OSError, match=rf"it has more than {most} bytes"):
            read_regular(path, most)


def test_a_file_that_announces_no_size_is_read_and_bounded(tmp_path):
    (tmp_path / "link").symlink_to("/proc/self/status")
    assert b"Threads:" in read_regular(tmp_path / "link", 1 << 16)
    with pytest.raises(OSError, match="it has more than 10 bytes"):
        read_regular(tmp_path / "link", 10)


# ---- folders


@pytest.fixture
def tree(tmp_path):
    for place in ("b/c/2", "b/1", "a", "d/3"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).touch()
    (tmp_path / "link").symlink_to("b", target_is_directory=True)
    return tmp_path


def test_everything_below_a_folder_is_found_and_links_are_not_followed(tree):
    found = [path.relative_to(tree).as_posix() for path in walk_folder(tree)]
    assert sorted(found) == ["a", "b", "b/1", "b/c", "b/c/2", "d", "d/3", "link"]
    assert [path.name for path in list_folder(tree)] == ["a", "b", "d", "link"]


@pytest.mark.parametrize("place", [".", "b", "b/c", "d"])
def test_a_folder_that_cannot_be_listed_is_never_an_empty_one(tree, monkeypatch, place):
    refuse_listing(monkeypatch, tree / place)
    with pytest.raises(DataError, match=r"expected a folder that can be listed, got: Permission denied\. Check its"):
        list(walk_folder(tree))


@pytest.mark.parametrize("kind", ["absent", "pipe", "loop"])
def test_what_is_no_folder_is_not_listed(tmp_path, kind):
    ODD[kind](tmp_path / "a")
    with pytest.raises(DataError, match="expected a folder that can be listed"):
        list_folder(tmp_path / "a")
