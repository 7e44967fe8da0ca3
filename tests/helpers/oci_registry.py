"""A registry of the OCI distribution specification on loopback, as small as one can be, and as bad as a test wants.

It asks for a token or a password where it is told to, compares no signature, and keeps all blobs in memory.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import re
import ssl
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

Answer = Callable[["Handler"], None]


def status(code: int, body: bytes = b"", **headers: str) -> Answer:
    """Answer with a status."""

    def answer(handler: Handler) -> None:
        handler.say(code, body, {name.replace("_", "-"): text for name, text in headers.items()})

    return answer


def endless(handler: Handler) -> None:
    """Answer 200 with a body that never ends."""
    with contextlib.suppress(OSError):
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
        while not handler.registry.over.is_set():
            handler.wfile.write(bytes(1 << 16))
            handler.registry.sent += 1 << 16
    handler.close_connection = True


def dripping(handler: Handler) -> None:
    """Answer 200, and then a byte now and then."""
    with contextlib.suppress(OSError):
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
        while not handler.registry.over.wait(0.02):
            handler.wfile.write(b"x")
    handler.close_connection = True


def dripping_at_the_end(handler: Handler) -> None:
    """The same on a connection that ends with the answer, as most servers say it."""
    with contextlib.suppress(OSError):
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 1000000\r\n\r\n")
        while not handler.registry.over.wait(0.02):
            handler.wfile.write(b"x")
    handler.close_connection = True


def cut(at: int) -> Answer:
    """Answer a blob honestly, and break off behind so many bytes."""

    def answer(handler: Handler) -> None:
        data = handler.registry.blobs[handler.path.rsplit("/", 1)[1]]
        with contextlib.suppress(OSError):
            handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(data) + data[:at])
        handler.close_connection = True

    return answer


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    @property
    def registry(self) -> OciRegistry:
        server: Any = self.server
        return server  # type: ignore[no-any-return]

    def say(self, code: int, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
        self.send_response(code)
        for name, text in (headers or {}).items():
            self.send_header(name, text)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def answered(self) -> None:
        registry, path = self.registry, urlsplit(self.path).path
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        with registry.lock:
            registry.requests.append((self.command, self.path, dict(self.headers)))
            bad = next((one for one in registry.bad if re.search(one[0], self.path)), None)
            if bad is not None:
                registry.bad.remove(bad)
        if bad is not None:
            bad[1](self)
        elif path == "/token":
            self._token()
        elif not self._is_known():
            pass
        elif match := re.fullmatch(r"/v2/(.+?)/(manifests|blobs|tags)/(.+)", path) or re.fullmatch(
            r"/v2/(.+?)/(blobs/uploads)/(.*)", path
        ):
            self._answer(match[2] if match[3] != "uploads/" else "uploads", match[3], body)
        else:
            self.say(404)

    do_GET = do_HEAD = do_POST = do_PUT = answered

    def _is_known(self) -> bool:
        registry = self.registry
        if registry.token is not None and self.headers.get("Authorization") != f"Bearer {registry.token}":
            realm = registry.realm or f"{registry.url}/token"
            asks = f'Bearer realm="{realm}",service="registry",scope="repository:x:pull"'
            self.say(401, b"{}", {"WWW-Authenticate": asks})
            return False
        if registry.token is None and registry.password is not None and not self._has_password():
            self.say(401, b"{}", {"WWW-Authenticate": 'Basic realm="registry"'})
            return False
        return True

    def _has_password(self) -> bool:
        user = base64.b64encode(f"line:{self.registry.password}".encode()).decode()
        return self.headers.get("Authorization") == f"Basic {user}"

    def _token(self) -> None:
        if self.registry.password is not None and not self._has_password():
            self.say(401, b"{}")
            return
        query = parse_qs(urlsplit(self.path).query)
        self.registry.scopes += query.get("scope", [])
        self.say(200, json.dumps({"token": self.registry.token}).encode())

    def _answer(self, kind: str, name: str, body: bytes) -> None:
        registry = self.registry
        if kind == "tags":
            self.say(200, json.dumps({"name": "x", "tags": sorted(registry.tags)}).encode())
        elif kind == "uploads" and self.command == "POST":
            # Relative, with a query of its own, as some registries do.
            self.say(202, headers={"Location": f"{urlsplit(self.path).path}1?state=abc"})
        elif kind in ("uploads", "blobs") and self.command == "PUT":
            digest = parse_qs(urlsplit(self.path).query)["digest"][0]
            is_right = digest == f"sha256:{hashlib.sha256(body).hexdigest()}"
            if is_right:
                registry.blobs[digest] = body
            self.say(201 if is_right else 400)
        elif kind == "manifests" and self.command == "PUT":
            digest = f"sha256:{hashlib.sha256(body).hexdigest()}"
            registry.blobs[digest] = body
            registry.tags[name] = digest
            self.say(201)
        else:
            self._blob(registry.tags.get(name, name))

    def _blob(self, digest: str) -> None:
        data = self.registry.blobs.get(digest)
        if data is None:
            self.say(404, b'{"errors":[{"code":"UNKNOWN"}]}')
            return
        match = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if match and self.registry.knows_ranges:
            first = int(match[1])
            self.say(206, data[first:], {"Content-Range": f"bytes {first}-{len(data) - 1}/{len(data)}"})
        else:
            self.say(200, data, {"Docker-Content-Digest": digest})

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


class OciRegistry(ThreadingHTTPServer):
    """A registry.

    Attributes:
        blobs: Digest -> bytes, of manifests too.
        tags: Tag -> digest.
        bad: `(pattern of a path, answer)`: each is the answer to one request, the first that fits.
        requests: Method, path and headers of each request.
        password: Password of the user `line`; None for none.
        token: Token that it asks for; None for none.
        realm: Address of its token server; empty for its own.
        scopes: Scopes that tokens were asked for.
        knows_ranges: Whether it sends a part of a blob.
        sent: Bytes of endless bodies.
        over: Ends answers that wait.
    """

    daemon_threads = False

    def __init__(self, tls: tuple[Path, Path] | None = None) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.blobs: dict[str, bytes] = {}
        self.tags: dict[str, str] = {}
        self.bad: list[tuple[str, Answer]] = []
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.password: str | None = None
        self.token: str | None = None
        self.realm = ""
        self.scopes: list[str] = []
        self.knows_ranges = True
        self.sent = 0
        self.lock = threading.Lock()
        self.over = threading.Event()
        self._is_tls = tls is not None
        if tls is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*tls)
            self.socket = context.wrap_socket(self.socket, server_side=True)

    @property
    def port(self) -> int:
        return int(self.server_address[1])

    @property
    def url(self) -> str:
        return f"{'https' if self._is_tls else 'http'}://127.0.0.1:{self.port}"

    @property
    def place(self) -> str:
        """Its repository as flawscope names it."""
        return f"oci{'' if self._is_tls else '+http'}://127.0.0.1:{self.port}/factory/top"

    def retag(self, release: str, change: Callable[[dict[str, Any]], dict[str, Any]]) -> str:
        """Store a changed manifest, and give it the tag `stable`; returns its digest."""
        data = json.dumps(change(json.loads(self.blobs[release]))).encode()
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        self.blobs[digest] = data
        self.tags["stable"] = digest
        return digest

    def asked(self, pattern: str) -> list[str]:
        """Return the paths of requests that fit a pattern, with the method before."""
        with self.lock:
            return [f"{method} {path}" for method, path, _ in self.requests if re.search(pattern, path)]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that break off are part of the tests."""


@contextlib.contextmanager
def oci_registry(tls: tuple[Path, Path] | None = None) -> Iterator[OciRegistry]:
    """Run a registry; with certificate and key, over TLS."""
    server = OciRegistry(tls)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield server
    finally:
        server.over.set()
        server.shutdown()
        thread.join()
        server.server_close()
