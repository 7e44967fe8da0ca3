"""Packed banks that processes of one machine have in common: the first one packs and writes a file, and all map it.

The pages of the file lie in memory once, whoever maps them.
"""

from __future__ import annotations

import hashlib
import logging
import mmap
from pathlib import Path

import numpy as np

from flawscope.arrays import Float32Array
from flawscope.cpp_ext import HAVE_NATIVE, Bank, simd_level
from flawscope.errors import ArgumentError, DataError, StorageError
from flawscope.files import atomic_file, locked, storage_errors
from flawscope.open_files import open_regular

_log = logging.getLogger(__name__)


def shared_bank(rows: Float32Array, folder: Path) -> Bank:
    """Return the bank of some rows, mapped from a file that all processes have in common.

    A file that is damaged or of something else is never searched: it is written anew. Where that cannot be, or there
    are no native kernels, the bank is this process's own. Its results are the same in any case. Whoever keeps `rows`
    beside a bank that is shared holds them twice: `Bank.rows` has them.

    Args:
        rows: float32 [M, D], finite; see `Bank`.
        folder: A private folder of this machine, which lives as long as the processes do.

    Raises:
        ArgumentError: As `Bank`.
    """
    if not HAVE_NATIVE:
        return Bank(rows)
    rows = np.ascontiguousarray(rows)
    # By what is in it: the members of an ensemble have banks of one shape.
    digest = hashlib.sha256(rows.data).hexdigest()[:32]
    path = folder / f"{digest}-{simd_level()}.bank"
    try:
        return _mapped_or_none(path, rows) or _written(path, rows)
    except (DataError, StorageError) as err:
        _log.warning("%s; this process has the bank for itself, which takes more memory.", str(err).rstrip("."))
        return Bank(rows)


def _written(path: Path, rows: Float32Array) -> Bank:
    with locked(path):
        # Another process may have written it while this one waited.
        bank = _mapped_or_none(path, rows)
        if bank is None:
            block = Bank(rows).to_block()
            with atomic_file(path, private=True) as temporary, storage_errors(path):
                # Written and not mapped for writing: without room a map would end the process.
                temporary.write_bytes(block.data)
            del block
            bank = _mapped_or_none(path, rows)
    if bank is None:
        raise DataError(f"{path}: expected the bank that was just written, got another one.")
    return bank


def _mapped_or_none(path: Path, rows: Float32Array) -> Bank | None:
    """Return the bank of a file, mapped to be read alone; None where there is none of these rows."""
    try:
        with open_regular(path) as file:
            # It stays mapped while the bank lives, also without its name.
            block = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
        return Bank.from_block(block, rows)
    except FileNotFoundError:
        return None
    # ValueError: an empty file cannot be mapped.
    except (ArgumentError, OSError, ValueError) as err:
        _log.warning("%s: %s The rows are packed anew.", path, err)
        return None
