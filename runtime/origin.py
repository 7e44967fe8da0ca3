"""Where results come from: the bundle, its precision and backend, and the thresholds; and how they are drawn."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from flawscope.arrays import Float32Array, UInt8Array
from flawscope.bundle import InForce, Manifest
from flawscope.errors import ArgumentError
from flawscope.runtime.frame import Frame
from flawscope.runtime.image_sources import Color, check_color, read_source_image
from flawscope.runtime.judge import Judge
from flawscope.runtime.overlay import draw_overlay
from flawscope.runtime.results import Result


@dataclass(frozen=True, eq=False)
class Origin:
    """What all results of an inspector have in common. It holds no image and no session: results may be kept.

    Attributes:
        manifest: The bundle's manifest.
        in_force: The thresholds that decided.
        product: Product whose own thresholds held; None for the common ones.
        where: Path of the bundle.
        precision: Precision of the graphs.
        backend: Name of the backend.
    """

    manifest: Manifest
    in_force: InForce
    product: str | None
    where: Path
    precision: str
    backend: str

    @property
    def digest(self) -> str:
        """Digest of the bundle."""
        return self.manifest.digest

    @property
    def threshold_source(self) -> str:
        """Where the thresholds come from, in words."""
        return self.in_force.source

    def draw(self, result: Result, image: Any, color: Color) -> UInt8Array:
        """Return the image of a result under its anomaly map; see `Result.draw`."""
        anomaly_map = result.anomaly_map
        # NaN has no colour: the cast to uint8 would draw it as any value.
        if anomaly_map is None or not result.has_map:
            raise ArgumentError(
                f"{result.image}: expected a result with an anomaly map, got a {result.decision}: {result.reason}"
            )
        shown = self._pixels(result, image, color)
        # A judge of its own: zones and regions keep what they were asked last, and another thread may be scoring.
        judge = Judge(self.manifest, self.in_force, self.product, self.where)
        reference = self._reference(judge, anomaly_map, result.product)
        lines = [f"{zone.name}: {zone.score:.4g} > {zone.threshold:.4g}" for zone in result.zones if zone.is_rejected]
        drawn = draw_overlay(shown, anomaly_map, self.manifest.map_spec, reference, result.boxes, lines)
        if result.part_shift is not None and judge.region is not None:
            # Only where it follows the part: where it does not, it lies where it was drawn.
            drawn = judge.region.at(result.part_shift).outline_on(drawn)
        return drawn

    def _pixels(self, result: Result, image: Any, color: Color) -> UInt8Array:
        check_color(color)
        given = image.image if isinstance(image, Frame) else image
        if given is None:
            given = result.path
        if given is None:
            raise ArgumentError(
                f"{result.image}: expected its image, which a result does not keep, got none. Pass it: "
                "result.draw(image)."
            )
        pixels = read_source_image(given, result.image, color, self.manifest.input.bits).pixels
        if result.source_size is not None and pixels.shape[:2] != result.source_size:
            high, wide = result.source_size
            raise ArgumentError(
                f"{result.image}: expected the image that was inspected, {wide}x{high} px, got one of "
                f"{pixels.shape[1]}x{pixels.shape[0]} px. Pass that one: result.draw(image)."
            )
        return np.asarray(cv2.cvtColor(pixels, cv2.COLOR_GRAY2RGB), np.uint8) if pixels.ndim == 2 else pixels

    def _reference(self, judge: Judge, anomaly_map: Float32Array, product: str | None) -> float | Float32Array:
        """Return the map value in the middle of the colour scale; with zones one for each pixel."""
        if judge.thresholds_for(product) is not None:
            return judge.pixel_thresholds(anomaly_map, product)
        return largest_golden(self.manifest, self.precision, self.backend)


def largest_golden(manifest: Manifest, precision: str, backend: str) -> float:
    """Return the largest map value of the golden images, which anchors colours where there are no thresholds."""
    return max((golden.map_max for golden in manifest.golden_of(precision, backend)), default=1.0)
