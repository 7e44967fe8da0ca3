"""Images of parts: the last ones from memory, others as they are stored."""

from __future__ import annotations

import asyncio
import time

from starlette.requests import Request
from starlette.responses import Response

from flawscope.errors import DataError
from flawscope.imaging.png import encode_png
from flawscope.runtime.line.gallery.drawing import levels_of, pixels_of, with_map
from flawscope.runtime.line.gallery.gallery import Gallery
from flawscope.runtime.line.gallery.keeper import Kept
from flawscope.runtime.line.gallery.store import stored_bytes
from flawscope.runtime.line.gallery.stored import Shown, as_shown, drawn_with_map, read_image
from flawscope.runtime.line.http.context import Api, Context
from flawscope.runtime.line.http.query import Query
from flawscope.runtime.line.http.refusal import Refusal
from flawscope.runtime.line.http.routes.records import absent, part_on_record
from flawscope.runtime.line.parts import PartRecord, ViewRecord
from flawscope.text import printable

COMES_S = 0.2
"""Longest wait for the image of a part whose verdict was told: it is handed over when the PLC knows it."""

_MAP = "-map"
_LARGEST = 1 << 53


def routes(context: Context) -> list[Api]:
    """Return the routes of images."""

    async def live(request: Request) -> Response:
        options, _ = context.station(request)
        query = Query(request)
        view = query.word("view", tuple(view.name for view in options.views))
        with_heat = query.word("map", ("0", "1")) == "1"
        seq = query.number("seq", 0, 0, _LARGEST)
        query.end()
        gallery = context.line.gallery
        found = await _found(gallery, options.name, seq, view) if gallery is not None else None
        if gallery is None or found is None:
            raise _gone(f"part {seq}" if seq else "a part with an image")
        try:
            data = await context.call(gallery.recent.jpeg, found[0], found[1], with_heat=with_heat)
        except DataError as err:
            raise Refusal(404, str(err)) from err
        answer = Response(data, media_type="image/jpeg")
        answer.headers["x-flawscope-seq"] = str(found[0])
        return answer

    async def stored(request: Request) -> Response:
        seq, name = request.path_params["seq"], request.path_params["name"]
        Query(request).end()
        part = await part_on_record(context, seq)
        if context.line.gallery is None:
            raise await absent(context, seq)
        try:
            shown = await context.call(_image_of, context.line.gallery, part, name)
        except DataError as err:
            raise Refusal(404, str(err)) from err
        return Response(shown.data, media_type=shown.media_type)

    return [
        Api("GET", "/stations/{station}/live.jpg", "operator", live),
        Api("GET", "/api/v1/parts/{seq:int}/{name}.png", "operator", stored),
    ]


async def _found(gallery: Gallery, station: str, seq: int, view: str | None) -> tuple[int, Kept] | None:
    """Return number and image of a part in memory; 0 is the last one."""
    end = time.monotonic() + COMES_S
    while (found := gallery.recent.find(station, seq or None, view)) is None:
        if not seq or time.monotonic() >= end or not gallery.recent.is_to_come(station, seq):
            return None
        await asyncio.sleep(0.01)
    return found


def _image_of(gallery: Gallery, part: PartRecord, name: str) -> Shown:
    """Return the image that a path names, by the name of a view, perhaps with `-map` behind it.

    Raises:
        Refusal: If the part has no such view, or its image is not there.
        DataError: If it cannot be read.
    """
    views = {view.view: view for view in part.views}
    if name in views:
        return _plain(gallery, part, views[name])
    view = views.get(name.removesuffix(_MAP)) if name.endswith(_MAP) else None
    if view is None:
        known = ", ".join(views) or "none"
        raise Refusal(404, f"expected a view of part {part.seq} ({known}), got {printable(name[:80])!r}. Name another.")
    recent = gallery.recent.found(part.seq, view.view)
    if recent is not None and (drawn := _drawn(recent)) is not None:
        return drawn
    if (data := drawn_with_map(gallery.state, view)) is None:
        raise _gone(f"the anomaly map of part {part.seq}")
    return Shown(data, "image/png")


def _plain(gallery: Gallery, part: PartRecord, view: ViewRecord) -> Shown:
    data = read_image(gallery.state, view)
    if data is None and (recent := gallery.recent.found(part.seq, view.view)) is not None:
        # Without loss, from memory too: what is shown as PNG is what was inspected.
        data = stored_bytes(recent)
    if data is None:
        raise _gone(f"the image of part {part.seq}")
    return as_shown(data, view.view)


def _drawn(recent: Kept) -> Shown | None:
    if (level := levels_of(recent)) is None:
        return None
    return Shown(encode_png(with_map(pixels_of(recent), level, recent.boxes)), "image/png")


def _gone(what: str) -> Refusal:
    return Refusal(404, f"expected {what} in memory or on the disk, got none: it was not kept, or is gone.")
