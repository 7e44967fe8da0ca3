"""Shards of WebDataset: plain tar archives, whose members are looked up once and then read by their place.

Nothing is unpacked: names are names, wherever they would lead.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from typing import IO

from flawscope.errors import DataError, ImageError
from flawscope.files import is_litter
from flawscope.imaging.images import EXTENSIONS, most_encoded_bytes
from flawscope.runtime.scale.inputs.archives import check_archive_size, opened, read_part
from flawscope.runtime.scale.inputs.files import ending_of
from flawscope.runtime.scale.inputs.items import Item
from flawscope.runtime.scale.inputs.places import safe_place
from flawscope.runtime.scale.inputs.urls import is_url, reason_of, shown

_BLOCK = 512
_LARGEST_HEADER = 1 << 16
"""Bytes of one header with its extensions; names have at most 4096."""
# What tarfile raises for headers of strangers.
_BROKEN = (tarfile.TarError, OSError, ValueError, ArithmeticError, LookupError, RecursionError, EOFError)


class _Headers(io.RawIOBase):
    """An archive for tarfile, which reads a header of any size into memory: of at most some size here."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= _LARGEST_HEADER:
            raise ValueError(f"a header of {size:,} bytes")
        return self._file.read(size)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()


def list_tar(name: str, top: str, column: str | None = None) -> Iterator[Item]:
    """Yield the images of an archive in the order in which they lie there, by one pass over its headers.

    What has the name of an image and no bytes of its own, such as a link, and what lies behind damage, is a fault.

    Args:
        name: Path or URL of the archive.
        top: Folder that places lie in.
        column: Not asked for: an archive has none.

    Raises:
        DataError: If it cannot be opened, or is no plain tar archive.
    """
    called = shown(name)
    with opened(name) as (file, size):
        ends_at = 0
        try:
            with tarfile.open(fileobj=_Headers(file), mode="r:") as tar:
                while (member := tar.next()) is not None:
                    # It keeps all members, which for millions is gigabytes; and a negative size would go back for ever.
                    tar.members = []  # type: ignore[attr-defined]
                    if tar.offset <= ends_at:
                        raise tarfile.ReadError("a member that ends before it begins")
                    ends_at = tar.offset
                    if (item := _item(called, name, member, top, size)) is not None:
                        yield item
                fault = _end_fault(file, tar.offset, size)
        except _BROKEN as err:
            if not ends_at:
                raise DataError(
                    f"{called}: expected a tar archive that is not compressed, got: {reason_of(err, name)}. Unpack "
                    "what is compressed (gunzip, unzstd), or make the archive again."
                ) from err
            fault = reason_of(err, name)
    if fault:
        yield Item(
            called,
            "",
            fault=f"{called}: expected a whole tar archive, got: {fault}, behind byte {ends_at:,}. What follows is not "
            "known. Make it again.",
        )


def _item(called: str, name: str, member: tarfile.TarInfo, top: str, size: int) -> Item | None:
    base = member.name[member.name.rfind("/") + 1 :]
    if ending_of(base) not in EXTENSIONS or is_litter(base) or member.isdir():
        return None
    image = f"{called}::{member.name}"
    if not member.isreg() or member.issparse():
        kind = "a link" if member.islnk() or member.issym() else "a file with holes" if member.isreg() else "no file"
        fault = f"{image}: expected an image that lies in the archive, got {kind}. Store the file itself."
        return Item(image, "", fault=fault)
    where = (name, member.offset_data, size)
    return Item(image, "/".join(filter(None, (top, safe_place(member.name)))), member.size, "tar", where)


def _end_fault(file: IO[bytes], offset: int, size: int) -> str:
    """Return why the end of an archive is none; empty where it is."""
    file.seek(offset)
    end = file.read(_BLOCK)
    if end == bytes(_BLOCK):
        return ""
    # tarfile ends without a word at a header that it cannot read.
    return f"no mark of its end in {size:,} bytes" if len(end) < _BLOCK else "a damaged header"


class TarReader:
    """Reads members of archives by their place."""

    def __init__(self) -> None:
        self._checked: dict[tuple[str, int], None] = {}

    def read(self, item: Item) -> bytes:
        """Return the bytes of a member.

        Raises:
            ImageError: If the archive is gone, or has another size than when it was listed.
        """
        name, offset, size = str(item.where[0]), int(item.where[1]), int(item.where[2])
        if item.size > (most := most_encoded_bytes()):
            raise ImageError(f"{item.name}: it has more than {most:,} bytes, the most that is read.")
        if is_url(name) and (name, size) not in self._checked:
            # Once for each archive: for each image it would be a request.
            from flawscope.runtime.scale.inputs.remote import size_of_remote

            check_archive_size(item.name, shown(name), size_of_remote(name), size)
            self._checked[name, size] = None
        return read_part(item.name, name, offset, item.size, size) if item.size else b""

    def close(self) -> None:
        """Nothing is open."""
