"""Resident memory of this process, as Linux tells it."""

from __future__ import annotations

from pathlib import Path

STATUS = Path("/proc/self/status")


def resident_kib() -> int | None:
    """Return the resident memory of this process in KiB (VmRSS), or None where the system does not tell."""
    return _status("VmRSS")


def peak_kib() -> int | None:
    """Return the largest resident memory since the process began in KiB (VmHWM), or None as above."""
    return _status("VmHWM")


def _status(name: str) -> int | None:
    try:
        text = STATUS.read_text()
    except OSError:
        return None  # no Linux
    for line in text.splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1])
    return None
