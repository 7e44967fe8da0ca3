"""The journal: records, events, cursors, order, and what is refused."""

from __future__ import annotations

import threading
from pathlib import Path

import msgspec
import pytest
from line_journals import WAIT_S, Answers, SetClock, a_part, by_hand, opened

from flawscope.errors import ArgumentError, StorageError
from flawscope.runtime.line.journal.journal import Journal
from flawscope.runtime.line.journal.ledger import RecordRefused
from flawscope.runtime.line.journal.reader import JournalReader


def test_what_is_recorded_is_given_back_and_stays(tmp_path: Path) -> None:
    parts = [a_part(1), a_part(2, "reject", station="low"), a_part(3, "fault", reason="scene")]
    answers = Answers()
    with opened(tmp_path) as journal:
        for part in parts:
            journal.record(part, answers.of(part.seq))
        assert answers.wait_for(3) == [(1, None), (2, None), (3, None)]
        # On the disk when `done` is called: another process sees it.
        with by_hand(tmp_path) as connection:
            assert connection.execute("SELECT verdict FROM part ORDER BY seq").fetchall() == [
                ("accept",),
                ("reject",),
                ("fault",),
            ]
        assert journal.parts() == parts
        assert journal.last_seq == 3
    with opened(tmp_path) as journal:
        assert journal.parts() == parts
        assert journal.last_seq == 3
        assert journal.counts() == {("top", "accept"): 1, ("low", "reject"): 1, ("top", "fault"): 1}


def test_parts_are_found_by_station_verdict_and_number(tmp_path: Path) -> None:
    with opened(tmp_path) as journal:
        for seq in range(1, 21):
            journal.record(a_part(seq, "reject" if seq % 3 == 0 else "accept", station="top" if seq % 2 else "low"))
        assert journal.flush(WAIT_S)

        def seqs(**filters: object) -> list[int]:
            return [part.seq for part in journal.parts(**filters)]  # type: ignore[arg-type]

        assert seqs(after_seq=18) == [19, 20]
        assert seqs(limit=2) == [1, 2]
        assert seqs(verdict="reject", station="top") == [3, 9, 15]
        assert seqs(newest_first=True, limit=3) == [20, 19, 18]
        assert seqs(newest_first=True, limit=2, before_seq=18, verdict="reject") == [15, 12]
        assert journal.part_of(9) == a_part(9, "reject", station="top")
        assert journal.part_of(21) is None


def test_entries_come_in_the_order_of_the_chain(tmp_path: Path) -> None:
    with opened(tmp_path) as journal:
        journal.record(a_part(1))
        journal.event("halted", actor="ann", role="operator", object="station top", old="a", new="b", reason="lunch")
        journal.record(a_part(2, "fault"))
        assert journal.flush(WAIT_S)
        entries = journal.entries(0, 100)
        assert [entry["link"] for entry in entries] == list(range(1, len(entries) + 1))
        assert [entry["line"] for entry in entries] == ["press"] * len(entries)
        parts = [entry for entry in entries if entry["kind"] == "part"]
        fields = {name: parts[0][name] for name in msgspec.to_builtins(a_part(1))}
        assert msgspec.convert(fields, type(a_part(1))) == a_part(1)
        event = next(entry for entry in entries if entry.get("action") == "halted")
        assert (event["kind"], event["actor"], event["role"], event["object"]) == (
            "event",
            "ann",
            "operator",
            "station top",
        )
        assert (event["old"], event["new"], event["reason"]) == ("a", "b", "lunch")
        assert parts[0]["link"] < event["link"] < parts[1]["link"]
        assert journal.entries(2, 1) == entries[2:3]
        # As JSON, for sinks.
        assert msgspec.json.decode(msgspec.json.encode(entries)) == entries


def test_numbers_may_come_in_any_order(tmp_path: Path) -> None:
    answers = Answers()
    with opened(tmp_path) as journal:
        for seq in (4, 1, 3):
            journal.record(a_part(seq), answers.of(seq))
        assert answers.wait_for(3) == [(4, None), (1, None), (3, None)]
        assert journal.missing(1, 5) == [2, 5]
        journal.record(a_part(2, "fault"), answers.of(2))
        assert answers.wait_for(4)[-1] == (2, None)
        assert journal.missing(1, 4) == []
        assert [part.seq for part in journal.parts()] == [1, 2, 3, 4]


def test_a_part_is_recorded_once(tmp_path: Path) -> None:
    answers = Answers()
    with opened(tmp_path) as journal:
        journal.record(a_part(1), answers.of(1))
        journal.record(a_part(1, "reject"), answers.of(1))
        journal.record(a_part(10**12), answers.of(2))
        journal.record(a_part(0), answers.of(3))
        journal.record(a_part(2), answers.of(4))
        given = answers.wait_for(5)
        assert [seq for seq, error in given if error is None] == [1, 4]
        errors = [error for _, error in given if error is not None]
        assert all(isinstance(error, RecordRefused) for error in errors)
        assert "part 1" in str(errors[0])
        assert "accept (revision 0)" in str(errors[0])
        assert journal.counts() == {("top", "accept"): 2}
        assert journal.flush(WAIT_S)
        refused = [entry for entry in journal.entries(0, 100) if entry.get("action") == "record_refused"]
        assert [event["object"] for event in refused] == ["part 1", f"part {10**12}", "part 0"]


