"""Whether the memory of this machine has room for a second bundle, as far as the system says."""

from __future__ import annotations

import re
from pathlib import Path

from flawscope.errors import StorageError
from flawscope.open_files import RECORD_BYTES, read_regular

_SHARE = 3
"""Memory of a loaded bundle as a multiple of its files: weights as read, as the engine keeps them, and its buffers."""
_LEAST_BYTES = 64 << 20
_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")


def available_bytes() -> int | None:
    """Return the bytes that may still be taken, by system and container; None where it is unknown."""
    found = []
    try:
        if match := re.search(r"^MemAvailable:\s+(\d+) kB", _read(_MEMINFO), re.MULTILINE):
            found.append(int(match[1]) << 10)
    except OSError:
        return None
    try:
        limit, used = (_read(_CGROUP / name).strip() for name in ("memory.max", "memory.current"))
        if limit.isdecimal():
            found.append(max(0, int(limit) - int(used)))
    except (OSError, ValueError):
        pass  # no container, or one of another kind
    return min(found, default=None)


def _read(path: Path) -> str:
    return read_regular(path, RECORD_BYTES).decode("ascii", "replace")


def check_room(bundle_bytes: int, *, is_dropped: bool = False) -> str:
    """Return what was found, in words.

    Args:
        bundle_bytes: Size of the files of the bundle that is to be loaded.
        is_dropped: Whether the one in force was dropped for it, and is not beside it.

    Raises:
        StorageError: If the memory would not do.
    """
    needed, free = max(_LEAST_BYTES, _SHARE * bundle_bytes), available_bytes()
    if free is None:
        return "how much memory is free is unknown here"
    if free < needed:
        if is_dropped:
            raise StorageError(
                f"expected {needed >> 20:,} MiB of free memory for the new bundle, with the one before dropped, got "
                f"{free >> 20:,} MiB. Do other stations use that one? Take a smaller bundle, or end other programs."
            )
        raise StorageError(
            f"expected {needed >> 20:,} MiB of free memory for a second bundle beside the one in force, got "
            f"{free >> 20:,} MiB. Swap with `stop` (--stop): the one in force is dropped first, and the station not "
            "ready until the new one is loaded."
        )
    return f"{free >> 20:,} MiB of memory free, {needed >> 20:,} MiB needed"
