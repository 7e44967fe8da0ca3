"""What a line and the child process of a source say to each other, over one socket that keeps messages apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from flawscope.runtime.line.sources.source import Policy
from flawscope.text import encode_json

MESSAGE_BYTES = 1 << 16
"""Largest message."""

TEXT_LENGTH = 2000
"""Most characters of a reason in a message."""


class Message(msgspec.Struct, frozen=True, tag=True):
    """Base of all messages."""


class Up(Message, frozen=True):
    """Child: the source is open."""


class Beat(Message, frozen=True):
    """Child: its loop turns."""


class Ready(Message, frozen=True):
    """Child: a slot is filled.

    Attributes:
        slot: Number of the slot.
        sequence: Number of the image.
        source: As in `Frame`.
        frame_id: As in `Frame`.
        lost: As in `Frame`.
        is_last: As in `Frame`.
    """

    slot: int
    sequence: int
    source: str
    frame_id: int | None
    lost: int
    is_last: bool


class Noted(Message, frozen=True):
    """Child: it took note that the part of a file has its verdict."""

    source: str


class Lost(Message, frozen=True):
    """Child: the source does not work, or no longer; the child ends."""

    reason: str


class Free(Message, frozen=True):
    """Line: a slot was copied out."""

    slot: int


class Trigger(Message, frozen=True):
    """Line: ask for one image.

    Attributes:
        mono_ns: When it was asked for, by the monotonic clock.
    """

    mono_ns: int


class Done(Message, frozen=True):
    """Line: the part of a file has its verdict on record."""

    source: str


class Stop(Message, frozen=True):
    """Line: close the source and end."""


FromChild = Up | Beat | Ready | Noted | Lost
FromLine = Free | Trigger | Done | Stop


class Order(msgspec.Struct, frozen=True):
    """What a child is to do, told once.

    Attributes:
        grabber: `module:attribute` of the grabber's class.
        options_type: `module:attribute` of the type of its options.
        options: Its options, as JSON.
        station: As in `SourcePlace`.
        view: As in `SourcePlace`.
        state: As in `SourcePlace`.
        in_flight: As in `SourcePlace`.
        last_id: As in `SourcePlace`.
        slots: Slots of the ring.
        slot_bytes: Bytes of a slot.
        policy: What the line takes the grabber's policy to be.
        is_triggered: What the line takes the grabber's trigger to be.
    """

    grabber: str
    options_type: str
    options: msgspec.Raw
    station: str
    view: str
    state: str
    in_flight: tuple[str, ...]
    last_id: int | None
    slots: int
    slot_bytes: int
    policy: Policy
    is_triggered: bool


def encode_options(options: Any) -> bytes:
    """Return options as JSON; paths are text."""
    return encode_json(options, enc_hook=_plain)


def decode_options(data: bytes | msgspec.Raw, kind: Any) -> Any:
    """Return options of a type from JSON."""
    return msgspec.json.decode(data, type=kind, dec_hook=_made)


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"expected an option of plain data or a path, got {type(value).__name__}.")


def _made(kind: type[Any], value: Any) -> Any:
    if issubclass(kind, Path):
        return Path(value)
    raise TypeError(f"expected options of plain data and paths, got {kind.__name__}.")
