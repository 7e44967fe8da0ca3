"""Threshold overlays: thresholds changed on a line, in a file beside the bundle, which stays as it was signed.

An overlay holds for one bundle, by its digest, and only within the limits that the bundle's manifest states. It has a
revision for every change; the last one of a precision is in force.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import numpy as np

from flawscope.bundle.bounded_file import read_bounded
from flawscope.bundle.file_names import overlay_beside
from flawscope.bundle.manifest import Manifest
from flawscope.bundle.threshold_structs import Threshold, Thresholds
from flawscope.errors import ArgumentError, BundleError
from flawscope.files import write_bytes
from flawscope.path_kinds import path_of
from flawscope.ranges import PositiveCount, Sha256
from flawscope.text import NOT_JSON, encode_json

_MAX_BYTES = 1 << 20

_Text = Annotated[str, msgspec.Meta(min_length=1, max_length=1000)]


class Revision(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One change of thresholds.

    Attributes:
        revision: Its number, 1 for the first of the overlay; each is one more than the one before.
        precision: The precision whose thresholds are set.
        image: Threshold on the score.
        pixel: Threshold on the pixels of the anomaly map.
        by: Who changed it.
        why: The reason.
        when: UTC time, ISO 8601.
        min_area_px: Smallest region that gets a box, in pixels of the map; null for the manifest's.
    """

    revision: PositiveCount
    precision: Literal["fp32", "fp16", "bf16", "int8"]
    image: float
    pixel: float
    by: _Text
    why: _Text
    when: _Text
    min_area_px: PositiveCount | None = None


