"""What each run over a plan leaves of itself, `runs/TIME-NUMBER.json`: the report sums what all of them took and met.

Jobs of an array, and runs that go on after one that was killed, know nothing of each other. So each writes a file of
its own: at its start, at every death of a worker, with the shards as they are done, and at its end. What a run that was
killed had met is in it, up to a second or a shard before its end.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime, timezone
from pathlib import Path

import msgspec

from flawscope.errors import FlawscopeError
from flawscope.files import storage_errors
from flawscope.open_files import RECORD_BYTES, list_folder, read_regular
from flawscope.runtime.scale.plan import RUNS, Plan, check_still_there
from flawscope.runtime.scale.shards import durable_file
from flawscope.runtime.scale.task import Died
from flawscope.scratch import is_scratch, remove_leftovers
from flawscope.text import NOT_JSON, encode_json

_log = logging.getLogger(__name__)
_EVERY_S = 1.0
"""Shards that are done are noted at most this often; deaths at once."""


class WorkerDeath(msgspec.Struct, frozen=True):
    """A worker that died: its shard and images (lines of `items.jsonl`, from 0, `first <= n < stop`), and how."""

    shard: int
    first: int
    stop: int
    reason: str

    @staticmethod
    def of(died: Died) -> WorkerDeath:
        """Return the death as a record has it."""
        return WorkerDeath(died.task.shard, died.task.first, died.task.stop, died.reason)


class RunRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A run over a plan, or over a part of it, so far.

    Attributes:
        plan: Digest of the plan.
        began: UTC time, ISO 8601.
        seconds: Time since then.
        on: Where the work was placed.
        workers: Names of the workers.
        shards: Shards that it did.
        items: Items that it did.
        deaths: Workers that died; each shard was tried again, or cut until the item was found.
        given_up: Numbers of the items that killed every worker.
        ended: `done`, or the error that ended it; `""` while it is at work, and where it was killed.
        command: The command line; empty from Python.
    """

    plan: str
    began: str
    seconds: float = 0.0
    on: str
    workers: list[str] = []
    shards: int = 0
    items: int = 0
    deaths: list[WorkerDeath] = []
    given_up: list[int] = []
    ended: str = ""
    command: str = ""

    @property
    def span(self) -> tuple[float, float]:
        """Beginning and end, in seconds since 1970."""
        began = datetime.fromisoformat(self.began).timestamp()
        return began, began + self.seconds

    def __post_init__(self) -> None:
        """Refuse a time that is none."""
        datetime.fromisoformat(self.began)


class Recorder:
    """Writes the record of a run while it is at work.

    Args:
        out: Folder of the plan.
        plan: The plan.
        on: Where the work is placed.
        command: The command line.
    """

    def __init__(self, out: Path, plan: Plan, on: str, command: str) -> None:
        now = datetime.now(timezone.utc)
        self._out, self._plan = out, plan
        self._path = out / RUNS / f"{now:%Y%m%dT%H%M%S}-{secrets.token_hex(4)}.json"
        self._record = RunRecord(plan=plan.digest, began=now.isoformat(timespec="milliseconds"), on=on, command=command)
        self._began, self._written = time.perf_counter(), 0.0

    def note(self, known: Callable[[], RunRecord], *, at_once: bool = False) -> None:
        """Write what is known so far.

        Args:
            known: Makes a record of it, from the one before.
            at_once: Whether it must be on the disk now; else a record that was just written is enough.

        Raises:
            DataError: If another plan lies in the folder by now.
            StorageError: If it cannot be written.
        """
        now = time.perf_counter()
        if not at_once and now - self._written < _EVERY_S:
            return
        self._record = msgspec.structs.replace(known(), seconds=now - self._began)
        check_still_there(self._out, self._plan)
        with storage_errors(self._path):
            self._path.parent.mkdir(exist_ok=True)
            if not self._written:
                remove_leftovers(self._path.parent)
        with durable_file(self._path) as file:
            file.write(msgspec.json.format(encode_json(self._record), indent=1) + b"\n")
        self._written = time.perf_counter()

    @property
    def record(self) -> RunRecord:
        """What was written last."""
        return self._record

    @contextlib.contextmanager
    def running(self, known: Callable[[], RunRecord]) -> Iterator[None]:
        """Write the record when the block begins, and when it ends, however it does.

        Raises:
            DataError: As `note`.
            StorageError: As `note`.
        """
        self.note(known, at_once=True)
        try:
            yield
        except BaseException as err:
            ended = str(err) if isinstance(err, FlawscopeError) else type(err).__name__
            # What ended the run is said, rather than that this could not be written, too.
            with contextlib.suppress(FlawscopeError):
                self.note(lambda: msgspec.structs.replace(known(), ended=ended), at_once=True)
            raise
        self.note(lambda: msgspec.structs.replace(known(), ended="done"), at_once=True)


def read_records(out: Path, plan: Plan) -> list[RunRecord]:
    """Return the records of all runs over a plan, in the order in which they began.

    One that cannot be read, as a power cut may leave it, is told by a warning: results do not depend on it.

    Raises:
        DataError: If the folder of the records cannot be listed.
    """
    records, folder = list[RunRecord](), out / RUNS
    for path in list_folder(folder) if folder.is_dir() else []:
        if is_scratch(path.name) or path.suffix != ".json":
            continue
        try:
            record = msgspec.json.decode(read_regular(path, RECORD_BYTES), type=RunRecord)
        except (OSError, *NOT_JSON) as err:
            reason = (err.strerror or str(err)) if isinstance(err, OSError) else str(err)
            _log.warning(
                "%s: expected the record of a run, got: %s. The report lacks the time, workers and deaths of that run. "
                "Remove it, or put it back.",
                path,
                reason,
            )
            continue
        # What a run before left behind in a folder that was replaced is not of this one.
        if record.plan == plan.digest:
            records.append(record)
    return sorted(records, key=lambda record: record.span)


def busy_seconds(records: Iterable[RunRecord]) -> float:
    """Return the seconds in which at least one run was at work, by the clocks of their machines."""
    total, reached = 0.0, 0.0
    for began, stop in sorted(record.span for record in records):
        total += max(0.0, stop - max(began, reached))
        reached = max(reached, stop)
    return total
