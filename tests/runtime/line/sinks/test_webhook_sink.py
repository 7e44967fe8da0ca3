from __future__ import annotations

import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import webhook_server as answers
from line_control import wait_for
from memory_journal import MemoryJournal, part_entry
from own_certificates import write_certificate
from webhook_server import Answer, WebhookServer, status, webhook_server

from flawscope.errors import ArgumentError
from flawscope.runtime.line.sinks.runner import SinkRunner
from flawscope.runtime.line.sinks.sink import SinkError
from flawscope.runtime.line.sinks.table import WebhookSink
from flawscope.runtime.line.sinks.webhook import Webhook


def sink_to(server: WebhookServer, **changes: Any) -> Webhook:
    scheme = changes.pop("scheme", "http")
    chosen = {"url": f"{scheme}://127.0.0.1:{server.port}/parts?key=query-secret", "timeout_s": 30.0} | changes
    return Webhook(WebhookSink(**chosen), "press")


def test_entries_are_posted_as_an_array_with_the_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MES_TOKEN", "abc-123")
    with webhook_server() as server:
        sink_to(server, token="env:MES_TOKEN").send([part_entry(1), part_entry(2)])
        ((path, headers, content),) = server.requests
    assert path == "/parts?key=query-secret"
    assert headers["Authorization"] == "Bearer abc-123"
    assert headers["Content-Type"] == "application/json"
    assert content == [part_entry(1), part_entry(2)]


def test_a_renewed_token_is_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    place = tmp_path / "token"
    place.write_text("old\n")
    with webhook_server() as server:
        sink = sink_to(server, token=f"file:{place}")
        place.write_text("new\n")
        sink.send([part_entry(1)])
        assert server.requests[0][1]["Authorization"] == "Bearer new"
        place.unlink()
        with pytest.raises(SinkError, match="expected a file with a secret"):
            sink.send([part_entry(1)])


