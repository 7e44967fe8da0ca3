"""Images of one part that lies at different places, drawn by the tests themselves."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

SIDE = 128
"""Height and width of the images, in pixels."""


def part_image(
    seed: int = 0, right: int = 0, down: int = 0, *, noise: float = 2.0, gain: float = 1.0, height: int = SIDE
) -> npt.NDArray[np.uint8]:
    """Return an image of a part, dark and bright blocks on grey, uint8 [height, 128, 3] RGB.

    Args:
        seed: Which part.
        right: Pixels that it lies further right.
        down: Pixels that it lies further down.
        noise: Deviation of the noise in grey levels.
        gain: Factor of the brightness.
        height: Height of the image in pixels.
    """
    generator = np.random.default_rng(seed)
    image = np.full((height, SIDE), 110.0, np.float32)
    for _ in range(14):
        top, left = generator.integers(36, height - 50), generator.integers(36, SIDE - 50)
        tall, wide = generator.integers(4, 14, 2)
        image[top + down : top + tall + down, left + right : left + wide + right] = generator.uniform(10, 140)
    rough = np.random.default_rng([seed, right % 97, down % 97, 1]).normal(0, noise, image.shape)
    grey = (gain * image + rough).clip(0, 255).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=2)


def texture_image(seed: int) -> npt.NDArray[np.uint8]:
    """Return an image of a texture that fills it, uint8 [128, 128, 3]: another one for each seed."""
    grey = cv2.GaussianBlur(np.random.default_rng(seed).normal(0, 1, (SIDE, SIDE)), (0, 0), 2.0)
    return np.repeat((128 + 40 * grey / grey.std()).clip(0, 255).astype(np.uint8)[..., None], 3, axis=2)
