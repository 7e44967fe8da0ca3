"""Threshold overlays: the last revision is in force, within signed limits alone, and no overlay is ever passed over."""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import sys

import msgspec
import pytest
from error_lines import reason
from file_contents import files_of
from hypothesis import given
from hypothesis import strategies as st
from tiny_bundle import tiny_manifest, tiny_thresholds, write_tiny_bundle

from flawscope.bundle import (
    Limits,
    ThresholdLimits,
    change_bundle,
    open_bundle,
    pack_bundle,
    sign_bundle,
    thresholds_in_force,
)
from flawscope.bundle.ed25519 import read_private_key, write_keys
from flawscope.bundle.file_names import overlay_beside
from flawscope.bundle.threshold_overlay import ThresholdOverlay, add_revision, find_overlay, read_overlay
from flawscope.cli import run
from flawscope.errors import ArgumentError, BundleError

LOW, OWN, HIGH = 100.0, 150.0, 175.0


def limited(value=OWN):
    limits = ThresholdLimits(Limits(LOW, HIGH), Limits(LOW, HIGH))
    return msgspec.structs.replace(tiny_thresholds(value), limits=limits)


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "tiny.flaw"
    write_tiny_bundle(path, thresholds=limited())
    return path


@pytest.fixture(params=[False, True], ids=["folder", "packed"])
def path(request, folder, tmp_path):
    if not request.param:
        return folder
    packed = tmp_path / "packed.flaw"
    with open_bundle(folder) as bundle:
        pack_bundle(bundle, packed)
    return packed


def manifest_of(path):
    with open_bundle(path) as bundle:
        return bundle.manifest


def in_force(path, **options):
    return thresholds_in_force(path, manifest_of(path), "fp32", **options)


def add(path, image=None, pixel=None, *, place=None, area=None, precision="fp32", by="operator", why="drift"):
    return add_revision(
        path,
        manifest_of(path),
        overlay_beside(path) if place is None else place,
        precision=precision,
        image=image,
        pixel=pixel,
        min_area_px=area,
        by=by,
        why=why,
    )


def test_without_overlay_the_bundles_own_thresholds_are_in_force(path):
    found = in_force(path)
    assert (found.thresholds, found.min_area_px, found.revision) == (limited(), 4, 0)


def test_the_last_revision_is_in_force_and_keeps_what_it_does_not_name(path):
    before = files_of(path)
    assert add(path, image=160.0).revision == 1
    assert add(path, pixel=120.0, area=9, why="dust").revision == 2
    found = in_force(path)
    assert (found.thresholds.image.value, found.thresholds.pixel.value, found.min_area_px) == (160.0, 120.0, 9)
    assert (found.revision, found.source) == (
        2,
        f"revision 2 of {path}.thresholds.json, by operator: dust (no boxes below 9 pixels of the map)",
    )
    # No bound on false rejects that the bundle states holds for other thresholds.
    assert found.thresholds.image.upper_bound is None
    assert files_of(path) == before
    assert in_force(path, use_overlay=False).revision == 0


def test_a_revision_of_another_precision_changes_nothing_here(tmp_path):
    from flawscope.bundle import Precision

    manifest = tiny_manifest()
    twin = Precision(manifest.graphs, manifest.golden, "none", 0, 0, (), thresholds=limited())
    path = tmp_path / "tiny.flaw"
    write_tiny_bundle(path, thresholds=limited(), precisions={"int8": twin})
    add(path, 170.0, precision="int8")
    assert in_force(path).revision == 0
    assert thresholds_in_force(path, manifest_of(path), "int8").thresholds.image.value == 170.0


NUMBERS = st.floats(allow_nan=True, allow_infinity=True) | st.floats(LOW - 1, HIGH + 1)


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    path = tmp_path_factory.mktemp("one") / "tiny.flaw"
    return path, write_tiny_bundle(path, thresholds=limited())


@given(image=NUMBERS, pixel=NUMBERS)
def test_no_value_outside_of_the_limits_is_ever_in_force(one, image, pixel):
    """Neither by the function that writes overlays, nor by a file that somebody else has written."""
    path, manifest = one
    place = overlay_beside(path)
    place.unlink(missing_ok=True)
    is_within = all(LOW <= value <= HIGH for value in (image, pixel))
    if is_within:
        add(path, image, pixel)
        assert in_force(path).thresholds.image.value == image
        place.unlink()
    else:
        with pytest.raises(ArgumentError, match="within the bundle's limits") as raised:
            add(path, image, pixel)
        assert reason(raised)
        assert not place.exists()
    write_overlay(place, manifest.digest, [{"image": image, "pixel": pixel}])
    if is_within:
        assert in_force(path).thresholds.pixel.value == pixel
    else:
        with pytest.raises(BundleError) as raised:
            in_force(path)
        assert reason(raised)
    place.unlink()


