"""Writing, opening, packing and rewriting bundles."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import zipfile

import msgspec
import numpy as np
import pytest
import safetensors.numpy
from file_contents import files_of
from tiny_bundle import (
    BANK,
    golden_image,
    tiny_manifest,
    tiny_sources,
    tiny_thresholds,
    write_tiny_bundle,
)

from flawscope.bundle import (
    change_bundle,
    open_bundle,
    pack_bundle,
    rewrite_manifest,
    write_bundle,
)
from flawscope.errors import ArgumentError, BundleError

# --- the way there and back


def test_a_folder_opens_as_it_was_written(folder):
    written = json.loads((folder / "manifest.json").read_bytes())
    with open_bundle(folder) as bundle:
        assert bundle.path == folder
        assert msgspec.structs.replace(bundle.manifest, files={}, digest="") == tiny_manifest()
        assert bundle.manifest.digest == written["digest"]
        assert len(bundle.manifest.digest) == 64
        for name, data in tiny_sources().items():
            assert bundle.read(name) == data
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
    assert files_of(tmp_path / "b") == files_of(tmp_path / "c")


def test_a_packed_bundle_has_the_same_identity_and_files(folder, packed):
    with open_bundle(folder) as opened_folder, open_bundle(packed) as opened_pack:
        assert opened_pack.manifest == opened_folder.manifest
        assert opened_pack.path == packed
        assert {name: opened_pack.read(name) for name in opened_pack.manifest.files} == tiny_sources()
        assert opened_pack.manifest_bytes == opened_folder.manifest_bytes == (folder / "manifest.json").read_bytes()


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
        with pytest.raises(ArgumentError, match="expected a new name, got an existing file"):
            pack_bundle(bundle, packed)
        pack_bundle(bundle, packed, overwrite=True)
    assert packed.read_bytes() == before


def test_members_are_stored_without_compression_at_a_fixed_time(packed):
    with zipfile.ZipFile(packed) as archive:
        for member in archive.infolist():
            assert member.compress_type == zipfile.ZIP_STORED
            assert member.date_time == (1980, 1, 1, 0, 0, 0)
        assert archive.testzip() is None


def test_a_packed_bundle_is_read_without_unpacking_it(packed, scratch):
    with open_bundle(packed) as bundle:
        assert bundle.read("score.onnx") == tiny_sources()["score.onnx"]
        assert list(scratch.iterdir()) == []


def test_a_closed_bundle_hands_nothing_out(folder, packed):
    for path in (folder, packed):
        bundle = open_bundle(path)
        bundle.read("score.onnx")
        bundle.close()
        bundle.close()  # closing twice does no harm
        with pytest.raises(BundleError, match="the bundle was closed"):
            bundle.read("score.onnx")


def test_what_was_read_stays_whatever_happens_to_the_files(folder, packed):
    for path in (folder, packed):
        with open_bundle(path) as bundle:
            before = bundle.read("score.onnx")
            shutil.rmtree(path) if path.is_dir() else path.write_bytes(b"")
            assert bundle.read("score.onnx") == before


@pytest.mark.parametrize("change", [lambda data: data[:-1], lambda data: data + b"!", lambda data: data[:-1] + b"!"])
def test_a_file_that_was_changed_after_opening_is_refused(folder, change):
    with open_bundle(folder) as bundle:
        file = folder / "score.onnx"
        file.write_bytes(change(file.read_bytes()))
        with pytest.raises(BundleError, match=r"score\.onnx: expected "):
            bundle.read("score.onnx")
        with pytest.raises(BundleError, match=r"score\.onnx: expected "):
            bundle.copy("score.onnx", io.BytesIO())


@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_a_file_that_became_something_else_after_opening_is_refused(folder, kind):
    with open_bundle(folder) as bundle:
        file = folder / "score.onnx"
        file.rename(folder.parent / "aside")
        file.symlink_to(folder.parent / "aside") if kind == "link" else os.mkfifo(file)
        with pytest.raises(BundleError, match=r"could not be read|expected a plain file"):
            bundle.read("score.onnx")


def test_unpacked_copies_are_private_and_go_away(packed, scratch):
    with open_bundle(packed) as bundle, bundle.unpacked(["score.onnx"]) as folder:
        assert files_of(folder) == {"score.onnx": tiny_sources()["score.onnx"]}
        assert folder.stat().st_mode & 0o077 == 0
    assert list(scratch.iterdir()) == []


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
        result = inspector(golden_image())
    assert result.score == 200.0
    assert result.anomaly_map.min() == 90.0


# --- what a bundle hands out


def test_an_unknown_graph_is_refused_with_the_known_ones(folder):
    with pytest.raises(BundleError, match=r"expected a graph called features, got \['score'\]"):
        open_bundle(folder).model("features")


def test_a_file_that_is_not_listed_is_not_handed_out(folder):
    with pytest.raises(BundleError, match=r"names other.bin but does not list it"):
        open_bundle(folder).read("other.bin")


def test_a_graph_whose_file_is_not_listed_is_refused(tmp_path):
    graph = msgspec.structs.replace(tiny_manifest().graphs["score"], file="../score.onnx")
    write_tiny_bundle(tmp_path / "b", graphs={"score": graph})
    with pytest.raises(BundleError, match=r"names \.\./score.onnx but does not list it"):
        open_bundle(tmp_path / "b").model("score")


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
        (b"", "expected a safetensors file"),
        (b"\x00" * 100, "expected a safetensors file"),
        (b"\xff" * 100, "expected a safetensors file"),
        (safetensors.numpy.save({"bank": BANK})[:-1], "expected a safetensors file"),
        (b"\x80\x04\x95(a pickle)", "expected a safetensors file"),
        (bank_of("XYZ", 4), "expected a safetensors file"),
        (bank_of("C64", 8), "expected float16, float32, float64, int32, int64 in bank, got complex64"),
        (bank_of("BOOL", 1), "int64 in bank, got bool"),
        # Whether NumPy knows these two depends on packages beside it (ml_dtypes, which onnx brings).
        (bank_of("BF16", 2), "expected types that NumPy has|in bank, got bfloat16"),
        (bank_of("F8_E4M3", 1), "expected types that NumPy has|in bank, got float8"),
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


def test_the_bank_of_a_closed_bundle_is_refused(packed):
    bundle = open_bundle(packed)
    bundle.close()
    with pytest.raises(BundleError, match=r"the bundle was closed. Open it again"):
        bundle.tensors()


# --- rewriting


@pytest.mark.parametrize("is_packed", [False, True])
def test_rewriting_sets_thresholds_and_touches_no_other_file(folder, packed, is_packed):
    path = packed if is_packed else folder
    with open_bundle(path) as bundle:
        manifest, before = bundle.manifest, files_of(path)
    written = rewrite_manifest(path, msgspec.structs.replace(manifest, thresholds=tiny_thresholds(42.0)))
    after = files_of(path)
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
    before = files_of(path)
    with pytest.raises(BundleError, match="expected finite numbers"):
        rewrite_manifest(path, msgspec.structs.replace(manifest, thresholds=tiny_thresholds(float("nan"))))
    assert files_of(path) == before


@pytest.mark.parametrize("is_packed", [False, True])
def test_a_manifest_that_could_not_be_opened_is_not_written(folder, packed, is_packed, monkeypatch):
    path = packed if is_packed else folder
    with open_bundle(path) as bundle:
        manifest, size = bundle.manifest, len(bundle.manifest_bytes)
    for module in ("manifest", "opening"):  # the true limit takes a second
        monkeypatch.setattr(f"flawscope.bundle.{module}.MAX_MANIFEST_BYTES", size + 100)
    before = files_of(path)
    for write in (
        lambda changed: rewrite_manifest(path, changed),
        lambda changed: change_bundle(path, manifest, lambda _: changed),
        lambda changed: write_bundle(path.parent / "new", changed, tiny_sources()),
    ):
        with pytest.raises(BundleError, match=r"expected at most 0 MiB, got .*Nothing was written"):
            write(msgspec.structs.replace(manifest, name="n" * 200))
    assert files_of(path) == before
    assert not (path.parent / "new").exists()
    rewrite_manifest(path, msgspec.structs.replace(manifest, name=manifest.name + "n" * 100))
    open_bundle(path).close()


# --- where a bundle may be written


def test_an_existing_bundle_is_replaced_whole(folder):
    write_tiny_bundle(folder, {"extra.bin": b"x"}, name="first")
    assert "extra.bin" in files_of(folder)
    write_tiny_bundle(folder, name="second")
    assert open_bundle(folder).manifest.name == "second"
    assert "extra.bin" not in files_of(folder)
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
    assert files_of(tmp_path) == {f"b/{name}": data}


def test_a_file_is_not_replaced_by_a_folder(tmp_path):
    (tmp_path / "b").write_bytes(b"a file")
    with pytest.raises(ArgumentError, match="expected a folder name that is free, got an existing file"):
        write_tiny_bundle(tmp_path / "b")
    assert files_of(tmp_path) == {"b": b"a file"}


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
    before = files_of(folder)
    with open_bundle(folder) as bundle, pytest.raises(ArgumentError, match="expected a place outside the bundle"):
        pack_bundle(bundle, folder / name)
    assert files_of(folder) == before
