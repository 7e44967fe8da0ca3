"""Shards of `synth generate`: what their items are, and the archive that each leaves.

A round of drawing is a plan of its own. Its items are the records that are drawn in it; the file of a shard says of
each whether it is accepted, and the archive beside it, a zip without compression, has the lines of all its drawings
(`lines.jsonl`) with their files, in the order in which one process writes them.
"""

from __future__ import annotations

import contextlib
import hashlib
import zipfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import msgspec

from flawscope.datasets.defects.drawn_set import StoredFile
from flawscope.errors import DataError
from flawscope.open_files import open_regular
from flawscope.runtime.scale.plan import Plan
from flawscope.runtime.scale.plan_items import read_decoded
from flawscope.runtime.scale.shards import BAD_ZIP, place_of
from flawscope.runtime.scale.task import Task
from flawscope.runtime.synthesis.generated_set import GeneratedImage
from flawscope.runtime.synthesis.set_lines import Files
from flawscope.runtime.synthesis.sites import Site
from flawscope.text import NOT_JSON, encode_json

ARCHIVE = "zip"
_LINES = "lines.jsonl"
_KINDS = ("image", "mask", "box_mask")


class RecordItem(msgspec.Struct, frozen=True, omit_defaults=True):
    """A record that is drawn: its number, and the fields of its site; paths are absolute."""

    number: int
    category: str
    defect: str
    good: str
    place: str
    mask: str
    box: str
    text: str | None = None
    is_fitted: bool = False

    @staticmethod
    def of(number: int, site: Site) -> RecordItem:
        """Return a record as an item."""
        good, mask = str(site.good.absolute()), str(site.mask.absolute())
        return RecordItem(
            number, site.category, site.defect, good, site.place, mask, site.box, site.text, site.is_fitted
        )

    @property
    def site(self) -> Site:
        """Where it is drawn."""
        return Site(
            self.category,
            self.defect,
            Path(self.good),
            self.place,
            Path(self.mask),
            self.box,
            self.text,
            self.is_fitted,
        )


class Judged(msgspec.Struct, frozen=True):
    """A line of the file of a shard.

    Attributes:
        number: Number of the record.
        accepted: Whether a drawing of it was accepted in this round; None where every worker died of it.
        fault: Why there is no drawing; empty where there is one.
    """

    number: int
    accepted: bool | None
    fault: str = ""


class Cost(msgspec.Struct, frozen=True):
    """What a shard took: seconds of drawing, and the largest resident memory of its process in KiB."""

    seconds: float
    peak_kib: int | None


def read_records(folder: Path, plan: Plan, task: Task) -> list[RecordItem]:
    """Return the records of a task; raises DataError if they cannot be read."""
    return read_decoded(folder, plan, task, partial(msgspec.json.decode, type=RecordItem))


class ArchiveWriter:
    """Writes the archive of a task into an open file; lines come last, as they are known one by one."""

    def __init__(self, file: BinaryIO) -> None:
        self._zip = zipfile.ZipFile(file, "w", zipfile.ZIP_STORED)
        self._lines: list[bytes] = []

    def add(self, line: GeneratedImage, files: Files) -> None:
        """Add a drawing: its line, whose files have no names yet, and those files."""
        number = len(self._lines)
        for kind, data in zip(_KINDS, files, strict=True):
            self._put(f"{number:06d}.{kind}.png", data)
        self._lines.append(encode_json(line))

    def finish(self, cost: Cost) -> None:
        """Write the lines and the end of the archive."""
        self._put(_LINES, b"".join(line + b"\n" for line in self._lines))
        # The comment is no member: what is in the archive is the same whoever made it, whenever.
        self._zip.comment = encode_json(cost)
        self._zip.close()

    def _put(self, name: str, data: bytes) -> None:
        self._zip.writestr(zipfile.ZipInfo(name), data)  # with the date of 1980


class ArchiveReader:
    """Reads the archive of a task. Use it in `with`.

    Raises:
        DataError: If it is gone, or is no such archive.
    """

    def __init__(self, folder: Path, plan: Plan, task: Task) -> None:
        self._path = place_of(folder, plan, task, ARCHIVE)
        with contextlib.ExitStack() as stack, self._readable():
            file = stack.enter_context(open_regular(self._path))
            self._zip = stack.enter_context(zipfile.ZipFile(file))
            self.cost = msgspec.json.decode(self._zip.comment, type=Cost)
            self._stack = stack.pop_all()

    def __enter__(self) -> ArchiveReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def drawings(self) -> Iterator[tuple[GeneratedImage, Files]]:
        """Yield the line of each drawing with its files, whose hashes are compared with the line's."""
        with self._readable():
            lines = self._zip.read(_LINES).splitlines()
        for number, text in enumerate(lines):
            with self._readable():
                line = msgspec.json.decode(text, type=GeneratedImage)
                files = Files(*(self._zip.read(f"{number:06d}.{kind}.png") for kind in _KINDS))
            for stored, data in zip((line.image, line.mask, line.box_mask), files, strict=True):
                self._check(stored, data)
            yield line, files

    def _check(self, stored: StoredFile | None, data: bytes) -> None:
        if stored is None or hashlib.sha256(data).hexdigest() != stored.sha256:
            raise DataError(f"{self._path}: expected the files that were drawn, got other content. {_AGAIN}")

    @contextlib.contextmanager
    def _readable(self) -> Iterator[None]:
        try:
            yield
        except (OSError, *BAD_ZIP, *NOT_JSON) as err:
            raise DataError(f"{self._path}: expected the archive of a shard, got: {err}. {_AGAIN}") from err


_AGAIN = "Remove the file and run the command again with --resume."
