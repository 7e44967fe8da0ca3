"""Files of shards: lines of JSON behind which one line says that the file is whole; written, synced, then renamed.

The name is a function of the task alone, so that a task that is done twice, by whomever, leaves one file. What lies
there under the name has all its lines, or is not whole: its trailer counts them, with their SHA-256.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, TypeVar

import msgspec

from flawscope.errors import DataError
from flawscope.files import follow_umask, storage_errors
from flawscope.open_files import open_regular
from flawscope.runtime.scale.plan import SHARDS, Plan, check_still_there
from flawscope.runtime.scale.task import Done, Task
from flawscope.scratch import scratch_file, sync
from flawscope.text import NOT_JSON, encode_json

_Result = TypeVar("_Result", bound=msgspec.Struct)
_TAIL_BYTES = 1 << 14
"""Room for a trailer, which is a line of counts, behind the last line end before it."""
_BLOCK = 1 << 20


BAD_ZIP = (
    *(zipfile.BadZipFile, EOFError, ValueError, OverflowError, NotImplementedError, RuntimeError),
    *(KeyError, struct.error, zlib.error),
)
"""What reading an archive that was damaged raises: NotImplementedError for a method, RuntimeError for encryption."""


class Trailer(msgspec.Struct, frozen=True):
    """The last line of the file of a task.

    Attributes:
        plan: Digest of the plan: what a worker of a run before leaves behind in the folder is never taken for this one.
        shard: Number of the shard.
        items: Lines before it.
        counts: As in `Done`.
        more: As in `Done`.
        sha256: SHA-256 of all lines before it.
        archive_bytes: Size of the archive beside it; None without one.
    """

    plan: str
    shard: int
    items: int
    counts: dict[str, int]
    more: dict[str, int]
    sha256: str
    archive_bytes: int | None = None


def place_of(out: Path, plan: Plan, task: Task, ending: str = "jsonl") -> Path:
    """Return the name of a file of a task: `shard-00042.jsonl`, or `shard-00042.10752-10880.jsonl` for a part."""
    part = "" if task == plan.task(task.shard) else f".{task.first}-{task.stop}"
    return out / SHARDS / f"shard-{task.shard:05d}{part}.{ending}"


@contextlib.contextmanager
def durable_file(path: Path) -> Iterator[BinaryIO]:
    """Yield a file for writing that gets its name, replacing another, when all of it is on the disk.

    Not `flawscope.files.atomic_file`, which looks for leftovers in the folder each time: this one may hold 10^5 files.

    Raises:
        StorageError: If the system refuses to write.
    """
    with storage_errors(path), scratch_file(path.parent) as temporary:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        follow_umask(temporary)
        temporary.replace(path)
        sync(path.parent)


@contextlib.contextmanager
def task_file(out: Path, plan: Plan, task: Task, ending: str = "jsonl") -> Iterator[BinaryIO]:
    """Yield a file of a task for writing, as `durable_file`; it gets its name only where the plan is still that one.

    Raises:
        DataError: If another plan lies there by now.
        StorageError: If the system refuses to write.
    """
    with durable_file(place_of(out, plan, task, ending)) as file:
        yield file
        check_still_there(out, plan)


def write_lines(out: Path, plan: Plan, done: Done, lines: Iterable[bytes], *, archive_bytes: int | None = None) -> None:
    """Write the file of a task, with its times beside it.

    Args:
        out: Folder of the plan.
        plan: The plan.
        done: The task with its counts.
        lines: A line of each item, without its line end.
        archive_bytes: Size of the archive of the task, which must have its name already.

    Raises:
        DataError: If another plan lies there by now.
        StorageError: If it cannot be written.
    """
    # Before the file that says that the task is done; no file has to wait for the disk for the sake of times.
    times = place_of(out, plan, done.task, "times.json")
    with storage_errors(times), scratch_file(times.parent) as temporary:
        temporary.write_bytes(encode_json(done))
        temporary.replace(times)
    digest, count = hashlib.sha256(), 0
    with task_file(out, plan, done.task) as file:
        for line in lines:
            row = line + b"\n"
            digest.update(row)
            file.write(row)
            count += 1
        trailer = Trailer(
            plan.digest, done.task.shard, count, done.counts, done.more, digest.hexdigest(), archive_bytes
        )
        file.write(encode_json(trailer) + b"\n")


def whole(out: Path, plan: Plan, task: Task, archive: str | None = None) -> Done | None:
    """Return what the file of a task says, or None unless it and its archive are whole.

    Args:
        out: Folder of the plan.
        plan: The plan.
        task: The task.
        archive: Ending of the archive that belongs to it; None for none.
    """
    path = place_of(out, plan, task)
    try:
        with open_regular(path) as file:
            trailer, size = _read_trailer(file)
            if (trailer.plan, trailer.shard) != (plan.digest, task.shard):
                return None
            if trailer.items != task.items or sum(trailer.counts.values()) != task.items:
                return None
            if any(not 0 <= number <= task.items for number in (*trailer.counts.values(), *trailer.more.values())):
                return None
            file.seek(0)
            digest, left, lines = hashlib.sha256(), size, 0
            while block := file.read(min(left, _BLOCK)):
                digest.update(block)
                lines += block.count(b"\n")
                left -= len(block)
        if digest.hexdigest() != trailer.sha256 or lines != task.items or left:
            return None
        if archive is not None and place_of(out, plan, task, archive).stat().st_size != trailer.archive_bytes:
            return None
    except (OSError, *NOT_JSON):
        return None
    return _with_times(out, plan, Done(task, trailer.counts, more=trailer.more))


def _read_trailer(file: BinaryIO) -> tuple[Trailer, int]:
    """Return the trailer and the bytes before it; raises what msgspec raises where the file ends in something else."""
    size = file.seek(0, os.SEEK_END)
    start = max(0, size - _TAIL_BYTES)
    file.seek(start)
    tail = file.read()
    # A line without its end was cut.
    line = tail[tail.rfind(b"\n", 0, -1) + 1 :] if tail.endswith(b"\n") else b""
    return msgspec.json.decode(line, type=Trailer), size - len(line)


def _with_times(out: Path, plan: Plan, done: Done) -> Done:
    """Return what is done with its times, where they still lie beside it: they are for the report alone."""
    try:
        with open_regular(place_of(out, plan, done.task, "times.json")) as file:
            timed = msgspec.json.decode(file.read(), type=Done)
    except (OSError, *NOT_JSON):
        return done
    return timed if (timed.task, timed.counts, timed.more) == (done.task, done.counts, done.more) else done


def read_blocks(out: Path, plan: Plan, task: Task) -> Iterator[bytes]:
    """Yield the lines of a task with their line ends, without the trailer, a block at a time; checked at the end.

    Raises:
        DataError: If the file is gone, or is not what its trailer says.
    """
    path = place_of(out, plan, task)
    try:
        with open_regular(path) as file:
            trailer, left = _read_trailer(file)
            file.seek(0)
            digest, lines = hashlib.sha256(), 0
            while block := file.read(min(left, _BLOCK)):
                digest.update(block)
                lines += block.count(b"\n")
                left -= len(block)
                yield block
    except (OSError, *NOT_JSON) as err:
        reason = (err.strerror or str(err)) if isinstance(err, OSError) else str(err)
        raise DataError(f"{path}: expected the whole file of a shard, got: {reason}. {_AGAIN}") from err
    if trailer.plan != plan.digest:
        raise DataError(f"{path}: expected lines of the plan in {out}, got those of another one. {_AGAIN}")
    if digest.hexdigest() != trailer.sha256 or lines != task.items or trailer.items != task.items or left:
        raise DataError(f"{path}: expected {task.items} lines with the hash of its last line, got others. {_AGAIN}")


def read_results(out: Path, plan: Plan, task: Task, kind: type[_Result]) -> list[_Result]:
    """Return the lines of a task as structs of a kind.

    Raises:
        DataError: As `read_blocks`.
    """
    lines = b"".join(read_blocks(out, plan, task)).splitlines()
    try:
        return [msgspec.json.decode(line, type=kind) for line in lines]
    except NOT_JSON as err:
        path = place_of(out, plan, task)
        raise DataError(f"{path}: expected lines of this version of flawscope, got: {err}. {_AGAIN}") from err


def split_lines(blocks: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the lines of blocks without their ends; a line may go on in the next block."""
    rest = b""
    for block in blocks:
        *lines, rest = (rest + block).split(b"\n")
        yield from lines
    if rest:
        yield rest


_AGAIN = "Remove the file and run the command again with --resume."


def remove_parts(out: Path, plan: Plan, parts: Iterable[Task], endings: Iterable[str]) -> None:
    """Remove the files of parts of a shard, once the shard has its own.

    Raises:
        StorageError: If the system refuses it.
    """
    names = tuple(endings)
    for task in parts:
        for ending in (*names, "times.json"):
            path = place_of(out, plan, task, ending)
            with storage_errors(path):
                path.unlink(missing_ok=True)
