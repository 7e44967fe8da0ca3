"""A whole line on video and on a network camera: scores to the last bit, and a camera faster than the scoring."""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import yaml
from drawn_videos import noise, write_video
from line_project import write_line
from line_stand_ins import wait_until
from rtsp_server import rtsp_server, why_absent

from flawscope.runtime import Inspector
from flawscope.runtime.line.config_file import read_config
from flawscope.runtime.line.line import Line, run
from flawscope.runtime.line.parts import PartRecord
from flawscope.runtime.line.sources.child import ChildSource
from flawscope.runtime.line.station.counters import Counts

pytest.importorskip("av", reason="PyAV is not installed")

needs_server = pytest.mark.skipif(bool(why_absent()), reason=f"no RTSP server: {why_absent()}")

_log = logging.getLogger(__name__)

SCORING_S = 0.2
"""What scoring takes here: five images a second, of twenty that come."""

FILLED_PARTS = 100
"""Parts after which the windows of drift are full; see `watch_few`."""


@contextlib.contextmanager
def running(config: Path) -> Iterator[Line]:
    """Run a line for a block."""
    line = Line(read_config(config), lambda text: None)
    stop = threading.Event()
    thread = threading.Thread(target=run, args=(line, stop.is_set), kwargs={"wait": stop.wait})
    try:
        line.start()
        thread.start()
        yield line
    finally:
        stop.set()
        if thread.ident is not None:
            thread.join(60)
        line.stop()


