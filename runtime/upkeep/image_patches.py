"""Patches of new images, with which of them may become rows: those that the region of interest reaches."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import cv2
import msgspec
import numpy as np

from flawscope.arrays import BoolArray, Float32Array, UInt8Array
from flawscope.imaging.fitting_views import View, Views, fitting_views
from flawscope.imaging.images import prepare, prepare_mask, read_image
from flawscope.runtime.inspector import Inspector


def patches_of(inspector: Inspector, image: Path, grid: tuple[int, int]) -> Iterator[tuple[Float32Array, BoolArray]]:
    """Yield the patches of every view of an image, or of each of its tiles.

    Args:
        inspector: The bundle, on the path `kernel`.
        image: An image file.
        grid: Rows and columns of the patch grid.

    Yields:
        Patches float32 [P, D], and which of them show what is inspected, bool [P]: without a region all. Elsewhere a
        defect does not count, and what lies there would become normal inside too.
    """
    manifest = inspector.manifest
    # The views that filled the bank in training fill it now.
    views = fitting_views(msgspec.convert(manifest.provenance.config.get("views", "none"), Views))
    whole = read_image(image, manifest.input.bits)
    counted = None
    if inspector.region is not None:
        region = inspector.region.at(inspector.region.shift_of(whole))
        counted = region.on_image((whole.shape[0], whole.shape[1]))
    corners = [None] if manifest.tiling is None else manifest.tiling.corners(whole.shape[0], whole.shape[1])
    for corner in corners:
        part, inside = whole, counted
        if manifest.tiling is not None and corner is not None:
            part = manifest.tiling.cut(whole, corner)
            inside = None if counted is None else manifest.tiling.cut(_as_image(counted), corner)[..., 0] > 0
        prepared = prepare(part, manifest.input)
        mask = None if inside is None else _as_image(prepare_mask(inside, manifest.input))
        for view in views:
            patches = inspector.scorer.outputs(np.ascontiguousarray(view.make(prepared[None])))["patches"][0]
            yield patches, np.ones(len(patches), bool) if mask is None else _reached(mask, view, grid)


def _reached(mask: UInt8Array, view: View, grid: tuple[int, int]) -> BoolArray:
    """Return which patches of a view a mask uint8 [H, W, 3] reaches, bool [P]."""
    seen = view.make(mask[None])[0, ..., 0].astype(np.float32)
    cells = cv2.resize(seen, grid[::-1], interpolation=cv2.INTER_AREA) > 0
    # One more all around: patches lie up to half a cell beside the middle of theirs, and maps are interpolated.
    grown = cv2.dilate(cells.astype(np.uint8), np.ones((3, 3), np.uint8))
    return np.asarray(grown.reshape(-1) > 0)


def _as_image(mask: BoolArray) -> UInt8Array:
    return np.repeat(mask[..., None], 3, axis=2).astype(np.uint8) * np.uint8(255)
