"""The HTTP interface against a stand-in of a line: every route, wrong requests, and clients that behave badly."""

from __future__ import annotations

import contextlib
import gc
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from line_view_stand_in import FakeLine, FakeStation

httpx = pytest.importorskip("httpx", reason="the client of these tests is not installed")
for needed in ("starlette", "uvicorn", "prometheus_client"):
    pytest.importorskip(needed, reason=f"{needed} is not installed (extra `line`)")

from flawscope.errors import ArgumentError, StorageError  # noqa: E402
from flawscope.runtime.line.http import bodies, news, serving  # noqa: E402
from flawscope.runtime.line.http.server import LineServer  # noqa: E402
from flawscope.runtime.line.line_config import HttpOptions, LineConfig  # noqa: E402
from flawscope.runtime.line.sinks.table import Tls  # noqa: E402

WAIT_S = 20.0
GOES = {"X-Flawscope": "1"}
PNG = {"Content-Type": "image/png"}


def config(state: Path, listen: str = "127.0.0.1:0", deadline_ms: float = 5000.0) -> LineConfig:
    def view(name: str, source: dict[str, Any]) -> dict[str, Any]:
        return {"name": name, "source": source, "bundle": "b.flaw", "slot_mb": 0.5}

    camera = {"kind": "genicam", "camera": "c"}
    stations = [
        {"name": "one", "views": [view("left", {"kind": "push"})], "deadline_ms": deadline_ms},
        {"name": "two", "views": [view("left", {"kind": "push"}), view("right", {"kind": "push"})]},
        {"name": "asked", "views": [view("left", {**camera, "trigger": "software"})]},
        {"name": "wired", "views": [view("left", camera)]},
    ]
    raw = {"line": {"name": "l", "state": str(state)}, "stations": stations, "http": {"listen": listen}}
    return msgspec.convert(raw, LineConfig, dec_hook=lambda _, value: Path(value))


class Here:
    """A server, its line, and a client."""

    def __init__(self, state: Path, deadline_ms: float = 5000.0) -> None:
        self.line = FakeLine()
        for name in ("one", "two", "asked", "wired"):
            self.line.add(name, is_triggered=name == "asked")
        self.server = LineServer(config(state, deadline_ms=deadline_ms), self.line)
        for name, station in self.line.stations.items():
            station.outputs.append(self.server.output(name))
        self.server.start()
        self.url = "http://{}:{}".format(*self.server.address)
        # trust_env: proxies of the machine must not get these requests.
        self.client = httpx.Client(base_url=self.url, timeout=WAIT_S, trust_env=False)

    @property
    def one(self) -> FakeStation:
        return self.line.stations["one"]

    def get(self, path: str, status: int = 200) -> Any:
        answer = self.client.get(path)
        assert answer.status_code == status, answer.text
        return answer.json()

    def post(self, path: str, status: int, **options: Any) -> Any:
        answer = self.client.post(path, **options)
        assert answer.status_code == status, answer.text
        return answer.json()

    def refused(self, path: str, status: int, **options: Any) -> str:
        error = self.post(path, status, **options)
        assert set(error) == {"error"}
        assert "\n" not in error["error"]
        return str(error["error"])

    def close(self) -> None:
        self.client.close()
        self.server.stop()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Here]:
    here = Here(tmp_path_factory.mktemp("state"))
    yield here
    here.close()


@pytest.fixture
def here(shared: Here) -> Iterator[Here]:
    """One server for the tests that leave nothing open; each finds the stations as they were."""
    for station in shared.line.stations.values():
        station.state, station.verdict, station.actors, station.pushed = "ready", "accept", [], []
        station.sources = {}
    yield shared
    assert not any(station.open for station in shared.line.stations.values())


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[Here]:
    here = Here(tmp_path)
    yield here
    here.close()


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)


def test_health_and_readiness(here: Here) -> None:
    assert here.get("/healthz") == {"ok": True}
    assert here.get("/readyz")["ready"] is True
    here.one.state = "error"
    found = here.get("/readyz", 503)
    assert found["ready"] is False
    assert found["stations"]["one"] == {"state": "error", "reason": "because"}


