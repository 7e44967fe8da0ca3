"""Devices that fail under a line, native code that crashes, and signals while a bundle is loaded."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from line_project import png, read_line, write_line
from line_stand_ins import WAIT_S, wait_until
from project_paths import ROOT

from flawscope.errors import DeviceError, FlawscopeError
from flawscope.runtime import ready_scorer
from flawscope.runtime import shared_scoring as scoring_module
from flawscope.runtime.line.journal.reader import JournalReader
from flawscope.runtime.line.line import Line, run
from flawscope.runtime.line.station.station import Station


@pytest.fixture
def line(tmp_path: Path) -> Iterator[Line]:
    started = Line(read_line(tmp_path), lambda text: None)
    started.start()
    yield started
    started.stop()
    status = started.status()
    assert status.account_holds
    (station,) = status.stations
    reader = JournalReader(tmp_path / "state")
    records = reader.parts(limit=1000)
    reader.close()
    assert [record.seq for record in records] == list(range(1, station.parts + 1))
    assert station.parts == station.accept + station.reject + station.fault


def push(line: Line, value: int = 50) -> str:
    """Give a part to the line; returns its verdict and reason."""
    station = line.stations["top"]
    seq = station.push({"cam0": png(value)})
    wait_until(lambda: line.journal.part_of(seq) is not None)
    record = line.journal.part_of(seq)
    assert record is not None
    return f"{record.verdict} {record.reason}".strip()


def break_device(station: Station, *, times: int = 1) -> None:
    """Let the device fail at the next images."""
    inspector = station.views["cam0"].measure.scoring._inspector._inspector  # type: ignore[attr-defined]
    scorer, left = inspector._ready.scorer, [times]
    score = scorer.score

    def fails(prepared: Any) -> Any:
        if left[0]:
            left[0] -= 1
            raise DeviceError("backend cuda: the device failed: an illegal memory access was encountered")
        return score(prepared)

    scorer.score = fails


def events(line: Line) -> list[str]:
    line.journal.flush()
    return [str(entry["action"]) for entry in line.journal.entries(0, 1000) if entry["kind"] == "event"]


def scoring_of(line: Line) -> Any:
    return line.stations["top"].views["cam0"].measure.scoring


def test_a_device_that_fails_is_opened_again_and_costs_its_part(line: Line) -> None:
    assert push(line) == "accept"
    break_device(line.stations["top"])
    assert push(line) == "fault inference"
    wait_until(lambda: scoring_of(line).problem == "" and scoring_of(line).device_failures == 1)
    line.turn()
    assert (line.lost, line.stations["top"].readiness.state) == ("", "ready")
    assert "device_failed" in events(line)
    # Nobody had to give a part for it.
    assert push(line) == "accept"
    assert push(line, 200) == "reject"


def test_while_it_is_opened_again_the_station_is_in_error(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    gate, opens = threading.Event(), ready_scorer.open_scorer

    def slow(*arguments: Any) -> Any:
        gate.wait(WAIT_S)
        return opens(*arguments)

    monkeypatch.setattr(ready_scorer, "open_scorer", slow)
    break_device(line.stations["top"])
    try:
        assert push(line) == "fault inference"
        wait_until(lambda: bool(scoring_of(line).problem))
        line.turn()
        assert line.stations["top"].readiness.state == "error"
        assert "is being opened again" in line.stations["top"].readiness.reason
        assert push(line) == "fault not_ready"
    finally:
        gate.set()
    wait_until(lambda: scoring_of(line).problem == "")
    line.turn()
    assert push(line) == "accept"


def test_a_device_that_does_not_come_back_ends_the_line(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*arguments: Any) -> Any:
        raise DeviceError("backend cuda: an illegal memory access was encountered")

    monkeypatch.setattr(ready_scorer, "open_scorer", fails)
    break_device(line.stations["top"])
    assert push(line) == "fault inference"
    wait_until(lambda: bool(scoring_of(line).lost))
    # It ends by itself: nobody has asked it to stop.
    run(line, lambda: False)
    assert "could not be opened again" in line.lost
    assert push(line) == "fault not_ready"
    assert {"device_failed", "device_lost"} <= set(events(line))


def test_a_device_that_fails_again_and_again_ends_the_line(line: Line) -> None:
    break_device(line.stations["top"])
    assert push(line) == "fault inference"
    wait_until(lambda: scoring_of(line).device_failures == 1 and not scoring_of(line).problem)
    break_device(line.stations["top"])
    assert push(line) == "fault inference"
    wait_until(lambda: bool(scoring_of(line).lost))
    # Nothing more is tried with it, and nothing is accepted.
    assert push(line) == "fault inference"
    run(line, lambda: False)
    assert "failed again" in line.lost


def test_a_device_may_fail_again_after_it_has_worked_for_a_while(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring_module, "_STEADY_S", 0.0)
    for failures in (1, 2, 3):
        break_device(line.stations["top"])
        assert push(line) == "fault inference"
        wait_until(lambda failures=failures: scoring_of(line).device_failures == failures)
        wait_until(lambda: not scoring_of(line).problem)
        assert push(line) == "accept"
    assert not scoring_of(line).lost


# `line run` as its command, with something broken before it.
_RUN = """
import sys
from flawscope import cli
{before}
sys.exit(cli.run(["line", "run", sys.argv[1]]))
"""
_CRASH = """
import ctypes
from flawscope.runtime.line import measures
score = measures._Batches.score
def crashes(self, sources, color, in_force=None):
    if any(source.max() == 77 for source in sources):
        ctypes.string_at(0)
    return score(self, sources, color, in_force)
