"""Files with many images, here or in an object store: opened to be listed, and read in parts by workers."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from flawscope.errors import DataError, ImageError
from flawscope.open_files import open_regular
from flawscope.runtime.scale.inputs.urls import is_url


@contextlib.contextmanager
def opened(name: str) -> Iterator[tuple[IO[bytes], int]]:
    """Yield an archive, open to be read and with `seek`, and its size in bytes.

    Raises:
        DataError: If it cannot be opened.
        MissingExtra: If it is a URL, and the package for these is not installed.
    """
    if is_url(name):
        # Only here: archives of this machine need no fsspec.
        from flawscope.runtime.scale.inputs.remote import open_remote

        with open_remote(name) as (file, size):
            yield file, size
        return
    try:
        file = open_regular(Path(name))
    except OSError as err:
        raise DataError(f"{name}: could not be opened: {err.strerror or err}. Check that it is there.") from err
    with file:
        yield file, os.fstat(file.fileno()).st_size


def read_part(image: str, name: str, offset: int, length: int, size: int) -> bytes:
    """Return a part of an archive.

    Args:
        image: What the image there is called.
        name: The archive.
        offset: Where the part begins, in bytes.
        length: Bytes of the part.
        size: Bytes of the archive when it was listed.

    Raises:
        ImageError: If it cannot be read, or the archive has another size.
    """
    if is_url(name):
        from flawscope.runtime.scale.inputs.remote import read_remote

        return read_remote(image, name, offset, length)
    try:
        # Opened for each image: beside decoding it that costs nothing, and threads share no position.
        with open_regular(Path(name)) as file:
            check_archive_size(image, name, os.fstat(file.fileno()).st_size, size)
            data = os.pread(file.fileno(), length, offset)
    except OSError as err:
        raise ImageError(f"{image}: could not be read: {err.strerror or err}. Was {name} moved?") from err
    if len(data) != length:
        raise ImageError(f"{image}: expected {length:,} bytes, got {len(data):,}: {name} was cut. Put it back.")
    return data


def check_archive_size(image: str, name: str, now: int, listed: int) -> None:
    """Raise ImageError if an archive has another size than when it was listed: the places in it are of the other."""
    if now != listed:
        raise ImageError(
            f"{image}: expected {name} with {listed:,} bytes as when it was listed, got {now:,}: it was changed since. "
            "Put it back, or make a new plan."
        )
