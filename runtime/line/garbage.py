"""Collections of garbage that hold up no part: what was there at the start is left out of them."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def only_new_garbage() -> Iterator[None]:
    """Keep the objects that are there now out of the collections of garbage in the block.

    Python now and then looks at every object of a process for cycles, and all threads wait: 20 to 40 ms with the
    modules and bundles of a line, for whatever part comes then. Of what comes later little stays. What is there now
    is still freed when nobody refers to it; only cycles of it wait until the block ends.
    """
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
