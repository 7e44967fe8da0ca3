"""Whether the line lives and is ready, its state, its metrics, and the stream that says when something is new."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from flawscope.runtime.line.http.answers import json_answer
from flawscope.runtime.line.http.context import Api, Context
from flawscope.runtime.line.http.news import News
from flawscope.runtime.line.http.refusal import Refusal


def routes(context: Context) -> list[Api]:
    """Return the routes of the state."""
    line, news = context.line, context.news

    async def healthz(request: Request) -> Response:
        return json_answer({"ok": True})

    async def readyz(request: Request) -> Response:
        status = await context.call(line.status)
        stations = {station.name: {"state": station.state, "reason": station.reason} for station in status.stations}
        is_ready = bool(status.stations) and all(station.state == "ready" for station in status.stations)
        return json_answer({"ready": is_ready, "stations": stations}, 200 if is_ready else 503)

    async def metrics(request: Request) -> Response:
        text, kind = await context.call(context.metrics)
        return Response(text, media_type=kind)

    async def state(request: Request) -> Response:
        return json_answer(await context.call(line.status))

    async def events(request: Request) -> Response:
        if news.is_full:
            raise Refusal(503, f"expected at most {news.watchers} watchers, got one more. Close a page.")
        return _Stream(news)

    return [
        Api("GET", "/healthz", "", healthz),
        Api("GET", "/readyz", "", readyz),
        Api("GET", "/metrics", "machine", metrics, is_open_here=True),
        Api("GET", "/api/v1/state", "machine", state),
        Api("GET", "/api/v1/events", "machine", events),
    ]


class _Stream(Response):
    """The stream of events of one client."""

    def __init__(self, news: News) -> None:
        self._news = news

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        headers = [(b"content-type", b"text/event-stream; charset=utf-8")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})

        async def send_body(data: bytes) -> None:
            await send({"type": "http.response.body", "body": data, "more_body": True})

        if scope["method"] == "GET":  # and not HEAD
            await self._news.stream(receive, send_body)
        await send({"type": "http.response.body", "body": b"", "more_body": False})
