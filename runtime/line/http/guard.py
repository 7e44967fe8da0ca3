"""What every request passes before it is answered, and every answer carries.

Loopback is no wall: any page that a browser on this machine shows may send requests to it. So names that are not this
machine's are refused (a foreign name may be made to point here; an address cannot), and whatever changes something
needs what a page of another origin cannot send without being asked first.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Any
from urllib.parse import urlsplit

from flawscope.runtime.line.http.refusal import Refusal

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]
Refuse = Callable[[Refusal], Callable[[Scope, Receive, Send], Awaitable[None]]]

HEADERS: tuple[tuple[bytes, bytes], ...] = (
    (b"content-security-policy", b"default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cache-control", b"no-store"),
)
"""Of every answer, where it says nothing else."""

_SIMPLE = frozenset({"", "application/x-www-form-urlencoded", "multipart/form-data", "text/plain"})
"""Types of a body that a page of any origin may send without being asked."""


class Guard:
    """Checks requests, and sets the headers of answers.

    Args:
        app: What answers.
        refuse: Makes the answer to a request that is refused.
        names: Names by which others call this machine.
    """

    def __init__(
        self, app: Callable[[Scope, Receive, Send], Awaitable[None]], refuse: Refuse, names: Collection[str] = ()
    ) -> None:
        self._app, self._refuse = app, refuse
        self._names = frozenset(name.lower() for name in names)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, as ASGI has it."""

        async def with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                own = list(message.get("headers", ()))
                names = {name for name, _ in own}
                message = {**message, "headers": [*own, *(one for one in HEADERS if one[0] not in names)]}
            await send(message)

        try:
            check_request(scope, self._names)
        except Refusal as refusal:
            await self._refuse(refusal)(scope, receive, with_headers)
            return
        await self._app(scope, receive, with_headers)


def check_request(scope: Mapping[str, Any], names: Collection[str] = ()) -> None:
    """Refuse requests under foreign names, and those of foreign pages that would change something.

    Args:
        scope: Of the request, as ASGI has it.
        names: Names by which others call this machine, in lower case.

    Raises:
        Refusal: If it is one.
    """
    hosts = _values(scope, b"host")
    if len(hosts) != 1 or not _is_here(hosts[0], scope, names):
        raise Refusal(
            421,
            "expected the name of this machine (localhost, 127.0.0.1, [::1], its address, or one of http.names) as "
            "host, got another.",
        )
    if scope["method"] in ("GET", "HEAD"):
        return
    origins = _values(scope, b"origin")
    if any(urlsplit(origin).netloc.lower() != hosts[0].lower() for origin in origins):
        raise Refusal(403, "expected a request of this machine's own page or program, got one of another origin.")


def check_no_foreign_page(scope: Mapping[str, Any]) -> None:
    """Refuse a request that changes something and that a browser sends for a foreign page without asking first.

    Not in `check_request`: whoever brings a wrong token has to hear of that first.

    Args:
        scope: Of the request, as ASGI has it.

    Raises:
        Refusal: If it is one.
    """
    if scope["method"] in ("GET", "HEAD"):
        return
    kind = content_type(scope)
    if kind in _SIMPLE and _values(scope, b"x-flawscope") != ["1"]:
        raise Refusal(403, "expected the header `X-Flawscope: 1`, which a foreign page cannot send, got none. Add it.")


def content_type(scope: Mapping[str, Any]) -> str:
    """Return the type of the body without its parameters, in lower case; empty for none."""
    values = _values(scope, b"content-type")
    return values[0].partition(";")[0].strip().lower() if values else ""


def _values(scope: Mapping[str, Any], name: bytes) -> list[str]:
    return [value.decode("latin-1") for key, value in scope["headers"] if key == name]


def _is_here(host: str, scope: Mapping[str, Any], names: Collection[str]) -> bool:
    try:
        name = (urlsplit(f"//{host}").hostname or "").removesuffix(".")
        if name == "localhost" or name in names:
            return True
        address = ipaddress.ip_address(name)
        # Where the connection has come in; None for a socket without a port.
        here = scope.get("server")
        return address.is_loopback or (here is not None and address == ipaddress.ip_address(here[0].partition("%")[0]))
    except ValueError:
        return False