class ThresholdOverlay(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The content of `NAME.flaw.thresholds.json`.

    Attributes:
        digest: Digest of the bundle that it is for.
        revisions: All changes, the first one first.
        schema: Version of this struct.
    """

    digest: Sha256
    revisions: Annotated[tuple[Revision, ...], msgspec.Meta(min_length=1)]
    schema: Literal[1] = 1


@dataclass(frozen=True)
class InForce:
    """The thresholds by which a bundle decides.

    Attributes:
        thresholds: The thresholds; None before calibration.
        min_area_px: Smallest region that gets a box, in pixels of the map.
        revision: Number of the overlay's revision that they are of; 0 for the bundle's own.
        source: Where they come from, for messages.
        is_set: Whether a program set them for itself, so that they are on no record.
    """

    thresholds: Thresholds | None
    min_area_px: int
    revision: int = 0
    source: str = "the bundle's own"
    is_set: bool = False


def thresholds_in_force(
    bundle: Path,
    manifest: Manifest,
    precision: str,
    *,
    threshold_overlay: Path | str | None = None,
    use_overlay: bool = True,
) -> InForce:
    """Return the thresholds that a bundle decides by: those of its overlay, or its own where there is none.

    Args:
        bundle: Path of the bundle.
        manifest: Its manifest.
        precision: Precision of the graphs, one that the bundle has.
        threshold_overlay: An overlay elsewhere, in place of the one beside the bundle; it must exist.
        use_overlay: Whether overlays count; False for the bundle's own thresholds.

    Raises:
        ArgumentError: If an overlay is named and shall not be used, or the bundle lacks the precision.
        BundleError: If the overlay is unreadable, broken, of another bundle, or outside of the limits. It is never
            passed over: its thresholds may be the stricter ones.
    """
    own = InForce(manifest.thresholds_of(precision), manifest.min_area_px)
    if not use_overlay:
        if threshold_overlay is not None:
            raise ArgumentError(f"{threshold_overlay}: expected no overlay, as none shall be used. Leave one out.")
        return own
    place = path_of(threshold_overlay, "threshold_overlay") if threshold_overlay is not None else find_overlay(bundle)
    if place is None:
        return own
    revisions = read_overlay(place, bundle, manifest).revisions
    last = next((revision for revision in reversed(revisions) if revision.precision == precision), None)
    if last is None:
        return own
    # No bound on false rejects holds for them any more, as for thresholds set by hand in the manifest.
    thresholds = Thresholds(Threshold(last.image, "manual"), Threshold(last.pixel, "manual"))
    source = f"revision {last.revision} of {place}, by {last.by}: {last.why}"
    area = manifest.min_area_px if last.min_area_px is None else last.min_area_px
    if area != manifest.min_area_px:
        source += f" (no boxes below {area} pixels of the map)"
    return InForce(thresholds, area, last.revision, source)


def thresholds_set(
    bundle: Path,
    manifest: Manifest,
    precision: str,
    before: InForce,
    *,
    image: float | None = None,
    pixel: float | None = None,
    min_area_px: int | None = None,
) -> InForce:
    """Return thresholds that a program sets for itself, by the rules of an overlay; nothing is written.

    Args:
        bundle: Path of the bundle.
        manifest: Its manifest.
        precision: The precision whose thresholds are set.
        before: Those in force; what is None below stays as it is in them.
        image: Threshold on the score.
        pixel: Threshold on the pixels of the map.
        min_area_px: Smallest region that gets a box, in pixels of the map.

    Raises:
        ArgumentError: If nothing is given, a value is no number or outside of the limits of the manifest, or the bundle
            has no thresholds or no limits.
    """
    if image is None and pixel is None and min_area_px is None:
        raise ArgumentError("thresholds: expected image, pixel or min_area_px, got none.")
    if before.thresholds is None:
        raise ArgumentError(f"{bundle}: expected a bundle with thresholds, got none. Run flawscope calibrate.")
    if min_area_px is not None and (type(min_area_px) is not int or min_area_px < 1):
        raise ArgumentError(f"min_area_px: expected a whole number from 1 on, got {min_area_px!r}.")
    revision = Revision(
        1,
        precision,  # type: ignore[arg-type]  # that of graphs which are there
        before.thresholds.image.value if image is None else _number("image", image),
        before.thresholds.pixel.value if pixel is None else _number("pixel", pixel),
        "a program",
        "set_thresholds",
        "now",
    )
    if problem := next(_problems(revision, manifest), None):
        raise ArgumentError(f"{bundle}: {problem}")
    return InForce(
        Thresholds(Threshold(revision.image, "manual"), Threshold(revision.pixel, "manual")),
        before.min_area_px if min_area_px is None else min_area_px,
        source="set by the program, within the bundle's limits",
        is_set=True,
    )


def _number(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | np.number):
        raise ArgumentError(f"{name}: expected a number, got {value!r}.")
    return float(value)


def find_overlay(bundle: Path) -> Path | None:
    """Return the path of the overlay beside a bundle, or None where there is none.

    Raises:
        BundleError: If that cannot be told, or one lies beside a link to the bundle, where it would have no effect.
    """
    by_link = overlay_beside(bundle.absolute())
    place = by_link
    try:
        place = overlay_beside(bundle.resolve())
        found = _is_there(place)
        if by_link != place and _is_there(by_link) and not (found and by_link.samefile(place)):
            raise BundleError(
                f"{by_link}: expected the threshold overlay beside the bundle itself, {place}, got one beside a link. "
                "Move it there."
            )
    except (OSError, RuntimeError) as err:  # RuntimeError: links that go round
        reason = getattr(err, "strerror", None) or err
        raise BundleError(
            f"{place}: whether there is a threshold overlay could not be looked up: {reason}. Make it readable."
        ) from err
    return place if found else None


def _is_there(path: Path) -> bool:
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def read_overlay(place: Path, bundle: Path, manifest: Manifest) -> ThresholdOverlay:
    """Read an overlay and hold it against the manifest of its bundle.

    Raises:
        BundleError: If it is unreadable, broken, of another bundle, or outside of the limits.
    """
    data, _ = read_bounded(place, _MAX_BYTES, "a threshold overlay", BundleError)
    try:
        overlay = msgspec.json.decode(data, type=ThresholdOverlay)
    except NOT_JSON as err:
        raise BundleError(f"{place}: the threshold overlay is broken: {err}. Repair it, or move it away.") from err
    if overlay.digest != manifest.digest:
        raise BundleError(
            f"{place}: expected the threshold overlay of {bundle}, {manifest.digest[:12]}…, got one of the bundle "
            f"{overlay.digest[:12]}…. Move it away and set the thresholds again with flawscope bundle threshold."
        )
    for number, revision in enumerate(overlay.revisions, 1):
        if revision.revision != number:
            raise BundleError(
                f"{place}: the threshold overlay is broken: expected revision {number}, got {revision.revision}. "
                "Repair it, or move it away."
            )
        if problem := next(_problems(revision, manifest), None):
            raise BundleError(f"{place}: revision {number}: {problem}")
    return overlay


def _problems(revision: Revision, manifest: Manifest) -> Iterator[str]:
    """Yield what is wrong with the values of a revision, each with what to do."""
    if revision.precision not in ("fp32", *manifest.precisions):
        yield f"expected a precision of the bundle, got {revision.precision}. Move the overlay away."
        return
    if manifest.drawn_zones is not None:
        yield (
            "expected a bundle without zones, since an overlay holds one threshold for the image as a whole, got one "
            f"with {', '.join(manifest.drawn_zones.names)}. Set them in the bundle with flawscope calibrate --zone."
        )
        return
    thresholds = manifest.thresholds_of(revision.precision)
    if thresholds is None or thresholds.limits is None:
        yield (
            "expected a bundle that states limits for its thresholds, got one without. Set them with flawscope "
            "calibrate, and sign the bundle again."
        )
        return
    for name, value, limits in (
        ("image", revision.image, thresholds.limits.image),
        ("pixel", revision.pixel, thresholds.limits.pixel),
    ):
        # Turned round, so that NaN is outside too.
        if not (math.isfinite(value) and limits.low <= value <= limits.high):
            yield (
                f"expected the {name} threshold within the bundle's limits, {limits.low:.6g} to {limits.high:.6g}, got "
                f"{value:.6g}. Wider limits need flawscope calibrate, and a new signature."
            )


def add_revision(
    bundle: Path,
    manifest: Manifest,
    place: Path,
    *,
    precision: str,
    image: float | None,
    pixel: float | None,
    min_area_px: int | None,
    by: str,
    why: str,
) -> Revision:
    """Add a revision to an overlay whose lock (`locked`) is held, and write it; None keeps a value as it is in force.

    Args:
        bundle: Path of the bundle.
        manifest: Its manifest.
        place: The overlay, which need not exist.
        precision: The precision whose thresholds are set.
        image: Threshold on the score.
        pixel: Threshold on the pixels of the map.
        min_area_px: Smallest region that gets a box, in pixels of the map.
        by: Who changes it.
        why: The reason.

    Raises:
        ArgumentError: If a value is outside of the limits of the manifest, or a text empty or too long.
        BundleError: As `read_overlay`.
        StorageError: If it cannot be written; the one before stays.
    """
    before = read_overlay(place, bundle, manifest).revisions if _is_there(place) else ()
    old = next((revision for revision in reversed(before) if revision.precision == precision), None)
    own = manifest.thresholds_of(precision)
    if own is None:
        raise ArgumentError(f"{bundle}: expected a bundle with thresholds, got none. Run flawscope calibrate.")
    for name, text in (("who", by), ("why", why)):
        if not text.strip() or len(text) > 1000:
            raise ArgumentError(f"{name}: expected 1 to 1000 characters, got {len(text.strip())}. Say it in a line.")
    fields = {
        "revision": len(before) + 1,
        "precision": precision,
        "image": image if image is not None else (own.image.value if old is None else old.image),
        "pixel": pixel if pixel is not None else (own.pixel.value if old is None else old.pixel),
        "by": by,
        "why": why,
        "when": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "min_area_px": min_area_px if min_area_px is not None else (None if old is None else old.min_area_px),
    }
    try:
        revision = msgspec.convert(fields, Revision)
    except msgspec.ValidationError as err:
        raise ArgumentError(f"thresholds: {err}. Nothing was written.") from err
    if problem := next(_problems(revision, manifest), None):
        raise ArgumentError(f"{bundle}: {problem}")
    overlay = ThresholdOverlay(manifest.digest, (*before, revision))
    data = msgspec.json.format(encode_json(overlay), indent=1) + b"\n"
    if len(data) > _MAX_BYTES:
        raise ArgumentError(
            f"{place}: expected an overlay of at most {_MAX_BYTES >> 10} KiB, got more: {len(before)} revisions. "
            "Move it away, and begin a new one."
        )
    write_bytes(place, data, durable=True)
    return revision


def set_aside(bundle: Path) -> Path | None:
    """Rename the overlay beside a bundle, whose lock is held; return its new path, or None where there was none."""
    place = overlay_beside(bundle)
    if not _is_there(place):
        return None
    stem = place.name.removesuffix(".json")
    # Never over another: an overlay is the record of who changed what.
    places = (place.with_name(f"{stem}.old-{number}.json") for number in itertools.count(1))
    aside = next(free for free in places if not _is_there(free))
    place.rename(aside)
    return aside
