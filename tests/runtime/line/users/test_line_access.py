"""Who may ask a line over HTTP what: logins, sessions, roles, tokens, and what a browser may not be made to do."""

from __future__ import annotations

import gc
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

httpx = pytest.importorskip("httpx", reason="needs httpx")
pytest.importorskip("starlette", reason="needs starlette")
pytest.importorskip("uvicorn", reason="needs uvicorn")
pytest.importorskip("prometheus_client", reason="needs prometheus_client")

from http_here import GOES, PNG, WAIT_S, Here, until  # noqa: E402

from flawscope.files import write_bytes  # noqa: E402
from flawscope.runtime.line.http.access import Access  # noqa: E402
from flawscope.runtime.line.http.routes import audit  # noqa: E402
from flawscope.runtime.line.line_config import HttpOptions  # noqa: E402
from flawscope.runtime.line.users import passwords  # noqa: E402
from flawscope.runtime.line.users.users_file import UsersFile  # noqa: E402

PASSWORD = "four plain words here"
PEOPLE = {"olga": "operator", "erik": "engineer", "anna": "admin"}


class Clock:
    """Seconds that a test sets."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of limits and sessions; passwords cost less than they should, and just as much for every name."""
    clock = Clock()
    monkeypatch.setattr(passwords, "_N", 1 << 14)
    monkeypatch.setattr(passwords, "_P", 1)
    return clock


@pytest.fixture
def guarded(tmp_path: Path, clock: Clock) -> Iterator[Here]:
    """A line with three users and a token, whose text is `here.token`."""
    file = UsersFile(tmp_path)
    for name, role in PEOPLE.items():
        file.add_user(name, role, PASSWORD)  # type: ignore[arg-type]
    token = file.add_token("press-plc")
    here = Here(tmp_path, now=clock)
    here.token = token  # type: ignore[attr-defined]
    yield here
    here.close()


class Person:
    """Somebody with a browser of his own."""

    def __init__(self, here: Here, name: str = "", password: str = PASSWORD) -> None:
        self.client = httpx.Client(base_url=here.url, timeout=WAIT_S, trust_env=False)
        self.csrf = ""
        if name:
            answer = self.login(name, password)
            assert answer.status_code == 200, answer.text
            self.csrf = answer.json()["csrf"]

    def __enter__(self) -> Person:
        return self

    def __exit__(self, *error: object) -> None:
        self.client.close()

    def login(self, name: str, password: str = PASSWORD) -> Any:
        return self.client.post("/api/v1/login", json={"name": name, "password": password})

    def me(self) -> dict[str, Any]:
        answer: dict[str, Any] = self.client.get("/api/v1/me").json()
        return answer

    def get(self, path: str) -> int:
        status: int = self.client.get(path).status_code
        return status

    def post(self, path: str, **headers: str) -> int:
        status: int = self.client.post(path, headers={**GOES, "X-Flawscope-CSRF": self.csrf, **headers}).status_code
        return status


HALT = "/api/v1/stations/one/halt"
TRIGGER = "/api/v1/stations/asked/trigger"
READS = ["/api/v1/state", "/api/v1/parts", "/api/v1/entries"]


def test_without_users_everybody_on_this_machine_is_admin(tmp_path: Path, clock: Clock) -> None:
    here = Here(tmp_path, now=clock)
    try:
        with Person(here) as somebody:
            assert somebody.me() == {"name": "local", "role": "admin", "csrf": "", "has_users": False}
            assert somebody.post(HALT) == 200
            assert somebody.login("olga").status_code == 409
            UsersFile(tmp_path).add_user("olga", "operator", PASSWORD)
            here.users.look()
            assert somebody.get("/api/v1/state") == 401
            assert somebody.me() == {"name": "", "role": "", "csrf": "", "has_users": True}
            assert somebody.post(HALT) == 401
            assert here.one.actors == ["halt local"]
    finally:
        here.close()


