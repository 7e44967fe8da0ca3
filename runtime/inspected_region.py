"""Scores and maps of images with a region of interest; see `flawscope.bundle.region`."""

from __future__ import annotations

import copy

import numpy as np

from flawscope.arrays import BoolArray, Float32Array, UInt8Array
from flawscope.bundle import (
    Manifest,
    PartFollower,
    PartShift,
    edge_left,
    mask_on_map,
    move_mask,
    region_mask,
)
from flawscope.errors import BundleError, ImageError
from flawscope.imaging.images import grey_as_rgb
from flawscope.imaging.masks import with_outline


class InspectedRegion:
    """The region of a bundle, made ready for its maps.

    Args:
        manifest: That of a bundle with a region.
        where: What the bundle is called in messages.

    Raises:
        BundleError: If the region is broken, or nothing of it is left in the part of an image that is inspected.
    """

    def __init__(self, manifest: Manifest, where: str) -> None:
        if manifest.region is None:
            raise BundleError(f"{where}: expected a bundle with a region of interest, got one without.")
        self._mask, self._spec = region_mask(manifest.region, where), manifest.map_spec
        # The last map's: images of one camera all have the same.
        self._inside: BoolArray | None = None
        part, size = manifest.region.followed, manifest.region.size
        self._follower = None if part is None else PartFollower(part, size, where)
        self._moved: tuple[tuple[int, int], InspectedRegion] | None = None
        if self._spec is not None and not mask_on_map(self._mask, self._spec, self._spec.size).any():
            raise BundleError(
                f"{where}: expected a region of interest in the part of the image that is inspected, got one that the "
                "crop cuts off, or that is smaller than a pixel of the map. Set it again, or train without the crop."
            )

    def shift_of(self, image: UInt8Array) -> PartShift | None:
        """Return how far the part of an image uint8 [H, W, 3] or [H, W] lies off; None where the region follows none.

        Raises:
            ImageError: If that cannot be told, or the region cannot be moved by it.
        """
        if self._follower is None:
            return None
        shift = self._follower.shift_of(grey_as_rgb(image))
        if edge := edge_left(self._mask, *shift.on(self._mask), self._spec):
            raise ImageError(
                f"the part lies {shift.line} of where the region of interest was drawn, which leaves what is inspected "
                f"of the image at the {edge}"
            )
        return shift

    def at(self, shift: PartShift | None) -> InspectedRegion:
        """Return the region where it lies on an image whose part is shifted."""
        by = (0, 0) if shift is None else shift.on(self._mask)
        if by == (0, 0):
            return self
        if self._moved is None or self._moved[0] != by:
            moved = copy.copy(self)
            moved._mask, moved._inside = move_mask(self._mask, *by), None
            # The last one is kept: a part that lies off often does for some time.
            self._moved = (by, moved)
        return self._moved[1]

    def on_image(self, size: tuple[int, int]) -> BoolArray:
        """Return which pixels of an image of this height and width count, bool [H, W]."""
        return mask_on_map(self._mask, None, size)

    def outline_on(self, image: UInt8Array) -> UInt8Array:
        """Return an image uint8 [H, W, 3] with the outline of the region in green."""
        return with_outline(image, self.on_image((image.shape[0], image.shape[1])))

    def restrict(self, anomaly_map: Float32Array, score: float) -> tuple[Float32Array, float]:
        """Return an image's map and score with what lies outside of the region left out.

        Outside, the map gets its smallest value inside: a number, so that it can be drawn and compared.

        Args:
            anomaly_map: float32 [H, W].
            score: The score without a region.
        """
        # Before anything is left out: a NaN outside says that the inference failed. `decide` makes it a fault.
        if not np.isfinite(score) or not np.isfinite(anomaly_map).all():
            return anomaly_map, score
        inside = self._inside_of(anomaly_map)
        if not inside.any():  # an image so small that the region vanishes: nothing was inspected, so no accept
            return anomaly_map, float("nan")
        values = anomaly_map[inside]
        return np.where(inside, anomaly_map, values.min()), float(values.max())

    def for_boxes(self, anomaly_map: Float32Array) -> Float32Array:
        """Return a map that `restrict` gave, without any value outside of the region: there no threshold is passed."""
        return np.where(self._inside_of(anomaly_map), anomaly_map, np.float32(-np.inf))

    def is_seen(self, anomaly_map: Float32Array) -> bool:
        """Return whether a map shows any of the region: that of a very small image may not."""
        return bool(self._inside_of(anomaly_map).any())

    def _inside_of(self, anomaly_map: Float32Array) -> BoolArray:
        """Return which pixels of a map count, bool [H, W]; that of the last map is kept."""
        inside, shape = self._inside, (anomaly_map.shape[0], anomaly_map.shape[1])
        if inside is None or inside.shape != shape:
            inside = self._inside = mask_on_map(self._mask, self._spec, shape)
        return inside
