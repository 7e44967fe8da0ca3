"""Opening a journal: its lock, its check, what happens to a broken one, and the key of the device."""

from __future__ import annotations

import os
import shutil
import sqlite3
import stat
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from line_journals import WAIT_S, Answers, SetClock, a_part, by_hand, opened

from flawscope.errors import ArgumentError, StorageError
from flawscope.runtime.line.journal import opening
from flawscope.runtime.line.journal.heads import HEADS, KEY, PUBLIC_KEY, read_heads
from flawscope.runtime.line.journal.journal import Journal
from flawscope.runtime.line.journal.opening import JUMP
from flawscope.runtime.line.journal.schema import FILE
from flawscope.runtime.line.journal.verify import verify
from flawscope.runtime.line.sinks.runner import SinkRunner
from flawscope.runtime.line.sinks.sink import SinkError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A state folder with 50 parts and two heads."""
    place = tmp_path / "state"
    for first in (1, 41):
        with opened(place) as journal:
            for seq in range(first, 41 if first == 1 else 51):
                journal.record(a_part(seq))
    return place


def kept(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("journal-broken-*.db"))


def check_goes_on(folder: Path, reason: str, *, number_kept: int = 1) -> None:
    """Check that a new journal took the place of a broken one, with numbers that nobody has seen."""
    link = read_heads(folder / HEADS)[0][-1].link
    clock = SetClock()
    with opened(folder, clock) as journal:
        assert reason in journal.problem
        first = journal.last_seq + 1
        assert first > JUMP + 50
        answers = Answers()
        journal.record(a_part(first), answers.of(first))
        # What was open when the one before broke is recorded as a fault, and as nothing else.
        journal.record(a_part(51, "fault", reason="interrupted"), answers.of(51))
        journal.record(a_part(52), answers.of(52))
        assert [error is None for _, error in answers.wait_for(3)] == [True, True, False]
        begun = journal.entries(0, 1)[0]
        assert (begun["action"], begun["reason"]) == ("journal_begun", journal.problem)
        assert begun["link"] > JUMP + link
        assert begun["utc"].startswith("2026-05-28T20:26:40")
    names = kept(folder)
    assert len(names) == number_kept
    assert all(name.startswith("journal-broken-20260528T202640Z") for name in names)
    found = verify(folder)
    assert found.is_whole
    assert any("goes on after an earlier one" in note for note in found.notes)
    # Until somebody says that he knows.
    with opened(folder, clock) as journal:
        assert reason in journal.problem
        journal.acknowledge("ann", "engineer")
        assert journal.flush(WAIT_S)
        assert journal.problem == ""
        assert journal.last_seq == first
    with opened(folder, clock) as journal:
        assert journal.problem == ""
        known = [entry for entry in journal.entries(0, 1000) if entry.get("action") == "journal_acknowledged"]
        assert [(entry["actor"], entry["role"]) for entry in known] == [("ann", "engineer")]
        assert reason in known[0]["old"]


def test_a_file_that_is_no_database_is_kept_and_a_new_one_begun(folder: Path) -> None:
    garbage = b"\x01" * 5000
    (folder / FILE).write_bytes(garbage)
    check_goes_on(folder, "is broken (file is not a database)")
    assert (folder / kept(folder)[0]).read_bytes() == garbage


class _NeverReached:
    batch = 10

    def send(self, entries: Sequence[dict[str, Any]]) -> None:
        raise SinkError("away")

    def close(self) -> None:
        """It holds nothing."""


def test_no_sink_is_behind_by_what_was_never_in_the_new_journal(folder: Path) -> None:
    (folder / FILE).write_bytes(b"no database at all" * 100)
    with opened(folder) as journal:
        assert journal.flush(WAIT_S)
        runner = SinkRunner("mes", _NeverReached(), journal, required=True, max_behind=100, stops_line=True)
        assert 0 < runner.behind < 100
        assert runner.against() == ""


def test_a_broken_page_is_noticed(folder: Path) -> None:
    with by_hand(folder) as connection:
        (page,) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'part_by_seq'").fetchone()
        (size,) = connection.execute("PRAGMA page_size").fetchone()
    with (folder / FILE).open("r+b") as file:
        file.seek((page - 1) * size)
        file.write(b"\xff" * size)
    check_goes_on(folder, "is broken")


def test_a_file_that_was_deleted_is_noticed_by_its_heads(folder: Path) -> None:
    (folder / FILE).unlink()
    check_goes_on(folder, "is missing although heads were signed", number_kept=0)


def test_a_file_that_was_emptied_is_noticed_by_its_heads(folder: Path) -> None:
    (folder / FILE).write_bytes(b"")
    check_goes_on(folder, "is empty although heads were signed")


def test_an_old_copy_is_not_gone_on_with(folder: Path, tmp_path: Path) -> None:
    """Its numbers would be given a second time, and receivers drop what they have seen."""
    shutil.copy(folder / FILE, tmp_path / "copy.db")
    with opened(folder) as journal:
        journal.record(a_part(51))
    shutil.copy(tmp_path / "copy.db", folder / FILE)
    check_goes_on(folder, "ends before entry")


def test_another_chain_under_the_same_heads_is_not_gone_on_with(folder: Path) -> None:
    last = read_heads(folder / HEADS)[0][-1]
    with by_hand(folder) as connection:
        for table in ("part_record", "event", "head"):
            connection.execute(f"UPDATE {table} SET hash = ? WHERE link = ?", ("00" * 32, last.link))
    check_goes_on(folder, "has another entry")


def test_a_second_break_in_the_same_second_keeps_both(folder: Path) -> None:
    (folder / FILE).write_bytes(b"\x01" * 5000)
    with opened(folder) as journal:
        first = journal.last_seq
    (folder / FILE).write_bytes(b"\x02" * 5000)
    with opened(folder) as journal:
        assert journal.last_seq == first + JUMP
    assert [(folder / name).read_bytes()[:1] for name in kept(folder)] == [b"\x02", b"\x01"]


def test_a_process_that_was_killed_while_it_began_the_journal_harms_nothing(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / FILE)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.close()
    with opened(tmp_path) as journal:
        assert journal.problem == ""
        assert journal.last_seq == 0
    assert kept(tmp_path) == []


def test_one_process_at_a_time(folder: Path) -> None:
    with opened(folder):
        with pytest.raises(StorageError, match="expected a state folder that no process uses") as caught:
            Journal.open(folder, "press", SetClock())
        assert "\n" not in str(caught.value)
    with opened(folder) as journal:
        assert journal.last_seq == 50


@pytest.mark.parametrize(
    ("statement", "line", "message"),
    [
        ("PRAGMA user_version = 99", "press", "expected a journal of schema 1, got 99"),
        ("PRAGMA application_id = 7", "press", "got another SQLite file"),
        ("SELECT 1", "other", "expected the journal of line other, got that of line press"),
    ],
)
def test_what_is_not_ours_is_refused_and_left_alone(folder: Path, statement: str, line: str, message: str) -> None:
    with by_hand(folder) as connection:
        connection.execute(statement)
    before = (folder / FILE).read_bytes()
    with pytest.raises(ArgumentError, match=message) as caught:
        Journal.open(folder, line, SetClock())
    assert "\n" not in str(caught.value)
    assert (folder / FILE).read_bytes() == before
    assert kept(folder) == []


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="could not be written"):
        Journal.open(tmp_path / "file" / "state", "press", SetClock())
    (tmp_path / FILE).mkdir()
    with pytest.raises(StorageError, match="expected a journal that can be read and written"):
        Journal.open(tmp_path, "press", SetClock())


def test_a_failed_start_gives_the_folder_back(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / KEY).chmod(0o644)
    with pytest.raises(ArgumentError, match="chmod 600"):
        Journal.open(folder, "press", SetClock())
    (folder / KEY).chmod(0o600)

    def full(path: Path) -> sqlite3.Connection:
        raise sqlite3.OperationalError("database or disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(opening, "open_writer", full)
        with pytest.raises(StorageError, match="disk is full"):
            Journal.open(folder, "press", SetClock())
    with opened(folder) as journal:
        assert journal.last_seq == 50


def test_the_key_of_the_device_is_its_owners_and_stays(tmp_path: Path) -> None:
    with opened(tmp_path):
        pass
    key = (tmp_path / KEY).read_bytes()
    assert stat.S_IMODE((tmp_path / KEY).stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / KEY).parent.stat().st_mode) == 0o700
    with opened(tmp_path) as journal:
        journal.record(a_part(1))
    assert (tmp_path / KEY).read_bytes() == key
    # Whoever loses the private part can still check what it has signed.
    public = (tmp_path / PUBLIC_KEY).read_bytes()
    (tmp_path / KEY).unlink()
    with opened(tmp_path) as journal:
        journal.record(a_part(2))
    assert (tmp_path / KEY.parent / "device-1.key.pub").read_bytes() == public
    found = verify(tmp_path)
    assert found.is_whole
    assert any("another key" in note for note in found.notes)


def test_without_the_package_heads_are_unsigned_and_an_event_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "cryptography"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "cryptography", None)
    with opened(tmp_path) as journal:
        journal.record(a_part(1))
        assert journal.flush(WAIT_S)
        said = [entry for entry in journal.entries(0, 100) if entry.get("action") == "heads_unsigned"]
        assert len(said) == 1
    heads, _ = read_heads(tmp_path / HEADS)
    assert [(head.key, head.signature) for head in heads] == [("", "")] * len(heads)
    assert not (tmp_path / KEY).exists()
    found = verify(tmp_path)
    assert found.is_whole
    assert any("not signed" in note for note in found.notes)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_rights_is_one_line(folder: Path) -> None:
    (folder / FILE).chmod(0o400)
    folder.chmod(0o500)
    try:
        with pytest.raises(StorageError):
            Journal.open(folder, "press", SetClock())
    finally:
        folder.chmod(0o700)
