"""Parts over HTTP: a trigger, with the part's images where the station has no cameras."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from flawscope.runtime.line.http.answers import json_answer
from flawscope.runtime.line.http.bodies import SMALLER, images_of, read_body, too_large
from flawscope.runtime.line.http.context import Api, Context, body_bytes, check_empty, read_nothing
from flawscope.runtime.line.http.guard import content_type
from flawscope.runtime.line.http.query import Query
from flawscope.runtime.line.http.refusal import Refusal
from flawscope.runtime.line.line_config import StationOptions
from flawscope.runtime.line.sources.table import FolderSource, PushSource, SourceOptions
from flawscope.text import printable

GRACE_S = 0.2
"""Longer than its deadline a request waits for a verdict: one at the deadline takes a moment until it is here."""


def routes(context: Context) -> list[Api]:
    """Return the route of triggers."""
    return [Api("POST", "/api/v1/stations/{station}/trigger", "machine", _Triggers(context).trigger)]


class _Triggers:
    def __init__(self, context: Context) -> None:
        self._context = context

    async def trigger(self, request: Request) -> Response:
        options, station = self._context.station(request)
        query = Query(request)
        waits = query.word("wait", ("0", "1")) == "1"
        part_id = query.text("part_id")
        query.end()
        images = await self._images(request, options)
        if _is_pushed(options):
            if not images:
                views = ", ".join(view.name for view in options.views)
                raise Refusal(400, f"expected an image of {views}, got none. Send them in the body.")
            seq = await self._context.act(station.push, images, part_id)
        elif not station.is_triggered:
            raise Refusal(
                409,
                f"expected a station with a software trigger, got {options.name}, whose parts begin with an image: "
                f"{_sources(options)}.",
            )
        else:
            seq = await self._context.act(station.trigger, part_id)
        if not waits:
            return json_answer({"seq": seq}, 202)
        told = await self._context.news.verdict(seq, options.deadline_ms / 1000 + GRACE_S, request.receive)
        if told is None:
            # Nothing that reads as an accept: who asked has to take silence as a fault.
            return json_answer({"seq": seq, "verdict": None}, 202)
        signal = told.signal
        return json_answer(
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
        announced = request.headers.get("content-length", "")
        has_body = "transfer-encoding" in request.headers or (announced.isdecimal() and int(announced) > 0)
        if not has_body and not kind:
            return {}
        if not _is_pushed(options):
            # Before its size, which is no matter here.
            if has_body and kind != "application/json":
                raise Refusal(
                    409,
                    f"expected no image, as station {options.name} takes none over HTTP, got one: "
                    f"{_sources(options)}. {_instead(options)}",
                )
            await read_nothing(request)
            return {}
        most = body_bytes(options)
        if announced.isdecimal() and int(announced) > most:
            raise too_large(most, SMALLER)
        with self._context.memory.holding(int(announced) if announced.isdecimal() else most):
            body = await read_body(request.receive, most, advice=SMALLER)
            if kind == "application/json":
                check_empty(body)
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
                raise too_large(round(largest * (1 << 20)), SMALLER)
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


def _sources(options: StationOptions) -> str:
    """Return in words where the images of a station come from."""
    return ", ".join(f"view {view.name} has its images from {_source(view.source)}" for view in options.views)


def _source(source: SourceOptions) -> str:
    kind = str(source.__struct_config__.tag)
    # Of a network camera only the kind: an address is no business of whoever may send images.
    if isinstance(source, FolderSource):
        return f"the {kind} {printable(str(source.path))}"
    return f"a source of the kind {kind}"


def _instead(options: StationOptions) -> str:
    folders = all(isinstance(view.source, FolderSource) for view in options.views)
    here = "Put the image into that folder" if folders else "Leave it out"
    return f"{here}, name a station with the source `push`, or give this one that source."


def _is_pushed(options: StationOptions) -> bool:
    return isinstance(options.views[0].source, PushSource)
