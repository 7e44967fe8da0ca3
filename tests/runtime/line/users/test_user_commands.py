"""`flawscope line user`, `token` and `audit`: what a person types, and what he is told."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import pytest
from error_lines import refused
from line_journals import WAIT_S, a_part, by_hand, computed_anew, opened
from line_project import write_line

from flawscope import cli
from flawscope.bundle.ed25519 import read_private_key
from flawscope.runtime.line.journal.heads import HEADS, KEY, Head, append_heads
from flawscope.runtime.line.journal.reader import JournalReader
from flawscope.runtime.line.users import passwords, user_commands
from flawscope.runtime.line.users.users_file import UsersFile

PASSWORD = "four plain words here"


@pytest.fixture(autouse=True)
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passwords, "_N", 1 << 14)
    monkeypatch.setattr(passwords, "_P", 1)


@pytest.fixture
def config(tmp_path: Path) -> str:
    return str(write_line(tmp_path))


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "password.txt"
    path.write_text(f"{PASSWORD}\n")
    return str(path)


def stored(tmp_path: Path) -> UsersFile:
    return UsersFile(tmp_path / "state")


class TestUser:
    def test_is_added_listed_changed_and_removed(
        self, tmp_path: Path, config: str, file: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        for name, role in (("olga", "operator"), ("anna", "admin")):
            add = ["line", "user", "add", config, name, "--role", role, "--password-file", file]
            assert cli.run(add) == 0
        assert cli.run(["line", "user", "role", config, "olga", "engineer"]) == 0
        capsys.readouterr()
        assert cli.run(["line", "user", "list", config]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert [line.partition(",")[0] for line in lines] == ["user anna: admin", "user olga: engineer"]
        assert cli.run(["line", "user", "list", config, "--json"]) == 0
        listed = capsys.readouterr().out
        assert [user["name"] for user in json.loads(listed)["users"]] == ["anna", "olga"]
        assert "salt" not in listed
        assert cli.run(["line", "user", "remove", config, "olga"]) == 0
        capsys.readouterr()
        assert "--last" in refused(["line", "user", "remove", config, "anna"], capsys)
        assert cli.run(["line", "user", "remove", config, "anna", "--last"]) == 0
        assert cli.run(["line", "user", "list", config]) == 0
        assert "no users" in capsys.readouterr().err

    def test_is_asked_for_a_password_twice(
        self, tmp_path: Path, config: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        typed = iter([PASSWORD, PASSWORD, "five other plain words", "five other plain word"])
        monkeypatch.setattr(user_commands.getpass, "getpass", lambda prompt: next(typed))
        monkeypatch.setattr(user_commands.sys, "stdin", Terminal())
        assert cli.run(["line", "user", "add", config, "anna", "--role", "admin"]) == 0
        account = stored(tmp_path).read().user("anna")
        assert account is not None
        assert account.password.matches(PASSWORD)
        assert "two that differ" in refused(["line", "user", "password", config, "anna"], capsys)
        assert stored(tmp_path).read().user("anna") == account

    def test_password_comes_through_a_pipe(self, tmp_path: Path, config: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(user_commands.sys, "stdin", Terminal(PASSWORD.encode() + b"\r\n"))
        assert cli.run(["line", "user", "add", config, "anna", "--role", "admin", "--password-file", "-"]) == 0
        account = stored(tmp_path).read().user("anna")
        assert account is not None
        assert account.password.matches(PASSWORD)

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            (b"", "one line with a password, got 0 lines"),
            (b"first line is this\nsecond line\n", "got 2 lines"),
            (b"\xff\xfe" * 8, "in UTF-8"),
            (b"short\n", "12 to 256 characters, got 5"),
        ],
    )
    def test_bad_password_files(
        self, tmp_path: Path, config: str, capsys: pytest.CaptureFixture[str], text: bytes, words: str
    ) -> None:
        path = tmp_path / "password.txt"
        path.write_bytes(text)
        error = refused(
            ["line", "user", "add", config, "anna", "--role", "admin", "--password-file", str(path)], capsys
        )
        assert words in error
        assert "first line" not in error
        assert not (tmp_path / "state").exists()

    def test_nobody_is_asked_where_there_is_no_terminal(
        self, config: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr(user_commands.sys, "stdin", io.StringIO(PASSWORD))
        assert "expected a terminal" in refused(["line", "user", "add", config, "anna", "--role", "admin"], capsys)

    @pytest.mark.parametrize(
        "arguments", [["--password", PASSWORD], [PASSWORD], ["--role", "root"], ["--password-file", "/none/there"]]
    )
    def test_a_password_is_no_argument(
        self, tmp_path: Path, config: str, capsys: pytest.CaptureFixture[str], arguments: list[str]
    ) -> None:
        refused(["line", "user", "add", config, "anna", "--role", "admin", *arguments], capsys)
        assert not (tmp_path / "state").exists()

    def test_a_name_that_nobody_has_is_said_before_anybody_types(
        self, config: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert "expected the name of a user (none)" in refused(["line", "user", "password", config, "olga"], capsys)


class Terminal:
    """Standard input; a terminal, or a pipe with these bytes."""

    def __init__(self, data: bytes | None = None) -> None:
        self._is_terminal, self.buffer = data is None, io.BytesIO(data or b"")

    def isatty(self) -> bool:
        return self._is_terminal


def test_a_token_is_shown_once(tmp_path: Path, config: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["line", "token", "add", config, "plc"]) == 0
    (token,) = capsys.readouterr().out.split()
    assert token.startswith("flaw_")
    assert cli.run(["line", "user", "list", config]) == 0
    listed = capsys.readouterr().out
    assert "token plc: machine" in listed
    assert token not in listed
    assert cli.run(["line", "token", "remove", config, "plc"]) == 0
    capsys.readouterr()
    assert "expected the name of a token (none)" in refused(["line", "token", "remove", config, "plc"], capsys)


class TestAudit:
    """What was changed is found by the command; the last row only by what had left the machine."""

    @pytest.fixture
    def state(self, tmp_path: Path) -> Path:
        """The state folder of the line, with eight parts and events in its journal."""
        state = tmp_path / "state"
        with opened(state) as journal:
            for seq in range(1, 9):
                journal.record(a_part(seq, "fault" if seq == 4 else "accept"))
                journal.event("halted", actor="olga", role="operator", object=f"station {seq}")
            assert journal.flush(WAIT_S)
        return state

    def verified(self, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
        status = cli.run(["line", "audit", "verify", *arguments])
        said = capsys.readouterr()
        assert "Traceback" not in said.out + said.err
        return status, said.out

    def test_a_whole_journal(self, state: Path, config: str, capsys: pytest.CaptureFixture[str]) -> None:
        status, said = self.verified([config], capsys)
        assert status == 0
        assert "8 records of parts" in said
        assert "The chain is whole." in said
        # An auditor has a copy of the folder, and no configuration.
        copy = state.parent / "copy"
        shutil.copytree(state, copy)
        assert self.verified([str(copy)], capsys)[0] == 0

    @pytest.mark.parametrize(
        "change",
        [
            "UPDATE part_record SET verdict = 'accept', reason = '' WHERE seq = 4",
            "DELETE FROM part_record WHERE seq = 4",
            "UPDATE event SET actor = 'anna' WHERE object = 'station 4'",
        ],
    )
    def test_a_change(self, state: Path, config: str, capsys: pytest.CaptureFixture[str], change: str) -> None:
        with by_hand(state) as connection:
            connection.execute(change)
        status, said = self.verified([config], capsys)
        assert status == 1
        assert "WRONG at entry" in said
        status, said = self.verified([config, "--json"], capsys)
        assert status == 1
        found = json.loads(said)
        assert not found["is_whole"]
        assert found["wrong_link"] > 1

    def test_an_end_that_was_cut_off(self, state: Path, config: str, capsys: pytest.CaptureFixture[str]) -> None:
        with by_hand(state) as connection:
            for table in ("part_record", "event", "head"):
                connection.execute(f"DELETE FROM {table} WHERE link >= 10")
        status, said = self.verified([config], capsys)
        assert status == 1
        assert "the end was cut off" in said

    def test_all_of_it_computed_anew(self, state: Path, config: str, capsys: pytest.CaptureFixture[str]) -> None:
        """By somebody with the key of the machine: only what a sink had stored elsewhere shows it."""
        reader = JournalReader(state)
        try:
            entries = reader.entries(0, 100)
        finally:
            reader.close()
        elsewhere = state.parent / "sink.jsonl"
        # Until some entry, as a sink that was a little behind, and without the last head.
        told = [entry for entry in entries if entry["kind"] != "head"][:12]
        elsewhere.write_text("".join(json.dumps(entry) + "\n" for entry in told))
        with by_hand(state) as connection:
            connection.execute("UPDATE part_record SET verdict = 'accept', reason = '' WHERE seq = 4")
            computed_anew(connection)
            (state / HEADS).unlink()
            key = read_private_key(state / KEY, lambda: None)
            names = "line, head_link, head_hash, seq, utc"
            for (link,) in connection.execute("SELECT link FROM head ORDER BY link").fetchall():
                row = connection.execute(f"SELECT {names} FROM head WHERE link = ?", (link,)).fetchone()
                head = Head(*row).signed_by(key)
                connection.execute(
                    "UPDATE head SET key = ?, signature = ? WHERE link = ?", (head.key, head.signature, link)
                )
                append_heads(state / HEADS, [head])
                computed_anew(connection)
        assert self.verified([config], capsys)[0] == 0
        status, said = self.verified([config, "--heads", str(elsewhere)], capsys)
        assert status == 1
        assert "computed anew" in said

    def test_no_journal_and_no_heads(self, tmp_path: Path, config: str, capsys: pytest.CaptureFixture[str]) -> None:
        refused(["line", "audit", "verify", config], capsys)
        refused(["line", "audit", "events", config], capsys)
        refused(["line", "audit", "verify", str(tmp_path)], capsys)
        with opened(tmp_path / "state"):
            pass
        assert "got no file" in refused(["line", "audit", "verify", config, "--heads", "/none"], capsys)

    def test_events_are_listed(self, state: Path, config: str, capsys: pytest.CaptureFixture[str]) -> None:
        assert cli.run(["line", "audit", "events", config, "--action", "halted", "--last", "2"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert [line.partition("Z  ")[2] for line in lines] == [
            "olga (operator): halted station 7",
            "olga (operator): halted station 8",
        ]
        assert cli.run(["line", "audit", "events", config, "--json", "--actor", "olga"]) == 0
        assert len([json.loads(line) for line in capsys.readouterr().out.splitlines()]) == 8
        assert cli.run(["line", "audit", "events", config, "--actor", "nobody"]) == 0
        assert not capsys.readouterr().out
