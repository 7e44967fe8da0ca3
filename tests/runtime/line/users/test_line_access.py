"""Who may ask a line over HTTP what: logins, sessions, roles, tokens, and what a browser may not be made to do."""

from __future__ import annotations

import gc
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
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


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """A state folder with three users, and the text of a token; passwords cost less, and as much for every name."""
    state = tmp_path_factory.mktemp("prepared")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(passwords, "_N", 1 << 14)
        patch.setattr(passwords, "_P", 1)
        file = UsersFile(state)
        for name, role in PEOPLE.items():
            file.add_user(name, role, PASSWORD)  # type: ignore[arg-type]
        yield state, file.add_token("press-plc")


class Guarded(Here):
    """A line with users, the token of a program, and a clock that is set."""

    def __init__(self, state: Path, prepared: tuple[Path, str]) -> None:
        shutil.copytree(prepared[0] / "users", state / "users")
        self.clock, self.token, self.state = Clock(), prepared[1], state
        super().__init__(state, now=self.clock)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, prepared: tuple[Path, str]) -> Iterator[Guarded]:
    here = Guarded(tmp_path_factory.mktemp("shared"), prepared)
    yield here
    here.close()


@pytest.fixture
def guarded(shared: Guarded) -> Guarded:
    """One line for the tests that leave its users as they are: for each, the day before is long ago."""
    shared.clock.now += 1e6
    shared.line.last_seq, shared.one.actors = 0, []
    shared.line.journal.said.clear()
    return shared


@pytest.fixture
def alone(tmp_path: Path, prepared: tuple[Path, str]) -> Iterator[Guarded]:
    """A line whose users may be changed."""
    here = Guarded(tmp_path, prepared)
    yield here
    here.close()


@pytest.fixture
def unguarded(tmp_path: Path, prepared: tuple[Path, str]) -> Iterator[Here]:
    """A line without users."""
    here = Here(tmp_path)
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


def test_without_users_everybody_on_this_machine_is_admin(unguarded: Here, tmp_path: Path) -> None:
    here = unguarded
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


def test_nobody_without_a_login_is_told_anything_but_whether_the_line_lives(guarded: Guarded) -> None:
    with Person(guarded) as stranger:
        assert [stranger.get(path) for path in READS] == [401] * 3
        assert [stranger.get("/healthz"), stranger.get("/readyz"), stranger.get("/metrics")] == [200, 200, 200]
        assert [stranger.post(HALT), stranger.post(TRIGGER)] == [401, 401]
    assert not guarded.one.actors
    assert guarded.line.last_seq == 0


def test_a_login_names_who_does_what(guarded: Guarded) -> None:
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


def test_the_cookie_is_for_the_server_alone(guarded: Guarded) -> None:
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


def test_a_request_that_brings_the_cookie_alone_changes_nothing(guarded: Guarded) -> None:
    with Person(guarded, "anna") as anna:
        for csrf in (None, b"", b"x" * 43, "é".encode()):
            headers: Any = GOES if csrf is None else {**GOES, "X-Flawscope-CSRF": csrf}
            for path in (HALT, TRIGGER, "/api/v1/logout"):
                answer = anna.client.post(path, headers=headers)
                assert answer.status_code == 403
                assert "x-flawscope-csrf" in answer.json()["error"]
        with Person(guarded, "olga") as olga:
            assert anna.post(HALT, **{"X-Flawscope-CSRF": olga.csrf}) == 403
        assert anna.me()["name"] == "anna"
        assert anna.get("/api/v1/state") == 200
    assert not guarded.one.actors


def test_a_wrong_password_is_refused_as_an_unknown_name_is(guarded: Guarded, monkeypatch: pytest.MonkeyPatch) -> None:
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
    failed = [event for event in guarded.line.journal.said if event["reason"] == "wrong name or password"]
    # What was typed as a name may have been a password.
    assert [event["actor"] for event in failed] == ["olga", "unknown", "unknown"]


