"""A disk that fails: accepts are given up, faults and rejects are kept, and nothing ends the writer."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from line_journals import WAIT_S, Answers, SetClock, a_part, opened

from flawscope.errors import StorageError
from flawscope.runtime.line.journal import opening, writer
from flawscope.runtime.line.journal.journal import Journal
from flawscope.runtime.line.journal.schema import open_writer
from flawscope.runtime.line.journal.verify import verify


@pytest.fixture
def connections(monkeypatch: pytest.MonkeyPatch) -> list[sqlite3.Connection]:
    """Connections of writers that are opened from now on."""
    found: list[sqlite3.Connection] = []

    def watched(path: Path) -> sqlite3.Connection:
        found.append(open_writer(path))
        return found[-1]

    monkeypatch.setattr(opening, "open_writer", watched)
    monkeypatch.setattr(writer, "RETRY_S", 0.1)
    return found


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


FAILURES = [
    pytest.param("PRAGMA query_only = ON", "PRAGMA query_only = OFF", "readonly", id="read-only"),
    pytest.param("PRAGMA max_page_count = 1", "PRAGMA max_page_count = 1000000", "full", id="full"),
]


@pytest.mark.parametrize(("break_it", "mend_it", "reason"), FAILURES)
def test_a_disk_that_fails_and_comes_back(
    tmp_path: Path, connections: list[sqlite3.Connection], break_it: str, mend_it: str, reason: str
) -> None:
    answers = Answers()
    with opened(tmp_path) as journal:
        journal.record(a_part(1), answers.of(1))
        answers.wait_for(1)
        assert journal.flush(WAIT_S)
        assert journal.flush(WAIT_S)
        connections[-1].execute(break_it)
        # Each takes more than what a page has left, so that a full disk cannot take it.
        journal.event("long", reason="x" * 200_000)
        journal.record(a_part(2), answers.of(2))
        journal.record(a_part(3, "reject"), answers.of(3))
        seq, error = answers.wait_for(2)[1]
        assert seq == 2
        assert isinstance(error, StorageError)
        assert reason in str(error)
        assert "part 2" in str(error)
        # The station makes a fault of it; a later accept is given up without waiting for the next try.
        journal.record(a_part(2, "fault", reason="record"), answers.of(2))
        journal.record(a_part(4), answers.of(4))
        assert answers.wait_for(3)[2][0] == 4
        assert reason in journal.problem
        assert not journal.flush(0.3)
        # What is on record can be read all the same.
        assert [part.seq for part in journal.parts()] == [1]
        assert journal.counts() == {("top", "accept"): 1}
        connections[-1].execute(mend_it)
        assert sorted(answers.wait_for(5)[3:]) == [(2, None), (3, None)]
        until(lambda: journal.problem == "")
        assert journal.counts() == {("top", "accept"): 1, ("top", "reject"): 1, ("top", "fault"): 1}
        assert journal.flush(WAIT_S)
        actions = [entry["action"] for entry in journal.entries(0, 100) if entry["kind"] == "event"]
        assert actions.count("journal_failed") == 1
        assert actions.count("journal_recovered") == 1
        assert actions.index("long") < actions.index("journal_failed") < actions.index("journal_recovered")
    assert verify(tmp_path).is_whole


def test_a_commit_is_on_the_disk_before_it_returns(tmp_path: Path, connections: list[sqlite3.Connection]) -> None:
    with opened(tmp_path):
        asked = [connections[-1].execute(f"PRAGMA {name}").fetchone()[0] for name in ("journal_mode", "synchronous")]
        assert asked == ["wal", 2]


def test_another_program_that_locks_the_file_is_waited_for(
    tmp_path: Path, connections: list[sqlite3.Connection]
) -> None:
    answers = Answers()
    with opened(tmp_path) as journal:
        assert journal.flush(WAIT_S)
        other = sqlite3.connect(tmp_path / "journal.db", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        connections[-1].execute("PRAGMA busy_timeout = 50")
        journal.record(a_part(1), answers.of(1))
        journal.record(a_part(2, "fault"), answers.of(2))
        assert "locked" in str(answers.wait_for(1)[0][1])
        other.execute("ROLLBACK")
        other.close()
        assert answers.wait_for(2)[1] == (2, None)


def test_what_waits_in_memory_is_bounded(
    tmp_path: Path, connections: list[sqlite3.Connection], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "MOST_KEPT", 50)
    answers = Answers()
    with opened(tmp_path) as journal:
        assert journal.flush(WAIT_S)
        assert journal.flush(WAIT_S)
        connections[-1].execute("PRAGMA query_only = ON")
        for seq in range(1, 101):
            journal.record(a_part(seq, "fault"), answers.of(seq))
        given = answers.wait_for(50)
        assert all(isinstance(error, StorageError) for _, error in given)
        until(lambda: "given up" in journal.problem and "readonly" in journal.problem)
        assert "50 entries wait for the disk" in str(given[-1][1])
        connections[-1].execute("PRAGMA query_only = OFF")
        answers.wait_for(100)
        until(lambda: journal.problem == "")
        written = sorted(seq for seq, error in answers.given if error is None)
        # The event that the disk failed takes a place as well.
        assert written == list(range(1, len(written) + 1))
        assert len(written) in (49, 50)
        assert journal.counts() == {("top", "fault"): len(written)}
        assert journal.flush(WAIT_S)
        recovered = [entry for entry in journal.entries(0, 200) if entry.get("action") == "journal_recovered"]
        assert f"{100 - len(written)} entries were given up" in recovered[0]["reason"]


def test_closing_on_a_broken_disk_ends_and_answers(tmp_path: Path, connections: list[sqlite3.Connection]) -> None:
    answers = Answers()
    journal = Journal.open(tmp_path, "press", SetClock())
    assert journal.flush(WAIT_S)
    connections[-1].execute("PRAGMA query_only = ON")
    journal.record(a_part(1, "fault"), answers.of(1))
    until(lambda: journal.problem != "")
    journal.close()
    assert isinstance(answers.wait_for(1)[0][1], StorageError)
    with opened(tmp_path) as journal:
        assert journal.counts() == {}


def test_an_error_that_nobody_foresaw_does_not_end_the_writer(
    tmp_path: Path, connections: list[sqlite3.Connection], monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = Answers()
    with opened(tmp_path) as journal:
        assert journal.flush(WAIT_S)
        with monkeypatch.context() as patch:

            def broken(*_: object) -> None:
                raise RuntimeError("of flawscope")

            patch.setattr(writer.Ledger, "add_part", broken)
            patch.setattr(writer.Writer, "_sign_if_due", broken)
            journal.record(a_part(1, "reject"), answers.of(1))
            journal.record(a_part(2), answers.of(2))
            assert "RuntimeError: of flawscope" in str(answers.wait_for(1)[0][1])
        assert answers.wait_for(2)[1] == (1, None)


_LIMITED = """
import resource, sys, threading
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from line_journals import Answers, SetClock, a_part
from flawscope.runtime.line.journal import writer
from flawscope.runtime.line.journal.journal import Journal

