"""The two clocks of a line: durations and order by the monotonic one, UTC only for people.

A wall clock jumps: before NTP has set it, by an operator, by a leap second. Nothing on a line may depend on it.
"""

from __future__ import annotations

import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Protocol

_BOOT = Path("/proc/sys/kernel/random/boot_id")


class Clock(Protocol):
    """Gives the time; tests have one that they set."""

    def mono_ns(self) -> int:
        """Return nanoseconds of the monotonic clock, which begins anew with each boot."""

    def utc_ns(self) -> int:
        """Return nanoseconds since 1970 in UTC, which may jump."""


class SystemClock:
    """The clocks of this machine."""

    def mono_ns(self) -> int:
        """Return nanoseconds of the monotonic clock."""
        return time.monotonic_ns()

    def utc_ns(self) -> int:
        """Return nanoseconds since 1970 in UTC."""
        return time.time_ns()


def iso(utc_ns: int) -> str:
    """Return a time as ISO 8601 with milliseconds in UTC, such as `2026-11-30T03:52:59.123Z`."""
    seconds, rest = divmod(utc_ns, 10**9)
    # Whole seconds alone go through a float, which cannot hold nanoseconds.
    return f"{datetime.fromtimestamp(seconds, timezone.utc):%Y-%m-%dT%H:%M:%S}.{rest // 10**6:03d}Z"


def boot_id() -> str:
    """Return the name of this boot, of which the monotonic clock is; empty where the system does not say."""
    try:
        return _BOOT.read_text().strip()
    except OSError:
        return ""
