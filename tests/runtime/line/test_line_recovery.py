"""Parts that were open when the line ended: each has its record before anything new is triggered."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from line_stand_ins import wait_until

from flawscope.errors import StorageError
from flawscope.runtime.line.clock import SystemClock, iso
from flawscope.runtime.line.journal import writer
from flawscope.runtime.line.journal.journal import Journal
from flawscope.runtime.line.parts import PartRecord, ViewRecord
from flawscope.runtime.line.recovery import record_open_parts
from flawscope.runtime.line.station.open_parts import OpenParts

CLOCK = SystemClock()


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    opened = Journal.open(tmp_path, "press", CLOCK)
    yield opened
    opened.close()


def accept(seq: int) -> PartRecord:
    views = (ViewRecord("cam0", "accept", score=1.0, threshold=2.0),)
    return PartRecord(seq, "top", "", iso(CLOCK.utc_ns()), CLOCK.mono_ns(), "", 1, "accept", views=views)


def left_open(path: Path, count: int, giving: tuple[int, ...] = ()) -> OpenParts:
    before = OpenParts(path, 0)
    for _ in range(count):
        before.begin("top", "", 1, CLOCK.utc_ns())
    for seq in giving:
        before.giving(seq)
    before.close()
    return OpenParts(path, 0)


def test_each_case(tmp_path: Path, journal: Journal) -> None:
    journal.record(accept(1))
    journal.record(accept(2))
    journal.flush()
    # 1: on record, not given out. 2: on record, perhaps given out. 3: nothing. 4: given out with `record: after`.
    numbers = left_open(tmp_path / "open", 4, giving=(2, 4))
    assert record_open_parts(journal, numbers, CLOCK) == 3
    found = {part.seq: (part.verdict, part.reason, part.revision) for part in journal.parts()}
    fault = ("fault", "interrupted", 0)
    assert found == {1: ("fault", "interrupted", 1), 2: ("accept", "", 0), 3: fault, 4: fault}
    assert "may have been given out" in journal.parts(3)[0].detail
    events = [entry["object"] for entry in journal.entries(0, 100) if entry.get("action") == "maybe_not_heard"]
    assert events == ["part 2"]
    numbers.close()
    again = OpenParts(tmp_path / "open", 4)
    assert again.left_open == []
    again.close()


def test_far_more_than_the_journal_keeps_in_memory(
    tmp_path: Path, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "MOST_KEPT", 1500)
    numbers = left_open(tmp_path / "open", 6000)
    assert record_open_parts(journal, numbers, CLOCK) == 6000
    assert journal.missing(1, 6000) == []
    numbers.close()


def test_what_was_perhaps_heard_is_noted_when_that_is_on_the_disk(tmp_path: Path, journal: Journal) -> None:
    journal.record(accept(1))
    journal.flush()
    numbers = left_open(tmp_path / "open", 1, giving=(1,))

    class Killed(Exception):
        pass

    class Dies:
        """A journal whose process is killed before the disk has the event."""

        def __getattr__(self, name: str) -> object:
            return getattr(journal, name)

        def event(self, action: str, **fields: str) -> None:
            pass

        def flush(self, timeout_s: float) -> bool:
            raise Killed

    with pytest.raises(Killed):
        record_open_parts(Dies(), numbers, CLOCK)  # type: ignore[arg-type]
    numbers.close()
    again = OpenParts(tmp_path / "open", 1)
    assert [part.seq for part in again.left_open] == [1]
    record_open_parts(journal, again, CLOCK)
    assert "maybe_not_heard" in {entry.get("action") for entry in journal.entries(0, 100)}
    again.close()


def test_a_disk_that_does_not_answer_is_an_error(tmp_path: Path, journal: Journal) -> None:
    numbers = left_open(tmp_path / "open", 2)
    journal.flush = lambda timeout_s=0.0: False  # type: ignore[method-assign]
    with pytest.raises(StorageError, match="could not be recorded in time"):
        record_open_parts(journal, numbers, CLOCK)
    del journal.flush
    wait_until(lambda: journal.last_seq == 2)
    journal.flush()
    numbers.close()
