"""The operator's page: files of the package, and when the shift began whose parts it counts."""

from __future__ import annotations

import hashlib
import threading
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple

from starlette.requests import Request
from starlette.responses import Response

from flawscope.runtime.line.http.answers import json_answer
from flawscope.runtime.line.http.context import Api, Context, read_nothing, user_of
from flawscope.runtime.line.http.query import Query, shown
from flawscope.runtime.line.http.refusal import Refusal
from flawscope.runtime.line.users.roles import User
from flawscope.text import encode_json

FOLDER = Path(__file__).parent.parent / "page"
"""Where the files lie; they are data of the package."""

TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
}
"""Suffix -> type of the files that are served."""


class _File(NamedTuple):
    data: bytes
    kind: str
    etag: str


def routes(context: Context) -> list[Api]:
    """Return the routes of the page."""
    files = _files()
    shift = _Shift(context)

    def answer(request: Request, name: str) -> Response:
        file = files.get(name)
        if file is None:
            raise Refusal(404, f"expected a file of the page, got {shown(name)}.")
        # Asked for each time and sent when it has changed: after an upgrade nobody runs half of an old page.
        headers = {"etag": file.etag, "cache-control": "no-cache"}
        asked = [tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")]
        if file.etag in asked:
            return Response(status_code=304, headers=headers)
        return Response(file.data, media_type=file.kind, headers=headers)

    async def index(request: Request) -> Response:
        return answer(request, "index.html")

    async def file(request: Request) -> Response:
        return answer(request, request.path_params["name"])

    async def shift_now(request: Request) -> Response:
        Query(request).end()
        return json_answer(shift.now())

    async def begin_shift(request: Request) -> Response:
        Query(request).end()
        await read_nothing(request)
        return json_answer(await context.call(shift.begin, user_of(request)))

    return [
        # Everybody may have these: whoever has to sign in needs them first.
        Api("GET", "/", "", index),
        Api("GET", "/page/{name}", "", file),
        Api("GET", "/api/v1/shift", "operator", shift_now),
        Api("POST", "/api/v1/shift", "operator", begin_shift),
    ]


class _Shift:
    """When the shift began, and how many parts each station had given by then: all pages count from there.

    It is forgotten when the line ends, as the counts of its stations are.
    """

    def __init__(self, context: Context) -> None:
        self._line = context.line
        self._lock = threading.Lock()
        start = datetime.now(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        self._now: dict[str, Any] = {"utc": start, "actor": "line", "is_start": True, "before": {}}

    def now(self) -> dict[str, Any]:
        """Return what is to be taken off the counts of the stations, and since when."""
        return self._now

    def begin(self, user: User) -> dict[str, Any]:
        """Begin a shift."""
        with self._lock:
            status = self._line.status()
            before = {
                station.name: {"accept": station.accept, "reject": station.reject, "fault": station.fault}
                for station in status.stations
            }
            self._line.journal.event(
                "shift", actor=user.name, role=user.role, object=f"line {status.line}", new=encode_json(before).decode()
            )
            self._now = {"utc": status.utc, "actor": user.name, "is_start": False, "before": before}
            return self._now


def _files() -> dict[str, _File]:
    """Read the files once: a few hundred kilobytes, and a request never waits for the disk."""
    found = {}
    for path in sorted(FOLDER.iterdir()):
        if path.suffix in TYPES:
            data = path.read_bytes()
            found[path.name] = _File(data, TYPES[path.suffix], f'"{hashlib.sha256(data).hexdigest()[:32]}"')
    return found
