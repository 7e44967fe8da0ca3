"""Renders a populated circuit board in a holder: one design per dataset, components placed with assembly tolerances."""

from __future__ import annotations

import itertools
import math

import numpy as np

from flawscope.arrays import Float32Array
from flawscope.datasets.parts import marks
from flawscope.datasets.parts.board_design import Design, Layers, board_design, canvas_points, mount
from flawscope.datasets.parts.board_layout import Placed
from flawscope.datasets.parts.canvas import (
    Canvas,
    bevel,
    blur,
    colour,
    discs,
    rotation,
    smoothstep,
    spread,
    strokes,
    warp,
)
from flawscope.datasets.parts.optics import Light, cast_shadow, lambert, power_of_two

DEFECTS = ("missing_component", "misplaced_component", "solder_bridge", "cut_trace", "scratch", "fibre")
# Kinds that can be missing or misplaced: all but the large chip and the connector.
_MOVABLE = ("resistor", "capacitor", "led", "crystal", "coil", "dual", "can")


def _populate(
    design: Design,
    rng: np.random.Generator,
    canvas: Canvas,
    odd: str | None,
    chance: np.random.Generator,
    odd_name: str | None,
) -> Layers:
    """Return the board with its components, each slightly off its position; `odd_name` is missing or misplaced."""
    layers = design.bare.copy()  # the design is cached and shared by all images
    for part in design.layout.parts:
        # Drawn for a missing component too: the others must be where they are in the normal counterpart.
        jitter = rng.uniform(-1, 1, 3)
        x, y = part.x + 0.35 * jitter[0], part.y + 0.35 * jitter[1]
        angle = part.turns * math.pi / 2 + math.radians(0.6 * jitter[2])
        if part.name == odd_name:
            if odd == "missing_component":
                continue
            turn, shift = _displaced(part, chance)
            x, y, angle = x + shift[0], y + shift[1], angle + turn
        mount(layers, design.sprites[part.name], x, y, angle, canvas.unit)
    return layers


def _displaced(part: Placed, chance: np.random.Generator) -> tuple[float, tuple[float, float]]:
    """Return the rotation in radians and the shift in units of a misplaced component."""
    small = max(part.half) < 16
    turn = math.radians(chance.choice([-1, 1]) * (chance.uniform(12, 40) if small else chance.uniform(5, 14)))
    if small and chance.random() < 0.2:
        turn = math.radians(chance.uniform(75, 105))  # lies across its pads
    reach, way = chance.uniform(1, 4), chance.uniform(0, 2 * math.pi)
    return turn, (reach * math.cos(way), reach * math.sin(way))


def scene(
    layout: int, canvas: Canvas, rng: np.random.Generator, light: Light, defect: str | None, chance: np.random.Generator
) -> Float32Array:
    """Return a linear scene [side, side, 3] of the board in its holder.

    Args:
        layout: Seed of the design that all boards of a dataset share.
        canvas: Size of the scene.
        rng: Generator of this image: position, small rotation, tolerances of the components.
        light: The lamp.
        defect: One of `DEFECTS`, or None for a normal part.
        chance: Generator of the defect.
    """
    design = board_design(layout, canvas)
    side, unit = canvas.side, canvas.unit
    middle = (side - 1) / 2
    matrix = rotation(
        math.radians(rng.uniform(-0.8, 0.8)),
        (middle, middle),
        (middle + rng.uniform(-2, 2) * unit, middle + rng.uniform(-2, 2) * unit),
        rng.uniform(0.994, 1.006),
    )
    # Everything about the defect is drawn from `chance`: a draw from `rng` would change the part behind it.
    odd = None
    if defect in ("missing_component", "misplaced_component"):
        odd = str(chance.choice([part.name for part in design.layout.parts if part.kind in _MOVABLE]))
    layers = _populate(design, rng, canvas, defect, chance, odd)
    if defect in _CHANGES:
        _CHANGES[defect](layers, design, chance, canvas)
    albedo = warp(layers.albedo, matrix, (side, side))
    shape = warp(layers.shape, matrix, (side, side))
    # Contiguous planes: views into the stack, with strides of three, slow down all that follows.
    cover, height, gloss = (np.ascontiguousarray(shape[..., layer]) for layer in range(3))
    diffuse, mirror = lambert(height, light)
    np.minimum(diffuse, 1, out=diffuse)
    shade = 1 - np.float32(0.6) * cast_shadow(height, light, (2 * unit, 5 * unit, 9 * unit), 0.5 * unit)
    shine = gloss * (power_of_two(mirror, 4) * np.float32(0.9) + np.float32(0.1)) * shade
    image = albedo * spread((np.float32(0.32) + np.float32(0.95) * diffuse * shade) * cover)
    image += spread(shine * cover + (1 - cover) * np.float32(0.043))  # 0.043: reflectance of the dark holder
    if defect == "fibre":
        place = (chance.uniform(0.16, 0.84) * side, chance.uniform(0.16, 0.84) * side)
        image = marks.add_hair(image, chance, canvas, light, place)
    return np.asarray(image, np.float32)


