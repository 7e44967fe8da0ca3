"""Light and camera of the rendered parts: what varies from image to image without being a defect."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import cv2
import numpy as np

from flawscope.arrays import Float32Array, UInt8Array
from flawscope.datasets.parts.canvas import Canvas, blur, slopes, spread, warp

_LEVELS = np.float32(255)
# The normal distribution in 256 equally likely steps: a lookup by random bytes is ten times faster than normal draws.
_NORMAL = np.array([NormalDist().inv_cdf((step + 0.5) / 256) for step in range(256)], np.float32)


@dataclass(frozen=True)
class Light:
    """One lamp above the part.

    Attributes:
        azimuth: Direction the light comes from, in radians from the x axis towards y (down).
        elevation: Height above the table in radians.
    """

    azimuth: float
    elevation: float

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Light:
        """Draw a lamp at the upper left, as mounted on an inspection station, within its tolerances."""
        return cls(math.radians(rng.uniform(-160, -100)), math.radians(rng.uniform(46, 58)))

    @property
    def direction(self) -> tuple[float, float, float]:
        """Unit vector (x, y, z) towards the lamp."""
        flat = math.cos(self.elevation)
        return flat * math.cos(self.azimuth), flat * math.sin(self.azimuth), math.sin(self.elevation)

    @property
    def half(self) -> tuple[float, float, float]:
        """Unit vector halfway between lamp and camera, which looks straight down."""
        x, y, z = self.direction
        length = math.sqrt(x * x + y * y + (z + 1) ** 2)
        return x / length, y / length, (z + 1) / length


def lambert(height: Float32Array, light: Light) -> tuple[Float32Array, Float32Array]:
    """Return the cosines [H, W] of the surface normal with the lamp and with the half vector, both at least 0.

    Args:
        height: Height [H, W] in canvas pixels.
        light: The lamp.
    """
    along_x, along_y = slopes(height)
    # The normal is (-dz/dx, -dz/dy, 1) divided by its length; in place, because these are the largest arrays.
    length = along_x * along_x
    length += along_y * along_y
    length += 1
    np.sqrt(length, out=length)
    cosines = []
    for x, y, z in (light.direction, light.half):
        cosine = np.asarray(cv2.addWeighted(along_x, -x, along_y, -y, z), np.float32)
        cosine /= length
        cosines.append(np.maximum(cosine, 0, out=cosine))
    return cosines[0], cosines[1]


def power_of_two(field: Float32Array, exponent: int) -> Float32Array:
    """Return `field` raised to the power 2**exponent."""
    # By squaring: a general power is far slower.
    total = field * field
    for _ in range(exponent - 1):
        np.multiply(total, total, out=total)
    return total


def cast_shadow(height: Float32Array, light: Light, steps: tuple[float, ...], softness: float) -> Float32Array:
    """Return how much [H, W] (0 to 1) each point lies in the shadow of higher ones.

    Args:
        height: Height [H, W] in canvas pixels.
        light: The lamp.
        steps: Heights above each point, in pixels, at which the ray to the lamp is tested.
        softness: Blur of the shadow's edge in pixels.
    """
    x, y, z = light.direction
    shadow = np.zeros_like(height)
    for step in steps:
        # warpAffine takes the matrix from source to target: the heights towards the lamp move onto the point.
        move = np.array([[1.0, 0.0, -x / z * step], [0.0, 1.0, -y / z * step]])
        ahead = warp(height, move, (height.shape[0], height.shape[1]), border=cv2.BORDER_REPLICATE)
        np.maximum(
            shadow, np.clip((ahead - height - np.float32(step * 0.8)) / np.float32(step * 0.4), 0, 1), out=shadow
        )
    return blur(shadow, softness)


@dataclass(frozen=True)
class Camera:
    """One exposure: gain, colour cast, uneven light, defocus and sensor noise.

    Attributes:
        gain: Linear gain of each colour.
        slant: Relative change of light across the image along x and y.
        defocus: Blur in canvas pixels at 256 pixels a side.
        noise: Standard deviation of the noise in levels of the finished image.
        seed: Seed of the noise, the same for a defective part and its normal counterpart.
    """

    gain: tuple[float, float, float]
    slant: tuple[float, float]
    defocus: float
    noise: float
    seed: int

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Camera:
        """Draw one exposure within the tolerances of an inspection station."""
        gain = rng.uniform(0.88, 1.12)
        cast = rng.uniform(-0.03, 0.03, 3)
        return cls(
            gain=(gain * (1 + cast[0]), gain * (1 + cast[1]), gain * (1 + cast[2])),
            slant=(rng.uniform(-0.08, 0.08), rng.uniform(-0.08, 0.08)),
            defocus=rng.uniform(0.5, 1.15),
            noise=rng.uniform(1.2, 2.4),
            seed=int(rng.integers(2**32)),
        )

    def expose(self, scene: Float32Array, canvas: Canvas) -> Float32Array:
        """Return the noiseless image, in levels: float32 [size, size, 3] from a linear scene [side, side, 3]."""
        # Optics first, then the sensor: blur and reduction act on linear light, before the tone curve.
        soft = blur(scene, self.defocus * canvas.unit / 2)
        small = np.asarray(cv2.resize(soft, (canvas.size, canvas.size), interpolation=cv2.INTER_AREA), np.float32)
        place = np.linspace(-1, 1, canvas.size, dtype=np.float32)
        light = 1 + np.float32(self.slant[0]) * place + np.float32(self.slant[1]) * place[:, None]
        light -= np.float32(0.04) * (place**2 + place[:, None] ** 2)
        small *= spread(light.astype(np.float32, copy=False), np.array(self.gain, np.float32))
        # Highlights roll off instead of clipping; the square root is the tone curve, the inverse of `colour`.
        np.maximum(small, 0, out=small)
        over = np.maximum(small - np.float32(0.75), 0)
        small -= over - over / (1 + 2.5 * over)
        return np.minimum(_LEVELS * np.sqrt(small), _LEVELS)

    def digitise(self, image: Float32Array) -> UInt8Array:
        """Return uint8 [size, size, 3] with sensor noise."""
        # One deviation for all levels: shot noise grows with the square root of light, which the tone curve evens out.
        # From the seed and nothing else, so that image and counterpart are equal outside the mask.
        chance = np.random.default_rng(self.seed).bytes(image.size)
        noise = cv2.LUT(np.frombuffer(chance, np.uint8).reshape(image.shape), _NORMAL * np.float32(self.noise))
        return np.asarray(np.clip(np.rint(image + noise), 0, 255), np.uint8)
