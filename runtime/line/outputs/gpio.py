"""Lines of a GPIO chip: READY as a level, verdicts as pulses, through libgpiod 2.

An accept has a rising edge of its own or it is refused: a pulse that comes late, or that two parts share, would be
taken for another part's. Rejects and faults that follow each other more quickly than the pulses end may share one;
whoever reads the lines takes a part without an edge of accept for a reject.
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
from pathlib import Path
from typing import Any

from flawscope.errors import ArgumentError, MissingExtra
from flawscope.runtime.line.outputs.output import Control, Signal, State
from flawscope.runtime.line.outputs.table import GpioOutput

_JOIN_S = 2.0
_RETRY_S = 0.1


class GpioLines:
    """The lines of one station; an `Output`.

    Args:
        options: Its options.
        station: Name of the station.

    Raises:
        ArgumentError: If two signals have the same line.
        MissingExtra: If gpiod is not installed.
    """

    def __init__(self, options: GpioOutput, station: str) -> None:
        try:
            import gpiod
            import gpiod.line
        except ImportError as err:
            raise MissingExtra("the output gpio", "gpiod", "line-gpio") from err
        self._gpiod: Any = gpiod
        self._high, self._low = gpiod.line.Value.ACTIVE, gpiod.line.Value.INACTIVE
        self._lines = {"accept": options.accept, "reject": options.reject, "fault": options.fault}
        others = [options.ready] if options.alive is None else [options.ready, options.alive]
        self._all = [*others, *self._lines.values()]
        if len(set(self._all)) != len(self._all):
            numbers = ", ".join(map(str, self._all))
            raise ArgumentError(
                f"station {station}: outputs, gpio: expected a line for each signal, got {numbers}. Choose others."
            )
        self._options = options
        self._station = station
        self._pulse_s = options.pulse_ms / 1000
        self._request: Any = None
        self._thread: threading.Thread | None = None
        self._wake = threading.Condition()
        self._ends: dict[int, float] = {}  # line that is high -> when its pulse ends
        self._fell: dict[int, float] = {}  # line -> when its last pulse ended
        self._is_alive = False
        self._problem = ""

    def start(self, control: Control) -> None:
        """Take the lines, all of them low; see `Output`."""
        path = str(Path("/dev") / self._options.chip)  # a whole path stays as it is
        gpiod = self._gpiod
        settings = gpiod.LineSettings(direction=gpiod.line.Direction.OUTPUT, output_value=self._low)
        try:
            request = gpiod.request_lines(
                path, consumer=f"flawscope {self._station}"[:31], config={tuple(self._all): settings}
            )
        except (OSError, ValueError) as err:
            reason = err.strerror if isinstance(err, OSError) and err.strerror else str(err)
            numbers = ", ".join(map(str, self._all))
            raise ArgumentError(
                f"station {self._station}: outputs, gpio: cannot take the lines {numbers} of {path} ({reason}); "
                "expected lines of a GPIO chip that nobody else uses. `gpioinfo` lists them."
            ) from None
        with self._wake:
            self._request = request
        self._thread = threading.Thread(target=self._end_pulses, name=f"gpio {self._station}", daemon=True)
        self._thread.start()

    def state(self, state: State) -> None:
        """Show the state of the station: READY is high in `ready` alone."""
        with self._wake:
            if self._request is not None:
                self._request.set_value(self._options.ready, self._high if state == "ready" else self._low)

    def verdict(self, signal: Signal) -> None:
        """Begin the pulse of a verdict; see `Output`."""
        line = self._lines[signal.verdict]
        with self._wake:
            if self._request is None or self._problem:
                reason = self._problem or "the lines are not open"
                raise OSError(f"station {self._station}: part {signal.seq} has no signal: {reason}")
            now = time.monotonic()
            if signal.verdict == "accept" and (
                line in self._ends or now - self._fell.get(line, -math.inf) < self._pulse_s
            ):
                raise OSError(
                    f"station {self._station}: part {signal.seq} has no signal: the pulse of the accept before it has "
                    f"only just ended, or not yet. Make pulse_ms shorter than half the time between two parts."
                )
            # Before the line rises: whatever happens then, the pulse has an end.
            self._ends[line] = now + self._pulse_s
            self._wake.notify_all()
            self._request.set_value(line, self._high)

    def beat(self) -> None:
        """Change the level of the line `alive`."""
        with self._wake:
            if self._request is not None and self._options.alive is not None:
                self._is_alive = not self._is_alive
                self._request.set_value(self._options.alive, self._high if self._is_alive else self._low)

    def stop(self) -> None:
        """End: READY falls, then all other lines, then they are given back."""
        with self._wake:
            request, self._request = self._request, None
            self._ends.clear()
            self._wake.notify_all()
            if request is not None:
                for falling in ([self._options.ready], self._all):
                    with contextlib.suppress(OSError):  # the chip is gone, and with it its lines
                        request.set_values(dict.fromkeys(falling, self._low))
                request.release()
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.join(_JOIN_S)

    def _end_pulses(self) -> None:
        """Let each line fall when its pulse is over; the target of the thread."""
        with self._wake:
            while self._request is not None:
                now = time.monotonic()
                for line in [line for line, end in self._ends.items() if end <= now]:
                    try:
                        self._request.set_value(line, self._low)
                    except OSError as err:
                        # It may be high for ever: nothing more is signalled, and it is tried again.
                        self._problem = f"line {line} does not fall: {err.strerror or err}"
                        self._ends[line] = now + _RETRY_S
                        continue
                    del self._ends[line]
                    self._fell[line] = time.monotonic()
                self._wake.wait(max(min(self._ends.values()) - time.monotonic(), 0.0) if self._ends else None)
