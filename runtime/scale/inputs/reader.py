"""Reads the items of a plan, each by the row of its source."""

from __future__ import annotations

import importlib
import threading
from pathlib import Path

from flawscope.errors import DataError
from flawscope.runtime.image_sources import Source as Image
from flawscope.runtime.scale.inputs.hashes import verified
from flawscope.runtime.scale.inputs.items import Item
from flawscope.runtime.scale.inputs.table import SOURCES, SourceReader


class Reader:
    """Reads items; several threads may read at once. Close it, or use it in `with`.

    Relative paths are those of the folder that the process works in: the one that the plan was made in.
    """

    def __init__(self) -> None:
        self._readers: dict[str, SourceReader] = {}
        self._lock = threading.Lock()

    def read(self, item: Item) -> Image:
        """Return what the inspector takes as an image: the path of a file, or the bytes of one.

        Raises:
            FlawscopeError: If it cannot be read, is another one than was listed, or has a fault from its listing. The
                message is the reason of its fault; for those from the listing it is as it was there.
        """
        if item.fault:
            raise DataError(item.fault)
        image = self._reader(item.source).read(item)
        return verified(item, image) if item.sha256 else image

    def read_now(self, item: Item) -> Image:
        """As `read`, for a listing that was just made: a file that was written to since is read as it is."""
        return Path(item.name) if item.source == "file" and not item.fault else self.read(item)

    def _reader(self, source: str) -> SourceReader:
        with self._lock:
            if source not in self._readers:
                if source not in SOURCES:
                    raise DataError(
                        f"expected a source of {', '.join(SOURCES)}, got {source!r}, as from another version of "
                        "flawscope. Make the plan again."
                    )
                module, _, name = SOURCES[source].reader.partition(":")
                self._readers[source] = getattr(importlib.import_module(module), name)()
            return self._readers[source]

    def close(self) -> None:
        """Close what is open."""
        with self._lock:
            for reader in self._readers.values():
                reader.close()
            self._readers.clear()

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()
