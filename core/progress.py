"""How long work tells what it is doing: a callback that commands draw as bars and that is silent by default."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""Called with (what is being done, done so far, total)."""


def no_progress(what: str, done: int, total: int) -> None:
    """Report nothing."""
