"""Storing images: one thread writes them, without loss, after their parts have their verdicts."""

from __future__ import annotations

import contextlib
import os
import threading
import time
import zlib
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np

from flawscope.arrays import Float32Array
from flawscope.errors import DataError, FlawscopeError
from flawscope.files import write_bytes
from flawscope.runtime.line.gallery.drawing import levels_of
from flawscope.runtime.line.gallery.keeper import Kept
from flawscope.runtime.line.gallery.paths import image_path, map_path
from flawscope.runtime.line.journal.recorder import Recorder
from flawscope.runtime.line.line_config import ImageOptions
from flawscope.runtime.line.parts import Verdict

MOST_WAITING = 512
"""Images that may wait for the disk; twice as many where they were planned before that."""

MOST_WAITING_BYTES = 256 << 20
"""Memory of images that may wait for the disk; twice as much where they were planned before that."""

_TELL_S = 10.0
"""Between two events about images that are left out."""


@dataclass(frozen=True)
class StoreCounts:
    """What became of images since the start.

    Attributes:
        stored: Images on the disk.
        left_out: Images that should have been stored; their records name no file.
        lost: Images that a record names and that could not be written.
        waiting: Images that wait for the disk, and that which is being written.
        problem: Why the last one could not be written; empty where it could.
    """

    stored: int = 0
    left_out: int = 0
    lost: int = 0
    waiting: int = 0
    problem: str = ""


