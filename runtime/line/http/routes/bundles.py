"""Bundles and thresholds while the line runs: store, swaps and the way back, and what another threshold would say."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import math
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from flawscope.errors import ArgumentError, BundleError
from flawscope.runtime.line.http.answers import json_answer
from flawscope.runtime.line.http.bodies import BODY_S, read_body
from flawscope.runtime.line.http.context import SMALL_BYTES, Api, Context, user_of
from flawscope.runtime.line.http.guard import content_type
from flawscope.runtime.line.http.query import Query, shown
from flawscope.runtime.line.http.refusal import ClientGone, Refusal
from flawscope.runtime.line.swap.store import Receiving
from flawscope.runtime.line.swap.swaps import Swaps
from flawscope.text import NOT_JSON

MOST_SCORES = 10_000
"""Most parts that `what-if` looks at."""

_BLOCK_BYTES = 1 << 20
_LEAST_BYTES_A_S = 64 << 10
"""Slowest upload that is taken, after its first seconds."""
_STATION = "/api/v1/stations/{station}"

T = TypeVar("T")
S = TypeVar("S")
Said = TypeVar("Said", bound=msgspec.Struct)


class _Swap(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    digest: str
    view: str | None = None
    shadow: int | None = None
    allow_unlike: bool = False
    stop: bool = False


class _Threshold(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    image: float
    reason: str
    view: str | None = None


class _Rollback(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    reason: str = ""


class _View(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    view: str | None = None


def routes(context: Context) -> list[Api]:
    """Return the routes of bundles and thresholds."""
    bundles = _Bundles(context)
    return [
        Api("GET", "/api/v1/bundles", "operator", bundles.listed),
        Api("POST", "/api/v1/bundles", "engineer", bundles.upload),
        Api("GET", f"{_STATION}/swap", "operator", bundles.state),
        Api("POST", f"{_STATION}/swap", "engineer", bundles.begin),
        Api("POST", f"{_STATION}/rollback", "engineer", bundles.rollback),
        Api("POST", f"{_STATION}/challenge", "engineer", bundles.challenge),
        Api("POST", f"{_STATION}/threshold", "engineer", bundles.threshold),
        Api("GET", f"{_STATION}/what-if", "engineer", bundles.what_if),
    ]


class _Bundles:
    def __init__(self, context: Context) -> None:
        self._context = context
        self._is_receiving = False

    @property
    def _swaps(self) -> Swaps:
        swaps = self._context.line.swaps
        if swaps is None:
            raise Refusal(503, "expected a line that has started, got one that starts. Try again later.")
        return swaps

    async def listed(self, request: Request) -> Response:
        Query(request).end()
        return json_answer({"bundles": await self._context.call(self._swaps.bundles)})

    async def upload(self, request: Request) -> Response:
        """Take a packed bundle as it comes: it may be larger than the memory."""
        Query(request).end()
        if content_type(request.scope) != "application/octet-stream":
            raise Refusal(415, "expected a packed bundle (application/octet-stream), got another type of content.")
        if self._is_receiving:
            raise Refusal(409, "expected one bundle at a time, got another. Try again later.")
        self._is_receiving = True
        swaps, user = self._swaps, user_of(request)
        try:
            async with self._entered(swaps.receiving(user.name, user.role)) as receiving:
                await self._receive(request, receiving)
                digest = await self._context.call(swaps.received, receiving, user.name, user.role)
        except (ArgumentError, BundleError) as err:
            raise Refusal(413 if isinstance(err, ArgumentError) else 400, str(err)) from err
        finally:
            self._is_receiving = False
        return json_answer({"digest": digest}, 201)

    async def _receive(self, request: Request, receiving: Receiving) -> None:
        waiting = bytearray()
        is_more, size, started = True, 0, time.monotonic()
        while is_more:
            # Not so long for each piece: one byte at a time would keep others from sending a bundle for ever.
            left_s = started + BODY_S + size / _LEAST_BYTES_A_S - time.monotonic()
            try:
                message = await asyncio.wait_for(request.receive(), max(0.0, min(BODY_S, left_s)))
            except asyncio.TimeoutError:
                raise Refusal(408, "expected the whole bundle in time, got a part of it. Send it again.") from None
            if message["type"] == "http.disconnect":
                raise ClientGone
            piece = message.get("body", b"")
            waiting += piece
            size += len(piece)
            is_more = message.get("more_body", False)
            if len(waiting) >= _BLOCK_BYTES or not is_more:
                await self._context.call(receiving.write, bytes(waiting))
                waiting.clear()

    @contextlib.asynccontextmanager
    async def _entered(self, manager: AbstractContextManager[S]) -> AsyncIterator[S]:
        """Enter and leave something that touches the disk, in threads."""
        value = await self._context.call(manager.__enter__)
        try:
            yield value
        except BaseException as err:
            await self._context.call(manager.__exit__, type(err), err, err.__traceback__)
            raise
        await self._context.call(manager.__exit__, None, None, None)

    async def state(self, request: Request) -> Response:
        options, _ = self._context.station(request)
        Query(request).end()
        return json_answer(await self._context.call(self._swaps.state, options.name))

    async def begin(self, request: Request) -> Response:
        options, _ = self._context.station(request)
        Query(request).end()
        said, user = await _said(request, _Swap), user_of(request)
        return json_answer(
            await self._asked(
                409,
                functools.partial(self._swaps.begin, allow_unlike=said.allow_unlike, stop=said.stop),
                options.name,
                said.view,
                said.digest,
                said.shadow,
                user.name,
                user.role,
            ),
            202,
        )

    async def rollback(self, request: Request) -> Response:
        options, _ = self._context.station(request)
        Query(request).end()
        said, user = await _said(request, _Rollback), user_of(request)
        return json_answer(
            await self._asked(409, self._swaps.rollback, options.name, user.name, user.role, said.reason)
        )

    async def challenge(self, request: Request) -> Response:
        options, _ = self._context.station(request)
        Query(request).end()
        said, user = await _said(request, _View), user_of(request)
        return json_answer(
            await self._asked(409, self._swaps.challenge, options.name, said.view, user.name, user.role), 202
        )

    async def threshold(self, request: Request) -> Response:
        options, _ = self._context.station(request)
        Query(request).end()
        said, user = await _said(request, _Threshold), user_of(request)
        return json_answer(
            await self._asked(
                400,
                self._swaps.set_threshold,
                options.name,
                said.view,
                said.image,
                said.reason,
                user.name,
                user.role,
            )
        )

    async def what_if(self, request: Request) -> Response:
        options, _ = self._context.station(request)
        query = Query(request)
        view, image = query.text("view") or None, query.text("image")
        last = query.number("last", 500, 1, MOST_SCORES)
        query.end()
        await self._context.until_recorded()
        found = await self._asked(400, self._swaps.what_if, options.name, view, _number(image), last)
        return json_answer(found)

    async def _asked(self, status: int, function: Callable[..., T], *arguments: Any) -> T:
        """Ask the line; what it refuses is a refusal of this status."""
        try:
            return await self._context.call(function, *arguments)
        except ArgumentError as err:
            raise Refusal(status, str(err)) from err


def _number(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise Refusal(400, f"image: expected a threshold, a finite number, got {shown(text)}.")
    return number


async def _said(request: Request, kind: type[Said]) -> Said:
    """Return what the body says in JSON; an empty one is `{}`."""
    body = await read_body(request.receive, SMALL_BYTES)
    try:
        return msgspec.json.decode(body.strip() or b"{}", type=kind)
    except NOT_JSON as err:
        names = ", ".join(field.name for field in msgspec.structs.fields(kind))
        raise Refusal(400, f"expected JSON with {names}, got: {err}. Mend it.") from err