def test_the_state_is_that_of_the_line(here: Here) -> None:
    here.one.sources = {"left": "unplugged"}
    found = here.get("/api/v1/state")
    assert found["line"] == "l"
    assert [station["name"] for station in found["stations"]] == ["one", "two", "asked", "wired"]
    assert found["stations"][0]["sources"] == {"left": "unplugged"}
    assert found["sinks"][0]["behind"] == 2


def test_every_answer_carries_the_headers_that_browsers_obey(here: Here) -> None:
    for path in ("/healthz", "/no/such", "/api/v1/parts?limit=x", "/metrics"):
        headers = here.client.get(path).headers
        assert headers["content-security-policy"].startswith("default-src 'self'")
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cache-control"] == "no-store"
        assert "server" not in headers


def test_parts_are_listed_and_looked_up(here: Here) -> None:
    first = here.line.last_seq
    for verdict in ("accept", "reject", "fault", "reject"):
        here.one.verdict = verdict  # type: ignore[assignment]
        here.one.push({})
    here.line.stations["two"].push({})

    def seqs(query: str) -> list[int]:
        return [part["seq"] - first for part in here.get(f"/api/v1/parts?after={first}&{query}")["parts"]]

    assert seqs("") == [1, 2, 3, 4, 5]
    assert seqs("limit=2") == [1, 2]
    assert seqs("verdict=reject") == [2, 4]
    assert seqs("station=two") == [5]
    assert seqs("order=newest&limit=2") == [5, 4]
    part = here.get(f"/api/v1/parts/{first + 3}")
    assert (part["seq"], part["verdict"], part["reason"]) == (first + 3, "fault", "scene")
    assert "may still be open" in here.get(f"/api/v1/parts/{first + 6}", 404)["error"]
    entries = here.get(f"/api/v1/entries?after={here.line.journal.last_link - 2}")["entries"]
    assert [entry["seq"] - first for entry in entries] == [4, 5]


@pytest.mark.parametrize(
    ("path", "status", "words"),
    [
        ("/api/v1/parts?limit=0", 400, "limit: expected a whole number from 1 to 1000, got '0'"),
        ("/api/v1/parts?limit=1001", 400, "limit: expected"),
        ("/api/v1/parts?after=-1", 400, "after: expected"),
        ("/api/v1/parts?after=%C2%B2", 400, "after: expected"),
        ("/api/v1/parts?after=" + "1" * 5000, 400, "after: expected"),
        ("/api/v1/parts?verdict=good", 400, "verdict: expected one of accept, reject, fault, got 'good'"),
        ("/api/v1/parts?station=none", 400, "station: expected one of one, two, asked, wired, got 'none'"),
        ("/api/v1/parts?afer=1", 400, "expected no parameters but after, limit, station, verdict, order, got 'afer'"),
        ("/api/v1/parts?after=1&after=2", 400, "expected after once"),
        ("/api/v1/parts/0", 404, "expected the number of a part on record, got 0"),
        ("/api/v1/parts/" + "9" * 40, 404, "expected the number of a part on record"),
        ("/api/v1/parts/x", 404, "expected a path of the line"),
        ("/", 404, "expected a path of the line"),
        ("/api/v1/stations/one/trigger", 405, "expected another method"),
    ],
)
def test_wrong_questions_are_answered_in_one_sentence(here: Here, path: str, status: int, words: str) -> None:
    error = here.get(path, status)["error"]
    assert words in error
    assert len(error) < 300


def test_an_image_is_pushed_and_its_verdict_awaited(here: Here) -> None:
    here.one.verdict = "reject"
    found = here.post("/api/v1/stations/one/trigger?wait=1&part_id=A-7", 200, content=b"\x89PNG", headers=PNG)
    assert here.one.pushed == [({"left": b"\x89PNG"}, "A-7")]
    expected = {"station": "one", "part_id": "A-7", "verdict": "reject", "reason": "", "score": 2.0}
    assert found == {**expected, "seq": here.line.last_seq}