writer.RETRY_S = 0.1
journal = Journal.open(Path(sys.argv[1]), "press", SetClock())
answers = Answers()
journal.record(a_part(1), answers.of(1))
answers.wait_for(1)
journal.flush()
size = max(path.stat().st_size for path in Path(sys.argv[1]).glob("journal.db*"))
_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
journal.event("long", reason="x" * 2_000_000)
journal.record(a_part(2), answers.of(2))
journal.record(a_part(3, "fault"), answers.of(3))
print(answers.wait_for(2)[1], flush=True)
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
print(answers.wait_for(3)[2], flush=True)
journal.close()
print(journal.problem, flush=True)
"""


def test_writes_that_the_system_refuses(tmp_path: Path) -> None:
    """The system itself refuses them: no stand-in inside of SQLite."""
    helpers = Path(__file__).parents[3] / "helpers"
    command = [sys.executable, "-c", _LIMITED, str(tmp_path), str(helpers)]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    first, second, problem = answer.stdout.split("\n")[:3]
    assert first.startswith("(2, StorageError(")
    assert second == "(3, None)"
    assert problem == ""
    with opened(tmp_path) as journal:
        assert journal.counts() == {("top", "accept"): 1, ("top", "fault"): 1}
    assert verify(tmp_path).is_whole


def test_a_disk_that_hangs_holds_up_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go_on = threading.Event()
    commit = writer.Writer._commit

    def slow(self: writer.Writer, group: list[writer.Entry | writer.Mark]) -> bool:
        go_on.wait(WAIT_S)
        return commit(self, group)

    monkeypatch.setattr(writer.Writer, "_commit", slow)
    answers = Answers()
    with opened(tmp_path) as journal:
        for seq in range(1, 1001):
            journal.record(a_part(seq), answers.of(seq))
        assert answers.given == []
        assert journal.counts() == {}
        assert journal.parts() == []
        go_on.set()
        assert answers.wait_for(1000)[-1] == (1000, None)
