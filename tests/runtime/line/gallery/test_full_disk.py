"""A disk that fills, in the order of the specification: old images go, then new ones, then parts; and all come back."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from line_control import wait_for
from line_journals import SetClock, a_part, opened

from flawscope.runtime.line.gallery.disk import GB, Disk
from flawscope.runtime.line.gallery.gallery import Gallery
from flawscope.runtime.line.gallery.keeper import Kept
from flawscope.runtime.line.gallery.paths import IMAGES
from flawscope.runtime.line.gallery.retention import BATCH, Retention, ranges
from flawscope.runtime.line.journal.journal import Journal
from flawscope.runtime.line.journal.reviews import ACTION, PartFacts, object_of
from flawscope.runtime.line.line_config import ImageOptions
from flawscope.runtime.line.parts import Verdict

WAIT_S = 30.0
DAY_NS = 86400 * 10**9
LIMITS = {"prune_below_gb": 10.0, "stop_below_gb": 5.0, "fault_below_gb": 1.0}


class FakeUsage:
    """A disk of which each stored file of a part takes a gigabyte, whatever its size is.

    Attributes:
        free_gb: Free when no image is stored.
        failure: What asking fails with.
    """

    def __init__(self, state: Path, free_gb: float) -> None:
        self._images, self.free_gb = state / IMAGES, free_gb
        self.failure: OSError | None = None

    def __call__(self, folder: Path) -> SimpleNamespace:
        if self.failure is not None:
            raise self.failure
        return SimpleNamespace(free=int((self.free_gb - len(list(self._images.glob("*/*")))) * GB))


class Stored:
    """A gallery with a journal, both real, on a disk that is not."""

    def __init__(self, state: Path, journal: Journal, clock: SetClock, usage: FakeUsage, options: ImageOptions) -> None:
        self.state, self.journal, self.clock, self.usage = state, journal, clock, usage
        self.gallery = Gallery(state, ["top"], options, journal, clock, usage=usage, period_s=0.01)

    def record(self, seq: int, verdict: Verdict, *, days_ago: float = 0.0, is_reviewed: bool = False) -> None:
        """Record a part and store its image, as a line that ran before."""
        folder = self.state / IMAGES / self.day(days_ago)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{seq}-cam0.png").write_bytes(b"x" * 1000)
        self.journal.record(a_part(seq, verdict))
        if is_reviewed:
            self.journal.event(ACTION, object=object_of(seq), new='{"view":"","label":"normal"}')
        assert self.journal.flush(WAIT_S)

    def day(self, days_ago: float) -> str:
        import datetime

        at = datetime.datetime.fromtimestamp((self.clock.utc_ns() - days_ago * DAY_NS) / 1e9, datetime.timezone.utc)
        return at.strftime("%Y%m%d")

    def left(self) -> list[int]:
        """Return the numbers of the parts whose images are there."""
        # Not `glob`, which raises where the gallery removes a folder meanwhile.
        found = [name for _, _, names in os.walk(self.state / IMAGES) for name in names]
        return sorted(int(name.split("-")[0]) for name in found)

    def events(self, action: str) -> list[dict[str, str]]:
        assert self.journal.flush(WAIT_S)
        entries = self.journal.entries(0, 10_000)
        return [entry for entry in entries if entry["kind"] == "event" and entry["action"] == action]


@contextlib.contextmanager
def stored(folder: Path, free_gb: float, **options: object) -> Iterator[Stored]:
    clock = SetClock()
    with opened(folder, clock) as journal:
        usage = FakeUsage(folder, free_gb)
        found = Stored(folder, journal, clock, usage, ImageOptions(**{**LIMITS, **options}))  # type: ignore[arg-type]
        try:
            yield found
        finally:
            found.gallery.stop()


def image(view: str = "cam0", value: int = 7) -> Kept:
    return Kept(view, a_part(1, "reject").views[0], np.full((8, 8, 3), value, np.uint8))


def plan_and_keep(gallery: Gallery, clock: SetClock, seq: int, verdict: Verdict = "reject") -> str:
    """Do what a station does with the image of a part; returns its path, empty where it is not stored."""
    import msgspec

    kept = image()
    (path,) = gallery.plan(seq, clock.utc_ns(), verdict, [kept])
    record = a_part(seq, "reject")
    view = msgspec.structs.replace(record.views[0], image=path)
    gallery.keep(seq, "top", [Kept("cam0", view, kept.image)], msgspec.structs.replace(record, views=(view,)))
    return path


def test_old_accepts_go_first_and_then_what_was_reviewed(tmp_path: Path) -> None:
    with stored(tmp_path, free_gb=13.6) as disk:
        disk.record(1, "reject", days_ago=3)
        disk.record(2, "accept", days_ago=3)
        disk.record(3, "fault", days_ago=2)
        disk.record(4, "accept", days_ago=2)
        disk.record(5, "reject", days_ago=1, is_reviewed=True)
        disk.record(6, "accept", days_ago=1)
        # 7.6 are free; deleting ends at 10 and a twentieth more.
        disk.gallery.start()
        wait_for(lambda: disk.gallery.disk == "ok")
        assert disk.left() == [1, 3, 5]
        disk.usage.free_gb = 12.9
        wait_for(lambda: disk.left() == [1, 3])
        wait_for(lambda: disk.gallery.disk == "ok")
        disk.usage.free_gb = 11.0
        wait_for(lambda: disk.gallery.disk == "prune")
        disk.gallery.stop()
        assert disk.left() == [1, 3]
        told = [json.loads(event["new"]) for event in disk.events("images_deleted")]
        assert [(one["kind"], one["parts"], one["files"]) for one in told] == [
            ("accepts", "2", 1),
            ("accepts", "4", 1),
            ("accepts", "6", 1),
            ("reviewed", "5", 1),
        ]
        assert "prune_below_gb is 10" in disk.events("images_deleted")[0]["reason"]
        assert disk.gallery.status().deleted == 4


def test_what_nobody_has_reviewed_stays_for_its_days(tmp_path: Path) -> None:
    with stored(tmp_path, free_gb=9.0, min_days=2.0) as disk:
        disk.record(1, "reject", days_ago=9)
        disk.record(2, "fault", days_ago=9)
        disk.record(3, "reject", days_ago=2)
        disk.record(4, "reject")
        # Of a journal that was set aside: it is nobody's, and waits its days.
        (tmp_path / IMAGES / disk.day(0) / "999-cam0.png").write_bytes(b"x")
        disk.gallery.start()
        wait_for(lambda: disk.left() == [3, 4, 999])
        assert not (tmp_path / IMAGES / disk.day(9)).exists()
        kinds = {json.loads(event["new"])["kind"] for event in disk.events("images_deleted")}
        assert kinds == {"unreviewed"}


def test_below_stop_verdicts_go_on_without_images(tmp_path: Path) -> None:
    with stored(tmp_path, free_gb=4.0) as disk:
        disk.gallery.start()
        assert disk.gallery.disk == "stop"
        assert plan_and_keep(disk.gallery, disk.clock, 1) == ""
        status = disk.gallery.status()
        assert (status.left_out, status.stored, status.disk) == (1, 0, "stop")
        assert "images are not stored" in status.warning
        assert disk.gallery.forbids == ""
        disk.usage.free_gb = 100.0
        wait_for(lambda: disk.gallery.disk == "ok")
        path = plan_and_keep(disk.gallery, disk.clock, 2)
        wait_for(lambda: disk.gallery.status().stored == 1)
        assert (tmp_path / path).is_file()
        assert disk.gallery.status().warning == ""
        disk.gallery.stop()
        assert [(event["old"], event["new"]) for event in disk.events("disk_level")] == [("ok", "stop"), ("stop", "ok")]
        assert [event["new"] for event in disk.events("images_left_out")] == ["1"]


@pytest.mark.parametrize("slow", ["facts", "stored_bytes"])
def test_who_looks_long_for_old_images_looks_at_the_disk_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slow: str
) -> None:
    is_looking, go_on = threading.Event(), threading.Event()
    owner = Journal if slow == "facts" else Retention
    real = getattr(owner, slow)

    def slowly(*arguments: object) -> object:
        is_looking.set()
        assert go_on.wait(WAIT_S)
        return real(*arguments)

    monkeypatch.setattr(owner, slow, slowly)
    with stored(tmp_path, 9.0, quota_gb=100.0) as here:
        here.record(1, "accept")
        here.gallery.start()
        try:
            assert is_looking.wait(WAIT_S)
            here.usage.free_gb = 1.5
            wait_for(lambda: bool(here.gallery.forbids), WAIT_S)
        finally:
            go_on.set()


def test_a_level_does_not_come_and_go_with_each_image(tmp_path: Path) -> None:
    usage = FakeUsage(tmp_path, 5.1)
    disk = Disk(tmp_path, ImageOptions(**LIMITS), usage)
    assert disk.look() == "prune"
    usage.free_gb = 4.9
    assert disk.look() == "stop"
    usage.free_gb = 5.1
    assert disk.look() == "stop"
    usage.free_gb = 5.3
    assert disk.look() == "prune"
    usage.free_gb = 0.5
    assert disk.look() == "fault"
    usage.free_gb = 100.0
    assert disk.look() == "ok"


def test_a_disk_that_cannot_be_asked_changes_nothing_and_is_said(tmp_path: Path) -> None:
    with stored(tmp_path, free_gb=100.0) as disk:
        disk.gallery.start()
        disk.usage.failure = OSError(5, "Input/output error")
        wait_for(lambda: "Input/output error" in disk.gallery.status().warning)
        assert disk.gallery.disk == "ok"
        disk.usage.failure = None
        wait_for(lambda: disk.gallery.status().warning == "")


def test_a_quota_counts_images_alone(tmp_path: Path) -> None:
    with stored(tmp_path, free_gb=1000.0, quota_gb=3e-6) as disk:
        for seq in range(1, 7):
            disk.record(seq, "accept", days_ago=7 - seq)
        disk.gallery.start()
        wait_for(lambda: disk.left() == [4, 5, 6])
        path = plan_and_keep(disk.gallery, disk.clock, 7)
        wait_for(lambda: (tmp_path / path).exists() and disk.left() == [5, 6, 7])
        assert "quota_gb is 3e-06" in disk.events("images_deleted")[0]["reason"]


def test_many_images_are_deleted_in_batches(tmp_path: Path) -> None:
    with stored(tmp_path, free_gb=9.0) as disk:
        folder = tmp_path / IMAGES / disk.day(1)
        folder.mkdir(parents=True)
        for seq in range(1, 2 * BATCH + 2):
            (folder / f"{seq}-cam0.png").write_bytes(b"x")
            (folder / f"{seq}-cam0+map.png").write_bytes(b"x")
            disk.journal.record(a_part(seq, "accept"))
        assert disk.journal.flush(WAIT_S)
        disk.gallery.start()
        wait_for(lambda: disk.left() == [])
        parts = [json.loads(event["new"])["parts"] for event in disk.events("images_deleted")]
        assert parts == [f"1-{BATCH}", f"{BATCH + 1}-{2 * BATCH}", f"{2 * BATCH + 1}"]
        assert disk.gallery.status().deleted == 2 * (2 * BATCH + 1)


def test_files_that_are_not_ours_stay(tmp_path: Path) -> None:
    with stored(tmp_path, free_gb=0.5) as disk:
        disk.record(1, "accept", days_ago=3)
        day = tmp_path / IMAGES / disk.day(3)
        (day / "notes.txt").write_text("mine")
        (tmp_path / IMAGES / "old").mkdir()
        (tmp_path / IMAGES / "old" / "2-cam0.png").write_bytes(b"x")
        disk.gallery.start()
        wait_for(lambda: not (day / "1-cam0.png").exists())
        assert (day / "notes.txt").exists()
        assert (tmp_path / IMAGES / "old" / "2-cam0.png").exists()
        assert disk.gallery.forbids.endswith("parts are faults until there is more")


def test_a_file_whose_number_no_part_can_have_stops_nothing_and_is_told_once(tmp_path: Path) -> None:
    strays = [f"{number}-cam0.png" for number in (1 << 63, 10**19 - 1)]
    with stored(tmp_path, free_gb=12.0) as disk:
        for seq in range(1, 4):
            disk.record(seq, "accept", days_ago=3)
        day = tmp_path / IMAGES / disk.day(3)
        # The largest number that the journal can be asked for is one of a part that nobody has reviewed.
        for name in (*strays, f"{(1 << 63) - 1}-cam0.png"):
            (day / name).write_bytes(b"x")
        disk.gallery.start()
        wait_for(lambda: not any((day / f"{seq}-cam0.png").exists() for seq in (1, 2, 3)))
        wait_for(lambda: disk.gallery._not_before > 0)
        disk.gallery._not_before = 0.0  # it looks again
        wait_for(lambda: disk.gallery._not_before > 0)
        told = disk.events("stray_image")
        assert [event["new"] for event in told] == [f"{IMAGES}/{disk.day(3)}/{name}" for name in sorted(strays)]
        assert all((day / name).exists() for name in strays)
        assert "could not be deleted" not in disk.gallery.status().warning


def test_parts_that_lie_far_apart_are_not_asked_for_together(tmp_path: Path) -> None:
    """Else all parts between the two would be read."""
    day, asked = tmp_path / IMAGES / "20260101", []

    class Journal:
        def facts(self, first: int, last: int) -> dict[int, PartFacts]:
            asked.append((first, last))
            return {seq: PartFacts("accept", False) for seq in (first, last)}

    day.mkdir(parents=True)
    for seq in (1, 2, 10**12, (1 << 63) - 1):
        (day / f"{seq}-cam0.png").write_bytes(b"x")
    found = [batch.parts for batch in Retention(tmp_path, Journal(), 0.0, SetClock().utc_ns).candidates()]
    assert found == [(1, 2), (10**12,), ((1 << 63) - 1,)]
    assert max(last - first for first, last in asked) < 10**6


def test_numbers_are_told_as_ranges() -> None:
    assert ranges([]) == ""
    assert ranges([3, 4, 5, 9, 11, 12]) == "3-5,9,11-12"


@contextlib.contextmanager
def small_file_system(folder: Path, size: str) -> Iterator[Path]:
    """Mount a small file system in memory for a block; skip where that is not allowed."""
    place = folder / "small"
    place.mkdir()
    if os.name != "posix" or subprocess.run(["which", "mount"], capture_output=True, check=False).returncode:
        pytest.skip("there is no mount here")
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "flawscope-test", str(place)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {done.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


@pytest.mark.long
def test_a_real_disk_fills_and_recovers(tmp_path: Path) -> None:
    with small_file_system(tmp_path, "24m") as state:
        clock = SetClock()
        options = ImageOptions(keep="all", prune_below_gb=0.012, stop_below_gb=0.006, fault_below_gb=0.002)
        noise = np.random.default_rng(7).integers(0, 256, (400, 400, 3), np.uint8)
        with opened(state, clock) as journal:
            gallery = Gallery(state, ["top"], options, journal, clock, period_s=0.01)
            gallery.start()
            try:
                # Accepts of half a megabyte each: the oldest make room for the newest.
                for seq in range(1, 61):
                    kept = image()
                    (path,) = gallery.plan(seq, clock.utc_ns(), "accept", [kept])
                    record = a_part(seq, "accept")
                    view = _named(record.views[0], path)
                    journal.record(record)
                    assert journal.flush(WAIT_S)
                    gallery.keep(seq, "top", [Kept("cam0", view, noise)], record)
                    wait_for(lambda: gallery.status().waiting == 0)
                wait_for(lambda: gallery.status().deleted > 10)
                wait_for(lambda: gallery.disk in ("ok", "prune"))
                assert gallery.status().lost == 0
                # Somebody else takes all that deleting frees: images stop, then parts.
                with (state / "other").open("ab", buffering=0) as file:

                    def is_full() -> bool:
                        with contextlib.suppress(OSError):
                            while file.write(b"x" * 4096) == 4096:
                                pass
                        return gallery.forbids != ""

                    wait_for(is_full)
                assert gallery.plan(99, clock.utc_ns(), "reject", [image()]) == ("",)
                (state / "other").unlink()
                wait_for(lambda: gallery.disk in ("ok", "prune"))
                assert plan_and_keep(gallery, clock, 100) != ""
                wait_for(lambda: gallery.status().waiting == 0)
            finally:
                gallery.stop()
            assert journal.flush(WAIT_S)
            assert journal.problem == ""


def _named(view: object, path: str) -> object:
    import msgspec

    return msgspec.structs.replace(view, image=path)


def test_images_of_dropped_rows_go_and_others_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with stored(tmp_path, 1000.0) as disk:
        for seq in (1, 2, 3):
            disk.record(seq, "reject", days_ago=2)
        paths = {seq: f"{IMAGES}/{disk.day(2)}/{seq}-cam0.png" for seq in (1, 2, 3)}
        (tmp_path / IMAGES / disk.day(2) / "2-cam0+map.png").write_bytes(b"x")
        (tmp_path / "mine.png").write_bytes(b"x")
        assert disk.gallery.drop([]) == ""
        assert (
            disk.gallery.drop([(1, (paths[1],)), (2, (paths[2], "../mine.png")), (9, (paths[3][:-9] + "9-a.png",))])
            == ""
        )
        assert disk.left() == [3]
        assert (tmp_path / "mine.png").exists()
        (event,) = disk.events("images_deleted")
        assert json.loads(event["new"]) == {"kind": "sealed", "files": 3, "parts": "1-2"}
        assert disk.gallery.status().deleted == 3
        # What is gone already is no event; what cannot be deleted is said, and stays.
        assert disk.gallery.drop([(1, (paths[1],))]) == ""

        def refuses(self: Path) -> None:
            raise PermissionError(1, "Operation not permitted")

        monkeypatch.setattr(Path, "unlink", refuses)
        assert "could not be deleted" in disk.gallery.drop([(3, (paths[3],))])
        assert disk.left() == [3]
        assert len(disk.events("images_deleted")) == 2
