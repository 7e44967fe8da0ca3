"""Routes of the line's HTTP interface; docs/line-http.md has them in users' words."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from typing import Any, TypeVar, get_args

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from flawscope.errors import FlawscopeError
from flawscope.runtime.line.http.bodies import OVERHEAD_BYTES, BodyMemory, images_of, read_body, too_large
from flawscope.runtime.line.http.guard import Guard, content_type
from flawscope.runtime.line.http.line_view import LineView, StationView
from flawscope.runtime.line.http.news import News
from flawscope.runtime.line.http.refusal import ClientGone, Refusal
from flawscope.runtime.line.line_config import StationOptions
from flawscope.runtime.line.parts import Verdict
from flawscope.runtime.line.sources.table import PushSource
from flawscope.text import encode_json, printable

GRACE_S = 0.2
"""Longer than its deadline a request waits for a verdict: one at the deadline takes a moment until it is here."""

MOST_ROWS = 1000
"""Most parts or entries of an answer."""

_ACTOR = "http"
"""Who did it, in the journal: there are no users."""

_SMALL_BYTES = 4096
_LONGEST_ID = 128

T = TypeVar("T")


class LineApp:
    """The application, as ASGI has it.

    Args:
        line: The line.
        stations: Configuration of its stations.
        news: Tells verdicts and changes.
        metrics: Returns the metrics as text, and their content type.
        threads: Where calls run that may take a moment; the loop itself never waits for a lock or the disk.
    """

    def __init__(
        self,
        line: LineView,
        stations: tuple[StationOptions, ...],
        news: News,
        metrics: Callable[[], tuple[bytes, str]],
        threads: Executor,
    ) -> None:
        self._line, self._news, self._metrics, self._threads = line, news, metrics, threads
        self._options = {options.name: options for options in stations}
        largest = max(_body_bytes(options) for options in stations)
        self._memory = BodyMemory(max(256 << 20, 2 * largest))
        station = "/api/v1/stations/{station}"
        routes = [
            Route("/healthz", self._healthz, methods=["GET"]),
            Route("/readyz", self._readyz, methods=["GET"]),
            Route("/metrics", self._metrics_text, methods=["GET"]),
            Route("/api/v1/state", self._state, methods=["GET"]),
            Route("/api/v1/parts", self._parts, methods=["GET"]),
            Route("/api/v1/parts/{seq:int}", self._part, methods=["GET"]),
            Route("/api/v1/entries", self._entries, methods=["GET"]),
            Route("/api/v1/events", self._events, methods=["GET"]),
            Route(f"{station}/trigger", self._trigger, methods=["POST"]),
            Route(f"{station}/halt", self._halt, methods=["POST"]),
            Route(f"{station}/reset", self._reset, methods=["POST"]),
        ]
        handlers: Mapping[Any, Any] = {
            Refusal: _refused,
            ClientGone: _unheard,
            HTTPException: _no_route,
            FlawscopeError: _failed,
            Exception: _crashed,
        }
        self._guarded = Guard(Starlette(routes=routes, exception_handlers=handlers), refusal_answer)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer a request, as ASGI has it."""
        await self._guarded(scope, receive, send)

    async def _call(self, function: Callable[..., T], *arguments: Any, **options: Any) -> T:
        call = functools.partial(function, *arguments, **options)
        return await asyncio.get_running_loop().run_in_executor(self._threads, call)

    async def _healthz(self, request: Request) -> Response:
        return _json({"ok": True})

    async def _readyz(self, request: Request) -> Response:
        status = await self._call(self._line.status)
        stations = {station.name: {"state": station.state, "reason": station.reason} for station in status.stations}
        is_ready = bool(status.stations) and all(station.state == "ready" for station in status.stations)
        return _json({"ready": is_ready, "stations": stations}, 200 if is_ready else 503)

    async def _metrics_text(self, request: Request) -> Response:
        text, kind = await self._call(self._metrics)
        return Response(text, media_type=kind)

    async def _state(self, request: Request) -> Response:
        return _json(await self._call(self._line.status))

    async def _parts(self, request: Request) -> Response:
        query = _Query(request)
        after, limit = query.number("after", 0, 0, 1 << 53), query.number("limit", 100, 1, MOST_ROWS)
        station = query.word("station", tuple(self._options))
        verdict = query.word("verdict", get_args(Verdict))
        newest = query.word("order", ("newest", "oldest")) == "newest"
        query.end()
        parts = await self._call(self._line.journal.parts, after, limit, station, verdict, newest)
        return _json({"parts": parts})

    async def _part(self, request: Request) -> Response:
        seq = request.path_params["seq"]
        part = await self._call(self._line.journal.part_of, seq) if 0 < seq < 1 << 53 else None
        if part is None:
            raise Refusal(404, f"expected the number of a part on record, got {seq}. It may still be open.")
        return _json(part)

    async def _entries(self, request: Request) -> Response:
        query = _Query(request)
        after, limit = query.number("after", 0, 0, 1 << 53), query.number("limit", 100, 1, MOST_ROWS)
        query.end()
        return _json({"entries": await self._call(self._line.journal.entries, after, limit)})

    async def _events(self, request: Request) -> Response:
        if self._news.is_full:
            raise Refusal(503, f"expected at most {self._news.watchers} watchers, got one more. Close a page.")
        return _Stream(self._news)

    async def _trigger(self, request: Request) -> Response:
        options, station = self._station(request)
        query = _Query(request)
        waits = query.word("wait", ("0", "1")) == "1"
        part_id = query.text("part_id")
        query.end()
        images = await self._images(request, options)
        if _is_pushed(options):
            if not images:
                views = ", ".join(view.name for view in options.views)
                raise Refusal(400, f"expected an image of {views}, got none. Send them in the body.")
            seq = await self._call(station.push, images, part_id)
        elif images:
            raise Refusal(409, f"expected no image, as station {options.name} has cameras, got one. Leave it out.")
        elif not station.is_triggered:
            raise Refusal(
                409, f"expected a station with a software trigger, got {options.name}, whose parts begin with an image."
            )
        else:
            seq = await self._call(station.trigger, part_id)
        if not waits:
            return _json({"seq": seq}, 202)
        told = await self._news.verdict(seq, options.deadline_ms / 1000 + GRACE_S, request.receive)
        if told is None:
            # Nothing that reads as an accept: who asked has to take silence as a fault.
            return _json({"seq": seq, "verdict": None}, 202)
        signal = told.signal
        return _json(
            {
                "station": told.station,
                "seq": signal.seq,
                "part_id": signal.part_id,
                "verdict": signal.verdict,
                "reason": signal.reason,
                "score": signal.score,
            }
        )

    async def _images(self, request: Request, options: StationOptions) -> dict[str, bytes]:
        """Return view -> bytes of the images in a request; an empty one without a body."""
        kind = content_type(request.scope)
        most = _body_bytes(options) if _is_pushed(options) else _SMALL_BYTES
        announced = request.headers.get("content-length", "")
        if announced.isdecimal() and int(announced) > most:
            raise too_large(most)
        has_body = "transfer-encoding" in request.headers or (announced.isdecimal() and int(announced) > 0)
        if not has_body and not kind:
            return {}
        with self._memory.holding(int(announced) if announced.isdecimal() else most):
            body = await read_body(request.receive, most)
            if kind == "application/json":
                _check_empty(body)
                return {}
            if not body and not kind:
                return {}
            images = self._named(body, kind, request, options)
        for name, data in images.items():
            largest = next((view.slot_mb for view in options.views if view.name == name), None)
            if largest is None:
                views = ", ".join(view.name for view in options.views)
                raise Refusal(400, f"expected images of {views}, got one of {name!r}. Name the view.")
            if len(data) > largest * (1 << 20):
                raise too_large(round(largest * (1 << 20)))
        return images

    def _named(self, body: bytes, kind: str, request: Request, options: StationOptions) -> dict[str, bytes]:
        if kind == "multipart/form-data":
            return images_of(body, request.headers["content-type"])
        if kind.startswith("image/") or kind == "application/octet-stream":
            if len(options.views) > 1:
                raise Refusal(400, "expected multipart/form-data with the names of the views, got one image alone.")
            return {options.views[0].name: body}
        got = printable(kind) or "no type"
        raise Refusal(415, f"expected an image or multipart/form-data, got {got}. Set the content type.")

    async def _halt(self, request: Request) -> Response:
        return await self._control(request, lambda station: station.halt(_ACTOR))

    async def _reset(self, request: Request) -> Response:
        return await self._control(request, lambda station: station.acknowledge(_ACTOR))

    async def _control(self, request: Request, act: Callable[[StationView], None]) -> Response:
        options, station = self._station(request)
        _Query(request).end()
        _check_empty(await read_body(request.receive, _SMALL_BYTES))
        await self._call(act, station)
        status = await self._call(self._line.status)
        (found,) = (one for one in status.stations if one.name == options.name)
        return _json({"station": found.name, "state": found.state, "reason": found.reason})

    def _station(self, request: Request) -> tuple[StationOptions, StationView]:
        name = request.path_params["station"]
        station = self._line.stations.get(name)
        if station is None or name not in self._options:
            names = ", ".join(self._options)
            raise Refusal(404, f"expected one of the stations {names}, got {printable(name)!r}. Name another.")
        return self._options[name], station


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


