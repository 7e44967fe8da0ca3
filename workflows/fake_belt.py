"""A belt that is not there: generated parts pass cameras and are sent to a line over HTTP, some of them with a defect.

Each part is a panel with as many boards as the line has views. What comes is decided by a seed alone. Of 25 parts in
a row 18 are good, 4 have a defect, and the rest are faults, each in another way: a camera sends nothing, the lamp is
off, a file is cut off.
"""

from __future__ import annotations

import json
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import cv2
import numpy as np

from flawscope.arrays import UInt8Array
from flawscope.datasets.parts import DEFECTS, render

KIND = "board"
"""Kind of the boards; a detector of it tells their defects reliably at small images."""
SEED = 0
"""Seed of their design, and of what comes."""

_BLOCK = ["good"] * 18 + ["defect"] * 4 + ["missing", "dark", "torn"]
_FIRST = 10_000_000
"""Index of the first board, far from those that the detector learned from."""
_TIMEOUT_S = 5.0


class Panel(NamedTuple):
    """A part as its cameras see it.

    Attributes:
        what: What is wrong with it in words; empty for a good one.
        images: View -> the bytes of an image file; a view of a camera that sent nothing is left out.
    """

    what: str
    images: Mapping[str, bytes]


def panel(number: int, views: Sequence[str], size: int) -> Panel:
    """Return a part of the belt; the same arguments always give the same one.

    Args:
        number: Its number, at least 0.
        views: Names of the views.
        size: Side of the images in pixels.
    """
    block, place = divmod(number, len(_BLOCK))
    rng = np.random.default_rng([SEED, block])
    kind = str(rng.permutation(_BLOCK)[place])
    rng = np.random.default_rng([SEED, block, place])
    at = str(rng.choice(list(views)))
    defect = str(rng.choice(DEFECTS[KIND])) if kind == "defect" else None
    images = {}
    for offset, view in enumerate(views):
        index = _FIRST + number * len(views) + offset
        image, _ = render(KIND, SEED, index, size, defect if view == at else None)
        images[view] = _png(image // 50 if kind == "dark" else image)
    if kind == "missing" and len(images) > 1:
        del images[at]
        return Panel(f"{at}: the camera sent nothing", images)
    if kind in ("missing", "torn"):
        images[at] = images[at][: len(images[at]) // 2]
        return Panel(f"{at}: the file is cut off", images)
    if kind == "dark":
        return Panel("the lamp is off", images)
    return Panel(f"{at}: {defect}" if defect else "", images)


def _png(image: UInt8Array) -> bytes:
    # Fast before small: it is read once, on the same machine.
    encoded = cv2.imencode(".png", image[..., ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 1])[1]
    return bytes(encoded.tobytes())


class FakeBelt:
    """Sends parts to a station over HTTP, one after another, in a thread, until it is stopped.

    Args:
        url: `http://HOST:PORT` of the line.
        station: The station.
        views: Its views.
        size: Side of the images in pixels.
        rate: Parts a second.
        first: Number of the first part.
    """

    def __init__(self, url: str, station: str, views: Sequence[str], size: int, rate: float, first: int) -> None:
        self._url = f"{url}/api/v1/stations/{station}/trigger"
        self._views, self._size, self._period_s, self._next = tuple(views), size, 1 / rate, first
        # No proxy: what goes to this machine must not leave it, whatever the environment says.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        self._lock = threading.Lock()
        self._sent: Counter[str] = Counter()
        self._problem = ""
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="belt", daemon=True)

    @property
    def sent(self) -> Mapping[str, int]:
        """How many parts were sent, by `good` and what was wrong with them."""
        with self._lock:
            return dict(self._sent)

    @property
    def problem(self) -> str:
        """Why the last part could not be sent; empty where it was."""
        with self._lock:
            return self._problem

    def start(self) -> None:
        """Begin to send."""
        self._thread.start()

    def stop(self) -> None:
        """End; a part on its way is answered first."""
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join(2 * _TIMEOUT_S)

    def _run(self) -> None:
        wait_s = 0.0
        while not self._stopping.wait(wait_s):
            started = time.monotonic()
            part = panel(self._next, self._views, self._size)
            problem = self._send(part, f"panel-{self._next}")
            self._next += 1
            with self._lock:
                self._problem = problem
                if not problem:
                    self._sent[part.what or "good"] += 1
            # A slow machine sends less: it does not have to catch up.
            wait_s = max(0.0, started + self._period_s - time.monotonic())

    def _send(self, part: Panel, part_id: str) -> str:
        """Send a part; returns why that failed, empty where it did not."""
        body, kind = _multipart(part.images)
        headers = {"Content-Type": kind, "X-Flawscope": "1"}
        request = urllib.request.Request(f"{self._url}?part_id={part_id}", body, headers)
        try:
            with self._opener.open(request, timeout=_TIMEOUT_S) as answer:
                json.load(answer)
        except (OSError, ValueError) as err:
            return str(err)
        return ""


def _multipart(images: Mapping[str, bytes]) -> tuple[bytes, str]:
    """Return a form with an image file in each field, and its content type."""
    boundary = "panel-0f6c1e"
    body = b"".join(
        f"--{boundary}\r\n"
        f'Content-Disposition: form-data; name="{view}"; filename="{view}.png"\r\n'
        "Content-Type: image/png\r\n\r\n".encode()
        + data
        + b"\r\n"
        for view, data in images.items()
    )
    return body + f"--{boundary}--\r\n".encode(), f"multipart/form-data; boundary={boundary}"
