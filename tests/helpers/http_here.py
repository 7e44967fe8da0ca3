"""The HTTP server of a stand-in of a line, and a client. Import it after `importorskip` of what it needs."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import msgspec
from line_view_stand_in import FakeLine, FakeStation

from flawscope.runtime.line.http.server import LineServer
from flawscope.runtime.line.line_config import LineConfig
from flawscope.runtime.line.users.line_users import LineUsers

WAIT_S = 20.0
GOES = {"X-Flawscope": "1"}
PNG = {"Content-Type": "image/png"}


def config(state: Path, listen: str = "127.0.0.1:0", deadline_ms: float = 5000.0) -> LineConfig:
    def view(name: str, source: dict[str, Any]) -> dict[str, Any]:
        return {"name": name, "source": source, "bundle": "b.flaw", "slot_mb": 0.5}

    camera = {"kind": "genicam", "camera": "c"}
    stations = [
        {"name": "one", "views": [view("left", {"kind": "push"})], "deadline_ms": deadline_ms},
        {"name": "two", "views": [view("left", {"kind": "push"}), view("right", {"kind": "push"})]},
        {"name": "asked", "views": [view("left", {**camera, "trigger": "software"})]},
        {"name": "wired", "views": [view("left", camera)]},
        {"name": "filed", "views": [view("left", {"kind": "folder", "path": "/in/parts"})]},
    ]
    raw = {"line": {"name": "l", "state": str(state)}, "stations": stations, "http": {"listen": listen}}
    return msgspec.convert(raw, LineConfig, dec_hook=lambda _, value: Path(value))


class Here:
    """A server, its line, and a client."""

    def __init__(self, state: Path, deadline_ms: float = 5000.0, now: Callable[[], float] = time.monotonic) -> None:
        self.line = FakeLine()
        for name in ("one", "two", "asked", "wired", "filed"):
            self.line.add(name, is_triggered=name == "asked")
        options = config(state, deadline_ms=deadline_ms)
        assert options.http is not None
        self.line.users = self.users = LineUsers.open(state, options.http, now)
        self.users.start(self.line.journal)
        self.server = LineServer(options, self.line)
        for name, station in self.line.stations.items():
            station.outputs.append(self.server.output(name))
        self.server.start()
        self.url = "http://{}:{}".format(*self.server.address)
        # trust_env: proxies of the machine must not get these requests.
        self.client = httpx.Client(base_url=self.url, timeout=WAIT_S, trust_env=False)

    @property
    def one(self) -> FakeStation:
        return self.line.stations["one"]

    def get(self, path: str, status: int = 200) -> Any:
        answer = self.client.get(path)
        assert answer.status_code == status, answer.text
        return answer.json()

    def post(self, path: str, status: int, **options: Any) -> Any:
        answer = self.client.post(path, **options)
        assert answer.status_code == status, answer.text
        return answer.json()

    def refused(self, path: str, status: int, **options: Any) -> str:
        error = self.post(path, status, **options)
        assert set(error) == {"error"}
        assert "\n" not in error["error"]
        return str(error["error"])

    def close(self) -> None:
        self.client.close()
        self.server.stop()
        self.users.stop()


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)
