"""Resident memory of this process, read from /proc on Linux."""

from __future__ import annotations

from pathlib import Path

STATUS = Path("/proc/self/status")


def resident_kib() -> int | None:
    """Return the resident memory of this process in KiB (VmRSS), or None on other systems."""
    return _status("VmRSS")


def peak_kib() -> int | None:
    """Return the largest resident memory since the process began in KiB (VmHWM), or None on other systems."""
    return _status("VmHWM")


def _status(name: str) -> int | None:
    try:
        text = STATUS.read_text()
    except OSError:
        return None  # not Linux
    for line in text.splitlines():
        # Not resource.getrusage: ru_maxrss survives exec, so a child begins with the peak of its parent.
        if line.startswith(f"{name}:"):
            return int(line.split()[1])
    return None
