"""Acceptance test 11: whatever is killed, each entry of the journal arrives at least once and in order."""

from __future__ import annotations

import contextlib
import json
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import webhook_server as answers
from line_control import wait_for
from line_with_sink import record_part
from mqtt_broker import mqtt_broker, subscriber
from project_paths import ROOT
from webhook_server import webhook_server

from flawscope.runtime.line.clock import SystemClock
from flawscope.runtime.line.journal.journal import Journal
from flawscope.runtime.line.sinks.runner import SinkRunner, sink_runners
from flawscope.runtime.line.sinks.table import JsonlSink, WebhookSink

_LINE = ROOT / "tests" / "helpers" / "line_with_sink.py"


@contextlib.contextmanager
def line(state: Path, sink: dict[str, object], parts: int, sent: int | None = None) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, str(_LINE), str(state), json.dumps(sink), str(parts)]
    child = subprocess.Popen(command if sent is None else [*command, str(sent)], stdout=subprocess.PIPE, text=True)
    try:
        yield child
    finally:
        child.kill()
        child.wait(60)
        assert child.stdout is not None
        child.stdout.close()


def last_link(state: Path) -> int:
    journal = Journal.open(state, "press", SystemClock())
    try:
        return journal.last_link
    finally:
        journal.close()


@pytest.mark.long
def test_a_kill_between_sending_and_noting_sends_again_and_loses_nothing(tmp_path: Path) -> None:
    state, folder = tmp_path / "state", tmp_path / "parts"
    sink = {"kind": "jsonl", "path": str(folder), "rotate": "never"}
    for sent in (1, 2, 3):
        with line(state, sink, 25, sent) as child:
            assert child.wait(60) == -signal.SIGKILL
    with line(state, sink, 5) as child:
        assert child.wait(60) == 0
    links = [json.loads(row)["link"] for row in (folder / "press.jsonl").read_text().splitlines()]
    assert list(dict.fromkeys(links)) == list(range(1, max(links) + 1))
    assert len(links) > len(set(links))  # otherwise the cursor was kept before the kill
    # What the end itself records comes with the next start.
    assert last_link(state) >= max(links) >= 5


@pytest.mark.parametrize(
    ("turns", "away_s"), [pytest.param(3, 0.3, marks=pytest.mark.long), pytest.param(1, 60.0, marks=pytest.mark.slow)]
)
def test_a_broker_that_is_away_while_the_line_is_killed_gets_every_link(
    tmp_path: Path, turns: int, away_s: float
) -> None:
    state = tmp_path / "state"
    chance = random.Random(11)
    with mqtt_broker(tmp_path / "broker") as broker, subscriber(broker.port) as listening:
        sink: dict[str, object] = {
            "kind": "mqtt",
            "host": "127.0.0.1",
            "port": broker.port,
            "topic": "press",
            "timeout_s": 5.0,
        }
        for turn in range(turns):
            seen = len(listening.links())
            with line(state, sink, 100_000) as child:
                wait_for(lambda seen=seen: len(listening.links()) > seen + 20)  # type: ignore[misc]
                broker.stop()
                threading.Event().wait(away_s * (0.5 + chance.random()))
                child.send_signal(signal.SIGKILL)
                child.wait(60)
            if turn == 1:
                # The line begins while the broker is still away.
                with line(state, sink, 100_000) as child:
                    threading.Event().wait(1.0)
                    child.send_signal(signal.SIGKILL)
                    child.wait(60)
            broker.start()
        with line(state, sink, 10) as child:
            assert child.wait(120) == 0
            wait_for(lambda: "stopped" in listening.states()[-1:])
        links = listening.links()
    assert links == list(range(1, links[-1] + 1))
    assert "offline" in listening.states()
    journal = Journal.open(state, "press", SystemClock())
    parts = {entry["link"] for entry in journal.entries(0, 10**6) if entry["kind"] == "part"}
    journal.close()
    assert parts <= set(links)
    assert len(parts) > 60


def test_a_webhook_that_hangs_keeps_no_record_waiting(tmp_path: Path) -> None:
    """Of acceptance test 12: verdicts are as quick as without the sink, for they do not meet."""
    journal = Journal.open(tmp_path, "press", SystemClock())
    with webhook_server() as server:
        server.answers = [answers.silence]
        options = WebhookSink(url=f"http://127.0.0.1:{server.port}/", timeout_s=600.0)
        (runner,) = sink_runners([options], "press", journal)
        runner.start()
        wait_for(lambda: bool(server.requests))
        for seq in range(1, 51):
            record_part(journal, seq)
        assert runner.sent == 0
        assert runner.behind >= 50
        assert runner.stop(2.0)
    journal.close()


def test_the_runner_and_the_journal_agree_on_places(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path / "state", "press", SystemClock())
    (runner,) = sink_runners([JsonlSink(path=tmp_path / "parts", required=True, max_behind=5)], "press", journal)
    for seq in range(1, 11):
        record_part(journal, seq)
    assert runner.is_too_far_behind
    runner.start()
    wait_for(lambda: runner.behind == 0)
    assert not runner.is_too_far_behind
    assert runner.stop(10.0)
    assert (runner.errors, journal.cursor("jsonl")) == (0, journal.last_link)
    journal.close()
    again = Journal.open(tmp_path / "state", "press", SystemClock())
    later: SinkRunner
    (later,) = sink_runners([JsonlSink(path=tmp_path / "parts")], "press", again)
    assert later.behind <= again.last_link - runner.sent
    later.stop()
    again.close()
