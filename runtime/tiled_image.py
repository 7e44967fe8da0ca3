"""Map and score of an image that is cut into tiles."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from flawscope.arrays import Float32Array, UInt8Array
from flawscope.bundle import Manifest
from flawscope.imaging.images import prepare
from flawscope.imaging.tiles import MapBlender, Tiling


def score_tiles(
    image: UInt8Array,
    tiling: Tiling,
    manifest: Manifest,
    infer: Callable[[UInt8Array], tuple[Float32Array, Float32Array]],
) -> tuple[Float32Array, float]:
    """Return map and score of one image, a batch of tiles at a time, so that memory does not grow with their number.

    Args:
        image: uint8 [H, W, 3] RGB.
        tiling: How it is cut.
        manifest: The bundle's manifest.
        infer: `Inspector.infer`; what it raises is passed on.
    """
    size = (image.shape[0], image.shape[1])
    blender = MapBlender(size, tiling)
    score = -np.inf  # below every score: the image's score is that of its worst tile
    corners = tiling.corners(*size)
    for start in range(0, len(corners), manifest.max_batch):
        batch = corners[start : start + manifest.max_batch]
        tiles = [prepare(tiling.cut(image, corner), manifest.input) for corner in batch]
        maps, scores = infer(np.stack(tiles))
        for corner, tile_map in zip(batch, maps, strict=True):
            blender.add(corner, tile_map)
        # Not Python's max(), which drops NaN: a tile without a valid score must make the image a fault.
        score = float(np.maximum(score, scores.max()))
    return blender.finish(), score
