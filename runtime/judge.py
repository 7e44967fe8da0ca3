"""From the map and score of an image to its result: region, zones, thresholds, decision and boxes."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from flawscope.arrays import Float32Array, UInt8Array
from flawscope.bundle import InForce, Manifest, PartShift, Thresholds, thresholds_of_product
from flawscope.errors import BundleError
from flawscope.runtime.decision import decide, find_boxes
from flawscope.runtime.inspected_region import InspectedRegion
from flawscope.runtime.inspected_zones import InspectedZones, deciding_zone
from flawscope.runtime.results import Box, Result, ResultOrigin, Seen, ZoneScore


@dataclass(frozen=True)
class LoadedImage:
    """An image that was read.

    Attributes:
        seen: Its name, id, time and file.
        prepared: Pixels as the graph takes them, uint8 [H, W, 3]; with tiles those of the source.
        source_size: Height and width of its source.
        timings_ms: Milliseconds per stage so far.
        notes: In what it is unlike the images learned from.
        part_shift: How far the part lies from where the region was drawn, where that follows it.
        product: The product that it shows.
    """

    seen: Seen
    prepared: UInt8Array
    source_size: tuple[int, int]
    timings_ms: dict[str, float]
    notes: tuple[str, ...]
    part_shift: PartShift | None
    product: str | None


class Judge:
    """Judges the maps and scores of a bundle.

    Args:
        manifest: The bundle's manifest.
        in_force: Its thresholds, of all products.
        product: Product whose own thresholds hold; None for the common ones.
        where: Path of the bundle, for messages.

    Attributes:
        in_force: The thresholds.
        product: The product.
        region: The region of interest, or None where all of an image counts.
        origin: What its results say of the inspector; set once that is ready.

    Raises:
        ArgumentError: If the bundle has no thresholds of the product.
        BundleError: If region or zones are broken.
    """

    def __init__(self, manifest: Manifest, in_force: InForce, product: str | None, where: Path) -> None:
        self._manifest, self._where = manifest, where
        self.in_force, self.product = in_force, product
        self.origin: ResultOrigin | None = None
        self.thresholds_for(product)  # an unknown product is refused before anything is loaded
        self.region = None if manifest.region is None else InspectedRegion(manifest, str(where))
        self._zones = None if manifest.drawn_zones is None else InspectedZones(manifest, str(where))

    def thresholds_for(self, product: str | None) -> Thresholds | None:
        """Return the thresholds of a product; for None those of the product it was loaded for, or the common ones.

        Raises:
            ArgumentError: If the bundle has no thresholds of this product.
        """
        name = self.product if product is None else product
        if name is None:
            return self.in_force.thresholds
        return thresholds_of_product(self.in_force, name, self._where)

    def judge(self, image: LoadedImage, anomaly_map: Float32Array, score: float, infer_ms: float) -> Result:
        """Return the result of an image.

        Args:
            image: The image as it was read.
            anomaly_map: Its map float32 [H, W]; with tiles of the whole image, else of the graph's input.
            score: Its score.
            infer_ms: Milliseconds of its inference.
        """
        started, thresholds = time.perf_counter(), self.thresholds_for(image.product)
        if self._manifest.tiling is None and self._manifest.input.mode == "letterbox":
            # The mirrored margin shows nothing of its own. A copy: a view would keep the maps of the whole batch alive.
            anomaly_map = anomaly_map[self._manifest.input.place_of(image.source_size)].copy()
        region = None if self.region is None else self.region.at(image.part_shift)
        counted, threshold = anomaly_map, None if thresholds is None else thresholds.image.value
        if region is not None:
            anomaly_map, score = region.restrict(anomaly_map, score)
            counted = region.for_boxes(anomaly_map)
        # A score or map that is not finite says that the inference failed: no zone makes a number of it.
        zones: tuple[ZoneScore, ...] = ()
        if self._zones is not None and np.isfinite(score) and np.isfinite(anomaly_map).all():
            zones = self._zones.scores(counted, thresholds)
        decision, reason = decide(score, anomaly_map, thresholds, zones)
        deciding = deciding_zone(zones)
        if self._zones is not None:
            score, threshold = (math.nan, None) if deciding is None else (deciding.score, deciding.threshold)
        if region is not None and not region.is_seen(anomaly_map):
            reason = "the image is too small to show the region of interest"
        boxes: tuple[Box, ...] = ()
        # No boxes for a fault: its map may hold NaN, and nobody should act on regions of it.
        if thresholds is not None and decision != "fault":
            boxes = find_boxes(
                counted,
                thresholds.pixel.value if self._zones is None else self._zones.pixel_thresholds(counted, thresholds),
                self.in_force.min_area_px,
                self._manifest.map_spec,
                image.source_size,
            )
        timings = {**image.timings_ms, "infer": infer_ms, "decide": 1e3 * (time.perf_counter() - started)}
        return Result(
            image=image.seen.name,
            decision=decision,
            score=score if np.isfinite(score) else None,  # NaN must not reach a JSON line or a comparison
            threshold=threshold,
            threshold_revision=None if thresholds is None or self.in_force.is_set else self.in_force.revision,
            reason=reason,
            notes=image.notes,
            part_shift=image.part_shift,
            anomaly_map=anomaly_map,
            boxes=boxes,
            # A sum and not a clock: the waiting of this image for the others of its batch is no work on it.
            timings_ms={**timings, "total": sum(timings.values())},
            zones=() if deciding is None else zones,
            product=self.product if image.product is None else image.product,
            zone=None if deciding is None or threshold is None else deciding.name,
            id=image.seen.id,
            time=image.seen.time,
            path=image.seen.path,
            source_size=image.source_size,
            origin=self.origin,
        )

    def pixel_thresholds(self, anomaly_map: Float32Array, product: str | None = None) -> float | Float32Array:
        """Return the threshold on the pixels of a map float32 [H, W]; with zones one for each, float32 [H, W].

        Args:
            anomaly_map: The map.
            product: The product that it shows, as in `thresholds_for`.

        Raises:
            ArgumentError: If the bundle has no thresholds of this product.
            BundleError: If there are no thresholds.
        """
        thresholds = self.thresholds_for(product)
        if thresholds is None:
            raise BundleError(f"{self._where}: expected thresholds, got none. Run flawscope calibrate.")
        if self._zones is None:
            return thresholds.pixel.value
        counted = anomaly_map if self.region is None else self.region.for_boxes(anomaly_map)
        return self._zones.pixel_thresholds(counted, thresholds)
