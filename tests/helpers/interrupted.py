"""Trainings that are killed in the middle, as a power cut or a full disk would."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest


class Killed(BaseException):
    """A kill. No `except Exception` can take it for a fault that may be told or mended."""


@contextmanager
def killed_at_checkpoint(number: int = 1) -> Iterator[None]:
    """Kill the training in the block as soon as it has written so many checkpoints; fail if it ends before.

    Whoever calls `write_checkpoint` has to find it in the module of the loop: that name is what is replaced here.
    """
    from flawscope.training.loop import loop
    from flawscope.training.loop.checkpoints import write_checkpoint

    written = 0

    def dying(*arguments: Any, **named: Any) -> None:
        nonlocal written
        write_checkpoint(*arguments, **named)
        written += 1
        if written == number:
            raise Killed

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(loop, "write_checkpoint", dying)
        with pytest.raises(Killed):
            yield


def killing_progress(step: int) -> Callable[[str, int, int], None]:
    """Return a progress function that kills its training once it tells of that step or a later one."""

    def killing(what: str, done: int, total: int) -> None:
        if what == "training" and done >= step:
            raise Killed

    return killing
