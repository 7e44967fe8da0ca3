"""The work of `score` in shards: each worker opens the bundle once, and writes the lines of `score --out`."""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from flawscope.bundle import InForce
from flawscope.errors import BundleError, DataError, FlawscopeError
from flawscope.imaging.png import encode_png
from flawscope.open_files import open_regular
from flawscope.runtime.inspector import Inspector
from flawscope.runtime.results import Result
from flawscope.runtime.scale.inputs import Item, Reader
from flawscope.runtime.scale.inputs.results import Scored, results_of
from flawscope.runtime.scale.plan import Plan, known_plan
from flawscope.runtime.scale.plan_items import read_items
from flawscope.runtime.scale.shards import (
    BAD_ZIP,
    place_of,
    read_blocks,
    remove_parts,
    split_lines,
    task_file,
    whole,
    write_lines,
)
from flawscope.runtime.scale.task import Done, Task, joined
from flawscope.runtime.scale.times import Stopwatch
from flawscope.runtime.scale.work import Account, Worker
from flawscope.runtime.score_files import result_line
from flawscope.runtime.score_summary import DECISIONS, NEAR
from flawscope.stored_paths import path_from
from flawscope.text import encode_json, storable

MAPS = "maps.zip"
"""Ending of the archive of a shard's heat maps."""
_AHEAD = 2
"""Batches, and images of them, that are read while others are inspected."""
_ZIP_TIME = (1980, 1, 1, 0, 0, 0)
"""Time of every map in an archive, the earliest that a zip file can say: the same images give the same archive."""


def fingerprint(in_force: InForce) -> str:
    """Return the SHA-256 of what a bundle decides by: workers compare it with that of the plan."""
    return hashlib.sha256(encode_json([in_force.thresholds, in_force.min_area_px])).hexdigest()


class ScoreWork(msgspec.Struct, frozen=True, tag_field="kind", tag="score"):
    """The work of one run.

    Attributes:
        out: Folder of the plan, absolute.
        plan: Digest of the plan.
        bundle: Path of the bundle, absolute; empty where nothing is scored any more.
    """

    out: str
    plan: str
    bundle: str = ""

    def open(self) -> Worker:
        """Load the bundle, and compare what it is with the plan; see `Work.open`.

        Raises:
            DataError: If another plan lies in the folder.
            BundleError: If another bundle lies there, or it decides or computes in another way than planned.
            FlawscopeError: As `Inspector.load`.
        """
        plan = self._plan()
        _go_to(plan.fixed["folder"])
        inspector = Inspector.load(path_from(self.bundle), **_loading(plan))
        try:
            _check_planned(inspector, plan)
        except BaseException:
            inspector.close()
            raise
        # Of a memory bank it is a second copy, in each of many processes; a device that is opened again reads anew.
        inspector.bundle.forget()
        return ScoreWorker(path_from(self.out), plan, inspector)

    @property
    def grain(self) -> int:
        """Images of a batch."""
        return int(self._plan().asked["batch"])

    def whole(self, task: Task) -> Done | None:
        """As `Work.whole`."""
        plan = self._plan()
        return whole(path_from(self.out), plan, task, MAPS if plan.asked["maps"] else None)

    def give_up(self, task: Task, reason: str) -> Done:
        """Write the line of an image that kills its scorer: a fault, as whatever has no trustworthy answer."""
        out, plan = path_from(self.out), self._plan()
        (item,) = read_items(out, plan, task)
        result = Result(
            item.name,
            "fault",
            reason=f"the scorer died of this image, each time that it was tried: {reason}. Look at it apart from the "
            "others.",
        )
        done = Done(task, dict.fromkeys(DECISIONS, 0) | {"fault": 1}, more=dict.fromkeys(_MORE, 0))
        with _archive(out, plan, task) as archive:
            pass
        write_lines(out, plan, done, [result_line(result)], archive_bytes=archive.size)
        return done

    def join(self, shard: Task, parts: Sequence[Done]) -> Done:
        """Write a shard from its parts; see `Work.join`."""
        out, plan = path_from(self.out), self._plan()
        tasks, done = [part.task for part in parts], joined(shard, parts)
        with _archive(out, plan, shard) as archive:
            for task in tasks if archive.file is not None else []:
                for name, data in _maps(place_of(out, plan, task, MAPS)):
                    archive.add(name, data)
        lines = (line for task in tasks for line in split_lines(read_blocks(out, plan, task)))
        write_lines(out, plan, done, lines, archive_bytes=archive.size)
        remove_parts(out, plan, tasks, ("jsonl", MAPS))
        return done

    def merge(self, shards: Sequence[Done], account: Account) -> None:
        """As `Work.merge`."""
        from flawscope.runtime.scale.score_report import merge_shards

        merge_shards(path_from(self.out), self._plan(), shards, account)

    def _plan(self) -> Plan:
        return known_plan(path_from(self.out), self.plan)


_MORE = ("near_threshold", "noted", "maps_missing")


