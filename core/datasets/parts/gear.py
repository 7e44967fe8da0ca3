"""Renders a machined spur gear on a matt table at any angle: teeth, bore, keyway and lightening holes.

Turned faces have fine rings, which scatter light across themselves. So two bright wings appear that follow the lamp and
not the part: they are computed for each image, the shapes only once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

from flawscope.arrays import Float32Array
from flawscope.datasets.parts import marks
from flawscope.datasets.parts.canvas import (
    Canvas,
    bevel,
    blur,
    colour,
    discs,
    fractal_noise,
    polygons,
    rectangle,
    rotation,
    smooth_noise,
    smoothstep,
    spread,
    strokes,
    warp,
)
from flawscope.datasets.parts.optics import Light, lambert, power_of_two

DEFECTS = ("broken_tooth", "scratch", "crack", "dent", "rust", "swarf")
_TIP, _ROOT, _WEB, _HUB, _BORE, _HOLES = 113.0, 92.0, 76.0, 39.0, 19.0, 57.0  # radii in units
_REACH = 8.0  # units by which `_compass` exceeds the image on each side; the gear is at most 5 off the centre


@dataclass(frozen=True)
class _Layout:
    """The shape that all gears of a dataset share."""

    teeth: int
    holes: int
    hole_radius: float


@dataclass
class _Gear:
    """A gear at its place in the image, in layers [side, side] that a defect may change in place.

    Attributes:
        height: Height in canvas pixels, without the gear's own thickness.
        cover: 1 where the gear is, 0 where the table is.
        turned: 1 on machined faces, 0 on the rough web.
        grain: Rings on the machined faces and roughness of the cast web, both of unit variance.
        tint: Factor on reflectance [side, side, 3], or None for bare metal.
        gloss: Factor on gloss.
        centre: Centre of the gear (x, y) in canvas pixels.
        angle: Rotation in radians.
        shape: The layout.
    """

    height: Float32Array
    cover: Float32Array
    turned: Float32Array
    grain: Float32Array
    tint: Float32Array | None
    gloss: Float32Array
    centre: tuple[float, float]
    angle: float
    shape: _Layout

    def dye(self, factor: Float32Array) -> None:
        """Multiply reflectance by `factor` [side, side, 3]."""
        self.tint = factor if self.tint is None else self.tint * factor

    def at(self, radius: float, angle: float, unit: float) -> tuple[float, float]:
        """Return the canvas point at `radius` units and `angle` radians in the frame of the part."""
        turn = angle + self.angle
        return self.centre[0] + radius * unit * math.cos(turn), self.centre[1] + radius * unit * math.sin(turn)


def _outline(teeth: int, centre: float, unit: float) -> list[tuple[float, float]]:
    """Return the outline of the toothed rim, with curved flanks as on a real gear."""
    pitch = 2 * math.pi / teeth
    points = []
    for tooth in range(teeth):
        # Radius in units, and half the tooth's width there as a share of the pitch.
        flank = [
            (_ROOT, 0.31),
            (_ROOT + 2, 0.285),
            (_ROOT + 6, 0.255),
            (_ROOT + 10, 0.20),
            (_TIP - 1.2, 0.135),
            (_TIP, 0.115),
        ]
        for radius, half in [(r, -h) for r, h in flank] + [(r, h) for r, h in reversed(flank)]:
            angle = (tooth + half) * pitch
            points.append((centre + radius * unit * math.cos(angle), centre + radius * unit * math.sin(angle)))
    return points


@lru_cache(maxsize=2)
def _layers(layout: int, canvas: Canvas) -> tuple[_Layout, Float32Array]:
    """Return the layout and the layers [side, side, 4]: height, cover, turned, grain. Cached: do not change them."""
    rng = np.random.default_rng(layout)
    form = _Layout(int(rng.integers(17, 23)), int(rng.integers(4, 7)), rng.uniform(10.5, 12.5))
    side, unit = canvas.side, canvas.unit
    middle, shape = (side - 1) / 2, (side, side)
    rim = polygons(shape, [_outline(form.teeth, middle, unit)])
    rim = np.maximum(rim, discs(shape, [(middle, middle, (_ROOT + 0.5) * unit)]))
    turn = [2 * math.pi * hole / form.holes for hole in range(form.holes)]
    places = [(middle + _HOLES * unit * math.cos(a), middle + _HOLES * unit * math.sin(a)) for a in turn]
    open_ = discs(shape, [(x, y, form.hole_radius * unit) for x, y in places] + [(middle, middle, _BORE * unit)])
    key = polygons(shape, [rectangle(middle + _BORE * unit, middle, 9 * unit, 9 * unit)])
    cover = rim * (1 - np.maximum(open_, key))
    ring = discs(shape, [(middle, middle, _WEB * unit)]) * (1 - discs(shape, [(middle, middle, _HUB * unit)]))
    faces = 1 - ring
    height = bevel(cover, 2.2 * unit) * np.float32(1.5 * unit)
    height += blur(faces, 1.1 * unit) * np.float32(5 * unit)
    grain = fractal_noise(rng, shape, 3.2 * unit, 3)
    rings = rng.standard_normal(2 * side).astype(np.float32)  # two a canvas pixel, out to the corners
    rings = rings + 2 * np.convolve(rings, np.ones(3) / 3, "same") + np.convolve(rings, np.ones(7) / 7, "same")
    x = np.arange(side, dtype=np.float32) - np.float32(middle)
    # Each pixel takes the noise of its radius, in steps of half a pixel: concentric rings without drawing any.
    ring_at = (np.hypot(x[None, :], x[:, None]) * 2).astype(np.int64)
    grain += ((rings / rings.std()).astype(np.float32)[ring_at] - grain) * (faces > 0.5)
    return form, np.stack([height, cover, faces, grain], axis=2).astype(np.float32)


@lru_cache(maxsize=2)
def _compass(canvas: Canvas) -> tuple[Float32Array, Float32Array]:
    """Return the unit vector (x, y) from the centre at each point of a field wider than the canvas by `_REACH`."""
    # Wider, so that `_metal` can cut a window for a gear off the centre without computing it again.
    half = canvas.side // 2 + round(_REACH * canvas.unit)
    x = np.arange(-half, half + 1, dtype=np.float32)
    radius = np.maximum(np.hypot(x[None, :], x[:, None]), 1)
    return (x[None, :] / radius).astype(np.float32), (x[:, None] / radius).astype(np.float32)


def scene(
    layout: int, canvas: Canvas, rng: np.random.Generator, light: Light, defect: str | None, chance: np.random.Generator
) -> Float32Array:
    """Return a linear scene [side, side, 3] of the gear on its table.

    Args:
        layout: Seed of what all images of a dataset share: teeth and holes.
        canvas: Size of the scene.
        rng: Generator of this image: angle, position, the grain of the table.
        light: The lamp.
        defect: One of `DEFECTS`, or None for a normal part.
        chance: Generator of the defect.
    """
    form, layers = _layers(layout, canvas)
    side, unit = canvas.side, canvas.unit
    middle = (side - 1) / 2
    angle = rng.uniform(0, 2 * math.pi)
    centre = (middle + rng.uniform(-5, 5) * unit, middle + rng.uniform(-5, 5) * unit)
    matrix = rotation(angle, (middle, middle), centre, rng.uniform(0.985, 1.01))
    # `warp` returns new arrays: the layers themselves are cached, and defects change these planes in place.
    planes = [np.asarray(plane, np.float32) for plane in cv2.split(warp(layers, matrix, (side, side)))]
    height, cover, turned, grain = planes
    gloss = np.ones((side, side), np.float32)
    part = _Gear(height, cover, turned, grain, None, gloss, centre, angle, form)
    # The table is matt and slightly mottled.
    table = 1 + np.float32(0.022) * smooth_noise(rng, (side, side), 11 * unit)
    if defect in _CHANGES:
        _CHANGES[defect](part, chance, canvas)
    metal = _metal(part, canvas, light)
    x, y, z = light.direction
    lift = 7 * unit
    # The shadow is soft, so half the resolution is enough; it is computed after the defect, from the changed outline.
    small = np.asarray(cv2.resize(part.cover, (side // 2, side // 2), interpolation=cv2.INTER_AREA), np.float32)
    away = np.array([[1, 0, -x / z * lift / 2], [0, 1, -y / z * lift / 2]])
    small = np.maximum(blur(warp(small, away, small.shape), 1.3 * unit), np.float32(0.9) * blur(small, 0.8 * unit))
    shadow = np.asarray(cv2.resize(small, (side, side), interpolation=cv2.INTER_LINEAR), np.float32)
    shadow *= np.float32(-0.62)
    shadow += 1
    image = spread(table * shadow * (1 - part.cover), colour(92, 98, 105))
    image += metal
    if defect == "swarf":
        image = _swarf(image, part, chance, canvas, light)
    return np.asarray(image, np.float32)


def _metal(part: _Gear, canvas: Canvas, light: Light) -> Float32Array:
    """Return the shaded steel [side, side, 3], multiplied by its cover."""
    half_x, half_y, _ = light.half
    # Component of the light along the rings: where it is 0 the rings run across the light, and shine.
    compass_x, compass_y = _compass(canvas)
    left, top = (compass_x.shape[0] // 2 - round(place) for place in part.centre)
    window = slice(top, top + canvas.side), slice(left, left + canvas.side)
    wings = np.asarray(
        cv2.addWeighted(compass_x[window], 3.4 * half_y, compass_y[window], -3.4 * half_x, 0), np.float32
    )
    wings += np.float32(0.05) * part.grain
    wings *= -wings  # exp(-t²), in place throughout: each temporary array of the canvas costs time
    np.exp(wings, out=wings)
    rough = 1 - part.turned
    diffuse, mirror = lambert(part.height + np.float32(0.24) * part.grain * rough, light)
    glint = power_of_two(mirror, 5)
    lines = 1 + np.float32(0.06) * part.grain * part.turned
    wings *= part.turned * np.float32(0.42)
    wings *= diffuse
    wings += np.float32(0.12) * glint
    wings *= part.gloss * lines
    body = (np.float32(0.165) + np.float32(0.15) * part.turned) * (np.float32(0.3) + np.float32(0.82) * diffuse)
    body *= lines
    body *= part.cover
    wings *= part.cover
    if part.tint is None:
        return spread(body + wings)
    # Gloss is reflected by the surface and takes less of the tint than the body does.
    return spread(body) * part.tint + spread(wings) * np.sqrt(part.tint)


def _solid(part: _Gear, chance: np.random.Generator, unit: float) -> tuple[float, float]:
    """Return a point on the gear, not over a hole."""
    for _ in range(40):
        point = part.at(
            float(chance.choice([chance.uniform(22, 34), chance.uniform(44, 90)])), chance.uniform(0, 7), unit
        )
        if part.cover[int(point[1]), int(point[0])] > 0.99:
            return point
    return part.at(85, 0.0, unit)


def _broken_tooth(part: _Gear, chance: np.random.Generator, canvas: Canvas) -> None:
    unit, side = canvas.unit, canvas.side
    pitch = 2 * math.pi / part.shape.teeth
    angle = int(chance.integers(part.shape.teeth)) * pitch + chance.uniform(-0.1, 0.1) * pitch
    stump = chance.uniform(_ROOT - 2, _TIP - 9)  # radius of the fracture
    along = np.linspace(-0.42, 0.42, 15) * pitch
    edge = stump + chance.normal(0, 0.8, 15) + chance.uniform(-9, 9) * np.linspace(-0.5, 0.5, 15)
    inner = [part.at(float(r), angle + float(a), unit) for r, a in zip(edge, along, strict=True)]
    outer = [part.at(_TIP + 8, angle + float(a), unit) for a in along[::-1]]
    gone = polygons((side, side), [inner + outer])
    fracture = np.clip(blur(gone, 1.4 * unit) * 2, 0, 1) * (1 - gone)
    part.cover *= 1 - gone
    part.height -= fracture * np.float32(2.0 * unit) * (1 + np.float32(0.4) * part.grain)
    part.turned *= 1 - fracture
    part.dye(1 - np.float32(0.35) * spread(fracture))


def _scratch(part: _Gear, chance: np.random.Generator, canvas: Canvas) -> None:
    unit, shape = canvas.unit, (canvas.side, canvas.side)
    point = _solid(part, chance, unit)
    heading = math.atan2(point[1] - part.centre[1], point[0] - part.centre[0]) + chance.normal(0, 0.6)
    line = marks.wander(chance, (0, 0), heading, chance.uniform(18, 70) * unit, 0.4)
    fade = marks.uneven(chance, shape, 8 * unit, 0.5)
    groove = marks.tapered(shape, marks.centred(line, point), chance.uniform(0.9, 1.7) * unit, fade)
    part.height -= np.float32(chance.uniform(0.6, 1.3) * unit) * blur(groove, 0.5 * unit)
    tone = chance.choice([0.4, 1.8])
    part.dye(spread(1 + np.float32(tone - 1) * groove))
    part.gloss *= 1 - np.float32(0.6) * groove


def _crack(part: _Gear, chance: np.random.Generator, canvas: Canvas) -> None:
    unit, shape = canvas.unit, (canvas.side, canvas.side)
    turn = 2 * math.pi * int(chance.integers(part.shape.holes)) / part.shape.holes
    if chance.random() < 0.5:  # from the bore outwards, or from a lightening hole towards the rim
        angle = chance.uniform(0.35, 2 * math.pi - 0.35)
        start, heading = part.at(_BORE, angle, unit), angle + part.angle
    else:
        start = part.at(_HOLES + part.shape.hole_radius, turn, unit)
        heading = turn + part.angle
    lines = marks.jagged(chance, start, heading + chance.normal(0, 0.25), chance.uniform(14, 34) * unit)
    gap = np.maximum(strokes(shape, lines[:1], chance.uniform(0.9, 1.6) * unit), strokes(shape, lines[1:], 0.7 * unit))
    part.height -= np.float32(0.9 * unit) * blur(gap, 0.5 * unit)
    part.dye(spread(1 - np.float32(0.93) * gap))
    part.gloss *= 1 - gap


def _dent(part: _Gear, chance: np.random.Generator, canvas: Canvas) -> None:
    unit, shape = canvas.unit, (canvas.side, canvas.side)
    radius = chance.uniform(3.5, 8) * unit
    field = marks.blob(chance, shape, _solid(part, chance, unit), radius, 0.12)
    bowl = smoothstep(field, -0.1, 0.8)
    part.height -= np.float32(chance.uniform(0.35, 0.6) * radius) * bowl
    part.gloss *= 1 - np.float32(0.6) * bowl
    part.dye(spread(1 - np.float32(0.15) * bowl))


def _rust(part: _Gear, chance: np.random.Generator, canvas: Canvas) -> None:
    unit, shape = canvas.unit, (canvas.side, canvas.side)
    field = marks.blob(chance, shape, _solid(part, chance, unit), chance.uniform(6, 22) * unit, 0.6)
    speckle = fractal_noise(chance, shape, 4 * unit, 3)
    bloom = smoothstep(field + np.float32(0.22) * speckle, 0.05, 0.55) * np.float32(chance.uniform(0.55, 0.95))
    shade = spread(1 + np.float32(0.18) * speckle)
    part.dye(1 - spread(bloom) * (1 - colour(190, 120, 70) * shade))
    part.gloss *= 1 - np.float32(0.9) * bloom
    part.height += bloom * speckle * np.float32(0.25 * unit)


def _swarf(image: Float32Array, part: _Gear, chance: np.random.Generator, canvas: Canvas, light: Light) -> Float32Array:
    """Return the image with a metal chip, a curl, lying on the gear."""
    unit, shape = canvas.unit, (canvas.side, canvas.side)
    turns = np.linspace(0, chance.uniform(2, 5) * 2 * math.pi, 90)
    coil, climb = chance.uniform(3, 6) * unit, chance.uniform(1.0, 1.8) * unit
    spine = marks.wander(chance, (0, 0), chance.uniform(0, 2 * math.pi), climb * float(turns[-1]), 1.0, 89)
    curl = marks.centred(
        spine + coil * np.stack([np.cos(turns), 0.75 * np.sin(turns)], axis=1), _solid(part, chance, unit)
    )
    x, y, z = light.direction
    below = curl + np.array([-x / z, -y / z]) * 3 * unit
    body = strokes(shape, [curl], 1.7 * unit)
    bright = np.float32(0.5) + np.float32(0.5) * np.sin(turns + light.azimuth).astype(np.float32)
    shine = np.zeros(shape, np.float32)
    # Short pieces, each as bright as its turn faces the lamp; five points each, so that neighbours share one.
    for first in range(0, 88, 4):
        np.maximum(shine, strokes(shape, [curl[first : first + 5]], 0.9 * unit) * bright[first], out=shine)
    under = blur(strokes(shape, [below], 1.8 * unit), 0.8 * unit)
    metal = colour(118, 112, 104) * spread(np.float32(0.5) + np.float32(3.2) * shine)
    shaded = image * spread(1 - np.float32(0.45) * under)
    return np.asarray(shaded + (metal - shaded) * spread(body), np.float32)


_CHANGES = {"broken_tooth": _broken_tooth, "scratch": _scratch, "crack": _crack, "dent": _dent, "rust": _rust}
