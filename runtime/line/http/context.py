"""What all routes of the HTTP interface share: the line, who asks, and where calls run that may take a moment."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from starlette.requests import Request
from starlette.responses import Response

from flawscope.runtime.line.http.access import Access
from flawscope.runtime.line.http.bodies import OVERHEAD_BYTES, BodyMemory, read_body
from flawscope.runtime.line.http.line_view import LineView, StationView
from flawscope.runtime.line.http.news import News
from flawscope.runtime.line.http.refusal import Refusal
from flawscope.runtime.line.line_config import StationOptions
from flawscope.runtime.line.users.roles import Role, User
from flawscope.text import printable

SMALL_BYTES = 4096
"""Of a body without images."""

SETTLE_S = 1.0
"""Longest time that a reading of the journal waits for what was queued before it: a disk that hangs stops no page."""

T = TypeVar("T")


class Api(NamedTuple):
    """One route.

    Attributes:
        method: GET or POST.
        path: Its path, as starlette has it.
        role: The least role that may ask.
        handler: Answers a request.
        is_open_here: Whether everybody on this machine may read it.
    """

    method: str
    path: str
    role: Role
    handler: Callable[[Request], Awaitable[Response]]
    is_open_here: bool = False


class Context:
    """What the routes share.

    Args:
        line: The line.
        stations: Configuration of its stations.
        news: Tells verdicts and changes.
        metrics: Returns the metrics as text, and their content type.
        threads: Where calls run that may take a moment; the loop itself never waits for a lock or the disk.
        acts: The same for what a line must hear whatever its disk does: triggers, halt and reset.
        access: Who may ask.
        state: State folder of the line.

    Attributes:
        options: Name -> configuration of a station.
        memory: Bounds the bodies that are being read.
    """

    def __init__(
        self,
        line: LineView,
        stations: Sequence[StationOptions],
        news: News,
        metrics: Callable[[], tuple[bytes, str]],
        threads: Executor,
        acts: Executor,
        access: Access,
        state: Path,
    ) -> None:
        self.state = state
        self.line, self.news, self.metrics, self._threads, self.access = line, news, metrics, threads, access
        self._acts = acts
        self.options = {options.name: options for options in stations}
        self.memory = BodyMemory(max(256 << 20, 2 * max(body_bytes(options) for options in stations)))

    async def call(self, function: Callable[..., T], *arguments: Any, **options: Any) -> T:
        """Call something that may take a moment, in a thread."""
        call = functools.partial(function, *arguments, **options)
        return await asyncio.get_running_loop().run_in_executor(self._threads, call)

    async def act(self, function: Callable[..., T], *arguments: Any) -> T:
        """Call something of a station that waits for no disk, in a thread that nobody who reads images holds."""
        return await asyncio.get_running_loop().run_in_executor(self._acts, functools.partial(function, *arguments))

    async def until_recorded(self) -> None:
        """Wait until what was done before is on record, a moment at most: who acts and then reads finds what he did."""
        await self.call(self.line.journal.flush, SETTLE_S)

    def station(self, request: Request) -> tuple[StationOptions, StationView]:
        """Return the station that the path names.

        Raises:
            Refusal: If there is none of that name.
        """
        name = request.path_params["station"]
        station = self.line.stations.get(name)
        if station is None or name not in self.options:
            names = ", ".join(self.options)
            raise Refusal(404, f"expected one of the stations {names}, got {printable(name)!r}. Name another.")
        return self.options[name], station


def user_of(request: Request) -> User:
    """Return who asks."""
    user: User = request.state.user
    return user


def body_bytes(options: StationOptions) -> int:
    """Return how large a body may be that brings the images of a part."""
    return round(sum(view.slot_mb for view in options.views) * (1 << 20)) + OVERHEAD_BYTES


async def read_nothing(request: Request) -> None:
    """Read a body that has to be empty, or `{}`.

    Raises:
        Refusal: If it is not.
    """
    check_empty(await read_body(request.receive, SMALL_BYTES))


def check_empty(body: bytes) -> None:
    """Refuse a body in which something is."""
    if body.strip() not in (b"", b"{}"):
        raise Refusal(400, "expected an empty body or {}, got something in it. Leave it out.")