def test_without_wait_the_number_is_the_answer(here: Here) -> None:
    here.one.verdict = None
    found = here.post("/api/v1/stations/one/trigger", 202, content=b"x", headers=PNG)
    assert found == {"seq": here.line.last_seq}
    here.one.give(found["seq"], "accept")


def test_all_images_of_a_part_come_in_one_request(here: Here) -> None:
    files = {"left": ("l.png", b"\r\n--a\r\n\x00" * 9, "image/png"), "right": ("r.png", b"", "image/png")}
    here.post("/api/v1/stations/two/trigger?wait=1", 200, files=files, headers=GOES)
    assert here.line.stations["two"].pushed == [({"left": b"\r\n--a\r\n\x00" * 9, "right": b""}, "")]


def test_a_view_that_is_not_sent_is_left_to_the_station(here: Here) -> None:
    here.post("/api/v1/stations/two/trigger", 202, files={"right": b"r"}, headers=GOES)
    assert here.line.stations["two"].pushed == [({"right": b"r"}, "")]


def test_a_software_trigger_needs_no_body(here: Here) -> None:
    asked = here.line.stations["asked"]
    assert here.post("/api/v1/stations/asked/trigger?wait=1", 200, headers=GOES)["verdict"] == "accept"
    assert here.post("/api/v1/stations/asked/trigger", 202, json={}) == {"seq": here.line.last_seq}
    assert asked.pushed == [({}, ""), ({}, "")]


def multipart(*parts: tuple[str, bytes]) -> dict[str, Any]:
    body = b"".join(
        b'--b\r\nContent-Disposition: form-data; name="' + name.encode() + b'"\r\n\r\n' + data + b"\r\n"
        for name, data in parts
    )
    return {"content": body + b"--b--", "headers": {**GOES, "Content-Type": "multipart/form-data; boundary=b"}}


FORM = {**GOES, "Content-Type": "multipart/form-data; boundary=b"}


@pytest.mark.parametrize(
    ("path", "status", "options", "words"),
    [
        ("one/trigger", 400, {"headers": GOES}, "expected an image of left, got none"),
        (
            "one/trigger",
            415,
            {"content": b"x", "headers": GOES},
            "image or multipart/form-data, got no type",
        ),
        ("one/trigger", 415, {"content": b"x", "headers": {**GOES, "Content-Type": "text/plain"}}, "got text/plain"),
        ("one/trigger", 400, {"json": {"a": 1}}, "expected an empty body or {}"),
        ("one/trigger?wait=2", 400, {"content": b"x", "headers": PNG}, "wait: expected one of 0, 1, got '2'"),
        ("one/trigger?now=1", 400, {"content": b"x", "headers": PNG}, "expected no parameters but wait, part_id"),
        (
            "one/trigger?part_id=a%0Ab",
            400,
            {"content": b"x", "headers": PNG},
            "part_id: expected at most 128",
        ),
        ("one/trigger?part_id=" + "a" * 129, 400, {"content": b"x", "headers": PNG}, "part_id: expected at most 128"),
        (
            "two/trigger",
            400,
            {"content": b"x", "headers": PNG},
            "expected multipart/form-data with the names of",
        ),
        ("two/trigger", 400, multipart(("left", b"x"), ("left", b"y")), "expected every view once, got 'left' twice"),
        ("two/trigger", 400, multipart(("up", b"x")), "expected images of left, right, got one of 'up'"),
        ("two/trigger", 400, multipart(), "expected an image of left, right, got none"),
        ("two/trigger", 400, {"content": b"--b\r\n\r\n", "headers": FORM}, "expected a whole multipart body"),
        ("two/trigger", 400, {"content": b"x", "headers": FORM}, "expected a whole multipart body"),
        ("two/trigger", 400, {"content": b"", "headers": FORM}, "expected a whole multipart body"),
        (
            "two/trigger",
            400,
            {"content": b"--b\r\nA: b\r\n\r\nx\r\n--b--", "headers": FORM},
            "the name of a view",
        ),
        ("asked/trigger", 409, {"content": b"x", "headers": PNG}, "expected no image, as station asked has cameras"),
        ("wired/trigger", 409, {"headers": GOES}, "expected a station with a software trigger, got wired"),
        ("none/trigger", 404, {"headers": GOES}, "expected one of the stations one, two, asked, wired, got 'none'"),
        ("one/halt", 400, {"json": [1]}, "expected an empty body"),
        ("one/halt?now=1", 400, {"headers": GOES}, "expected no parameters but none, got 'now'"),
    ],
)
def test_a_request_that_is_wrong_opens_no_part(here: Here, path: str, status: int, options: Any, words: str) -> None:
    before = here.line.last_seq
    assert words in here.refused(f"/api/v1/stations/{path}", status, **options)
    assert here.line.last_seq == before
    assert not any(station.actors for station in here.line.stations.values())


