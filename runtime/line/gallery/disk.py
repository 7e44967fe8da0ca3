"""How full the disk of the state folder is: a line gives up old images first, then new ones, and verdicts last."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Literal, Protocol, get_args

from flawscope.runtime.line.line_config import ImageOptions

Level = Literal["ok", "prune", "stop", "fault"]
"""What there is room for: all; all, while old images are deleted; verdicts without images; nothing."""

LEVELS: tuple[Level, ...] = get_args(Level)

GB = 10**9

_MARGIN = 1.05
"""A level is left when there is this much more than its limit: else it would come and go with each image."""


class HasFree(Protocol):
    """What is asked of a disk."""

    @property
    def free(self) -> int:
        """Free bytes."""


Usage = Callable[[Path], HasFree]


class Disk:
    """The disk of a folder. One thread looks; any may read the attributes.

    Args:
        folder: A folder on it.
        options: The limits.
        usage: Says what is free; by default the system.

    Attributes:
        level: What there is room for, as of the last look.
        free: Free bytes, as of the last look.
        problem: Why it could not be asked, empty where it could; the level then stays what it was.
    """

    def __init__(self, folder: Path, options: ImageOptions, usage: Usage = shutil.disk_usage) -> None:
        self._folder, self._usage = folder, usage
        self._limits: dict[Level, float] = {
            "prune": options.prune_below_gb * GB,
            "stop": options.stop_below_gb * GB,
            "fault": options.fault_below_gb * GB,
        }
        self.level: Level = "ok"
        self.free = 0
        self.problem = ""

    def look(self) -> Level:
        """Return the level now."""
        try:
            self.free = self._usage(self._folder).free
        except OSError as err:
            self.problem = err.strerror or str(err)
            return self.level
        self.problem = ""
        reached: Level = "ok"
        for level, limit in self._limits.items():
            is_in_force = LEVELS.index(self.level) >= LEVELS.index(level)
            if self.free < limit * (_MARGIN if is_in_force else 1.0):
                reached = level
        self.level = reached
        return reached

    def words(self) -> str:
        """Return the level in a sentence; empty for `ok`."""
        level = self.level  # once: another thread may find another one meanwhile
        if level == "ok":
            return ""
        done = {
            "prune": "old images are deleted",
            "stop": "images are not stored",
            "fault": "parts are faults until there is more",
        }
        limit = self._limits[level] / GB
        return f"{self.free / GB:.3g} GB are free, {level}_below_gb is {limit:g}: {done[level]}"
