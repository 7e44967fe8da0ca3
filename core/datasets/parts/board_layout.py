"""Layout of a small circuit board: positions of the components, and the traces between their pads.

Everything lies on a grid of 4 units. Positions are board coordinates in units, (0, 0) at the upper left corner.
"""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass, field

import numpy as np

BOARD = 244.0  # side of the board in units
PITCH = 4
CELLS = int(BOARD // PITCH) + 1
_STEPS = [(dx, dy) for dx in (-1, 0, 1) for dy in (-1, 0, 1) if dx or dy]

Node = tuple[int, int]


@dataclass(frozen=True)
class Footprint:
    """Size and pads of one kind of component.

    Attributes:
        width: Extent with its pads along x in units, before rotation.
        depth: Extent with its pads along y in units.
        pads: Pads as (x, y, width, depth) relative to the centre.
        prefix: First letter of its name in the silk print.
        tall: Height of the body in units.
    """

    width: float
    depth: float
    pads: tuple[tuple[float, float, float, float], ...]
    prefix: str
    tall: float


def _rows(offsets: range, distance: float, size: tuple[float, float]) -> tuple[tuple[float, float, float, float], ...]:
    return tuple((float(x), y, *size) for y in (-distance, distance) for x in offsets)


_QUAD = (
    *_rows(range(-20, 21, 8), 32.0, (4.2, 10.0)),
    *((y, float(x), 10.0, 4.2) for y in (-32.0, 32.0) for x in range(-20, 21, 8)),
)

FOOTPRINTS: dict[str, Footprint] = {
    "quad": Footprint(76, 76, _QUAD, "U", 4.5),
    "dual": Footprint(46, 46, _rows(range(-16, 17, 8), 16.0, (4.2, 9.5)), "U", 4.5),
    "can": Footprint(42, 36, ((-16, 0, 10, 8), (16, 0, 10, 8)), "C", 13),
    "crystal": Footprint(40, 18, ((-16, 0, 8, 8), (16, 0, 8, 8)), "Y", 6),
    "header": Footprint(66, 14, tuple((float(x), 0.0, 7.0, 7.0) for x in range(-28, 29, 8)), "J", 6),
    "coil": Footprint(34, 30, ((-12, 0, 8, 18), (12, 0, 8, 18)), "L", 8),
    "resistor": Footprint(26, 12, ((-8, 0, 8, 10), (8, 0, 8, 10)), "R", 2),
    "capacitor": Footprint(26, 12, ((-8, 0, 8, 10), (8, 0, 8, 10)), "C", 3.5),
    "led": Footprint(26, 12, ((-8, 0, 8, 9), (8, 0, 8, 9)), "D", 3),
}

# Large components first: placed last they would rarely find room. The order is part of the random sequence.
_ORDER = (
    "quad",
    "header",
    "dual",
    "can",
    "coil",
    "crystal",
    "dual",
    *("resistor", "capacitor") * 6,
    "led",
    "resistor",
    "led",
)


@dataclass(frozen=True)
class Placed:
    """One component of the layout.

    Attributes:
        kind: A key of `FOOTPRINTS`.
        name: Name in the silk print, such as R7.
        x: Centre in units.
        y: Centre in units.
        turns: Quarter turns clockwise.
        style: Seed of its print and tone.
    """

    kind: str
    name: str
    x: float
    y: float
    turns: int
    style: int

    @property
    def half(self) -> tuple[float, float]:
        """Half extents along x and y in units, after rotation."""
        form = FOOTPRINTS[self.kind]
        return (form.width / 2, form.depth / 2) if self.turns % 2 == 0 else (form.depth / 2, form.width / 2)

    def pads(self) -> list[tuple[float, float, float, float]]:
        """Return its pads in board coordinates (x, y, width, depth)."""
        # Rounded: the cosine of 90 degrees is 6e-17, and pads must lie exactly on the grid.
        cos, sin = round(math.cos(self.turns * math.pi / 2)), round(math.sin(self.turns * math.pi / 2))
        rows = []
        for x, y, width, depth in FOOTPRINTS[self.kind].pads:
            size = (width, depth) if self.turns % 2 == 0 else (depth, width)
            rows.append((self.x + cos * x - sin * y, self.y + sin * x + cos * y, *size))
        return rows


@dataclass
class Layout:
    """A whole board.

    Attributes:
        parts: Components.
        traces: Polylines [K][x, y] in units.
        vias: Centres in units.
        holes: Mounting holes (x, y, radius of the ring) in units.
    """

    parts: list[Placed] = field(default_factory=list)
    traces: list[list[tuple[float, float]]] = field(default_factory=list)
    vias: list[tuple[float, float]] = field(default_factory=list)
    holes: list[tuple[float, float, float]] = field(default_factory=list)


def make_layout(seed: int) -> Layout:
    """Place the components of one board and route its traces; the same seed gives the same board."""
    rng = np.random.default_rng(seed)
    layout = Layout()
    flip = rng.random() < 0.5
    for x, y in ((14.0, 14.0), (BOARD - 14, BOARD - 14)):
        layout.holes.append((BOARD - x if flip else x, y, 9.0))
    for kind in _ORDER:
        _place(layout, kind, rng)
    _Router(layout, rng).route()
    return layout


def _place(layout: Layout, kind: str, rng: np.random.Generator) -> None:
    count = sum(FOOTPRINTS[part.kind].prefix == FOOTPRINTS[kind].prefix for part in layout.parts)
    style = int(rng.integers(2**31))  # drawn before the position, so that it does not depend on the number of attempts
    for _ in range(500):
        turns = int(rng.integers(4))
        if kind == "header":  # connectors sit at an edge
            turns, x, y = 0, float(PITCH * rng.integers(12, CELLS - 12)), BOARD - 16.0
        else:
            x, y = (float(PITCH * value) for value in rng.integers(4, CELLS - 4, 2))
        part = Placed(kind, f"{FOOTPRINTS[kind].prefix}{count + 1}", x, y, turns, style)
        if _fits(layout, part):
            layout.parts.append(part)
            return
    # After 500 attempts the component is left out: a crowded board is no error.


def _fits(layout: Layout, part: Placed) -> bool:
    wide, deep = part.half
    if min(part.x - wide, part.y - deep) < 7 or max(part.x + wide, part.y + deep) > BOARD - 5:
        return False
    for other in layout.parts:
        gap_x = abs(part.x - other.x) - wide - other.half[0]
        gap_y = abs(part.y - other.y) - deep - other.half[1]
        if max(gap_x, gap_y) < 5:
            return False
    return all(max(abs(part.x - x) - wide, abs(part.y - y) - deep) > radius + 2 for x, y, radius in layout.holes)


class _Router:
    """A* search on the grid: traces take straight and diagonal steps and never share a cell."""

    def __init__(self, layout: Layout, rng: np.random.Generator) -> None:
        self.layout, self.rng = layout, rng
        self.owner = np.full((CELLS, CELLS), -1, np.int64)  # -1 free, -2 blocked, else the number of a pad
        self.pads: list[tuple[Node, int]] = []  # node and component
        for number, part in enumerate(layout.parts):
            wide, deep = part.half
            self._block(part.x, part.y, wide - 4, deep - 4)
            self.pads += [((round(x / PITCH), round(y / PITCH)), number) for x, y, _, _ in part.pads()]
        for x, y, radius in layout.holes:
            self._block(x, y, radius + 3, radius + 3)
        self.owner[[0, 1, -1, -2], :] = self.owner[:, [0, 1, -1, -2]] = -2
        for number, (_, part_number) in enumerate(self.pads):
            part = layout.parts[part_number]
            # Number of the pad within its component: `self.pads` has kept only its node.
            local = [pad for pad, owner in enumerate(self.pads) if owner[1] == part_number].index(number)
            x, y, width, depth = part.pads()[local]
            for column in range(math.ceil((x - width / 2) / PITCH), math.floor((x + width / 2) / PITCH) + 1):
                for row in range(math.ceil((y - depth / 2) / PITCH), math.floor((y + depth / 2) / PITCH) + 1):
                    self.owner[column, row] = number

    def _block(self, x: float, y: float, wide: float, deep: float) -> None:
        columns = slice(max(0, math.ceil((x - wide) / PITCH)), math.floor((x + wide) / PITCH) + 1)
        rows = slice(max(0, math.ceil((y - deep) / PITCH)), math.floor((y + deep) / PITCH) + 1)
        self.owner[columns, rows] = -2

    def route(self) -> None:
        """Connect pads of different components, nearest first, and lead the rest into vias."""
        free = set(range(len(self.pads)))
        # A little noise on the distances, or all boards would join the same neighbours.
        pairs = [
            (math.dist(node, other) + self.rng.uniform(0, 6), first, second)
            for first, (node, part) in enumerate(self.pads)
            for second, (other, other_part) in enumerate(self.pads[:first])
            if part != other_part
        ]
        for distance, first, second in sorted(pairs):
            if distance > 36 or not {first, second} <= free:
                continue
            path = self._search(first, self.pads[second][0], second)
            if path:
                self._take(path, first, {second})
                free -= {first, second}
        for number in sorted(free):
            self._stub(number)

    def _search(self, start: int, goal: Node, goal_pad: int) -> list[Node]:
        allowed = (-1, start, goal_pad)
        source = self.pads[start][0]
        cost, parent = {source: 0.0}, {source: source}
        queue = [(0.0, source)]
        while queue:
            _, node = heapq.heappop(queue)
            if node == goal:
                return self._trail(parent, node)
            for dx, dy in _STEPS:
                if not self._is_open(node, dx, dy, allowed):
                    continue
                following = (node[0] + dx, node[1] + dy)
                before = parent[node]
                is_straight = before == node or (node[0] - before[0], node[1] - before[1]) == (dx, dy)
                # A price on bends: without it the path zigzags among many of the same length.
                total = cost[node] + math.hypot(dx, dy) + (0 if is_straight else 0.3)
                if total < cost.get(following, 60.0):  # no trace may cost more than 60 cells
                    cost[following], parent[following] = total, node
                    # The node is part of the entry: equal costs are ordered by it, the same in every run.
                    heapq.heappush(queue, (total + math.dist(following, goal), following))
        return []

    def _is_open(self, node: Node, dx: int, dy: int, allowed: tuple[int, ...]) -> bool:
        """Return whether a trace may step onto a cell whose owner is in `allowed`."""
        x, y = node[0] + dx, node[1] + dy
        if not (0 <= x < CELLS and 0 <= y < CELLS) or self.owner[x, y] not in allowed:
            return False
        # A diagonal between two occupied cells would touch them.
        return not (dx and dy) or (self.owner[x, node[1]] < 0 and self.owner[node[0], y] < 0)

    @staticmethod
    def _trail(parent: dict[Node, Node], node: Node) -> list[Node]:
        path = [node]
        while parent[node] != node:
            node = parent[node]
            path.append(node)
        return path[::-1]

    def _take(self, path: list[Node], number: int, other: set[int]) -> None:
        for node in path:
            if self.owner[node] not in other:
                self.owner[node] = number
        self.layout.traces.append([(PITCH * x, PITCH * y) for x, y in path])

    def _stub(self, number: int) -> None:
        """Lead a pad without a partner to a via a few cells away, where there is room."""
        if self.rng.random() < 0.25:
            return
        x, y = self.pads[number][0]
        steps = [_STEPS[index] for index in self.rng.permutation(len(_STEPS))]
        for dx, dy in steps:
            for reach in (4, 3, 5):
                path = [(x + dx * step, y + dy * step) for step in range(reach + 1)]
                if all(self._is_open(node, dx, dy, (-1, number)) for node in path[:-1]):
                    end = path[-1]
                    around = self.owner[max(0, end[0] - 1) : end[0] + 2, max(0, end[1] - 1) : end[1] + 2]
                    if np.isin(around, (-1, number)).all():
                        self._take(path, number, set())
                        self.owner[max(0, end[0] - 1) : end[0] + 2, max(0, end[1] - 1) : end[1] + 2] = number
                        self.layout.vias.append((float(PITCH * end[0]), float(PITCH * end[1])))
                        return
