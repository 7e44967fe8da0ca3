"""The account of a station's parts, and whether it is right: parts = accept + reject + fault + open."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass

from flawscope.runtime.line.parts import Verdict


@dataclass(frozen=True)
class Counts:
    """The account at one moment, since the start of the process.

    Attributes:
        parts: Parts that were opened.
        accept: Those that were accepted.
        reject: Those that were rejected.
        fault: Those that are faults.
        open: Those without a verdict.
        late: Verdicts that came after the deadline; their parts are faults.
        skipped: Images that the policy `latest` left out; they are no parts.
        unrecorded: Parts with a verdict whose record is on its way, none that was given up.
    """

    parts: int
    accept: int
    reject: int
    fault: int
    open: int
    late: int
    skipped: int
    unrecorded: int

    @property
    def holds(self) -> bool:
        """Whether every part has exactly one verdict, or is open."""
        return self.parts == self.accept + self.reject + self.fault + self.open


class Counters:
    """Counts the parts of a station, from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._verdicts: Counter[str] = Counter()
        self._parts = self._open = self._late = self._skipped = 0
        self._recorded = self._given_up = 0

    def opened(self) -> None:
        """Count a part that was opened."""
        with self._lock:
            self._parts += 1
            self._open += 1

    def settled(self, verdict: Verdict) -> None:
        """Count the verdict of an open part."""
        with self._lock:
            self._open -= 1
            self._verdicts[verdict] += 1

    def recorded(self) -> None:
        """Count a part whose verdict is on record."""
        with self._lock:
            self._recorded += 1

    def given_up(self) -> None:
        """Count a part whose verdict will have no record before the next start."""
        with self._lock:
            self._given_up += 1

    def late(self) -> None:
        """Count a verdict that came after its part had become a fault."""
        with self._lock:
            self._late += 1

    def skipped(self, count: int) -> None:
        """Count images that were left out."""
        with self._lock:
            self._skipped += count

    def now(self) -> Counts:
        """Return the account of this moment."""
        with self._lock:
            accept, reject, fault = (self._verdicts[verdict] for verdict in ("accept", "reject", "fault"))
            settled = accept + reject + fault
            return Counts(
                self._parts,
                accept,
                reject,
                fault,
                self._open,
                self._late,
                self._skipped,
                settled - self._recorded - self._given_up,
            )
