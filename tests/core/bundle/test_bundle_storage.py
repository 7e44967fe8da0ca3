"""What survives a full disk, and how the files of a bundle lie there."""

from __future__ import annotations

import errno
import os
import shutil
import zipfile
from pathlib import Path

import msgspec
import pytest
from file_contents import files_of
from odd_files import ODD
from tiny_bundle import (
    tiny_manifest,
    tiny_sources,
    write_tiny_bundle,
)

from flawscope import files
from flawscope import scratch as scratch_files
from flawscope.bundle import (
    Bundle,
    open_bundle,
    pack_bundle,
    rewrite_manifest,
    write_bundle,
)
from flawscope.errors import BundleError, StorageError
from flawscope.files import sha256_file


def no_space(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("kind", [kind for kind in ODD if kind != "folder"])
@pytest.mark.parametrize("place", ["", "manifest.json", "bank.safetensors"])
def test_what_is_no_file_is_no_bundle_nor_part_of_one(folder, tmp_path, place, kind):
    path = folder / place if place else tmp_path / "odd.flaw"
    path.unlink(missing_ok=True)
    ODD[kind](path)
    with pytest.raises(BundleError, match=r"expected|could not be read"):
        open_bundle(folder if place else path)


def repack(bundle, path):
    pack_bundle(bundle, path, overwrite=True)


def rewrite_packed(bundle, path):
    rewrite_manifest(path, msgspec.structs.replace(bundle.manifest, min_area_px=9))


def fail_at(monkeypatch, owner, name, position):
    """Let the call number `position` of a function fail for lack of space; the calls before it work."""
    real, calls = getattr(owner, name), []

    def call(*arguments, **options):
        calls.append(arguments)
        if len(calls) == position + 1:
            no_space()
        return real(*arguments, **options)

    monkeypatch.setattr(owner, name, call)
    return calls


@pytest.fixture
def no_exchange(monkeypatch):
    """A file system that cannot exchange two names: the old bundle steps aside for a moment."""
    monkeypatch.setattr(scratch_files, "exchange", lambda one, other: False)


@pytest.mark.parametrize(
    ("owner", "name", "position"),
    [
        (scratch_files, "exchange", 0),
        (files, "sync", 0),
        (Path, "write_bytes", 0),
        (Path, "write_bytes", 2),
        (Path, "write_bytes", 3),  # the manifest: three other files are bytes, one is copied
        (shutil, "copyfile", 0),
        (Path, "chmod", 1),
        (Path, "mkdir", 2),
        (scratch_files, "_make", 0),
    ],
)
def test_a_full_disk_leaves_the_old_bundle_and_nothing_else(folder, monkeypatch, tmp_path, owner, name, position):
    graph = tmp_path / "graph.bin"
    graph.write_bytes(tiny_sources()["score.onnx"])
    before = files_of(tmp_path)
    entries = sorted(tmp_path.iterdir())
    calls = fail_at(monkeypatch, owner, name, position)
    with pytest.raises(StorageError, match=r"tiny.flaw: could not be written: the disk is full. Nothing was left"):
        write_tiny_bundle(folder, {"score.onnx": graph}, name="new")
    assert len(calls) > position
    monkeypatch.undo()
    assert files_of(tmp_path) == before
    assert sorted(tmp_path.iterdir()) == entries
    assert open_bundle(folder).manifest.name == "tiny"


@pytest.mark.usefixtures("no_exchange")
@pytest.mark.parametrize(
    ("owner", "name", "position"),
    [
        (Path, "replace", 0),  # moving the old bundle aside
        (Path, "replace", 1),  # moving the new one in
        (scratch_files, "_make", 1),
    ],
)
def test_a_full_disk_leaves_the_old_bundle_where_it_has_to_step_aside(folder, monkeypatch, owner, name, position):
    before, entries = files_of(folder), sorted(folder.parent.iterdir())
    calls = fail_at(monkeypatch, owner, name, position)
    with pytest.raises(StorageError, match=r"tiny.flaw: could not be written: the disk is full. Nothing was left"):
        write_tiny_bundle(folder, name="new")
    assert len(calls) > position
    monkeypatch.undo()
    assert files_of(folder) == before
    assert sorted(folder.parent.iterdir()) == entries


@pytest.mark.usefixtures("no_exchange")
def test_an_interrupt_while_the_folders_are_swapped_brings_the_old_bundle_back(folder, monkeypatch):
    before = files_of(folder.parent)
    real, calls = Path.replace, []

    def interrupted(self, target):
        calls.append(self)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(self, target)

    monkeypatch.setattr(Path, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_tiny_bundle(folder, name="new")
    monkeypatch.undo()
    assert files_of(folder.parent) == before


@pytest.mark.usefixtures("no_exchange")
def test_the_old_bundle_is_kept_aside_when_it_cannot_be_moved_back(folder, monkeypatch):
    before, real, calls = files_of(folder), Path.replace, []

    def stuck(self, target):
        calls.append(self)
        if len(calls) >= 2:
            no_space()
        return real(self, target)

    monkeypatch.setattr(Path, "replace", stuck)
    with pytest.raises(StorageError, match=r"tiny.flaw: could not be written"):
        write_tiny_bundle(folder, name="new")
    monkeypatch.undo()
    (aside,) = folder.parent.iterdir()
    assert files_of(aside / folder.name) == before


@pytest.mark.parametrize(
    ("owner", "name"),
    [(Bundle, "copy"), (zipfile.ZipFile, "writestr"), (Path, "replace"), (scratch_files, "_make")],
)
@pytest.mark.parametrize("write", [repack, rewrite_packed])
def test_a_full_disk_leaves_the_old_packed_bundle_and_nothing_else(packed, scratch, monkeypatch, write, owner, name):
    before, entries = packed.read_bytes(), sorted(packed.parent.iterdir())
    with open_bundle(packed) as bundle:
        calls = fail_at(monkeypatch, owner, name, 0)
        with pytest.raises(StorageError, match=r"packed.flaw: could not be written: the disk is full"):
            write(bundle, packed)
        assert calls
        monkeypatch.undo()
    assert packed.read_bytes() == before
    assert sorted(packed.parent.iterdir()) == entries
    assert list(scratch.iterdir()) == []


def test_a_full_disk_leaves_the_old_manifest(folder, monkeypatch):
    before = files_of(folder)
    manifest = open_bundle(folder).manifest
    monkeypatch.setattr(Path, "write_bytes", no_space)
    with pytest.raises(StorageError, match=r"manifest.json: could not be written: the disk is full"):
        rewrite_manifest(folder, msgspec.structs.replace(manifest, min_area_px=9))
    monkeypatch.undo()
    assert files_of(folder) == before


@pytest.mark.parametrize(("owner", "name"), [(Path, "open"), (Path, "mkdir"), (scratch_files, "_make")])
def test_no_room_for_copies_is_said_and_leaves_nothing(packed, scratch, monkeypatch, owner, name):
    with open_bundle(packed) as bundle:
        monkeypatch.setattr(owner, name, no_space)
        with (
            pytest.raises(StorageError, match="could not be written: the disk is full"),
            bundle.unpacked(["score.onnx"]),
        ):
            pass
        monkeypatch.undo()
    assert list(scratch.iterdir()) == []


@pytest.mark.parametrize("is_packed", [False, True])
def test_a_bundle_that_may_not_be_read_is_refused(folder, packed, scratch, monkeypatch, is_packed):
    def denied(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "open", denied)
    with pytest.raises(BundleError, match=r"could not be read: Permission denied. Check its permissions"):
        open_bundle(packed if is_packed else folder)
    monkeypatch.undo()
    assert list(scratch.iterdir()) == []


def test_files_of_a_bundle_follow_the_umask(tmp_path):
    previous = os.umask(0o027)
    try:
        write_tiny_bundle(tmp_path / "b")
    finally:
        os.umask(previous)
    assert {oct(entry.stat().st_mode & 0o777) for entry in (tmp_path / "b").rglob("*") if entry.is_file()} == {"0o640"}
    assert {oct(entry.stat().st_mode & 0o777) for entry in (tmp_path / "b", tmp_path / "b" / "golden")} == {"0o750"}


def test_the_hash_of_a_listed_file_is_that_of_its_bytes(folder):
    manifest = open_bundle(folder).manifest
    for name, listed in manifest.files.items():
        assert listed.sha256 == sha256_file(folder / name)


def test_a_bundle_is_written_under_folders_that_do_not_exist_yet(tmp_path):
    write_bundle(tmp_path / "a" / "b" / "c.flaw", tiny_manifest(), tiny_sources())
    assert isinstance(open_bundle(tmp_path / "a" / "b" / "c.flaw"), Bundle)
