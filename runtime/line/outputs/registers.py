"""The registers that a PLC reads, without the wire: what is where, and that no reader sees half of a change.

The map is a public format; docs/line-outputs.md shows it to whoever programs the PLC.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence

from flawscope.runtime.line.outputs.output import Signal, State
from flawscope.runtime.line.parts import REASON_CODES, VERDICT_CODES

STATE = 0
HEARTBEAT = 1
SEQ = 2  # two registers, as all 32-bit numbers here: the high half first
VERDICT = 4
REASON = 5
SCORE = 6
PART_ID = 8
TAKEN = 10
COUNT = 11
OPENED = 12
TRIGGER = 16
NEW_PART_ID = 17
ACKNOWLEDGE = 19
LAST_CONTROL = ACKNOWLEDGE
RING = 64
RING_PARTS = 16
RING_WIDTH = 4
SIZE = RING + RING_PARTS * RING_WIDTH

STATE_CODES: dict[State, int] = {"stopped": 0, "starting": 1, "halted": 2, "error": 3, "ready": 6}
"""State -> its number; those of OPC 40100-1 where it has the state. 0 is also what is there before the first state."""

NO_SCORE = -(2**31)
"""Stands for a score where there is none; scores are cut off before they reach it."""

_LARGEST = 2**31 - 1


class Registers:
    """The 16-bit registers of one station.

    Every method changes all that it changes in one step, and `copy_to` copies between two steps: a reader of several
    registers sees those of one part.
    """

    def __init__(self) -> None:
        self._values = [0] * SIZE
        self._lock = threading.Lock()
        with self._lock:
            self._clear_verdict()

    def copy_to(self, target: list[int]) -> None:
        """Copy all registers to the beginning of `target`."""
        with self._lock:
            target[:SIZE] = self._values

    def state(self, state: State) -> None:
        """Write the number of a state."""
        with self._lock:
            self._values[STATE] = STATE_CODES[state]

    def beat(self) -> None:
        """Count the heartbeat up; after 65535 it is 0."""
        with self._lock:
            self._values[HEARTBEAT] = (self._values[HEARTBEAT] + 1) & 0xFFFF

    def verdict(self, signal: Signal) -> None:
        """Write the verdict of a part, and put it first in the list of the last ones."""
        seq = _halves(signal.seq)
        code, reason = VERDICT_CODES[signal.verdict], REASON_CODES[signal.reason]
        with self._lock:
            # One step for those who read over the wire. The order is for whoever takes the lock away: between any two
            # of these lines the verdict is none, never one part's beside another's number.
            self._values[VERDICT] = 0
            self._values[SEQ : SEQ + 2] = seq
            self._values[REASON] = reason
            self._values[SCORE : SCORE + 2] = _halves(_thousandths(signal.score))
            self._values[PART_ID : PART_ID + 2] = _halves(_number(signal.part_id))
            self._values[COUNT] = (self._values[COUNT] + 1) & 0xFFFF
            self._values[RING:SIZE] = [*seq, code, reason, *self._values[RING : SIZE - RING_WIDTH]]
            self._values[VERDICT] = code

    def clear_verdict(self) -> None:
        """Take the last verdict away, so that nobody takes it for the next part's; the list of the last ones stays."""
        with self._lock:
            self._clear_verdict()

    def clear(self) -> None:
        """Take everything away: first READY, then the verdicts."""
        with self._lock:
            self._values[STATE] = STATE_CODES["stopped"]
            self._clear_verdict()
            self._values[RING:SIZE] = [0] * (SIZE - RING)

    def _clear_verdict(self) -> None:
        self._values[VERDICT] = 0
        self._values[SEQ:VERDICT] = 0, 0
        self._values[REASON] = 0
        self._values[SCORE : SCORE + 2] = _halves(NO_SCORE)
        self._values[PART_ID : PART_ID + 2] = 0, 0

    def control(self, address: int) -> int:
        """Return one register."""
        with self._lock:
            return self._values[address]

    def write(self, address: int, values: Sequence[int]) -> None:
        """Keep what the PLC wrote, from `address` on."""
        with self._lock:
            self._values[address : address + len(values)] = values

    def new_part_id(self) -> str:
        """Return the number that the PLC gave the next part, as text; empty where it gave none."""
        with self._lock:
            high, low = self._values[NEW_PART_ID : NEW_PART_ID + 2]
        return str(high << 16 | low) if high or low else ""

    def opened(self, number: int, seq: int) -> None:
        """Echo a trigger: the number that the PLC wrote, and the number of the part that it opened."""
        with self._lock:
            self._values[TRIGGER] = number
            self._values[OPENED : OPENED + 2] = _halves(seq)
            self._values[TAKEN] = number


def _halves(value: int) -> tuple[int, int]:
    """Return the high and the low 16 bits of the low 32 of a number."""
    return value >> 16 & 0xFFFF, value & 0xFFFF


def _thousandths(score: float | None) -> int:
    """Return a score times 1000 as a signed number of 32 bits, cut off at both ends; `NO_SCORE` where there is none."""
    if score is None or math.isnan(score):
        return NO_SCORE
    # Before rounding: an infinite score has no integer.
    return round(min(max(score * 1000.0, -_LARGEST), _LARGEST))


def _number(part_id: str) -> int:
    """Return the number that a part is called, 0 where it is called otherwise or not at all."""
    if part_id.isascii() and part_id.isdigit() and len(part_id) <= 10 and int(part_id) < 2**32:
        return int(part_id)
    return 0