def write_overlay(place, digest, revisions, **changes):
    """Write an overlay by hand; numbers that JSON lacks become 1e999, which some readers take for infinity."""
    rows = [
        {"revision": number, "precision": "fp32", "image": OWN, "pixel": OWN, "by": "b", "why": "w", "when": "t"} | row
        for number, row in enumerate(revisions, 1)
    ]

    def text(value):
        if isinstance(value, float) and not math.isfinite(value):
            return "NaN" if math.isnan(value) else "1e999" if value > 0 else "-1e999"
        return msgspec.json.encode(value).decode()

    lines = ["{" + ", ".join(f'"{key}": {text(value)}' for key, value in row.items()) + "}" for row in rows]
    rest = "".join(f', "{key}": {text(value)}' for key, value in changes.items())
    place.write_text(f'{{"digest": "{digest}", "revisions": [{", ".join(lines)}]{rest}}}')


BROKEN = {
    "empty": (lambda place, digest: place.write_bytes(b""), "the threshold overlay is broken"),
    "cut": (lambda place, digest: place.write_bytes(b'{"digest": "'), "the threshold overlay is broken"),
    "no text": (lambda place, digest: place.write_bytes(b"\xff" * 9), "the threshold overlay is broken"),
    "none": (lambda place, digest: write_overlay(place, digest, []), "the threshold overlay is broken"),
    "unknown": (lambda place, digest: write_overlay(place, digest, [{"also": 1}]), "unknown field `also`"),
    "schema": (lambda place, digest: write_overlay(place, digest, [{}], schema=2), "the threshold overlay is broken"),
    "stranger": (lambda place, digest: write_overlay(place, "0" * 64, [{}]), "got one of the bundle 000000000000…"),
    "gap": (lambda place, digest: write_overlay(place, digest, [{"revision": 2}]), "expected revision 1, got 2"),
    "twice": (lambda place, digest: write_overlay(place, digest, [{}, {"revision": 1}]), "expected revision 2, got 1"),
    "nobody": (lambda place, digest: write_overlay(place, digest, [{"by": ""}]), "the threshold overlay is broken"),
    "precision": (
        lambda place, digest: write_overlay(place, digest, [{"precision": "int8"}]),
        "expected a precision of the bundle, got int8",
    ),
    # Also where a later revision is within: somebody wrote it past the check.
    "earlier": (lambda place, digest: write_overlay(place, digest, [{"image": 999.0}, {}]), "revision 1: expected the"),
    "area": (
        lambda place, digest: write_overlay(place, digest, [{"min_area_px": 0}]),
        "the threshold overlay is broken",
    ),
    "pipe": (lambda place, digest: os.mkfifo(place), "could not be read: it is a pipe, not a file"),
    "folder": (lambda place, digest: place.mkdir(), "expected a threshold overlay"),
    "dangling": (lambda place, digest: place.symlink_to("nowhere"), "could not be read: No such file"),
    "large": (lambda place, digest: place.write_bytes(b" " * (2 << 20)), "of at most 1024 KiB, got more"),
}


@pytest.mark.parametrize("how", BROKEN)
@pytest.mark.parametrize("is_named", [False, True], ids=["beside", "named"])
def test_an_overlay_that_cannot_be_used_is_never_passed_over(path, tmp_path, how, is_named):
    place = tmp_path / "state.json" if is_named else overlay_beside(path)
    write, message = BROKEN[how]
    write(place, manifest_of(path).digest)
    with pytest.raises(BundleError, match=message) as raised:
        in_force(path, threshold_overlay=place if is_named else None)
    assert reason(raised).startswith(str(place))


def test_an_overlay_that_is_named_must_be_there_and_takes_the_place_of_the_other(path, tmp_path):
    add(path, 160.0)
    with pytest.raises(BundleError, match="could not be read: No such file"):
        in_force(path, threshold_overlay=tmp_path / "state.json")
    add(path, 170.0, place=tmp_path / "state.json")
    assert in_force(path, threshold_overlay=tmp_path / "state.json").thresholds.image.value == 170.0
    assert in_force(path).thresholds.image.value == 160.0
    with pytest.raises(ArgumentError, match="Leave one out"):
        in_force(path, threshold_overlay=tmp_path / "state.json", use_overlay=False)