@pytest.mark.parametrize("code", [200, 201, 202, 204, 299])
def test_two_hundreds_are_success(code: int) -> None:
    with webhook_server() as server:
        server.answers = [status(code)]
        sink_to(server).send([part_entry(1)])


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (status(500, b"secret-of-the-server"), "answered 500$"),
        (status(400), "answered 400$"),
        (status(304), "answered 304; redirects"),
        (status(302, Location="http://127.0.0.1:9/elsewhere"), "answered 302; redirects are not followed"),
        (answers.nothing, "closed the connection without an answer"),
        (answers.noise, "its answer is no HTTP$"),
    ],
)
def test_all_else_is_an_error_that_shows_no_secret(
    answer: Answer, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MES_TOKEN", "token-secret")
    with webhook_server() as server:
        server.answers = [answer]
        with pytest.raises(SinkError, match=message) as error:
            sink_to(server, token="env:MES_TOKEN").send([part_entry(1)])
        assert len(server.requests) == 1
    assert "secret" not in str(error.value)
    assert f"127.0.0.1:{server.port}" in str(error.value)


def test_a_connection_that_is_reset_or_refused_is_an_error() -> None:
    with webhook_server() as server:
        server.answers = [answers.reset]
        with pytest.raises(SinkError, match=r"reset by peer|without an answer"):
            sink_to(server).send([part_entry(1)])
        sink = sink_to(server)
    with pytest.raises(SinkError, match="Connection refused"):
        sink.send([part_entry(1)])


@pytest.mark.parametrize("answer", [answers.silence, answers.dripping])
def test_a_slow_server_is_an_error_when_the_time_is_over(answer: Answer) -> None:
    with webhook_server() as server:
        server.answers = [answer]
        began = time.monotonic()
        # On a busy machine the time may be over before it is connected.
        with pytest.raises(SinkError, match=r"no answer within 0\.3 s|does not answer"):
            sink_to(server, timeout_s=0.3).send([part_entry(1)])
        assert time.monotonic() - began < 20


def test_the_body_of_an_answer_is_read_until_the_time_is_over() -> None:
    """Its status has come: the entries have arrived."""
    with webhook_server() as server:
        server.answers = [answers.dripping_at_the_end]
        began = time.monotonic()
        sink_to(server, timeout_s=1.0).send([part_entry(1)])
        assert time.monotonic() - began < 20


def test_an_answer_without_end_is_read_for_a_while_only() -> None:
    with webhook_server() as server:
        server.answers = [answers.endless]
        sink_to(server).send([part_entry(1)])


def test_closing_breaks_off_what_waits() -> None:
    with webhook_server() as server:
        server.answers = [answers.silence]
        sink = sink_to(server, timeout_s=600.0)
        errors: list[Exception] = []

        def send() -> None:
            try:
                sink.send([part_entry(1)])
            except SinkError as err:
                errors.append(err)

        thread = threading.Thread(target=send)
        thread.start()
        wait_for(lambda: bool(server.requests))
        sink.close()
        thread.join(30)
        assert len(errors) == 1
        with pytest.raises(SinkError, match="closed"):
            sink.send([part_entry(1)])


def test_tls_is_verified(tmp_path: Path) -> None:
    certificate = write_certificate(tmp_path / "server")
    other, _ = write_certificate(tmp_path / "other")
    with webhook_server(certificate) as server:
        with pytest.raises(SinkError, match="its certificate is not trusted"):
            sink_to(server, scheme="https").send([part_entry(1)])
        with pytest.raises(SinkError, match="its certificate is not trusted"):
            sink_to(server, scheme="https", ca=other).send([part_entry(1)])
        assert server.requests == []
        sink_to(server, scheme="https", ca=certificate[0]).send([part_entry(1)])
        assert len(server.requests) == 1


def test_a_certificate_of_another_address_is_refused(tmp_path: Path) -> None:
    certificate = write_certificate(tmp_path, address="127.0.0.2")
    with webhook_server(certificate) as server, pytest.raises(SinkError, match="IP address mismatch"):
        sink_to(server, scheme="https", ca=certificate[0]).send([part_entry(1)])


def test_a_server_without_tls_is_an_error_of_https() -> None:
    with webhook_server() as server, pytest.raises(SinkError, match="webhook https"):
        sink_to(server, scheme="https").send([part_entry(1)])


@pytest.mark.parametrize(
    "url", ["http://", "https://host:99999/", "http://h o s t/", "http://host/\x01", "http://[::1/"]
)
def test_an_address_that_is_none_is_one_line(url: str) -> None:
    with pytest.raises(ArgumentError, match=r"^sinks, webhook: expected a `url`") as error:
        Webhook(WebhookSink(url=url), "press")
    assert "\n" not in str(error.value)


def test_a_token_goes_over_tls_or_stays_on_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MES_TOKEN", "abc")
    with pytest.raises(ArgumentError, match="expected https:// for a token"):
        Webhook(WebhookSink(url="http://mes.example/parts", token="env:MES_TOKEN"), "press")
    for host in ("localhost", "[::1]", "127.0.0.1:9"):
        Webhook(WebhookSink(url=f"http://{host}/parts", token="env:MES_TOKEN"), "press")


@pytest.mark.parametrize("token", ["two words", "täglich"])
def test_a_token_that_no_header_takes_is_refused_without_being_shown(
    token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MES_TOKEN", token)
    with pytest.raises(ArgumentError, match=r"^env:MES_TOKEN: expected a token of ASCII") as error:
        Webhook(WebhookSink(url="https://mes.example", token="env:MES_TOKEN"), "press")
    assert token not in str(error.value)


@pytest.mark.parametrize("content", [None, "no certificate"])
def test_certificates_that_are_none_are_one_line(tmp_path: Path, content: str | None) -> None:
    ca = tmp_path / "ca.pem"
    if content is not None:
        ca.write_text(content)
    with pytest.raises(ArgumentError, match=r"^sinks, webhook https://mes\.example: expected certificates"):
        Webhook(WebhookSink(url="https://mes.example", ca=ca), "press")


@pytest.mark.long
def test_a_backlog_of_a_day_arrives_in_order_through_a_server_that_fails() -> None:
    """Acceptance test 12: 10,000 entries; 500, resets, silence, redirects and no HTTP in between."""
    journal = MemoryJournal()
    journal.add_parts(10_000)
    bad: list[Answer] = [status(500), answers.reset, answers.nothing, status(302), answers.noise, answers.silence]
    with webhook_server() as server:
        server.answers = [
            status(204),
            *bad,
            status(204),
            *[answer for kind in bad[:5] for answer in (kind, status(200))],
        ]
        sink = sink_to(server, timeout_s=1.0)
        runner = SinkRunner("mes", sink, journal, wait=lambda seconds: False)
        runner.start()
        wait_for(lambda: journal.cursors.get("mes") == 10_000, 120)
        assert runner.stop(10.0)
        assert (runner.sent, runner.errors) == (10_000, 11)
        accepted = [
            entry["link"]
            for (_, _, content), answer in zip(server.requests, server.answered, strict=True)
            if answer not in bad
            for entry in content
        ]
    assert accepted == list(range(1, 10_001))


def test_a_port_that_nobody_listens_on_is_an_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(SinkError, match="Connection refused"):
        Webhook(WebhookSink(url=f"http://127.0.0.1:{port}/"), "press").send([part_entry(1)])
