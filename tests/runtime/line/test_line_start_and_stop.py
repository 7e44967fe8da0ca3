"""A line that cannot start leaves nothing behind, and one that is stopped ends in time, whatever hangs."""

from __future__ import annotations

import errno
import gc
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from line_project import PUSH, png, read_line, without_http, write_line
from line_stand_ins import WAIT_S, wait_until

from flawscope.errors import ArgumentError, FlawscopeError, StorageError
from flawscope.runtime.line import line as line_module
from flawscope.runtime.line.clock import SystemClock
from flawscope.runtime.line.config_file import read_config
from flawscope.runtime.line.journal import journal as journal_module
from flawscope.runtime.line.journal.journal import Journal
from flawscope.runtime.line.journal.reader import JournalReader
from flawscope.runtime.line.line import Line, run
from flawscope.runtime.line.status import STATUS, LineStatus


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    wait_until(lambda: not [thread for thread in set(threading.enumerate()) - before if thread.is_alive()])


def lives(folder: Path, **station: Any) -> None:
    """Start the line of a folder, judge two parts, and stop it."""
    line = Line(read_line(folder, **station), lambda text: None)
    line.start()
    try:
        last = line.journal.last_seq
        line.stations["top"].push({"cam0": png(50)})
        line.stations["top"].push({"cam0": png(200)})
        wait_until(lambda: line.journal.last_seq == last + 2)
        assert [part.verdict for part in line.journal.parts(last)] == ["accept", "reject"]
    finally:
        line.stop()
    assert line.status().account_holds


