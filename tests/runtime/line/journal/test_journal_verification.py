"""Verification: what is found by the chain alone, what by the heads beside it, and what by heads kept elsewhere."""

from __future__ import annotations

import hashlib
import json
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from line_journals import WAIT_S, SetClock, a_part, by_hand, computed_anew, opened

from flawscope.bundle.ed25519 import read_private_key, write_keys
from flawscope.errors import ArgumentError
from flawscope.runtime.line.journal.chain import canonical
from flawscope.runtime.line.journal.heads import HEADS, KEY, PUBLIC_KEY, Head, append_heads, read_heads
from flawscope.runtime.line.journal.journal import Journal
from flawscope.runtime.line.journal.schema import BEGINNING, FILE
from flawscope.runtime.line.journal.verify import verify
from flawscope.runtime.line.journal.writer import HEAD_NS

# Links: 1 journal_begun, then 2 to 13 parts and events in turn, a head somewhere, and one at the end.
PARTS = 6


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A state folder with a journal of a dozen entries, closed."""
    place = tmp_path / "state"
    with opened(place) as journal:
        for seq in range(1, PARTS + 1):
            journal.record(a_part(seq, "fault" if seq == 4 else "accept"))
            journal.event("tick", object=str(seq))
        assert journal.flush(WAIT_S)
    return place


def link_of(folder: Path, seq: int) -> int:
    with by_hand(folder) as connection:
        link: int = connection.execute("SELECT link FROM part WHERE seq = ?", (seq,)).fetchone()[0]
        return link


def test_a_whole_journal_is_whole(folder: Path) -> None:
    found = verify(folder)
    assert found.is_whole
    assert (found.wrong_link, found.parts, found.line, found.first_link) == (None, PARTS, "press", 1)
    assert found.heads >= 1
    assert found.signed == found.heads
    assert found.last_link == verify(folder, folder / HEADS).last_link
    assert "The chain is whole." in found.lines()


def test_a_program_without_flawscope_computes_the_same_hashes(folder: Path) -> None:
    """The program of docs/line-journal.md, which an auditor may write himself."""
    page = (Path(__file__).parents[4] / "docs" / "line-journal.md").read_text()
    program = page.split("```python\n")[1].split("```")[0]
    said: list[str] = []
    exec(program, {"print": lambda *words: said.append(" ".join(map(str, words))), "FOLDER": str(folder)})
    last = verify(folder).last_link
    assert said == [f"whole until entry {last}"]
    with by_hand(folder) as connection:
        connection.execute("UPDATE part_record SET score = 0.0 WHERE seq = 3")
    with pytest.raises(SystemExit, match=f"entry {link_of(folder, 3)}"):
        exec(program, {"print": said.append, "FOLDER": str(folder)})


def test_canonical_json_is_that_of_python() -> None:
    value = {"b": [1e16, 1e-7, 0.1, -5, None, True], "a": 'é\n\x7f"\\'}
    assert canonical(value) == b'{"a":"\\u00e9\\n\\u007f\\"\\\\","b":[1e+16,1e-07,0.1,-5,null,true]}'
    assert json.loads(canonical(value)) == value
    with pytest.raises(ValueError, match="JSON compliant"):
        canonical(float("nan"))


EDITS = [
    "UPDATE part_record SET verdict = 'accept', reason = '' WHERE seq = 4",
    "UPDATE part_record SET score = score + 1e-12 WHERE seq = 4",
    "UPDATE part_record SET views_json = views_json || ' ' WHERE seq = 4",
    "UPDATE part_record SET revision = 1 WHERE seq = 4",
    "UPDATE part_record SET score = NULL, reason = '', verdict = 'reject' WHERE seq = 4",
    "UPDATE part_record SET score = 9e999 WHERE seq = 4",
    "UPDATE part_record SET detail = x'00ff' WHERE seq = 4",
    "UPDATE part_record SET hash = upper(hash) WHERE seq = 4",
    "DELETE FROM part_record WHERE seq = 4",
]


@pytest.mark.parametrize("edit", EDITS)
def test_a_row_that_was_changed_or_deleted_is_named(folder: Path, edit: str) -> None:
    link = link_of(folder, 4)
    with by_hand(folder) as connection:
        # A fault has no score to change by a little.
        connection.execute("UPDATE part_record SET score = 0.5 WHERE seq = 4 AND ? LIKE '%1e-12%'", (edit,))
        if "1e-12" in edit:
            computed_anew(connection)
            (folder / HEADS).unlink()
            connection.execute("UPDATE head SET key = '', signature = ''")
            computed_anew(connection)
            assert verify(folder).is_whole
        connection.execute(edit)
    found = verify(folder)
    assert not found.is_whole
    assert found.wrong_link == link
    assert any(f"WRONG at entry {link}" in line for line in found.lines())


def test_rows_that_changed_places_and_gaps_are_found(folder: Path) -> None:
    first, second = link_of(folder, 2), link_of(folder, 3)
    with by_hand(folder) as connection:
        for old, new in ((first, -1), (second, first), (-1, second)):
            connection.execute("UPDATE part_record SET link = ? WHERE link = ?", (new, old))
    found = verify(folder)
    assert found.wrong_link == first
    with by_hand(folder) as connection:
        for table in ("part_record", "event", "head"):
            connection.execute(f"UPDATE {table} SET link = link + 1000 WHERE link > ?", (first - 1,))
    assert verify(folder).wrong_link == first


def test_an_event_that_was_changed_is_found(folder: Path) -> None:
    with by_hand(folder) as connection:
        connection.execute("UPDATE event SET actor = 'nobody' WHERE action = 'tick' AND object = '5'")
    assert verify(folder).wrong_link == link_of(folder, 5) + 1


def test_an_end_that_was_cut_off_is_found_by_the_heads_beside_it(folder: Path) -> None:
    link = link_of(folder, 5)
    with by_hand(folder) as connection:
        for table in ("part_record", "event", "head"):
            connection.execute(f"DELETE FROM {table} WHERE link >= ?", (link,))
    found = verify(folder)
    assert found.wrong_link == link
    assert "cut off" in found.wrong


def test_a_chain_that_was_computed_anew_is_found_by_a_head_kept_elsewhere_alone(folder: Path, tmp_path: Path) -> None:
    kept = tmp_path / "exported.jsonl"
    shutil.copy(folder / HEADS, kept)
    edit = "UPDATE part_record SET verdict = 'accept', reason = '' WHERE seq = 4"
    with by_hand(folder) as connection:
        connection.execute(edit)
        computed_anew(connection)
    # Without the key: the signatures, and the heads beside it, tell.
    assert "computed anew" in verify(folder).wrong
    # With the key of the device, all that is on the machine agrees.
    key = read_private_key(folder / KEY, lambda: None)
    with by_hand(folder) as connection:
        _signed_anew(connection, folder, key)
    alone = verify(folder)
    assert alone.is_whole
    assert any("no heads kept elsewhere" in note for note in alone.notes)
    found = verify(folder, kept)
    assert not found.is_whole
    assert found.wrong_link is not None
    assert found.wrong_link <= link_of(folder, 4)
    assert "computed anew" in found.wrong
    assert not verify(folder, read_heads(kept)[0]).is_whole


def _signed_anew(connection: sqlite3.Connection, folder: Path, key: object) -> None:
    """Sign all heads of a chain anew, each before the entries that follow it."""
    (folder / HEADS).unlink()
    for (link,) in connection.execute("SELECT link FROM head ORDER BY link").fetchall():
        names = "line, head_link, head_hash, seq, utc"
        row = connection.execute(f"SELECT {names} FROM head WHERE link = ?", (link,)).fetchone()
        head = Head(*row).signed_by(key)  # type: ignore[arg-type]
        query = "UPDATE head SET key = ?, signature = ? WHERE link = ?"
        connection.execute(query, (head.key, head.signature, link))
        append_heads(folder / HEADS, [head])
        computed_anew(connection)


def test_heads_must_be_signed_by_the_key_that_was_kept_elsewhere(folder: Path, tmp_path: Path) -> None:
    kept = tmp_path / "device.pub"
    shutil.copy(folder / PUBLIC_KEY, kept)
    assert verify(folder, key=kept).is_whole
    # Whoever computes all anew makes a new key as well.
    write_keys(tmp_path / "new.key")
    with by_hand(folder) as connection:
        connection.execute("UPDATE part_record SET verdict = 'accept', reason = '' WHERE seq = 4")
        computed_anew(connection)
        _signed_anew(connection, folder, read_private_key(tmp_path / "new.key", lambda: None))
    shutil.copy(tmp_path / "new.key.pub", folder / PUBLIC_KEY)
    assert verify(folder).is_whole
    found = verify(folder, key=kept)
    assert "no signature of the key" in found.wrong


def test_a_forged_signature_is_found(folder: Path) -> None:
    lines = (folder / HEADS).read_text().splitlines()
    head = json.loads(lines[-1])
    head["seq"] += 1
    (folder / HEADS).write_text(json.dumps(head) + "\n")
    found = verify(folder)
    assert found.wrong_link == head["link"]
    assert "no signature" in found.wrong


@pytest.mark.parametrize(
    "statement",
    [
        "DROP VIEW part",
        "CREATE TRIGGER t AFTER INSERT ON event BEGIN SELECT 1; END",
        "UPDATE journal SET first_seq = 2",
        "UPDATE journal SET begun = '2020-01-01T00:00:00.000Z'",
    ],
)
def test_what_stands_around_the_entries_is_verified_too(folder: Path, statement: str) -> None:
    with by_hand(folder) as connection:
        connection.execute(statement)
    assert verify(folder).wrong_link == 1


def test_a_broken_page_is_no_traceback(folder: Path) -> None:
    with by_hand(folder) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        (page,) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'event'").fetchone()
        (size,) = connection.execute("PRAGMA page_size").fetchone()
    with (folder / FILE).open("r+b") as file:
        file.seek((page - 1) * size)
        file.write(b"\xff" * size)
    assert "broken" in verify(folder).wrong


def test_a_running_journal_is_verified(tmp_path: Path) -> None:
    with opened(tmp_path) as journal:
        for seq in (1, 2, 4):
            journal.record(a_part(seq))
        assert journal.flush(WAIT_S)
        found = verify(tmp_path)
    assert found.is_whole
    assert found.missing == (3,)
    assert "parts without a record: 3" in found.lines()


def test_a_head_is_signed_each_hour_and_at_the_end(tmp_path: Path) -> None:
    clock = SetClock()

    def heads_after(change: Callable[[Journal], None]) -> int:
        change(journal)
        # The second waits for what the writer did after the first.
        assert journal.flush(WAIT_S)
        assert journal.flush(WAIT_S)
        return len(read_heads(tmp_path / HEADS)[0])

    with opened(tmp_path, clock) as journal:
        assert heads_after(lambda journal: journal.record(a_part(1))) == 1
        assert heads_after(lambda journal: journal.record(a_part(2))) == 1
        clock.now_ns += HEAD_NS
        assert heads_after(lambda journal: journal.record(a_part(3))) == 2
        clock.now_ns += HEAD_NS
        # Nothing happened: a head of a head says nothing.
        assert heads_after(lambda journal: None) == 2
        journal.record(a_part(4))
    heads, problems = read_heads(tmp_path / HEADS)
    assert len(heads) == 3
    assert problems == []
    assert heads[-1].seq == 4
    with opened(tmp_path, clock) as journal:
        in_chain = [entry for entry in journal.entries(0, 100) if entry["kind"] == "head"]
        assert [(entry["head_link"], entry["head_hash"]) for entry in in_chain] == [
            (head.link, head.hash) for head in heads
        ]
        assert journal.last_link == in_chain[-1]["link"]


def test_heads_that_a_full_disk_kept_out_of_their_file_are_written_at_the_next_start(folder: Path) -> None:
    before = (folder / HEADS).read_bytes()
    # A power cut leaves half a line as well.
    (folder / HEADS).write_bytes(before[: len(before) - 40])
    with opened(folder):
        heads, problems = read_heads(folder / HEADS)
    assert msgspec.json.decode(before.splitlines()[-1]) == msgspec.to_builtins(heads[-1])
    assert len(problems) == 1
    found = verify(folder)
    assert found.is_whole
    assert problems[0] in found.notes


def test_heads_of_other_lines_and_what_is_no_file_of_heads(folder: Path, tmp_path: Path) -> None:
    other = msgspec.structs.replace(read_heads(folder / HEADS)[0][-1], line="other")
    found = verify(folder, [other])
    assert found.is_whole
    assert "1 heads are of another line" in found.notes
    with pytest.raises(ArgumentError, match="expected signed heads, got"):
        verify(folder, tmp_path)
    with pytest.raises(ArgumentError, match="got no file"):
        verify(folder, tmp_path / "none.jsonl")
    with pytest.raises(ArgumentError, match="expected a state folder"):
        verify(tmp_path)


def test_the_first_entry_is_chained_to_what_names_line_and_schema(folder: Path) -> None:
    with by_hand(folder) as connection:
        (first,) = connection.execute("SELECT prev_hash FROM event WHERE link = 1").fetchone()
        row = connection.execute(f"SELECT {', '.join(BEGINNING)} FROM journal").fetchone()
    text = json.dumps({"journal": dict(zip(BEGINNING, row, strict=True))}, sort_keys=True, separators=(",", ":"))
    assert first == hashlib.sha256(text.encode()).hexdigest()
    assert row[:2] == ("press", 1)
