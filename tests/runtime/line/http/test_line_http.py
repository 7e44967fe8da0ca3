"""The HTTP interface against a stand-in of a line: every route, and wrong requests."""

from __future__ import annotations

import socket
from typing import Any

import pytest

httpx = pytest.importorskip("httpx", reason="the client of these tests is not installed")
for needed in ("starlette", "uvicorn", "prometheus_client"):
    pytest.importorskip(needed, reason=f"{needed} is not installed (extra `line`)")

from http_here import GOES, PNG, WAIT_S, Here, until  # noqa: E402

from flawscope.errors import StorageError  # noqa: E402
from flawscope.runtime.line.http import bodies  # noqa: E402


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
    assert [station["name"] for station in found["stations"]] == ["one", "two", "asked", "wired", "filed"]
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
        ("/api/v1/parts?station=none", 400, "station: expected one of one, two, asked, wired, filed, got 'none'"),
        (
            "/api/v1/parts?afer=1",
            400,
            "expected no parameters but after, limit, station, verdict, order, before, reviewed, got 'afer'",
        ),
        ("/api/v1/parts?after=1&after=2", 400, "expected after once"),
        ("/api/v1/parts/0", 404, "expected the number of a part on record, got 0"),
        ("/api/v1/parts/" + "9" * 40, 404, "expected the number of a part on record"),
        ("/api/v1/parts/x", 404, "expected a path of the line"),
        ("/nowhere", 404, "expected a path of the line"),
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
        (
            "asked/trigger",
            409,
            {"content": b"x", "headers": PNG},
            "expected no image, as station asked takes none over HTTP, got one: view left has its images from a source "
            "of the kind genicam. Leave it out,",
        ),
        ("asked/trigger", 400, {"json": {"a": 1}}, "expected an empty body or {}"),
        ("wired/trigger", 409, {"content": b"x" * 9000, "headers": PNG}, "station wired takes none over HTTP"),
        ("wired/trigger", 409, {"headers": GOES}, "expected a station with a software trigger, got wired"),
        # More than a small body may have, and no word of its size.
        (
            "filed/trigger",
            409,
            {"content": b"x" * 9000, "headers": PNG},
            "view left has its images from the folder /in/parts. Put the image into that folder, name a station with "
            "the source `push`, or give this one that source.",
        ),
        ("filed/trigger", 409, {"content": (b"x" for _ in range(9000)), "headers": PNG}, "the folder /in/parts"),
        ("filed/trigger", 409, {"headers": GOES}, "whose parts begin with an image: view left has its images from the"),
        ("one/halt", 413, {"content": b"x" * 9000, "headers": PNG}, "at most 4,096 bytes, got a larger one. Send less"),
        (
            "none/trigger",
            404,
            {"headers": GOES},
            "expected one of the stations one, two, asked, wired, filed, got 'none'",
        ),
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
    assert here.one.actors == ["halt local", "acknowledge local"]


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
