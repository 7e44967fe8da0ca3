"""Deleting stored images when the disk fills: accepts first, then what was reviewed, and last what nobody has seen."""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import NamedTuple, Protocol

from flawscope.open_files import list_folder
from flawscope.runtime.line.gallery.paths import IMAGES, LARGEST_SEQ, is_day, seq_of
from flawscope.runtime.line.journal.reviews import PartFacts

BATCH = 200
"""Most parts whose images are deleted at once, with one event."""

_SPAN = 100_000
"""Numbers that a batch spans at most: the journal is asked for all parts in between."""
_MOST_STRAYS = 100
"""Most files that are told; who has put more there knows by then."""


class KnowsParts(Protocol):
    """What is asked of the journal."""

    def facts(self, first: int, last: int) -> dict[int, PartFacts]:
        """Return number -> verdict, and whether it was reviewed, of the parts on record in a range."""


class Batch(NamedTuple):
    """Images that are deleted together.

    Attributes:
        kind: `accepts`, `reviewed`, or `unreviewed`; `sealed` where their rows are.
        parts: Numbers of their parts.
        files: The files, maps too.
    """

    kind: str
    parts: tuple[int, ...]
    files: tuple[Path, ...]


class Deleted(NamedTuple):
    """What came of a batch.

    Attributes:
        files: Files that are gone.
        bytes: Bytes that they had.
        problem: Why others are not; empty where all are.
    """

    files: int
    bytes: int
    problem: str


class Retention:
    """Finds and deletes stored images. For one thread.

    Args:
        state: State folder of the line.
        journal: Says what the parts of images are.
        min_days: Days for which images of rejects and faults stay that nobody has reviewed.
        utc_ns: Returns the time now, in UTC.
        stray: Told, once, of each file that has the name of an image and a number that no part can have; it stays.
    """

    def __init__(
        self,
        state: Path,
        journal: KnowsParts,
        min_days: float,
        utc_ns: Callable[[], int],
        stray: Callable[[Path], None] = lambda path: None,
    ) -> None:
        self._folder, self._journal, self._min_days, self._utc_ns = state / IMAGES, journal, min_days, utc_ns
        self._stray = stray
        self._strays: set[Path] = set()

    def candidates(self) -> Iterator[Batch]:
        """Yield what may be deleted, in the order in which it is: first all accepts, the oldest first, and so on.

        Raises:
            StorageError: If the journal cannot be read.
        DataError: If a folder cannot be listed.
        """
        for kind in ("accepts", "reviewed", "unreviewed"):
            for day in self._days():
                if kind != "unreviewed" or self._is_old(day):
                    yield from self._of_day(day, kind)

    def stored_bytes(self) -> int:
        """Return the bytes of all stored images."""
        return sum(_size(day / name) for day in self._days() for name in _names(day))

    def delete(self, batch: Batch) -> Deleted:
        """Delete the files of a batch, and the folders of days that are empty then."""
        files = freed = 0
        problem = ""
        for path in batch.files:
            size = _size(path)
            try:
                path.unlink()
            except FileNotFoundError:
                continue
            except OSError as err:
                problem = f"{path}: could not be deleted: {err.strerror}"
                continue
            files, freed = files + 1, freed + size
        for day in {path.parent for path in batch.files}:
            if day.name != self._today():
                with contextlib.suppress(OSError):  # not empty
                    day.rmdir()
        return Deleted(files, freed, problem)

    def _days(self) -> list[Path]:
        return [self._folder / name for name in sorted(_names(self._folder)) if is_day(name)]

    def _today(self) -> str:
        return self._time().strftime("%Y%m%d")

    def _time(self) -> datetime:
        return datetime.fromtimestamp(self._utc_ns() / 1e9, timezone.utc)

    def _is_old(self, day: Path) -> bool:
        try:
            # Its last image may be of the end of the day.
            end = datetime.strptime(day.name, "%Y%m%d").replace(tzinfo=timezone.utc) + timedelta(days=1)
        except ValueError:
            return False
        return self._time() - end >= timedelta(days=self._min_days)

    def _of_day(self, day: Path, kind: str) -> Iterator[Batch]:
        numbered = sorted((seq, name) for name in _names(day) if (seq := self._seq_of(day, name)) is not None)
        by_part = [
            (seq, [day / name for _, name in names])
            for seq, names in itertools.groupby(numbered, key=lambda entry: entry[0])
        ]
        for parts in _batches(by_part):
            facts = self._journal.facts(parts[0][0], parts[-1][0])
            chosen = [(seq, files) for seq, files in parts if _kind_of(facts.get(seq)) == kind]
            if chosen:
                files = tuple(file for _, of_part in chosen for file in of_part)
                yield Batch(kind, tuple(seq for seq, _ in chosen), files)

    def _seq_of(self, day: Path, name: str) -> int | None:
        seq = seq_of(name)
        if seq is None or seq <= LARGEST_SEQ:
            return seq
        path = day / name
        if path not in self._strays and len(self._strays) < _MOST_STRAYS:
            self._strays.add(path)
            self._stray(path)
        return None


def _batches(by_part: list[tuple[int, list[Path]]]) -> Iterator[list[tuple[int, list[Path]]]]:
    batch: list[tuple[int, list[Path]]] = []
    for part in by_part:
        if batch and (len(batch) >= BATCH or part[0] - batch[0][0] >= _SPAN):
            yield batch
            batch = []
        batch.append(part)
    if batch:
        yield batch


def words_of(batch: Batch) -> str:
    """Return what is deleted, as the journal has it: JSON with kind, files, and the numbers of the parts."""
    return json.dumps({"kind": batch.kind, "files": len(batch.files), "parts": ranges(batch.parts)})


def ranges(numbers: Sequence[int]) -> str:
    """Return ascending numbers as text: `3-5,9`."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1][1:] = [number]
        else:
            runs.append([number])
    return ",".join("-".join(map(str, run)) for run in runs)


def _kind_of(facts: PartFacts | None) -> str:
    # What has no record, or another journal's, nobody has reviewed.
    if facts is None:
        return "unreviewed"
    if facts.is_reviewed:
        return "reviewed"
    return "accepts" if facts.verdict == "accept" else "unreviewed"


def _names(folder: Path) -> list[str]:
    return [path.name for path in list_folder(folder)] if folder.is_dir() else []


def _size(path: Path) -> int:
    try:
        return path.lstat().st_size
    except OSError:
        return 0
