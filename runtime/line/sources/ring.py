"""The ring through which images come from the child process of a source: a few slots of shared memory without a name.

It has no name (memfd), so that nothing is left in the system when either side is killed. One process writes a slot and
then says so over its socket; the other one copies the image out, checks it, and says that the slot is free. A slot that
is not whole becomes a fault: it is never scored.
"""

from __future__ import annotations

import fcntl
import math
import mmap
import os
import struct
import time
import zlib
from typing import Literal

import msgspec
import numpy as np

from flawscope.arrays import UInt8Array
from flawscope.runtime.line.sources.source import Frame, Problem
from flawscope.text import NOT_JSON

SLOTS = 4
"""Slots of a ring: one is filled, one copied out, and two wait."""

_HEADER_BYTES = 4096
_BEGINNING = struct.Struct("<8sII")
"""Mark, length of the header, and its CRC-32."""
_MARK = b"FLAWSLOT"
_DETAIL_LENGTH = 500

_WHOLE_BYTES = 8 << 20
_BLOCK_BYTES = 64 << 10
_BLOCKS = 128


class _Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a slot holds beside the pixels."""

    sequence: int
    what: Literal["nothing", "file", "uint8"]
    shape: tuple[int, ...]
    length: int
    crc: int
    mono_ns: int
    frame_id: int | None
    source: str
    problem: Problem
    detail: str
    lost: int
    is_last: bool


class Ring:
    """Slots in shared memory. Its file descriptor is all that another process needs.

    Args:
        descriptor: File descriptor of the memory; the caller keeps it.
        slots: Number of slots.
        slot_bytes: Largest image, in bytes.

    Raises:
        ValueError: If the memory is of another size.
    """

    def __init__(self, descriptor: int, slots: int, slot_bytes: int) -> None:
        self.slots, self.slot_bytes = slots, slot_bytes
        self._stride = _stride(slot_bytes)
        size = slots * self._stride
        if os.fstat(descriptor).st_size != size:
            raise ValueError(f"expected shared memory of {size} bytes, got {os.fstat(descriptor).st_size}.")
        self._memory = mmap.mmap(descriptor, size)
        self._bytes: UInt8Array = np.frombuffer(self._memory, np.uint8)

    def write(self, slot: int, frame: Frame, sequence: int) -> Frame:
        """Write an image into a free slot, and return what was written.

        An image that is larger than the slot becomes the word that it cannot be read.

        Args:
            slot: Number of the slot.
            frame: The image.
            sequence: Number of the image since the process began.
        """
        frame, data = self._fitting(frame)
        what: Literal["nothing", "file", "uint8"] = "nothing"
        shape: tuple[int, ...] = ()
        if frame.image is not None:
            what = "file" if isinstance(frame.image, bytes) else "uint8"
            shape = (len(data),) if isinstance(frame.image, bytes) else frame.image.shape
        header = _Header(
            sequence,
            what,
            shape,
            len(data),
            checksum(data),
            frame.mono_ns,
            frame.frame_id,
            frame.source,
            frame.problem,
            frame.detail[:_DETAIL_LENGTH],
            frame.lost,
            frame.is_last,
        )
        text = msgspec.msgpack.encode(header)
        if len(text) > _HEADER_BYTES - _BEGINNING.size:
            raise ValueError(f"expected a header of at most {_HEADER_BYTES} bytes, got {len(text)}: too long a name.")
        begin = slot * self._stride
        self._bytes[begin + _HEADER_BYTES : begin + _HEADER_BYTES + len(data)] = data
        _BEGINNING.pack_into(self._memory, begin, _MARK, len(text), zlib.crc32(text))
        self._memory[begin + _BEGINNING.size : begin + _BEGINNING.size + len(text)] = text
        return frame

    def _fitting(self, frame: Frame) -> tuple[Frame, UInt8Array]:
        """Return an image that fits in a slot, and its bytes."""
        if frame.image is None:
            return frame, np.empty(0, np.uint8)
        if isinstance(frame.image, bytes):
            data = np.frombuffer(frame.image, np.uint8)
        elif frame.image.dtype != np.uint8 or not _is_shape(frame.image.shape):
            got = f"{frame.image.dtype} {list(frame.image.shape)}"
            return _without_image(frame, f"expected an image uint8 [H, W] or [H, W, 3], got {got}"), _NOTHING
        else:
            data = np.ascontiguousarray(frame.image).reshape(-1)
        if len(data) > self.slot_bytes:
            # Rounded up, so that what the message says is enough.
            need = math.ceil(len(data) / (1 << 20) * 10) / 10
            detail = f"an image of {len(data):,} bytes does not fit: set slot_mb of the view to {need} or more"
            return _without_image(frame, detail), _NOTHING
        return frame, data

    def read(self, slot: int, sequence: int) -> Frame:
        """Return a copy of the image in a slot; one that is not whole, or another one, is a fault.

        Args:
            slot: Number of the slot.
            sequence: Number of the image that must be there.
        """
        if not 0 <= slot < self.slots:
            return _torn(f"there is no slot {slot}")
        begin = slot * self._stride
        header = self._header(begin)
        if header is None:
            return _torn("the header of a slot is not whole")
        if header.sequence != sequence:
            return _torn(f"expected image {sequence} in a slot, got image {header.sequence}")
        try:
            image = self._image(begin + _HEADER_BYTES, header)
        except ValueError as err:
            return _torn(str(err), header.source)
        return Frame(
            image,
            header.mono_ns,
            header.frame_id,
            header.source,
            header.problem,
            header.detail,
            header.lost,
            header.is_last,
        )

    def _header(self, begin: int) -> _Header | None:
        mark, length, crc = _BEGINNING.unpack_from(self._memory, begin)
        if mark != _MARK or length > _HEADER_BYTES - _BEGINNING.size:
            return None
        # A copy: what is checked must be what is read.
        text = self._memory[begin + _BEGINNING.size : begin + _BEGINNING.size + length]
        if zlib.crc32(text) != crc:
            return None
        try:
            return msgspec.msgpack.decode(text, type=_Header)
        except NOT_JSON:
            return None

    def _image(self, begin: int, header: _Header) -> UInt8Array | bytes | None:
        """Return a copy of what a slot holds; ValueError if it is not what the header says."""
        if header.what == "nothing":
            return None
        if header.what == "uint8" and not _is_shape(header.shape):
            raise ValueError(f"expected an image [H, W] or [H, W, 3], got {list(header.shape)}")
        if not 0 <= header.length <= self.slot_bytes or math.prod(header.shape) != header.length:
            raise ValueError(f"expected {math.prod(header.shape)} bytes of an image, got {header.length}")
        copy = self._bytes[begin : begin + header.length].copy()
        if checksum(copy) != header.crc:
            raise ValueError("the bytes of an image are not those that were written")
        return copy.tobytes() if header.what == "file" else copy.reshape(header.shape)

    def close(self) -> None:
        """Release the memory; nothing may be read or written afterwards."""
        # An array on the memory keeps it open.
        self._bytes = _NOTHING
        self._memory.close()


_NOTHING: UInt8Array = np.empty(0, np.uint8)


def make_memory(slots: int, slot_bytes: int) -> int:
    """Return the file descriptor of new shared memory for a ring; the caller closes it. Raises OSError."""
    descriptor = os.memfd_create("flawscope-images", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(descriptor, slots * _stride(slot_bytes))
        # A process that made it smaller would kill the other one: the system ends who reads beyond the end.
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def checksum(data: UInt8Array) -> int:
    """Return a CRC-32 of bytes: of all of them up to 8 MiB, beyond of 128 blocks of 64 KiB, first and last among them.

    Two gigabytes a second is all that one core checks, and an image of 100 MiB has a deadline.
    """
    if len(data) <= _WHOLE_BYTES:
        return zlib.crc32(data.data)
    crc = 0
    for number in range(_BLOCKS):
        begin = number * (len(data) - _BLOCK_BYTES) // (_BLOCKS - 1)
        crc = zlib.crc32(data[begin : begin + _BLOCK_BYTES].data, crc)
    return crc


def _stride(slot_bytes: int) -> int:
    # Whole pages, so that images begin at addresses that copying is fast from.
    return _HEADER_BYTES + -(-slot_bytes // mmap.PAGESIZE) * mmap.PAGESIZE


def _is_shape(shape: tuple[int, ...]) -> bool:
    return len(shape) in (2, 3) and min(shape) > 0 and (len(shape) == 2 or shape[2] == 3)


def _without_image(frame: Frame, detail: str) -> Frame:
    return Frame(None, frame.mono_ns, frame.frame_id, frame.source, "unreadable_image", detail, frame.lost)


def _torn(detail: str, source: str = "") -> Frame:
    return Frame(None, time.monotonic_ns(), None, source, "unreadable_image", f"shared memory: {detail}")
