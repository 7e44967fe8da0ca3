"""An input of a plan: what it is called, where its map goes, and what a worker needs to read it; never its pixels."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from flawscope.errors import DataError
from flawscope.text import NOT_JSON


class Item(msgspec.Struct, frozen=True, omit_defaults=True):
    """An image that was named or found, or the fault of what cannot be listed.

    Attributes:
        name: What results call it: its path as it was given, its URL, `ARCHIVE::MEMBER` or `TABLE::ROW`.
        place: Where its map goes below a folder, without ending. No two of a listing are equal, and none leads out of
            the folder.
        size: Bytes when it was listed; -1 where that is unknown.
        source: Row of `SOURCES` that reads it.
        where: What that row needs beside the name to read it.
        sha256: SHA-256 of its bytes when it was listed, where that was asked for; else empty.
        fault: Why there is nothing to read, as for a folder that cannot be listed; empty for an image.
    """

    name: str
    place: str
    size: int = -1
    source: str = "file"
    where: tuple[str | int, ...] = ()
    fault: str = ""
    sha256: str = ""


@dataclass
class Found:
    """What a listing met beside images; it is complete when the listing is done.

    Attributes:
        masks: Folders of masks, which were passed over.
        folders: Each folder of this machine that was listed, without links -> the named one above it.
        again: Folders that were reached once more, and not listed again.
        seen: Device and number of every folder that was listed.
    """

    masks: list[str] = field(default_factory=list)
    folders: dict[str, Path] = field(default_factory=dict)
    again: list[str] = field(default_factory=list)
    seen: set[tuple[int, int]] = field(default_factory=set)


def encode_item(item: Item) -> bytes:
    r"""Return an item as one line of JSON, without its end.

    A byte of a name that is not UTF-8 becomes an escape of a lone surrogate (`\udcff`), as in Python's own JSON.
    """
    try:
        return msgspec.json.encode(item)
    except UnicodeEncodeError:
        return json.dumps(msgspec.to_builtins(item), separators=(",", ":")).encode()


_DECODER = msgspec.json.Decoder(Item)


def decode_item(line: bytes) -> Item:
    """Return the item that `encode_item` wrote.

    Raises:
        DataError: If the line is none.
    """
    try:
        return _DECODER.decode(line)
    except NOT_JSON as err:
        if b"\\ud" not in line:
            raise _no_item(err) from err
    try:
        plain: Any = json.loads(line)
        return msgspec.convert(plain, Item)
    except (ValueError, RecursionError, msgspec.ValidationError) as err:
        raise _no_item(err) from err


def _no_item(err: Exception) -> DataError:
    return DataError(f"expected a line of an item, got: {err}. Make the plan again.")
