"""Design of a circuit board, drawn once per dataset: bare board, silk print and components, and their mounting."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from flawscope.arrays import Float32Array
from flawscope.datasets.parts.board_layout import BOARD, Layout, Placed, make_layout
from flawscope.datasets.parts.board_sprites import Sprite, draw_sprite, text_cover
from flawscope.datasets.parts.canvas import (
    UNITS,
    Canvas,
    bevel,
    blur,
    colour,
    discs,
    fractal_noise,
    polygons,
    rectangle,
    rotation,
    spread,
    strokes,
    warp,
)

_EDGE = (UNITS - BOARD) / 2
_TRACE, _CLEARANCE = 1.9, 1.3  # units


@dataclass
class Layers:
    """The board before its rotation: reflectance [side, side, 3], and cover, height in canvas pixels and gloss."""

    albedo: Float32Array
    shape: Float32Array

    def copy(self) -> Layers:
        """Return a copy that may be changed."""
        return Layers(self.albedo.copy(), self.shape.copy())


@dataclass(frozen=True)
class Design:
    """What all boards of a dataset share. It is cached: copy layers before changing them.

    Attributes:
        layout: Positions and traces.
        bare: The board without components.
        copper: Cover of the traces [side, side].
        sprites: Drawing of each component by its name.
    """

    layout: Layout
    bare: Layers
    copper: Float32Array
    sprites: dict[str, Sprite]


def canvas_points(points: list[tuple[float, float]], unit: float) -> list[tuple[float, float]]:
    """Return board points (x, y) in units as canvas points in pixels."""
    # Minus 0.5: pixel centres have integer coordinates, and the image begins at -0.5.
    return [((x + _EDGE) * unit - 0.5, (y + _EDGE) * unit - 0.5) for x, y in points]


@lru_cache(maxsize=2)
def board_design(seed: int, canvas: Canvas) -> Design:
    """Return the design of a dataset; it is drawn on the first call and cached."""
    layout = make_layout(seed)
    # Another seed than that of the layout: the same would repeat its numbers.
    bare, copper = _bare(layout, canvas, np.random.default_rng(seed + 1))
    return Design(layout, bare, copper, {part.name: draw_sprite(part, canvas.unit) for part in layout.parts})


def _bare(layout: Layout, canvas: Canvas, rng: np.random.Generator) -> tuple[Layers, Float32Array]:
    """Return the board without components, and its copper traces [side, side]."""
    unit, shape = canvas.unit, (canvas.side, canvas.side)
    traces = strokes(shape, [canvas_points(line, unit) for line in layout.traces], _TRACE * unit)
    around = strokes(shape, [canvas_points(line, unit) for line in layout.traces], (_TRACE + 2 * _CLEARANCE) * unit)
    pad_boxes = [pad for part in layout.parts for pad in part.pads()]
    vias = [(*canvas_points([via], unit)[0], 2.5 * unit) for via in layout.vias]
    rings = [(*canvas_points([(x, y)], unit)[0], radius * unit) for x, y, radius in layout.holes]
    pads, keepout = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    for x, y, width, depth in pad_boxes:
        (cx, cy), radius = canvas_points([(x, y)], unit)[0], 0.7 * unit
        _max_polygon(pads, rectangle(cx, cy, width * unit, depth * unit, radius))
        _max_polygon(keepout, rectangle(cx, cy, (width + 3) * unit, (depth + 3) * unit, radius))
    keepout = np.maximum(keepout, discs(shape, [(x, y, r + 1.4 * unit) for x, y, r in vias + rings]))
    middle = canvas.side / 2 - 0.5
    inner = polygons(shape, [rectangle(middle, middle, (BOARD - 7) * unit, (BOARD - 7) * unit, 4 * unit)])
    # The copper pour fills the board up to a clearance around traces, pads, vias and holes.
    pour = inner * (1 - np.maximum(around, keepout))
    copper = np.maximum(traces, pour)
    cover = polygons(shape, [rectangle(middle, middle, BOARD * unit, BOARD * unit, 4 * unit)])
    mask_tone, copper_tone = [
        (colour(30, 72, 50), colour(54, 110, 74)),
        (colour(30, 52, 94), colour(52, 84, 134)),
        (colour(26, 64, 54), colour(46, 100, 80)),
    ][int(rng.integers(3))]
    mottle = 1 + np.float32(0.03) * fractal_noise(rng, shape, 30 * unit)
    albedo = (mask_tone + (copper_tone - mask_tone) * copper[..., None]) * mottle[..., None]
    height = blur(copper, 0.6 * unit) * np.float32(0.55 * unit) + bevel(cover, unit) * np.float32(0.8 * unit)
    gloss = np.full(shape, 0.05, np.float32)
    layers = Layers(albedo, np.stack([cover, height, gloss], axis=2))
    ring = discs(shape, rings)
    # In this order, each over the one before: vias, rings, pads, silk print; last the drills, through all of them.
    _coat(
        layers,
        discs(shape, vias),
        colour(60, 126, 84) if mask_tone[1] > mask_tone[2] else colour(70, 110, 170),
        0.3,
        0.12,
        unit,
    )
    _coat(layers, ring, colour(206, 172, 100), 0.4, 0.3, unit)
    _coat(layers, pads, colour(172, 174, 176), 0.9, 0.4, unit)
    _coat(layers, _silk(layout, canvas, np.maximum(pads, ring)), colour(226, 228, 224), 0.25, 0.03, unit)
    drill = discs(shape, [(x, y, r * 0.42) for x, y, r in vias])
    layers.albedo *= (1 - np.float32(0.85) * drill)[..., None]
    layers.shape[..., 0] *= 1 - discs(shape, [(x, y, r * 0.58) for x, y, r in rings])
    return layers, traces


def _max_polygon(target: Float32Array, outline: npt.NDArray[np.float64]) -> None:
    """Add a polygon to a cover in place, drawing only the area around it."""
    # One by one with a maximum: `polygons` cancels overlaps. Within a view: a hundred full-size drawings are slow.
    low = np.maximum(np.floor(outline.min(axis=0)).astype(int) - 2, 0)
    high = np.ceil(outline.max(axis=0)).astype(int) + 3
    view = target[low[1] : high[1], low[0] : high[0]]
    np.maximum(view, polygons((view.shape[0], view.shape[1]), [outline - low]), out=view)


def _coat(layers: Layers, area: Float32Array, tone: Float32Array, rise: float, gloss: float, unit: float) -> None:
    """Cover an area with another material that rises by `rise` units."""
    layers.albedo += (tone - layers.albedo) * area[..., None]
    layers.shape[..., 1] += bevel(area, unit) * np.float32(rise * unit)
    layers.shape[..., 2] += (np.float32(gloss) - layers.shape[..., 2]) * area


def _silk(layout: Layout, canvas: Canvas, bare_metal: Float32Array) -> Float32Array:
    """Return the white silk print: outlines, names, and a mark at the first pin."""
    unit, shape = canvas.unit, (canvas.side, canvas.side)
    lines, dots = [], []
    names: list[tuple[float, float]] = []
    print_ = np.zeros(shape, np.float32)
    for part in layout.parts:
        wide, deep = part.half
        if part.kind in ("can", "crystal", "header", "coil"):
            corners = [(-wide, -deep), (wide, -deep), (wide, deep), (-wide, deep), (-wide, -deep)]
            lines.append(canvas_points([(part.x + dx, part.y + dy) for dx, dy in corners], unit))
        elif part.kind in ("resistor", "capacitor", "led"):
            for side in (-1, 1):
                ends = (
                    [(-5, side * 6.6), (5, side * 6.6)] if part.turns % 2 == 0 else [(side * 6.6, -5), (side * 6.6, 5)]
                )
                lines.append(canvas_points([(part.x + dx, part.y + dy) for dx, dy in ends], unit))
        else:
            x, y, _, _ = part.pads()[0]
            dots.append((x + math.copysign(5, x - part.x), y + math.copysign(4, y - part.y)))
        for dx, dy in ((0, -deep - 4.6), (0, deep + 4.6), (wide + 8, 0), (-wide - 8, 0)):
            place = part.x + dx, part.y + dy
            # Above, below, right, left: the first free position; without any the component has no name.
            is_apart = all(abs(x - place[0]) > 14 or abs(y - place[1]) > 6 for x, y in names)
            if is_apart and _is_free(layout, part, *place, 3.0 * len(part.name)):
                names.append(place)
                centre = canvas_points([place], unit)[0]
                print_ = np.maximum(print_, text_cover(shape, part.name, centre, 4.6 * unit))
                break
    print_ = np.maximum(print_, strokes(shape, lines, 0.9 * unit))
    print_ = np.maximum(print_, discs(shape, [(*canvas_points([dot], unit)[0], 1.2 * unit) for dot in dots]))
    return print_ * (1 - bare_metal)  # boards are never printed on solderable metal


def _is_free(layout: Layout, owner: Placed, x: float, y: float, half: float) -> bool:
    if not (half + 2 < x < BOARD - half - 2 and 5 < y < BOARD - 5):
        return False
    return all(
        abs(x - part.x) > part.half[0] + half - 2 or abs(y - part.y) > part.half[1] + 2.6
        for part in layout.parts
        if part is not owner
    )


def mount(layers: Layers, sprite: Sprite, x: float, y: float, angle: float, unit: float) -> None:
    """Draw a sprite on the board in place, its centre at (x, y) units, rotated by `angle` radians."""
    rows, columns = sprite.albedo.shape[:2]
    cos, sin = abs(math.cos(angle)), abs(math.sin(angle))
    wide, deep = (cos * columns + sin * rows) / 2, (sin * columns + cos * rows) / 2
    cx, cy = canvas_points([(x, y)], unit)[0]
    side = layers.albedo.shape[0]
    left, top = max(0, int(cx - wide)), max(0, int(cy - deep))
    right, bottom = min(side, int(cx + wide) + 2), min(side, int(cy + deep) + 2)
    matrix = rotation(angle, ((columns - 1) / 2, (rows - 1) / 2), (cx - left, cy - top))
    albedo = warp(sprite.albedo, matrix, (bottom - top, right - left))
    shape = warp(sprite.shape, matrix, (bottom - top, right - left))
    # Sprites are multiplied by their cover, so this is the `over` operator: below · (1 - cover) + sprite.
    clear = spread(1 - shape[..., 0])
    for layer, drawn in ((layers.albedo, albedo), (layers.shape, shape)):
        view = layer[top:bottom, left:right]
        view *= clear
        view += drawn
