"""Writing, opening, packing and rewriting bundles; what survives a full disk."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
import zipfile
from pathlib import Path

import msgspec
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_bundle import (
    BANK,
    golden_picture,
    tiny_manifest,
    tiny_sources,
    tiny_thresholds,
    write_tiny_bundle,
)

from flawscope.bundle import (
    SCHEMA,
    Accuracy,
    Bundle,
    Evidence,
    Parity,
    ThresholdChange,
    open_bundle,
    pack_bundle,
    rewrite_manifest,
    write_bundle,
)
from flawscope.bundle.manifest import decode_manifest, encode_manifest
from flawscope.errors import ArgumentError, BundleError, StorageError
from flawscope.files import sha256_file


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "tiny.flaw"
    write_tiny_bundle(path)
    return path


@pytest.fixture
def packed(folder):
    path = folder.parent / "packed.flaw"
    with open_bundle(folder) as bundle:
        pack_bundle(bundle, path)
    return path


@pytest.fixture
def scratch(tmp_path_factory, monkeypatch):
    """The only place where temporary files are made."""
    path = tmp_path_factory.mktemp("scratch")
    monkeypatch.setattr(tempfile, "tempdir", str(path))
    return path


def contents(path):
    """Return the bytes of every file below a folder, or of every member of a zip file."""
    if path.is_dir():
        return {entry.relative_to(path).as_posix(): entry.read_bytes() for entry in path.rglob("*") if entry.is_file()}
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def no_space(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


# --- the way there and back


def test_a_folder_opens_as_it_was_written(folder):
    written = json.loads((folder / "manifest.json").read_bytes())
    with open_bundle(folder) as bundle:
        assert bundle.folder == bundle.path == folder
        assert msgspec.structs.replace(bundle.manifest, files={}, digest="") == tiny_manifest()
        assert bundle.manifest.digest == written["digest"]
        assert len(bundle.manifest.digest) == 64
        for name, data in tiny_sources().items():
            assert bundle.file(name).read_bytes() == data
            assert bundle.manifest.files[name].sha256 == hashlib.sha256(data).hexdigest()
            assert bundle.manifest.files[name].size == len(data)


def test_write_bundle_returns_the_manifest_that_is_stored(tmp_path):
    written = write_tiny_bundle(tmp_path / "b")
    assert open_bundle(tmp_path / "b").manifest == written


def test_a_path_may_be_text(folder, packed):
    assert open_bundle(str(folder)).manifest == open_bundle(folder).manifest
    with open_bundle(str(packed)) as bundle:
        assert bundle.manifest.name == "tiny"


def test_sources_may_be_files(tmp_path):
    data = tiny_sources()["score.onnx"]
    (tmp_path / "graph.bin").write_bytes(data)
    write_tiny_bundle(tmp_path / "b", {"score.onnx": tmp_path / "graph.bin"})
    write_tiny_bundle(tmp_path / "c")
    assert contents(tmp_path / "b") == contents(tmp_path / "c")


def test_a_packed_bundle_has_the_same_identity_and_files(folder, packed):
    with open_bundle(folder) as one, open_bundle(packed) as other:
        assert other.manifest == one.manifest
        assert other.path == packed
        assert contents(other.folder) == contents(folder)


def test_a_packed_bundle_is_the_same_byte_for_byte_whatever_it_was_made_from(tmp_path, folder, packed):
    again, copy = tmp_path / "again.flaw", tmp_path / "copied"
    shutil.copytree(folder, copy)
    for entry in copy.rglob("*"):
        os.utime(entry, (1e9, 1e9))
        entry.chmod(0o755)
    for source, target in ((copy, again), (packed, tmp_path / "repacked.flaw")):
        with open_bundle(source) as bundle:
            pack_bundle(bundle, target)
        assert target.read_bytes() == packed.read_bytes()


def test_packing_over_the_opened_file_keeps_it(packed):
    before = packed.read_bytes()
    with open_bundle(packed) as bundle:
        pack_bundle(bundle, packed)
    assert packed.read_bytes() == before


def test_members_are_stored_without_compression_at_a_fixed_time(packed):
    with zipfile.ZipFile(packed) as archive:
        for member in archive.infolist():
            assert member.compress_type == zipfile.ZIP_STORED
            assert member.date_time == (1980, 1, 1, 0, 0, 0)
        assert archive.testzip() is None


def test_the_temporary_folder_lives_as_long_as_the_packed_bundle_is_open(packed, scratch):
    bundle = open_bundle(packed)
    assert list(scratch.iterdir()) == [bundle.folder]
    bundle.close()
    assert list(scratch.iterdir()) == []
    bundle.close()  # closing twice does no harm


def test_closing_a_folder_leaves_it(folder):
    with open_bundle(folder):
        pass
    assert open_bundle(folder).manifest.name == "tiny"


def test_a_bundle_can_be_moved(folder, tmp_path):
    moved = folder.rename(tmp_path / "elsewhere")
    assert open_bundle(moved).manifest.name == "tiny"


def test_the_tiny_bundle_reproduces_its_golden_score(folder):
    runtime = pytest.importorskip("flawscope.runtime", reason="ONNX Runtime is not installed")
    with runtime.Inspector.load(folder, "cpu") as inspector:
        result = inspector(golden_picture())
    assert result.score == 200.0
    assert result.anomaly_map.min() == 90.0


# --- what a bundle hands out


def test_an_unknown_graph_is_refused_with_the_known_ones(folder):
    with pytest.raises(BundleError, match=r"expected a graph called features, got \['score'\]"):
        open_bundle(folder).graph("features")


def test_a_file_that_is_not_listed_is_not_handed_out(folder):
    with pytest.raises(BundleError, match=r"names other.bin but does not list it"):
        open_bundle(folder).file("other.bin")


def test_a_graph_whose_file_is_not_listed_is_refused(tmp_path):
    graph = msgspec.structs.replace(tiny_manifest().graphs["score"], file="../score.onnx")
    write_tiny_bundle(tmp_path / "b", graphs={"score": graph})
    with pytest.raises(BundleError, match=r"names \.\./score.onnx but does not list it"):
        open_bundle(tmp_path / "b").graph("score")


def test_the_bank_is_read_as_it_was_stored(folder, packed):
    for path in (folder, packed):
        with open_bundle(path) as bundle:
            tensors = bundle.tensors()
        assert set(tensors) == {"bank"}
        assert tensors["bank"].dtype == np.float32
        np.testing.assert_array_equal(tensors["bank"], BANK)


def bank_of(dtype, width):
    header = json.dumps({"bank": {"dtype": dtype, "shape": [2], "data_offsets": [0, 2 * width]}}).encode()
    return len(header).to_bytes(8, "little") + header + bytes(2 * width)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (safetensors.numpy.save({"bank": np.array([[1, np.nan]], np.float32)}), "finite numbers in bank, got NaN"),
        (safetensors.numpy.save({"bank": np.array([[np.inf]], np.float32)}), "finite numbers in bank, got NaN or inf"),
        (safetensors.numpy.save({"bank": BANK, "norms": np.zeros((0,), np.float32)}), "in norms, got an empty array"),
        (safetensors.numpy.save({}), "expected tensors, got none"),
        (b"", "is no safetensors file"),
        (b"\x00" * 100, "is no safetensors file"),
        (b"\xff" * 100, "is no safetensors file"),
        (safetensors.numpy.save({"bank": BANK})[:-1], "is no safetensors file"),
        (b"\x80\x04\x95(a pickle)", "is no safetensors file"),
        (bank_of("XYZ", 4), "is no safetensors file"),
        (bank_of("C64", 8), "expected float16, float32, float64, int32, int64 in bank, got complex64"),
        (bank_of("BOOL", 1), "int64 in bank, got bool"),
        # Whether NumPy knows these two depends on packages beside it (ml_dtypes, which onnx brings).
        (bank_of("BF16", 2), "holds a type NumPy lacks|in bank, got bfloat16"),
        (bank_of("F8_E4M3", 1), "holds a type NumPy lacks|in bank, got float8"),
    ],
)
def test_a_bank_that_cannot_be_used_is_refused(tmp_path, data, message):
    write_tiny_bundle(tmp_path / "b", {"bank.safetensors": data})
    with pytest.raises(BundleError, match=message):
        open_bundle(tmp_path / "b").tensors()


def test_a_bank_that_is_not_in_the_bundle_is_refused(tmp_path):
    write_tiny_bundle(tmp_path / "b", bank="other.safetensors")
    with pytest.raises(BundleError, match=r"names other.safetensors but does not list it"):
        open_bundle(tmp_path / "b").tensors()


def test_a_bank_that_vanished_after_opening_is_refused(packed):
    bundle = open_bundle(packed)
    bundle.close()
    with pytest.raises(BundleError, match=r"bank.safetensors is no safetensors file: .*Export it again"):
        bundle.tensors()


# --- the manifest


finite = st.floats(allow_nan=False, allow_infinity=False)
plain = st.text(st.characters(codec="utf-8"), max_size=12)
json_value = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | finite | plain,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(plain, inner, max_size=3),
    max_leaves=6,
)


def test_whole_numbers_in_fields_for_floats_come_back():
    manifest = decode_manifest(encode_manifest(tiny_manifest(thresholds=tiny_thresholds(150))), "m")
    assert manifest.thresholds == tiny_thresholds(150.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "program"}, "Invalid enum value 'program'"),
        ({"max_batch": 4.5}, "Expected `int`, got `float`"),
        ({"graphs": None}, "Expected `object`, got `null`"),
    ],
)
def test_a_manifest_that_could_not_be_read_back_is_not_written(tmp_path, change, message):
    with pytest.raises(BundleError, match=f"manifest: {message}.*Nothing was written"):
        write_tiny_bundle(tmp_path / "b", **change)
    assert list(tmp_path.iterdir()) == []


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(plain, json_value, max_size=4), plain, finite, st.integers(0, 2**70), finite)
def test_every_manifest_comes_back_equal(config, text, number, seed, old):
    base = tiny_manifest()
    manifest = msgspec.structs.replace(
        base,
        name=text,
        provenance=msgspec.structs.replace(base.provenance, config=config, command=text, seed=seed),
        thresholds=tiny_thresholds(number),
        threshold_changes=(
            ThresholdChange(text, "image", None, number, text),
            ThresholdChange("", "pixel", old, 1, ""),
        ),
        evidence=Evidence(
            parity=(Parity("torch", text, 3, number, old, None),),
            accuracy=(Accuracy("", text, "", "cpu", 3, 1, {"image_auroc": number, "aupro": None}),),
        ),
    )
    data = encode_manifest(manifest)
    decoded = decode_manifest(data, "m")
    assert msgspec.structs.replace(decoded, digest="") == manifest
    assert encode_manifest(decoded) == data


def test_the_identity_follows_every_field():
    digests = {
        decode_manifest(encode_manifest(tiny_manifest(**change)), "m").digest
        for change in ({}, {"name": "other"}, {"max_batch": 5}, {"min_area_px": 5}, {"thresholds": tiny_thresholds(1)})
    }
    assert len(digests) == 5


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("place", ["thresholds", "evidence", "config"])
def test_numbers_that_are_not_finite_are_refused_before_anything_is_written(tmp_path, value, place):
    base = tiny_manifest()
    change = {
        "thresholds": {"thresholds": tiny_thresholds(value)},
        "evidence": {"evidence": Evidence(accuracy=(Accuracy("", "", "", "cpu", 1, 1, {"aupro": value}),))},
        "config": {"provenance": msgspec.structs.replace(base.provenance, config={"deep": [{"mean": (0.5, value)}]})},
    }[place]
    with pytest.raises(BundleError, match="expected finite numbers, got NaN or infinity"):
        write_tiny_bundle(tmp_path / "b", **change)
    assert list(tmp_path.iterdir()) == []


def edited(change, redigest=True):
    """Return the bytes of a manifest whose JSON was edited by one who knows how the digest is made."""
    fields = json.loads(encode_manifest(tiny_manifest()))
    change(fields)
    if redigest:
        fields["digest"] = ""
        blank = (json.dumps(fields, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()
        fields["digest"] = hashlib.sha256(blank).hexdigest()
    return (json.dumps(fields, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()


def test_the_forger_of_these_tests_makes_manifests_that_pass():
    manifest = decode_manifest(edited(lambda fields: fields.update(name="forged")), "m")
    assert manifest.name == "forged"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda fields: fields.update(schema=SCHEMA + 1), "schema 1 or older, got 2. It was written by a newer flaw"),
        (lambda fields: fields.update(schema=10**18, head="?", extra=[]), "written by a newer flawscope: update"),
        (lambda fields: fields.update(schema=0), "expected manifest schema 1, got 0"),
        (lambda fields: fields.update(schema="1"), r"Expected `int`, got `str` - at `\$.schema`"),
        (lambda fields: fields.pop("schema"), "missing required field `schema`"),
        (lambda fields: fields.update(extra=1), "unknown field `extra`"),
        (lambda fields: fields["input"].update(extra=1), r"unknown field `extra` - at `\$.input`"),
        (lambda fields: fields["head"].update(type="other"), "Invalid value 'other'"),
        (lambda fields: fields["provenance"].update(extra=1), r"unknown field `extra` - at `\$.provenance`"),
        (lambda fields: fields.pop("bank"), "missing required field `bank`"),
        (lambda fields: fields.update(max_batch="4"), "Expected `int`, got `str`"),
        (lambda fields: fields.update(kind="program"), "Invalid enum value 'program'"),
        (lambda fields: fields["input"].update(resize=[1, 1]), "resize: expected height and width from 16 to 8192"),
        (lambda fields: fields["input"].update(version=9), "preprocessing version: expected 1, got 9"),
        (lambda fields: fields["head"].update(sigma=0), "was changed after it was written"),
    ],
)
def test_a_manifest_that_says_something_else_is_refused(change, message):
    with pytest.raises(BundleError, match=message):
        decode_manifest(edited(change), "m")


def test_an_edited_value_without_a_new_digest_is_refused():
    data = edited(lambda fields: fields.update(max_batch=64), redigest=False)
    with pytest.raises(BundleError, match="m: the manifest was changed after it was written"):
        decode_manifest(data, "m")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"null",
        b"[]",
        b"{",
        b"\xff\xfe",
        b'{"schema": NaN}',
        b'{"schema": 1e999}',
        encode_manifest(tiny_manifest()).replace(b'"sigma": 0.0', b'"sigma": NaN', 1),
        encode_manifest(tiny_manifest()).replace(b'"sigma": 0.0', b'"sigma": Infinity', 1),
        encode_manifest(tiny_manifest()).replace(b'"sigma": 0.0', b'"sigma": 1e999', 1),
        b'{"schema": 1, "provenance": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        encode_manifest(tiny_manifest()).replace(b'"sigma": 0.0', b'"sigma": ' + b"[" * 600 + b"]" * 600, 1),
    ],
)
def test_bytes_that_are_no_manifest_are_refused(data):
    with pytest.raises(BundleError, match=r"m: the manifest is broken: .*Copy or export the bundle again"):
        decode_manifest(data, "m")


def test_the_same_content_in_other_bytes_is_refused():
    data = json.dumps(json.loads(encode_manifest(tiny_manifest()))).encode()
    with pytest.raises(BundleError, match="was changed after it was written"):
        decode_manifest(data, "m")


# --- rewriting


@pytest.mark.parametrize("is_packed", [False, True])
def test_rewriting_sets_thresholds_and_touches_no_other_file(folder, packed, is_packed):
    path = packed if is_packed else folder
    with open_bundle(path) as bundle:
        manifest, before = bundle.manifest, contents(path)
    written = rewrite_manifest(path, msgspec.structs.replace(manifest, thresholds=tiny_thresholds(42.0)))
    after = contents(path)
    with open_bundle(path) as bundle:
        assert bundle.manifest == written
        assert bundle.manifest.thresholds == tiny_thresholds(42.0)
        assert bundle.manifest.digest != manifest.digest
        assert bundle.manifest.files == manifest.files
    assert before.keys() == after.keys()
    assert [name for name in before if before[name] != after[name]] == ["manifest.json"]


def test_rewriting_a_folder_does_not_even_rewrite_equal_bytes(folder):
    inodes = {entry: entry.stat().st_ino for entry in folder.rglob("*") if entry.name != "manifest.json"}
    manifest = open_bundle(folder).manifest
    rewrite_manifest(folder, msgspec.structs.replace(manifest, min_area_px=9))
    assert {entry: entry.stat().st_ino for entry in inodes} == inodes
    assert open_bundle(folder).manifest.min_area_px == 9


@pytest.mark.parametrize("is_packed", [False, True])
def test_rewriting_with_nan_changes_nothing(folder, packed, is_packed):
    path = packed if is_packed else folder
    with open_bundle(path) as bundle:
        manifest = bundle.manifest
    before = contents(path)
    with pytest.raises(BundleError, match="expected finite numbers"):
        rewrite_manifest(path, msgspec.structs.replace(manifest, thresholds=tiny_thresholds(float("nan"))))
    assert contents(path) == before


# --- where a bundle may be written


def test_an_existing_bundle_is_replaced_whole(folder):
    write_tiny_bundle(folder, {"extra.bin": b"x"}, name="first")
    assert "extra.bin" in contents(folder)
    write_tiny_bundle(folder, name="second")
    assert open_bundle(folder).manifest.name == "second"
    assert "extra.bin" not in contents(folder)
    assert list(folder.parent.iterdir()) == [folder]


def test_a_broken_bundle_is_replaced_too(folder):
    (folder / "score.onnx").write_bytes(b"broken")
    write_tiny_bundle(folder)
    assert open_bundle(folder).manifest.name == "tiny"


def test_an_empty_folder_becomes_a_bundle(tmp_path):
    (tmp_path / "b").mkdir()
    write_tiny_bundle(tmp_path / "b")
    assert open_bundle(tmp_path / "b").manifest.name == "tiny"


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("thesis.tex", b"years of work", "expected a new folder or one with manifest.json, got a folder with other"),
        ("manifest.json", b'{"name": "a web page", "start_url": "."}', "whose manifest.json is not of flawscope"),
    ],
)
def test_a_foreign_folder_is_not_replaced(tmp_path, name, data, message):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / name).write_bytes(data)
    with pytest.raises(ArgumentError, match=message):
        write_tiny_bundle(tmp_path / "b")
    assert contents(tmp_path) == {f"b/{name}": data}


def test_a_file_is_not_replaced_by_a_folder(tmp_path):
    (tmp_path / "b").write_bytes(b"a file")
    with pytest.raises(ArgumentError, match="expected a folder name that is free, got an existing file"):
        write_tiny_bundle(tmp_path / "b")
    assert contents(tmp_path) == {"b": b"a file"}


@pytest.mark.parametrize(
    "name", ["../x", "/tmp/x", "a/../../x", "a\\b", "c:x", "", ".", "./a", "a//b", "manifest.json"]
)
def test_a_source_name_that_may_not_be_in_a_bundle_is_refused(tmp_path, name):
    with pytest.raises(ArgumentError, match=r"expected a relative file name other than manifest.json"):
        write_tiny_bundle(tmp_path / "deep" / "b", {name: b"x"})
    assert list(tmp_path.iterdir()) == []


def test_packing_onto_a_folder_is_refused(folder, tmp_path):
    (tmp_path / "out").mkdir()
    with open_bundle(folder) as bundle, pytest.raises(ArgumentError, match="got an existing folder"):
        pack_bundle(bundle, tmp_path / "out")


@pytest.mark.parametrize("name", ["new.flaw", "bank.safetensors", "golden/new.flaw"])
def test_packing_into_the_bundle_itself_is_refused(folder, name):
    before = contents(folder)
    with open_bundle(folder) as bundle, pytest.raises(ArgumentError, match="expected a place outside the bundle"):
        pack_bundle(bundle, folder / name)
    assert contents(folder) == before


# --- a full disk


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


@pytest.mark.parametrize(
    ("owner", "name", "position"),
    [
        (Path, "write_bytes", 0),
        (Path, "write_bytes", 2),
        (Path, "write_bytes", 3),  # the manifest: three other files are bytes, one is copied
        (shutil, "copyfile", 0),
        (Path, "replace", 0),  # moving the old bundle aside
        (Path, "replace", 1),  # moving the new one in
        (Path, "chmod", 1),
        (Path, "mkdir", 1),
        (tempfile, "mkdtemp", 0),
        (tempfile, "mkdtemp", 1),
    ],
)
def test_a_full_disk_leaves_the_old_bundle_and_nothing_else(folder, monkeypatch, tmp_path, owner, name, position):
    graph = tmp_path / "graph.bin"
    graph.write_bytes(tiny_sources()["score.onnx"])
    before = contents(tmp_path)
    entries = sorted(tmp_path.iterdir())
    calls = fail_at(monkeypatch, owner, name, position)
    with pytest.raises(StorageError, match=r"tiny.flaw: could not be written: the disk is full. Nothing was left"):
        write_tiny_bundle(folder, {"score.onnx": graph}, name="new")
    assert len(calls) > position
    monkeypatch.undo()
    assert contents(tmp_path) == before
    assert sorted(tmp_path.iterdir()) == entries
    assert open_bundle(folder).manifest.name == "tiny"


def test_an_interrupt_while_the_folders_are_swapped_brings_the_old_bundle_back(folder, monkeypatch):
    before = contents(folder.parent)
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
    assert contents(folder.parent) == before


def test_the_old_bundle_is_kept_aside_when_it_cannot_be_moved_back(folder, monkeypatch):
    before, real, calls = contents(folder), Path.replace, []

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
    assert contents(aside / folder.name) == before


@pytest.mark.parametrize(
    ("owner", "name"),
    [(shutil, "copyfileobj"), (zipfile.ZipFile, "writestr"), (Path, "replace"), (tempfile, "mkstemp")],
)
@pytest.mark.parametrize("write", [pack_bundle, rewrite_packed])
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
    before = contents(folder)
    manifest = open_bundle(folder).manifest
    monkeypatch.setattr(Path, "write_bytes", no_space)
    with pytest.raises(StorageError, match=r"manifest.json: could not be written: the disk is full"):
        rewrite_manifest(folder, msgspec.structs.replace(manifest, min_area_px=9))
    monkeypatch.undo()
    assert contents(folder) == before


@pytest.mark.parametrize(("owner", "name"), [(Path, "write_bytes"), (Path, "mkdir"), (tempfile, "mkdtemp")])
def test_no_room_to_unpack_is_said_and_leaves_nothing(packed, scratch, monkeypatch, owner, name):
    monkeypatch.setattr(owner, name, no_space)
    with pytest.raises(StorageError, match="could not be written: the disk is full"):
        open_bundle(packed)
    monkeypatch.undo()
    assert list(scratch.iterdir()) == []


@pytest.mark.parametrize("is_packed", [False, True])
def test_a_bundle_that_may_not_be_read_is_refused(folder, packed, scratch, monkeypatch, is_packed):
    def denied(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(zipfile if is_packed else Path, "ZipFile" if is_packed else "read_bytes", denied)
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
