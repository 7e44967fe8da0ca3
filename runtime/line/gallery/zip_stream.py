"""A zip file in pieces, while it is made: an export may be larger than the memory."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator

from flawscope.runtime.line.gallery.export import Exported


class _Pieces:
    """A file that is only written: what came since it was asked last."""

    def __init__(self) -> None:
        self._new = bytearray()

    def write(self, data: bytes, /) -> int:
        self._new += data
        return len(data)

    def flush(self) -> None:
        """Do nothing: nothing waits here."""

    def close(self) -> None:
        """Do nothing: nothing is open."""

    def taken(self) -> bytes:
        data = bytes(self._new)
        self._new.clear()
        return data


def zipped(files: Iterator[Exported]) -> Iterator[bytes]:
    """Yield the bytes of a zip file, about a file at a time. Images are compressed already, and stored as they are."""
    pieces = _Pieces()
    # Without `seek` and `tell`, zipfile writes sizes behind each file: nothing has to be gone back to.
    with zipfile.ZipFile(pieces, "w", zipfile.ZIP_STORED) as archive:
        for file in files:
            # One date for all: the same reviews give the same bytes.
            entry = zipfile.ZipInfo(file.path, (1980, 1, 1, 0, 0, 0))
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, file.data)
            yield pieces.taken()
    yield pieces.taken()
