"""Who did what: events of the journal, and whether its chain is whole."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from flawscope.runtime.line.http.answers import json_answer
from flawscope.runtime.line.http.context import Api, Context
from flawscope.runtime.line.http.news import disconnected
from flawscope.runtime.line.http.query import Query
from flawscope.runtime.line.http.refusal import ClientGone, Refusal
from flawscope.runtime.line.http.routes.records import MOST_ROWS
from flawscope.text import NOT_JSON

VERIFY_S = 600.0
"""Longest time that a journal may take: about 40 million entries."""

# A process of its own: hashing a journal of days would take turns with scoring. The search path is handed on, as the
# command line may be found by it alone.
_PROGRAM = (
    "import sys; sys.path[:] = sys.argv[1].split('\\n'); from flawscope.cli import main; "
    "main(['line', 'audit', 'verify', sys.argv[2], '--json'])"
)
_LEAST_PRIORITY = 19


def routes(context: Context) -> list[Api]:
    """Return the routes of the audit."""
    journal = context.line.journal
    verifier = _Verifier(context)

    async def audit(request: Request) -> Response:
        query = Query(request)
        after, limit = query.number("after", 0, 0, 1 << 53), query.number("limit", 100, 1, MOST_ROWS)
        before = query.number("before", 1 << 53, 1, 1 << 53)
        newest = query.word("order", ("newest", "oldest")) == "newest"
        query.end()
        await context.until_recorded()
        found = await context.call(journal.events, after, limit, before=before, newest_first=newest)
        return json_answer({"events": found})

    async def verify(request: Request) -> Response:
        Query(request).end()
        await context.until_recorded()
        return json_answer(await verifier.verify(request.receive))

    return [
        Api("GET", "/api/v1/audit", "engineer", audit),
        Api("GET", "/api/v1/audit/verify", "engineer", verify),
    ]


class _Verifier:
    """Verifies the journal, one process at a time."""

    def __init__(self, context: Context) -> None:
        self._context, self._is_busy = context, False

    async def verify(self, receive: Callable[[], Awaitable[Any]]) -> Any:
        """Return what `flawscope line audit verify --json` says.

        Raises:
            Refusal: If it is being done already, or could not be done.
            ClientGone: If nobody waits for it any more.
        """
        if self._is_busy:
            raise Refusal(503, "expected one verification at a time, got another one. Wait for it.")
        self._is_busy = True
        try:
            process = await self._context.call(_started, self._context.state)
            try:
                said, error = await self._heard(process, receive)
            finally:
                # Not waited for: it may hang in the disk. The thread that hears it does.
                process.kill()
        finally:
            self._is_busy = False
        try:
            return msgspec.json.decode(said)
        except NOT_JSON:
            words = error.decode("utf-8", "replace").strip().removeprefix("error: ") or "it ended without a word"
            raise Refusal(503, f"the journal could not be verified: {words}") from None

    async def _heard(
        self, process: subprocess.Popen[bytes], receive: Callable[[], Awaitable[Any]]
    ) -> tuple[bytes, bytes]:
        heard = asyncio.ensure_future(self._context.call(_end_of, process))
        gone = asyncio.ensure_future(disconnected(receive))
        try:
            await asyncio.wait({heard, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not heard.done():
                raise ClientGone
            return heard.result()
        except subprocess.TimeoutExpired:
            raise Refusal(503, f"expected an end within {VERIFY_S:.0f} s, got none. Use the command.") from None
        finally:
            gone.cancel()


def _started(state: Path) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        [sys.executable, "-c", _PROGRAM, "\n".join(sys.path), str(state)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, process.pid, _LEAST_PRIORITY)
    return process


def _end_of(process: subprocess.Popen[bytes]) -> tuple[bytes, bytes]:
    try:
        return process.communicate(timeout=VERIFY_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise
