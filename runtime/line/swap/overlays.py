"""Thresholds that were changed on the line: an overlay for each station, view and bundle, below the state folder.

Signed bundles are never written. The file is that of `flawscope bundle threshold`: all revisions, who and why, within
the limits of the bundle's manifest, which each read checks again.
"""

from __future__ import annotations

from pathlib import Path

from flawscope.bundle import InForce, Manifest, thresholds_in_force
from flawscope.bundle.threshold_overlay import Revision, add_revision, find_overlay, read_overlay
from flawscope.errors import ArgumentError
from flawscope.files import locked, write_bytes
from flawscope.runtime.line.line_config import ViewOptions
from flawscope.text import encode_json


class Overlays:
    """The overlays of a line.

    Args:
        folder: Their folder; it is made with the first of them.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def place(self, station: str, view: str, digest: str) -> Path:
        """Return where the overlay is, or would be."""
        return self._folder / station / view / f"{digest}.json"

    def in_force(self, station: str, view: ViewOptions, bundle: Path, manifest: Manifest) -> InForce | None:
        """Return the thresholds of a view for a bundle; None where they are the bundle's own.

        Raises:
            BundleError: If the overlay is broken, or outside of the limits. It is never passed over: its thresholds
                may be the stricter ones.
            ArgumentError: If the view decides by those of a product, for which there are no overlays.
        """
        place = self.place(station, view.name, manifest.digest)
        if not place.exists():
            return None
        found = thresholds_in_force(bundle, manifest, view.precision, threshold_overlay=place)
        if not found.revision:
            return None
        _check_no_product(view)
        return found

    def set(
        self, station: str, view: ViewOptions, bundle: Path, manifest: Manifest, image: float, by: str, why: str
    ) -> Revision:
        """Add a revision with another threshold on the score; it is on the disk before this returns.

        Raises:
            ArgumentError: If it is outside of the limits, a text is empty or too long, or the view decides by the
                thresholds of a product.
            BundleError: As `in_force`.
            StorageError: If it cannot be written; the one before stays.
        """
        _check_no_product(view)
        place = self.place(station, view.name, manifest.digest)
        with locked(place):
            return add_revision(
                bundle,
                manifest,
                place,
                precision=view.precision,
                image=image,
                pixel=None,
                min_area_px=None,
                by=by,
                why=why,
            )

    def take_over(self, station: str, view: ViewOptions, manifest: Manifest) -> tuple[str, bool]:
        """Copy the overlay beside the bundle of the configuration, where the line has none for it.

        Returns:
            What there is to say of it, empty for nothing; and whether it was copied.

        Raises:
            BundleError: As `in_force`.
        """
        beside = find_overlay(view.bundle)
        if beside is None:
            return "", False
        overlay = read_overlay(beside, view.bundle, manifest)
        place = self.place(station, view.name, manifest.digest)
        if not place.exists():
            write_bytes(place, encode_json(overlay), durable=True)
            said = f"thresholds of {beside}, revision {overlay.revisions[-1].revision}, are the line's from now on"
            return said, True
        own = read_overlay(place, view.bundle, manifest).revisions
        if own[: len(overlay.revisions)] != overlay.revisions:
            return f"{beside} has no effect: the line has thresholds of its own, revision {own[-1].revision}", False
        return "", False


def _check_no_product(view: ViewOptions) -> None:
    if view.product is not None:
        raise ArgumentError(
            f"view {view.name}: expected one without a product, since thresholds that are changed on the line are the "
            f"common ones, got product {view.product}. Set those of a product with flawscope calibrate."
        )
