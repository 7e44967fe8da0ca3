"""The work of `synth dataset` in shards: images and masks are copied to where the plan says.

DIR.parts/              plan, items (what is copied where) and shards (what each copy has written)
DIR.parts/files/        the images and masks; in the end they become DIR, with its records
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import msgspec

from flawscope.files import storage_errors
from flawscope.runtime.scale.plan import Plan, check_still_there, known_plan
from flawscope.runtime.scale.plan_items import read_decoded
from flawscope.runtime.scale.shards import durable_file, read_results, remove_parts, whole, write_lines
from flawscope.runtime.scale.task import Done, Task, joined
from flawscope.runtime.scale.times import Stopwatch
from flawscope.runtime.scale.work import Account, Worker
from flawscope.runtime.synthesis.dataset_copies import DrawnCopy, RealCopy
from flawscope.stored_paths import path_from
from flawscope.text import encode_json

FILES = "files"
COUNTS = ("images", "fault")

Copy = DrawnCopy | RealCopy


class Copied(msgspec.Struct, frozen=True):
    """A line of the file of a shard.

    Attributes:
        files: Place of each file that was written -> its bytes.
        fault: Why nothing was written; empty where something was.
    """

    files: dict[str, int]
    fault: str = ""


class DatasetWork(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="dataset"):
    """The work of one dataset.

    Attributes:
        out: Folder of the plan, absolute.
        plan: Digest of the plan.
    """

    out: str
    plan: str

    def open(self) -> Worker:
        """See `Work.open`; raises DataError if another plan lies there."""
        return DatasetWorker(path_from(self.out), self._plan())

    @property
    def grain(self) -> int:
        """Images are copied one by one."""
        return 1

    def whole(self, task: Task) -> Done | None:
        """As `Work.whole`: the files that were written must be there, too."""
        out, plan = path_from(self.out), self._plan()
        if (done := whole(out, plan, task)) is None:
            return None
        for copied in read_copied(out, plan, task):
            for place, size in copied.files.items():
                try:
                    if (out / FILES / place).stat().st_size != size:
                        return None
                except OSError:
                    return None
        return done

    def give_up(self, task: Task, reason: str) -> Done:
        """Write the file of an image that kills whoever copies it; the run cannot be finished."""
        out, plan = path_from(self.out), self._plan()
        (copy,) = read_copies(out, plan, task)
        done = Done(task, {"images": 0, "fault": 1})
        fault = f"{copy.image}: every worker died of copying it: {reason}"
        write_lines(out, plan, done, [encode_json(Copied({}, fault))])
        return done

    def join(self, shard: Task, parts: Sequence[Done]) -> Done:
        """Write the file of a shard from those of its parts; see `Work.join`."""
        out, plan = path_from(self.out), self._plan()
        tasks, done = [part.task for part in parts], joined(shard, parts)
        lines = (encode_json(copied) for task in tasks for copied in read_copied(out, plan, task))
        write_lines(out, plan, done, lines)
        remove_parts(out, plan, tasks, ("jsonl",))
        return done

    def merge(self, shards: Sequence[Done], account: Account) -> None:
        """Nothing: the files are where they belong, see `flawscope.runtime.scale.dataset_run`."""

    def _plan(self) -> Plan:
        return known_plan(path_from(self.out), self.plan)


def read_copies(out: Path, plan: Plan, task: Task) -> list[Copy]:
    """Return what a task copies; raises DataError if it cannot be read."""
    return read_decoded(out, plan, task, partial(msgspec.json.decode, type=Copy))


def read_copied(out: Path, plan: Plan, task: Task) -> list[Copied]:
    """Return what a task has copied; raises DataError if its file is not whole."""
    return read_results(out, plan, task, Copied)


class DatasetWorker:
    """Copies the tasks of a plan.

    Args:
        out: Folder of the plan.
        plan: The plan.
    """

    def __init__(self, out: Path, plan: Plan) -> None:
        self._out, self._plan = out, plan

    def run(self, task: Task) -> Done:
        """As `Worker.run`: all files are on the disk before the line that says so."""
        began, watch = time.perf_counter(), Stopwatch()
        folder, lines = self._out / FILES, list[bytes]()
        check_still_there(self._out, self._plan)
        with storage_errors(folder):
            for copy in read_copies(self._out, self._plan, task):
                at = time.perf_counter()
                files = copy.read()
                for place, data in files.items():
                    _write(folder / place, data)
                lines.append(encode_json(Copied({place: len(data) for place, data in files.items()})))
                watch.add(copy.image_place, (time.perf_counter() - at) * 1000)
        done = Done(task, {"images": task.items, "fault": 0}, seconds=time.perf_counter() - began, took=watch.took())
        write_lines(self._out, self._plan, done, lines)
        return done

    def close(self) -> None:
        """Nothing is held."""


def _write(path: Path, data: bytes) -> None:
    """Write a file that is on the disk before it has its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with durable_file(path) as file:
        file.write(data)
