"""Whether a station may score parts: the causes that forbid it, each with its reason, and who may take it away."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from flawscope.runtime.line.outputs.output import State

Change = Callable[[State, State, str], None]
"""Called with the state before, the state now, and the reason in words."""


class Readiness:
    """The state of a station, from the causes against `ready`.

    A cause of `error` goes when what caused it works again; one that is held stays until somebody acknowledges it, for
    nobody can know whether the parts since then are in their order.

    Args:
        change: Called after each change of the state, one call at a time.
        mono_ns: The monotonic clock.

    Attributes:
        going: Called before a cause goes by itself, with its name and the seconds that it was there; it may add
            another one, which is then in its place without a moment in between, and must return at once.
    """

    def __init__(self, change: Change, mono_ns: Callable[[], int] = time.monotonic_ns) -> None:
        self._change, self._mono_ns = change, mono_ns
        self.going: Callable[[str, float], None] = _nothing
        self._since: dict[str, int] = {}
        self._lock = threading.RLock()
        self._causes: dict[str, str] = {}
        self._held: set[str] = set()
        self._beginning: set[str] = set()
        self._phase: State | None = "starting"
        self._last: State = "starting"
        # A copy that is read without the lock: whoever triggers a part must not wait for outputs that are being told.
        self._reason = ""

    @property
    def state(self) -> State:
        """The state now."""
        return self._last

    @property
    def is_ready(self) -> bool:
        """Whether parts may be scored."""
        return self._last == "ready"

    @property
    def reason(self) -> str:
        """The causes in words, the first one first; empty while it is ready."""
        return self._reason

    def against(self, cause: str) -> str:
        """Why a cause forbids it, in words; empty where it does not."""
        # Without the lock, as `reason`: one look into a dictionary.
        return self._causes.get(cause, "")

    def set_phase(self, phase: State | None) -> None:
        """Set `starting`, `halted` or `stopped`, which come before all causes; None: the causes decide."""
        with self._lock:
            if self._phase != "stopped":
                self._phase = phase
            self._tell()

    def begin(self, cause: str, reason: str) -> None:
        """Add a cause that is none of an error yet: what is being opened has not failed."""
        with self._lock:
            self._add(cause, reason)
            self._beginning.add(cause)
            self._tell()

    def forbid(self, cause: str, reason: str, *, hold: bool = False) -> None:
        """Add a cause, such as `source cam0`; with `hold` it stays until it is acknowledged."""
        with self._lock:
            self._add(cause, reason)
            self._beginning.discard(cause)
            if hold:
                self._held.add(cause)
            self._tell()

    def allow(self, cause: str) -> None:
        """Take a cause away, if it is not held."""
        with self._lock:
            if cause in self._causes and cause not in self._held:
                self.going(cause, (self._mono_ns() - self._since[cause]) / 1e9)
                del self._causes[cause]
                self._beginning.discard(cause)
            self._tell()

    def lift(self, cause: str) -> None:
        """Take a cause away even if it is held: what it says is known to be right again."""
        with self._lock:
            self._held.discard(cause)
            self.allow(cause)

    def acknowledge(self) -> tuple[str, ...]:
        """Take all held causes away and return their names."""
        with self._lock:
            held = tuple(self._held)
            for cause in held:
                del self._causes[cause]
            self._held.clear()
            self._tell()
            return held

    def _add(self, cause: str, reason: str) -> None:
        if cause not in self._causes:
            self._since[cause] = self._mono_ns()
        self._causes[cause] = reason

    def _tell(self) -> None:
        from_causes: State = "ready" if not self._causes else "error"
        if self._causes and self._causes.keys() <= self._beginning:
            from_causes = "starting"
        state = self._phase or from_causes
        causes = "; ".join(f"{cause}: {reason}" if reason else cause for cause, reason in self._causes.items())
        self._reason = causes
        before, self._last = self._last, state
        if state != before:
            self._change(before, state, self.reason)


def _nothing(cause: str, lasted_s: float) -> None:
    """Nobody wants to know."""