def test_who_guesses_is_slowed_down_and_the_right_password_comes_through_later(guarded: Guarded) -> None:
    with Person(guarded) as stranger:
        answers = [stranger.login("olga", f"wrong password {number}") for number in range(8)]
        assert [answer.status_code for answer in answers] == [401] * 5 + [429] * 3
        assert int(answers[-1].headers["retry-after"]) == 30
        # Even the right one: else a guesser would go on guessing.
        assert stranger.login("olga").status_code == 429
        # Others are not kept out by him.
        assert stranger.login("anna").status_code == 200
        guarded.clock.now += 30.0
        assert stranger.login("olga").status_code == 200


def test_an_address_that_tries_many_names_is_slowed_down(guarded: Guarded) -> None:
    with Person(guarded) as stranger:
        tried = [stranger.login(f"name{number}").status_code for number in range(22)]
        assert tried == [401] * 20 + [429] * 2
        guarded.clock.now += 6.0
        assert stranger.login("anna").status_code == 200


def test_a_storm_of_logins_leaves_few_events(alone: Guarded) -> None:
    with Person(alone) as stranger:
        for _ in range(40):
            stranger.login("olga", "wrong password")
        events = alone.line.journal.said
        assert sum(event["action"] == "login_failed" for event in events) == 10
        alone.clock.now += 61.0
        until(lambda: any("30 further attempts" in event["reason"] for event in events))


def test_roles_are_in_one_order(guarded: Guarded) -> None:
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


def test_what_needs_nobody_and_what_programs_may_change_is_said_once(guarded: Guarded) -> None:
    from flawscope.runtime.line.http.routes.table import ROUTES

    apis = [api for make in ROUTES for api in make(guarded.server.context)]
    free = {api.path for api in apis if api.role == "" and api.path.startswith(("/api", "/stations"))}
    assert free == {"/api/v1/me", "/api/v1/login"}
    assert {api.path for api in apis if api.is_open_here} == {"/metrics"}
    changed_by_machines = {api.path for api in apis if api.method == "POST" and api.role == "machine"}
    assert changed_by_machines == {"/api/v1/stations/{station}/trigger", "/api/v1/logout"}


def test_every_route_refuses_whoever_has_less_than_its_role(guarded: Guarded) -> None:
    from flawscope.runtime.line.http.routes.table import ROUTES

    apis = [api for make in ROUTES for api in make(guarded.server.context) if api.role and not api.is_open_here]
    assert {"/api/v1/stations/{station}/threshold", "/api/v1/stations/{station}/swap"} < {api.path for api in apis}
    order = ["machine", "operator", "engineer", "admin"]
    with Person(guarded) as plc, Person(guarded, "olga") as olga, Person(guarded, "erik") as erik:
        plc.client.headers["Authorization"] = f"Bearer {guarded.token}"
        people = {"machine": plc, "operator": olga, "engineer": erik}
        with Person(guarded) as stranger:
            for api in apis:
                path = api.path.replace("{seq:int}", "1").format(station="one", name="left")
                headers = {**GOES, "Content-Type": "application/json"}
                assert stranger.client.request(api.method, path, headers=headers).status_code == 401, path
                for role, person in people.items():
                    if order.index(role) >= order.index(api.role):
                        continue
                    headers["X-Flawscope-CSRF"] = person.csrf
                    answer = person.client.request(api.method, path, headers=headers)
                    assert answer.status_code == 403, (path, role)
                    assert f"expected the role {api.role} or a higher one, got {role}" in answer.json()["error"]
    assert not guarded.one.actors
    assert guarded.line.last_seq == 0


def test_a_token_triggers_and_reads_and_nothing_else(guarded: Guarded) -> None:
    bearer = {"Authorization": f"Bearer {guarded.token}"}
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
    for wrong in ("Bearer flaw_wrong", "bearer", f"Bearer {guarded.token}x"):
        answer = httpx.get(guarded.url + READS[0], headers={"Authorization": wrong}, trust_env=False)
        assert answer.status_code == 401, wrong
    answer = httpx.get(guarded.url + READS[0], headers={"Authorization": "Bearer flaw_wrong"}, trust_env=False)
    assert "expected a token that the line knows, got another one" in answer.json()["error"]


