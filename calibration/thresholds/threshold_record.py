"""Writing thresholds into a bundle, with the record of what was changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Literal

import msgspec

from flawscope.bundle import Manifest, Threshold, ThresholdChange, Thresholds, change_bundle

_NAMES: tuple[Literal["image", "pixel"], ...] = ("image", "pixel")
_Key = tuple[str | msgspec.UnsetType, str | msgspec.UnsetType]
"""Zone and product."""


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
    before = _that_decide(old)
    for (zone, product), thresholds in _that_decide(new).items():
        was = before.get((zone, product), (None, None))
        for name, now, then in zip(_NAMES, thresholds, was, strict=True):
            if now is not None and now != then:
                value = None if then is None else then.value
                yield ThresholdChange(when, name, value, now.value, command, precision, zone, product)


def _that_decide(thresholds: Thresholds | None) -> dict[_Key, tuple[Threshold | None, Threshold | None]]:
    """Return image and pixel threshold by zone and product: with zones those of the whole decide nothing."""
    if thresholds is None:
        return {}
    if thresholds.of_zones:
        return {(zone.name, msgspec.UNSET): (zone.image, zone.pixel) for zone in thresholds.of_zones}
    common: dict[_Key, tuple[Threshold | None, Threshold | None]] = {
        (msgspec.UNSET, msgspec.UNSET): (thresholds.image, thresholds.pixel)
    }
    return common | {(msgspec.UNSET, row.name): (row.image, row.pixel) for row in thresholds.by_product}
