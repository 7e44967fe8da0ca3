"""Sealed files and the journal, verified as one chain: what was deleted, changed or forged is found."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from line_journals import SetClock, by_hand
from sealed_rows import (
    PARTS,
    Killed,
    files,
    kept,
    killed_at,
    rows,
)

from flawscope.errors import DataError
from flawscope.files import sha256_file
from flawscope.runtime.line.journal import walk
from flawscope.runtime.line.journal.schema import SEALED_TABLE
from flawscope.runtime.line.journal.sealed import SEALED
from flawscope.runtime.line.journal.verify import verify


def test_a_file_that_was_left_and_changed_is_not_taken(folder: Path, clock: SetClock) -> None:
    with pytest.MonkeyPatch.context() as patched:
        killed_at("before it is noted", patched)
        with pytest.raises(Killed):
            kept(folder, clock)
    (path,) = files(folder)
    whole = path.read_bytes()
    lines = gzip.decompress(whole).splitlines(keepends=True)
    for changed in (lines[:-2] + lines[-1:], lines[:-1], [lines[1], *lines[1:]], [*lines, lines[-1]], lines[:3]):
        path.write_bytes(gzip.compress(b"".join(changed)))
        with pytest.raises(DataError):
            kept(folder, clock)
        assert len(rows(folder)) == 2 * PARTS
    path.write_bytes(whole[:-20])
    with pytest.raises(DataError, match="Put a copy back"):
        kept(folder, clock)
    path.write_bytes(whole)
    kept(folder, clock)
    assert verify(folder).is_whole


def edited(path: Path, change: Callable[[list[bytes]], list[bytes]]) -> None:
    path.write_bytes(gzip.compress(b"".join(change(gzip.decompress(path.read_bytes()).splitlines(keepends=True)))))


class TestVerification:
    @pytest.fixture
    def sealed(self, folder: Path, clock: SetClock) -> Path:
        kept(folder, clock, most_rows=20)
        assert verify(folder).is_whole
        return folder

    def test_a_file_that_was_deleted_or_moved(self, sealed: Path, tmp_path: Path) -> None:
        away = tmp_path / "away"
        away.mkdir()
        path = files(sealed)[1]
        path.rename(away / path.name)
        found = verify(sealed)
        assert found.wrong_link == 21
        assert "was deleted or moved" in found.wrong
        assert verify(sealed, sealed=away).is_whole

    @pytest.mark.parametrize(
        "change",
        [
            lambda lines: [*lines[:4], lines[4].replace(b'"accept"', b'"reject"'), *lines[5:]],
            lambda lines: lines[:3] + lines[4:],
            lambda lines: [*lines[:3], lines[4], lines[3], *lines[5:]],
            lambda lines: lines[:-1],
            lambda lines: lines[1:],
            lambda lines: [*lines, b"{}\n"],
        ],
    )
    def test_a_file_that_was_changed(
        self, sealed: Path, change: Callable[[list[bytes]], list[bytes]], tmp_path: Path
    ) -> None:
        edited(files(sealed)[1], change)
        found = verify(sealed)
        assert not found.is_whole
        assert found.wrong_link is not None
        assert 21 <= found.wrong_link <= 41
        assert files(sealed)[1].name in found.wrong

    def test_other_bytes_of_the_same_lines(self, sealed: Path) -> None:
        path = files(sealed)[1]
        path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()), 1))
        assert "SHA-256" in verify(sealed).wrong

    def test_what_the_journal_says_of_files(self, sealed: Path) -> None:
        with by_hand(sealed) as connection:
            (said,) = connection.execute(f"SELECT said FROM {SEALED_TABLE} ORDER BY last_link LIMIT 1").fetchone()
            changed = said.replace('"accept":', '"accept":1')
            connection.execute(f"UPDATE {SEALED_TABLE} SET said = ? WHERE said = ?", (changed, said))
        assert "what the journal says of the sealed file" in verify(sealed).wrong
        with by_hand(sealed) as connection:
            connection.execute(f"UPDATE {SEALED_TABLE} SET last_seq = 99 WHERE first_link = 1")
        assert "other columns" in verify(sealed).wrong
        with by_hand(sealed) as connection:
            connection.execute(f"DELETE FROM {SEALED_TABLE} WHERE first_link = 1")
        assert "was deleted" in verify(sealed).wrong
        with by_hand(sealed) as connection:
            connection.execute(f"UPDATE {SEALED_TABLE} SET said = 'x'")
        assert "Somebody has changed" in verify(sealed).wrong

    def test_rows_that_are_left_of_a_drop(
        self, folder: Path, clock: SetClock, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        killed_at("in the middle of the drop", monkeypatch)
        with pytest.raises(Killed):
            kept(folder, clock)
        assert verify(folder).is_whole
        for number, edit in enumerate(
            (
                "UPDATE part_record SET score = 99.0 WHERE seq = 12",
                "DELETE FROM part_record WHERE seq = 12",
                f"DELETE FROM part_record WHERE seq = {PARTS}",
                "UPDATE part_record SET hash = upper(hash) WHERE seq = 12",
            )
        ):
            place = tmp_path / str(number)
            shutil.copytree(folder, place)
            with by_hand(place) as connection:
                connection.execute(edit)
            found = verify(place)
            assert "sealed" in found.wrong, edit

    def test_signatures_of_sealed_heads(self, sealed: Path) -> None:
        with by_hand(sealed) as connection:
            query = f"SELECT file, said FROM {SEALED_TABLE} ORDER BY last_link LIMIT 1"
            name, said = connection.execute(query).fetchone()

            def forged(lines: list[bytes]) -> list[bytes]:
                head = json.loads(lines[-1])
                head["head"]["signature"] = "00" * 64
                return [*lines[:-1], json.dumps(head).encode() + b"\n"]

            edited(sealed / SEALED / name, forged)
            # He who forges it mends the hash of the file, too.
            new = {**json.loads(said), "sha256": sha256_file(sealed / SEALED / name)}
            text = json.dumps(new, sort_keys=True, separators=(",", ":"))
            connection.execute(f"UPDATE {SEALED_TABLE} SET said = ? WHERE file = ?", (text, name))
        found = verify(sealed)
        assert not found.is_whole

    def test_a_program_without_flawscope_follows_sealed_files(
        self, sealed: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        page = (Path(__file__).parents[4] / "docs" / "line-journal.md").read_text()
        program = page.split("```python\n")[1].split("```")[0]
        exec(program, {"FOLDER": str(sealed)})
        assert capsys.readouterr().out == f"whole until entry {verify(sealed).last_link}\n"
        edited(files(sealed)[0], lambda lines: [lines[0], lines[1].replace(b"journal_begun", b"x"), *lines[2:]])
        with pytest.raises(SystemExit, match="entry 1 "):
            exec(program, {"FOLDER": str(sealed)})

    def test_while_rows_are_sealed_and_dropped(
        self, folder: Path, clock: SetClock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(walk, "_BATCH", 5)
        rows_after, calls = walk.rows_after, []

        def slow(connection, link, limit):
            calls.append(link)
            if len(calls) == 3:
                kept(folder, clock, most_rows=20)
            return rows_after(connection, link, limit)

        monkeypatch.setattr(walk, "rows_after", slow)
        found = verify(folder)
        assert found.is_whole, found
        assert (found.parts, found.sealed > 0) == (2 * PARTS, True)
