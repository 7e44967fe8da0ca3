"""Procedural anomalies of trainings: Perlin anomalies of made textures and of the part's own material, drawn anew."""

from __future__ import annotations

import numpy as np

from flawscope.arrays import BoolArray, UInt8Array
from flawscope.datasets.drawing.perlin import perlin_anomaly
from flawscope.datasets.drawing.textures import as_grey, augment_texture, is_grey, make_texture, shuffle_texture

_OWN = 0.5
"""Share of anomalies whose texture is the image itself in no order: hard ones, of colours that the part has."""


def draw_anomaly(image: UInt8Array, chance: np.random.Generator) -> tuple[UInt8Array, BoolArray]:
    """Return an image with a Perlin anomaly, and its mask bool [H, W], which is empty where nothing came of it.

    No folder of textures is needed: half of them are made, half are the image's own pieces, changed in tone.

    Args:
        image: A prepared normal image, uint8 [H, W, 3].
        chance: All randomness.
    """
    own = chance.random() < _OWN
    texture = shuffle_texture(image, chance) if own else make_texture((image.shape[0], image.shape[1]), chance)
    texture = augment_texture(texture, chance)
    drawn = perlin_anomaly(image, as_grey(texture) if is_grey(image) else texture, chance)
    return (image, np.zeros(image.shape[:2], np.bool_)) if drawn is None else drawn
