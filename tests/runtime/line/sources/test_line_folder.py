"""Files of a folder as parts: each one once, when it is whole, also across restarts."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from recording_sink import RecordingSink

from flawscope.imaging.images import decode_image
from flawscope.runtime.line.sources.child import ChildSource
from flawscope.runtime.line.sources.folder import FolderGrabber
from flawscope.runtime.line.sources.folder_record import FolderRecord, Identity
from flawscope.runtime.line.sources.grabber import SourceLost, SourcePlace
from flawscope.runtime.line.sources.source import Frame
from flawscope.runtime.line.sources.table import FolderSource

Open = Callable[..., FolderGrabber]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "in"
    path.mkdir()
    return path


@pytest.fixture
def opened(tmp_path: Path, folder: Path) -> Iterator[Open]:
    """Open a grabber on the folder; it is closed after the test."""
    grabbers = []

    def open_(in_flight: tuple[str, ...] = (), slot_bytes: int = 1 << 20, **options: Any) -> FolderGrabber:
        place = SourcePlace("top", "cam0", tmp_path / "state", slot_bytes, in_flight)
        grabber = FolderGrabber(FolderSource(path=folder, **{"poll_ms": 5.0, "settle_ms": 20.0, **options}), place)
        grabbers.append(grabber)
        grabber.open()
        return grabber

    yield open_
    for grabber in grabbers:
        grabber.close()


def taken(grabber: FolderGrabber, count: int) -> list[Frame]:
    """Return the next images."""
    found = []
    until = time.monotonic() + 30
    while len(found) < count:
        frame = grabber.grab(0.1)
        if frame is not None:
            found.append(frame)
        assert time.monotonic() < until, found
    return found


def names(frames: list[Frame]) -> list[str]:
    return [frame.source for frame in frames]


def nothing_more(grabber: FolderGrabber) -> bool:
    """Return whether no image comes in far more time than a file takes to settle."""
    return all(grabber.grab(0.05) is None for _ in range(4))


def test_files_that_are_there_come_by_name_and_later_ones_after_them(opened: Open, folder: Path) -> None:
    for name in ("b.png", "a.png", "c.png"):
        (folder / name).write_bytes(name.encode())
    grabber = opened()
    first = taken(grabber, 2)
    (folder / "A-later.png").write_bytes(b"later")
    frames = first + taken(grabber, 2)
    assert [(frame.source, frame.image) for frame in frames] == [
        ("a.png", b"a.png"),
        ("b.png", b"b.png"),
        ("c.png", b"c.png"),
        ("A-later.png", b"later"),
    ]
    assert nothing_more(grabber)
    assert all(frame.problem == "" and frame.frame_id is None for frame in frames)


def test_a_file_is_taken_when_nobody_writes_it_any_more(opened: Open, folder: Path) -> None:
    grabber = opened(settle_ms=200.0)
    with (folder / "slow.png").open("wb") as file:
        for number in range(10):
            file.write(bytes([number]))
            file.flush()
            assert grabber.grab(0.03) is None
    assert taken(grabber, 1)[0].image == bytes(range(10))
    assert nothing_more(grabber)


def test_a_file_that_is_renamed_into_the_folder_comes_once(opened: Open, folder: Path, tmp_path: Path) -> None:
    grabber = opened()
    for name in (".a.png", "b.png.tmp", "c.png.part", "d.png~"):
        (folder / name).write_bytes(b"unfinished")
    assert nothing_more(grabber)
    (folder / "b.png.tmp").rename(folder / "b.png")
    (tmp_path / "e.png").write_bytes(b"from elsewhere")
    (tmp_path / "e.png").rename(folder / "e.png")
    assert sorted(names(taken(grabber, 2))) == ["b.png", "e.png"]
    assert nothing_more(grabber)


def test_what_is_no_image_file_of_the_user_is_passed_over(opened: Open, folder: Path) -> None:
    (folder / "folder.png").mkdir()
    os.mkfifo(folder / "pipe.png")
    (folder / "nowhere.png").symlink_to(folder / "none")
    for name in ("Thumbs.db", "._a.png", ".DS_Store", ".hidden.png", "b.txt"):
        (folder / name).write_bytes(b"x")
    (folder / "real.PNG").write_bytes(b"x")
    (folder / "link.png").symlink_to(folder / "real.PNG")
    grabber = opened(match="*.png")
    assert names(taken(grabber, 2)) == ["link.png", "real.PNG"]
    assert nothing_more(grabber)


def test_empty_unreadable_and_too_large_files_are_faults_that_say_why(opened: Open, folder: Path) -> None:
    (folder / "a-empty.png").touch()
    (folder / "b-large.png").write_bytes(bytes(2001))
    (folder / "c-fits.png").write_bytes(bytes(2000))
    grabber = opened(slot_bytes=2000)
    frames = taken(grabber, 3)
    assert [(frame.source, frame.problem) for frame in frames] == [
        ("a-empty.png", "unreadable_image"),
        ("b-large.png", "unreadable_image"),
        ("c-fits.png", ""),
    ]
    assert "is empty" in frames[0].detail
    assert "slot_mb" in frames[1].detail
    assert frames[0].image is frames[1].image is None
    assert nothing_more(grabber)


def test_a_file_that_may_not_be_read_is_a_fault_after_some_tries(
    opened: Open, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flawscope.runtime.line.sources import folder as module

    tries = []

    def refuse(path: Path) -> Any:
        tries.append(path)
        raise PermissionError(13, "Permission denied", str(path))

    # For root no file is unreadable.
    monkeypatch.setattr(module, "open_regular", refuse)
    (folder / "a.png").write_bytes(b"x")
    grabber = opened()
    (frame,) = taken(grabber, 1)
    assert (frame.source, frame.problem, frame.image) == ("a.png", "unreadable_image", None)
    assert "Permission denied" in frame.detail
    assert len(tries) == 3
    assert nothing_more(grabber)


def test_a_file_that_is_deleted_before_it_was_read_is_no_part(
    opened: Open, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("a.png", "b.png"):
        (folder / name).write_bytes(b"x")
    grabber = opened()
    assert names(taken(grabber, 1)) == ["a.png"]
    (folder / "b.png").unlink()
    assert nothing_more(grabber)
    assert "b.png: was deleted before it was read" in caplog.text
    (folder / "b.png").write_bytes(b"again")
    assert names(taken(grabber, 1)) == ["b.png"]


def test_a_file_that_is_written_while_it_waits_settles_again(opened: Open, folder: Path) -> None:
    for name in ("a.png", "b.png"):
        (folder / name).write_bytes(b"x")
    grabber = opened()
    assert names(taken(grabber, 1)) == ["a.png"]
    (folder / "b.png").write_bytes(b"changed")
    assert [frame.image for frame in taken(grabber, 1)] == [b"changed"]
    assert nothing_more(grabber)


def test_a_rewritten_file_is_another_part_after_the_first_has_its_verdict(opened: Open, folder: Path) -> None:
    (folder / "a.png").write_bytes(b"one")
    grabber = opened()
    taken(grabber, 1)
    (folder / "a.png").write_bytes(b"two")
    assert nothing_more(grabber)
    grabber.done("a.png")
    assert [frame.image for frame in taken(grabber, 1)] == [b"two"]
    grabber.done("a.png")
    assert nothing_more(grabber)


def test_after_a_restart_only_files_without_a_verdict_come(opened: Open, folder: Path) -> None:
    for name in ("a.png", "b.png", "c.png"):
        (folder / name).write_bytes(b"x")
    grabber = opened()
    taken(grabber, 3)
    grabber.done("a.png")
    grabber.close()
    # A line that starts anew has no open parts; a child of the same line is told which are.
    restarted = opened()
    assert names(taken(restarted, 2)) == ["b.png", "c.png"]
    assert nothing_more(restarted)
    restarted.close()
    same_line = opened(in_flight=("c.png",))
    assert names(taken(same_line, 1)) == ["b.png"]
    assert nothing_more(same_line)
    same_line.done("c.png")
    same_line.close()
    assert names(taken(opened(), 1)) == ["b.png"]


def test_a_verdict_of_a_part_of_the_last_run_is_noted(opened: Open, folder: Path) -> None:
    (folder / "a.png").write_bytes(b"x")
    grabber = opened()
    taken(grabber, 1)
    grabber.close()
    restarted = opened(settle_ms=500.0)
    restarted.done("a.png")
    assert nothing_more(restarted)
    restarted.close()
    assert nothing_more(opened())


def test_files_with_a_verdict_are_moved_and_nothing_is_overwritten(opened: Open, folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "state" / "done" / "top" / "cam0"
    grabber = opened(after="move")
    for content in (b"one", b"two", b"three"):
        (folder / "a.png").write_bytes(content)
        taken(grabber, 1)
        assert (folder / "a.png").exists()
        grabber.done("a.png")
        assert not (folder / "a.png").exists()
    assert {path.name: path.read_bytes() for path in target.iterdir()} == {
        "a.png": b"one",
        "a-1.png": b"two",
        "a-2.png": b"three",
    }


def test_a_file_that_was_rewritten_meanwhile_is_not_moved(opened: Open, folder: Path, tmp_path: Path) -> None:
    grabber = opened(after="move")
    (folder / "a.png").write_bytes(b"one")
    taken(grabber, 1)
    (folder / "a.png").write_bytes(b"another")
    grabber.done("a.png")
    assert [frame.image for frame in taken(grabber, 1)] == [b"another"]


def test_what_a_killed_line_did_not_move_is_moved_later(opened: Open, folder: Path, tmp_path: Path) -> None:
    (folder / "a.png").write_bytes(b"x")
    grabber = opened()
    taken(grabber, 1)
    grabber.done("a.png")
    grabber.close()
    opened(after="move")
    assert not (folder / "a.png").exists()
    assert (tmp_path / "state" / "done" / "top" / "cam0" / "a.png").exists()


def test_files_are_moved_to_another_file_system_too(
    opened: Open, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Path.rename

    def across(self: Path, target: Path) -> Path:
        if self.parent == folder:
            raise OSError(18, "Invalid cross-device link")
        return real(self, target)

    monkeypatch.setattr(Path, "rename", across)
    (folder / "a.png").write_bytes(b"x" * 3000)
    grabber = opened(after="move")
    taken(grabber, 1)
    grabber.done("a.png")
    assert (tmp_path / "state" / "done" / "top" / "cam0" / "a.png").read_bytes() == b"x" * 3000
    assert not (folder / "a.png").exists()


def test_a_folder_that_is_not_watched_ends(opened: Open, folder: Path) -> None:
    assert taken(opened(watch=False), 1)[0].is_last
    (folder / "a.png").write_bytes(b"x")
    (folder / "b.png").touch()
    frames = taken(opened(watch=False), 3)
    assert names(frames) == ["a.png", "b.png", ""]
    assert [frame.is_last for frame in frames] == [False, False, True]


def test_a_folder_that_is_gone_is_a_lost_source_and_goes_on_when_it_is_back(
    opened: Open, folder: Path, tmp_path: Path
) -> None:
    (folder / "a.png").write_bytes(b"x")
    grabber = opened()
    taken(grabber, 1)
    grabber.done("a.png")
    folder.rename(tmp_path / "away")
    with pytest.raises(SourceLost, match="No such file"):
        taken(grabber, 1)
    with pytest.raises(SourceLost, match="cannot be listed"):
        opened()
    (tmp_path / "away").rename(folder)
    (folder / "b.png").write_bytes(b"x")
    assert names(taken(opened(), 1)) == ["b.png"]


def test_a_record_that_cannot_be_written_stops_the_source(opened: Open, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "state").write_text("a file in the place of the folder")
    with pytest.raises(SourceLost, match="record of inspected files"):
        opened()


@pytest.mark.skipif(os.fsencode("\udcff") != b"\xff", reason="names of files are UTF-8 here")
def test_a_name_that_is_no_utf8_comes_as_text_and_is_known_again(opened: Open, folder: Path) -> None:
    path = folder / os.fsdecode(b"teil\xff.png")
    path.write_bytes(b"x")
    grabber = opened(after="move")
    (frame,) = taken(grabber, 1)
    assert frame.source == "teil\\xff.png"
    grabber.done(frame.source)
    assert not path.exists()
    grabber.close()
    assert nothing_more(opened())


@pytest.mark.long
def test_five_thousand_files_at_once_come_once_each(opened: Open, folder: Path) -> None:
    for number in range(5000):
        (folder / f"{number:05}.png").write_bytes(str(number).encode())
    grabber = opened()
    frames = taken(grabber, 5000)
    assert [frame.image for frame in frames] == [str(number).encode() for number in range(5000)]
    for frame in frames[:4000]:
        grabber.done(frame.source)
    grabber.close()
    assert names(taken(opened(), 1000)) == names(frames[4000:])


def test_the_record_survives_a_torn_end_and_forgets_what_is_gone(tmp_path: Path) -> None:
    path = tmp_path / "record"
    record = FolderRecord(path, ())
    record.open()
    same = Identity(1, 2, 3)
    for name in ("a", "b", "c"):
        record.taken(name, same)
    record.done("a")
    record.done("b")
    record.close()
    path.write_bytes(path.read_bytes() + b'["c", 1, 2')
    record = FolderRecord(path, ())
    record.open()
    record.taken("d", same)
    record.close()
    record = FolderRecord(path, ("d",))
    record.open()
    assert [record.knows(name, same) for name in "abcd"] == [True, True, False, True]
    assert record.is_open("d")
    assert not record.knows("a", Identity(1, 2, 4))
    # A drive that is away looks like a folder without any file: nothing is forgotten.
    record.forget((), 0.0, moved=False)
    record.forget((), 9000.0, moved=False)
    assert record.knows("a", same)
    record.forget(("b",), 10000.0, moved=False)
    record.forget(("b",), 13000.0, moved=False)
    assert record.knows("a", same)
    record.forget(("b",), 13700.0, moved=False)
    assert [record.knows(name, same) for name in "ab"] == [False, True]
    record.close()


def test_the_record_does_not_grow_for_ever(tmp_path: Path) -> None:
    path = tmp_path / "record"
    record = FolderRecord(path, ())
    record.open()
    record.taken("first", Identity(1, 2, 3))
    for number in range(12000):
        name = f"{number}-{'x' * 100}"
        record.taken(name, Identity(number, 2, 3))
        record.done(name)
    record.forget(("first",), 0.0, moved=True)
    record.forget(("first",), 4000.0, moved=True)
    record.sync()
    assert path.stat().st_size < 1000
    record.done("first")
    record.close()
    record = FolderRecord(path, ())
    record.open()
    assert record.knows("first", Identity(1, 2, 3))
    record.close()


def colour_bars() -> np.ndarray:
    """Return colour bars uint8 [48, 64, 3] RGB: a swap of colours shows."""
    colours = [
        (255, 255, 255),
        (255, 255, 0),
        (0, 255, 255),
        (0, 255, 0),
        (255, 0, 255),
        (255, 0, 0),
        (0, 0, 255),
        (9, 5, 2),
    ]
    return np.repeat(np.repeat(np.array([colours], np.uint8), 48, 0), 8, 1)


def test_through_the_child_files_come_bit_for_bit_and_parts_are_kept_apart(folder: Path, tmp_path: Path) -> None:
    bars = colour_bars()
    for number in range(5):
        cv2.imwrite(str(folder / f"{number}.png"), bars[:, :, ::-1])
    (folder / "5.png").write_bytes((folder / "4.png").read_bytes()[:100])  # truncated: the decoder finds out
    options = FolderSource(path=folder, poll_ms=5.0, settle_ms=20.0, watch=False, after="move")
    sources = []
    sink = RecordingSink()
    for run in range(2):
        source = ChildSource(options, SourcePlace("top", "cam0", tmp_path / "state", 1 << 20))
        sources.append(source)
        source.start(sink)
        try:
            sink.wait(lambda sink: bool(sink.frames) and sink.frames[-1].is_last)
            if run == 0:
                for number in range(3):
                    source.done(f"{number}.png")
                until = time.monotonic() + 30
                while len(list(folder.iterdir())) > 3 and time.monotonic() < until:
                    time.sleep(0.02)
        finally:
            source.stop(10)
        frames, sink.frames = sink.frames[:-1], []
        expected = [f"{number}.png" for number in (range(6) if run == 0 else range(3, 6))]
        assert names(frames) == expected
        for frame in frames[:-1]:
            assert isinstance(frame.image, bytes)
            np.testing.assert_array_equal(decode_image(frame.image), bars)
    assert sink.words == ["up", "up"]