def test_nobody_without_a_login_is_told_anything_but_whether_the_line_lives(guarded: Here) -> None:
    with Person(guarded) as stranger:
        assert [stranger.get(path) for path in READS] == [401] * 3
        assert [stranger.get("/healthz"), stranger.get("/readyz"), stranger.get("/metrics")] == [200, 200, 200]
        assert [stranger.post(HALT), stranger.post(TRIGGER)] == [401, 401]
    assert not guarded.one.actors
    assert guarded.line.last_seq == 0


def test_a_login_names_who_does_what(guarded: Here) -> None:
    with Person(guarded, "olga") as olga:
        said = olga.me()
        assert said == {"name": "olga", "role": "operator", "csrf": olga.csrf, "has_users": True}
        assert len(olga.csrf) > 40
        assert [olga.get(path) for path in READS] == [200] * 3
        assert olga.post(HALT) == 200
        assert olga.post("/api/v1/logout") == 200
        assert olga.me()["name"] == ""
        assert olga.post(HALT) == 401
    assert guarded.one.actors == ["halt olga"]
    told = [(event["action"], event["actor"]) for event in guarded.line.journal.said if event["actor"] == "olga"]
    assert told == [("login", "olga"), ("logout", "olga")]


def test_the_cookie_is_for_the_server_alone(guarded: Here) -> None:
    with Person(guarded) as olga:
        (cookie,) = olga.login("olga").headers.get_list("set-cookie")
        value, *rest = cookie.split("; ")
        assert value.startswith("flawscope-l=")
        assert len(value) > 50
        assert {part.lower() for part in rest} == {"httponly", "samesite=strict", "path=/"}
    with_tls = Access(None, "l", HttpOptions(tls=line_tls()))
    assert with_tls.is_secure
    assert with_tls.cookie == "__Host-flawscope-l"


def line_tls() -> Any:
    from flawscope.runtime.line.sinks.table import Tls

    return Tls(cert=Path("c.pem"), key=Path("k.pem"))


@pytest.mark.parametrize("csrf", [None, "", "x" * 43, "é"])
def test_a_request_that_brings_the_cookie_alone_changes_nothing(guarded: Here, csrf: str | None) -> None:
    with Person(guarded, "anna") as anna:
        headers = {**GOES} if csrf is None else {**GOES, "X-Flawscope-CSRF": csrf.encode()}  # type: ignore[dict-item]
        for path in (HALT, TRIGGER, "/api/v1/logout"):
            answer = anna.client.post(path, headers=headers)
            assert answer.status_code == 403
            assert "x-flawscope-csrf" in answer.json()["error"]
        with Person(guarded, "olga") as olga:
            assert anna.post(HALT, **{"X-Flawscope-CSRF": olga.csrf}) == 403
        assert anna.me()["name"] == "anna"
        assert anna.get("/api/v1/state") == 200
    assert not guarded.one.actors


