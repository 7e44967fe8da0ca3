"""The application of the line's HTTP interface: its routes, what every request passes, and what errors become."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from flawscope.errors import FlawscopeError
from flawscope.runtime.line.http.answers import crashed, failed, no_route, refusal_answer, refused, unheard
from flawscope.runtime.line.http.context import LOCAL, Api, Context
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
        routes = [Route(api.path, _entered(api), methods=[api.method]) for api in apis]
        self._guarded = Guard(Starlette(routes=routes, exception_handlers=handlers), refusal_answer)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer a request, as ASGI has it."""
        await self._guarded(scope, receive, send)


def _entered(api: Api) -> Any:
    """Return the handler of a route, before which it is known who asks."""

    async def handle(request: Request) -> Response:
        request.state.user = LOCAL
        return await api.handler(request)

    return handle
