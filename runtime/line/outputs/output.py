"""The seam of all outputs: what a PLC is told, in time. A fault is never an accept; silence must not be one, either."""

from __future__ import annotations

from typing import Literal, NamedTuple, Protocol

from flawscope.runtime.line.parts import Reason, Verdict

State = Literal["starting", "ready", "error", "halted", "stopped"]
"""State of a station. Only `ready` scores parts; a trigger in any other state gives a fault at once."""


class Signal(NamedTuple):
    """The verdict of one part for the PLC.

    Attributes:
        seq: Number of the part.
        part_id: What the trigger called it, empty where it gave no name.
        verdict: The verdict.
        reason: Why it is a fault, empty otherwise.
        score: Score of the view that decided; None where none was scored.
    """

    seq: int
    part_id: str
    verdict: Verdict
    reason: Reason
    score: float | None


class Control(Protocol):
    """What an output may ask of its station: PLCs trigger parts and acknowledge errors over the same wire."""

    def trigger(self, part_id: str = "") -> int:
        """Open a part and return its number; it never raises and never blocks, a full station gives a fault."""

    def acknowledge(self, actor: str) -> None:
        """Leave the state `error`, where its cause is gone."""

    def plc_reads(self, is_read: bool) -> None:
        """Take note that the PLC no longer reads, which takes READY away, or reads again; it never raises or blocks."""


class Output(Protocol):
    """Signals of one station on one wire. Calls come from several threads, one at a time, and must return at once."""

    def start(self, control: Control) -> None:
        """Begin: nothing is signalled, `ready` is low.

        Raises:
            ArgumentError: If it cannot be opened: address in use, chip or line not there.
        """

    def state(self, state: State) -> None:
        """Show the state of the station; READY is high in `ready` alone."""

    def verdict(self, signal: Signal) -> None:
        """Give out a verdict. The code of the verdict is written last: what is half written must not read as accept.

        Raises:
            OSError: If the signal may not have been given.
        """

    def beat(self) -> None:
        """Show that the station is alive; called once a second while its threads turn, and only then."""

    def stop(self) -> None:
        """End: READY falls first, then the verdict is cleared, then the wire is closed."""
