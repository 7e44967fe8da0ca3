"""How a process of several ends: with a message that is told once, and never without the others noticing."""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
import time
from collections.abc import Iterator
from typing import NoReturn

from flawscope.errors import FlawscopeError
from flawscope.training.loop.rank_environment import FOLLOWED, TERMINATED, RankEnvironment, is_launched

_WAIT_S = 60
"""How long one that lost another waits for the launcher, which waits for the other's exit status."""


class RankError(FlawscopeError):
    """An error of a process that is not rank 0.

    Args:
        place: The process.
        err: What has gone wrong.
    """

    def __init__(self, place: RankEnvironment, err: FlawscopeError) -> None:
        super().__init__(f"process {place.rank} of {place.world}: {err}")
        self.exit_status = err.exit_status


@contextlib.contextmanager
def as_rank(place: RankEnvironment) -> Iterator[None]:
    """Run the block as one process of several: its errors reach the launcher, and at the end it leaves the others.

    Raises:
        RankError: In place of an error of ours, in a process that is not rank 0.
    """
    if place.world == 1:
        yield
        return
    try:
        yield
    except Exception as err:
        _tell(err)
        # Last of all, after the message: in the usual way the process would wait for its threads, or crash in them.
        atexit.register(_leave, getattr(err, "exit_status", 2 if isinstance(err, OSError) and err.filename else 1))
        if place.rank > 0 and isinstance(err, FlawscopeError):
            raise RankError(place, err) from err
        raise
    except BaseException:  # interrupted or terminated, which the launcher says once
        if is_launched():
            _leave(TERMINATED)
        raise
    from flawscope.training.loop.ranks import leave

    leave()


def _tell(err: Exception) -> None:
    """Write the error where the launcher looks for it; one that only followed another's end waits to be ended."""
    # Here: torch takes seconds to import, and an error may come before anything needed it.
    from torch.distributed.elastic.multiprocessing.errors import get_error_handler

    from flawscope.training.loop.ranks import PeerLost

    if not isinstance(err, PeerLost):
        get_error_handler().record_exception(err)
    elif is_launched():
        # The other may still be ending: if this one were quicker, its message would stand for the other's.
        with contextlib.suppress(BaseException):
            time.sleep(_WAIT_S)
        _leave(FOLLOWED)


def _leave(status: int) -> NoReturn:
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(status)
