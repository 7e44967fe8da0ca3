"""Halting a station, and acknowledging what stopped it."""

from __future__ import annotations

from collections.abc import Callable

from starlette.requests import Request
from starlette.responses import Response

from flawscope.runtime.line.http.answers import json_answer
from flawscope.runtime.line.http.context import Api, Context, read_nothing, user_of
from flawscope.runtime.line.http.line_view import StationView
from flawscope.runtime.line.http.query import Query
from flawscope.runtime.line.users.roles import User


def routes(context: Context) -> list[Api]:
    """Return the routes of control."""

    async def control(request: Request, act: Callable[[StationView, User], None]) -> Response:
        options, station = context.station(request)
        Query(request).end()
        await read_nothing(request)
        await context.act(act, station, user_of(request))
        status = await context.act(context.line.status)
        (found,) = (one for one in status.stations if one.name == options.name)
        return json_answer({"station": found.name, "state": found.state, "reason": found.reason})

    async def halt(request: Request) -> Response:
        return await control(request, lambda station, user: station.halt(user.name, user.role))

    async def reset(request: Request) -> Response:
        return await control(request, lambda station, user: station.acknowledge(user.name, user.role))

    return [
        Api("POST", "/api/v1/stations/{station}/halt", "operator", halt),
        Api("POST", "/api/v1/stations/{station}/reset", "operator", reset),
    ]
