"""A line for the tests of the page: the real server over a stand-in, and the routes of rooms that it has no part of.

Import it after `importorskip` of what the server needs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import msgspec
import numpy as np
from line_view_stand_in import FakeLine, FakeStation
from starlette.requests import Request
from starlette.responses import Response

from flawscope.runtime.line.clock import boot_id, iso
from flawscope.runtime.line.http import app
from flawscope.runtime.line.http.answers import json_answer
from flawscope.runtime.line.http.context import Api, Context, user_of
from flawscope.runtime.line.http.routes import table
from flawscope.runtime.line.http.server import LineServer
from flawscope.runtime.line.line_config import LineConfig
from flawscope.runtime.line.parts import PartRecord, Verdict, ViewRecord, worst_view
from flawscope.runtime.line.status import LineStatus, StationStatus, ViewStatus
from flawscope.runtime.line.users.line_users import LineUsers


def drawn(seq: int, is_map: bool) -> np.ndarray:
    """Return an image of a part, uint8 [120, 160, 3] BGR; with the map a red spot lies on it."""
    image = np.full((120, 160, 3), 90 + seq % 5 * 12, np.uint8)
    cv2.rectangle(image, (30, 20), (130, 100), (150, 150, 150), -1)
    cv2.putText(image, str(seq), (50, 70), cv2.FONT_HERSHEY_SIMPLEX, 1.0, (20, 20, 20), 2)
    if is_map:
        cv2.circle(image, (110, 40), 18, (0, 0, 255), -1)
    return image


class PageStation(FakeStation):
    """A station that gives parts with scores against a threshold of 4."""

    threshold = 4.0
    revision = 0
    views: Sequence[str] = ("left",)

    def part(
        self, scores: Sequence[float | None], part_id: str = "", reason: str = "", image: str = "", age_s: float = 0.0
    ) -> int:
        """Give a part its verdict by its scores, one a view; None: a fault, for the reason."""
        with self.line.lock:
            self.line.last_seq += 1
            seq = self.line.last_seq
        found = tuple(self._view(view, score, reason, image) for view, score in zip(self.views, scores, strict=True))
        worst = worst_view(found)
        latency = {"collected": 1.0, "scored": 6.0 + seq % 7, "verdict": 8.0 + seq % 7 + (30.0 if seq % 41 == 0 else 0)}
        now = time.time_ns(), time.monotonic_ns()
        utc, mono = (value - round(age_s * 1e9) for value in now)
        record = PartRecord(
            seq, self.name, part_id, iso(utc), mono, boot_id(), 1, worst.verdict, worst.reason,
            score=worst.score, threshold=worst.threshold, threshold_revision=worst.threshold_revision,
            latency_ms=latency, views=found,
        )  # fmt: skip
        self.line.journal.add(record)
        self.given[worst.verdict] += 1
        self.change(self.state)
        return seq

    def _view(self, view: str, score: float | None, reason: str, image: str) -> ViewRecord:
        if score is None:
            return ViewRecord(view, "fault", reason or "scene", "brightness 3, expected 40 to 220")  # type: ignore[arg-type]
        verdict: Verdict = "accept" if score <= self.threshold else "reject"
        return ViewRecord(
            view, verdict, score=score, threshold=self.threshold, threshold_revision=self.revision,
            bundle="1f" * 32, image=image or f"images/{view}.png",
        )  # fmt: skip

    def status(self) -> StationStatus:
        status = super().status()
        reason = {"error": "source left: the camera does not answer", "halted": ""}.get(self.state, "")
        views = [ViewStatus(view, "tile", "1f" * 32, self.threshold, self.revision) for view in self.views]
        return msgspec.structs.replace(status, reason=reason, views=tuple(views))


class PageLine(FakeLine):
    """The line, with what the routes below keep."""

    def __init__(self) -> None:
        super().__init__()
        self.reviews: list[dict[str, Any]] = []
        self.draw: Callable[[int, str, bool], np.ndarray] = lambda seq, view, is_map: drawn(seq, is_map)

    def add(self, name: str, is_triggered: bool = False) -> PageStation:
        station = PageStation(self, name, is_triggered)
        self.stations[name] = station
        return station

    def status(self) -> LineStatus:
        status = super().status()
        return msgspec.structs.replace(
            status, utc=iso(time.time_ns()), mono_ns=time.monotonic_ns(), boot_id=boot_id(), timezone="Europe/Berlin",
            sinks=(), line="press-3",
        )  # fmt: skip


def rooms(context: Context) -> list[Api]:
    """Return the routes of images and reviews."""
    line: Any = context.line

    async def live(request: Request) -> Response:
        query = request.query_params
        image = await context.call(line.draw, int(query["seq"]), query["view"], query["map"] == "1")
        return Response(
            cv2.imencode(".jpg", image)[1].tobytes(), media_type="image/jpeg", headers={"x-flawscope-seq": query["seq"]}
        )

    async def parts(request: Request) -> Response:
        query = request.query_params
        found = line.journal.parts(
            0, 1 << 30, query.get("station"), query.get("verdict"), query.get("order") == "newest"
        )
        if (reviewed := query.get("reviewed")) is not None:
            seen = {row["seq"] for row in line.reviews}
            found = [part for part in found if (part.seq in seen) == (reviewed == "1")]
        return json_answer({"parts": found[: int(query.get("limit", 100))]})

    async def stored(request: Request) -> Response:
        file, seq = request.path_params["file"], request.path_params["seq"]
        view = file.removesuffix(".png")
        image = await context.call(line.draw, seq, view.removesuffix("-map"), view.endswith("-map"))
        return Response(cv2.imencode(".png", image)[1].tobytes(), media_type="image/png")

    async def review(request: Request) -> Response:
        row = {**await request.json(), "seq": request.path_params["seq"], "actor": user_of(request).name}
        line.reviews.append({**row, "utc": iso(time.time_ns())})
        return json_answer({"link": len(line.reviews)})

    async def reviews(request: Request) -> Response:
        return json_answer({"reviews": [row for row in line.reviews if row["seq"] == request.path_params["seq"]]})

    return [
        Api("GET", "/stations/{station}/live.jpg", "operator", live),
        Api("GET", "/api/v1/parts", "operator", parts),
        Api("GET", "/api/v1/parts/{seq:int}/reviews", "operator", reviews),
        Api("GET", "/api/v1/parts/{seq:int}/{file}", "operator", stored),
        Api("POST", "/api/v1/parts/{seq:int}/review", "operator", review),
    ]


class PageHere:
    """The server over stations `top` (one view) and `side` (two views), and its address."""

    def __init__(
        self, state: Path, monkeypatch: Any, names: Sequence[str] = ("top",), listen: str = "127.0.0.1:0"
    ) -> None:
        # First, as the first route that fits answers.
        monkeypatch.setattr(app, "ROUTES", (rooms, *table.ROUTES))
        self.line = PageLine()
        views = {name: ("left", "right") if name == "side" else ("left",) for name in names}
        pushed = {"source": {"kind": "push"}, "bundle": "b.flaw"}
        stations = [{"name": name, "views": [{"name": view, **pushed} for view in views[name]]} for name in names]
        raw = {"line": {"name": "press-3", "state": str(state)}, "stations": stations, "http": {"listen": listen}}
        config = msgspec.convert(raw, LineConfig, dec_hook=lambda _, value: Path(value))
        for name in names:
            self.line.add(name).views = views[name]
        assert config.http is not None
        self.line.users = LineUsers.open(state, config.http)
        self.line.users.start(self.line.journal)
        self.server = LineServer(config, self.line)
        for name, station in self.line.stations.items():
            station.outputs.append(self.server.output(name))
        self.server.start()
        self.url = "http://{}:{}".format(*self.server.address)

    @property
    def top(self) -> PageStation:
        station = self.line.stations["top"]
        assert isinstance(station, PageStation)
        return station

    def close(self) -> None:
        self.server.stop()
        if self.line.users is not None:
            self.line.users.stop()