def test_an_accept_that_came_too_late_becomes_a_fault(tmp_path: Path) -> None:
    answers = Answers()
    late = a_part(1, "fault", reason="deadline", revision=1)
    with opened(tmp_path) as journal:
        journal.record(a_part(1), answers.of(1))
        journal.record(late, answers.of(1))
        # What is no accept any more, or never was one, does not become a fault, and a fault no accept.
        journal.record(a_part(1, "fault", revision=2), answers.of(1))
        journal.record(a_part(2, "reject"), answers.of(2))
        journal.record(a_part(2, "fault", revision=1), answers.of(2))
        journal.record(a_part(3, "fault"), answers.of(3))
        journal.record(a_part(3, "accept", revision=1), answers.of(3))
        refused = [error is not None for _, error in answers.wait_for(7)]
        assert refused == [False, False, True, False, True, False, True]
        assert journal.part_of(1) == late
        assert journal.counts() == {("top", "fault"): 2, ("top", "reject"): 1}
    with by_hand(tmp_path) as connection:
        assert connection.execute("SELECT verdict, revision FROM part WHERE seq = 1").fetchall() == [("fault", 1)]
        # The chain keeps both.
        assert connection.execute("SELECT COUNT(*) FROM part_record WHERE seq = 1").fetchone() == (2,)


def test_a_fault_is_kept_where_the_accept_before_it_failed(tmp_path: Path) -> None:
    answers = Answers()
    with opened(tmp_path) as journal:
        journal.record(a_part(1, "fault", reason="deadline", revision=1), answers.of(1))
        assert answers.wait_for(1) == [(1, None)]
        assert journal.counts() == {("top", "fault"): 1}


@pytest.mark.parametrize(
    "changes",
    [{"mono_ns": 1 << 64}, {"station": 3}, {"verdict": "perhaps"}, {"views": "none"}, {"score": "high"}, {"seq": 1.5}],
)
def test_what_is_no_record_is_refused_and_harms_no_other(tmp_path: Path, changes: dict[str, object]) -> None:
    part = a_part(1, "reject")
    broken = msgspec.structs.replace(part)
    for name, value in changes.items():
        msgspec.structs.force_setattr(broken, name, value)
    answers = Answers()
    with opened(tmp_path) as journal:
        journal.record(broken, answers.of(1))
        journal.record(part, answers.of(1))
        first, second = answers.wait_for(2)
        assert isinstance(first[1], RecordRefused)
        assert second == (1, None)
        assert journal.parts() == [part]


def test_scores_that_are_no_numbers_and_names_that_have_no_utf8_are_stored(tmp_path: Path) -> None:
    view = msgspec.structs.replace(
        a_part(1, "reject").views[0], score=float("nan"), source="a\udcff.png", detail="\x00\x1b[31m 1 𝕏"
    )
    part = msgspec.structs.replace(
        a_part(1, "reject"), score=float("inf"), threshold=-0.0, latency_ms={"scored": float("nan")}, views=(view,)
    )
    with opened(tmp_path) as journal:
        journal.record(part)
        assert journal.flush(WAIT_S)
        found = journal.part_of(1)
    assert found is not None
    assert (found.score, found.threshold, found.latency_ms, found.views[0].score) == (None, 0.0, {}, None)
    assert found.views[0].source == "a\\xff.png"
    assert found.views[0].detail == view.detail


def test_cursors_outlive_the_process_and_are_in_no_chain(tmp_path: Path) -> None:
    with opened(tmp_path) as journal:
        assert journal.cursor("mqtt") == 0
        journal.record(a_part(1))
        assert journal.flush(WAIT_S)
        last = journal.last_link
        journal.set_cursor("mqtt", last)
        assert journal.cursor("mqtt") == last
        assert journal.flush(WAIT_S)
        assert {entry["kind"] for entry in journal.entries(last, 100)} <= {"head"}
        with by_hand(tmp_path) as connection:
            assert connection.execute("SELECT sink, link FROM sink_cursor").fetchall() == [("mqtt", last)]
        journal.set_cursor("webhook", 1)
        with pytest.raises(ArgumentError, match="cursor of mqtt: expected a place"):
            journal.set_cursor("mqtt", journal.last_link + 100)
    with opened(tmp_path) as journal:
        assert (journal.cursor("mqtt"), journal.cursor("webhook")) == (last, 1)