@pytest.mark.parametrize("how", ["announced", "chunked", "one view"])
def test_a_body_that_is_too_large_is_refused_and_opens_no_part(here: Here, how: str) -> None:
    limit = (1 << 19) + bodies.OVERHEAD_BYTES
    before = here.line.last_seq
    if how == "announced":
        options: Any = {"content": b"x" * (limit + 1), "headers": PNG}
    elif how == "chunked":
        options = {"content": (b"x" * 65536 for _ in range(limit // 65536 + 2)), "headers": PNG}
    else:
        options = {"content": b"x" * ((1 << 19) + 1), "headers": PNG}
    assert "raise slot_mb" in here.refused("/api/v1/stations/one/trigger", 413, **options)
    assert here.line.last_seq == before
    assert here.post("/api/v1/stations/one/trigger?wait=1", 200, content=b"x" * (1 << 19), headers=PNG)


def test_halt_and_reset(here: Here) -> None:
    assert here.post("/api/v1/stations/one/halt", 200, headers=GOES)["state"] == "halted"
    assert here.post("/api/v1/stations/one/reset", 200, json={})["state"] == "ready"
    assert here.one.actors == ["halt http", "acknowledge http"]


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "evil.example:8710", "10.0.0.1", "", "[::"])
def test_a_foreign_host_is_refused(here: Here, host: str) -> None:
    answer = here.client.get("/healthz", headers={"Host": host})
    assert answer.status_code == 421
    assert "expected the name of this machine" in answer.json()["error"]


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1", "[::1]:8710", "127.0.0.1:99999"])
def test_names_of_this_machine_are_taken(here: Here, host: str) -> None:
    assert here.client.get("/healthz", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Content-Type": "text/plain"},
        {"Content-Type": "application/x-www-form-urlencoded"},
        {"Content-Type": "multipart/form-data; boundary=b"},
        {"X-Flawscope": "0"},
        {"X-Flawscope": "1", "Origin": "https://evil.example"},
        {"X-Flawscope": "1", "Origin": "null"},
        {"Content-Type": "application/json", "Origin": "http://localhost:1"},
    ],
)
def test_what_a_foreign_page_can_send_changes_nothing(here: Here, headers: dict[str, str]) -> None:
    for path in ("asked/trigger", "one/halt", "one/reset"):
        here.refused(f"/api/v1/stations/{path}", 403, headers=headers)
    assert here.one.actors == []
    # The question that a browser asks first has no answer that allows anything.
    asked = here.client.options("/api/v1/stations/one/halt", headers={"Origin": "https://evil.example"})
    assert not any(name.startswith("access-control") for name in asked.headers)


def test_the_own_page_may_change_something(here: Here) -> None:
    here.post("/api/v1/stations/one/halt", 200, headers={**GOES, "Origin": here.url})


def test_a_journal_that_fails_is_a_sentence_and_no_traceback(here: Here, caplog: pytest.LogCaptureFixture) -> None:
    here.line.journal.failure = StorageError("journal.db: could not be read. See to the disk.")
    try:
        assert here.get("/api/v1/parts", 503)["error"] == "journal.db: could not be read. See to the disk."
        here.line.journal.failure = RuntimeError("secret detail")
        assert "secret" not in here.get("/api/v1/parts", 500)["error"]
    finally:
        here.line.journal.failure = None
    until(lambda: "secret detail" in caplog.text)  # after the answer


