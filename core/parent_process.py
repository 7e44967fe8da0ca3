"""Processes that end with the one that started them, also where that is killed and can tell nobody."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def end_with_parent(parent: int | None = None) -> bool:
    """Let the system kill this process (SIGKILL) when its parent ends, however that ends. On Linux alone.

    The system sends the signal when the thread that started this process ends: that thread has to live as long as
    this process shall. A process that is gone before this call ends nobody: see the value that is returned.

    Args:
        parent: Number of the process that is to be the parent; None for whichever is at the time of the call.

    Returns:
        Whether that process is still the parent. If not, it ended before, and no signal will come: the caller ends by
        itself.
    """
    if parent is None:
        parent = os.getppid()
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # Behind the call: a parent that ends from here on is noticed by the system.
    return os.getppid() == parent