def test_who_brings_a_wrong_token_is_told_so_first(guarded: Guarded) -> None:
    """And not to add a header, with which it would be as wrong."""
    with Person(guarded) as plc, Person(guarded, "olga") as olga:
        plc.client.headers["Authorization"] = "Bearer flaw_wrong"
        for path in (TRIGGER, HALT, "/api/v1/bundles"):
            answer = plc.client.post(path)
            assert answer.status_code == 401
            assert "expected a token that the line knows" in answer.json()["error"]
        plc.client.headers["Authorization"] = ""
        assert "expected somebody who has logged in" in plc.client.post(TRIGGER).json()["error"]
        # Who is known hears of the header; a foreign page can still change nothing.
        plc.client.headers["Authorization"] = f"Bearer {guarded.token}"
        assert "X-Flawscope: 1" in plc.client.post(TRIGGER).json()["error"]
        assert "X-Flawscope: 1" in olga.client.post(HALT, headers={"X-Flawscope-CSRF": olga.csrf}).json()["error"]
        assert "X-Flawscope: 1" in olga.client.post("/api/v1/login").json()["error"]
    assert not guarded.one.actors
    assert guarded.line.last_seq == 0


def test_who_is_signed_out_while_he_sends_changes_nothing(alone: Guarded) -> None:
    """His request was let in, and its body is whole after he could ask no longer."""
    file = UsersFile(alone.state)

    def sent_while(act: Callable[[], object]) -> Iterator[bytes]:
        yield b"{"
        act()
        alone.users.look()
        yield b"}"

    json = {"Content-Type": "application/json"}
    with Person(alone, "olga") as olga, Person(alone, "anna") as anna:
        for person, act in (
            (olga, lambda: file.set_password("olga", "five other plain words")),
            (anna, lambda: file.set_role("anna", "operator")),
        ):
            headers = {**json, "X-Flawscope-CSRF": person.csrf}
            answer = person.client.post(HALT, content=sent_while(act), headers=headers)
            assert answer.status_code == 401
            assert "signed out meanwhile, or whose password, role or token changed" in answer.json()["error"]
    with Person(alone) as plc:
        plc.client.headers["Authorization"] = f"Bearer {alone.token}"
        body = sent_while(lambda: file.remove_token("press-plc"))
        assert plc.client.post(TRIGGER, content=body, headers=json).status_code == 401
    assert not alone.one.actors
    assert alone.line.last_seq == 0


def test_a_token_that_is_removed_is_refused_at_once(alone: Guarded) -> None:
    bearer = {"Authorization": f"Bearer {alone.token}", **GOES}
    assert httpx.post(alone.url + TRIGGER, headers=bearer, trust_env=False).status_code == 202
    UsersFile(alone.state).remove_token("press-plc")
    alone.users.look()
    assert httpx.post(alone.url + TRIGGER, headers=bearer, trust_env=False).status_code == 401


class TestSessions:
    def test_end_after_a_while_without_a_request(self, guarded: Guarded) -> None:
        with Person(guarded, "olga") as olga:
            for _ in range(3):
                guarded.clock.now += 7000.0
                assert olga.get(READS[0]) == 200
            guarded.clock.now += 7300.0
            assert olga.get(READS[0]) == 401

    def test_end_after_a_shift(self, guarded: Guarded) -> None:
        with Person(guarded, "olga") as olga:
            for _ in range(7):
                guarded.clock.now += 6000.0
                assert olga.get(READS[0]) == 200
            guarded.clock.now += 6000.0
            assert olga.get(READS[0]) == 401

    def test_end_when_the_user_is_removed(self, alone: Guarded) -> None:
        with Person(alone, "olga") as olga, Person(alone, "anna") as anna:
            UsersFile(alone.state).remove_user("olga")
            alone.users.look()
            assert [olga.get(READS[0]), anna.get(READS[0])] == [401, 200]
            # Another person of the name is not he.
            UsersFile(alone.state).add_user("olga", "admin", PASSWORD)
            alone.users.look()
            assert olga.get(READS[0]) == 401

    def test_end_when_the_password_changes(self, alone: Guarded) -> None:
        with Person(alone, "olga") as olga:
            UsersFile(alone.state).set_password("olga", "five other plain words")
            alone.users.look()
            assert olga.get(READS[0]) == 401
            assert olga.login("olga").status_code == 401
            assert olga.login("olga", "five other plain words").status_code == 200

    def test_have_the_role_that_the_user_has_now(self, alone: Guarded) -> None:
        with Person(alone, "erik") as erik:
            UsersFile(alone.state).set_role("erik", "operator")
            alone.users.look()
            assert [erik.get("/api/v1/audit"), erik.get(READS[0])] == [403, 200]

    def test_are_known_to_the_server_alone(self, guarded: Guarded) -> None:
        with Person(guarded) as olga:
            for forged in ("", "x", "A" * 43, "olga"):
                olga.client.cookies.set("flawscope-l", forged)
                assert olga.get(READS[0]) == 401

    def test_end_the_stream_that_they_began(self, alone: Guarded) -> None:
        with Person(alone, "olga") as olga, olga.client.stream("GET", "/api/v1/events") as stream:
            lines = stream.iter_lines()
            assert next(lines) == ": flawscope"
            UsersFile(alone.state).remove_user("olga")
            alone.users.look()
            # It ends by itself, where a stream that may go on would wait for longer than the client does.
            assert not [line for line in lines if "new" in line]


