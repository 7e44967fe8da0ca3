"""The table of sources: where images lie, and where the code is that reads them there; nothing else lists them.

Code is named as text, so that images of files need none of the packages that the others need.
"""

from __future__ import annotations

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


class Source(NamedTuple):
    """A row of the table.

    Attributes:
        reader: `module:class` of its reader, which is made without arguments.
    """

    reader: str


SOURCES: dict[str, Source] = {
    "file": Source("flawscope.runtime.scale.inputs.files:FileReader"),
}
"""Name -> row."""