def recorded(line: Line) -> list[PartRecord]:
    assert line.journal.flush(60)
    return line.journal.parts(limit=100_000)


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "codec", "form"), [("a.mkv", "ffv1", "bgr0"), ("a.mov", "png", "rgb24")], ids=["ffv1", "png"]
)
def test_a_lossless_video_scores_as_its_images_do(tmp_path: Path, name: str, codec: str, form: str) -> None:
    images = noise(24, size=(40, 40))
    write_video(tmp_path / name, images, codec, form)
    config = write_line(tmp_path, source={"kind": "video", "path": name}, deadline_ms=20000.0)
    command = [sys.executable, "-m", "flawscope", "line", "run", str(config)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "24 parts" in done.stderr
    assert "0 fault + 0 open" in done.stderr
    line = Line(read_config(config), lambda text: None)
    line.start()
    try:
        parts = recorded(line)[:24]
    finally:
        line.stop()
    with Inspector.load(tmp_path / "tiny.flaw", "cpu") as inspector:
        for part, image in zip(parts, images, strict=True):
            cv2.imwrite(str(tmp_path / "image.png"), image[:, :, ::-1])
            result = inspector(tmp_path / "image.png")
            assert (part.verdict, part.score) == (result.decision, result.score)
            assert part.views[0].frame_id == part.seq - 1
    assert len({part.score for part in parts}) > 12


def slow_scoring(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every image take its time, as a model does."""
    stream = Inspector.stream

    def slowed(self: Inspector, images: Any, *args: Any, **options: Any) -> Any:
        for result in stream(self, images, *args, **options):
            time.sleep(SCORING_S)
            yield result

    monkeypatch.setattr(Inspector, "stream", slowed)


def fill_what_is_bounded(line: Line) -> None:
    """Fill what keeps a stated number of things and then grows no more, so that all that grows afterwards is a leak."""
    # The pages that SQLite keeps in memory, 2 MB of them: 3,000 parts.
    for number in range(8000):
        line.journal.event("filled", object="cache", new=str(number), reason=400 * "-")
        if number % 500 == 0:
            assert line.journal.flush(60)
    assert line.journal.flush(60)
    # Python's table of interned strings: pathlib adds every new name of a file, and it is made anew, larger at the
    # first time, when 10,000s of them have come and gone.
    for number in range(200_000):
        sys.intern(f"name {number}")


def resident_mb(pid: int) -> float:
    """Return the memory of a process, in MiB."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * 4096 / (1 << 20)


def child_of(line: Line) -> int:
    """Return the process that reads the camera."""
    source = line.stations["top"]._views["cam0"].source
    assert isinstance(source, ChildSource)
    assert source._process is not None
    return source._process._process.pid


def check_account(counts: Counts, seconds: float, sent_each_s: float, before: Counts) -> None:
    """Check that all images since then are parts or counted as skipped, and that every part has one verdict."""
    assert counts.holds
    images = counts.parts + counts.skipped - before.parts - before.skipped
    # A machine that is busy sends fewer, and what waited on the way comes in a burst; far more than were sent would
    # have been counted twice.
    assert 0.2 * sent_each_s * seconds < images < 1.1 * sent_each_s * seconds + 60
    assert counts.skipped > counts.parts


@needs_server
@pytest.mark.long
def test_a_camera_four_times_as_fast_as_the_scoring(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow_scoring(monkeypatch)
    with rtsp_server() as server:
        config = write_line(tmp_path, source={"kind": "rtsp", "url": server.url}, deadline_ms=20000.0, depth=1)
        with running(config) as line:
            station = line.stations["top"]
            wait_until(lambda: station.counters.now().parts >= 5)
            began, before = time.monotonic(), station.counters.now()
            wait_until(lambda: station.counters.now().parts >= before.parts + 20, 60)
            seconds = time.monotonic() - began
            check_account(station.counters.now(), seconds, 20, before)
            parts = recorded(line)
    assert [part.seq for part in parts] == list(range(1, len(parts) + 1))
    assert {part.verdict for part in parts} == {"reject"}
    # One is scored, one waits: the newest at the time when the one before it was taken.
    assert np.median([part.latency_ms["verdict"] for part in parts]) < 1e3 * (5 * SCORING_S)


def watch_few(config: Path) -> None:
    """Let drift be looked for in so few images that its windows are full when `FILLED_PARTS` have come."""
    edited = yaml.safe_load(config.read_text())
    for view in edited["stations"][0]["views"]:
        view["drift"] = {"window": 20, "reference": 50}
    config.write_text(yaml.safe_dump(edited))


@needs_server
@pytest.mark.slow
def test_a_camera_four_times_as_fast_as_the_scoring_for_three_minutes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow_scoring(monkeypatch)
    memory: list[tuple[float, float, float]] = []
    with rtsp_server() as server:
        config = write_line(tmp_path, source={"kind": "rtsp", "url": server.url}, deadline_ms=20000.0, depth=1)
        watch_few(config)
        with running(config) as line:
            station = line.stations["top"]
            fill_what_is_bounded(line)
            wait_until(lambda: station.counters.now().parts >= FILLED_PARTS, 120)
            began, child = time.monotonic(), child_of(line)
            before = station.counters.now()
            while (now := time.monotonic() - began) < 180:
                memory.append((now, resident_mb(os.getpid()), resident_mb(child)))
                time.sleep(0.5)
            assert child_of(line) == child
            parts, counts = recorded(line), station.counters.now()
    assert [part.seq for part in parts] == list(range(1, len(parts) + 1))
    assert {part.verdict for part in parts} == {"reject"}
    latency = np.array([part.latency_ms["verdict"] for part in parts[before.parts :]])
    halves = [float(np.median(half)) for half in np.array_split(latency, 2)]
    times, line_mb, child_mb = np.array(memory).T
    slopes = [60 * float(np.polyfit(times, mb, 1)[0]) for mb in (line_mb, child_mb)]
    figures = {
        "parts": counts.parts - before.parts,
        "skipped": counts.skipped - before.skipped,
        "latency_ms p50, p99, max": [round(float(np.percentile(latency, share))) for share in (50, 99, 100)],
        "latency_ms p50 of each half": [round(half) for half in halves],
        "MiB a minute, line and child": [round(slope, 2) for slope in slopes],
        "MiB, line and child": [round(float(mb[-1]), 1) for mb in (line_mb, child_mb)],
    }
    _log.info("%s", figures)
    check_account(counts, 180, 20, before)
    assert np.percentile(latency, 95) < 1e3 * (5 * SCORING_S)
    assert abs(halves[1] - halves[0]) < 1e3 * SCORING_S
    # One KiB that stayed behind for each part would be 0.3 MiB a minute; an image of 225 KiB would be 66.
    assert slopes[0] < 0.3, figures
    assert slopes[1] < 0.5, figures


@needs_server
@pytest.mark.long
def test_a_line_never_ends_with_its_camera(tmp_path: Path) -> None:
    with rtsp_server() as server:
        config = write_line(tmp_path, source={"kind": "rtsp", "url": server.url}, deadline_ms=20000.0)
        with running(config) as line:
            station, port = line.stations["top"], server.port
            wait_until(lambda: station.counters.now().parts >= 5)
            server.kill()
            wait_until(lambda: not station.readiness.is_ready)
            assert f"{server.url}: " in station.readiness.reason
            assert not line.has_ended
            seen = station.counters.now().parts
            with rtsp_server(port):
                wait_until(lambda: station.counters.now().parts >= seen + 5, 60)
                assert station.readiness.is_ready
            assert station.counters.now().holds
            parts = recorded(line)
    # What a killed server was just sending may be a fault, and nothing else is.
    assert {part.reason for part in parts} <= {"", "incomplete_image"}
