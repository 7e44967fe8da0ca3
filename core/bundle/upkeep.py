"""Upkeep of a memory bank: which of its stored rows are in use, and what was added and taken out since the export.

A bank is exported with room: more rows are stored than are in use. Shapes and offsets in the graphs are those of all
stored rows, so rows can be added and taken out without a graph being written anew. A row of the room is zero, and its
squared norm `ROOM_NORM` is larger than that of any patch: to the graph it is farther than every row in use. The kernels
are not even given it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt

from flawscope.bank_names import bank_names, norm_names, place_names
from flawscope.errors import BundleError
from flawscope.ranges import Count, PositiveCount
from flawscope.text import NOT_JSON, encode_json

ROOM_NORM = np.float32(1e38)
"""Squared norm of a row of the room. Below the largest float32, 3.4e38: TF32 would round that to infinity."""

_NEIGHBOURS = "neighbours"

Tensors = Mapping[str, npt.NDArray[Any]]


class BankChange(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One change of a memory bank since the export.

    Attributes:
        number: Number of the change, by which an addition can be taken out again; never used twice.
        what: Whether rows were `added`, `removed`, or `pruned` to fewer.
        when: UTC time.
        command: The command that did it.
        images: Images that were added or taken out; 0 for pruning.
        rows: Rows in use of each bank afterwards.
    """

    number: PositiveCount
    what: Literal["added", "removed", "pruned"]
    when: str
    command: str
    images: Count
    rows: tuple[PositiveCount, ...]


class Upkeep(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The state of the memory bank.

    Attributes:
        rows: Rows in use of each bank.
        room: Rows of room that are stored behind them.
        changes: All changes since the export, in their order.
        record: File with the record of additions, below the bundle; null before the first change.
    """

    rows: tuple[PositiveCount, ...]
    room: tuple[Count, ...]
    changes: tuple[BankChange, ...] = ()
    record: str | None = None


class AddedRows(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The rows of one bank that came from added images.

    Attributes:
        rows: Their indices among the rows in use, ascending.
        images: Index of the image of each, in `Additions.images`.
    """

    rows: tuple[Count, ...]
    images: tuple[Count, ...]


class Additions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The images that were added since the export, and what each of them has brought.

    Attributes:
        images: Content hash of every image.
        numbers: Number of the change by which it was added.
        banks: Its rows in each bank.
        pruned: Content hashes of images that were added before the bank was pruned: of what is left, nobody knows
            what came from them, so they cannot be taken out.
    """

    images: tuple[str, ...] = ()
    numbers: tuple[PositiveCount, ...] = ()
    banks: tuple[AddedRows, ...] = ()
    pruned: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Raise ValueError unless every image has a number, and every row one of the images."""
        if len(self.images) != len(self.numbers):
            raise ValueError(f"expected a number for each of {len(self.images)} images, got {len(self.numbers)}")
        for bank in self.banks:
            if len(bank.rows) != len(bank.images) or list(bank.rows) != sorted(set(bank.rows)):
                raise ValueError("expected ascending rows with an image each")
            if bank.images and max(bank.images) >= len(self.images):
                raise ValueError(f"expected rows of {len(self.images)} images, got one of image {max(bank.images)}")

    def encode(self) -> bytes:
        """Return the content of the record."""
        return encode_json(self)


def decode_additions(data: bytes, where: str) -> Additions:
    """Return a record from its bytes.

    Raises:
        BundleError: If it is broken.
    """
    try:
        return msgspec.json.decode(data, type=Additions)
    except NOT_JSON as err:
        raise BundleError(f"{where}: expected the record of added images, got a broken file: {err}.") from err


def with_room(tensors: Tensors, room: tuple[int, ...]) -> dict[str, npt.NDArray[Any]]:
    """Return the tensors of a bank with room behind the rows in use.

    Args:
        tensors: Those of a bundle with a memory bank of rows, without room.
        room: Rows of room of each bank.
    """
    roomy = dict(tensors)
    for number, names in enumerate(_names(len(room))):
        for name, kind in names.items():
            if name not in tensors:
                continue
            rows = tensors[name]
            spare = np.zeros((room[number], *rows.shape[1:]), rows.dtype)
            if kind == "norms":
                spare[:] = ROOM_NORM
            elif kind == "places":
                spare[:] = rows[-1]  # in order, and no other place has a row for it
            roomy[name] = np.concatenate([rows, spare])
    return roomy


def in_use(tensors: Tensors, upkeep: Upkeep, where: str) -> dict[str, npt.NDArray[Any]]:
    """Return the tensors of a bank without its room, as views.

    Args:
        tensors: Those of the file.
        upkeep: The state of the bank.
        where: What the file is called in messages.

    Raises:
        BundleError: If a bank has other rows, or what is stored behind those in use is not room: the graph would see it
            and the kernels would not.
    """
    used = dict(tensors)
    for number, names in enumerate(_names(len(upkeep.rows))):
        count, room = upkeep.rows[number], upkeep.room[number]
        for name, kind in names.items():
            if name not in tensors:
                continue
            stored = tensors[name]
            if stored.ndim == 0 or len(stored) != count + room:
                got = 0 if stored.ndim == 0 else len(stored)
                raise BundleError(
                    f"{where}: expected {count} rows and room for {room} in {name}, got {got}. Export the bundle again."
                )
            spare = stored[count:]
            expected = {"norms": ROOM_NORM, "places": stored[count - 1]}.get(kind, 0)
            if not (spare == expected).all():
                raise BundleError(
                    f"{where}: expected {count} rows in {name} and room behind them, got more rows. Export the bundle "
                    "again."
                )
            used[name] = stored[:count]
    return used


def _names(banks: int) -> list[dict[str, str]]:
    """Return for each bank the names of its tensors that have an entry for every row, and what they are."""
    named = zip(bank_names(banks), norm_names(banks), place_names(banks), strict=True)
    all_names = [{bank: "bank", norms: "norms", places: "places"} for bank, norms, places in named]
    if banks == 1:  # with several a score is not re-weighted
        all_names[0][_NEIGHBOURS] = _NEIGHBOURS
    return all_names
