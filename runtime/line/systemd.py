"""The notify protocol of systemd (sd_notify(3)): a datagram for each thing that it should know, without its library.

`Type=notify` and `WatchdogSec=` of a unit set variables of the environment; where they are not set, nothing is told.
The watchdog is fed only while the line is sound, never by a mere timer: when it is not, systemd starts a new process,
which checks the golden images of its bundles, and the site's own parts, before it judges a part.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable, MutableMapping

from flawscope.errors import ArgumentError
from flawscope.runtime.line.line import Line

_LEAST_TURN_S = 3.0
"""Threads of stations turn once a second at least; less than this says nothing of them."""
_SEND_S = 0.2
_LONGER_S = 60.0
"""Seconds that a start which goes on asks for, four times as often."""


class Systemd:
    """Tells systemd how a line is.

    Args:
        address: Path of its socket, or `@` and the name of an abstract one; None where nobody listens.
        watchdog_s: Seconds within which it must be fed; None for no watchdog.
        clock: Returns seconds; for tests.

    Raises:
        ArgumentError: If the address is none.
    """

    def __init__(
        self,
        address: str | None,
        watchdog_s: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._socket: socket.socket | None = None
        self._watchdog_s, self._clock = watchdog_s, clock
        self._fed_at = self._asked_at = float("-inf")
        self._status = ""
        self._is_ready = False
        if address is None:
            return
        if address[:1] not in ("/", "@") or len(address) < 2:
            raise ArgumentError(
                f"NOTIFY_SOCKET: expected the path of a socket, or @ and a name, got {address!r}. Unset it, or let "
                "systemd set it (Type=notify)."
            )
        self._address = "\0" + address[1:] if address[0] == "@" else address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        # Whoever listens may be slow or gone; the line goes on.
        self._socket.settimeout(_SEND_S)

    @staticmethod
    def of(environment: MutableMapping[str, str]) -> Systemd:
        """Return what the environment says, and take it out: children of the line are not the service.

        Raises:
            ArgumentError: If it says nonsense.
        """
        address = environment.pop("NOTIFY_SOCKET", None)
        microseconds, pid = environment.pop("WATCHDOG_USEC", None), environment.pop("WATCHDOG_PID", None)
        if microseconds is None or (pid is not None and pid != str(os.getpid())):
            return Systemd(address)
        if not (microseconds.isascii() and microseconds.isdecimal() and 0 < int(microseconds) < 1 << 63):
            raise ArgumentError(
                f"WATCHDOG_USEC: expected microseconds, got {microseconds!r}. Unset it, or let systemd set it "
                "(WatchdogSec=)."
            )
        return Systemd(address, int(microseconds) / 1e6)

    def turn(self, line: Line) -> None:
        """Tell that a line is ready, and its state where it has changed, and feed the watchdog if it is time.

        It is ready once, when its bundles are loaded and checked, its stations started, and the challenges of the start
        over: systemd waits until then, longer than its own time while the line is sound: other stations may judge parts
        already. The watchdog is fed at half of its time, while the line is sound. Call it often, from the thread that
        turns the line.
        """
        if self._socket is None:
            return
        if not self._is_ready and line.has_begun:
            self._is_ready = True
            self._send("READY=1")
        states = [
            f"{station.name} {station.readiness.state}"
            + (f" ({station.readiness.reason})" if station.readiness.reason else "")
            for station in line.stations.values()
        ]
        self.say("; ".join(states))
        now = self._clock()
        if not self._is_ready and now - self._asked_at >= _LONGER_S / 4 and line.is_sound(self._period_s):
            self._asked_at = now
            self._send(f"EXTEND_TIMEOUT_USEC={_LONGER_S * 1e6:.0f}")
        if self._watchdog_s is None or now - self._fed_at < self._watchdog_s / 2:
            return
        if line.is_sound(self._period_s):
            self._fed_at = now
            self._send("WATCHDOG=1")

    @property
    def _period_s(self) -> float:
        """Seconds within which all threads of a line that is sound have turned."""
        return max(self._watchdog_s or 0.0, _LEAST_TURN_S)

    def stopping(self) -> None:
        """Tell that the line is being stopped."""
        self._send("STOPPING=1")

    def close(self) -> None:
        """Release the socket. Twice is harmless."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def say(self, text: str) -> None:
        """Tell in words what is being done; once, while the words do not change."""
        if text != self._status:
            self._status = text
            # One line: a second one would be another message.
            self._send("STATUS=" + " ".join(text.split()))

    def _send(self, message: str) -> None:
        if self._socket is not None:
            # systemd itself may be starting anew; what it did not hear of the watchdog it hears in time again.
            with contextlib.suppress(OSError):
                self._socket.sendto(message.encode(), self._address)