def test_a_cursor_alone_is_written_soon(tmp_path: Path) -> None:
    with opened(tmp_path) as journal:
        journal.record(a_part(1))
        assert journal.flush(WAIT_S)
        journal.set_cursor("mqtt", 1)
        written = threading.Event()

        def look() -> None:
            with by_hand(tmp_path) as connection:
                while not written.wait(0.05):
                    if connection.execute("SELECT link FROM sink_cursor").fetchall() == [(1,)]:
                        written.set()

        thread = threading.Thread(target=look)
        thread.start()
        found = written.wait(WAIT_S)
        written.set()
        thread.join()
        assert found


def test_waiting_ends_with_an_entry(tmp_path: Path) -> None:
    with opened(tmp_path) as journal:
        journal.record(a_part(1))
        assert journal.flush(WAIT_S)
        last = journal.last_link
        assert journal.wait(last - 1, 0.0)
        waiting: list[bool] = []
        thread = threading.Thread(target=lambda: waiting.append(journal.wait(last + 1, WAIT_S)))
        thread.start()
        journal.record(a_part(2))
        journal.record(a_part(3))
        thread.join(WAIT_S)
        assert waiting == [True]
        assert not journal.wait(journal.last_link + 10, 0.01)


def test_closing_writes_what_waits_and_may_be_repeated(tmp_path: Path) -> None:
    answers = Answers()
    journal = Journal.open(tmp_path, "press", SetClock())
    for seq in range(1, 2001):
        journal.record(a_part(seq), answers.of(seq))
    journal.close()
    journal.close()
    assert answers.given == [(seq, None) for seq in range(1, 2001)]
    journal.record(a_part(2001), answers.of(2001))
    assert isinstance(answers.given[-1][1], StorageError)
    assert not journal.flush(0.2)
    assert not journal.wait(10**6, WAIT_S)
    with pytest.raises(StorageError, match="closed"):
        journal.parts()
    reader = JournalReader(tmp_path)
    assert reader.counts() == {("top", "accept"): 2000}
    reader.close()


def test_who_is_told_may_record_and_raise(tmp_path: Path) -> None:
    answers = Answers()
    with opened(tmp_path) as journal:

        def done(error: Exception | None) -> None:
            journal.record(a_part(2, "fault"), answers.of(2))
            journal.event("told")
            raise RuntimeError("of a station")

        journal.record(a_part(1), done)
        # At the end, too: what is recorded in answer to the last record is not lost.
    assert answers.given == [(2, None)]
    with opened(tmp_path) as journal:
        assert journal.counts() == {("top", "accept"): 1, ("top", "fault"): 1}
        assert any(entry.get("action") == "told" for entry in journal.entries(0, 100))


def test_many_threads_record_and_read_at_once(tmp_path: Path) -> None:
    answers, number = Answers(), 50
    with opened(tmp_path) as journal:
        gaps: list[list[int]] = []

        def write(first: int) -> None:
            for seq in range(first, first + number):
                journal.record(a_part(seq), answers.of(seq))
                journal.event("seen", object=f"part {seq}")

        def read() -> None:
            last = 0
            while last < 4 * number * 2 and journal.wait(last, WAIT_S):
                links = [entry["link"] for entry in journal.entries(last, 17)]
                if links != list(range(last + 1, last + 1 + len(links))):
                    gaps.append(links)
                last = links[-1]

        threads = [threading.Thread(target=write, args=(1 + number * index,)) for index in range(4)]
        threads += [threading.Thread(target=read) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(WAIT_S)
        assert gaps == []
        assert {error for _, error in answers.wait_for(4 * number)} == {None}
        assert journal.missing(1, 4 * number) == []


def test_a_clock_that_jumps_changes_no_order(tmp_path: Path) -> None:
    clock = SetClock()
    with opened(tmp_path, clock) as journal:
        for seq, jump_s in enumerate((0, 3600, -7200, 1), 1):
            clock.wall_ns += jump_s * 10**9
            clock.now_ns += 10**9
            journal.event("tick", object=str(seq))
        assert journal.flush(WAIT_S)
        ticks = [entry for entry in journal.entries(0, 100) if entry.get("action") == "tick"]
    assert [entry["object"] for entry in ticks] == ["1", "2", "3", "4"]
    assert [entry["utc"][11:19] for entry in ticks] != sorted(entry["utc"][11:19] for entry in ticks)
    assert [entry["mono_ns"] for entry in ticks] == sorted(entry["mono_ns"] for entry in ticks)


def test_a_number_that_is_passed_over_for_too_long_is_said(tmp_path: Path) -> None:
    with opened(tmp_path) as journal:
        for seq in (1, 3, 200_000):
            journal.record(a_part(seq))
        assert journal.flush(WAIT_S)
        journal.event("after")
        assert journal.flush(WAIT_S)
        said = [entry["new"] for entry in journal.entries(0, 100) if entry.get("action") == "missing_parts"]
    assert len(said) == 1
    assert said[0].startswith("2 and ")