def _bridge(layers: Layers, design: Design, chance: np.random.Generator, canvas: Canvas) -> None:
    """Join two neighbouring legs of a chip with solder."""
    unit, shape = canvas.unit, (canvas.side, canvas.side)
    chips = [part for part in design.layout.parts if part.kind in ("quad", "dual")]
    pads = chips[int(chance.integers(len(chips)))].pads()
    first = int(chance.integers(len(pads)))
    x, y, width, depth = pads[first]
    near = [pad for pad in pads if 0 < math.dist(pad[:2], (x, y)) < 8.5]
    other = near[int(chance.integers(len(near)))]  # never empty: legs have a pitch of 8 units
    upright = depth > width
    along = chance.uniform(-1.5, 3.0) * (1 if (y if upright else x) > 0 else -1)
    ends = [(x, y + along), (other[0], other[1] + along)] if upright else [(x + along, y), (other[0] + along, other[1])]
    ends.insert(
        1,
        ((ends[0][0] + ends[1][0]) / 2 + chance.normal(0, 0.6), (ends[0][1] + ends[1][1]) / 2 + chance.normal(0, 0.6)),
    )
    points = canvas_points(ends, unit)
    area = strokes(shape, [points], chance.uniform(1.9, 5.4) * unit)
    bulge = discs(shape, [(*points[index], chance.uniform(1.4, 2.6) * unit) for index in (0, 2)])
    area = smoothstep(blur(np.maximum(area, bulge), 0.7 * unit), 0.35, 0.65)
    layers.albedo += (colour(182, 184, 186) - layers.albedo) * area[..., None]
    dome = bevel(area, 2.2 * unit)
    layers.shape[..., 1] = np.maximum(layers.shape[..., 1], area * np.sqrt(dome) * np.float32(2.6 * unit))
    layers.shape[..., 2] += (np.float32(0.5) - layers.shape[..., 2]) * area


def _cut_trace(layers: Layers, design: Design, chance: np.random.Generator, canvas: Canvas) -> None:
    """Cut a trace: a gouge across it exposes the laminate, with shining torn copper at its ends."""
    unit, shape = canvas.unit, (canvas.side, canvas.side)
    # Segments that no component hides: a cut under a body could not be seen.
    spots = [
        ((a[0] + b[0]) / 2, (a[1] + b[1]) / 2, math.atan2(b[1] - a[1], b[0] - a[0]))
        for line in design.layout.traces
        for a, b in itertools.pairwise(line)
        if not any(
            abs(a[0] - part.x) < part.half[0] + 3 and abs(a[1] - part.y) < part.half[1] + 3
            for part in design.layout.parts
        )
    ]
    x, y, heading = spots[int(chance.integers(len(spots)))]
    gap, reach = chance.uniform(2.6, 5.5), chance.uniform(1.8, 3.4)
    heading += chance.normal(0, 0.25)
    across = np.array([-math.sin(heading), math.cos(heading)])
    ways = [np.array([x, y]) + across * step + chance.normal(0, 0.35, 2) for step in np.linspace(-reach, reach, 5)]
    line = canvas_points([(float(p[0]), float(p[1])) for p in ways], unit)
    gouge = strokes(shape, [line], gap * unit)
    torn = strokes(shape, [line], (gap + 2.0) * unit) * (1 - gouge) * design.copper
    layers.albedo += (colour(150, 132, 92) * np.float32(chance.uniform(0.5, 1)) - layers.albedo) * gouge[..., None]
    layers.albedo += (colour(216, 140, 92) - layers.albedo) * (torn * np.float32(0.9))[..., None]
    layers.shape[..., 1] -= blur(gouge, 0.4 * unit) * np.float32(0.9 * unit)
    layers.shape[..., 2] += torn * np.float32(0.25)


def _scratch(layers: Layers, design: Design, chance: np.random.Generator, canvas: Canvas) -> None:
    """Scratch the solder mask: a pale line, copper-coloured where it lies over copper."""
    unit, shape = canvas.unit, (canvas.side, canvas.side)
    line = marks.wander(chance, (0, 0), chance.uniform(0, math.pi), chance.uniform(30, 100) * unit, 0.4)
    place = (chance.uniform(0.2, 0.8) * canvas.side, chance.uniform(0.2, 0.8) * canvas.side)
    fade = marks.uneven(chance, shape, 10 * unit, 0.4)
    groove = marks.tapered(shape, marks.centred(line, place), chance.uniform(0.9, 1.8) * unit, fade)
    groove *= layers.shape[..., 1] < 2.2 * unit  # the board was scratched before it was populated
    pale = colour(168, 182, 160)
    tone = pale + (colour(212, 158, 110) - pale) * design.copper[..., None]
    strength = np.float32(chance.uniform(0.5, 0.95))
    layers.albedo += (tone - layers.albedo) * (groove * strength)[..., None]
    layers.shape[..., 1] -= blur(groove, 0.4 * unit) * np.float32(0.4 * unit)


_CHANGES = {"solder_bridge": _bridge, "cut_trace": _cut_trace, "scratch": _scratch}
