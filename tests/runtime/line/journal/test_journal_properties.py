"""Any sequence of records, events and restarts: the chain holds, the counts agree, and any change by hand is found."""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from line_journals import WAIT_S, Answers, SetClock, a_part, by_hand

from flawscope.runtime.line.journal.journal import Journal
from flawscope.runtime.line.journal.ledger import counts_of
from flawscope.runtime.line.journal.schema import CHAIN_COLUMNS, COLUMNS, TABLES
from flawscope.runtime.line.journal.verify import verify
from flawscope.runtime.line.parts import PartRecord

_VERDICTS = st.sampled_from(("accept", "reject", "fault"))
_STEPS = st.one_of(
    st.tuples(st.just("part"), _VERDICTS, st.integers(0, 3)),
    st.tuples(st.just("again"), _VERDICTS, st.integers(0, 30)),
    st.tuples(st.just("late"), st.just("fault"), st.integers(0, 30)),
    st.tuples(st.just("event"), st.text(max_size=12), st.integers(0, 3)),
    st.tuples(st.just("restart"), st.just(""), st.just(0)),
    st.tuples(st.just("wait"), st.just(""), st.just(0)),
)


class Model:
    """What the journal should hold."""

    def __init__(self) -> None:
        self.parts: dict[int, PartRecord] = {}
        self.order: list[Any] = []
        self.answers: list[bool] = []

    def record(self, part: PartRecord) -> None:
        before = self.parts.get(part.seq)
        is_taken = before is None or (part.revision > before.revision and before.verdict == "accept")
        self.answers.append(is_taken)
        if is_taken:
            self.parts[part.seq] = part
            self.order.append((part.seq, part.revision))

    def counts(self) -> dict[tuple[str, str], int]:
        return dict(Counter((part.station, part.verdict) for part in self.parts.values()))


def _run(folder: Path, steps: list[tuple[str, str, int]]) -> Model:
    """Take the steps on a journal and on a model, and compare them."""
    model, answers, clock = Model(), Answers(), SetClock()
    journal = Journal.open(folder, "press", clock)
    try:
        for what, word, number in steps:
            seq = max(model.parts, default=0) + 1 + number
            known = sorted(model.parts) or [seq]
            if what == "part":
                part = a_part(seq, word, station="top" if seq % 2 else "low")  # type: ignore[arg-type]
            elif what in ("again", "late"):
                seq = known[number % len(known)]
                station = model.parts[seq].station if seq in model.parts else "top"
                part = a_part(seq, word, station=station, revision=int(what == "late"))  # type: ignore[arg-type]
            elif what == "event":
                journal.event("noted", object=word)
                model.order.append(word)
                continue
            elif what == "restart":
                journal.close()
                clock.now_ns += 10**9
                journal = Journal.open(folder, "press", clock)
                continue
            else:
                assert journal.flush(WAIT_S)
                assert journal.counts() == model.counts()
                continue
            model.record(part)
            journal.record(part, answers.of(part.seq))
        assert journal.flush(WAIT_S)
        assert [error is None for _, error in answers.wait_for(len(model.answers))] == model.answers
        _compare(journal, model)
    finally:
        journal.close()
    return model


def _compare(journal: Journal, model: Model) -> None:
    assert journal.parts(limit=1000) == [model.parts[seq] for seq in sorted(model.parts)]
    assert journal.counts() == model.counts()
    last = max(model.parts, default=0)
    assert journal.last_seq == last
    assert journal.missing(1, last) == [seq for seq in range(1, last + 1) if seq not in model.parts]
    entries = journal.entries(0, 10_000)
    assert [entry["link"] for entry in entries] == list(range(1, len(entries) + 1))
    order = [
        (entry["seq"], entry["revision"]) if entry["kind"] == "part" else entry["object"]
        for entry in entries
        if entry["kind"] == "part" or entry.get("action") == "noted"
    ]
    assert order == model.order


@pytest.mark.long
@settings(max_examples=25)
@given(st.lists(_STEPS, max_size=25), st.randoms(use_true_random=False))
def test_any_sequence_is_kept_and_any_change_is_found(steps: list[tuple[str, str, int]], generator: Any) -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "state"
        model = _run(folder, steps)
        found = verify(folder)
        assert found.is_whole, found
        assert found.parts == sum(isinstance(item, tuple) for item in model.order)
        with by_hand(folder) as connection:
            assert counts_of(connection) == model.counts()
            kind = generator.choice([name for name, table in TABLES.items() if _has_rows(connection, table)])
            links = [row[0] for row in connection.execute(f"SELECT link FROM {TABLES[kind]}")]
            link = generator.choice(links)
            edit = generator.choice(["DELETE", *COLUMNS[kind], *CHAIN_COLUMNS])
            _change(connection, TABLES[kind], edit, link)
        found = verify(folder)
        assert not found.is_whole, (edit, link)
        assert found.wrong_link is not None
        # An entry that was given another place is missing at its own.
        assert found.wrong_link == link, (edit, found)


def _has_rows(connection: Any, table: str) -> bool:
    return connection.execute(f"SELECT COUNT(*) FROM {table}").fetchone() != (0,)


def _change(connection: Any, table: str, edit: str, link: int) -> None:
    if edit == "DELETE":
        connection.execute(f"DELETE FROM {table} WHERE link = ?", (link,))
        return
    (old,) = connection.execute(f"SELECT {edit} FROM {table} WHERE link = ?", (link,)).fetchone()
    # A place far behind, as a number that is taken cannot be given.
    new = {int: lambda: old + 100_000, float: lambda: old + 0.5, str: lambda: old + "x"}.get(type(old), lambda: 1)()
    connection.execute(f"UPDATE {table} SET {edit} = ? WHERE link = ?", (new, link))
