"""The file of users: private, whole, and refused where somebody else could have written it; passwords and limits."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

import msgspec
import pytest

from flawscope.errors import ArgumentError, BackendError
from flawscope.runtime.line.users import attempts, passwords, users_file
from flawscope.runtime.line.users.attempts import MOST_KEYS, Attempts, network_of
from flawscope.runtime.line.users.passwords import check_password, hash_password, nobody
from flawscope.runtime.line.users.recorded import Recorded
from flawscope.runtime.line.users.roles import LOCAL, NOBODY, User, may
from flawscope.runtime.line.users.sessions import MOST, MOST_OF_A_USER, Sessions
from flawscope.runtime.line.users.users_file import UsersFile, read_users

PASSWORD = "four plain words here"


@pytest.fixture(autouse=True)
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passwords, "_N", 1 << 14)
    monkeypatch.setattr(passwords, "_P", 1)


def path_of(state: Path) -> Path:
    return state / "users" / "users.json"


def test_it_is_private_and_holds_no_password_and_no_token(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        file = UsersFile(tmp_path)
        file.add_user("olga", "operator", PASSWORD)
        token = file.add_token("plc")
    finally:
        os.umask(before)
    assert stat.S_IMODE(path_of(tmp_path).stat().st_mode) == 0o600
    assert stat.S_IMODE(path_of(tmp_path).parent.stat().st_mode) == 0o700
    text = path_of(tmp_path).read_text()
    assert PASSWORD not in text
    assert token not in text
    assert token.removeprefix("flaw_") not in text
    assert [entry.name for entry in path_of(tmp_path).parent.iterdir()] == ["users.json"]


def test_changes_are_numbered_and_say_who_made_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUDO_USER", "some\x1bbody")
    file = UsersFile(tmp_path)
    file.add_user("olga", "operator", PASSWORD)
    file.set_role("olga", "engineer")
    file.set_password("olga", PASSWORD + "!")
    file.add_token("plc")
    file.remove_token("plc")
    file.remove_user("olga", last=True)
    users = file.read()
    assert (users.users, users.tokens) == ((), ())
    assert [(change.number, change.action, change.object, change.old, change.new) for change in users.changes] == [
        (1, "user_added", "user olga", "", "operator"),
        (2, "role_changed", "user olga", "operator", "engineer"),
        (3, "password_changed", "user olga", "", ""),
        (4, "token_added", "token plc", "", "machine"),
        (5, "token_removed", "token plc", "machine", ""),
        (6, "user_removed", "user olga", "engineer", ""),
    ]
    assert {change.actor for change in users.changes} == {users.changes[0].actor}
    assert users.changes[0].actor.endswith("(sudo: some\\x1bbody)")


def test_old_changes_give_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(users_file, "MOST_CHANGES", 3)
    file = UsersFile(tmp_path)
    for number in range(4):
        file.add_token(f"t{number}")
    assert [change.number for change in file.read().changes] == [2, 3, 4]
    journal = Journal()
    Recorded(tmp_path, journal).tell(*read_or_fail(tmp_path), 1.0)
    assert [event["action"] for event in journal.events] == ["token_added"] * 3 + ["users_changed"]
    assert "changes 1 to 1 are not known any more" in journal.events[-1]["reason"]


def test_changes_at_once_are_all_made(tmp_path: Path) -> None:
    threads = [threading.Thread(target=UsersFile(tmp_path).add_token, args=(f"t{number}",)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20.0)
    users = UsersFile(tmp_path).read()
    assert len(users.tokens) == 8
    assert [change.number for change in users.changes] == list(range(1, 9))


@pytest.mark.parametrize("name", ["", "-a", "a b", "a" * 65, "é", "a/b", "a\n", "line", "LOCAL", "Olga", "PLC", "olga"])
def test_a_name_that_is_none_or_taken_is_refused(tmp_path: Path, name: str) -> None:
    file = UsersFile(tmp_path)
    file.add_user("olga", "operator", PASSWORD)
    file.add_token("plc")
    before = path_of(tmp_path).read_bytes()
    with pytest.raises(ArgumentError, match="expected a name"):
        file.add_user(name, "admin", PASSWORD)
    with pytest.raises(ArgumentError, match="expected a name"):
        file.add_token(name)
    assert path_of(tmp_path).read_bytes() == before


def test_the_last_user_is_not_removed_by_chance(tmp_path: Path) -> None:
    file = UsersFile(tmp_path)
    file.add_user("olga", "operator", PASSWORD)
    with pytest.raises(ArgumentError, match="everybody on this machine may do everything"):
        file.remove_user("olga")
    file.add_user("anna", "admin", PASSWORD)
    file.remove_user("olga")
    with pytest.raises(ArgumentError, match=r"olga: expected the name of a user \(anna\)"):
        file.remove_user("olga", last=True)


@pytest.mark.parametrize(
    ("password", "words"),
    [
        ("elevenchars", "12 to 256 characters, got 11"),
        ("", "got 0"),
        ("x" * 257, "got 257"),
        ("aaaaaaaaaaaaaaaaaaaa", "5 different characters"),
        ("olgaolgaolga", "5 different characters beside the name"),
        ("OLGAolga1234", "5 different characters beside the name"),
        ("twelve chars\n", "one line"),
        ("twelve\x00chars", "one line"),
    ],
)
def test_a_weak_password_is_refused_and_not_shown(password: str, words: str) -> None:
    with pytest.raises(ArgumentError, match=words) as caught:
        check_password("olga", password)
    assert len(password) < 12 or password not in str(caught.value)


def test_a_password_is_the_same_however_an_accent_is_typed() -> None:
    kept = hash_password("caf\u00e9 au lait 12")
    assert kept.matches("cafe\u0301 au lait 12")
    assert not kept.matches("cafe au lait 12")
    assert not nobody().matches("caf\u00e9 au lait 12")
    assert hash_password(PASSWORD).key != hash_password(PASSWORD).key


def test_a_broken_surrogate_is_a_wrong_password_and_no_error() -> None:
    assert not hash_password(PASSWORD).matches("\ud800" * 12)


@pytest.mark.parametrize("change", [{"n": 1 << 20}, {"n": (1 << 15) + 1}, {"p": 17}, {"r": 0}, {"key": "00"}])
def test_settings_that_would_take_all_memory_are_refused(tmp_path: Path, change: dict[str, object]) -> None:
    UsersFile(tmp_path).add_user("olga", "operator", PASSWORD)
    raw = msgspec.json.decode(path_of(tmp_path).read_bytes())
    raw["users"][0]["password"].update(change)
    path_of(tmp_path).write_bytes(msgspec.json.encode(raw))
    with pytest.raises(ArgumentError, match="expected the users of a line"):
        read_users(tmp_path)


@pytest.mark.parametrize("data", [b"", b"{}x", b"[]", b'{"schema": 2}', b"\xff", b"{" * 5000, b" " * (5 << 20)])
def test_a_file_that_is_none_is_refused(tmp_path: Path, data: bytes) -> None:
    UsersFile(tmp_path).add_token("plc")
    path_of(tmp_path).write_bytes(data)
    with pytest.raises(ArgumentError, match="expected the users of a line, got something else"):
        read_users(tmp_path)
    with pytest.raises(ArgumentError, match="expected the users of a line"):
        UsersFile(tmp_path).add_token("another")
    assert path_of(tmp_path).read_bytes() == data


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o602])
def test_a_file_that_others_can_read_or_write_is_refused(tmp_path: Path, mode: int) -> None:
    UsersFile(tmp_path).add_token("plc")
    path_of(tmp_path).chmod(mode)
    with pytest.raises(BackendError, match="chmod"):
        read_users(tmp_path)


def test_a_link_or_a_folder_of_others_is_refused(tmp_path: Path) -> None:
    UsersFile(tmp_path / "real").add_token("plc")
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "users").symlink_to(tmp_path / "real" / "users")
    with pytest.raises(BackendError, match="expected a folder, got a link"):
        read_users(tmp_path / "state")
    path_of(tmp_path / "real").parent.chmod(0o777)
    with pytest.raises(BackendError, match="only its owner may write"):
        read_users(tmp_path / "real")


def test_a_command_of_another_user_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    owner = tmp_path.stat().st_uid
    monkeypatch.setattr(users_file.os, "geteuid", lambda: owner + 1)
    with pytest.raises(ArgumentError, match="expected to be called by its owner"):
        UsersFile(tmp_path).add_token("plc")
    assert not path_of(tmp_path).parent.exists()


def test_roles_have_one_order() -> None:
    roles = ("machine", "operator", "engineer", "admin")
    assert [[may(User("a", role), need) for need in roles] for role in roles] == [
        [True, False, False, False],
        [True, True, False, False],
        [True, True, True, False],
        [True, True, True, True],
    ]
    assert [may(NOBODY, need) for need in ("", *roles)] == [True, False, False, False, False]
    assert may(LOCAL, "admin")
    assert not may(User("a", "root"), "machine")  # type: ignore[arg-type]


def test_attempts_come_back_one_by_one_and_memory_is_bounded() -> None:
    now = [0.0]
    tries = Attempts(3, 10.0, lambda: now[0])
    for _ in range(3):
        assert tries.wait_s("a") == 0.0
        tries.count("a")
    assert tries.wait_s("a") == pytest.approx(10.0)
    now[0] = 10.0
    assert tries.wait_s("a") == 0.0
    tries.count("a")
    tries.give_back("a")
    assert tries.wait_s("a") == 0.0
    for number in range(2 * MOST_KEYS):
        tries.count(str(number))
    assert len(tries) == MOST_KEYS
    tries.forget("a")
    assert tries.wait_s("a") == 0.0


def test_a_host_of_ipv6_is_one_whatever_address_it_takes() -> None:
    assert network_of("2001:db8::1") == network_of("2001:db8::ffff:1") != network_of("2001:db8:0:1::1")
    assert network_of("::ffff:10.0.0.1") == network_of("10.0.0.1") == "10.0.0.1"
    assert network_of("fe80::1%eth0") == "fe80::/64"
    assert network_of("") == ""
    assert attempts.MOST_KEYS == 4096


def test_sessions_are_bounded_and_the_one_unused_for_longest_goes_first() -> None:
    now = [0.0]
    sessions = Sessions(60.0, 600.0, lambda: now[0])
    first, second = (sessions.begin("olga", "s")[0] for _ in range(2))
    now[0] = 1.0
    assert sessions.find(first)
    for _ in range(MOST_OF_A_USER - 1):
        sessions.begin("olga", "s")
    assert sessions.find(first)
    assert sessions.find(second) is None
    assert len(sessions) == MOST_OF_A_USER
    for number in range(2 * MOST):
        sessions.begin(f"user{number}", "s")
    assert len(sessions) == MOST
    now[0] = 700.0
    sessions.begin("olga", "s")
    assert len(sessions) == 1


class Journal:
    """Keeps events; its disk may fail."""

    def __init__(self) -> None:
        self.events: list[dict[str, str]] = []
        self.is_written = True

    def event(self, action: str, **said: str) -> None:
        self.events.append({"action": action, **said})

    def has_event(self, action: str) -> bool:
        return any(event["action"] == action for event in self.events)

    def flush(self, timeout_s: float) -> bool:
        return self.is_written


def read_or_fail(state: Path) -> tuple[users_file.Users, str]:
    found = read_users(state)
    assert found is not None
    return found


def test_each_change_is_recorded_once_across_starts(tmp_path: Path) -> None:
    file, journal = UsersFile(tmp_path), Journal()
    file.add_user("olga", "operator", PASSWORD)
    recorded = Recorded(tmp_path, journal)
    for _ in range(2):
        recorded.tell(*read_or_fail(tmp_path), 1.0)
    assert [(event["action"], event["object"]) for event in journal.events] == [("user_added", "user olga")]
    file.add_token("plc")
    Recorded(tmp_path, journal).tell(*read_or_fail(tmp_path), 1.0)
    Recorded(tmp_path, journal).tell(*read_or_fail(tmp_path), 1.0)
    assert [event["action"] for event in journal.events] == ["user_added", "token_added"]


def test_a_change_whose_record_failed_is_told_again_at_the_next_start(tmp_path: Path) -> None:
    file, journal = UsersFile(tmp_path), Journal()
    journal.is_written = False
    file.add_token("plc")
    Recorded(tmp_path, journal).tell(*read_or_fail(tmp_path), 1.0)
    journal.is_written = True
    Recorded(tmp_path, journal).tell(*read_or_fail(tmp_path), 1.0)
    assert [event["action"] for event in journal.events] == ["token_added"] * 2


def test_a_change_by_hand_is_recorded_as_one(tmp_path: Path) -> None:
    file, journal = UsersFile(tmp_path), Journal()
    file.add_user("olga", "operator", PASSWORD)
    recorded = Recorded(tmp_path, journal)
    recorded.tell(*read_or_fail(tmp_path), 1.0)
    raw = msgspec.json.decode(path_of(tmp_path).read_bytes())
    raw["users"][0]["role"] = "admin"
    path_of(tmp_path).write_bytes(msgspec.json.encode(raw))
    recorded.tell(*read_or_fail(tmp_path), 1.0)
    assert journal.events[-1]["action"] == "users_changed"
    assert "other means than the commands" in journal.events[-1]["reason"]
