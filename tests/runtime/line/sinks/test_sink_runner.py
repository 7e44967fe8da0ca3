from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from line_control import wait_for
from memory_journal import MemoryJournal

from flawscope.errors import ArgumentError
from flawscope.runtime.line.sinks import runner as runner_module
from flawscope.runtime.line.sinks.runner import SinkRunner, sink_names
from flawscope.runtime.line.sinks.sink import SinkError
from flawscope.runtime.line.sinks.table import JsonlSink, WebhookSink


class NotingSink:
    """Notes the links of what it is given; raises what it is told to, once each."""

    def __init__(self, *raised: BaseException | None, batch: int = 3) -> None:
        self.batch = batch
        self.attempts: list[list[int]] = []
        self.links: list[int] = []
        self.closed = threading.Event()
        self._raised = list(raised)

    def send(self, entries: Sequence[dict[str, Any]]) -> None:
        assert 0 < len(entries) <= self.batch
        links = [entry["link"] for entry in entries]
        self.attempts.append(links)
        error = self._raised.pop(0) if self._raised else None
        if error is not None:
            raise error
        self.links.extend(links)

    def close(self) -> None:
        self.closed.set()


class BlockingSink(NotingSink):
    """Waits until it is closed, as a sink does for a broker that does not answer."""

    def send(self, entries: Sequence[dict[str, Any]]) -> None:
        self.attempts.append([entry["link"] for entry in entries])
        self.closed.wait()
        raise SinkError("closed while it waited")


@contextlib.contextmanager
def running(runner: SinkRunner) -> Iterator[SinkRunner]:
    runner.start()
    try:
        yield runner
    finally:
        assert runner.stop(10.0)


def without_waiting(waited: list[float]) -> Any:
    def wait(seconds: float) -> bool:
        waited.append(seconds)
        return False

    return wait


def test_everything_is_sent_in_order_and_in_batches() -> None:
    journal, sink = MemoryJournal(), NotingSink()
    journal.add_parts(7)
    with running(SinkRunner("mes", sink, journal)) as runner:
        wait_for(lambda: journal.cursors == {"mes": 7})
        journal.add_parts(2)
        wait_for(lambda: journal.cursors == {"mes": 9})
        assert (runner.sent, runner.errors, runner.last_error, runner.behind) == (9, 0, "", 0)
    assert sink.attempts == [[1, 2, 3], [4, 5, 6], [7], [8, 9]]
    assert sink.closed.is_set()


def test_it_goes_on_from_its_cursor() -> None:
    journal, sink = MemoryJournal(), NotingSink()
    journal.add_parts(5)
    journal.cursors = {"mes": 3, "other": 5}
    with running(SinkRunner("mes", sink, journal)):
        wait_for(lambda: journal.cursors["mes"] == 5)
    assert sink.links == [4, 5]


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (SinkError("the broker is away"), "the broker is away"),
        (ValueError("password hunter2 is wrong"), "the sink raised ValueError"),
        (MemoryError(), "the sink raised MemoryError"),
        (SystemExit(3), "the sink raised SystemExit"),
    ],
)
def test_whatever_a_sink_raises_the_batch_is_sent_again(error: BaseException, message: str) -> None:
    waited: list[float] = []
    seen: list[tuple[str, int]] = []
    journal, sink = MemoryJournal(), NotingSink(error, error)
    journal.add_parts(4)

    def wait(seconds: float) -> bool:
        waited.append(seconds)
        seen.append((runner.last_error, journal.cursor("mes")))
        return False

    runner = SinkRunner("mes", sink, journal, wait=wait, chance=lambda: 0.0)
    with running(runner):
        wait_for(lambda: journal.cursors == {"mes": 4})
        assert (runner.errors, runner.last_error) == (2, "")
    assert sink.attempts == [[1, 2, 3]] * 3 + [[4]]
    assert seen == [(message, 0)] * 3
    assert waited == [1.0, 1.0, 1.0]  # 1 s, then 2 s in two slices


@pytest.mark.parametrize("chance", [0.0, 0.999])
def test_the_pauses_grow_to_a_minute_with_jitter(chance: float) -> None:
    waited: list[float] = []
    starts: list[int] = []

    class Failing(NotingSink):
        def send(self, entries: Sequence[dict[str, Any]]) -> None:
            starts.append(len(waited))
            super().send(entries)

    journal = MemoryJournal()
    journal.add_parts(1)
    sink = Failing(*[SinkError("away")] * 9)
    with running(SinkRunner("mes", sink, journal, wait=without_waiting(waited), chance=lambda: chance)):
        wait_for(lambda: bool(journal.cursors))
    assert max(waited) <= 1.0
    pauses = [sum(waited[first:end]) for first, end in itertools.pairwise(starts)]
    assert pauses == pytest.approx([(1.0 + 0.5 * chance) * base for base in (1, 2, 4, 8, 16, 32, 40, 40, 40)])
    assert max(pauses) <= 60.0


def test_after_a_success_the_pauses_begin_anew() -> None:
    waited: list[float] = []
    away = SinkError("away")
    journal, sink = MemoryJournal(), NotingSink(away, away, None, away, batch=1)
    journal.add_parts(2)
    with running(SinkRunner("mes", sink, journal, wait=without_waiting(waited), chance=lambda: 0.0)):
        wait_for(lambda: journal.cursors == {"mes": 2})
    assert sum(waited) == 1 + 2 + 1


