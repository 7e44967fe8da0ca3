"""Nothing is replaced unasked, and nothing that is somebody else's ever."""

from __future__ import annotations

import os

import pytest
from output_folders import fill, tree

from flawscope.errors import ArgumentError, StorageError
from flawscope.files import atomic_folder, check_new_file, check_new_files, check_replaceable


@pytest.mark.parametrize("marker", ["mark", None])
def test_an_earlier_output_is_not_replaced_unasked(tmp_path, marker):
    fill(tmp_path / "d", mark=b"1")
    for overwrite in (False, True):
        if overwrite and marker:
            check_replaceable(tmp_path / "d", marker, overwrite=True)
            continue
        with pytest.raises(
            ArgumentError, match=r"d: expected a new (name, got an earlier output with mark|folder, got)"
        ):
            check_replaceable(tmp_path / "d", marker, overwrite=overwrite)
    assert (tmp_path / "d" / "mark").read_bytes() == b"1"


def test_what_another_command_wrote_meanwhile_is_not_replaced_unasked(tmp_path):
    def write() -> None:
        with atomic_folder(tmp_path / "d", replace_if="mark") as folder:
            (folder / "mark").write_bytes(b"mine")
            fill(tmp_path / "d", mark=b"theirs")

    with pytest.raises(ArgumentError, match="expected a new name, got an earlier output with mark"):
        write()
    assert tree(tmp_path) == {"d": None, "d/mark": b"theirs"}


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("kind", ["nothing", "file", "folder", "pipe", "link to nothing", "link to a file"])
def test_a_new_file_takes_the_place_of_a_file_if_asked_to_and_of_nothing_else(tmp_path, kind, overwrite):
    path = tmp_path / "out"
    (tmp_path / "other").write_bytes(b"x")
    {
        "nothing": lambda: None,
        "file": lambda: path.write_bytes(b"x"),
        "folder": path.mkdir,
        "pipe": lambda: os.mkfifo(path),
        "link to nothing": lambda: path.symlink_to("nowhere"),
        "link to a file": lambda: path.symlink_to("other"),
    }[kind]()
    if kind == "nothing" or (overwrite and kind in ("file", "link to a file")):
        check_new_file(path, overwrite=overwrite)
        return
    with pytest.raises(ArgumentError, match=r"out: expected a (new|file) name, got an? .*\. Choose another name"):
        check_new_file(path, overwrite=overwrite)


def test_files_go_into_a_folder_that_is_empty_or_was_named_to_be_mixed(tmp_path):
    for folder in (None, tmp_path, tmp_path / "new"):
        check_new_files(folder)
    (tmp_path / "a.png").write_bytes(b"x")
    with pytest.raises(ArgumentError, match="expected a new folder, got one with files"):
        check_new_files(tmp_path)
    check_new_files(tmp_path, overwrite=True)
    with pytest.raises(ArgumentError, match="expected a folder, got a file"):
        check_new_files(tmp_path / "a.png", overwrite=True)


@pytest.mark.parametrize(
    "check",
    [check_new_file, check_new_files, lambda path: check_replaceable(path, None)],
    ids=["file", "files", "folder"],
)
def test_a_place_that_cannot_be_written_to_is_known_before_the_work(tmp_path, monkeypatch, check):
    check(tmp_path / "a" / "b" / "c")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match="could not be written"):
        check(tmp_path / "file" / "c")
    # Root may write everywhere.
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(StorageError, match=r"c: could not be written: Permission denied in .*\. "):
        check(tmp_path / "a" / "b" / "c")


def test_what_the_new_output_has_not_is_kept_under_another_name(tmp_path, caplog):
    def write(*names):
        with atomic_folder(tmp_path / "out", replace_if="run.json", overwrite=True, own=("previews",)) as folder:
            for name in ("run.json", *names):
                (folder / name).parent.mkdir(exist_ok=True)
                (folder / name).write_text(name)

    write("previews/0.png", "previews/1.png")
    write("previews/0.png")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]
    (tmp_path / "out" / "thesis.tex").write_text("mine")
    write()
    assert (tmp_path / "out.replaced-1" / "thesis.tex").read_text() == "mine"
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["run.json"]
    assert "held files that the new output has not" in caplog.text
    (tmp_path / "out" / "deep").mkdir()
    (tmp_path / "out" / "deep" / "link").symlink_to("nowhere")
    write()
    assert (tmp_path / "out.replaced-2" / "deep" / "link").is_symlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "out.replaced-1", "out.replaced-2"]


@pytest.mark.parametrize(
    ("kind", "content", "is_replaced"),
    [
        ("json", b' {"a": 1}', True),
        ("json", b"", True),
        ("json", b"\x89PNG\r\n\x1a\n", False),
        ("html", b"<!DOCTYPE html>", True),
        ("html", b'{"a": 1}', False),
        ("svg", b'<?xml version="1.0"?>', True),
        ("zip", b"PK\x03\x04", True),
        ("zip", b"notes", False),
    ],
)
def test_a_file_of_another_kind_is_never_replaced(tmp_path, kind, content, is_replaced):
    path = tmp_path / "there"
    path.write_bytes(content)
    if is_replaced:
        check_new_file(path, overwrite=True, kind=kind)
    else:
        with pytest.raises(ArgumentError, match=f"or an earlier {kind} file to replace, got a file of another kind"):
            check_new_file(path, overwrite=True, kind=kind)


def test_no_output_lies_in_a_bundle(tmp_path):
    (tmp_path / "b.flaw" / "deep").mkdir(parents=True)
    (tmp_path / "b.flaw" / "manifest.json").write_text('{"flawscope": "1"}')
    for check, place in (
        (check_new_file, tmp_path / "b.flaw" / "e.json"),
        (check_new_file, tmp_path / "b.flaw" / "deep" / "e.json"),
        (check_new_files, tmp_path / "b.flaw" / "maps"),
        (lambda path, **_: check_replaceable(path, "run.json"), tmp_path / "b.flaw" / "run"),
    ):
        with pytest.raises(ArgumentError, match="expected a place outside of bundles"):
            check(place, overwrite=True)
    # A web page has a file of that name too.
    (tmp_path / "b.flaw" / "manifest.json").write_text('{"name": "page"}')
    check_new_file(tmp_path / "b.flaw" / "e.json")


def test_a_link_to_nothing_is_not_replaced_unasked(tmp_path):
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(ArgumentError, match="expected a folder name that is free"):
        check_replaceable(tmp_path / "link", "run.json", overwrite=True)