measures._Batches.score = crashes
"""
_LOST = """
from flawscope.errors import DeviceError
from flawscope.runtime import ready_scorer
from flawscope.runtime.line import measures
score = measures._Batches.score
def fails(self, sources, color, in_force=None):
    if any(source.max() == 77 for source in sources):
        def lost(*given):
            raise DeviceError("backend cuda: the device failed")
        self._inspector._ready.scorer.score = ready_scorer.open_scorer = lost
    return score(self, sources, color, in_force)
measures._Batches.score = fails
"""
_HANGS = """
import ctypes
from flawscope.runtime import ready_scorer
def hangs(*given):
    print("loads", file=sys.stderr, flush=True)
    ctypes.CDLL(None).sleep(120)
ready_scorer.open_scorer = hangs
"""
FOLDER = {"kind": "folder", "path": "images", "settle_ms": 0}


@contextlib.contextmanager
def started(config: Path, before: str) -> Iterator[subprocess.Popen[str]]:
    program = [sys.executable, "-c", _RUN.format(before=before), str(config)]
    with subprocess.Popen(program, stderr=subprocess.PIPE, text=True, cwd=ROOT) as process:
        try:
            yield process
        finally:
            # Where it did not end as it should, nobody waits for it.
            process.kill()


def with_images(folder: Path, *values: int) -> Path:
    (folder / "images").mkdir(exist_ok=True)
    for number, value in enumerate(values):
        if not (folder / "images" / f"{number}.png").exists():
            (folder / "images" / f"{number}.png").write_bytes(png(value))
    return write_line(folder, source=FOLDER)


def parts(folder: Path) -> list[str]:
    try:
        reader = JournalReader(folder / "state")
    except FlawscopeError:  # it is just being made
        return []
    try:
        return [f"{part.verdict} {part.reason}".strip() for part in reader.parts()]
    finally:
        reader.close()


def files_done(folder: Path) -> int:
    """Return how many files the source knows to have their verdict (the last number of a line of its record)."""
    record = folder / "state" / "sources" / "top" / "cam0.folder.jsonl"
    return sum(json.loads(line)[-1] for line in record.read_text().splitlines())


@pytest.mark.long
def test_a_native_crash_leaves_faults_and_no_accept(tmp_path: Path) -> None:
    config = with_images(tmp_path, 50, 200)
    with started(config, _CRASH) as process:
        wait_until(lambda: parts(tmp_path) == ["accept", "reject"])
        # The source hears of a verdict after it is on record; a file whose verdict it never heard of is a new part.
        wait_until(lambda: files_done(tmp_path) == 2)
        with_images(tmp_path, 50, 200, 77, 60)
        said = process.communicate(timeout=WAIT_S)[1]
    assert process.returncode == -signal.SIGSEGV, said
    # What was open has no record yet.
    assert parts(tmp_path) == ["accept", "reject"]
    (tmp_path / "images" / "2.png").write_bytes(png(60))
    with started(config, "") as process:
        try:
            wait_until(lambda: len(parts(tmp_path)) >= 5)
        finally:
            process.terminate()
        said = process.communicate(timeout=WAIT_S)[1]
    assert process.returncode == 0, said
    assert "parts were open when the line ended last" in said
    found = parts(tmp_path)
    assert found[:2] == ["accept", "reject"]
    # Open were the one that crashed it and the one behind it; both files have their verdict as new parts.
    assert set(found[2:-2]) == {"fault interrupted"}
    assert found[-2:] == ["accept", "accept"]


@pytest.mark.long
def test_a_lost_device_is_an_exit_status_for_whoever_starts_it_again(tmp_path: Path) -> None:
    config = with_images(tmp_path, 50, 77, 60)
    with started(config, _LOST) as process:
        said = process.communicate(timeout=WAIT_S)[1]
    assert process.returncode == 1, said
    assert "could not be opened again" in said
    assert "Traceback" not in said
    assert "accept" not in parts(tmp_path)[1:]


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_a_bundle_is_loaded_ends_it_at_once(tmp_path: Path, number: signal.Signals) -> None:
    config = with_images(tmp_path, 50)
    with started(config, _HANGS) as process:
        assert process.stderr is not None
        while "loads" not in (said := process.stderr.readline()):
            assert said
        process.send_signal(number)
        said = process.communicate(timeout=WAIT_S)[1]
    assert process.returncode == 0, said
    assert "stopped while it was starting" in said
    # Nothing is left that keeps the next one from starting.
    with started(config, "") as process:
        wait_until(lambda: parts(tmp_path) == ["accept"])
        process.terminate()
        process.communicate(timeout=WAIT_S)
    assert process.returncode == 0
