"""Scores, decisions and boxes of images with zones; see `flawscope.bundle.zones`."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from flawscope.arrays import Float32Array, UInt8Array
from flawscope.bundle import Manifest, Thresholds, zone_numbers, zones_on_map
from flawscope.bundle.zones import hidden_zone
from flawscope.errors import BundleError
from flawscope.runtime.results import ZoneScore


class InspectedZones:
    """The zones of a bundle, made ready for its maps.

    Args:
        manifest: That of a bundle with zones.
        where: What the bundle is called in messages.

    Raises:
        BundleError: If the zones are broken, or nothing is left of one in the part of an image that is inspected.
    """

    def __init__(self, manifest: Manifest, where: str) -> None:
        if manifest.drawn_zones is None:
            raise BundleError(f"{where}: expected a bundle with zones, got one without.")
        self._zones, self._spec = manifest.drawn_zones, manifest.map_spec
        self._numbers = zone_numbers(self._zones, where)
        # The last map's: images of one camera all have the same.
        self._on_map: UInt8Array | None = None
        if self._spec is not None and (hidden := hidden_zone(self._zones, self._placed(self._spec.size))):
            raise BundleError(
                f"{where}: expected zones in the part of the image that is inspected, got {hidden}, which the crop "
                "cuts off, or which is smaller than a pixel of the map. Draw them again, or train without the crop."
            )

    def scores(self, counted: Float32Array, thresholds: Thresholds | None) -> tuple[ZoneScore, ...]:
        """Return the score of each zone: the largest value of an image's map in it.

        Args:
            counted: float32 [H, W], finite, or -infinity where nothing counts.
            thresholds: Those in force; None before calibration.

        Returns:
            In the order of the zones; a score of -infinity where the image is too small to show any of a zone.
        """
        on_map = self._placed((counted.shape[0], counted.shape[1]), counted)
        own = {} if thresholds is None else {zone.name: zone.image.value for zone in thresholds.of_zones}
        return tuple(
            ZoneScore(name, float(counted[on_map == number].max(initial=-np.inf)), own.get(name))
            for name, number in zip(self._zones.names, self._zones.numbers, strict=True)
        )

    def pixel_thresholds(self, counted: Float32Array, thresholds: Thresholds) -> Float32Array:
        """Return the pixel threshold of every pixel of a map, float32 [H, W]; arguments as `scores`."""
        on_map = self._placed((counted.shape[0], counted.shape[1]), counted)
        own = {zone.name: zone.pixel.value for zone in thresholds.of_zones}
        by_number = np.zeros(256, np.float32)
        for name, number in zip(self._zones.names, self._zones.numbers, strict=True):
            by_number[number] = own[name]
        return by_number[on_map]

    def _placed(self, shape: tuple[int, int], counted: Float32Array | None = None) -> UInt8Array:
        """Return which pixel of a map lies in which zone; that of the last map is kept."""
        if self._on_map is None or self._on_map.shape != shape:
            self._on_map = zones_on_map(self._numbers, self._spec, shape)
        if self._zones.has_rest or counted is None:
            return self._on_map
        return _filled(self._on_map, counted)


def deciding_zone(zones: Sequence[ZoneScore]) -> ZoneScore | None:
    """Return the zone whose score is the farthest above its threshold, or the nearest below.

    It is above its threshold exactly where any zone is. Without thresholds it is that with the highest score. None
    where there are no scores, or the image is too small to show one of the zones: that is a fault.
    """
    if not zones or not all(np.isfinite(zone.score) for zone in zones):
        return None
    return max(zones, key=lambda zone: zone.score - (0.0 if zone.threshold is None else zone.threshold))


def _filled(on_map: UInt8Array, counted: Float32Array) -> UInt8Array:
    """Return zones that leave nothing out that counts: their edges, of another rounding than the region's, grow."""
    open_ = (on_map == 0) & np.isfinite(counted)
    if not open_.any() or not on_map.any():
        return on_map
    filled = on_map.copy()
    while open_.any():
        grown = cv2.dilate(filled, np.ones((3, 3), np.uint8))
        filled[open_] = grown[open_]
        open_ &= filled == 0
    return filled