class _Query:
    """Parameters of a request; what nobody has asked for by `end` is refused, as it would have no effect."""

    def __init__(self, request: Request) -> None:
        self._left: dict[str, str] = {}
        for name, value in request.query_params.multi_items():
            if name in self._left:
                raise Refusal(400, f"expected {printable(name)} once, got it again. Leave one out.")
            self._left[name] = value
        self._known: list[str] = []

    def number(self, name: str, default: int, least: int, most: int) -> int:
        text = self._take(name)
        if text is None:
            return default
        # Digits of other scripts and thousands of digits are no numbers here.
        number = int(text) if text.isascii() and text.isdecimal() and len(text) < 20 else -1
        if not least <= number <= most:
            raise Refusal(400, f"{name}: expected a whole number from {least} to {most}, got {_shown(text)}.")
        return number

    def word(self, name: str, words: tuple[str, ...]) -> str | None:
        text = self._take(name)
        if text is not None and text not in words:
            raise Refusal(400, f"{name}: expected one of {', '.join(words)}, got {_shown(text)}.")
        return text

    def text(self, name: str) -> str:
        text = self._take(name) or ""
        if len(text) > _LONGEST_ID or printable(text) != text:
            raise Refusal(400, f"{name}: expected at most {_LONGEST_ID} characters in one line, got {_shown(text)}.")
        return text

    def end(self) -> None:
        for name in self._left:
            raise Refusal(400, f"expected no parameters but {', '.join(self._known) or 'none'}, got {_shown(name)}.")

    def _take(self, name: str) -> str | None:
        self._known.append(name)
        return self._left.pop(name, None)


