"""Bundles that were damaged or made to do harm: all refused, nothing left behind, nothing written elsewhere."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import stat
import struct
import tempfile
import zipfile
from pathlib import Path

import msgspec
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tiny_bundle import tiny_manifest, tiny_sources, write_tiny_bundle

from flawscope.bundle import FileEntry, open_bundle, pack_bundle
from flawscope.bundle.manifest import encode_manifest
from flawscope.errors import BundleError

MANIFEST = "manifest.json"
SOURCES = tiny_sources()


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    """A bundle folder and its packed form; tests change copies or put bytes back."""
    root = tmp_path_factory.mktemp("pristine")
    write_tiny_bundle(root / "folder")
    with open_bundle(root / "folder") as bundle:
        pack_bundle(bundle, root / "packed")
    return root


@pytest.fixture
def folder(pristine, tmp_path):
    return Path(shutil.copytree(pristine / "folder", tmp_path / "tiny.flaw"))


@pytest.fixture
def scratch(tmp_path_factory, monkeypatch):
    """The only place where temporary files are made."""
    path = tmp_path_factory.mktemp("scratch")
    monkeypatch.setattr(tempfile, "tempdir", str(path))
    return path


@pytest.fixture
def refuse(tmp_path, scratch):
    """Return a function that opens a bundle, expects the refusal, and checks that the disk is as it was before."""

    def check(path, message):
        before = snapshot(tmp_path)
        with pytest.raises(BundleError, match=message):
            open_bundle(path)
        assert snapshot(tmp_path) == before
        assert list(scratch.iterdir()) == []

    return check


def snapshot(root):
    return sorted((str(entry), entry.lstat().st_size) for entry in root.rglob("*"))


def listed(sources):
    return {name: FileEntry(hashlib.sha256(data).hexdigest(), len(data)) for name, data in sources.items()}


def member(name, mode=stat.S_IFREG | 0o644, **attributes):
    info = zipfile.ZipInfo("placeholder")
    info.filename = name  # the constructor would clean the name
    info.external_attr = mode << 16
    for key, value in attributes.items():
        setattr(info, key, value)
    return info


def write_zip(path, extra=(), sources=None, manifest=None, compression=zipfile.ZIP_STORED):
    """Write a zip file that is a bundle but for what the arguments say.

    Args:
        path: File to write.
        extra: Further members, (ZipInfo, data), that come first.
        sources: The bundle's files; None takes the tiny ones.
        manifest: Bytes of the manifest; None lists `sources`; b"" leaves it out.
        compression: How the ordinary members are stored.
    """
    sources = tiny_sources() if sources is None else sources
    if manifest is None:
        manifest = encode_manifest(tiny_manifest(files=listed(sources)))
    members = [*extra, *((member(name, compress_type=compression), data) for name, data in sources.items())]
    if manifest:
        members.append((member(MANIFEST, compress_type=compression), manifest))
    with zipfile.ZipFile(path, "w") as archive:
        for info, data in members:
            archive.writestr(info, data)
    return path


def test_the_forger_of_these_tests_makes_bundles_that_open(tmp_path):
    with open_bundle(write_zip(tmp_path / "good.flaw")) as bundle:
        assert bundle.manifest.name == "tiny"


# --- one changed byte


@settings(max_examples=120, deadline=None)
@given(data=st.data())
def test_any_changed_byte_of_any_file_in_a_folder_is_refused(pristine, data):
    files = sorted(entry for entry in (pristine / "folder").rglob("*") if entry.is_file())
    file = data.draw(st.sampled_from(files))
    original = file.read_bytes()
    offset = data.draw(st.integers(0, len(original) - 1))
    changed = bytearray(original)
    changed[offset] ^= data.draw(st.integers(1, 255))
    file.write_bytes(changed)
    try:
        with pytest.raises(BundleError, match=r"manifest|schema|expected SHA-256"):
            open_bundle(pristine / "folder")
    finally:
        file.write_bytes(original)
    open_bundle(pristine / "folder").close()


def data_ranges(path):
    """Return where the data of every member lies in a zip file."""
    raw = path.read_bytes()
    ranges = []
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            name, extra = struct.unpack_from("<HH", raw, info.header_offset + 26)
            start = info.header_offset + 30 + name + extra
            ranges.append(range(start, start + info.file_size))
    return ranges


@settings(max_examples=120, deadline=None)
@given(data=st.data())
def test_any_changed_byte_of_a_packed_member_is_refused(pristine, data):
    path = pristine / "packed"
    original = path.read_bytes()
    offset = data.draw(st.sampled_from(data_ranges(path)).flatmap(st.sampled_from))
    changed = bytearray(original)
    changed[offset] ^= data.draw(st.integers(1, 255))
    (pristine / "changed").write_bytes(changed)
    with pytest.raises(BundleError, match="Bad CRC-32"):
        open_bundle(pristine / "changed")


@settings(max_examples=120, deadline=None)
@given(data=st.data())
def test_a_changed_member_with_the_right_checksum_is_refused_too(tmp_path_factory, data):
    sources = SOURCES
    honest = {**sources, MANIFEST: encode_manifest(tiny_manifest(files=listed(sources)))}
    name = data.draw(st.sampled_from(sorted(honest)))
    changed = bytearray(honest[name])
    changed[data.draw(st.integers(0, len(changed) - 1))] ^= data.draw(st.integers(1, 255))
    forged = {**honest, name: bytes(changed)}
    manifest = forged.pop(MANIFEST)
    path = write_zip(tmp_path_factory.getbasetemp() / "forged.flaw", sources=forged, manifest=manifest)
    with pytest.raises(BundleError, match=r"manifest|schema|expected SHA-256"):
        open_bundle(path)


@settings(max_examples=250, deadline=None)
@given(data=st.data())
def test_any_changed_byte_of_a_packed_file_is_refused_or_changes_nothing(pristine, data):
    original = (pristine / "packed").read_bytes()
    parts = sorted(data_ranges(pristine / "packed"), key=lambda part: part.start)
    ends = [0, *(part.stop for part in parts)]
    headers = [
        range(end, start) for end, start in zip(ends, [*(part.start for part in parts), len(original)], strict=True)
    ]
    changed = bytearray(original)
    changed[data.draw(st.sampled_from(headers).flatmap(st.sampled_from))] ^= data.draw(st.integers(1, 255))
    (pristine / "changed").write_bytes(changed)
    try:
        opened = open_bundle(pristine / "changed")
    except BundleError:
        return
    with opened, open_bundle(pristine / "folder") as honest:  # a changed date or version number is no change
        assert opened.manifest == honest.manifest
        for name in honest.manifest.files:
            assert opened.read(name) == honest.read(name)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200))
def test_other_bytes_are_refused(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "other.flaw"
    path.write_bytes(data)
    with pytest.raises(BundleError, match=r"expected a bundle, got (no readable zip file|an image)"):
        open_bundle(path)


def test_a_packed_file_cut_anywhere_is_refused(pristine, tmp_path, refuse):
    whole = (pristine / "packed").read_bytes()
    path = tmp_path / "cut.flaw"
    for length in {*range(0, len(whole), 41), *range(len(whole) - 30, len(whole))}:
        path.write_bytes(whole[:length])
        refuse(path, "got no readable zip file")


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_a_folder_with_a_cut_or_grown_file_is_refused(pristine, data):
    files = sorted(entry for entry in (pristine / "folder").rglob("*") if entry.is_file())
    file = data.draw(st.sampled_from(files))
    original = file.read_bytes()
    length = data.draw(st.integers(0, len(original) + 3))
    assume(length != len(original))
    file.write_bytes(original.ljust(length, b"\n")[:length])
    try:
        with pytest.raises(BundleError, match=r"manifest|expected [0-9]+ bytes, got [0-9]+"):
            open_bundle(pristine / "folder")
    finally:
        file.write_bytes(original)


# --- folders


def test_a_path_with_nothing_there_is_refused(tmp_path, refuse):
    refuse(tmp_path / "none.flaw", "expected a bundle, got no such file or folder. Make one with flawscope export")


def test_a_folder_without_a_manifest_is_refused(tmp_path, refuse):
    refuse(tmp_path, "expected a bundle with manifest.json, got a folder without it")
    (tmp_path / "report").mkdir()
    (tmp_path / "bottle.flaw").mkdir()
    refuse(tmp_path, re.escape(f"got a folder without it. Did you mean {tmp_path / 'bottle.flaw'}?"))


def test_an_archive_of_a_bundles_folder_is_refused(tmp_path, folder, refuse):
    path = tmp_path / "archive.flaw"
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(folder / MANIFEST, f"bottle.flaw/{MANIFEST}")
    refuse(path, "got an archive without it at the top. Make one file of a bundle's folder with flawscope bundle pack")


def test_a_manifest_that_is_a_folder_is_refused(folder, refuse):
    (folder / MANIFEST).unlink()
    (folder / MANIFEST).mkdir()
    refuse(folder, "could not be read: Is a directory|manifest.json: expected a plain file")


def test_a_manifest_of_absurd_size_is_not_read(folder, refuse):
    os.truncate(folder / MANIFEST, 65 << 20)  # sparse: occupies nothing
    refuse(folder, "manifest.json: expected at most 64 MiB")


@pytest.mark.parametrize("name", ["score.onnx", "bank.safetensors", "golden/0.png", "images.json"])
def test_a_missing_file_is_refused(folder, refuse, name):
    (folder / name).unlink()
    refuse(folder, f"expected the listed file {name}, which is missing")


@pytest.mark.parametrize("name", ["weights.bin", "golden/1.png", ".hidden", "deep/er/x"])
def test_an_unlisted_file_is_refused(folder, refuse, name):
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(b"x")
    refuse(folder, f"expected only listed files, got '{name}' as well. Remove it")


@pytest.mark.parametrize("name", ["score.onnx", "extra.onnx"])
def test_a_link_is_refused_even_to_the_same_bytes(folder, tmp_path, refuse, name):
    target = tmp_path / "outside.onnx"
    target.write_bytes(tiny_sources()["score.onnx"])
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(target)
    refuse(folder, f"expected plain files, got the link {name}")


def test_a_linked_folder_and_a_dangling_link_are_refused(folder, tmp_path, refuse):
    moved = (folder / "golden").rename(tmp_path / "golden")
    (folder / "golden").symlink_to(moved)
    refuse(folder, "expected plain files, got the link golden")
    (folder / "golden").unlink()
    (folder / "golden").symlink_to(tmp_path / "nowhere")
    refuse(folder, "expected plain files, got the link golden")


@pytest.mark.parametrize("name", ["score.onnx", "extra"])
def test_a_pipe_is_refused_and_not_waited_for(folder, refuse, name):
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    refuse(folder, f"expected plain files, got the pipe or device {name}")


ESCAPES = ["../x", "golden/../../x", "/tmp/x", "..", "a\\b", "..\\x", "C:x", "./score.onnx", "golden//0.png", "a/./b"]


@pytest.mark.parametrize("name", [*ESCAPES, "", ".", "golden/", MANIFEST, "a\0b"])
@pytest.mark.parametrize("is_packed", [False, True])
def test_a_manifest_that_lists_a_name_outside_is_refused(folder, tmp_path, refuse, name, is_packed):
    files = listed(tiny_sources()) | {name: FileEntry(hashlib.sha256(b"x").hexdigest(), 1)}
    manifest = encode_manifest(tiny_manifest(files=files))
    (tmp_path / "x").write_bytes(b"x")  # what `../x` would find
    (folder / MANIFEST).write_bytes(manifest)
    path = write_zip(tmp_path / "packed.flaw", manifest=manifest) if is_packed else folder
    refuse(path, "the manifest lists the name .*, which is not allowed in a bundle")


# --- zip files


@pytest.mark.parametrize("name", ESCAPES)
def test_a_member_whose_name_leaves_the_bundle_is_not_unpacked(tmp_path, refuse, name):
    refuse(
        write_zip(tmp_path / "a.flaw", [(member(name), b"evil")]), "the member name .* leaves the bundle. It was not"
    )


def test_a_listed_member_whose_name_leaves_the_bundle_is_not_unpacked(tmp_path, refuse):
    sources = {**tiny_sources(), "../evil": b"evil"}
    refuse(
        write_zip(tmp_path / "a.flaw", sources=sources), r"the manifest lists the name '../evil', which is not allowed"
    )


@pytest.mark.parametrize(
    ("info", "data"),
    [
        (member("link", stat.S_IFLNK | 0o777), b"/etc/passwd"),
        (member("score.onnx", stat.S_IFLNK | 0o777), b"/etc/passwd"),
        (member("folder/", stat.S_IFDIR | 0o755), b""),
    ],
)
def test_a_member_that_is_a_link_or_a_folder_is_refused(tmp_path, refuse, info, data):
    sources = {name: bytes_ for name, bytes_ in tiny_sources().items() if name != info.filename}
    manifest = encode_manifest(tiny_manifest(files=listed({**sources, "score.onnx": b"/etc/passwd"})))
    path = write_zip(tmp_path / "a.flaw", [(info, data)], sources, manifest)
    refuse(path, f"the member '{info.filename}' is a folder or a link, not a file")


@pytest.mark.parametrize("compression", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_compressed_member_is_refused(tmp_path, refuse, compression):
    path = write_zip(tmp_path / "a.flaw", compression=compression)
    refuse(path, r"the member 'score.onnx' is compressed. Pack it with flawscope bundle pack")


def test_a_bomb_is_refused_before_it_is_inflated(tmp_path, refuse):
    bomb = (member("score.onnx", compress_type=zipfile.ZIP_DEFLATED), bytes(64 << 20))
    sources = {name: data for name, data in tiny_sources().items() if name != "score.onnx"}
    path = write_zip(tmp_path / "a.flaw", [bomb], sources)
    assert path.stat().st_size < 100_000
    refuse(path, "is compressed")


@pytest.mark.filterwarnings("ignore:Duplicate name")  # the forger is told, and does it all the same
@pytest.mark.parametrize("name", ["score.onnx", MANIFEST])
def test_a_repeated_member_is_refused(tmp_path, refuse, name):
    path = write_zip(tmp_path / "a.flaw", [(member(name), b"first")])
    refuse(path, "expected every name once, got a repeated member")


def test_an_unlisted_member_is_refused(tmp_path, refuse):
    path = write_zip(tmp_path / "a.flaw", [(member("weights.bin"), b"x")])
    refuse(path, "expected only listed files, got 'weights.bin' as well")


def test_a_missing_member_is_refused(tmp_path, refuse):
    sources = tiny_sources()
    manifest = encode_manifest(tiny_manifest(files=listed(sources)))
    del sources["images.json"]
    path = write_zip(tmp_path / "a.flaw", sources=sources, manifest=manifest)
    refuse(path, "expected the listed file images.json, which is missing")


def test_a_file_that_is_also_a_folder_is_refused(tmp_path, scratch):
    path = write_zip(tmp_path / "a.flaw", sources={**tiny_sources(), "a": b"file", "a/b": b"file in it"})
    with pytest.raises(BundleError, match=r"a.flaw: the manifest lists 'a/b' below a file"):
        open_bundle(path)
    assert list(scratch.iterdir()) == []


def test_a_zip_of_something_else_is_refused(tmp_path, refuse):
    path = write_zip(tmp_path / "a.flaw", sources={"word/document.xml": b"<w/>"}, manifest=b"")
    refuse(path, "expected a bundle with manifest.json, got a zip file without it")


def test_an_empty_zip_is_refused(tmp_path, refuse):
    path = write_zip(tmp_path / "a.flaw", sources={}, manifest=b"")
    refuse(path, "got a zip file without it")


def test_an_empty_file_is_refused(tmp_path, refuse):
    (tmp_path / "a.flaw").write_bytes(b"")
    refuse(tmp_path / "a.flaw", "expected a bundle, got no readable zip file")


def test_a_zip_with_a_broken_manifest_is_refused(tmp_path, refuse):
    refuse(write_zip(tmp_path / "a.flaw", manifest=b"{}"), "the manifest is broken")


def test_a_manifest_member_of_absurd_size_is_not_read(tmp_path, refuse):
    path = write_zip(tmp_path / "a.flaw", manifest=bytes((64 << 20) + 1))
    refuse(path, "manifest.json: expected at most 64 MiB")


def test_an_encrypted_member_is_refused(pristine, tmp_path, refuse):
    raw = bytearray((pristine / "packed").read_bytes())
    with zipfile.ZipFile(pristine / "packed") as archive:
        start, count = archive.start_dir, len(archive.infolist())
    for _ in range(count):  # flag bit 0 of every entry of the central directory
        raw[start + 8] |= 1
        name, extra, comment = struct.unpack_from("<HHH", raw, start + 28)
        start += 46 + name + extra + comment
    (tmp_path / "a.flaw").write_bytes(raw)
    refuse(tmp_path / "a.flaw", "got no readable zip file .*encrypted")


def test_a_member_of_another_size_than_listed_is_refused_before_it_is_written(tmp_path, refuse):
    sources = tiny_sources()
    files = listed(sources)
    files["score.onnx"] = msgspec.structs.replace(files["score.onnx"], size=7)
    path = write_zip(tmp_path / "a.flaw", sources=sources, manifest=encode_manifest(tiny_manifest(files=files)))
    refuse(path, r"score.onnx: expected 7 bytes, got [0-9]+")


def test_a_header_offset_beyond_every_file_is_refused(pristine, tmp_path, refuse):
    """A zip64 offset of 2^63 and more fits no file position of the system."""
    info = member("x")
    with zipfile.ZipFile(tmp_path / "a.flaw", "w") as archive:
        archive.writestr(info, b"")
        archive.writestr(member(MANIFEST), b"{}")
        for entry in archive.infolist():
            entry.header_offset = 2**64 - 1
    refuse(tmp_path / "a.flaw", "got no readable zip file")


def test_an_error_nobody_foresaw_leaves_no_temporary_folder(pristine, scratch, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(zipfile.ZipFile, "infolist", interrupted)
    with pytest.raises(KeyboardInterrupt):
        open_bundle(pristine / "packed")
    assert list(scratch.iterdir()) == []


def test_members_that_share_bytes_are_refused(tmp_path, refuse):
    """A zip of a few megabytes can otherwise open as gigabytes: every entry names the same bytes."""
    sources = {f"{number}.bin": bytes(1000) for number in range(5)}
    path = write_zip(
        tmp_path / "a.flaw", sources=sources, manifest=encode_manifest(tiny_manifest(files=listed(sources)))
    )
    archive, at = bytearray(path.read_bytes()), 0
    for _ in range(4):  # entries of the central directory: the offset of the member is at byte 42
        at = archive.index(b"PK\x01\x02", at + 1)
        archive[at + 42 : at + 46] = bytes(4)
    path.write_bytes(bytes(archive))
    refuse(path, "shares bytes with another")


def test_a_member_without_a_name_is_refused(tmp_path, refuse):
    path = write_zip(tmp_path / "a.flaw", [(member("x"), b"data")])
    archive = bytearray(path.read_bytes())
    entry = archive.index(b"PK\x01\x02")
    archive[entry + 28 : entry + 32] = b"\0\0\1\0"  # no name, and its one byte becomes an extra field
    path.write_bytes(bytes(archive))
    refuse(path, r"the member name '' leaves the bundle|no readable zip file")


def test_a_folder_that_may_not_be_listed_is_refused(folder, refuse, monkeypatch):
    real = os.scandir

    def denied(path):
        if str(path).endswith("golden"):
            raise PermissionError(errno.EACCES, "Permission denied")
        return real(path)

    monkeypatch.setattr(os, "scandir", denied)
    refuse(folder, "could not be read: Permission denied")


@pytest.mark.parametrize(
    "name", [".DS_Store", "Thumbs.db", "desktop.ini", ".nfs00000001", "._score.onnx", "golden/.DS_Store"]
)
def test_what_file_managers_leave_behind_is_no_reason_to_refuse(folder, name):
    (folder / name).write_bytes(b"litter")
    with open_bundle(folder) as bundle, pytest.raises(BundleError, match="does not list it"):
        bundle.read(name)
