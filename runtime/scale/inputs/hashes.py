"""SHA-256 of images: noted when they are listed, and compared when they are scored."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import msgspec

from flawscope.errors import ImageError
from flawscope.imaging.images import read_encoded
from flawscope.runtime.image_sources import Source as Image
from flawscope.runtime.reading_ahead import load_ahead
from flawscope.runtime.results import fault_reason
from flawscope.runtime.scale.inputs.items import Item

_AHEAD = 16
_THREADS = 8
"""An object store answers each after some hundredths of a second."""


def hashed(items: Iterable[Item], read: Callable[[Item], Image]) -> Iterator[Item]:
    """Yield items with the SHA-256 of their images; those that cannot be read are faults.

    They stay faults when they can be read later: nothing could tell whether they are those that were listed.

    Args:
        items: The items.
        read: Reads one: `Reader.read`; several threads call it.
    """

    def with_hash(item: Item) -> Item:
        try:
            return msgspec.structs.replace(item, sha256=_sha256(_bytes(read(item))))
        except Exception as err:
            return msgspec.structs.replace(item, fault=f"{item.name}: {fault_reason(err, item.name)}")

    with contextlib.closing(load_ahead(items, with_hash, _AHEAD, _THREADS)) as found:
        yield from found


def verified(item: Item, image: Image) -> Image:
    """Return the bytes of an image that has the SHA-256 of its item: those that were hashed are those that are scored.

    Raises:
        ImageError: If it is another one, or cannot be read.
    """
    data = _bytes(image)
    if _sha256(data) != item.sha256:
        raise ImageError(
            f"{item.name}: expected the image that was listed, by its SHA-256, got another one: it was changed since. "
            "Put it back, or make a new plan."
        )
    return data


def _bytes(image: Image) -> bytes:
    if isinstance(image, Path):
        return read_encoded(image)
    assert isinstance(image, bytes)
    return image


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
