"""Reviews: what operators say of parts, and the data set that comes of it. A review never changes a verdict."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from flawscope.runtime.line.gallery.defect_types import problem_of
from flawscope.runtime.line.gallery.export import Wanted, exported
from flawscope.runtime.line.gallery.zip_stream import zipped
from flawscope.runtime.line.http.answers import json_answer
from flawscope.runtime.line.http.bodies import read_body
from flawscope.runtime.line.http.context import SMALL_BYTES, Api, Context, user_of
from flawscope.runtime.line.http.news import disconnected
from flawscope.runtime.line.http.query import Query
from flawscope.runtime.line.http.refusal import Refusal
from flawscope.runtime.line.http.routes.records import part_on_record
from flawscope.runtime.line.journal.reviews import ACTION, Label, Said, object_of
from flawscope.runtime.line.parts import PartRecord
from flawscope.text import NOT_JSON, encode_json, printable

RECORD_S = 5.0
"""Longest time that an answer waits until a review is on record."""

_LONGEST_NOTE = 500


class Asked(msgspec.Struct, forbid_unknown_fields=True):
    """The body of a review.

    Attributes:
        label: What the image shows.
        view: Name of the view; empty for all of the part.
        type: Type of the defect; empty where none is named.
        note: What the reviewer has to say.
    """

    label: Label
    view: str = ""
    type: str = ""
    note: str = ""


def routes(context: Context) -> list[Api]:
    """Return the routes of reviews."""
    line = context.line

    async def part_of(request: Request) -> PartRecord:
        return await part_on_record(context, request.path_params["seq"])

    async def review(request: Request) -> Response:
        Query(request).end()
        asked = _asked(await read_body(request.receive, SMALL_BYTES))
        part = await part_of(request)
        views = [view.view for view in part.views]
        if asked.view and asked.view not in views:
            known = ", ".join(views) or "none"
            raise Refusal(400, f"view: expected one of {known}, got {printable(asked.view[:80])!r}. Name another.")
        user = user_of(request)
        said = Said(asked.view, asked.label, asked.type)
        line.journal.event(
            ACTION,
            actor=user.name,
            role=user.role,
            object=object_of(part.seq),
            new=encode_json(said).decode(),
            reason=asked.note,
        )
        is_recorded = await context.call(line.journal.flush, RECORD_S)
        return json_answer({"seq": part.seq, "recorded": is_recorded}, 200 if is_recorded else 202)

    async def reviews(request: Request) -> Response:
        Query(request).end()
        part = await part_of(request)
        return json_answer({"reviews": await context.call(line.journal.reviews, part.seq)})

    async def export(request: Request) -> Response:
        query = Query(request)
        wanted = Wanted(query.word("station", tuple(context.options)) or "", query.text("view"))
        query.end()
        if line.gallery is None:
            raise Refusal(404, "expected a line that keeps images, got one that does not.")
        return _Zip(context, zipped(exported(line.journal, line.gallery.state, wanted)))

    return [
        Api("POST", "/api/v1/parts/{seq:int}/review", "operator", review),
        Api("GET", "/api/v1/parts/{seq:int}/reviews", "operator", reviews),
        Api("GET", "/api/v1/reviews/export", "engineer", export),
    ]


def _asked(body: bytes) -> Asked:
    try:
        asked = msgspec.json.decode(body, type=Asked)
    except NOT_JSON as err:
        raise Refusal(
            400, f"expected a JSON object with label (normal, anomalous or unsure), perhaps view, type and note: {err}."
        ) from err
    if asked.type and asked.label != "anomalous":
        raise Refusal(400, f"type: expected none of an image that is {asked.label}, got one. Leave it out.")
    if asked.type and (problem := problem_of(asked.type)):
        raise Refusal(400, f"type: {problem}, got {printable(asked.type[:80])!r}. Choose another.")
    if len(asked.note) > _LONGEST_NOTE or printable(asked.note) != asked.note:
        raise Refusal(400, f"note: expected at most {_LONGEST_NOTE} characters in one line, got others. Shorten it.")
    return asked


class _Zip(Response):
    """A zip file that is sent while it is made."""

    def __init__(self, context: Context, pieces: Iterator[bytes]) -> None:
        self._context, self._pieces = context, pieces

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        step: Callable[[], bytes | None] = lambda: next(self._pieces, None)  # noqa: E731
        # The first piece before the answer begins: a journal that cannot be read is told with a status of its own.
        piece = await self._context.call(step)
        headers = [
            (b"content-type", b"application/zip"),
            (b"content-disposition", b'attachment; filename="reviewed.zip"'),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        gone = asyncio.ensure_future(disconnected(receive))
        try:
            while piece is not None and scope["method"] == "GET":
                await send({"type": "http.response.body", "body": piece, "more_body": True})
                if gone.done():
                    # Or may not have it any more. Not ended as a whole one: what has come is a part of it.
                    return
                piece = await self._context.call(step)
        finally:
            gone.cancel()
        await send({"type": "http.response.body", "body": b"", "more_body": False})
