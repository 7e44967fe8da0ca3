"""Writing thresholds into a bundle, with the record of what was changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Literal

import msgspec

from flawscope.bundle import Manifest, Threshold, ThresholdChange, Thresholds, ZoneThresholds, change_bundle


def write_changed(
    path: Path,
    read: Manifest,
    precision: str,
    decide: Callable[[Thresholds | None], Thresholds],
    min_area_px: int | None,
    command: str,
) -> tuple[Thresholds | None, Manifest]:
    """Write what `decide` makes of the thresholds in force; return those, and the manifest as written.

    Args:
        path: The bundle.
        read: Its manifest as it was read.
        precision: The precision whose thresholds they are.
        decide: Takes the thresholds in force, which others may have set since, and returns the new ones.
        min_area_px: Smallest region that gets a box, in pixels of the map; None leaves it as it is.
        command: The command line, for the record.

    Raises:
        BundleError: If another model was written there meanwhile.
        StorageError: If the bundle cannot be changed.
    """
    old: Thresholds | None = None

    def change(manifest: Manifest) -> Manifest:
        # Not of the manifest that was read: others may have set thresholds since. The record says what was in force.
        nonlocal old
        old = manifest.thresholds_of(precision)
        new = decide(old)
        return msgspec.structs.replace(
            manifest.with_thresholds(precision, new),
            threshold_changes=(*manifest.threshold_changes, *_changes(old, new, command, precision)),
            min_area_px=manifest.min_area_px if min_area_px is None else min_area_px,
        )

    written = change_bundle(path, read, change)
    return old, written


def _changes(old: Thresholds | None, new: Thresholds, command: str, precision: str) -> Iterator[ThresholdChange]:
    """Yield a line for each threshold that is another one; value and origin both count."""
    when = datetime.now(timezone.utc).isoformat(timespec="seconds")
    before = _by_zone(old)
    for zone, thresholds in _by_zone(new).items():
        was = before.get(zone)
        kinds: tuple[tuple[Literal["image", "pixel"], Threshold, Threshold | None], ...] = (
            ("image", thresholds.image, was.image if was else None),
            ("pixel", thresholds.pixel, was.pixel if was else None),
        )
        for name, now, then in kinds:
            if now != then:
                value = None if then is None else then.value
                yield ThresholdChange(when, name, value, now.value, command, precision, zone)


def _by_zone(thresholds: Thresholds | None) -> dict[str | msgspec.UnsetType, Thresholds | ZoneThresholds]:
    """Return the thresholds that decide, by their zone: with zones those of the whole decide nothing."""
    if thresholds is None:
        return {}
    if thresholds.of_zones:
        return {zone.name: zone for zone in thresholds.of_zones}
    return {msgspec.UNSET: thresholds}
