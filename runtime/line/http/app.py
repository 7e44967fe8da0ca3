"""The application of the line's HTTP interface: its routes, what every request passes, and what errors become."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.routing import Route

from flawscope.errors import FlawscopeError
from flawscope.runtime.line.http.answers import crashed, failed, no_route, refusal_answer, refused, unheard
from flawscope.runtime.line.http.context import Context
from flawscope.runtime.line.http.guard import Guard
from flawscope.runtime.line.http.refusal import ClientGone, Refusal
from flawscope.runtime.line.http.routes.table import ROUTES


class LineApp:
    """The application, as ASGI has it.

    Args:
        context: What its routes share.
    """

    def __init__(self, context: Context) -> None:
        apis = [api for make in ROUTES for api in make(context)]
        handlers: Mapping[Any, Any] = {
            Refusal: refused,
            ClientGone: unheard,
            HTTPException: no_route,
            FlawscopeError: failed,
            Exception: crashed,
        }
        # No other routes: what is not in the table has no role, and is not answered.
        guarded, names = context.access.guarded, context.access.names
        routes = [
            Route(api.path, guarded(api.handler, api.role, is_open_here=api.is_open_here), methods=[api.method])
            for api in apis
        ]
        self._guarded = Guard(Starlette(routes=routes, exception_handlers=handlers), refusal_answer, names)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer a request, as ASGI has it."""
        await self._guarded(scope, receive, send)
