"""The part of the package gpiod 2 that flawscope uses, with a chip of 32 lines that notes every change."""

from __future__ import annotations

import enum
import threading
import time
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any


class Direction(enum.Enum):
    OUTPUT = 3


class Value(enum.Enum):
    INACTIVE = 0
    ACTIVE = 1


@dataclass
class LineSettings:
    direction: Direction
    output_value: Value


@dataclass
class Chip:
    """Levels of the lines, and each change with its time.

    Attributes:
        levels: Line -> level, of the lines that are taken.
        changes: Time of the monotonic clock, line, level.
        broken: Lines that cannot be set to low.
        consumer: Who took the lines.
    """

    levels: dict[int, int] = field(default_factory=dict)
    changes: list[tuple[float, int, int]] = field(default_factory=list)
    broken: set[int] = field(default_factory=set)
    consumer: str = ""
    changed: threading.Event = field(default_factory=threading.Event)

    def edges(self, line: int) -> int:
        """Return how often a line rose."""
        return sum(1 for _, changed, level in self.changes if changed == line and level)


class LineRequest:
    def __init__(self, chip: Chip, lines: tuple[int, ...]) -> None:
        self._chip: Chip | None = chip
        self._lines = lines

    def set_value(self, line: int, value: Value) -> None:
        self.set_values({line: value})

    def set_values(self, values: dict[int, Value]) -> None:
        assert self._chip is not None, "the lines have been given back"
        for line, value in values.items():
            assert line in self._lines
            if line in self._chip.broken and value is Value.INACTIVE:
                raise OSError(5, "Input/output error")
            if self._chip.levels[line] != value.value:
                self._chip.changes.append((time.monotonic(), line, value.value))
            self._chip.levels[line] = value.value

    def release(self) -> None:
        assert self._chip is not None, "the lines have been given back"
        self._chip = None


def gpiod_stand_in(chips: dict[str, Chip]) -> tuple[ModuleType, ModuleType]:
    """Return the modules `gpiod` and `gpiod.line`, with the chips of these paths."""

    def request_lines(path: str, *, consumer: str, config: dict[tuple[int, ...], LineSettings]) -> LineRequest:
        if path not in chips:
            raise FileNotFoundError(2, "No such file or directory")
        ((lines, settings),) = config.items()
        if max(lines) > 31:
            raise ValueError("line offset out of range")
        chips[path].levels = dict.fromkeys(lines, settings.output_value.value)
        chips[path].consumer = consumer
        return LineRequest(chips[path], lines)

    package: Any = ModuleType("gpiod")
    line: Any = ModuleType("gpiod.line")
    line.Direction, line.Value = Direction, Value
    package.line, package.LineSettings, package.request_lines = line, LineSettings, request_lines
    return package, line
