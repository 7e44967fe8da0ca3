"""What a stage says: figures and checks, in a file that is whole after every part; or that it cannot be done here."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from gpu_stages import document

KEPT_FAILURES = 20
SHARE_OF_LIMIT = 0.85
"""Of the limit, after which a stage begins nothing more: the last part must end before the process is stopped."""


class Absent(Exception):
    """Something that the stage needs is not here; the text is the reason."""


class Report:
    """What a stage has found, kept in a file that is whole after every call.

    Attributes:
        work: Folder of what is built, shared by all stages.
        wheels: Folder of files that were brought along, or None.
        bundle: The bundle of --bundle, or None.
    """

    def __init__(
        self, path: Path, seconds: float, work: Path, wheels: Path | None = None, bundle: Path | None = None
    ) -> None:
        self._path, self._ends = path, time.monotonic() + SHARE_OF_LIMIT * seconds
        self.work, self.wheels, self.bundle = work, wheels, bundle
        self._found: dict[str, Any] = {"figures": {}, "checks": 0, "failed": 0, "failures": [], "left_out": []}
        self._write()

    @property
    def left_s(self) -> float:
        """Seconds in which the stage should come to its end."""
        return self._ends - time.monotonic()

    @property
    def checks(self) -> int:
        """Number of checks so far."""
        return int(self._found["checks"])

    @property
    def failures(self) -> list[str]:
        """The first checks that did not hold."""
        return list(self._found["failures"])

    def figures(self, table: str) -> list[dict[str, Any]]:
        """Return the rows of a table so far."""
        return list(self._found["figures"].get(table, []))

    def put(self, **figures: Any) -> None:
        """Keep figures under their names, which JSON can hold."""
        self._found["figures"].update(document.clean(figures))
        self._write()

    def row(self, table: str, /, **figures: Any) -> None:
        """Add a row to a table among the figures."""
        self._found["figures"].setdefault(table, []).append(document.clean(figures))
        self._write()

    def check(self, holds: bool, what: str) -> bool:
        """Count a check; keep the first ones that do not hold. Returns whether it holds."""
        self._found["checks"] += 1
        if not holds:
            self._found["failed"] += 1
            if len(self._found["failures"]) < KEPT_FAILURES:
                self._found["failures"].append(what)
                self._write()
        return bool(holds)

    def leave_out(self, what: str, why: str) -> None:
        """Say that a part was not done, and why."""
        self._found["left_out"].append(f"{what}: {why}")
        self._write()

    def summary(self, text: str) -> None:
        """Keep a line for the table."""
        self._found["summary"] = text

    def absent(self, reason: str) -> None:
        """Say that the stage could not be done here."""
        self._found["absent"] = reason
        self._write()

    def end(self) -> None:
        """Say that the stage came to its end."""
        self._found["ended"] = True
        self._write()

    def _write(self) -> None:
        document.write(self._path, self._found)
