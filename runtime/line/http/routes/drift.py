"""What a view's drift is measured against: from now on, what it sees now."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from flawscope.runtime.line.http.answers import json_answer
from flawscope.runtime.line.http.context import Api, Context, read_nothing, user_of
from flawscope.runtime.line.http.query import Query
from flawscope.runtime.line.http.refusal import Refusal


def routes(context: Context) -> list[Api]:
    """Return the routes of drift; its state is part of that of the line."""

    async def relearn(request: Request) -> Response:
        options, _ = context.station(request)
        query = Query(request)
        view = query.word("view", tuple(one.name for one in options.views))
        query.end()
        await read_nothing(request)
        if view is None:
            if len(options.views) > 1:
                raise Refusal(400, f"expected the view, as station {options.name} has several, got none. Name it.")
            view = options.views[0].name
        user, drift = user_of(request), context.line.drift
        if drift is None or not await context.call(drift.relearn, options.name, view, user.name, user.role):
            raise Refusal(409, f"expected a view that is watched for drift, got {view}. Set drift for it.")
        return json_answer({"station": options.name, "view": view})

    return [Api("POST", "/api/v1/stations/{station}/drift/relearn", "engineer", relearn)]