def _loading(plan: Plan) -> dict[str, Any]:
    """Return the arguments of `Inspector.load` that a plan fixes."""
    asked, fixed = plan.asked, plan.fixed
    return {
        "backend": fixed["backend"],
        "path": fixed["path"],
        "precision": asked["precision"],
        "strict": asked["strict"],
        "product": asked["product"],
        "threads": fixed["threads"],
        "streams": asked["streams"],
        "threshold_overlay": None if asked["threshold_overlay"] is None else path_from(asked["threshold_overlay"]),
        "use_overlay": asked["use_overlay"],
    }


def _go_to(folder: str) -> None:
    """Work in the folder that the plan was made in: images may be named from there on."""
    try:
        if Path.cwd() != path_from(folder):
            os.chdir(path_from(folder))
    except OSError as err:
        raise DataError(
            f"{path_from(folder)}: expected the folder in which the plan was made, as images are named from there, "
            f"got: {err.strerror}. Mount it on every machine, or name images by absolute paths and make the plan in /."
        ) from err


def _check_planned(inspector: Inspector, plan: Plan) -> None:
    """Raise BundleError unless an inspector is what the plan says."""
    got = {
        "digest": inspector.manifest.digest,
        "backend": inspector.backend,
        "path": inspector.path if plan.fixed["path"] != "auto" else "auto",
        "thresholds": fingerprint(inspector.in_force),
    }
    expected = {"digest": plan.bundle, **{name: plan.fixed[name] for name in ("backend", "path", "thresholds")}}
    for name, value in expected.items():
        if got[name] != value:
            raise BundleError(
                f"{inspector.bundle.path}: expected the {name} of the plan, {value}, got {got[name]}: results of one "
                "run must come from the same. Put it back, or start again in another folder."
            )


class _Archive:
    """The archive of a task while it is written; without maps, none.

    Attributes:
        file: The zip file; None without maps.
        size: Its bytes, once it has its name; None without maps.
    """

    def __init__(self, file: zipfile.ZipFile | None) -> None:
        self.file = file
        self.size: int | None = None

    def add(self, name: str, data: bytes) -> None:
        """Add a file; PNG is compressed already."""
        if self.file is not None:
            entry = zipfile.ZipInfo(storable(name), _ZIP_TIME)
            entry.external_attr = 0o644 << 16
            self.file.writestr(entry, data)


def _maps(path: Path) -> Iterator[tuple[str, bytes]]:
    """Yield the files of the archive of a part; raises DataError where it is gone or damaged."""
    try:
        with open_regular(path) as raw, zipfile.ZipFile(raw) as part:
            for name in part.namelist():
                yield name, part.read(name)
    except (OSError, *BAD_ZIP) as err:
        raise DataError(
            f"{path}: expected the archive of maps of a part of a shard, got: {err}. Remove it with the .jsonl file "
            "beside it, and run the command again with --resume."
        ) from err


@contextlib.contextmanager
def _archive(out: Path, plan: Plan, task: Task) -> Iterator[_Archive]:
    if not plan.asked["maps"]:
        yield _Archive(None)
        return
    raw: BinaryIO
    with task_file(out, plan, task, MAPS) as raw:
        with zipfile.ZipFile(raw, "w") as file:
            archive = _Archive(file)
            yield archive
        archive.size = raw.tell()


class ScoreWorker:
    """Scores the tasks of a plan.

    Args:
        out: Folder of the plan.
        plan: The plan.
        inspector: The bundle, made ready; it is closed with the worker.

    Attributes:
        out: As the argument.
        plan: As the argument.
    """

    def __init__(self, out: Path, plan: Plan, inspector: Inspector) -> None:
        self.out, self.plan, self._inspector = out, plan, inspector
        self._reader = Reader()

    def run(self, task: Task) -> Done:
        """As `Worker.run`."""
        began, watch = time.perf_counter(), Stopwatch()
        counts, more = Counter(dict.fromkeys(DECISIONS, 0)), Counter(dict.fromkeys(_MORE, 0))
        lines: list[bytes] = []
        with _archive(self.out, self.plan, task) as archive:
            for item, source, result in self._results(read_items(self.out, self.plan, task)):
                counts[result.decision] += 1
                more["near_threshold"] += result.ratio is not None and abs(result.ratio - 1.0) <= NEAR
                more["noted"] += bool(result.notes)
                if (took_ms := result.timings_ms.get("total")) is not None:
                    watch.add(result.image, took_ms)
                lines.append(result_line(result))
                if archive.file is not None and source is not None and result.has_map:
                    try:
                        archive.add(f"{item.place}.png", encode_png(result.draw(source)))
                    except FlawscopeError:
                        # Decided on, but changed or gone since: the report says how many.
                        more["maps_missing"] += 1
        done = Done(task, dict(counts), time.perf_counter() - began, dict(more), watch.took())
        write_lines(self.out, self.plan, done, lines, archive_bytes=archive.size)
        return done

    def _results(self, items: list[Item]) -> Iterator[Scored]:
        batch = self.plan.asked["batch"]
        stream = partial(self._inspector.stream, batch=batch, ahead=_AHEAD)
        return results_of(items, self._reader.read, stream, _AHEAD * batch)

    def close(self) -> None:
        """Close bundle and inputs."""
        self._reader.close()
        self._inspector.close()
