"""A whole line that images are pushed to over HTTP, and a client. Import it after `importorskip` of what it needs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import httpx
import numpy as np
import yaml
from line_control import wait_for
from line_project import write_line

from flawscope.runtime.line.config_file import read_config
from flawscope.runtime.line.line import Line

WAIT_S = 30.0
_SENDS = {"X-Flawscope": "1"}


class LineHere:
    """A line that runs, and what a test asks of it."""

    def __init__(self, line: Line, client: httpx.Client) -> None:
        self.line, self.client = line, client

    def push(self, data: bytes, station: str = "top") -> dict[str, Any]:
        """Send an image, wait for its verdict and until all of it is kept; returns what the sender is told."""
        headers = {**_SENDS, "Content-Type": "application/octet-stream"}
        answer = self.client.post(f"/api/v1/stations/{station}/trigger?wait=1", content=data, headers=headers)
        assert answer.status_code == 200, answer.text
        told: dict[str, Any] = answer.json()
        # The sender hears of it with the PLC: record and image follow.
        gallery = self.line.gallery
        assert gallery is not None
        wait_for(lambda: self.line.journal.part_of(told["seq"]) is not None)
        if told["reason"] not in ("not_ready", "overrun"):
            wait_for(lambda: gallery.recent.find(station, told["seq"]) is not None and not gallery.status().waiting)
        return told

    def get(self, path: str, status: int = 200) -> httpx.Response:
        answer = self.client.get(path)
        assert answer.status_code == status, answer.text[:500]
        return answer

    def post(self, path: str, content: Any, status: int = 200) -> Any:
        answer = self.client.post(path, json=content, headers=_SENDS)
        assert answer.status_code == status, answer.text
        return answer.json()

    def refused(self, path: str, status: int) -> str:
        return str(self.get(path, status).json()["error"])


@contextlib.contextmanager
def line_here(folder: Path, *, images: dict[str, Any] | None = None, **station: Any) -> Iterator[LineHere]:
    """Run a line of one station for a block; the bundle accepts brightness up to 150.

    Args:
        folder: Where it lies; its state folder is `state`.
        images: The key `images` of its configuration.
        **station: Further keys of the station.
    """
    path = write_line(folder, **station)
    config = yaml.safe_load(path.read_text())
    # The disk of the machine that runs the tests may be full; what a line makes of that has tests of its own.
    limits = {"prune_below_gb": 0.0, "stop_below_gb": 0.0, "fault_below_gb": 0.0}
    path.write_text(yaml.safe_dump({**config, "images": {**limits, **(images or {})}}))
    line = Line(read_config(path), lambda text: None)
    line.start()
    try:
        assert line._server is not None
        host, port = line._server.address
        # trust_env: proxies of the machine must not get these requests.
        with httpx.Client(base_url=f"http://{host}:{port}", timeout=WAIT_S, trust_env=False) as client:
            yield LineHere(line, client)
    finally:
        line.stop()


def spotted(value: int, spot: int, side: int = 16) -> bytes:
    """Return a PNG of one brightness with a spot of another in its upper left corner."""
    image = np.full((side, side, 3), value, np.uint8)
    image[: side // 4, : side // 4] = spot
    return cv2.imencode(".png", image)[1].tobytes()


def decoded(data: bytes) -> np.ndarray:
    """Return the pixels of an image file as OpenCV reads them, BGR."""
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    assert image is not None
    return image