class TestStartThatFails:
    def test_port_of_the_second_output(self, tmp_path: Path) -> None:
        pytest.importorskip("pymodbus")
        with socket.create_server(("127.0.0.1", 0)) as taken, socket.create_server(("127.0.0.1", 0)) as other:
            ports = [other.getsockname()[1], taken.getsockname()[1]]
            other.close()
            outputs = [{"kind": "modbus", "listen": f"127.0.0.1:{port}"} for port in ports]
            line = Line(read_line(tmp_path, outputs=outputs), lambda text: None)
            with pytest.raises(ArgumentError, match="cannot listen on"):
                line.start()
        lives(tmp_path, outputs=outputs)

    def test_second_bundle(self, tmp_path: Path) -> None:
        views = [
            {"name": name, "source": dict(PUSH), "bundle": f"{name}.flaw", "backend": "cpu", "threads": 1}
            for name in ("tiny", "other")
        ]
        (tmp_path / "other.flaw").mkdir()
        line = Line(read_line(tmp_path, views=views), lambda text: None)
        with pytest.raises(FlawscopeError):
            line.start()
        lives(tmp_path)

    def test_journal_that_another_line_has_open(self, tmp_path: Path) -> None:
        journal = Journal.open(tmp_path / "state", "press", SystemClock())
        try:
            with pytest.raises(StorageError, match="no process uses"):
                Line(read_line(tmp_path), lambda text: None).start()
        finally:
            journal.close()
        lives(tmp_path)

    def test_state_folder_of_another_line(self, tmp_path: Path) -> None:
        Journal.open(tmp_path / "state", "another", SystemClock()).close()
        with pytest.raises(ArgumentError, match="got that of line another"):
            Line(read_line(tmp_path), lambda text: None).start()

    def test_disk_that_is_full(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def full(*args: int) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        read = read_line(tmp_path)
        with monkeypatch.context() as patch:
            patch.setattr(os, "posix_fallocate", full)
            with pytest.raises(StorageError, match="the disk is full"):
                Line(read, lambda text: None).start()
        lives(tmp_path)

    def test_sink_that_cannot_be_made(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        closed = []

        class Good:
            batch = 1

            def close(self) -> None:
                closed.append(self)

        def open_sink(options: Any, line: str) -> Good:
            if options.name == "second":
                raise ArgumentError("no such certificate")
            return Good()

        from flawscope.runtime.line.sinks import runner

        monkeypatch.setattr(runner, "open_sink", open_sink)
        read = read_line(tmp_path)
        sinks = read_config(_with_sinks(write_line(tmp_path))).config.sinks
        config = msgspec.structs.replace(read.config, sinks=sinks)
        with pytest.raises(ArgumentError, match="no such certificate"):
            Line(type(read)(config, read.path, read.sha256), lambda text: None).start()
        assert len(closed) == 1
        monkeypatch.undo()
        lives(tmp_path)


def _with_sinks(path: Path) -> Path:
    sinks = "sinks: [{kind: jsonl, path: a, name: first}, {kind: jsonl, path: b, name: second}]\n"
    path.write_text(path.read_text() + sinks)
    return path


def started(folder: Path, **station: Any) -> Line:
    line = Line(read_line(folder, **station), lambda text: None)
    line.start()
    return line


def hang(line: Line) -> threading.Event:
    """Let the inspector hang; returns what lets it go on."""
    gate = threading.Event()
    inspector = line.stations["top"].views["cam0"].measure.scoring._inspector
    inspector.score = lambda *_: gate.wait(WAIT_S) and []  # type: ignore[method-assign]
    return gate


class TestStop:
    @pytest.mark.long
    def test_open_parts_have_their_verdict(self, tmp_path: Path) -> None:
        line = started(tmp_path, deadline_ms=300)
        gate = hang(line)
        try:
            for _ in range(3):
                line.stations["top"].push({"cam0": png(50)})
            begun = time.monotonic()
            line.stop()
            assert time.monotonic() - begun < WAIT_S
        finally:
            gate.set()
        assert line.status().account_holds
        assert line.is_written
        reader = JournalReader(tmp_path / "state")
        assert [(part.verdict, part.reason) for part in reader.parts()] == [("fault", "deadline")] * 3
        reader.close()
        line.stop()

    @pytest.mark.long
    def test_disk_that_hangs(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(journal_module, "CLOSE_S", 0.2)
        monkeypatch.setattr(line_module, "_FLUSH_S", 0.2)
        line = started(tmp_path, deadline_ms=100)
        gate = threading.Event()
        writer = line.journal._writer
        commit: Callable[[Any], bool] = writer._commit
        monkeypatch.setattr(writer, "_commit", lambda group: gate.wait(WAIT_S) and commit(group))
        monkeypatch.setattr("flawscope.runtime.line.status.write_bytes", lambda path, data: gate.wait(WAIT_S))
        try:
            line.stations["top"].push({"cam0": png(50)})
            line.turn()
            begun = time.monotonic()
            line.stop()
            assert time.monotonic() - begun < WAIT_S
            assert not line.is_written
            # What nobody could compare is not called wrong.
            assert line.status().account_holds
        finally:
            gate.set()
        wait_until(lambda: not writer._thread.is_alive())
        os.close(line.journal._lock)
        monkeypatch.undo()
        again = started(tmp_path)
        again.stop()
        reader = JournalReader(tmp_path / "state")
        (part,) = reader.parts()
        reader.close()
        # It was given out as a fault at its deadline.
        assert part.verdict == "fault"

    def test_a_terminal_that_is_gone_ends_nothing(self, tmp_path: Path) -> None:
        def gone(text: str) -> None:
            raise BrokenPipeError(errno.EPIPE, "Broken pipe")

        line = Line(read_line(tmp_path), gone)
        line.start()
        try:
            line.turn()
            line.stations["top"].halt("anna")
            line.turn()
            assert line.status().stations[0].state == "halted"
        finally:
            line.stop()

    def test_before_it_was_started(self, tmp_path: Path) -> None:
        Line(read_line(tmp_path), lambda text: None).stop()
        assert not (tmp_path / "state").exists()


def test_while_it_runs_garbage_is_looked_for_among_new_objects_alone(tmp_path: Path) -> None:
    line = started(tmp_path)
    frozen = []

    def should_stop() -> bool:
        frozen.append(gc.get_freeze_count())
        return len(frozen) > 1

    try:
        run(line, should_stop)
    finally:
        line.stop()
    assert min(frozen) > 1000
    assert gc.get_freeze_count() == 0


class JumpingClock(SystemClock):
    """The clocks of this machine, the wall clock off by what a test says."""

    off_ns = 0

    def utc_ns(self) -> int:
        return super().utc_ns() + self.off_ns


@pytest.mark.parametrize("hours", [1, -1])
def test_a_clock_that_jumps_changes_no_order_and_no_duration(tmp_path: Path, hours: int) -> None:
    clock = JumpingClock()
    line = Line(without_http(read_config(write_line(tmp_path))), lambda text: None, clock)
    line.start()
    try:
        line.turn()
        line.stations["top"].push({"cam0": png(50)})
        wait_until(lambda: line.journal.last_seq == 1)
        clock.off_ns = hours * 3600 * 10**9
        line.stations["top"].push({"cam0": png(50)})
        line.turn()
        line.turn()
        wait_until(lambda: line.journal.last_seq == 2)
        line.journal.flush()
        first, second = line.journal.parts()
        assert (first.verdict, second.verdict) == ("accept", "accept")
        assert (second.utc > first.utc) is (hours > 0)
        assert second.mono_ns > first.mono_ns
        assert second.latency_ms["verdict"] < 60_000  # far from an hour, however busy the machine is
        jumps = [entry for entry in line.journal.entries(0, 1000) if entry.get("action") == "clock_jump"]
        assert len(jumps) == 1
        assert f"{3600 * hours:+d}" in jumps[0]["reason"]
    finally:
        line.stop()
    said = msgspec.json.decode((tmp_path / "state" / STATUS).read_bytes(), type=LineStatus)
    assert (said.is_running, said.last_seq, said.account_holds) == (False, 2, True)


def test_an_acknowledged_journal_is_so_at_the_next_start(tmp_path: Path) -> None:
    lives(tmp_path)
    (tmp_path / "state" / "journal.db").write_bytes(b"broken" * 1000)
    line = started(tmp_path)
    try:
        assert line.journal.problem
        assert line.stations["top"].readiness.state == "error"
        line.stations["top"].acknowledge("anna")
        line.journal.flush()
        assert (line.journal.problem, line.stations["top"].readiness.state) == ("", "ready")
    finally:
        line.stop()
    lives(tmp_path)