def test_an_overlay_whose_folder_cannot_be_looked_at_is_an_error(path, monkeypatch):
    from pathlib import Path

    real, manifest = Path.lstat, manifest_of(path)

    def denied(self, **others):
        if self == overlay_beside(path):
            raise PermissionError(13, "Permission denied")
        return real(self, **others)

    monkeypatch.setattr(Path, "lstat", denied)
    with pytest.raises(BundleError, match="could not be looked up: Permission denied"):
        thresholds_in_force(path, manifest, "fp32")


def test_a_bundle_that_is_named_by_a_link_has_the_overlay_beside_itself(path, tmp_path):
    link = tmp_path / "elsewhere" / "current.flaw"
    link.parent.mkdir()
    link.symlink_to(path)
    add(path, 160.0)
    assert in_force(link).thresholds.image.value == 160.0
    # One beside the link would have no effect: somebody believes that it has.
    write_overlay(overlay_beside(link), manifest_of(path).digest, [{}])
    with pytest.raises(BundleError, match=r"got one beside a link\. Move it there"):
        in_force(link)
    overlay_beside(link).unlink()
    overlay_beside(link).symlink_to(overlay_beside(path))
    assert in_force(link).revision == 1


def test_a_bundle_without_limits_allows_no_overlay(tmp_path):
    path = tmp_path / "tiny.flaw"
    write_tiny_bundle(path, thresholds=tiny_thresholds())
    with pytest.raises(ArgumentError, match=r"got one without\. Set them with flawscope calibrate"):
        add(path, OWN)
    write_overlay(overlay_beside(path), manifest_of(path).digest, [{}])
    with pytest.raises(BundleError, match=r"got one without\. Set them with flawscope calibrate"):
        in_force(path)
    write_tiny_bundle(tmp_path / "bare.flaw")
    with pytest.raises(ArgumentError, match=r"expected a bundle with thresholds, got none\. Run flawscope calibrate"):
        add(tmp_path / "bare.flaw", OWN)


@pytest.mark.parametrize("limits", [(OWN + 1, HIGH), (LOW, OWN - 1), (HIGH, LOW)])
def test_a_manifest_whose_threshold_lies_outside_of_its_limits_is_refused(tmp_path, limits):
    thresholds = msgspec.structs.replace(limited(), limits=ThresholdLimits(Limits(*limits), Limits(LOW, HIGH)))
    write_tiny_bundle(tmp_path / "b", thresholds=thresholds)
    with pytest.raises(BundleError, match="expected the image threshold of fp32, 150, within its limits"):
        open_bundle(tmp_path / "b")


@pytest.mark.parametrize(("by", "why"), [("", "w"), ("b", "  "), ("b" * 1001, "w")])
def test_nobody_and_no_reason_are_no_record(path, by, why):
    with pytest.raises(ArgumentError, match="expected 1 to 1000 characters"):
        add(path, 160.0, by=by, why=why)
    assert find_overlay(path) is None


# Writers of the bundle.


def test_a_changed_bundle_moves_its_overlay_aside_and_says_so(path, caplog):
    manifest = manifest_of(path)
    for number in (1, 2):
        add(path, 160.0 + number)
        written = overlay_beside(path).read_bytes()
        change_bundle(path, manifest, lambda read, area=number + 10: msgspec.structs.replace(read, min_area_px=area))
        assert in_force(path).revision == 0
        aside = path.parent / f"{path.name}.thresholds.old-{number}.json"
        assert aside.read_bytes() == written
        assert caplog.messages[-1] == f"{path}: its threshold overlay no longer holds and was moved to {aside}."
    # A change that changes nothing leaves it.
    add(path, 170.0)
    change_bundle(path, manifest, lambda read: read)
    assert in_force(path).revision == 1


def test_a_bundle_that_is_replaced_moves_the_overlay_of_the_other_aside(folder):
    add(folder, 160.0)
    write_tiny_bundle(folder, thresholds=limited(), max_batch=3)
    assert in_force(folder).revision == 0
    assert [entry.name for entry in sorted(folder.parent.iterdir())] == ["tiny.flaw", "tiny.flaw.thresholds.old-1.json"]


