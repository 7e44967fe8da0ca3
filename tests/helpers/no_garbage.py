"""A block without collections of garbage: what is freed in it is freed because nobody refers to it."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def no_collections() -> Iterator[None]:
    """Collect nothing in the block: cycles stay in memory, and with them all that they hold."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
