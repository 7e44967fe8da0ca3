"""Names in order, of folders that hold more of them than memory should."""

from __future__ import annotations

import contextlib
import heapq
import os
import tempfile
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import IO

from flawscope.files import storage_errors

AT_ONCE = 200_000
"""Names that are sorted in memory; of more, sorted parts lie in files that have no name."""


def sorted_names(names: Iterable[str], at_once: int = AT_ONCE) -> Iterator[str]:
    """Yield names of files in order.

    Args:
        names: Names without `/`, in any order; bytes that are not UTF-8 as `os.fsdecode` keeps them.
        at_once: How many are sorted in memory.

    Raises:
        StorageError: If the disk of temporary files (`TMPDIR`) is full.
    """
    source = iter(names)
    part = sorted(islice(source, at_once))
    if len(part) < at_once:
        yield from part
        return
    with contextlib.ExitStack() as stack:
        parts = []
        while part:
            with storage_errors(Path(tempfile.gettempdir())):
                file = stack.enter_context(tempfile.TemporaryFile())
                # No name has a slash: it marks the line ends that are inside of names.
                file.writelines(os.fsencode(name.replace("\n", "/")) + b"\n" for name in part)
                file.flush()
            parts.append(_names_of(file))
            part = sorted(islice(source, at_once))
        yield from heapq.merge(*parts)


def _names_of(file: IO[bytes]) -> Iterator[str]:
    file.seek(0)
    for line in file:
        yield os.fsdecode(line[:-1]).replace("/", "\n")
