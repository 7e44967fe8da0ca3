"""What is told of an image that was scored, after its part has its verdict."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy.typing as npt

from flawscope.runtime.line.gallery.keeper import Kept
from flawscope.runtime.line.parts import ViewRecord
from flawscope.runtime.line.station.view import InWork

_MOST_PIXELS = 1 << 14


@dataclass(frozen=True)
class Seen:
    """One image that was scored.

    Attributes:
        seq: Number of its part.
        station: Name of the station.
        view: Name of the view.
        generation: Number of the set of bundles and thresholds that decided on its part.
        bundle: Digest of the bundle that scored it.
        revision: Revision of its threshold.
        source: Name of its file; empty for cameras.
        is_accepted: Whether the image, by itself, was accepted; otherwise it was rejected.
        values: Quantity -> value: what is compared with the reference.
    """

    seq: int
    station: str
    view: str
    generation: int
    bundle: str
    revision: int
    source: str
    is_accepted: bool
    values: Mapping[str, float] = field(default_factory=dict)


class WatchesImages(Protocol):
    """Hears of images that were scored."""

    def seen(self, image: Seen) -> None:
        """Take note of an image. It returns at once, and raises nothing."""


def tell(
    watch: WatchesImages | None,
    seq: int,
    station: str,
    generation: int,
    works: Sequence[InWork | Kept],
    records: Sequence[ViewRecord],
) -> None:
    """Tell a watch of the images of a part, after its verdict.

    Args:
        watch: Whom to tell; None for nobody.
        seq: Number of the part.
        station: Name of the station.
        generation: Number of the set of bundles that decided.
        works: The images, with their results, and those that were not scored.
        records: What is on record of each.
    """
    if watch is None:
        return
    for work, record in zip(works, records, strict=True):
        if isinstance(work, InWork):
            seen = seen_of(seq, station, generation, record, work.scene, work.result.result().anomaly_map)
            if seen is not None:
                watch.seen(seen)


def seen_of(
    seq: int,
    station: str,
    generation: int,
    record: ViewRecord,
    scene: Mapping[str, float],
    anomaly_map: npt.NDArray[Any] | None,
) -> Seen | None:
    """Return what is told of an image; None where it has no score, or a value that is no number.

    Args:
        seq: Number of its part.
        station: Name of the station.
        generation: Number of the set of bundles.
        record: What is on record of it.
        scene: What was measured of its scene.
        anomaly_map: Its map, float32 [H, W]; None where it has none.
    """
    if record.verdict == "fault" or record.score is None:
        return None
    is_accepted = record.verdict == "accept"
    values = {"rejected": float(not is_accepted), **scene}
    if is_accepted:
        values["score"] = record.score
        if anomaly_map is not None and anomaly_map.size:
            step = math.ceil(math.sqrt(anomaly_map.size / _MOST_PIXELS))
            values["map_mean"] = float(anomaly_map[::step, ::step].mean())
    if not all(math.isfinite(value) for value in values.values()):
        return None
    return Seen(
        seq,
        station,
        record.view,
        generation,
        record.bundle,
        record.threshold_revision or 0,
        record.source,
        is_accepted,
        values,
    )
