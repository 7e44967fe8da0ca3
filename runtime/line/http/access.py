"""Who may ask: every route passes here before its handler, and what has no role that is known is never answered.

A browser adds the session's cookie by itself, also to what a page of another origin makes it send. So what changes
something has to bring the session's own token in a header, too, which only a page of the line can read.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from flawscope.runtime.line.http.guard import check_no_foreign_page
from flawscope.runtime.line.http.refusal import Refusal
from flawscope.runtime.line.line_config import HttpOptions
from flawscope.runtime.line.users.line_users import Asker, LineUsers
from flawscope.runtime.line.users.roles import NOBODY, Role, may

CSRF = "x-flawscope-csrf"
"""Header that a request with a session has to bring, unless it only reads."""

_LOOK_S = 1.0
"""Between two looks at whether a stream may go on."""


class Access:
    """Says who asks, and whether he may.

    Args:
        users: Users of the line; None: nobody may ask anything that needs a role.
        line: Name of the line.
        options: Of its server.

    Attributes:
        users: As given.
        names: Names by which others call this machine.
        is_secure: Whether the line has TLS.
        cookie: Name of the session's cookie.
    """

    def __init__(self, users: LineUsers | None, line: str, options: HttpOptions) -> None:
        self.users, self.names, self.is_secure = users, options.names, options.tls is not None
        # Browsers send cookies to every port of a machine: with its own name, each line has its own. With the prefix no
        # other name of the domain can set it.
        self.cookie = f"{'__Host-' if self.is_secure else ''}flawscope-{line}"

    def guarded(
        self, handler: Callable[[Request], Awaitable[Response]], role: Role, *, is_open_here: bool = False
    ) -> Callable[[Request], Awaitable[Response]]:
        """Return a handler before which it is known who asks, and that he may.

        Args:
            handler: Answers a request; `request.state.user` is who asks.
            role: The least role that may ask.
            is_open_here: Whether everybody on this machine may read it.

        Raises:
            ValueError: If the role is none.
        """
        may(NOBODY, role)

        async def handle(request: Request) -> Response:
            asker = self._admitted(request, role, is_open_here=is_open_here)
            request.state.user, request.state.asker = asker.user, asker
            if asker.user == NOBODY:
                return await handler(request)
            if request.method != "GET":
                return await handler(Request(request.scope, self._while_known(request, asker)))
            answer = await handler(request)
            return _WhileAllowed(answer, lambda: self.users is not None and self.users.still(asker))

        return handle

    def _while_known(self, request: Request, asker: Asker) -> Callable[[], Awaitable[Any]]:
        """Return what receives a body as long as its sender is known: that of a bundle may take an hour."""

        async def receive() -> Any:
            message = await request.receive()
            # With the last piece too: nothing is done with what came from somebody who was signed out meanwhile.
            if message["type"] == "http.request" and (self.users is None or not self.users.still(asker, touch=True)):
                raise Refusal(
                    401,
                    "expected somebody who may still ask when the body is whole, got one who was signed "
                    "out meanwhile, or whose password, role or token changed. Log in and send it again.",
                )
            return message

        return receive

    def _admitted(self, request: Request, role: Role, *, is_open_here: bool) -> Asker:
        asker = Asker(NOBODY) if self.users is None else self.users.asker(self._cookie(request), _bearer(request))
        is_reading = request.method in ("GET", "HEAD")
        is_allowed = may(asker.user, role) or (is_open_here and is_reading and _is_here(request))
        if not is_allowed and asker.user == NOBODY:
            # First: who is not known must not be told to add a header.
            raise _unknown(request)
        check_no_foreign_page(request.scope)
        brought = request.headers.get(CSRF, "").encode("utf-8", "surrogateescape")
        # Without a role (logging in, in a second window too) what is brought is the password itself.
        if role and not is_reading and asker.csrf and not hmac.compare_digest(brought, asker.csrf.encode()):
            raise Refusal(
                403, f"expected the header {CSRF} with the token of the session, got none or another. Log in again."
            )
        if not is_allowed:
            raise Refusal(403, f"expected the role {role} or a higher one, got {asker.user.role}. Ask who has it.")
        return asker

    def _cookie(self, request: Request) -> str:
        return request.cookies.get(self.cookie, "")


def asker_of(request: Request) -> Asker:
    """Return who asks, and how he was known."""
    asker: Asker = request.state.asker
    return asker


def _unknown(request: Request) -> Refusal:
    if _bearer(request):
        return Refusal(
            401,
            "expected a token that the line knows, got another one. A new one counts within a second; make one "
            "with flawscope line token add.",
        )
    return Refusal(401, "expected somebody who has logged in, or a token, got neither. Log in.")


def _bearer(request: Request) -> str:
    kind, _, value = request.headers.get("authorization", "").partition(" ")
    # Others are for a proxy before the line.
    return (value.strip() or "none") if kind.lower() == "bearer" else ""


def _is_here(request: Request) -> bool:
    try:
        return request.client is not None and ipaddress.ip_address(request.client.host).is_loopback
    except ValueError:
        return False


class _WhileAllowed(Response):
    """An answer that ends when whoever is answered may not ask any more, as streams last for hours."""

    def __init__(self, answer: Response, is_allowed: Callable[[], bool]) -> None:
        self._answer, self._is_allowed = answer, is_allowed

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self._answer(scope, self._until_over(receive), send)

    def _until_over(self, receive: Callable[[], Awaitable[Any]]) -> Callable[[], Awaitable[Any]]:
        async def next_message() -> Any:
            pending = asyncio.ensure_future(receive())
            try:
                while not pending.done():
                    await asyncio.wait({pending}, timeout=_LOOK_S)
                    if not pending.done() and not self._is_allowed():
                        return {"type": "http.disconnect"}
                return pending.result()
            finally:
                pending.cancel()

        return next_message