def _shown(text: str) -> str:
    return repr(printable(text[:40]))


def _is_pushed(options: StationOptions) -> bool:
    return isinstance(options.views[0].source, PushSource)


def _body_bytes(options: StationOptions) -> int:
    return round(sum(view.slot_mb for view in options.views) * (1 << 20)) + OVERHEAD_BYTES


def _check_empty(body: bytes) -> None:
    if body.strip() not in (b"", b"{}"):
        raise Refusal(400, "expected an empty body or {}, got something in it. Leave it out.")


def _json(value: Any, status: int = 200) -> Response:
    return Response(encode_json(value), status, media_type="application/json")


def refusal_answer(refusal: Refusal) -> Response:
    """Return the answer to a request that is refused."""
    answer = _json({"error": str(refusal)}, refusal.status)
    # What was not read of a body that is refused must not be taken for the next request.
    answer.headers["connection"] = "close"
    return answer


async def _refused(request: Request, refusal: Exception) -> Response:
    assert isinstance(refusal, Refusal)
    return refusal_answer(refusal)


async def _unheard(request: Request, error: Exception) -> Response:
    return Response(status_code=400)  # nobody reads it


async def _no_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    words = {404: "expected a path of the line, got another one.", 405: "expected another method for this path."}
    return refusal_answer(Refusal(error.status_code, words.get(error.status_code, error.detail)))


async def _failed(request: Request, error: Exception) -> Response:
    return refusal_answer(Refusal(503, str(error)))


async def _crashed(request: Request, error: Exception) -> Response:
    # Starlette raises the error again afterwards, and the server writes it to the log.
    return refusal_answer(Refusal(500, "the line could not answer. Its log says why."))
