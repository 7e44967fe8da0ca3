"""Answers over HTTP that are none: broken, endless, late or a page for people; and connections that are kept."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest

from flawscope.errors import DeviceError
from flawscope.runtime.client.access import Access
from flawscope.runtime.client.address import read_address
from flawscope.runtime.client.transport import Unreachable

pytest.importorskip("tritonclient.http", reason='needs pip install "flawscope[client]"')

from flawscope.runtime.client import http_transport
from flawscope.runtime.client.http_transport import HttpTransport

IMAGES = np.zeros((1, 4, 4, 3), np.uint8)
OK = b"HTTP/1.1 200 OK\r\n"


class Speaker:
    """Answers each connection with some bytes; with `drip` with one more now and then, until it is over."""

    def __init__(self, answer: bytes, *, drip: bool) -> None:
        self.connections = 0
        self._answer, self._drip = answer, drip
        self.over = threading.Event()
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._socket.accept()
                self.connections += 1
                threading.Thread(target=self._speak, args=(connection,), daemon=True).start()

    def _speak(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            while connection.recv(1 << 16):
                connection.sendall(self._answer)
                while self._drip and not self.over.wait(0.02):
                    connection.sendall(b"x")
                if b"close" in self._answer or b"Content-Length: 9" in self._answer:
                    return

    def close(self) -> None:
        self.over.set()
        self._socket.close()


@contextlib.contextmanager
def speaking(answer: bytes, *, drip: bool = False) -> Iterator[tuple[Speaker, HttpTransport]]:
    speaker = Speaker(answer, drip=drip)
    transport = HttpTransport(read_address(speaker.url), Access())
    try:
        yield speaker, transport
    finally:
        transport.close()
        speaker.close()


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (b"SSH-2.0-OpenSSH\r\n\r\n", "its answer is no HTTP"),
        (OK + b"Content-Length: 999\r\n\r\nhalf", "it ended the connection without an answer"),
        (OK + b"Content-Length: 4\r\n\r\n{}{}", "its answer cannot be read"),
        (OK + b"Inference-Header-Content-Length: x\r\nContent-Length: 2\r\n\r\n[]", "its answer cannot be read"),
        (
            b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 6\r\n\r\n<html>",
            "the server failed: status 502",
        ),
        (
            b"HTTP/1.1 302 Found\r\nLocation: http://other/\r\nContent-Length: 0\r\n\r\n",
            "the server failed: status 302",
        ),
    ],
)
def test_what_is_no_answer_is_one_line(answer: bytes, message: str) -> None:
    with speaking(answer) as (_, transport), pytest.raises(DeviceError, match=message):
        transport.infer("tiny", "1", "1", IMAGES, 20.0)


def test_an_answer_without_an_end_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_transport, "_MOST_WORDS", 100)
    with (
        speaking(OK + b"Connection: close\r\n\r\n" + bytes(5000)) as (_, transport),
        pytest.raises(DeviceError, match="its answer is longer than 168 bytes"),
    ):
        transport.infer("tiny", "1", "1", IMAGES, 20.0)


@pytest.mark.parametrize("headers", [b"Content-Length: 8000\r\n", b"Connection: close\r\nContent-Length: 8000\r\n"])
def test_an_answer_that_drips_is_late_as_a_whole(headers: bytes) -> None:
    with speaking(OK + headers + b"\r\n", drip=True) as (_, transport):
        began = time.monotonic()
        with pytest.raises(DeviceError, match=r"expected an answer within 0\.3 s, got none"):
            transport.infer("tiny", "1", "1", IMAGES, 0.3)
        assert time.monotonic() - began < 20


def test_a_connection_is_kept_and_all_of_them_end() -> None:
    answer = b'{"name": "tiny"}'
    with speaking(OK + b"Content-Length: %d\r\n\r\n" % len(answer) + answer) as (speaker, transport):
        for _ in range(3):
            assert transport.config("tiny", "1", 20.0) == {"name": "tiny"}
        threads = [threading.Thread(target=transport.config, args=("tiny", "1", 20.0)) for _ in range(2)]
        for thread in threads:
            thread.start()
            thread.join()
        assert speaker.connections == 1, "of any thread"
        transport.close()
        with pytest.raises(DeviceError, match="closed"):
            transport.config("tiny", "1", 20.0)


def test_after_a_connection_that_ended_none_of_the_others_is_used() -> None:
    """A server that was started anew has ended all of them: the second attempt must not meet the next one."""
    answer = b"{}"
    with speaking(OK + b"Content-Length: %d\r\n\r\n" % len(answer) + answer) as (speaker, transport):
        first, second = (transport._taken(20.0) for _ in range(2))
        for connection in (first, second):
            connection.connect()
            connection.sock.shutdown(socket.SHUT_RDWR)
            transport._give_back(connection, is_whole=True)
        with pytest.raises(Unreachable):
            transport.config("tiny", "1", 20.0)
        assert transport.config("tiny", "1", 20.0) == {}
        assert speaker.connections == 3
