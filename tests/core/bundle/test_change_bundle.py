"""Changes of a bundle: made to what is there, one after the other, or refused; none is lost."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from fake_bundles import write_image
from file_contents import files_of
from tiny_bundle import tiny_thresholds, write_tiny_bundle

from flawscope import cli
from flawscope.bundle import Evidence, change_bundle, check_changeable, open_bundle
from flawscope.errors import BundleError, StorageError

WRITERS, CHANGES = 8, 15

WRITE = """
import sys
from pathlib import Path
from flawscope.calibration import set_thresholds
path, writer, changes = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
for number in range(changes):
    value = float(1000 * (writer + 1) + number)
    set_thresholds(path, value, value, None, command=f"writer {writer}")
"""


def manifest_of(path):
    with open_bundle(path) as bundle:
        return bundle.manifest


def with_area(area):
    return lambda manifest: msgspec.structs.replace(manifest, min_area_px=area)


@pytest.fixture(params=[False, True], ids=["folder", "packed"])
def path(request, folder, packed):
    return packed if request.param else folder


@pytest.mark.long
def test_eight_writers_lose_no_change(path):
    before = sorted(path.parent.iterdir())
    children = [
        subprocess.Popen([sys.executable, "-c", WRITE, path, str(writer), str(CHANGES)]) for writer in range(WRITERS)
    ]
    assert [child.wait() for child in children] == [0] * WRITERS
    manifest = manifest_of(path)
    for name in ("image", "pixel"):
        changes = [change for change in manifest.threshold_changes if change.name == name]
        assert len(changes) == WRITERS * CHANGES
        for writer in range(WRITERS):
            expected = [float(1000 * (writer + 1) + number) for number in range(CHANGES)]
            assert [change.new for change in changes if change.command == f"writer {writer}"] == expected
        # Each names what was really in force when it was made.
        assert [change.old for change in changes] == [None, *(change.new for change in changes[:-1])]
        assert getattr(manifest.thresholds, name).value == changes[-1].new
    assert sorted(path.parent.iterdir()) == before


def test_a_change_is_made_to_what_is_there_now(path):
    read = manifest_of(path)
    change_bundle(path, read, with_area(9))
    written = change_bundle(
        path, read, lambda current: msgspec.structs.replace(current, thresholds=tiny_thresholds(42.0))
    )
    assert written == manifest_of(path)
    assert (written.min_area_px, written.thresholds) == (9, tiny_thresholds(42.0))


@pytest.mark.parametrize(
    "changes",
    [{"name": "other"}, {"max_batch": 7}, {"golden": ()}],
    ids=lambda changes: next(iter(changes)),
)
def test_another_model_is_refused_and_left(path, tmp_path, changes):
    read = msgspec.structs.replace(manifest_of(path), digest="0" * 64, **changes)
    before = files_of(path)
    with pytest.raises(BundleError, match=r"expected the bundle 000000000000… that was read, got the other model \w+…"):
        change_bundle(path, read, with_area(9))
    assert files_of(path) == before


def test_a_bundle_of_other_files_is_another_model(folder):
    read = manifest_of(folder)
    write_tiny_bundle(folder, {"score.onnx": b"another graph"})
    with pytest.raises(BundleError, match=r"that was written meanwhile. It was left as it is: run the command again"):
        change_bundle(folder, read, with_area(9))
    assert manifest_of(folder).min_area_px == read.min_area_px


def test_evidence_and_thresholds_make_no_other_model(path):
    read = msgspec.structs.replace(
        manifest_of(path), digest="0" * 64, min_area_px=77, thresholds=tiny_thresholds(3.0), evidence=Evidence()
    )
    assert change_bundle(path, read, with_area(9)).min_area_px == 9


def test_a_bundle_named_by_a_link_is_changed_where_it_lies(path, tmp_path):
    link = tmp_path / "elsewhere" / "link.flaw"
    link.parent.mkdir()
    link.symlink_to(path)
    change_bundle(link, manifest_of(path), with_area(9))
    assert link.is_symlink()
    assert manifest_of(path).min_area_px == 9
    assert list(link.parent.iterdir()) == [link]


def test_no_scratch_ever_lies_in_a_bundle(folder, monkeypatch):
    names = {entry.name for entry in folder.iterdir()}
    seen, real = [], Path.replace

    def replace(self, target):
        seen.append({entry.name for entry in folder.iterdir()})
        assert self.parent == folder.parent
        return real(self, target)

    monkeypatch.setattr(Path, "replace", replace)
    change_bundle(folder, manifest_of(folder), with_area(9))
    assert seen == [names]


def test_a_failed_change_leaves_the_bundle_and_frees_it(path):
    before, read = files_of(path), manifest_of(path)

    def fail(manifest):
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        change_bundle(path, read, fail)
    assert files_of(path) == before
    assert change_bundle(path, read, with_area(9)).min_area_px == 9


@pytest.mark.parametrize("command", ["calibrate", "evaluate"])
def test_a_bundle_that_is_not_there_is_called_missing_and_not_locked(tmp_path, capsys, command):
    arguments = [command, str(tmp_path / "none.flaw"), "--data", str(tmp_path / "part")]
    write_image(tmp_path / "part/train/good/1.png", 90)
    write_image(tmp_path / "part/test/good/1.png", 91)
    assert cli.run(arguments) == 2
    assert "none.flaw: expected a bundle, got no such file or folder" in capsys.readouterr().err
    assert [entry.name for entry in tmp_path.iterdir()] == ["part"]


def test_a_bundle_that_cannot_be_changed_is_named_before_work_begins(path, monkeypatch):
    check_changeable(path)
    before = sorted(path.parent.iterdir())
    monkeypatch.setattr(os, "access", lambda place, mode: False)
    with pytest.raises(StorageError, match=r"flaw: could not be written: Permission denied"):
        check_changeable(path)
    assert sorted(path.parent.iterdir()) == before
