"""Result of one inspected image. It holds the anomaly map and never the image: who keeps results keeps no images."""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from flawscope.arrays import UInt8Array
from flawscope.bundle import PartShift
from flawscope.errors import ArgumentError, FlawscopeError
from flawscope.files import check_new_file
from flawscope.imaging.png import write_png
from flawscope.path_kinds import path_of
from flawscope.text import name_bytes, storable

Decision = Literal["accept", "reject", "fault"]


@dataclass(frozen=True)
class Box:
    """A connected region of the anomaly map above the pixel threshold.

    Attributes:
        x: Left edge in pixels of the source image.
        y: Top edge in pixels of the source image.
        width: Width in pixels of the source image.
        height: Height in pixels of the source image.
        area_px: Area in pixels of the anomaly map.
        peak: Largest map value inside.
    """

    x: int
    y: int
    width: int
    height: int
    area_px: int
    peak: float


@dataclass(frozen=True)
class ZoneScore:
    """The score of one zone of an image.

    Attributes:
        name: Name of the zone.
        score: Largest value of the anomaly map in the zone.
        threshold: Threshold of the zone; None if the bundle is not calibrated.
    """

    name: str
    score: float
    threshold: float | None

    @property
    def is_rejected(self) -> bool:
        """Whether the zone rejects the image."""
        return self.threshold is not None and self.score > self.threshold


class Seen(NamedTuple):
    """What is known of an image before it is read: its name, id and time (UTC), and its file, if it is one."""

    name: str
    id: str | None
    time: datetime
    path: Path | None


class ResultOrigin(Protocol):
    """What a result knows of the inspector that made it: `flawscope.runtime.origin.Origin`."""

    @property
    def digest(self) -> str:
        """Digest of the bundle."""

    @property
    def precision(self) -> str:
        """Precision of the graphs."""

    @property
    def backend(self) -> str:
        """Name of the backend."""

    @property
    def threshold_source(self) -> str:
        """Where the thresholds come from, in words."""

    def draw(self, result: Result, image: Any, color: Literal["rgb", "bgr"]) -> UInt8Array:
        """Return the image of a result under its anomaly map."""


