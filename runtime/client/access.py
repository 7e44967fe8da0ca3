"""How a client shows who it is, and which servers it believes: a token, headers, and certificates of one's own.

Secrets are named (`env:NAME`, `file:PATH`) and read for each request, so that a renewed one is found.
"""

from __future__ import annotations

import os
import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from flawscope.errors import ArgumentError
from flawscope.runtime.client.address import Address
from flawscope.secrets import is_this_machine, read_secret, read_token
from flawscope.text import printable

TOKEN_VARIABLE = "FLAWSCOPE_TRITON_TOKEN"
"""Environment variable that says where the bearer token is, never the token itself."""
HEADERS_VARIABLE = "FLAWSCOPE_TRITON_HEADERS"
"""Environment variable with further headers, `NAME=PLACE,NAME=PLACE`; a place says where the value is."""
CA_VARIABLE = "FLAWSCOPE_TRITON_CA"
"""Environment variable with the file of certificates that are trusted."""

_BEARER = "authorization"
_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]*")
_OF_THE_PROTOCOLS = re.compile(
    r"host|connection|te|trailer|upgrade|user-agent|transfer-encoding|expect|content-.*|accept-.*|keep-alive|grpc-.*|"
    r"inference-header-.*|proxy-.*|.*-bin"
)
"""Headers that the protocols set themselves, or read in another way."""


@dataclass(frozen=True)
class Access:
    """What goes with each request, and which certificates are trusted.

    Attributes:
        token: Where the bearer token is; None for none.
        headers: Names of further headers, in small letters, and where their values are.
        ca: Certificates that are trusted, in place of the system's; None for those.
    """

    token: str | None = None
    headers: tuple[tuple[str, str], ...] = ()
    ca: Path | None = None

    @property
    def places(self) -> str:
        """Where the secrets are, for messages; empty where nothing is sent."""
        return " and ".join(printable(place) for place in (self.token, *(at for _, at in self.headers)) if place)

    def read(self) -> Sent:
        """Read what goes with a request.

        Raises:
            ArgumentError: If it is not there, or no header can hold it. The message never holds it.
        """
        headers = {name: _value_of(place) for name, place in self.headers}
        secrets = list(headers.values())
        if self.token is not None:
            token = read_token(self.token)
            secrets.append(token)
            headers[_BEARER] = f"Bearer {token}"
        return Sent(headers, tuple(secrets))


@dataclass(frozen=True)
class Sent:
    """What goes with one request.

    Attributes:
        headers: Name -> value.
        secrets: What no message may hold.
    """

    headers: Mapping[str, str]
    secrets: tuple[str, ...]

    def __repr__(self) -> str:
        """Return no secret: tracebacks may show it."""
        return f"Sent({', '.join(self.headers)})"


def given_access(
    address: Address,
    token: str | None = None,
    headers: Mapping[str, str] | None = None,
    ca: Path | str | None = None,
) -> Access:
    """Return what goes with each request to a server.

    Args:
        address: The server.
        token: Where the bearer token is, `env:NAME` or `file:PATH`; None takes `FLAWSCOPE_TRITON_TOKEN`.
        headers: Name of a header -> where its value is; None takes `FLAWSCOPE_TRITON_HEADERS`.
        ca: File of certificates (PEM); None takes `FLAWSCOPE_TRITON_CA`.

    Raises:
        ArgumentError: If a secret or the certificates cannot be read, a header is none that can be set, or a secret
            would go through the network in the open.
    """
    token = os.environ.get(TOKEN_VARIABLE) or None if token is None else token
    named = _named_in_environment() if headers is None else dict(headers)
    found = os.environ.get(CA_VARIABLE) or None if ca is None else ca
    places = {_checked_name(name): place for name, place in named.items()}
    if len(places) < len(named) or (token is not None and _BEARER in places):
        raise ArgumentError(
            f"{HEADERS_VARIABLE}: expected each header once, got one twice; a token is {_BEARER}. Leave one out."
        )
    access = Access(token, tuple(places.items()), None if found is None else Path(found))
    host = address.place.rpartition(":")[0].removeprefix("[").removesuffix("]")
    if access.places and not address.is_secure and not is_this_machine(host):
        raise ArgumentError(
            f"server: expected {address.protocol}s:// (TLS) where a token or header is sent, got {address}, where "
            "anybody on the way reads it. Change the address, or leave them out."
        )
    if access.ca is not None:
        _check_certificates(access.ca, address)
    access.read()
    return access


def _named_in_environment() -> dict[str, str]:
    named: dict[str, str] = {}
    for entry in filter(None, os.environ.get(HEADERS_VARIABLE, "").split(",")):
        name, equals, place = (text.strip() for text in entry.partition("="))
        if not equals or name in named:
            # What stands here may be the secret itself.
            raise ArgumentError(
                f"{HEADERS_VARIABLE}: expected NAME=env:VARIABLE or NAME=file:PATH, commas between them, each name "
                "once, got something else."
            )
        named[name] = place
    return named


def _checked_name(name: str) -> str:
    small = name.lower()
    if _NAME.fullmatch(small) is None or _OF_THE_PROTOCOLS.fullmatch(small) is not None:
        raise ArgumentError(
            f"{HEADERS_VARIABLE}: expected the name of a header such as x-api-key, and none that the protocol sets "
            f"itself, got {printable(name)[:80]!r}."
        )
    return small


def _value_of(place: str) -> str:
    value = read_secret(place)
    if not value.isascii() or value != value.strip():
        raise ArgumentError(
            f"{printable(place)}: expected the value of a header, ASCII characters without spaces around them, got "
            "others."
        )
    return value


def _check_certificates(path: Path, address: Address) -> None:
    if not address.is_secure:
        raise ArgumentError(
            f"{CA_VARIABLE}: expected {address.protocol}s:// (TLS) with certificates, got {address}. Change the "
            "address, or leave them out."
        )
    try:
        ssl.create_default_context(cafile=str(path))
    except OSError as err:  # an SSLError is one
        reason = "it holds no certificate" if isinstance(err, ssl.SSLError) else err.strerror or str(err)
        raise ArgumentError(
            f"{CA_VARIABLE}: expected certificates (PEM) in {printable(str(path))}, but {reason}. Name another file."
        ) from None
