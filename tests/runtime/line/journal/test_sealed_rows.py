"""Old rows: sealed in signed files and dropped, within bounds, whatever fails or is killed when."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest
from line_journals import NOW_NS, WAIT_S, Answers, SetClock, a_part, by_hand, opened
from project_paths import ROOT
from sealed_rows import (
    ALL,
    DAY_NS,
    DAYS,
    PARTS,
    Killed,
    counts,
    files,
    filled,
    keeper_of,
    kept,
    killed_at,
    part,
    rows,
    seqs_in,
)

from flawscope.errors import DataError, StorageError
from flawscope.runtime.line.clock import iso
from flawscope.runtime.line.journal import keeping
from flawscope.runtime.line.journal.heads import HEADS
from flawscope.runtime.line.journal.journal import Journal
from flawscope.runtime.line.journal.keeping import Bounds, PartImages, RowKeeper
from flawscope.runtime.line.journal.ledger import Ledger, RecordRefused
from flawscope.runtime.line.journal.reader import JournalReader
from flawscope.runtime.line.journal.schema import FILE, SEALED_TABLE
from flawscope.runtime.line.journal.sealed import CARRIED, SEALED, Sealed
from flawscope.runtime.line.journal.verify import verify


def test_old_rows_are_in_a_file_and_the_rest_in_the_journal(folder: Path, clock: SetClock) -> None:
    before, verified = counts(folder, clock), verify(folder)
    kept(folder, clock)
    (path,) = files(folder)
    assert path.name.startswith(iso(NOW_NS)[:10].replace("-", "") + "-1-")
    # Nothing lost, nothing double, and numbers go on.
    assert seqs_in(path) == list(range(1, PARTS + 1))
    assert [seq for seq, _ in rows(folder)] == list(range(PARTS + 1, 2 * PARTS + 1))
    assert counts(folder, clock) == before
    found = verify(folder)
    assert (found.is_whole, found.wrong, found.sealed, found.missing) == (True, "", 1, ())
    assert (found.first_link, found.parts) == (1, 2 * PARTS)
    assert found.last_link > verified.last_link
    assert found.signed == found.heads > verified.heads
    assert "1 sealed files and the journal are one chain" in found.lines()
    with opened(folder, clock) as journal:
        assert journal.last_seq == 2 * PARTS
        assert journal.problem == ""
        (event,) = [event for event in journal.events(0, 1000) if event["action"] == "rows_sealed"]
        said = json.loads(event["new"])
        assert event["object"] == f"{SEALED}/{path.name}"
        assert (said["first_link"], said["parts"], said["last_seq"]) == (1, PARTS, PARTS)
        # A second time there is nothing to do.
        keeper = keeper_of(folder, journal, clock)
        assert not keeper.turn()
        keeper.stop()


def test_the_same_rows_are_never_sealed_twice_and_files_follow_each_other(folder: Path, clock: SetClock) -> None:
    kept(folder, clock, most_rows=20)
    assert len(files(folder)) > 2
    assert sorted(seq for path in files(folder) for seq in seqs_in(path)) == list(range(1, PARTS + 1))
    before = counts(folder, clock)
    clock.wall_ns += 40 * DAY_NS
    filled(folder, clock)
    kept(folder, clock, most_rows=70)
    total = counts(folder, clock)
    assert sum(total.values()) == 4 * PARTS == sum(before.values()) * 2
    found = verify(folder)
    assert found.is_whole, found
    assert (found.parts, found.missing, found.sealed) == (4 * PARTS, (), len(files(folder)))


def test_what_a_start_asks_of_events_is_carried_forward(folder: Path, clock: SetClock) -> None:
    clock.wall_ns += 40 * DAY_NS
    with opened(folder, clock) as journal:  # two heads that are young
        journal.event("tick")
        journal.flush(WAIT_S)
        generation = journal.last_event("generation", "station top")
    kept(folder, clock)
    reader = JournalReader(folder)
    assert reader.parts() == []
    assert reader.has_event("user_added")
    assert reader.last_event("generation", "station top") == generation != ""
    assert reader.last_event("generation", "station low") == ""
    assert not reader.has_event("user_removed")
    assert reader.missing(1, 2 * PARTS) == []
    assert reader.sealed_in(3) == f"{SEALED}/{files(folder)[0].name}"
    assert reader.sealed_in(2 * PARTS + 1) == ""
    reader.close()
    with opened(folder, clock) as journal:
        assert journal.last_seq == 2 * PARTS
        journal.record(part(journal.last_seq + 1, clock.utc_ns()))
    assert verify(folder).is_whole


def test_all_that_lines_ask_of_old_events_is_carried_forward() -> None:
    asked = re.compile(r"\b(?:has|last)_event\(\s*[\"']([a-z_]+)[\"']")
    found = {action for path in (ROOT / "runtime" / "line").rglob("*.py") for action in asked.findall(path.read_text())}
    assert found == set(CARRIED)


def test_a_sealed_part_has_its_record(folder: Path, clock: SetClock) -> None:
    kept(folder, clock)
    answers = Answers()
    with opened(folder, clock) as journal:
        before = journal.counts()
        journal.record(a_part(3), answers.of(3))
        journal.record(a_part(3, "fault", revision=1), answers.of(3))
        assert all(isinstance(error, RecordRefused) for _, error in answers.wait_for(2))
        assert journal.counts() == before


def test_a_later_revision_is_counted_once(tmp_path: Path, clock: SetClock) -> None:
    with opened(tmp_path, clock) as journal:
        for seq in (1, 2, 3):
            journal.record(part(seq, clock.utc_ns()))
        journal.record(a_part(2, "fault", reason="deadline", revision=1))
        journal.flush(WAIT_S)
    clock.wall_ns += 40 * DAY_NS
    with opened(tmp_path, clock) as journal:
        journal.event("tick")
    # Files of three entries: the accept is in another one than the fault that took its place.
    kept(tmp_path, clock, most_rows=3)
    assert len(files(tmp_path)) > 1
    assert rows(tmp_path) == []
    assert counts(tmp_path, clock) == {("top", "accept"): 2, ("top", "fault"): 1}
    assert verify(tmp_path).is_whole


class TestBounds:
    def test_a_required_sink_is_told_before(self, folder: Path, clock: SetClock) -> None:
        bounds = Bounds(required=("mes",))
        kept(folder, clock, bounds)
        assert files(folder) == []
        with opened(folder, clock) as journal:
            journal.set_cursor("mes", 11)
            journal.flush(WAIT_S)
        kept(folder, clock, bounds)
        (path,) = files(folder)
        assert path.name.endswith("-1-11.jsonl.gz")
        with opened(folder, clock) as journal:
            assert journal.entries(11, 1)[0]["link"] == 12
            assert journal.entries(0, 1)[0]["link"] == 12

    def test_open_parts_and_all_behind_them_stay(self, folder: Path, clock: SetClock) -> None:
        kept(folder, clock, Bounds(oldest_open=lambda: 10))
        assert next(seq for seq, _ in rows(folder)) == 10
        assert verify(folder).is_whole

    def test_numbers_that_were_passed_over_stay_open(self, tmp_path: Path, clock: SetClock) -> None:
        journal = Journal.open(tmp_path, "press", clock)
        for seq in (1, 2, 4, 5):
            journal.record(part(seq, clock.utc_ns()))
        journal.flush(WAIT_S)
        clock.wall_ns += 40 * DAY_NS
        clock.now_ns += 40 * DAY_NS
        journal.event("tick")
        journal.flush(WAIT_S)
        assert journal.oldest_open == 3
        keeper = keeper_of(tmp_path, journal, clock)
        while keeper.turn():
            pass
        assert [seq for seq, _ in rows(tmp_path)] == [4, 5]
        journal.record(a_part(3, "fault"))
        journal.flush(WAIT_S)
        assert journal.oldest_open == 0
        while keeper.turn():
            pass
        # All but the part that came today.
        assert [seq for seq, _ in rows(tmp_path)] == [3]
        keeper.stop()
        journal.close()
        assert verify(tmp_path).is_whole

    def test_the_last_head_stays_with_its_entry(self, folder: Path, clock: SetClock) -> None:
        clock.wall_ns += 400 * DAY_NS
        with opened(folder, clock) as journal:
            keeper = keeper_of(folder, journal, clock)
            while keeper.turn():
                pass
            keeper.stop()
            first = journal.entries(0, 1)[0]["link"]
            heads = (folder / HEADS).read_text().splitlines()
        assert 1 < first <= json.loads(heads[-1])["link"]
        assert len(rows(folder)) <= 1
        assert counts(folder, clock) != {}
        assert verify(folder).is_whole

    def test_a_clock_that_was_wrong_makes_nothing_old(self, folder: Path, clock: SetClock) -> None:
        clock.wall_ns = 10**15
        kept(folder, clock)
        assert files(folder) == []

    def test_a_clock_must_have_gone_evenly_for_an_hour(self, folder: Path, clock: SetClock) -> None:
        hour = 3600 * 10**9
        with opened(folder, clock) as journal:
            keeper = RowKeeper(folder, journal, clock, DAYS, ALL, load=1.0)
            assert not keeper.turn()
            clock.wall_ns, clock.now_ns = clock.wall_ns + hour - 1, clock.now_ns + hour - 1
            assert not keeper.turn()
            clock.wall_ns += 3000 * DAY_NS
            clock.now_ns += 1
            assert not keeper.turn()
            clock.wall_ns, clock.now_ns = clock.wall_ns - 3000 * DAY_NS + hour, clock.now_ns + hour
            assert not keeper.turn()
            assert files(folder) == []
            clock.wall_ns, clock.now_ns = clock.wall_ns + hour, clock.now_ns + hour
            assert keeper.turn()
            keeper.stop()

    def test_rows_of_a_clock_that_was_ahead_are_no_hindrance(self, tmp_path: Path, clock: SetClock) -> None:
        with opened(tmp_path, clock) as journal:
            for seq in range(1, 8):
                journal.record(part(seq, clock.utc_ns() + (3000 * DAY_NS if seq == 3 else 0)))
            journal.flush(WAIT_S)
        clock.wall_ns += 40 * DAY_NS
        with opened(tmp_path, clock) as journal:
            journal.event("tick")
        kept(tmp_path, clock)
        assert rows(tmp_path) == []


PLACES = ["while it is written", "before it is noted", "before the first drop", "in the middle of the drop"]


@pytest.mark.parametrize("place", PLACES)
def test_killed_at_any_place_nothing_is_lost_and_nothing_double(
    folder: Path, clock: SetClock, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    before = counts(folder, clock)
    with monkeypatch.context() as patched:
        killed_at(place, patched)
        with pytest.raises(Killed):
            kept(folder, clock)
    noted = place in PLACES[2:]
    assert len([path for path in files(folder) if not path.name.startswith(".")]) == (place != PLACES[0])
    found = verify(folder)
    assert found.is_whole, found
    assert (found.parts, found.sealed) == (2 * PARTS, noted)
    if place == PLACES[1]:
        assert any("not noted yet" in note for note in found.notes)
    left = [seq for seq, _ in rows(folder)]
    assert left[-PARTS:] == list(range(PARTS + 1, 2 * PARTS + 1))
    assert (len(left) == 2 * PARTS) == (place != PLACES[3])
    assert counts(folder, clock) == before
    kept(folder, clock)
    (path,) = files(folder)
    assert seqs_in(path) == list(range(1, PARTS + 1))
    assert [seq for seq, _ in rows(folder)] == list(range(PARTS + 1, 2 * PARTS + 1))
    assert counts(folder, clock) == before
    found = verify(folder)
    assert (found.is_whole, found.parts, found.sealed) == (True, 2 * PARTS, 1)


def test_a_journal_of_before_goes_on(folder: Path, clock: SetClock) -> None:
    """Without the table, as journals were begun before; no start since."""
    with by_hand(folder) as connection:
        connection.execute(f"DROP TABLE {SEALED_TABLE}")
    found = verify(folder)
    assert found.is_whole, found
    reader = JournalReader(folder)
    assert (reader.sealed_in(1), reader.has_event("x"), sum(reader.counts().values())) == ("", False, 2 * PARTS)
    reader.close()
    kept(folder, clock)
    assert len(files(folder)) == 1
    assert verify(folder).is_whole


def test_a_journal_that_is_lost_goes_on_behind_its_sealed_files(folder: Path, clock: SetClock) -> None:
    kept(folder, clock)
    for path in folder.glob("journal.db*"):
        path.unlink()
    (folder / HEADS).unlink()
    (folder / FILE).write_bytes(b"no database" * 1000)
    with opened(folder, clock) as journal:
        # Behind the sealed numbers, although no head says them.
        assert journal.last_seq == PARTS + 1_000_000
        assert "broken" in journal.problem
    found = verify(folder)
    assert found.is_whole
    assert any("earlier journal" in note for note in found.notes)


class TestFailures:
    def test_a_disk_that_is_full_is_an_event_and_the_line_goes_on(
        self, folder: Path, clock: SetClock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(keeping, "PERIOD_S", 0.02)
        is_full = threading.Event()
        is_full.set()
        packed = keeping.packed

        def full(file: object) -> object:
            if is_full.is_set():
                raise OSError(28, "No space left on device")
            return packed(file)  # type: ignore[arg-type]

        monkeypatch.setattr(keeping, "packed", full)
        answers = Answers()
        with opened(folder, clock) as journal:
            keeper = keeper_of(folder, journal, clock)
            keeper.start()
            waited = threading.Event()
            for _ in range(500):
                if any(event["action"] == "sealing_failed" for event in journal.events(0, 1000)):
                    break
                waited.wait(0.02)
            journal.record(part(journal.last_seq + 1, clock.utc_ns()), answers.of(1))
            assert answers.wait_for(1)[0][1] is None
            waited.wait(0.1)
            journal.flush(WAIT_S)
            told = [event for event in journal.events(0, 1000) if event["action"] == "sealing_failed"]
            # Once, however often it is tried.
            assert len(told) == 1
            assert "full" in told[0]["reason"]
            assert [path for path in files(folder) if not path.name.startswith(".")] == []
            is_full.clear()
            for _ in range(500):
                if len(rows(folder)) == PARTS + 1:
                    break
                waited.wait(0.02)
            keeper.stop()
            assert len(rows(folder)) == PARTS + 1
        assert verify(folder).is_whole

    def test_rows_that_were_changed_are_not_sealed(self, folder: Path, clock: SetClock) -> None:
        with by_hand(folder) as connection:
            connection.execute("UPDATE part_record SET score = 5.0 WHERE seq = 8")
        with pytest.raises(DataError, match="Verify the journal"):
            kept(folder, clock)
        assert files(folder) == []
        assert len(rows(folder)) == 2 * PARTS

    def test_a_drop_that_fails_is_no_failure_of_the_journal(
        self, folder: Path, clock: SetClock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fails(self: Ledger, last: int) -> None:
            raise OSError(5, "Input/output error")

        with monkeypatch.context() as patched, opened(folder, clock) as journal:
            patched.setattr(Ledger, "drop", fails)
            keeper = keeper_of(folder, journal, clock)
            with pytest.raises(StorageError, match="could not be deleted"):
                keeper.turn()
            keeper.stop()
            assert journal.problem == ""
            with pytest.raises(StorageError):
                journal.drop(1)
        kept(folder, clock)
        assert len(rows(folder)) == PARTS

    def test_what_was_sealed_by_others_is_refused(self, folder: Path, clock: SetClock) -> None:
        answers = Answers()
        nothing = Sealed("x", 5, 9, "", "", 0, 0, 0, "", "", 0, "", {}, {})
        with opened(folder, clock) as journal:
            journal.seal(nothing, "", answers.of(0))
            assert isinstance(answers.wait_for(1)[0][1], RecordRefused)


def test_images_go_before_the_rows_of_their_parts(tmp_path: Path, clock: SetClock) -> None:
    given: list[PartImages] = []

    def dropped(images: Sequence[PartImages]) -> str:
        given.extend(images)
        known = {seq for seq, _ in rows(tmp_path)}
        assert {seq for seq, _ in images} <= known
        return "one could not be deleted"

    with opened(tmp_path, clock) as journal:
        for seq in range(1, 9):
            made = part(seq, clock.utc_ns())
            views = [msgspec.structs.replace(view, image=f"images/x/{seq}-cam0.png") for view in made.views]
            journal.record(msgspec.structs.replace(made, views=tuple(views)))
        journal.flush(WAIT_S)
    clock.wall_ns += 40 * DAY_NS
    with opened(tmp_path, clock) as journal:
        journal.event("tick")
    kept(tmp_path, clock, Bounds(drop_images=dropped))
    assert given == [(seq, (f"images/x/{seq}-cam0.png",)) for seq in range(1, 9) if seq != 7]
    assert rows(tmp_path) == []
    with opened(tmp_path, clock) as journal:
        assert [e["reason"] for e in journal.events(0, 100) if e["action"] == "sealing_failed"]


def test_pauses_are_many_times_as_long_as_steps_and_an_end_comes_soon(folder: Path, clock: SetClock) -> None:
    with opened(folder, clock) as journal:
        keeper = RowKeeper(folder, journal, clock, DAYS, Bounds(), load=1e-9, settle_s=0.0)
        keeper.start()
        keeper.stop(WAIT_S)
        assert not keeper._thread.is_alive()
    assert len(rows(folder)) == 2 * PARTS
    assert files(folder) == []