@dataclass(frozen=True, eq=False)  # compared by identity: maps have no single truth value
class Result:
    """The outcome for one image.

    Attributes:
        image: Name of the image.
        decision: `accept`, `reject`, or `fault` when there is no trustworthy answer: never an accept.
        score: Raw, unbounded score; None for a fault without a finite score. With zones that of `zone`.
        threshold: The image threshold; None if the bundle is not calibrated, or no inference took place. With zones
            that of `zone`.
        threshold_revision: Number of the threshold overlay's revision that the threshold is of, 0 for the bundle's own;
            None without a threshold, and for one that a program set (`Inspector.set_thresholds`): it is on no record.
        reason: Reason of a fault; None otherwise.
        anomaly_map: float32 [H, W] at the graph's input size, its part that shows the image where the bundle has
            letterbox, or the image's size where it has tiles; owned by the caller; None for a fault without inference.
        boxes: Regions above the pixel threshold, largest peak first.
        timings_ms: Milliseconds per stage: read, prepare, infer (its share of the batch), decide, total.
        notes: In what the image is unlike all those that the bundle learned from; empty where in nothing.
        part_shift: How far the part lies from where the region of interest was drawn, which was moved there; None where
            it follows no part.
        zones: Score and threshold of each zone; empty without zones, and for a fault.
        zone: Name of the zone whose score is the farthest above its threshold, or the nearest below; None without zones
            or thresholds, and for a fault.
        product: Name of the product whose thresholds were taken; None where the common ones were.
        id: The id that came with the image (`Frame`); None where none did.
        time: When the image was taken, or else read, UTC; None for a result that no inspector made.
        path: The file that the image was; None where it was none.
        source_size: Height and width of the image in pixels; None where it was not read.
        origin: The bundle and inspector that made it; None for a result that no inspector made.
    """

    # The defaults are those of a fault without inference, so that a forgotten field can never read as an accept.
    image: str
    decision: Decision
    score: float | None = None
    threshold: float | None = None
    reason: str | None = None
    anomaly_map: npt.NDArray[np.float32] | None = field(default=None, repr=False)  # would fill a log with numbers
    boxes: tuple[Box, ...] = ()
    timings_ms: dict[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    threshold_revision: int | None = None
    part_shift: PartShift | None = None
    zones: tuple[ZoneScore, ...] = ()
    zone: str | None = None
    product: str | None = None
    id: str | None = None
    time: datetime | None = None
    path: Path | None = field(default=None, repr=False)
    source_size: tuple[int, int] | None = field(default=None, repr=False)
    origin: ResultOrigin | None = field(default=None, repr=False)

    @property
    def digest(self) -> str | None:
        """Digest of the bundle; None for a result that no inspector made, as are the next three."""
        return None if self.origin is None else self.origin.digest

    @property
    def precision(self) -> str | None:
        """Precision of the graphs that gave the score."""
        return None if self.origin is None else self.origin.precision

    @property
    def backend(self) -> str | None:
        """Name of the backend that ran them."""
        return None if self.origin is None else self.origin.backend

    @property
    def threshold_source(self) -> str | None:
        """Where the thresholds come from, in words: the bundle, a revision of its overlay, or the program."""
        return None if self.origin is None else self.origin.threshold_source

    @property
    def ratio(self) -> float | None:
        """Score divided by threshold: above 1 is a reject. None without one of them, or a threshold of 0 or below."""
        if self.score is None or self.threshold is None or self.threshold <= 0.0:
            return None
        return self.score / self.threshold

    @property
    def has_map(self) -> bool:
        """Whether there is an anomaly map that can be drawn: one of numbers alone."""
        return self.anomaly_map is not None and bool(np.isfinite(self.anomaly_map).all())

    def draw(self, image: Any = None, *, color: Literal["rgb", "bgr"] = "rgb") -> UInt8Array:
        """Return the image in grey under its anomaly map, in the report's colours, with boxes: uint8 [H, W, 3] RGB.

        The pixel threshold is where yellow becomes orange, in every image of a bundle.

        Args:
            image: The image that was inspected, or its `Frame`: a result keeps no image, since whoever keeps results
                would fill the memory with them. None reads the file again, where it was one.
            color: Order of the channels of an array, as for the inspector.

        Raises:
            ArgumentError: If there is no anomaly map, as for most faults; no inspector made the result; no image is
                given and it was no file; or the image has another size than the one that was inspected.
            ImageError: If the image cannot be read.
        """
        if self.origin is None:
            raise ArgumentError(f"{self.image}: expected a result that an inspector made, got one without a bundle.")
        return self.origin.draw(self, image, color)

    def save(
        self,
        path: Path | str,
        image: Any = None,
        *,
        color: Literal["rgb", "bgr"] = "rgb",
        overwrite: bool = False,
    ) -> None:
        """Write what `draw` returns as PNG, whole or not at all.

        Args:
            path: The file, named `*.png`; its folder is made.
            image: As in `draw`.
            color: As in `draw`.
            overwrite: Whether a PNG that lies there may be replaced.

        Raises:
            ArgumentError: As `draw`; or if the name has another ending, or is taken.
            ImageError: As `draw`.
            StorageError: If it cannot be written.
        """
        target = path_of(path, "path")
        if target.suffix.lower() != ".png":
            raise ArgumentError(f"{target}: expected the name of a PNG file, *.png, got another. Choose another name.")
        check_new_file(target, overwrite=overwrite, kind="png")
        write_png(target, self.draw(image, color=color))

    def to_dict(self) -> dict[str, Any]:
        """Return all but the anomaly map as values that JSON has.

        The keys of `to_json`, then `id`, `time` (ISO 8601, UTC), `digest`, `precision`, `backend`, `ratio`,
        `threshold_source` and `timings_ms`, always all of them.
        """
        return {
            **self.to_json(),
            "id": None if self.id is None else storable(self.id),
            "time": None if self.time is None else self.time.isoformat(timespec="milliseconds"),
            "digest": self.digest,
            "precision": self.precision,
            "backend": self.backend,
            "ratio": self.ratio,
            "threshold_source": None if self.threshold_source is None else storable(self.threshold_source),
            "timings_ms": dict(self.timings_ms),
        }

    def to_json(self) -> dict[str, Any]:
        """Return the line that `flawscope score --json` prints, without the map. Its keys are a public format.

        The name of a file that is not UTF-8 is shown with its bytes as escapes; only then is there a key `image_base64`
        with the bytes of the whole name.
        """
        line: dict[str, Any] = {
            "image": storable(self.image),
            "score": self.score,
            "threshold": self.threshold,
            "threshold_revision": self.threshold_revision,
            "decision": self.decision,
            "boxes": [
                {"x": b.x, "y": b.y, "width": b.width, "height": b.height, "area_px": b.area_px, "peak": b.peak}
                for b in self.boxes
            ],
            "latency_ms": self.timings_ms.get("total"),
        }
        if (name := name_bytes(self.image)) is not None:
            line["image_base64"] = base64.b64encode(name).decode()
        if self.part_shift is not None:
            # Plus zero: no -0.0 of a part that lies where it was drawn.
            right, down = (round(shift, 2) + 0.0 for shift in (self.part_shift.right, self.part_shift.down))
            line["part_shift"] = {"x": right, "y": down}
        if self.reason is not None:
            line["reason"] = storable(self.reason)
        if self.notes:
            line["notes"] = list(self.notes)
        if self.product is not None:
            line["product"] = storable(self.product)
        if self.zones:
            line["zone"] = self.zone
            line["zones"] = [
                {"name": zone.name, "score": zone.score, "threshold": zone.threshold} for zone in self.zones
            ]
        return line


def fault_of(seen: Seen, reason: str, origin: ResultOrigin | None, notes: tuple[str, ...] = ()) -> Result:
    """Return the fault of an image that was not scored."""
    return Result(
        seen.name, "fault", reason=reason, notes=notes, id=seen.id, time=seen.time, path=seen.path, origin=origin
    )


def fault_reason(err: Exception, image: str = "") -> str:
    """Return the reason that a fault gives for an exception of any kind.

    Callers catch `Exception` on purpose: an unforeseen error must neither stop the line nor let an image pass as
    normal.

    Args:
        err: What was raised. Our own errors begin with the name of the image, which the result has beside the reason:
            it is not said twice.
        image: That name; empty where the error is of no single image.
    """
    if isinstance(err, FlawscopeError):
        return str(err).removeprefix(f"{image}: ")
    return f"unexpected {type(err).__name__}: {err}"