def test_bytes_that_are_no_request_end_the_connection_alone(here: Here) -> None:
    for data in (b"\0\0\0\0\r\n\r\n", b"GET / HTTP/9\r\n\r\n", b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n\r\n"):
        with socket.create_connection(here.server.address, WAIT_S) as client:
            client.sendall(data)
            assert client.recv(100).startswith(b"HTTP/1.1 400")
    assert here.get("/healthz") == {"ok": True}


def watch(here: Here) -> socket.socket:
    client = socket.create_connection(here.server.address, WAIT_S)
    client.sendall(b"GET /api/v1/events HTTP/1.1\r\nHost: localhost\r\n\r\n")
    return client


def until_said(client: socket.socket, words: bytes) -> bytes:
    data = b""
    while words not in data:
        piece = client.recv(4096)
        assert piece, data
        data += piece
    return data


def test_watchers_hear_that_something_is_new_and_nothing_else(fresh: Here) -> None:
    with watch(fresh) as client:
        until_said(client, b": flawscope")
        fresh.one.push({"left": b"secret"})
        assert b"secret" not in until_said(client, b"data: new\n\n")
        fresh.one.change("error")
        until_said(client, b"data: new\n\n")
    until(lambda: fresh.server.watchers == 0)


def test_many_parts_are_few_news(fresh: Here) -> None:
    with watch(fresh) as client:
        until_said(client, b": flawscope")
        for _ in range(200):
            fresh.one.push({})
        fresh.line.last_seq = 0
        time.sleep(0.5)
        assert 1 <= client.recv(1 << 16).count(b"data: new") < 50


def test_twenty_watch_and_the_next_is_sent_away(fresh: Here) -> None:
    clients = [watch(fresh) for _ in range(news.MOST_WATCHERS)]
    try:
        for client in clients:
            until_said(client, b": flawscope")
        with watch(fresh) as late:
            assert until_said(late, b"}").startswith(b"HTTP/1.1 503")
        clients.pop().close()
        until(lambda: fresh.server.watchers == news.MOST_WATCHERS - 1)
        clients.append(watch(fresh))
        until_said(clients[-1], b": flawscope")
        assert fresh.client.head("/api/v1/events").status_code in (200, 503)
    finally:
        for client in clients:
            client.close()


def test_a_hundred_watchers_come_and_go_and_leave_nothing(fresh: Here) -> None:
    def round_of(count: int) -> None:
        for start in range(0, count, 10):
            clients = [watch(fresh) for _ in range(10)]
            for number, client in enumerate(clients):
                until_said(client, b": flawscope")
                if (start + number) % 2:  # half of them leave without a word
                    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                client.close()
            until(lambda: fresh.server.watchers == 0)

    def left() -> tuple[int, int]:
        server = fresh.server._server
        assert server is not None
        until(lambda: len(server.server_state.connections) <= 1 and len(server.server_state.tasks) == 0)
        gc.collect()
        return threading.active_count(), sum(type(one).__name__ == "RequestResponseCycle" for one in gc.get_objects())

    round_of(10)
    threads, requests = left()
    round_of(100)
    assert left() == (threads, requests)


def test_a_verdict_is_awaited_no_longer_than_the_deadline(tmp_path: Path) -> None:
    here = Here(tmp_path, deadline_ms=300.0)
    try:
        here.one.verdict = None
        begun = time.monotonic()
        found = here.post("/api/v1/stations/one/trigger?wait=1", 202, content=b"x", headers=PNG)
        took = time.monotonic() - begun
        assert found == {"seq": 1, "verdict": None}
        assert took >= 0.3
        assert took < WAIT_S / 2  # far from any other limit; a busy machine may take its time
    finally:
        here.close()


def test_a_request_that_waits_gets_the_verdict_that_comes_later(fresh: Here) -> None:
    fresh.one.verdict = None
    answers: list[Any] = []

    def ask() -> None:
        with httpx.Client(base_url=fresh.url, timeout=WAIT_S, trust_env=False) as client:
            answers.append(client.post("/api/v1/stations/one/trigger?wait=1", content=b"x", headers=PNG).json())

    asking = [threading.Thread(target=ask) for _ in range(5)]
    for thread in asking:
        thread.start()
    until(lambda: len(fresh.one.open) == 5)
    for seq in (3, 1, 5, 2, 4):
        fresh.one.give(seq, "reject" if seq % 2 else "accept")
    for thread in asking:
        thread.join(WAIT_S)
    assert sorted((answer["seq"], answer["verdict"]) for answer in answers) == [
        (1, "reject"),
        (2, "accept"),
        (3, "reject"),
        (4, "accept"),
        (5, "reject"),
    ]


def test_who_leaves_before_the_verdict_is_waited_for_no_longer(fresh: Here) -> None:
    fresh.one.verdict = None
    with socket.create_connection(fresh.server.address, WAIT_S) as client:
        client.sendall(
            b"POST /api/v1/stations/one/trigger?wait=1 HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\n"
            b"Content-Length: 1\r\n\r\nx"
        )
        until(lambda: len(fresh.one.open) == 1)
    server = fresh.server._server
    assert server is not None
    # Long before the deadline of five seconds: nothing of the request is left, and its part still gets a verdict.
    begun = time.monotonic()
    until(lambda: not server.server_state.tasks)
    assert time.monotonic() - begun < 4
    fresh.one.give(1, "accept")
    assert fresh.one.given["accept"] == 1


def test_every_request_that_opened_a_part_opened_exactly_one(fresh: Here) -> None:
    """Whoever leaves in the middle of a request has opened none; everybody else one."""
    answered: list[int] = []

    def send(number: int) -> None:
        if number % 3 == 0:
            with socket.create_connection(fresh.server.address, WAIT_S) as client:
                client.sendall(
                    b"POST /api/v1/stations/one/trigger HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\n"
                    b"Content-Length: 100\r\n\r\nhalf"
                )
            return
        with httpx.Client(base_url=fresh.url, timeout=WAIT_S, trust_env=False) as client:
            answer = client.post("/api/v1/stations/one/trigger?wait=1", content=b"x", headers=PNG)
            answered.append(answer.json()["seq"])

    threads = [threading.Thread(target=send, args=(number,)) for number in range(30)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_S)
    assert sorted(answered) == list(range(1, 21))
    assert fresh.line.last_seq == 20


def test_a_body_that_never_ends_is_given_up(fresh: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "BODY_S", 0.2)
    with socket.create_connection(fresh.server.address, WAIT_S) as client:
        client.sendall(
            b"POST /api/v1/stations/one/trigger HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\n"
            b"Content-Length: 100\r\n\r\nhalf"
        )
        assert until_said(client, b"}").startswith(b"HTTP/1.1 408")
    assert fresh.line.last_seq == 0


def test_a_connection_without_a_request_is_cut_off(fresh: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "HEADER_S", 0.2)
    with socket.create_connection(fresh.server.address, WAIT_S) as client:
        client.sendall(b"GET /healthz HT")
        with contextlib.suppress(ConnectionResetError):  # the other way to see it
            assert client.recv(100) == b""


def test_it_stops_within_two_seconds_whatever_clients_do(tmp_path: Path) -> None:
    """A busy machine may take longer, so the limit here is that of the thread, which must have ended."""
    here = Here(tmp_path)
    here.one.verdict = None
    release = threading.Event()
    here.line.before_status = lambda: release.wait(WAIT_S)
    clients = [watch(here) for _ in range(3)]  # streams
    for client in clients:
        until_said(client, b": flawscope")
    for request in (
        b"GET /api/v1/state HTTP/1.1\r\nHost: localhost\r\n\r\n",  # waits for a line that hangs
        b"POST /api/v1/stations/one/trigger?wait=1 HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\n"
        b"Content-Length: 1\r\n\r\nx",  # waits for a verdict
        b"POST /api/v1/stations/one/trigger HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\n"
        b"Content-Length: 9\r\n\r\nx",  # does not go on
        b"GET /he",  # does not even begin
    ):
        client = socket.create_connection(here.server.address, WAIT_S)
        client.sendall(request)
        clients.append(client)
    until(lambda: len(here.one.open) == 1)
    begun = time.monotonic()
    here.close()
    took = time.monotonic() - begun
    release.set()
    assert not here.server._thread.is_alive()
    assert took < 10
    for client in clients:
        client.close()
    here.server.stop()  # twice is harmless
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(here.server.address, 1.0)


def test_stations_go_on_telling_after_the_end(tmp_path: Path) -> None:
    here = Here(tmp_path)
    here.close()
    here.one.push({})
    here.one.change("halted")
    assert here.one.given["accept"] == 1


def test_an_address_in_use_is_said_before_anything_starts(fresh: Here, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=r"http\.listen: expected a free address, got 127\.0\.0\.1:\d+: Address"):
        LineServer(config(tmp_path, f"127.0.0.1:{fresh.server.address[1]}"), fresh.line)


def write_certificate(folder: Path) -> None:
    from datetime import datetime, timedelta, timezone

    x509 = pytest.importorskip("cryptography.x509", reason="cryptography is not installed")
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(timezone.utc)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    (folder / "cert.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    plain, form = serialization.NoEncryption(), serialization.PrivateFormat.PKCS8
    (folder / "key.pem").write_bytes(key.private_bytes(serialization.Encoding.PEM, form, plain))


def test_with_a_certificate_it_answers_over_tls_and_only_then(tmp_path: Path) -> None:
    import ssl

    write_certificate(tmp_path)
    line = FakeLine()
    line.add("one")
    whole = config(tmp_path)
    tls = Tls(cert=tmp_path / "cert.pem", key=tmp_path / "key.pem")
    with_tls = msgspec.structs.replace(whole, http=HttpOptions(listen="127.0.0.1:0", tls=tls))
    server = LineServer(with_tls, line)
    server.start()
    try:
        trusted = ssl.create_default_context(cafile=str(tmp_path / "cert.pem"))
        url = f"https://localhost:{server.address[1]}/healthz"
        with httpx.Client(verify=trusted, trust_env=False, timeout=WAIT_S) as client:
            assert client.get(url).json() == {"ok": True}
            with pytest.raises(httpx.HTTPError):
                client.get(url.replace("https", "http"))
    finally:
        server.stop()


def test_a_key_that_does_not_fit_is_one_line_at_the_start(tmp_path: Path) -> None:
    write_certificate(tmp_path)
    (tmp_path / "key.pem").write_text("no key")
    tls = Tls(cert=tmp_path / "cert.pem", key=tmp_path / "key.pem")
    line = FakeLine()
    server = LineServer(
        msgspec.structs.replace(config(tmp_path), http=HttpOptions(listen="127.0.0.1:0", tls=tls)), line
    )
    try:
        with pytest.raises(ArgumentError, match=r"http\.tls: expected a certificate .* and its key .*Mend the files"):
            server.start()
    finally:
        server.stop()


def test_a_loop_that_fails_is_started_again(
    fresh: Here, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(self: Any, counter: int) -> bool:
        monkeypatch.undo()
        raise RuntimeError("planted")

    monkeypatch.setattr(serving.Serving, "on_tick", broken)
    until(lambda: "planted" in caplog.text)
    until(lambda: _answers(fresh.url))
    assert fresh.post("/api/v1/stations/one/trigger?wait=1", 200, content=b"x", headers=PNG)["verdict"] == "accept"


def _answers(url: str) -> bool:
    try:
        return bool(httpx.get(f"{url}/healthz", timeout=1.0, trust_env=False).status_code == 200)
    except httpx.HTTPError:
        return False


def test_signals_and_logging_stay_those_of_the_process(fresh: Here) -> None:
    import logging
    import signal

    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert not logging.getLogger("uvicorn").handlers
    assert not logging.getLogger("uvicorn.error").handlers
    assert json.loads(fresh.client.get("/healthz").content) == {"ok": True}
