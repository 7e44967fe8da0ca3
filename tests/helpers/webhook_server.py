"""An HTTP server that notes what is posted to it, and answers as a test wants: well, badly, slowly or not at all."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

Answer = Callable[["Handler"], None]


def status(code: int, body: bytes = b"", **headers: str) -> Answer:
    """Answer with a status."""

    def answer(handler: Handler) -> None:
        handler.send_response(code)
        handler.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(body)

    return answer


def reset(handler: Handler) -> None:
    """Break the connection off."""
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.close_connection = True


def nothing(handler: Handler) -> None:
    """Close the connection without a word."""
    handler.close_connection = True


def silence(handler: Handler) -> None:
    """Answer nothing until the test is over."""
    handler.server.over.wait(60)  # type: ignore[attr-defined]
    handler.close_connection = True


def dripping(handler: Handler) -> None:
    """Send a header that never ends, a few bytes at a time."""
    with contextlib.suppress(OSError):
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Long: ")
        while not handler.server.over.wait(0.02):  # type: ignore[attr-defined]
            handler.wfile.write(b"x")
    handler.close_connection = True


def dripping_at_the_end(handler: Handler) -> None:
    """Answer 200, and a body of a byte at a time on a connection that ends with it."""
    with contextlib.suppress(OSError):
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 65536\r\n\r\n")
        while not handler.server.over.wait(0.02):  # type: ignore[attr-defined]
            handler.wfile.write(b"x")
    handler.close_connection = True


def endless(handler: Handler) -> None:
    """Answer 200 with a body that never ends."""
    with contextlib.suppress(OSError):
        handler.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n")
        while not handler.server.over.is_set():  # type: ignore[attr-defined]
            handler.wfile.write(bytes(1 << 16))
    handler.close_connection = True


def noise(handler: Handler) -> None:
    """Answer what is no HTTP."""
    handler.wfile.write(b"220 mail.example ESMTP secret-greeting\r\n")
    handler.close_connection = True


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        server: Any = self.server
        body = self.rfile.read(int(self.headers["Content-Length"]))
        with server.lock:
            answer = server.answers.pop(0) if server.answers else status(204)
            server.requests.append((self.path, dict(self.headers), json.loads(body)))
            server.answered.append(answer)
        answer(self)

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


class WebhookServer(ThreadingHTTPServer):
    """Takes the answers in turn; when there are none left, 204.

    Attributes:
        answers: The answers.
        requests: Path, headers and content of each request.
        answered: The answer to each request.
        over: Ends answers that wait.
    """

    # The threads of answers that wait end with `over`, and are waited for.
    daemon_threads = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers: list[Answer] = []
        self.requests: list[tuple[str, dict[str, str], list[dict[str, Any]]]] = []
        self.answered: list[Answer] = []
        self.lock = threading.Lock()
        self.over = threading.Event()

    @property
    def port(self) -> int:
        return int(self.server_address[1])

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that break off are part of the tests."""


@contextlib.contextmanager
def webhook_server(tls: tuple[Path, Path] | None = None) -> Iterator[WebhookServer]:
    """Run a server; with certificate and key, over TLS."""
    server = WebhookServer()
    if tls is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*tls)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield server
    finally:
        server.over.set()
        server.shutdown()
        thread.join()
        server.server_close()
