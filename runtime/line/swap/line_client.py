"""A client of a line's own HTTP server, for commands on the same machine."""

from __future__ import annotations

import contextlib
import http.client
import json
import ssl
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from flawscope.errors import ArgumentError, FlawscopeError, RunError
from flawscope.runtime.line.config_checks import address_of
from flawscope.runtime.line.line_config import HttpOptions
from flawscope.text import NOT_JSON, printable

_LOGIN = "/api/v1/login"
_TIMEOUT_S = 60.0
_EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}
_MOST_BYTES = 64 << 20


class LineRefused(FlawscopeError):
    """The line refused what it was asked; the message is its own."""


class LineClient:
    """Asks a line that runs on this machine. Close it, or use it in `with`.

    Args:
        options: The server of its configuration.

    Raises:
        ArgumentError: If it has no server, or one whose port is not known.
    """

    def __init__(self, options: HttpOptions | None) -> None:
        if options is None:
            raise ArgumentError("http: expected a line with a server, got null. Set http in the configuration.")
        host, port = address_of(options.listen)
        if not port:
            raise ArgumentError("http.listen: expected a port that is known, got 0. Set one in the configuration.")
        host = _EVERYWHERE.get(host, host)
        self._address = f"{host}:{port}"
        self._headers = {"X-Flawscope": "1", "Content-Type": "application/json"}
        if options.tls is None:
            self._connection = http.client.HTTPConnection(host, port, timeout=_TIMEOUT_S)
        else:
            # Its own certificate and no other, whatever name is in it: this is the machine that has it.
            context = ssl.create_default_context(cafile=str(options.tls.cert))
            context.check_hostname = False
            self._connection = http.client.HTTPSConnection(host, port, timeout=_TIMEOUT_S, context=context)

    def login(self, name: str, password: str) -> None:
        """Ask as a user from now on.

        Raises:
            LineRefused: If the line has no such user, or the password is wrong.
        """
        answer, headers = self._asked("POST", _LOGIN, json.dumps({"name": name, "password": password}))
        self._headers["X-Flawscope-CSRF"] = str(answer["csrf"])
        self._headers["Cookie"] = (headers.get("Set-Cookie") or "").partition(";")[0]

    def logout(self) -> None:
        """End the session, where there is one."""
        if "Cookie" in self._headers:
            with contextlib.suppress(FlawscopeError):
                self._asked("POST", "/api/v1/logout", "{}")

    def get(self, path: str) -> Any:
        """Return an answer. Raises LineRefused, and RunError where the line does not answer."""
        return self._asked("GET", path, None)[0]

    def post(self, path: str, value: dict[str, Any]) -> Any:
        """Send JSON and return the answer; as `get`."""
        return self._asked("POST", path, json.dumps(value))[0]

    def send(self, path: str, file: IO[bytes], size: int) -> Any:
        """Send an open file and return the answer; as `get`."""
        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(size)}
        return self._asked("POST", path, file, headers)[0]

    def close(self) -> None:
        """End the session and the connection."""
        self.logout()
        self._connection.close()

    def _asked(
        self, method: str, path: str, body: str | IO[bytes] | None, headers: dict[str, str] | None = None
    ) -> tuple[Any, http.client.HTTPMessage]:
        try:
            self._connection.request(method, path, body, {**self._headers, **(headers or {})})
            answer = self._connection.getresponse()
            data = answer.read(_MOST_BYTES)
        except (OSError, http.client.HTTPException) as err:
            self._connection.close()
            raise RunError(
                f"{self._address}: the line does not answer: {err or type(err).__name__}. Does it run?"
            ) from err
        try:
            value = json.loads(data)
        except NOT_JSON as err:
            raise RunError(f"{self._address}: expected the answer of a line, got another. Does it run there?") from err
        if answer.status >= 400:
            who = " Say who asks with --user NAME." if answer.status == 401 and path != _LOGIN else ""
            raise LineRefused(printable(str(value.get("error", answer.reason))) + who)
        return value, answer.headers

    def __enter__(self) -> LineClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@contextlib.contextmanager
def asking(config: Path, user: str | None, password: str) -> Iterator[LineClient]:
    """Yield a client of the line of a configuration, logged in where a user is named."""
    from flawscope.runtime.line.config_file import read_config

    with LineClient(read_config(config).config.http) as client:
        if user is not None:
            client.login(user, password)
        yield client
