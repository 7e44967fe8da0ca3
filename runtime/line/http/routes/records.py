"""What the journal has: parts, and entries in the order of the chain."""

from __future__ import annotations

from typing import get_args

from starlette.requests import Request
from starlette.responses import Response

from flawscope.runtime.line.http.answers import json_answer
from flawscope.runtime.line.http.context import Api, Context
from flawscope.runtime.line.http.query import Query
from flawscope.runtime.line.http.refusal import Refusal
from flawscope.runtime.line.parts import PartRecord, Verdict

MOST_ROWS = 1000
"""Most parts or entries of an answer."""


async def part_on_record(context: Context, seq: int) -> PartRecord:
    """Return a part by its number; one that was decided a moment ago is waited for.

    Raises:
        Refusal: If no part in the journal has it.
    """
    if 0 < seq < 1 << 53:
        for _ in range(2):
            found = await context.call(context.line.journal.part_of, seq)
            if found is not None:
                return found
            await context.until_recorded()
    raise await absent(context, seq)


async def absent(context: Context, seq: int) -> Refusal:
    """Return the refusal of a number that no part in the journal has: it says where it is, if that is known."""
    if 0 < seq < 1 << 53 and (file := await context.call(context.line.journal.sealed_in, seq)):
        return Refusal(404, f"expected a part in the journal, got {seq}, which is sealed: look into {file}.")
    return Refusal(404, f"expected the number of a part on record, got {seq}. It may still be open.")


def routes(context: Context) -> list[Api]:
    """Return the routes of the journal."""
    journal = context.line.journal

    async def parts(request: Request) -> Response:
        query = Query(request)
        after, limit = query.number("after", 0, 0, 1 << 53), query.number("limit", 100, 1, MOST_ROWS)
        station = query.word("station", tuple(context.options))
        verdict = query.word("verdict", get_args(Verdict))
        newest = query.word("order", ("newest", "oldest")) == "newest"
        before = query.number("before", 1 << 53, 1, 1 << 53)
        reviewed = query.word("reviewed", ("0", "1"))
        query.end()
        is_reviewed = None if reviewed is None else reviewed == "1"
        await context.until_recorded()
        found = await context.call(journal.parts, after, limit, station, verdict, newest, before, is_reviewed)
        return json_answer({"parts": found})

    async def part(request: Request) -> Response:
        seq = request.path_params["seq"]
        return json_answer(await part_on_record(context, seq))

    async def entries(request: Request) -> Response:
        query = Query(request)
        after, limit = query.number("after", 0, 0, 1 << 53), query.number("limit", 100, 1, MOST_ROWS)
        query.end()
        return json_answer({"entries": await context.call(journal.entries, after, limit)})

    return [
        Api("GET", "/api/v1/parts", "machine", parts),
        Api("GET", "/api/v1/parts/{seq:int}", "machine", part),
        Api("GET", "/api/v1/entries", "machine", entries),
    ]
