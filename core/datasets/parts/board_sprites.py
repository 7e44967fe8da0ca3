"""Draws the components of a circuit board, each as a small stack of layers."""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from flawscope.arrays import Float32Array
from flawscope.datasets.parts.board_layout import FOOTPRINTS, Placed
from flawscope.datasets.parts.canvas import bevel, blur, colour, discs, polygons, rectangle, strokes

_MARGIN = 1.5  # units around a footprint, so that a rotated sprite is not cut off
_TIN, _GOLD, _EPOXY = colour(186, 188, 190), colour(214, 178, 104), colour(48, 49, 52)


@dataclass
class Sprite:
    """A component seen from above, before rotation.

    Attributes:
        albedo: Linear reflectance [h, w, 3], multiplied by `cover`.
        shape: Cover (0 to 1), height in canvas pixels and gloss [h, w, 3]; the last two multiplied by cover.
    """

    albedo: Float32Array
    shape: Float32Array


class _Painter:
    """Paints shapes over each other, in units relative to the centre of the sprite."""

    def __init__(self, width: float, depth: float, unit: float) -> None:
        self.unit = unit
        self.size = math.ceil((depth + 2 * _MARGIN) * unit), math.ceil((width + 2 * _MARGIN) * unit)
        self.middle = np.array([(self.size[1] - 1) / 2, (self.size[0] - 1) / 2])
        self.albedo = np.zeros((*self.size, 3), np.float32)
        self.cover, self.height, self.gloss = (np.zeros(self.size, np.float32) for _ in range(3))

    def place(self, points: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Return points in units as points in pixels."""
        return np.asarray(np.asarray(points, np.float64) * self.unit + self.middle)

    def paint(self, area: Float32Array, tone: Float32Array, height: float, gloss: float, edge: float = 1.0) -> None:
        """Paint an area [h, w] with a tone, its top at `height` units with a bevel of `edge` units."""
        # Painted over: every shape covers the earlier ones, so the order of the calls is the order of the layers.
        self.albedo += (tone - self.albedo) * area[..., None]
        self.cover = np.maximum(self.cover, area)
        top = bevel(area, max(edge * self.unit, 1.0)) * np.float32(edge) + np.float32(height - edge)
        self.height += (top * np.float32(self.unit) - self.height) * area
        self.gloss += (np.float32(gloss) - self.gloss) * area

    def box(
        self,
        box: tuple[float, float, float, float],
        tone: Float32Array,
        height: float,
        gloss: float,
        edge: float = 1.0,
        radius: float = 0.0,
    ) -> None:
        self.paint(polygons(self.size, [self.place(rectangle(*box, radius))]), tone, height, gloss, edge)

    def disc(
        self, x: float, y: float, radius: float, tone: Float32Array, height: float, gloss: float, edge: float
    ) -> None:
        cx, cy = self.place((x, y))
        self.paint(discs(self.size, [(float(cx), float(cy), radius * self.unit)]), tone, height, gloss, edge)

    def tint(self, area: Float32Array, tone: Float32Array, strength: float) -> None:
        """Print a tone on the surface, without a change of height."""
        self.albedo += (tone - self.albedo) * (area * np.float32(strength))[..., None]

    def text(self, text: str, x: float, y: float, size: float, tone: Float32Array, strength: float = 0.8) -> None:
        self.tint(text_cover(self.size, text, tuple(self.place((x, y))), size * self.unit), tone, strength)

    def sprite(self, speckle: Float32Array) -> Sprite:
        albedo = self.albedo * (1 + np.float32(0.05) * speckle)[..., None]
        # Multiplied by the cover after blurring: `mount` adds the layers, and heights must end at the outline.
        soft = blur(self.height, 0.3 * self.unit)
        return Sprite(
            np.ascontiguousarray(albedo * self.cover[..., None]),
            np.stack([self.cover, soft * self.cover, self.gloss * self.cover], axis=2),
        )


def text_cover(shape: tuple[int, int], text: str, centre: tuple[float, ...], height: float) -> Float32Array:
    """Return the cover [H, W] of a short text with capitals `height` pixels high, centred on `centre`."""
    drawing = np.zeros((2 * shape[0], 2 * shape[1]), np.uint8)
    scale = 2 * height / 21.0  # capitals of this font are 21 pixels high at scale 1
    thickness = max(1, round(2 * height * 0.14))
    (width, _), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, thickness)
    corner = round(2 * centre[0] - width / 2), round(2 * centre[1] + height)
    cv2.putText(drawing, text, corner, cv2.FONT_HERSHEY_SIMPLEX, scale, 255, thickness, cv2.LINE_AA)
    small = cv2.resize(drawing, (shape[1], shape[0]), interpolation=cv2.INTER_AREA)
    return np.asarray(small, np.float32) / np.float32(255)


def draw_sprite(part: Placed, unit: float) -> Sprite:
    """Return the drawing of one component at `unit` canvas pixels a unit."""
    form = FOOTPRINTS[part.kind]
    # From the component's own seed: a board's prints do not depend on how many components were drawn before.
    rng = np.random.default_rng(part.style)
    painter = _Painter(form.width, form.depth, unit)
    _DRAW[part.kind](painter, rng)
    return painter.sprite(rng.standard_normal(painter.size, dtype=np.float32))


def _legs(painter: _Painter, kind: str, body: float) -> None:
    """Paint gull-wing leads: a shoulder at the body that bends down to a foot on the pad."""
    for x, y, _, _ in FOOTPRINTS[kind].pads:
        upright = abs(y) > body
        sign = math.copysign(1, y if upright else x)
        outer = (abs(y) if upright else abs(x)) + 3.2
        for start, end, height in ((body - 1, body + 3.2, 3.0), (body + 2.6, outer, 1.1)):
            middle, length = sign * (start + end) / 2, end - start
            box = (x, middle, 2.7, length) if upright else (middle, y, length, 2.7)
            painter.box(box, _TIN, height, 0.55, 0.7)


def _chip(painter: _Painter, rng: np.random.Generator, kind: str, half: tuple[float, float]) -> None:
    _legs(painter, kind, half[1] if kind == "dual" else half[0])
    painter.box((0, 0, 2 * half[0], 2 * half[1]), _EPOXY, 4.5, 0.07, 1.6, 0.8)
    painter.disc(-half[0] + 4.6, half[1] - 4.6, 1.7, _EPOXY * np.float32(0.6), 3.9, 0.2, 0.3)
    tone = colour(172, 172, 170)
    letters = "".join(chr(65 + int(c)) for c in rng.integers(0, 26, 2))
    size = 5.4 if kind == "quad" else 4.4
    painter.text(f"{letters}{rng.integers(10, 99)}F{rng.integers(1, 9)}", 0, -size * 0.95, size, tone)
    painter.text(f"{rng.integers(1000, 9999)}", 0, size * 0.95, size * 0.85, tone, 0.65)


def _quad(painter: _Painter, rng: np.random.Generator) -> None:
    _chip(painter, rng, "quad", (26.5, 26.5))


def _dual(painter: _Painter, rng: np.random.Generator) -> None:
    _chip(painter, rng, "dual", (21.0, 11.5))


def _can(painter: _Painter, rng: np.random.Generator) -> None:
    for side in (-1, 1):
        painter.box((side * 16.5, 0, 7, 4), _TIN, 1.2, 0.5, 0.6)
    painter.paint(
        polygons(painter.size, [painter.place([(-15, -15), (11, -15), (15, -11), (15, 11), (11, 15), (-15, 15)])]),
        colour(38, 38, 40),
        3.0,
        0.08,
        1.0,
    )
    painter.disc(0, 0, 14.2, colour(170, 172, 175), 13.0, 0.5, 1.6)
    painter.disc(0, 0, 12.0, colour(192, 193, 195), 12.6, 0.25, 0.4)
    middle = float(painter.middle[0]), float(painter.middle[1])
    top = discs(painter.size, [(*middle, 12.0 * painter.unit)])
    stripe = top * polygons(painter.size, [painter.place([(-14, -14), (-6.2, -14), (-6.2, 14), (-14, 14)])])
    painter.tint(stripe, colour(40, 42, 48), 0.95)
    painter.text(str(rng.choice(["10", "22", "47"])), 2.4, -4.2, 5.0, colour(50, 52, 58))
    painter.text(f"{rng.choice([16, 25, 35])}V", 2.6, 4.2, 4.6, colour(50, 52, 58))


def _crystal(painter: _Painter, rng: np.random.Generator) -> None:
    painter.box((0, 0, 36, 14.5), colour(150, 150, 150), 2.0, 0.3, 0.8, 7)
    painter.box((0, 0, 33, 11.5), colour(176, 176, 178), 6.0, 0.5, 2.2, 5.6)
    painter.text(str(rng.choice(["8.000", "12.00", "16.00"])), 0, 0, 4.6, colour(82, 82, 86))


def _header(painter: _Painter, rng: np.random.Generator) -> None:
    painter.box((0, 0, 65, 10.5), colour(40, 40, 42), 6.0, 0.06, 1.0)
    for x in range(-28, 29, 8):
        painter.box((x, 0, 6.0, 7.2), colour(30, 30, 32), 4.6, 0.05, 0.6)
        painter.box((x, 0, 3.0, 3.0), _GOLD, 8.0, 0.7, 0.8)


def _coil(painter: _Painter, rng: np.random.Generator) -> None:
    for side in (-1, 1):
        painter.box((side * 13.5, 0, 5, 15), _TIN, 1.8, 0.5, 0.7)
    painter.box((0, 0, 27, 27), colour(72, 72, 74), 8.0, 0.06, 2.2, 4.5)
    painter.text(str(rng.choice(["100", "220", "4R7"])), 0, 0, 7.0, colour(190, 190, 188))


def _ends(painter: _Painter, length: float, width: float, height: float) -> None:
    for side in (-1, 1):
        painter.box((side * (length / 2 + 0.4), 0, 4.4, width + 1.2), _TIN, height * 0.55, 0.45, 0.9, 0.8)
        painter.box((side * (length / 2 - 1.7), 0, 3.8, width), _TIN, height + 0.15, 0.5, 0.5)


def _resistor(painter: _Painter, rng: np.random.Generator) -> None:
    painter.box((0, 0, 17, 8.6), colour(224, 222, 214), 1.9, 0.1, 0.4)
    _ends(painter, 17, 8.6, 2.0)
    painter.box((0, 0, 10.2, 8.4), colour(40, 40, 44), 2.2, 0.12, 0.4)
    painter.text(str(rng.choice(["103", "472", "101", "221", "000"])), 0, 0, 4.1, colour(226, 226, 222), 0.9)


def _capacitor(painter: _Painter, rng: np.random.Generator) -> None:
    tone = colour(168, 138, 104) * np.float32(rng.uniform(0.85, 1.1))
    painter.box((0, 0, 17, 8.8), tone, 3.4, 0.16, 0.8)
    _ends(painter, 17, 8.8, 3.5)


def _led(painter: _Painter, rng: np.random.Generator) -> None:
    painter.box((0, 0, 17, 8.2), colour(222, 222, 214), 1.6, 0.1, 0.4)
    _ends(painter, 17, 8.2, 1.6)
    painter.box((0, 0, 9.5, 8.0), colour(232, 216, 150), 3.0, 0.35, 1.2, 1.2)
    painter.box((0.6, 0, 3.6, 3.6), colour(200, 170, 90), 2.8, 0.2, 0.4)
    mark = strokes(painter.size, [painter.place([(-4.0, -3.4), (-4.0, 3.4)])], 1.2 * painter.unit)
    painter.tint(mark, colour(60, 120, 70), 0.9)


_DRAW = {
    "quad": _quad,
    "dual": _dual,
    "can": _can,
    "crystal": _crystal,
    "header": _header,
    "coil": _coil,
    "resistor": _resistor,
    "capacitor": _capacitor,
    "led": _led,
}
