"""The items of a plan: a line for each in `items.jsonl`, and where each shard begins in it.

Both are written and read in little memory, whatever the number of items: a worker reads the lines of its shard alone.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from flawscope.errors import DataError
from flawscope.open_files import open_regular
from flawscope.runtime.scale.inputs import Item, decode_item, encode_item
from flawscope.runtime.scale.plan import ITEMS, OFFSETS, PLAN, Plan
from flawscope.runtime.scale.task import Task
from flawscope.text import NOT_JSON

_Item = TypeVar("_Item")

_OFFSET = struct.Struct("<Q")
_BLOCK = 1 << 20
_NEW_PLAN = "Put it back, or make the plan again in another folder."


class Written(NamedTuple):
    """What was written: how many items, and the SHA-256 of their lines."""

    items: int
    sha256: str


def write_items(folder: Path | None, items: Iterable[Item], shard_size: int) -> Written:
    """Write items in their order, or only count and hash them; arguments as `write_item_lines`."""
    return write_item_lines(folder, map(encode_item, items), shard_size)


def write_item_lines(folder: Path | None, items: Iterable[bytes], shard_size: int) -> Written:
    """Write items of any kind, each a line of JSON without its end, or only count and hash them.

    Args:
        folder: Where both files go; None for nowhere.
        items: The items.
        shard_size: Items of a shard.
    """
    digest, count, offset = hashlib.sha256(), 0, 0
    where = os.devnull if folder is None else folder / ITEMS
    starts = os.devnull if folder is None else folder / OFFSETS
    with open(where, "wb") as lines, open(starts, "wb") as offsets:  # noqa: PTH123
        for item in items:
            if count % shard_size == 0:
                offsets.write(_OFFSET.pack(offset))
            line = item + b"\n"
            digest.update(line)
            lines.write(line)
            offset += len(line)
            count += 1
    return Written(count, digest.hexdigest())


def check_size(out: Path, plan: Plan) -> None:
    """Check that a plan has as many shards as were written: whoever goes through them would else never end.

    Raises:
        DataError: If it has not.
    """
    if not plan.items_sha256:
        return
    try:
        shards = (out / OFFSETS).stat().st_size // _OFFSET.size
    except OSError as err:
        raise DataError(f"{out / OFFSETS}: could not be read: {err.strerror or err}. {_NEW_PLAN}") from err
    if shards != plan.shards:
        raise DataError(
            f"{out / PLAN}: expected {shards} shards, as {OFFSETS} has, got {plan.shards}: {plan.items} items in "
            f"shards of {plan.shard_size}. One of the two was changed since. {_NEW_PLAN}"
        )


def check_items(out: Path, plan: Plan) -> None:
    """Check that the items of a plan are as they were written: workers trust them, and each reads a few alone.

    Raises:
        DataError: If they cannot be read, or were changed or damaged since.
    """
    digest, starts, count, size = hashlib.sha256(), [np.zeros(min(plan.items, 1), np.int64)], 0, 0
    try:
        with open_regular(out / ITEMS) as lines:
            while block := lines.read(_BLOCK):
                digest.update(block)
                ends = np.flatnonzero(np.frombuffer(block, np.uint8) == ord("\n"))
                numbers = np.arange(count + 1, count + len(ends) + 1)
                is_start = (numbers % plan.shard_size == 0) & (numbers < plan.items)
                starts.append(size + ends[is_start] + 1)
                count, size = count + len(ends), size + len(block)
        with open_regular(out / OFFSETS) as offsets:
            are_equal = offsets.read() == np.concatenate(starts).astype("<u8").tobytes()
    except OSError as err:
        raise DataError(f"{out / ITEMS}: could not be read: {err.strerror or err}. {_NEW_PLAN}") from err
    if digest.hexdigest() != plan.items_sha256 or not are_equal:
        raise DataError(
            f"{out / ITEMS}: expected the {plan.items} items of the plan, by their SHA-256, got others: the file or "
            f"{OFFSETS} was changed since. {_NEW_PLAN}"
        )


def read_items(out: Path, plan: Plan, task: Task) -> list[Item]:
    """Return the items of a task; arguments and errors as `read_decoded`."""
    return read_decoded(out, plan, task, decode_item)


def read_decoded(out: Path, plan: Plan, task: Task, decode: Callable[[bytes], _Item]) -> list[_Item]:
    """Return the items of a task, of any kind.

    Args:
        out: Folder of the plan.
        plan: The plan.
        task: The task.
        decode: Makes an item of its line; raises DataError, or as msgspec does, for another line.

    Raises:
        DataError: If they cannot be read, or are not there.
    """
    try:
        with open_regular(out / OFFSETS) as offsets:
            offsets.seek(task.shard * _OFFSET.size)
            (offset,) = _OFFSET.unpack(offsets.read(_OFFSET.size))
        with open_regular(out / ITEMS) as lines:
            lines.seek(offset)
            for _ in range(task.first - task.shard * plan.shard_size):
                lines.readline()
            found = [decode(lines.readline()) for _ in range(task.items)]
    except (OSError, OverflowError, struct.error, DataError, *NOT_JSON) as err:
        reason = (err.strerror or str(err)) if isinstance(err, OSError) else str(err)
        raise DataError(
            f"{out / ITEMS}: expected items {task.first} to {task.stop - 1} of the plan, got: {reason.rstrip('.')}. "
            f"{_NEW_PLAN}"
        ) from err
    return found
