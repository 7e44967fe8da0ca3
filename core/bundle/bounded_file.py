"""Reading small files that belong to a bundle or decide about one: keys and overlays, with the status they had."""

from __future__ import annotations

import os
from pathlib import Path

from flawscope.errors import FlawscopeError
from flawscope.open_files import open_regular


def read_bounded(path: Path, limit: int, what: str, error: type[FlawscopeError]) -> tuple[bytes, os.stat_result]:
    """Return the bytes of a plain file of at most `limit` bytes, and its status when it was read.

    Args:
        path: The file; a link is followed.
        limit: Largest size in bytes.
        what: What is expected there, for the message, with its article.
        error: What is raised.
    """
    try:
        with open_regular(path) as file:
            status = os.fstat(file.fileno())
            data = file.read(limit + 1)
    except OSError as err:
        reason = err.strerror or err
        raise error(f"{path}: expected {what}, which could not be read: {reason}. Check path and permissions.") from err
    if len(data) > limit:
        raise error(f"{path}: expected {what} of at most {limit >> 10} KiB, got more. Is it the right file?")
    return data, status
