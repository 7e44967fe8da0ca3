"""Pulling the packed bundle of a release into the store of a line: whole and right, or not at all.

What was pulled of a blob before the network went stays in a file, and the next attempt goes on behind it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Protocol

from flawscope.errors import BundleError
from flawscope.files import storage_errors
from flawscope.open_files import open_regular
from flawscope.runtime.line.rollout.place import Place
from flawscope.runtime.line.rollout.release import Descriptor, ReleaseRefused, SourceAway
from flawscope.runtime.line.swap.store import BundleStore

_BLOCK_BYTES = 1 << 20


class _Hash(Protocol):
    def update(self, data: bytes, /) -> None: ...

    def hexdigest(self) -> str: ...


def pull(place: Place, blob: Descriptor, store: BundleStore, told: Callable[[int], None]) -> str:
    """Pull a packed bundle into the store; return its digest.

    Args:
        place: Where it lies.
        blob: Its blob; it fits into the limits of the line.
        store: The store.
        told: Given the bytes that are there, now and then; what it raises ends the pull, which can be gone on with.

    Raises:
        SourceAway: If it is not all there now.
        ReleaseRefused: If it is not what its digest says, too long, or no bundle that the store takes.
        StorageError: If the disk has no room, or refuses it.
    """
    partial = store.partial_of(blob.digest.removeprefix("sha256:"))
    hasher, size = _begun(partial, blob.size)
    if size:
        store.check_room(blob.size - size)
    with place.blob(blob, size) as (start, pieces):
        is_resumed = start > 0
        if start != size:
            hasher, size = hashlib.sha256(), 0
        with storage_errors(partial):
            file = partial.open("r+b" if is_resumed else "wb")
        with file:
            with storage_errors(partial):
                file.truncate(size)
                file.seek(size)
            size = _write(file, partial, pieces, hasher, size, blob, store, told)
    if size < blob.size:
        raise SourceAway(f"{place.name}: expected {blob.size:,} bytes, got {size:,}. It goes on there later.")
    if f"sha256:{hasher.hexdigest()}" != blob.digest:
        remove(partial)
        if is_resumed:
            # The part that was there before may have been the wrong one.
            raise SourceAway(f"{place.name}: expected the blob {blob.digest[:19]}…, got another. It is pulled anew.")
        raise ReleaseRefused(
            f"{place.name}: expected the blob {blob.digest[:19]}…, got sha256:{hasher.hexdigest()[:12]}…: it was "
            "changed on the way or in the registry. Publish it again."
        )
    try:
        return store.take(partial)
    except BundleError as err:
        raise ReleaseRefused(str(err)) from err
    finally:
        remove(partial)


def _begun(partial: Path, most: int) -> tuple[_Hash, int]:
    """Return the hash and the length of what was pulled before; nothing where that cannot be."""
    hasher: _Hash = hashlib.sha256()
    size = 0
    try:
        with open_regular(partial) as file:
            while piece := file.read(_BLOCK_BYTES):
                hasher.update(piece)
                size += len(piece)
    except OSError:
        return hashlib.sha256(), 0
    # One that is as long as the blob and was not taken is no beginning of it.
    return (hasher, size) if size < most else (hashlib.sha256(), 0)


def _write(
    file: IO[bytes],
    partial: Path,
    pieces: Iterator[bytes],
    hasher: _Hash,
    size: int,
    blob: Descriptor,
    store: BundleStore,
    told: Callable[[int], None],
) -> int:
    """Write what comes; return how much is there then."""
    looked = size - _BLOCK_BYTES
    for piece in pieces:
        size += len(piece)
        if size > blob.size:
            remove(partial)
            raise ReleaseRefused(
                f"blob {blob.digest[:19]}…: expected {blob.size:,} bytes, got more: it does not end. Look at its place."
            )
        if size - looked >= _BLOCK_BYTES:
            looked = size
            told(size)
            store.check_room(blob.size - size + len(piece))
        # Not around the pieces: what they raise is the network's.
        with storage_errors(partial):
            file.write(piece)
        hasher.update(piece)
    with storage_errors(partial):
        file.flush()
    return size


def remove(partial: Path) -> None:
    """Remove what was pulled of a blob; a file that stays is begun anew."""
    try:
        partial.unlink(missing_ok=True)
    except OSError:
        return