def test_a_journal_that_cannot_be_read_is_tried_again() -> None:
    class Locked(MemoryJournal):
        failures = 2

        def entries(self, after: int, limit: int) -> list[dict[str, Any]]:
            if self.failures:
                self.failures -= 1
                raise OSError("database is locked")
            return super().entries(after, limit)

    journal, sink = Locked(), NotingSink()
    journal.add_parts(2)
    with running(SinkRunner("mes", sink, journal, wait=without_waiting([]))) as runner:
        wait_for(lambda: journal.cursors == {"mes": 2})
        assert runner.errors == 2


def test_it_ends_at_once_while_it_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_FIRST_PAUSE_S", "_SLICE_S"):
        monkeypatch.setattr(runner_module, name, 40.0)
    journal, sink = MemoryJournal(), NotingSink(*[SinkError("away")] * 3)
    journal.add_parts(1)
    runner = SinkRunner("mes", sink, journal, chance=lambda: 1.0)
    runner.start()
    wait_for(lambda: runner.errors == 1)  # now it pauses for a minute
    began = time.monotonic()
    assert runner.stop(120.0)
    assert time.monotonic() - began < 20.0
    assert journal.cursors == {}


def test_it_ends_while_the_sink_waits_and_nothing_counts_as_sent() -> None:
    journal, sink = MemoryJournal(), BlockingSink()
    journal.add_parts(2)
    runner = SinkRunner("mes", sink, journal)
    runner.start()
    wait_for(lambda: bool(sink.attempts))
    assert runner.stop(2.0)
    assert journal.cursors == {}


def test_what_is_left_is_sent_before_the_end_by_a_sink_that_works() -> None:
    journal, sink = MemoryJournal(), NotingSink()
    runner = SinkRunner("mes", sink, journal)
    runner.start()
    journal.add_parts(20)
    assert runner.stop(20.0)
    assert sink.links == list(range(1, 21))


def test_a_runner_that_never_started_closes_its_sink() -> None:
    sink = NotingSink()
    assert SinkRunner("mes", sink, MemoryJournal()).stop()
    assert sink.closed.is_set()


def test_a_required_sink_that_is_too_far_behind_is_one_event() -> None:
    journal = MemoryJournal()
    gate = threading.Event()

    class Gated(NotingSink):
        def send(self, entries: Sequence[dict[str, Any]]) -> None:
            if not gate.is_set():
                raise SinkError("away")
            super().send(entries)

    waited: list[float] = []

    def wait(seconds: float) -> bool:
        waited.append(seconds)
        return gate.wait(0.001) and False

    with running(SinkRunner("mes", Gated(batch=5), journal, required=True, max_behind=20, wait=wait)) as runner:
        journal.add_parts(20)
        wait_for(lambda: runner.errors > 3)
        assert not runner.is_too_far_behind
        assert journal.actions == []
        journal.add_parts(1)
        wait_for(lambda: runner.is_too_far_behind and bool(journal.actions))
        errors = runner.errors
        wait_for(lambda: runner.errors > errors + 3)
        assert journal.actions == ["sink_behind"]
        assert (journal.list[-1]["object"], journal.list[-1]["reason"]) == ("sink mes", "away")
        gate.set()
        wait_for(lambda: journal.actions == ["sink_behind", "sink_caught_up"] and runner.behind == 0)
        assert not runner.is_too_far_behind


def test_a_sink_that_is_not_required_may_be_far_behind() -> None:
    journal, sink = MemoryJournal(), NotingSink(*[SinkError("away")] * 5)
    journal.add_parts(50)
    with running(SinkRunner("mes", sink, journal, max_behind=1, wait=without_waiting([]))) as runner:
        wait_for(lambda: runner.behind == 0)
        assert not runner.is_too_far_behind
    assert journal.actions == []


@pytest.mark.parametrize("cursors", [{}, {"mes": 2}])
def test_entries_that_the_journal_no_longer_has_are_one_event(cursors: dict[str, int]) -> None:
    journal, sink = MemoryJournal(), NotingSink(SinkError("away"))
    journal.add_parts(9)
    del journal.list[:6]
    # Without one: it was never reached.
    journal.cursors = dict(cursors)
    with running(SinkRunner("mes", sink, journal, wait=without_waiting([]))):
        wait_for(lambda: journal.cursors == {"mes": 10})
    assert journal.actions == ["sink_missed"]
    assert journal.list[-1]["new"] == f"links {cursors.get('mes', 0) + 1} to 6"
    assert sink.links == [7, 8, 9, 10]


def test_names_are_kinds_unless_they_are_given() -> None:
    webhook = WebhookSink(url="https://mes.example/parts")
    assert sink_names([JsonlSink(path="parts"), webhook, WebhookSink(url="https://b.example", name="qs")]) == [  # type: ignore[arg-type]
        "jsonl",
        "webhook",
        "qs",
    ]
    with pytest.raises(ArgumentError, match=r"^sinks: .*webhook twice"):
        sink_names([webhook, webhook])
