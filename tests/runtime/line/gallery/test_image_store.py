"""Stored images: which ones, without loss, and nothing of it waits for the disk."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import cv2
import msgspec
import numpy as np
import pytest
from line_control import wait_for
from line_journals import a_part
from line_stand_ins import MemoryJournal

from flawscope.errors import BundleError
from flawscope.imaging.images import Preprocessing
from flawscope.runtime.line.gallery import store as store_module
from flawscope.runtime.line.gallery.drawing import levels
from flawscope.runtime.line.gallery.keeper import Heat, Kept
from flawscope.runtime.line.gallery.paths import below, map_path, seq_of
from flawscope.runtime.line.gallery.store import MOST_WAITING, ImageStore
from flawscope.runtime.line.line_config import ImageOptions

NOON_NS = 1_795_953_600 * 10**9  # 2026-11-29


@pytest.fixture
def journal() -> Any:
    found = MemoryJournal()
    yield found
    found.close()


class Desk:
    """A store, and the image of a part that is planned and put."""

    def __init__(self, state: Path, journal: MemoryJournal, **options: Any) -> None:
        self.journal, self.has_room = journal, True
        self.store = ImageStore(state, ImageOptions(**options), journal, lambda: self.has_room)

    def store_one(self, seq: int, image: Any, verdict: Any = "reject", **more: Any) -> str:
        kept = Kept("cam0", a_part(seq, "reject").views[0], image, **more)
        (path,) = self.store.plan(seq, NOON_NS, verdict, [kept])
        record = msgspec.structs.replace(kept.record, image=path)
        self.store.put(seq, [Kept("cam0", record, image, **more)])
        return path


@pytest.mark.parametrize(
    ("image", "color"),
    [
        (np.arange(16 * 20 * 3, dtype=np.uint8).reshape(16, 20, 3), "rgb"),
        (np.arange(16 * 20 * 3, dtype=np.uint8).reshape(16, 20, 3), "bgr"),
        (np.arange(16 * 20, dtype=np.uint8).reshape(16, 20), "rgb"),
        ((np.arange(16 * 20 * 3, dtype=np.uint16) * 60).reshape(16, 20, 3), "rgb"),
        ((np.arange(16 * 20, dtype=np.uint16) * 150).reshape(16, 20), "rgb"),
    ],
)
def test_pixels_are_stored_without_loss(tmp_path: Path, journal: MemoryJournal, image: Any, color: Any) -> None:
    desk = Desk(tmp_path, journal)
    desk.store.start()
    path = desk.store_one(17, image, color=color)
    desk.store.stop()
    assert path == "images/20261129/17-cam0.png"
    read = cv2.imread(str(tmp_path / path), cv2.IMREAD_UNCHANGED)
    if image.ndim == 3 and color == "rgb":
        read = read[..., ::-1]
    assert read.dtype == image.dtype
    np.testing.assert_array_equal(read, image)


def test_files_are_stored_as_they_came(tmp_path: Path, journal: MemoryJournal) -> None:
    data = cv2.imencode(".jpg", np.full((16, 16, 3), 90, np.uint8))[1].tobytes()
    desk = Desk(tmp_path, journal)
    desk.store.start()
    paths = [desk.store_one(1, data), desk.store_one(2, b"no image")]
    desk.store.stop()
    assert [Path(path).name for path in paths] == ["1-cam0.jpg", "2-cam0.bin"]
    assert [(tmp_path / path).read_bytes() for path in paths] == [data, b"no image"]


def test_a_map_is_stored_beside_its_image_with_the_threshold_in_the_middle(
    tmp_path: Path, journal: MemoryJournal
) -> None:
    anomaly_map = np.array([[0.0, 2.0], [4.0, 9.0]], np.float32)
    image = np.zeros((8, 8), np.uint8)
    desk = Desk(tmp_path, journal)
    desk.store.start()
    path = desk.store_one(5, image, anomaly_map=anomaly_map, heat=lambda anomaly_map: Heat(None, 2.0))
    desk.store.stop()
    levels = cv2.imread(str(tmp_path / map_path(path)), cv2.IMREAD_UNCHANGED)
    assert levels.dtype == np.uint16
    np.testing.assert_allclose(levels / 65535, [[0.0, 0.5], [1.0, 1.0]], atol=1e-4)
    without = Desk(tmp_path, journal, maps=False)
    without.store.start()
    other = without.store_one(6, image, anomaly_map=anomaly_map, heat=lambda anomaly_map: Heat(None, 2.0))
    without.store.stop()
    assert (tmp_path / other).exists()
    assert not (tmp_path / map_path(other)).exists()


def test_a_map_that_cannot_be_drawn_costs_no_image(tmp_path: Path, journal: MemoryJournal) -> None:
    def closed(anomaly_map: Any) -> Heat:
        raise BundleError("the bundle was closed")

    desk = Desk(tmp_path, journal)
    desk.store.start()
    path = desk.store_one(5, np.zeros((8, 8), np.uint8), anomaly_map=np.zeros((2, 2), np.float32), heat=closed)
    desk.store.stop()
    assert (tmp_path / path).exists()
    assert not (tmp_path / map_path(path)).exists()
    assert desk.store.counts.lost == 0


def test_a_map_covers_the_crop_of_its_bundle_alone() -> None:
    spec = Preprocessing(resize=(20, 24), crop=(16, 16))
    level = levels(np.full((16, 16), 3.0, np.float32), Heat(spec, 2.0))
    np.testing.assert_allclose(level, np.pad(np.full((16, 16), 0.75), ((2, 2), (4, 4))))
    odd = np.array([[np.nan, np.inf, -np.inf, 1.0]], np.float32)
    np.testing.assert_allclose(levels(odd, Heat(None, 0.0)), [[0.0, 1.0, 0.0, 1.0]])


def test_which_images_are_stored(tmp_path: Path, journal: MemoryJournal) -> None:
    image = Kept("cam0", a_part(1, "reject").views[0], np.zeros((8, 8), np.uint8))

    def share(keep: Any, verdict: Any, accepts: float = 0.1) -> float:
        store = Desk(tmp_path, journal, keep=keep, accepts=accepts).store
        return sum(store.plan(seq, NOON_NS, verdict, [image]) != ("",) for seq in range(1, 2001)) / 2000

    assert [share("rejects", verdict) for verdict in ("reject", "fault")] == [1.0, 1.0]
    assert share("rejects", "accept") == pytest.approx(0.1, abs=0.03)
    assert (share("rejects", "accept", 0.0), share("rejects", "accept", 1.0)) == (0.0, 1.0)
    assert [share("all", verdict) for verdict in ("accept", "reject")] == [1.0, 1.0]
    assert [share("none", verdict) for verdict in ("accept", "reject", "fault")] == [0.0, 0.0, 0.0]


def test_a_slow_disk_holds_up_nobody_and_what_is_left_out_is_said(
    tmp_path: Path, journal: MemoryJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = threading.Event()
    monkeypatch.setattr(store_module, "write_bytes", lambda path, data: gate.wait(30))
    desk = Desk(tmp_path, journal)
    desk.store.start()
    image = np.zeros((8, 8), np.uint8)
    began = time.monotonic()
    paths = [desk.store_one(seq, image) for seq in range(1, 2 * MOST_WAITING)]
    took = time.monotonic() - began
    assert took < 10
    planned = sum(path != "" for path in paths)
    assert MOST_WAITING <= planned <= MOST_WAITING + 1
    assert desk.store.counts.left_out == len(paths) - planned
    gate.set()
    desk.store.stop(30)
    assert desk.store.counts.stored == planned
    assert (
        sum(int(fields["new"]) for action, fields in journal.events if action == "images_left_out")
        == len(paths) - planned
    )
    assert "image_lost" not in dict(journal.events)


def test_an_image_that_could_not_be_written_is_an_event(tmp_path: Path, journal: MemoryJournal) -> None:
    desk = Desk(tmp_path, journal)
    (tmp_path / "images").write_text("a file where the folder should be")
    desk.store.start()
    path = desk.store_one(3, np.zeros((8, 8), np.uint8))
    wait_for(lambda: desk.store.counts.lost == 1)
    desk.store.stop()
    ((action, fields),) = journal.events
    assert (action, fields["object"], fields["new"]) == ("image_lost", "part 3", path)
    assert "could not be written" in fields["reason"]
    assert "could not be written" in desk.store.counts.problem


def test_what_waits_at_the_end_for_too_long_is_lost_and_said(
    tmp_path: Path, journal: MemoryJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = threading.Event()
    monkeypatch.setattr(store_module, "write_bytes", lambda path, data: gate.wait(30))
    desk = Desk(tmp_path, journal)
    desk.store.start()
    for seq in (1, 2, 3):
        desk.store_one(seq, np.zeros((8, 8), np.uint8))
    wait_for(lambda: desk.store.counts.waiting == 3 and len(desk.store._queue) == 2)
    desk.store.stop(0.05)
    gate.set()
    assert [fields["object"] for action, fields in journal.events] == ["part 2", "part 3"]
    assert {action for action, _ in journal.events} == {"image_lost"}


def test_a_path_that_is_not_ours_is_never_read(tmp_path: Path) -> None:
    assert below(tmp_path, "images/20261129/17-cam0.png") == tmp_path / "images" / "20261129" / "17-cam0.png"
    for path in ("images/../secret", "/etc/passwd", "images/20261129/../../x-y.png", "images/2026/17-cam0.png", ""):
        assert below(tmp_path, path) is None
    assert [seq_of(name) for name in ("17-cam0.png", "17-cam0+map.png", "17-a.b-c.tif", "cam0.png", "17.png")] == [
        17,
        17,
        17,
        None,
        None,
    ]