class ImageStore:
    """Stores images, from `start` to `stop`. `plan` and `put` return at once; calls may come from any thread.

    Args:
        state: State folder of the line.
        options: What is stored.
        journal: Is told what was lost.
        has_room: Says whether there is room for images on the disk.
        stored: Called with the bytes of each file that was written.
    """

    def __init__(
        self,
        state: Path,
        options: ImageOptions,
        journal: Recorder,
        has_room: Callable[[], bool],
        stored: Callable[[int], None] = lambda size: None,
    ) -> None:
        self._state, self._options, self._journal = state, options, journal
        self._has_room, self._stored = has_room, stored
        self._wake = threading.Condition()
        self._queue: deque[tuple[int, Kept]] = deque()
        self._waiting_bytes = 0
        self._counts = StoreCounts()
        self._untold, self._told_at = 0, float("-inf")
        self._is_stopping = self._has_ended = self._is_writing = False
        self._thread = threading.Thread(target=self._run, name="image store", daemon=True)

    @property
    def counts(self) -> StoreCounts:
        """What became of images."""
        with self._wake:
            return replace(self._counts, waiting=len(self._queue) + self._is_writing)

    def start(self) -> None:
        """Begin to write."""
        self._thread.start()

    def stop(self, timeout_s: float = 5.0) -> None:
        """Write what waits, up to a time, and end; the rest is lost, and said."""
        with self._wake:
            self._is_stopping = True
            self._wake.notify()
        if self._thread.ident is not None:
            self._thread.join(timeout_s)
        with self._wake:
            self._has_ended = True
            rest = list(self._queue)
            self._queue.clear()
        for seq, kept in rest:
            self._lose(seq, kept, "the line ended before it was written")
        self._tell_left_out(at_once=True)

    def plan(self, seq: int, utc_ns: int, verdict: Verdict, images: Sequence[Kept]) -> tuple[str, ...]:
        """Return the paths of images, empty for those that are not stored; see `KeepsImages.plan`."""
        if not self._is_wanted(seq, verdict):
            return ("",) * len(images)
        with self._wake:
            is_full = len(self._queue) >= MOST_WAITING or self._waiting_bytes >= MOST_WAITING_BYTES
            if is_full or self._is_stopping or not self._has_room():
                left_out = sum(image.image is not None for image in images)
                self._counts = replace(self._counts, left_out=self._counts.left_out + left_out)
                self._untold += left_out
                return ("",) * len(images)
        return tuple(
            "" if image.image is None else image_path(seq, utc_ns, image.view, image.image) for image in images
        )

    def put(self, seq: int, images: Sequence[Kept]) -> None:
        """Queue the images whose records name a file."""
        lost = []
        with self._wake:
            for image in images:
                if not image.record.image or image.image is None:
                    continue
                is_full = len(self._queue) >= 2 * MOST_WAITING or self._waiting_bytes >= 2 * MOST_WAITING_BYTES
                if is_full or self._has_ended:
                    lost.append(image)
                    continue
                self._queue.append((seq, image))
                self._waiting_bytes += image.nbytes
            self._wake.notify()
        for image in lost:
            self._lose(seq, image, "too many images waited for the disk")

    def _is_wanted(self, seq: int, verdict: Verdict) -> bool:
        keep = self._options.keep
        if keep != "rejects" or verdict != "accept":
            return keep != "none"
        # By a hash: every hundredth number could always be a part of the same station.
        return zlib.crc32(b"%d" % seq) < self._options.accepts * 2**32

    def _run(self) -> None:
        # Verdicts come first. Linux has a priority for each thread; others have none, and then it stays what it is.
        with contextlib.suppress(OSError, AttributeError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._queue or self._is_stopping, 1.0)
                if self._has_ended or (self._is_stopping and not self._queue):
                    return
                seq, kept = self._queue.popleft() if self._queue else (0, None)
                self._is_writing = kept is not None
            if kept is not None:
                self._write(seq, kept)
                with self._wake:
                    self._waiting_bytes -= kept.nbytes
                    self._is_writing = False
            # Else its pixels would stay until the next one comes.
            kept = None
            self._tell_left_out()

    def _write(self, seq: int, kept: Kept) -> None:
        try:
            written = [(kept.record.image, stored_bytes(kept))]
            if self._options.maps and (level := levels_of(kept)) is not None:
                written.append((map_path(kept.record.image), map_bytes(level)))
            for path, data in written:
                write_bytes(self._state / path, data)
                self._stored(len(data))
        except Exception as err:  # whatever it is: the next image must be written
            self._lose(seq, kept, str(err) if isinstance(err, FlawscopeError) else f"{type(err).__name__}: {err}")
            return
        with self._wake:
            self._counts = replace(self._counts, stored=self._counts.stored + 1, problem="")

    def _lose(self, seq: int, kept: Kept, reason: str) -> None:
        self._journal.event("image_lost", object=f"part {seq}", new=kept.record.image, reason=reason)
        with self._wake:
            self._counts = replace(self._counts, lost=self._counts.lost + 1, problem=reason)

    def _tell_left_out(self, *, at_once: bool = False) -> None:
        """Say how many images were left out; not for each of them, as there may be hundreds in a second."""
        with self._wake:
            if not self._untold or (not at_once and time.monotonic() < self._told_at + _TELL_S):
                return
            count, self._untold, self._told_at = self._untold, 0, time.monotonic()
        self._journal.event(
            "images_left_out", object="images", new=f"{count}", reason="the disk is too full or too slow"
        )


def stored_bytes(kept: Kept) -> bytes:
    """Return the bytes of the file of an image: those of a file as they came, pixels as PNG.

    Raises:
        DataError: If there is no image, or it cannot be encoded.
    """
    image = kept.image
    if image is None:
        raise DataError(f"{kept.view}: expected an image, got none.")
    if isinstance(image, bytes):
        return image
    # OpenCV writes the order BGR; a reversed view without a copy is enough for it to refuse.
    turned = cv2.cvtColor(image, cv2.COLOR_RGB2BGR) if image.ndim == 3 and kept.color == "rgb" else image
    return _png(turned)


def map_bytes(level: Float32Array) -> bytes:
    """Return the file of a map: a grey PNG of 16 bits that shows the whole image.

    The middle of its range is the pixel threshold, its end twice as much and all above.

    Args:
        level: float32 [h, w] from 0 to 1, as `levels_of` gives it.

    Raises:
        DataError: If it cannot be encoded.
    """
    return _png(np.rint(level * 65535).astype(np.uint16))


def _png(image: np.ndarray) -> bytes:
    # With OpenCV's own settings: each other one that was tried is slower, and hardly smaller.
    is_done, data = cv2.imencode(".png", image)
    if not is_done:
        raise DataError(f"expected an image that can be written as PNG, got {image.shape} {image.dtype}.")
    return data.tobytes()
