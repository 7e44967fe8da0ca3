"""The HTTP interface and its clients: watchers, those that wait, leave or hang, TLS, start and end."""

from __future__ import annotations

import contextlib
import gc
import json
import logging
import signal
import socket
import threading
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
from line_view_stand_in import FakeLine

httpx = pytest.importorskip("httpx", reason="the client of these tests is not installed")
for needed in ("starlette", "uvicorn", "prometheus_client"):
    pytest.importorskip(needed, reason=f"{needed} is not installed (extra `line`)")

from http_here import PNG, WAIT_S, Here, config, until  # noqa: E402

from flawscope.errors import ArgumentError  # noqa: E402
from flawscope.runtime.line.http import bodies, listening, news, serving  # noqa: E402
from flawscope.runtime.line.http.server import LineServer  # noqa: E402
from flawscope.runtime.line.line_config import HttpOptions  # noqa: E402
from flawscope.runtime.line.sinks.table import Tls  # noqa: E402


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


def test_whoever_opens_hundreds_of_connections_is_hung_up_on(fresh: Here) -> None:
    """Those that say nothing count too: with TLS they have a minute, and the process only so many files."""
    clients: list[socket.socket] = []
    try:
        for _ in range(listening.MOST_OPEN + 60):
            clients.append(socket.create_connection(fresh.server.address, timeout=WAIT_S))
            clients[-1].setblocking(False)
        until(lambda: sum(has_ended(client) for client in clients) >= 60)
        assert sum(has_ended(client) for client in clients) <= 61
    finally:
        for client in clients:
            client.close()
    until(lambda: _answers(fresh.url))


def has_ended(client: socket.socket) -> bool:
    try:
        return client.recv(1, socket.MSG_PEEK) == b""
    except BlockingIOError:
        return False
    except ConnectionResetError:
        return True


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


def test_who_leaves_before_the_verdict_is_waited_for_no_longer(tmp_path: Path) -> None:
    fresh = Here(tmp_path, deadline_ms=120_000.0)
    try:
        leave_before_the_verdict(fresh)
    finally:
        fresh.close()


def leave_before_the_verdict(fresh: Here) -> None:
    fresh.one.verdict = None
    with socket.create_connection(fresh.server.address, WAIT_S) as client:
        client.sendall(
            b"POST /api/v1/stations/one/trigger?wait=1 HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\n"
            b"Content-Length: 1\r\n\r\nx"
        )
        until(lambda: len(fresh.one.open) == 1)
    server = fresh.server._server
    assert server is not None
    # Long before the deadline: nothing of the request is left, and its part still gets a verdict.
    until(lambda: not server.server_state.tasks)
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


@pytest.fixture
def handlers() -> list[Any]:
    return _handlers()


def _handlers() -> list[Any]:
    return [signal.getsignal(number) for number in signal.valid_signals()]


def test_signals_and_logging_stay_those_of_the_process(handlers: list[Any], fresh: Here) -> None:
    # `handlers` comes first: the server of `fresh` has not been started when they are read.
    assert json.loads(fresh.client.get("/healthz").content) == {"ok": True}
    assert _handlers() == handlers
    assert not logging.getLogger("uvicorn").handlers
    assert not logging.getLogger("uvicorn.error").handlers
