"""Thresholds of zones that are set by hand, and what calibration refuses of bundles with zones."""

from __future__ import annotations

from pathlib import Path

import msgspec

from flawscope.bundle import Manifest, Threshold, Thresholds
from flawscope.calibration.thresholds.threshold_images import Objective
from flawscope.calibration.thresholds.threshold_limits import Range
from flawscope.errors import ArgumentError


def check_zone_request(
    path: Path, manifest: Manifest, objective: Objective, limits: tuple[Range | None, Range | None]
) -> None:
    """Raise ArgumentError for what thresholds of zones cannot have; passes bundles without zones.

    Args:
        path: The bundle.
        manifest: Its manifest.
        objective: What thresholds are set for.
        limits: Limits of threshold overlays for image and pixel threshold.
    """
    if manifest.drawn_zones is None:
        return
    if objective != "good":
        raise ArgumentError(
            f"{path}: expected the objective good, since the bundle has zones, got {objective}, which sets one "
            "threshold for the image as a whole. Leave the objective out."
        )
    if limits != (None, None):
        raise ArgumentError(
            f"{path}: expected no limits of threshold overlays, since the bundle has zones and overlays are for one "
            "threshold, got some. Leave --image-limits and --pixel-limits out."
        )


def zone_by_hand(
    path: Path, manifest: Manifest, old: Thresholds | None, zone: str | None, image: float | None, pixel: float | None
) -> Thresholds:
    """Return thresholds with those of one zone set by hand; None keeps a threshold.

    Args:
        path: The bundle.
        manifest: Its manifest; it has zones.
        old: The thresholds in force.
        zone: Name of the zone.
        image: Threshold on its score.
        pixel: Threshold on its pixels.

    Raises:
        ArgumentError: If there are no thresholds yet, or no zone or one that the bundle lacks is named.
    """
    names = () if manifest.drawn_zones is None else manifest.drawn_zones.names
    if zone not in names and (zone, image, pixel) != (None, None, None):
        got = "none" if zone is None else repr(zone)
        raise ArgumentError(
            f"{path}: expected --zone with a zone of the bundle ({', '.join(names)}), got {got}. Each has thresholds "
            "of its own."
        )
    if old is None:
        raise ArgumentError(
            f"{path}: expected a bundle whose zones all have thresholds, got one without. Calibrate it with --data "
            "first."
        )
    changed = tuple(
        msgspec.structs.replace(
            own,
            image=own.image if image is None or own.name != zone else Threshold(image, "manual"),
            pixel=own.pixel if pixel is None or own.name != zone else Threshold(pixel, "manual"),
        )
        for own in old.of_zones
    )
    # No bound holds for the image as a whole any more, and the others had theirs from the whole.
    whole = old.image if image is None else Threshold(old.image.value, "manual")
    largest = max(own.pixel.value for own in changed)
    return Thresholds(whole, old.pixel if pixel is None else Threshold(largest, "manual"), zones=changed)
