"""The seam of whoever keeps images: what a station hands over of each part, and when."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from flawscope.arrays import Float32Array
from flawscope.imaging.images import Preprocessing
from flawscope.runtime.line.parts import PartRecord, Verdict, ViewRecord
from flawscope.runtime.results import Box

Pixels = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]


@dataclass(frozen=True)
class Heat:
    """How an anomaly map lies on its image, and how it is coloured.

    Attributes:
        spec: The preprocessing of the map; None for a map that shows the whole image.
        reference: Map value in the middle of the colour scale, the pixel threshold; with zones one for each pixel of
            the map, float32 [h, w].
    """

    spec: Preprocessing | None
    reference: float | Float32Array


HeatOf = Callable[[Float32Array], Heat]
"""Returns how a map float32 [h, w] is drawn. It may take milliseconds: whoever draws calls it, and no station."""


@dataclass(frozen=True, eq=False)
class Kept:
    """One image of a part and what was found in it.

    Attributes:
        view: Name of its view.
        record: What is on record of it.
        image: What was inspected: uint8 or uint16 [H, W] or [H, W, 3], or the bytes of an image file as they came, of
            which some cannot be decoded; None where there is no image. Nobody changes it.
        color: Order of the channels of an array.
        bits: Bits in use of 16-bit images, as the bundle was trained; None for all.
        anomaly_map: float32 [h, w]; None where there is none.
        heat: Says how the map is drawn; None where it is not.
        boxes: Regions above the pixel threshold, in pixels of `image`.
    """

    view: str
    record: ViewRecord
    image: Pixels | bytes | None = None
    color: Literal["rgb", "bgr"] = "rgb"
    bits: int | None = None
    anomaly_map: Float32Array | None = field(default=None, repr=False)
    heat: HeatOf | None = field(default=None, repr=False)
    boxes: tuple[Box, ...] = ()

    @property
    def nbytes(self) -> int:
        """Memory that it takes, in bytes."""
        image = 0 if self.image is None else len(self.image) if isinstance(self.image, bytes) else self.image.nbytes
        return image + (0 if self.anomaly_map is None else self.anomaly_map.nbytes)


class KeepsImages(Protocol):
    """Keeps images of parts. Calls come from the threads that give out verdicts: they return at once, always."""

    def plan(self, seq: int, utc_ns: int, verdict: Verdict, images: Sequence[Kept]) -> tuple[str, ...]:
        """Return where images will be stored, before the record of their part is made, which names the place.

        Args:
            seq: Number of the part.
            utc_ns: When it was triggered, in UTC.
            verdict: The worst of its views.
            images: Its images.

        Returns:
            For each image the path of its file below the state folder; empty where it will not be stored.
        """

    def keep(self, seq: int, station: str, images: Sequence[Kept], record: PartRecord | None) -> None:
        """Take the images of a part, once, when its verdict was given out.

        Args:
            seq: Number of the part.
            station: Name of the station.
            images: Its images; their records name the files.
            record: Its record, if that names these files; None where it became a fault before they were inspected.
        """