def test_a_wrong_password_is_refused_as_an_unknown_name_is(guarded: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    derived: list[Any] = []
    scrypt = passwords.hashlib.scrypt

    def counted(text: bytes, **settings: Any) -> bytes:
        derived.append({name: value for name, value in settings.items() if name != "salt"})
        return scrypt(text, **settings)

    monkeypatch.setattr(passwords.hashlib, "scrypt", counted)
    with Person(guarded) as stranger:
        answers = [stranger.login(*said) for said in [("olga", "wrong password"), ("nobody", PASSWORD), ("", "")]]
        assert [answer.status_code for answer in answers] == [401] * 3
        assert len({answer.text for answer in answers}) == 1
        assert not any("set-cookie" in answer.headers for answer in answers)
    # The same work for every name: the time of an answer says nothing.
    assert len(derived) == 3
    assert derived[0] == derived[1] == derived[2]
    failed = [event for event in guarded.line.journal.said if event["action"] == "login_failed"]
    # What was typed as a name may have been a password.
    assert [event["actor"] for event in failed] == ["olga", "unknown", "unknown"]


def test_who_guesses_is_slowed_down_and_the_right_password_comes_through_later(guarded: Here, clock: Clock) -> None:
    with Person(guarded) as stranger:
        answers = [stranger.login("olga", f"wrong password {number}") for number in range(8)]
        assert [answer.status_code for answer in answers] == [401] * 5 + [429] * 3
        assert int(answers[-1].headers["retry-after"]) == 30
        # Even the right one: else a guesser would go on guessing.
        assert stranger.login("olga").status_code == 429
        # Others are not kept out by him.
        assert stranger.login("anna").status_code == 200
        clock.now += 30.0
        assert stranger.login("olga").status_code == 200


def test_an_address_that_tries_many_names_is_slowed_down(guarded: Here, clock: Clock) -> None:
    with Person(guarded) as stranger:
        tried = [stranger.login(f"name{number}").status_code for number in range(22)]
        assert tried == [401] * 20 + [429] * 2
        clock.now += 6.0
        assert stranger.login("anna").status_code == 200


def test_a_storm_of_logins_leaves_few_events(guarded: Here, clock: Clock) -> None:
    with Person(guarded) as stranger:
        for _ in range(40):
            stranger.login("olga", "wrong password")
        events = guarded.line.journal.said
        assert sum(event["action"] == "login_failed" for event in events) == 10
        clock.now += 61.0
        until(lambda: any("30 further attempts" in event["reason"] for event in events))


def test_roles_are_in_one_order(guarded: Here) -> None:
    with Person(guarded, "olga") as olga, Person(guarded, "erik") as erik, Person(guarded, "anna") as anna:
        audit = "/api/v1/audit"
        assert [olga.get(audit), erik.get(audit), anna.get(audit)] == [403, 200, 200]
        assert [person.post(HALT) for person in (olga, erik, anna)] == [200] * 3
        assert "expected the role engineer or a higher one, got operator" in olga.client.get(audit).json()["error"]


def test_a_route_whose_role_is_none_is_not_made() -> None:
    async def handler(request: Any) -> Any:
        raise AssertionError

    with pytest.raises(ValueError, match="not in tuple"):
        Access(None, "l", HttpOptions()).guarded(handler, "root")  # type: ignore[arg-type]


def test_what_needs_nobody_and_what_programs_may_change_is_said_once(guarded: Here) -> None:
    from flawscope.runtime.line.http.routes.table import ROUTES

    apis = [api for make in ROUTES for api in make(guarded.server.context)]
    free = {api.path for api in apis if api.role == "" and api.path.startswith(("/api", "/stations"))}
    assert free == {"/api/v1/me", "/api/v1/login"}
    assert {api.path for api in apis if api.is_open_here} == {"/metrics"}
    changed_by_machines = {api.path for api in apis if api.method == "POST" and api.role == "machine"}
    assert changed_by_machines == {"/api/v1/stations/{station}/trigger", "/api/v1/logout"}


def test_a_token_triggers_and_reads_and_nothing_else(guarded: Here) -> None:
    bearer = {"Authorization": f"Bearer {guarded.token}"}  # type: ignore[attr-defined]
    with httpx.Client(base_url=guarded.url, timeout=WAIT_S, trust_env=False, headers=bearer) as plc:
        # No browser sends a token by itself, so none needs another one beside it.
        assert plc.post(TRIGGER, headers=GOES).status_code == 202
        pushed = plc.post("/api/v1/stations/one/trigger?wait=1", content=b"x", headers=PNG)
        assert pushed.json()["verdict"] == "accept"
        assert [plc.get(path).status_code for path in [*READS, "/metrics"]] == [200] * 4
        me = plc.get("/api/v1/me").json()
        assert (me["name"], me["role"]) == ("press-plc", "machine")
        for path in (HALT, HALT.replace("halt", "reset")):
            assert plc.post(path, headers=GOES).status_code == 403
        assert plc.get("/api/v1/audit").status_code == 403
    assert not guarded.one.actors
    for wrong in ("Bearer flaw_wrong", "bearer", f"Bearer {guarded.token}x"):  # type: ignore[attr-defined]
        answer = httpx.get(guarded.url + READS[0], headers={"Authorization": wrong}, trust_env=False)
        assert answer.status_code == 401, wrong


def test_a_token_that_is_removed_is_refused_at_once(guarded: Here, tmp_path: Path) -> None:
    bearer = {"Authorization": f"Bearer {guarded.token}", **GOES}  # type: ignore[attr-defined]
    assert httpx.post(guarded.url + TRIGGER, headers=bearer, trust_env=False).status_code == 202
    UsersFile(tmp_path).remove_token("press-plc")
    guarded.users.look()
    assert httpx.post(guarded.url + TRIGGER, headers=bearer, trust_env=False).status_code == 401


class TestSessions:
    def test_end_after_a_while_without_a_request(self, guarded: Here, clock: Clock) -> None:
        with Person(guarded, "olga") as olga:
            for _ in range(3):
                clock.now += 7000.0
                assert olga.get(READS[0]) == 200
            clock.now += 7300.0
            assert olga.get(READS[0]) == 401

    def test_end_after_a_shift(self, guarded: Here, clock: Clock) -> None:
        with Person(guarded, "olga") as olga:
            for _ in range(7):
                clock.now += 6000.0
                assert olga.get(READS[0]) == 200
            clock.now += 6000.0
            assert olga.get(READS[0]) == 401

    def test_end_when_the_user_is_removed(self, guarded: Here, tmp_path: Path) -> None:
        with Person(guarded, "olga") as olga, Person(guarded, "anna") as anna:
            UsersFile(tmp_path).remove_user("olga")
            guarded.users.look()
            assert [olga.get(READS[0]), anna.get(READS[0])] == [401, 200]
            # Another person of the name is not he.
            UsersFile(tmp_path).add_user("olga", "admin", PASSWORD)
            guarded.users.look()
            assert olga.get(READS[0]) == 401

    def test_end_when_the_password_changes(self, guarded: Here, tmp_path: Path) -> None:
        with Person(guarded, "olga") as olga:
            UsersFile(tmp_path).set_password("olga", "five other plain words")
            guarded.users.look()
            assert olga.get(READS[0]) == 401
            assert olga.login("olga").status_code == 401
            assert olga.login("olga", "five other plain words").status_code == 200

    def test_have_the_role_that_the_user_has_now(self, guarded: Here, tmp_path: Path) -> None:
        with Person(guarded, "erik") as erik:
            UsersFile(tmp_path).set_role("erik", "operator")
            guarded.users.look()
            assert [erik.get("/api/v1/audit"), erik.get(READS[0])] == [403, 200]

    def test_are_known_to_the_server_alone(self, guarded: Here) -> None:
        with Person(guarded) as olga:
            for forged in ("", "x", "A" * 43, "olga"):
                olga.client.cookies.set("flawscope-l", forged)
                assert olga.get(READS[0]) == 401

    def test_end_the_stream_that_they_began(self, guarded: Here, tmp_path: Path) -> None:
        with Person(guarded, "olga") as olga, olga.client.stream("GET", "/api/v1/events") as stream:
            lines = stream.iter_lines()
            assert next(lines) == ": flawscope"
            UsersFile(tmp_path).remove_user("olga")
            guarded.users.look()
            # It ends by itself, where a stream that may go on would wait for longer than the client does.
            assert not [line for line in lines if "new" in line]


def test_a_stream_of_everybody_ends_with_the_first_user(tmp_path: Path, clock: Clock) -> None:
    here = Here(tmp_path, now=clock)
    try:
        with Person(here) as somebody, somebody.client.stream("GET", "/api/v1/events") as stream:
            lines = stream.iter_lines()
            assert next(lines) == ": flawscope"
            UsersFile(tmp_path).add_user("olga", "operator", PASSWORD)
            here.users.look()
            assert not [line for line in lines if "new" in line]
    finally:
        here.close()


@pytest.mark.long
def test_a_hundred_people_come_and_go_and_leave_nothing(guarded: Here) -> None:
    """Each with a stream of the session; half of them leave without a word."""
    server = guarded.server._server
    assert server is not None

    def come_and_go(count: int) -> None:
        for number in range(count):
            client = httpx.Client(base_url=guarded.url, timeout=WAIT_S, trust_env=False, cookies=cookies)
            request = client.build_request("GET", "/api/v1/events")
            stream = client.send(request, stream=True)
            assert next(stream.iter_lines()) == ": flawscope"
            if number % 2:
                stream.close()
            client.close()
        until(lambda: guarded.server.watchers == 0)

    def left() -> tuple[int, int]:
        until(lambda: len(server.server_state.connections) <= 1 and not server.server_state.tasks)
        gc.collect()
        return threading.active_count(), sum(type(one).__name__ == "RequestResponseCycle" for one in gc.get_objects())

    with Person(guarded, "olga") as olga:
        cookies = dict(olga.client.cookies)
    come_and_go(10)
    before = left()
    come_and_go(100)
    assert left() == before
    assert guarded.server.watchers == 0


class TestVerification:
    """The audit over HTTP, whose work is done by a process of its own."""

    def test_says_why_it_could_not_be_done(self, guarded: Here) -> None:
        with Person(guarded, "erik") as erik:
            answer = erik.client.get("/api/v1/audit/verify")
            assert answer.status_code == 503
            assert "expected a state folder with journal.db" in answer.json()["error"]

    def test_is_done_once_at_a_time_and_ends_with_who_asked(
        self, guarded: Here, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        started: list[Any] = []
        real = audit._started
        monkeypatch.setattr(audit, "_PROGRAM", "import time; time.sleep(600)")
        monkeypatch.setattr(audit, "_started", lambda state: started.append(real(state)) or started[-1])
        with Person(guarded, "erik") as erik, Person(guarded, "anna") as anna:
            (cookie,) = erik.client.cookies.items()
            head = f"GET /api/v1/audit/verify HTTP/1.1\r\nHost: localhost\r\nCookie: {'='.join(cookie)}\r\n\r\n"
            with socket.create_connection(guarded.server.address, timeout=WAIT_S) as client:
                client.sendall(head.encode())
                until(lambda: len(started) == 1)
                answer = anna.client.get("/api/v1/audit/verify")
                assert answer.status_code == 503
                assert "one verification at a time" in answer.json()["error"]
                assert started[0].poll() is None
            until(lambda: started[0].poll() is not None)

    def test_ends_after_a_while(self, guarded: Here, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(audit, "_PROGRAM", "import time; time.sleep(600)")
        monkeypatch.setattr(audit, "VERIFY_S", 0.2)
        with Person(guarded, "erik") as erik:
            assert "expected an end within" in erik.client.get("/api/v1/audit/verify").json()["error"]


def test_a_file_of_users_that_is_gone_or_broken_lets_nobody_in(
    guarded: Here, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "users" / "users.json"
    whole = path.read_bytes()
    with Person(guarded, "anna") as anna:
        for damage in (path.unlink, lambda: path.write_bytes(b"{}x"), lambda: path.chmod(0o644)):
            damage()
            guarded.users.look()
            assert anna.get(READS[0]) == 401
            assert anna.me()["has_users"]
            assert anna.login("anna").status_code == 401
            write_bytes(path, whole, private=True)
            guarded.users.look()
            assert anna.get(READS[0]) == 200
    assert "Nobody may log in until it is mended" in caplog.text
    assert sum(event["action"] == "users_unreadable" for event in guarded.line.journal.said) == 3
