"""Packed banks that processes of one machine have in common: the first one packs and writes a file, and all map it.

The pages of the file lie in memory once, whoever maps them.
"""

from __future__ import annotations

import hashlib
import logging
import mmap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from flawscope.arrays import Float32Array, UInt8Array
from flawscope.cpp_ext import HAVE_NATIVE, Bank, Gaussians, WindowBank, simd_level
from flawscope.cpp_ext.window import windows_simd_level
from flawscope.errors import ArgumentError, DataError, StorageError
from flawscope.files import atomic_file, locked, storage_errors
from flawscope.open_files import open_regular

_log = logging.getLogger(__name__)

T = TypeVar("T")


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
    return _Shared(
        own=lambda: Bank(rows),
        block=lambda: Bank(rows).to_block(),
        opened=lambda block: Bank.from_block(block, rows),
    ).at(_path(folder, (rows,), simd_level(), "bank"))


def shared_window_bank(
    rows: Float32Array, places: npt.NDArray[Any], grid: tuple[int, int], radius: int, folder: Path
) -> WindowBank:
    """Return a bank with windows, its rows mapped from a file that all processes have in common; see `shared_bank`.

    Args:
        rows: float32 [M, D], finite.
        places: Row and column of the grid that each row comes from, integers [M, 2]; see `WindowBank`.
        grid: Rows and columns of the patch grid.
        radius: Cells of the grid.
        folder: A private folder of this machine, which lives as long as the processes do.

    Raises:
        ArgumentError: As `WindowBank`.
    """
    if not HAVE_NATIVE:
        return WindowBank(rows, places, grid, radius)
    rows = np.ascontiguousarray(rows)
    # The file of the whole bank of these rows, where both take one level: the places are not in it.
    return _Shared(
        own=lambda: WindowBank(rows, places, grid, radius),
        block=lambda: WindowBank(rows, places, grid, radius).to_block(),
        opened=lambda block: WindowBank.from_block(block, rows, places, grid, radius),
    ).at(_path(folder, (rows,), windows_simd_level(), "bank"))


def shared_gaussians(mean: Float32Array, triangles: npt.NDArray[Any], folder: Path) -> Gaussians:
    """Return Gaussians of upper triangles, mapped from a file that all processes have in common; see `shared_bank`.

    Args:
        mean: float32 [P, D].
        triangles: float32 or float16 [P, D·(D + 1)/2]; see `Gaussians.of_triangles`.
        folder: A private folder of this machine, which lives as long as the processes do.

    Raises:
        ArgumentError: As `Gaussians.of_triangles`.
    """
    if not HAVE_NATIVE:
        return Gaussians.of_triangles(mean, triangles)
    mean, triangles = np.ascontiguousarray(mean), np.ascontiguousarray(triangles)
    return _Shared(
        own=lambda: Gaussians.of_triangles(mean, triangles),
        block=lambda: Gaussians.block_of(mean, triangles),
        opened=lambda block: Gaussians.from_block(block, mean, triangles),
    ).at(_path(folder, (mean, triangles), simd_level(), "gaussians"))


def _path(folder: Path, arrays: tuple[npt.NDArray[Any], ...], level: str, kind: str) -> Path:
    """Return the file of some arrays on a level."""
    # By what is in it: the members of an ensemble have banks of one shape.
    digest = hashlib.sha256()
    for array in arrays:
        # Arrays of other shapes have the same bytes, one after the other.
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(array.data)
    return folder / f"{digest.hexdigest()[:32]}-{level}.{kind}"


@dataclass(frozen=True)
class _Shared(Generic[T]):
    """How a bank is made in the three ways.

    Attributes:
        own: Packs it for this process alone.
        block: Packs it as a block.
        opened: Returns the one that lies in a block; raises ArgumentError where that is another one.
    """

    own: Callable[[], T]
    block: Callable[[], UInt8Array]
    opened: Callable[[UInt8Array], T]

    def at(self, path: Path) -> T:
        """Return the bank of a file, which is written where there is none; or one of this process's own."""
        try:
            found = self._mapped_or_none(path)
            return self._written(path) if found is None else found
        except (DataError, StorageError) as err:
            _log.warning("%s; this process has the bank for itself, which takes more memory.", str(err).rstrip("."))
            return self.own()

    def _written(self, path: Path) -> T:
        with locked(path):
            # Another process may have written it while this one waited.
            bank = self._mapped_or_none(path)
            if bank is None:
                block = self.block()
                with atomic_file(path, private=True) as temporary, storage_errors(path):
                    # Written and not mapped for writing: without room a map would end the process.
                    temporary.write_bytes(block.data)
                del block
                bank = self._mapped_or_none(path)
        if bank is None:
            raise DataError(f"{path}: expected the bank that was just written, got another one.")
        return bank

    def _mapped_or_none(self, path: Path) -> T | None:
        """Return the bank of a file, mapped to be read alone; None where there is none of these numbers."""
        try:
            with open_regular(path) as file:
                # It stays mapped while the bank lives, also without its name.
                block = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
            return self.opened(block)
        except FileNotFoundError:
            return None
        # ValueError: an empty file cannot be mapped.
        except (ArgumentError, OSError, ValueError) as err:
            _log.warning("%s: %s It is packed anew.", path, err)
            return None
