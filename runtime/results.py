"""Result of one inspected image."""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from flawscope.bundle import PartShift
from flawscope.errors import FlawscopeError
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
            None without a threshold.
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


def fault_reason(err: Exception, prefix: str = "") -> str:
    """Return the reason that a fault gives for an exception of any kind.

    Callers catch `Exception` on purpose: an unforeseen error must neither stop the line nor let an image pass as
    normal. Our own errors name the image themselves; the message of any other is led in by `prefix`.
    """
    return str(err) if isinstance(err, FlawscopeError) else f"{prefix}unexpected {type(err).__name__}: {err}"