def test_a_copy_of_the_bundle_takes_its_overlay_along(path, tmp_path):
    """It is for the digest, not for the place."""
    add(path, 160.0)
    target = tmp_path / "other" / "name.flaw"
    target.parent.mkdir()
    shutil.copytree(path, target) if path.is_dir() else shutil.copyfile(path, target)
    shutil.copyfile(overlay_beside(path), overlay_beside(target))
    assert in_force(target).thresholds.image.value == 160.0


WRITERS, CHANGES = 4, 8

WRITE = """
import sys
from flawscope.cli import run
path, writer, changes = sys.argv[1], sys.argv[2], int(sys.argv[3])
for number in range(changes):
    line = ["bundle", "threshold", path, "--image", str(100 + number), "--by", writer, "--why", str(number)]
    assert run(line) == 0
"""


@pytest.mark.long
def test_several_writers_of_one_overlay_lose_no_revision(path):
    children = [
        subprocess.Popen([sys.executable, "-c", WRITE, path, str(writer), str(CHANGES)], stdout=subprocess.DEVNULL)
        for writer in range(WRITERS)
    ]
    assert [child.wait() for child in children] == [0] * WRITERS
    rows = read_overlay(overlay_beside(path), path, manifest_of(path)).revisions
    assert [row.revision for row in rows] == list(range(1, WRITERS * CHANGES + 1))
    for writer in range(WRITERS):
        assert [row.why for row in rows if row.by == str(writer)] == [str(number) for number in range(CHANGES)]
    assert not [entry for entry in path.parent.iterdir() if entry.name.startswith(".")]


# The command line.


@pytest.fixture
def call(capsys):
    """Return a function that runs a command and returns its status, its output and its error lines."""

    def called(*arguments):
        status = run([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return status, out, err.splitlines()

    return called


def test_a_threshold_is_changed_and_shown(path, call):
    place = overlay_beside(path)
    changed = call("bundle", "threshold", path, "--image", 160, "--why", "new lamp", "--by", "Ada")
    assert changed == (0, f"{place}: revision 1, fp32: image 160, pixel 150, smallest region 4 px, by Ada\n", [])
    overlay = msgspec.json.decode(place.read_bytes(), type=ThresholdOverlay)
    assert (overlay.digest, overlay.revisions[0].why) == (manifest_of(path).digest, "new lamp")
    shown = call("bundle", "info", path)[1]
    assert "limits         a threshold overlay may set image 100 to 175, pixel 100 to 175\n" in shown
    assert "revision 1 fp32: image 160, pixel 150, by Ada: new lamp\n" in shown
    place.write_bytes(b"{}")
    assert "overlay        not usable: " in call("bundle", "info", path)[1]


def test_what_is_outside_of_the_limits_or_says_nothing_is_a_wrong_request(path, call):
    status, _, errors = call("bundle", "threshold", path, "--image", 200, "--why", "w", "--by", "b")
    assert (status, len(errors), "limits, 100 to 175, got 200" in errors[0]) == (2, 1, True)
    status, _, errors = call("bundle", "threshold", path, "--why", "w", "--by", "b")
    assert (status, "Expected --image, --pixel or --min-area" in errors[0]) == (2, True)
    assert find_overlay(path) is None


def test_the_user_is_named_by_itself_where_there_is_a_name(path, call, monkeypatch, no_home):
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    status, _, errors = call("bundle", "threshold", path, "--image", 160, "--why", "w")
    assert (status, "--by: expected a name" in errors[0]) == (2, True)
    monkeypatch.setenv("LOGNAME", "ada")
    assert call("bundle", "threshold", path, "--image", 160, "--why", "w")[1].endswith("by ada\n")


@pytest.mark.parametrize("verb", [("bundle", "threshold", "--image", "1", "--why", "w"), ("evaluate", "--data", ".")])
@pytest.mark.parametrize("name", ["/", "loop", "missing", "."])
def test_what_is_no_bundle_is_one_line(tmp_path, call, monkeypatch, verb, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "loop").symlink_to("loop")
    status, out, errors = call(*verb, name)
    assert (status, out, len(errors)) == (2, "", 1)
    assert [entry.name for entry in tmp_path.iterdir()] == ["loop"]


def test_the_signature_stays(path, call, tmp_path):
    write_keys(tmp_path / "maker")
    sign_bundle(path, read_private_key(tmp_path / "maker", lambda: None))
    keys = ("--trusted-keys", tmp_path / "maker.pub")
    assert call("bundle", "threshold", path, "--image", 160, "--why", "w", "--by", "b", *keys)[0] == 0
    assert call("bundle", "verify", path, "--key", tmp_path / "maker.pub")[0] == 0