def test_a_stream_of_everybody_ends_with_the_first_user(unguarded: Here, tmp_path: Path) -> None:
    here = unguarded
    with Person(here) as somebody, somebody.client.stream("GET", "/api/v1/events") as stream:
        lines = stream.iter_lines()
        assert next(lines) == ": flawscope"
        UsersFile(tmp_path).add_user("olga", "operator", PASSWORD)
        here.users.look()
        assert not [line for line in lines if "new" in line]


@pytest.mark.long
def test_a_hundred_people_come_and_go_and_leave_nothing(alone: Guarded) -> None:
    """Each with a stream of the session; half of them leave without a word."""
    server = alone.server._server
    assert server is not None

    def come_and_go(count: int) -> None:
        for number in range(count):
            client = httpx.Client(base_url=alone.url, timeout=WAIT_S, trust_env=False, cookies=cookies)
            request = client.build_request("GET", "/api/v1/events")
            stream = client.send(request, stream=True)
            assert next(stream.iter_lines()) == ": flawscope"
            if number % 2:
                stream.close()
            client.close()
        until(lambda: alone.server.watchers == 0)

    def left() -> tuple[int, int]:
        until(lambda: len(server.server_state.connections) <= 1 and not server.server_state.tasks)
        gc.collect()
        return threading.active_count(), sum(type(one).__name__ == "RequestResponseCycle" for one in gc.get_objects())

    with Person(alone, "olga") as olga:
        cookies = dict(olga.client.cookies)
    come_and_go(10)
    before = left()
    come_and_go(100)
    assert left() == before
    assert alone.server.watchers == 0


class TestVerification:
    """The audit over HTTP, whose work is done by a process of its own."""

    def test_says_why_it_could_not_be_done(self, guarded: Guarded) -> None:
        with Person(guarded, "erik") as erik:
            answer = erik.client.get("/api/v1/audit/verify")
            assert answer.status_code == 503
            assert "expected a state folder with journal.db" in answer.json()["error"]

    def test_is_done_once_at_a_time_and_ends_with_who_asked(
        self, guarded: Guarded, monkeypatch: pytest.MonkeyPatch
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

    def test_ends_after_a_while(self, guarded: Guarded, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(audit, "_PROGRAM", "import time; time.sleep(600)")
        monkeypatch.setattr(audit, "VERIFY_S", 0.2)
        with Person(guarded, "erik") as erik:
            assert "expected an end within" in erik.client.get("/api/v1/audit/verify").json()["error"]


def test_a_file_of_users_that_is_gone_or_broken_lets_nobody_in(
    alone: Guarded, caplog: pytest.LogCaptureFixture
) -> None:
    path = alone.state / "users" / "users.json"
    whole = path.read_bytes()
    with Person(alone, "anna") as anna:
        for damage in (path.unlink, lambda: path.write_bytes(b"{}x"), lambda: path.chmod(0o644)):
            damage()
            alone.users.look()
            assert anna.get(READS[0]) == 401
            assert anna.me()["has_users"]
            assert anna.login("anna").status_code == 401
            write_bytes(path, whole, private=True)
            alone.users.look()
            assert anna.get(READS[0]) == 200
    assert "Nobody may log in until it is mended" in caplog.text
    assert sum(event["action"] == "users_unreadable" for event in alone.line.journal.said) == 3
