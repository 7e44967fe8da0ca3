"""Reading small files that somebody else wrote: plain files only, and no more bytes than expected."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from flawscope.errors import FlawscopeError


def read_bounded(path: Path, limit: int, what: str, error: type[FlawscopeError]) -> tuple[bytes, os.stat_result]:
    """Return the bytes of a plain file of at most `limit` bytes, and its status when it was read.

    Args:
        path: The file; a link is followed.
        limit: Largest size in bytes.
        what: What is expected there, for the message, with its article.
        error: What is raised.
    """
    try:
        # Without O_NONBLOCK a pipe would block for ever.
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with os.fdopen(handle, "rb") as file:
            status = os.fstat(handle)
            if not stat.S_ISREG(status.st_mode):
                raise error(f"{path}: expected {what}, got a folder, pipe or device. Name a file.")
            data = file.read(limit + 1)
    except (OSError, ValueError) as err:  # ValueError: a zero byte in the name
        reason = getattr(err, "strerror", None) or err
        raise error(f"{path}: expected {what}, which could not be read: {reason}. Check path and permissions.") from err
    if len(data) > limit:
        raise error(f"{path}: expected {what} of at most {limit >> 10} KiB, got more. Is it the right file?")
    return data, status
