"""Where an inference server is: `grpc://HOST:PORT`, `http://HOST:PORT`, or `grpcs` and `https` with TLS."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from urllib.parse import urlsplit

from flawscope.errors import ArgumentError, BackendError
from flawscope.text import printable

SERVER_VARIABLE = "FLAWSCOPE_TRITON"
"""Environment variable with the address of the server that the backend `triton` asks."""
TIMEOUT_VARIABLE = "FLAWSCOPE_TRITON_TIMEOUT"
"""Environment variable with the seconds that the server has for a request."""
TIMEOUT_S = 10.0
"""Seconds for a request where nothing else is said."""

_SCHEMES = {"grpc": ("grpc", False), "grpcs": ("grpc", True), "http": ("http", False), "https": ("http", True)}
"""Scheme -> protocol, and whether it is over TLS."""


@dataclass(frozen=True)
class Address:
    """The address of a server.

    Attributes:
        protocol: `grpc` or `http`.
        place: `HOST:PORT`.
        is_secure: Whether it is asked over TLS.
        model: Name of the model there; empty for the bundle's.
    """

    protocol: str
    place: str
    is_secure: bool
    model: str = ""

    def __str__(self) -> str:
        """Return the address without the model."""
        return f"{self.protocol}{'s' if self.is_secure else ''}://{self.place}"


def read_address(text: str, what: str = "server") -> Address:
    """Return the address that a text names, with the model behind a slash where one is named.

    Args:
        text: The text, such as `grpc://localhost:8001` or `http://localhost:8000/bottle`.
        what: What it is called in messages.

    Raises:
        ArgumentError: If it is no such address.
    """
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError:  # a port that is no number, half of an IPv6 address
        host = port = None
    # A user or a query would be passed over in silence, and a port that is guessed may be that of another service.
    if host is None or port is None or parts.scheme not in _SCHEMES or "@" in parts.netloc or parts.query:
        raise ArgumentError(
            f"{what}: expected the address of a server, {', '.join(_SCHEMES)}, as in "
            f"grpc://HOST:8001 or http://HOST:8000/MODEL, got {_shown(text)!r}."
        )
    model = parts.path.removeprefix("/")
    if "/" in model or parts.fragment:
        raise ArgumentError(f"{what}: expected one name behind the port, that of the model, got {_shown(text)!r}.")
    place = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    protocol, is_secure = _SCHEMES[parts.scheme]
    return Address(protocol, place, is_secure, model)


def _shown(text: str) -> str:
    """Return a text without the password or key that somebody wrote into it."""
    before, at, rest = text.rpartition("@")
    shown = f"{before.partition('://')[0]}://***@{rest}" if at else text
    beginning, question, _ = shown.partition("?")
    return printable(f"{beginning}?***" if question else shown)


def address_from_environment() -> Address:
    """Return the address that `FLAWSCOPE_TRITON` names.

    Raises:
        ArgumentError: If it is no address.
        BackendError: If the variable is not set.
    """
    text = os.environ.get(SERVER_VARIABLE, "")
    if not text:
        raise BackendError(
            f"backend triton: expected the address of a server, got none. Set {SERVER_VARIABLE}=grpc://HOST:8001."
        )
    return read_address(text, SERVER_VARIABLE)


def request_limit(given: float | None = None) -> float:
    """Return the seconds that the server has for a request.

    Args:
        given: What the caller asked for; None takes `FLAWSCOPE_TRITON_TIMEOUT`, or the default.

    Raises:
        ArgumentError: If that is no positive number of seconds.
    """
    text = os.environ.get(TIMEOUT_VARIABLE, "") if given is None else given
    try:
        seconds = TIMEOUT_S if text == "" else float(text)
    except ValueError:
        seconds = math.nan
    # No word for no limit: a part that waits for ever is neither accepted nor rejected.
    if not 0 < seconds < math.inf:
        name = TIMEOUT_VARIABLE if given is None else "request_timeout_s"
        raise ArgumentError(f"{name}: expected a positive number of seconds, got {text!r}.")
    return seconds
