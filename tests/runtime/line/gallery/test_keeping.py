"""Images reach whoever keeps them once, with the record that names them, and never cost a part its verdict."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from line_stand_ins import Bench, bench, frame, wait_until
from tiny_bundle import tiny_thresholds, write_tiny_bundle

from flawscope.errors import StorageError
from flawscope.imaging.png import encode_png
from flawscope.runtime.inspector import Inspector
from flawscope.runtime.line.gallery.keeper import Kept
from flawscope.runtime.line.gallery.recent import RecentParts
from flawscope.runtime.line.measures import heat_of
from flawscope.runtime.line.parts import PartRecord, ViewRecord


class NotingKeeper:
    """Plans a file for each image, and notes what it is handed."""

    def __init__(self) -> None:
        self.kept: list[tuple[int, tuple[Kept, ...], PartRecord | None]] = []
        self.failure: Exception | None = None

    def plan(self, seq: int, utc_ns: int, verdict: str, images: Sequence[Kept]) -> tuple[str, ...]:
        if self.failure is not None:
            raise self.failure
        return tuple("" if image.image is None else f"{seq}-{image.view}-{verdict}" for image in images)

    def keep(self, seq: int, station: str, images: Sequence[Kept], record: PartRecord | None) -> None:
        assert station == "top"
        if self.failure is not None:
            raise self.failure
        self.kept.append((seq, tuple(images), record))

    def stored(self) -> list[str]:
        """Return the files that are to be written."""
        return [
            image.record.image
            for _, images, record in self.kept
            if record is not None
            for image in images
            if image.record.image
        ]


def named(found: Bench) -> list[str]:
    """Return the files that the last record of each part names."""
    return [view.image for record in found.last().values() for view in record.views if view.image]


def test_images_are_handed_over_with_the_record_that_names_them(tmp_path: Path) -> None:
    keeper = NotingKeeper()
    with bench(tmp_path, keeper=keeper) as found:
        found.ready()
        for value in (50, 150, 250):
            found.station.frame("cam0", frame(value))
        found.settled(3)
        wait_until(lambda: len(keeper.kept) == 3)
        assert {record.verdict for _, _, record in keeper.kept if record} == {"accept", "reject", "fault"}
        assert sorted(keeper.stored()) == sorted(named(found)) == ["1-cam0-accept", "2-cam0-reject", "3-cam0-fault"]
        values = {seq: np.unique(np.asarray(images[0].image)).tolist() for seq, images, _ in keeper.kept}
        assert values == {1: [50], 2: [150], 3: [250]}


def test_a_part_that_was_a_fault_before_it_was_scored_stores_nothing(tmp_path: Path) -> None:
    keeper = NotingKeeper()
    with bench(tmp_path, deadline_ms=150.0, collect_ms=100.0, keeper=keeper, stands=True) as found:
        found.ready()
        found.inspector.gate.clear()
        found.image("cam0", 50)
        # One that waits for the inspector at its deadline is not scored at all.
        wait_until(lambda: found.inspector.sizes == [1])
        found.go(150)
        found.settled(1)
        assert found.last()[1].reason == "deadline"
        assert keeper.kept == []
        found.inspector.gate.set()
        # Too late for the record, and still worth a look on the page.
        wait_until(lambda: len(keeper.kept) == 1)
        (_, (image,), record) = keeper.kept[0]
        assert record is None
        assert image.image is not None
        assert named(found) == []


def test_an_accept_whose_record_came_too_late_keeps_the_image_that_it_names(tmp_path: Path) -> None:
    keeper = NotingKeeper()
    with bench(tmp_path, deadline_ms=200.0, collect_ms=100.0, keeper=keeper, stands=True) as found:
        found.ready()
        found.journal.gate.clear()
        found.image("cam0", 50)
        wait_until(lambda: found.journal.asked == 1)
        found.go(200)
        wait_until(lambda: len(keeper.kept) == 1)
        found.journal.gate.set()
        found.settled(1)
        assert (found.last()[1].verdict, found.last()[1].revision) == ("fault", 1)
        assert keeper.stored() == named(found) == ["1-cam0-accept"]


def test_what_could_not_be_inspected_is_kept_too(tmp_path: Path) -> None:
    keeper = NotingKeeper()
    with bench(tmp_path, ("left", "right"), keeper=keeper, collect_ms=200.0) as found:
        found.ready()
        found.station.push({"left": b"no image", "right": encode_png(np.full((16, 16), 50, np.uint8))})
        found.station.push({"left": encode_png(np.full((16, 16), 50, np.uint8))})
        found.settled(2)
        wait_until(lambda: len(keeper.kept) == 2)
        by_seq = {seq: images for seq, images, _ in keeper.kept}
        assert by_seq[1][0].image == b"no image"
        assert by_seq[1][0].record.reason == "unreadable_image"
        # A file is kept as it came, and a view without an image names none.
        assert isinstance(by_seq[2][0].image, bytes)
        assert (by_seq[2][1].image, by_seq[2][1].record.image) == (None, "")


@pytest.mark.parametrize("value", [50, 150])
def test_who_fails_to_keep_images_costs_no_verdict(tmp_path: Path, value: int) -> None:
    keeper = NotingKeeper()
    keeper.failure = RuntimeError("out of luck")
    with bench(tmp_path, keeper=keeper) as found:
        found.ready()
        found.station.frame("cam0", frame(value))
        record = found.settled(1)[1]
        assert record.verdict == ("accept" if value == 50 else "reject")
        assert record.views[0].image == ""


def test_every_file_that_a_record_names_is_written_and_no_other(tmp_path: Path) -> None:
    keeper, draw = NotingKeeper(), random.Random(5)
    limits: dict[str, Any] = {"deadline_ms": 60.0, "collect_ms": 30.0, "depth": 8}
    with bench(tmp_path, ("left", "right"), keeper=keeper, stands=True, **limits) as found:

        def slowly(condition: Callable[[], bool]) -> bool:
            found.go(1)
            return condition()

        found.ready()
        for number in range(120):
            (found.journal.gate.clear if draw.random() < 0.2 else found.journal.gate.set)()
            (found.inspector.gate.clear if draw.random() < 0.1 else found.inspector.gate.set)()
            found.journal.failure = StorageError("full") if draw.random() < 0.1 else None
            views = [view for view in ("left", "right") if draw.random() < 0.9]
            pixels = np.full((16, 16), draw.choice((50, 150, 250)), np.uint8)
            found.station.push({view: encode_png(pixels) for view in views}, f"part {number}")
            wait_until(lambda: slowly(lambda: found.station.counters.now().open < 8))
            if found.station.readiness.state != "ready":
                found.journal.failure = None
                found.station.acknowledge("test")
        found.journal.failure = None
        found.inspector.gate.set()
        found.journal.gate.set()
        wait_until(lambda: slowly(lambda: found.station.counters.now().open == 0))
        # Parts whose records were given up name no file; those of the others are exactly the files that are written.
        wait_until(lambda: set(named(found)) <= set(keeper.stored()))
        assert len(keeper.stored()) == len(set(keeper.stored())) > 20
        on_record = set(found.last())
        extra = {path for path in keeper.stored() if int(path.split("-")[0]) in on_record} - set(named(found))
        assert extra == set()


class TestRecentParts:
    @staticmethod
    def kept(view: str = "cam0", side: int = 10, image: Any = "drawn") -> Kept:
        pixels = np.zeros((side, side), np.uint8) if isinstance(image, str) else image
        return Kept(view, ViewRecord(view, "reject"), pixels)

    def test_the_oldest_go_by_number_and_by_memory(self) -> None:
        recent = RecentParts(["top", "side"], 3, 2 * 250)
        for seq in range(1, 6):
            recent.put(seq, "top", [self.kept()])
        assert [seq for seq in range(1, 6) if recent.find("top", seq)] == [4, 5]
        # Its share is 250 bytes; the last part stays, however large it is.
        recent.put(6, "top", [self.kept(side=100)])
        assert [seq for seq in range(1, 7) if recent.find("top", seq)] == [6]
        recent.put(7, "top", [self.kept()])
        assert [seq for seq in range(1, 8) if recent.find("top", seq)] == [7]
        assert recent.find("side") is None
        assert [recent.is_to_come("top", seq) for seq in (6, 7, 8)] == [False, False, True]
        assert [recent.is_to_come(station, 1) for station in ("side", "unknown")] == [True, False]
        assert recent.find("unknown") is None

    def test_the_last_part_is_that_with_an_image(self) -> None:
        recent = RecentParts(["top"], 10, 1 << 20)
        recent.put(1, "top", [self.kept("left"), self.kept("right")])
        recent.put(2, "top", [self.kept("left", image=None), self.kept("right", image=None)])
        assert recent.find("top") is not None
        assert recent.find("top")[0] == 1  # type: ignore[index]
        assert recent.find("top", 2, "left") is None
        found = recent.found(1, "right")
        assert found is not None
        assert found.view == "right"

    def test_a_large_image_is_made_smaller_and_drawn_once(self) -> None:
        import cv2

        recent = RecentParts(["top"], 10, 1 << 30)
        image = Kept("cam0", ViewRecord("cam0", "reject"), np.zeros((1000, 2560, 3), np.uint8))
        recent.put(1, "top", [image])
        first = recent.jpeg(1, image, with_heat=False)
        assert cv2.imdecode(np.frombuffer(first, np.uint8), cv2.IMREAD_COLOR).shape == (500, 1280, 3)
        assert recent.jpeg(1, image, with_heat=False) is first


def test_a_frame_that_was_cropped_is_kept_as_it_was_inspected(tmp_path: Path) -> None:
    keeper = NotingKeeper()
    with bench(tmp_path, keeper=keeper) as found:
        view = found.station.views["cam0"]
        view._crop = (4, 2, 8, 9)
        found.ready()
        pixels = np.arange(256, dtype=np.uint8).reshape(16, 16) // 3
        found.station.frame("cam0", dataclasses.replace(frame(0), image=pixels))
        found.station.push({"cam0": encode_png(pixels)})
        wait_until(lambda: len(keeper.kept) == 2)
        for _, (image,), _ in keeper.kept:
            assert image.image is not None
            np.testing.assert_array_equal(np.asarray(image.image), pixels[2:11, 4:12])


def test_a_map_is_coloured_by_the_thresholds_that_decided(tmp_path: Path) -> None:
    write_tiny_bundle(tmp_path / "tiny.flaw", thresholds=tiny_thresholds(150.0))
    anomaly_map = np.zeros((4, 4), np.float32)
    with Inspector.load(tmp_path / "tiny.flaw", "cpu") as inspector:
        heat, own = heat_of(inspector), inspector.in_force
        pixel = msgspec.structs.replace(own.thresholds.pixel, value=77.0)
        other = dataclasses.replace(own, thresholds=msgspec.structs.replace(own.thresholds, pixel=pixel))
        assert heat(None, anomaly_map).reference == own.thresholds.pixel.value != 77.0
        assert heat(other, anomaly_map).reference == 77.0
    # Images of a bundle that was closed since then can still be drawn.
    assert heat(other, anomaly_map).reference == 77.0
