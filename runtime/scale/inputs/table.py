"""The table of sources: where images lie, and where the code is that lists and reads them there.

Code is named as text, so that images of files need none of the packages that the others need.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol

from flawscope.runtime.image_sources import Source as Image
from flawscope.runtime.scale.inputs.items import Item


class SourceReader(Protocol):
    """What reads the items of one source; several threads may read at once."""

    def read(self, item: Item) -> Image:
        """Return the path or the bytes of an image.

        Raises:
            FlawscopeError: If it cannot be read, or is another one than was listed.
        """

    def close(self) -> None:
        """Close what is open."""


class Lister(Protocol):
    """What lists an archive: a file with many images."""

    def __call__(self, name: str, top: str, column: str | None) -> Iterator[Item | str]:
        """Yield its images, or what names one: a path or a URL.

        Args:
            name: Path or URL of the archive.
            top: Folder that places lie in.
            column: The column that was asked for, of archives that have some.
        """


class Source(NamedTuple):
    """A row of the table.

    Attributes:
        reader: `module:class` of its reader, which is made without arguments.
        endings: Of its archives, in lower case; empty where images lie by themselves.
        lister: `module:function` that lists one of them, a `Lister`.
    """

    reader: str
    endings: tuple[str, ...] = ()
    lister: str = ""


_HERE = "flawscope.runtime.scale.inputs"
SOURCES: dict[str, Source] = {
    "file": Source(f"{_HERE}.files:FileReader"),
    "fsspec": Source(f"{_HERE}.remote:RemoteReader"),
    "tar": Source(f"{_HERE}.tars:TarReader", (".tar",), f"{_HERE}.tars:list_tar"),
    "parquet": Source(f"{_HERE}.tables:TableReader", (".parquet", ".pq"), f"{_HERE}.tables:list_table"),
}
"""Name -> row."""

ARCHIVES: dict[str, str] = {ending: name for name, row in SOURCES.items() for ending in row.endings}
"""Ending -> name of the row."""
