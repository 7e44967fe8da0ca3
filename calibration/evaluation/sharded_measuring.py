"""Measuring a bundle on many images in shards: workers score, and write maps into one file that the figures read.

    DIR/plan.json, items.jsonl, shards/     as of `score` in shards: what each worker found, a line an image
    DIR/maps.npy                            float32 [N, H, W], the map of each image; each worker writes its own rows

The figures themselves are computed once, at the end, from the same numbers as in one process. Maps are then read from
the file as they are needed, and the system keeps of them what the memory has room for.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np

from flawscope.arrays import Float32Array
from flawscope.bundle import PartShift, Thresholds
from flawscope.calibration.evaluation.bundle_scores import load_inspector, score_samples
from flawscope.calibration.evaluation.measurements import (
    Measured,
    Outcome,
    Row,
    ShardsMissing,
    assemble,
    map_size,
    read_masks,
    row_of,
)
from flawscope.datasets import Sample
from flawscope.errors import ArgumentError, BundleError, DataError
from flawscope.files import check_replaceable, storage_errors
from flawscope.progress import Progress, no_progress
from flawscope.runtime.backends.table import backend_row
from flawscope.runtime.inspector import Inspector
from flawscope.runtime.results import Box, ZoneScore
from flawscope.runtime.scale.executors import Placement, make_executor
from flawscope.runtime.scale.placement import threads_of_worker
from flawscope.runtime.scale.plan import (
    DEFAULT_SHARD,
    PLAN,
    Plan,
    check_overwrite,
    check_same,
    check_still_there,
    known_plan,
    read_plan,
    write_plan,
)
from flawscope.runtime.scale.plan_items import read_decoded, write_item_lines
from flawscope.runtime.scale.run_shards import run_shards
from flawscope.runtime.scale.score_work import fingerprint
from flawscope.runtime.scale.shards import read_results, remove_parts, whole, write_lines
from flawscope.runtime.scale.task import Done, Task, joined
from flawscope.runtime.scale.times import Stopwatch
from flawscope.runtime.scale.work import Account, Worker, encode_work
from flawscope.stored_paths import path_from, stored_path
from flawscope.text import encode_json

MAPS = "maps.npy"
COUNTS = ("scored", "fault")


class SampleItem(msgspec.Struct, frozen=True, omit_defaults=True):
    """An image that is scored: its absolute path, and its category in a dataset of all of them."""

    path: str
    category: str = ""


class Scored(msgspec.Struct, frozen=True, omit_defaults=True):
    """A line of the file of a shard: what the runtime gave for an image; fields as those of `Outcome` and `Row`."""

    decision: Literal["accept", "reject", "fault"]
    rank: float
    total_ms: float
    fault: str | None = None
    boxes: tuple[Box, ...] = ()
    notes: tuple[str, ...] = ()
    zones: tuple[ZoneScore, ...] = ()
    shift: PartShift | None = None

    @staticmethod
    def of(row: Row) -> Scored:
        """Return a row as it is written."""
        outcome = row.outcome
        return Scored(
            decision=outcome.decision,
            rank=row.rank,
            total_ms=outcome.total_ms,
            fault=outcome.fault,
            boxes=outcome.boxes,
            notes=outcome.notes,
            zones=outcome.zones,
            shift=row.shift,
        )

    @property
    def row(self) -> Row:
        """What was written as a row."""
        outcome = Outcome(self.decision, self.fault, self.boxes, self.total_ms, self.notes, self.zones)
        return Row(outcome, self.rank, self.shift)


class EvaluateWork(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="evaluate"):
    """The work of one measurement.

    Attributes:
        out: Folder of the plan, absolute.
        plan: Digest of the plan.
        bundle: Path of the bundle, absolute; empty where no worker is opened.
    """

    out: str
    plan: str
    bundle: str = ""

    def open(self) -> Worker:
        """Load the bundle, and compare it with the plan; see `Work.open`.

        Raises:
            BundleError: If another bundle lies there, or it decides in another way than planned.
            FlawscopeError: As `Inspector.load`.
        """
        plan = self._plan()
        asked, fixed = plan.asked, plan.fixed
        overlay = asked["threshold_overlay"]
        inspector = load_inspector(
            path_from(self.bundle),
            fixed["backend"],
            fixed["path"],
            asked["precision"],
            threshold_overlay=path_from(overlay) if overlay else None,
            use_overlay=asked["use_overlay"],
            product=asked["product"] or None,
            threads=fixed["threads"],
        )
        got = {"digest": inspector.manifest.digest, "thresholds": fingerprint(inspector.in_force)}
        for name, expected in (("digest", plan.bundle), ("thresholds", fixed["thresholds"])):
            if got[name] != expected:
                inspector.close()
                raise BundleError(
                    f"{self.bundle}: expected the {name} of the plan, {expected}, got {got[name]}: figures of one set "
                    "must come from the same. Put it back, or start again in another folder."
                )
        return EvaluateWorker(path_from(self.out), plan, inspector)

    @property
    def grain(self) -> int:
        """Images are scored one by one, as on the line."""
        return 1

    def whole(self, task: Task) -> Done | None:
        """As `Work.whole`; the rows of the maps were on the disk before the file said so."""
        return whole(path_from(self.out), self._plan(), task)

    def give_up(self, task: Task, reason: str) -> Done:
        """Write the line of an image that kills its scorer: a fault, as whatever has no trustworthy answer."""
        out, plan = path_from(self.out), self._plan()
        why = f"the scorer died of this image, each time that it was tried: {reason}"
        done = Done(task, {"scored": 0, "fault": 1})
        write_lines(out, plan, done, [encode_json(Scored(decision="fault", rank=0.0, total_ms=0.0, fault=why))])
        return done

    def join(self, shard: Task, parts: Sequence[Done]) -> Done:
        """Write the file of a shard from those of its parts; see `Work.join`."""
        out, plan = path_from(self.out), self._plan()
        tasks, done = [part.task for part in parts], joined(shard, parts)
        write_lines(out, plan, done, (encode_json(one) for task in tasks for one in read_scored(out, plan, task)))
        remove_parts(out, plan, tasks, ("jsonl",))
        return done

    def merge(self, shards: Sequence[Done], account: Account) -> None:
        """Nothing: `measure_in_shards` reads the shards."""

    def _plan(self) -> Plan:
        return known_plan(path_from(self.out), self.plan)


def read_items(out: Path, plan: Plan, task: Task) -> list[SampleItem]:
    """Return the images of a task; raises DataError if they cannot be read."""
    return read_decoded(out, plan, task, partial(msgspec.json.decode, type=SampleItem))


def read_scored(out: Path, plan: Plan, task: Task) -> list[Scored]:
    """Return what was found of a task's images; raises DataError if its file is not whole."""
    return read_results(out, plan, task, Scored)


class EvaluateWorker:
    """Scores the tasks of a plan.

    Args:
        out: Folder of the plan.
        plan: The plan.
        inspector: The bundle, made ready; it is closed with the worker.
    """

    def __init__(self, out: Path, plan: Plan, inspector: Inspector) -> None:
        self._out, self._plan, self._inspector = out, plan, inspector

    def run(self, task: Task) -> Done:
        """As `Worker.run`: the maps are on the disk before the file that says that the task is done."""
        began, watch = time.perf_counter(), Stopwatch()
        by_product = self._plan.asked["by_product"]
        # The defect says nothing about scoring.
        items = read_items(self._out, self._plan, task)
        samples = [Sample(path_from(item.path), "test", "", category=item.category) for item in items]
        lines, faults = list[bytes](), 0
        results = score_samples(self._inspector, samples, "Scoring", no_progress, by_product=by_product)
        shape = (self._plan.items, *map_size(self._inspector.manifest))
        with _MapsWriter(self._out / MAPS, shape) as maps:
            # Behind the opening: maps of a run that has replaced this one are not written into.
            check_still_there(self._out, self._plan)
            for index, (sample, result) in enumerate(results, task.first):
                row, anomaly_map = row_of(self._inspector, result, by_product=by_product)
                maps.write(index, anomaly_map)
                faults += row.outcome.fault is not None
                lines.append(encode_json(Scored.of(row)))
                watch.add(str(sample.path), row.outcome.total_ms)
        counts = {"scored": task.items - faults, "fault": faults}
        done = Done(task, counts, seconds=time.perf_counter() - began, took=watch.took())
        write_lines(self._out, self._plan, done, lines)
        return done

    def close(self) -> None:
        """Close the bundle."""
        self._inspector.close()


def _open_maps(path: Path, shape: tuple[int, int, int]) -> np.memmap[Any, np.dtype[np.float32]]:
    """Return the file of maps, to be read; raises DataError if it is not what the plan made."""
    try:
        maps: np.memmap[Any, np.dtype[np.float32]] = np.lib.format.open_memmap(path, mode="r")
    except (OSError, ValueError, EOFError) as err:  # cut, or no array
        raise DataError(
            f"{path}: expected the maps of this run, got what cannot be read: {err}. Start again with --overwrite."
        ) from err
    if maps.shape != shape or maps.dtype != np.dtype(np.float32):
        raise DataError(
            f"{path}: expected the maps of this run, float32 {list(shape)}, got {maps.dtype} {list(maps.shape)}. Start "
            "again with --overwrite."
        )
    return maps


class _MapsWriter:
    """Writes rows of the file of maps; leaving it without an error, they are on the disk.

    By system calls and not by a memory map: where the disk is full, a map kills the process with SIGBUS, and its image
    would pass for one that kills its scorer.
    """

    def __init__(self, path: Path, shape: tuple[int, int, int]) -> None:
        self._path, self._of = path, shape

    def __enter__(self) -> _MapsWriter:
        maps = _open_maps(self._path, self._of)
        self._shape, self._first = maps.shape[1:], maps.offset
        with storage_errors(self._path):
            self._file = self._path.open("r+b", buffering=0)
        return self

    def write(self, index: int, anomaly_map: Float32Array | None) -> None:
        """Write a row; zeros where there is no map."""
        row = np.zeros(self._shape, np.float32)
        if anomaly_map is not None:
            row[...] = anomaly_map
        data, at = memoryview(row.tobytes()), self._first + index * row.nbytes
        with storage_errors(self._path):
            while data:
                written = os.pwrite(self._file.fileno(), data, at)
                data, at = data[written:], at + written

    def __exit__(self, kind: type[BaseException] | None, *more: object) -> None:
        with storage_errors(self._path), self._file:
            if kind is None:
                os.fsync(self._file.fileno())


@dataclass(frozen=True, kw_only=True)
class Sharding:
    """How a measurement is made in shards.

    Attributes:
        out: Folder of the plan, the shards and the maps.
        placement: Where, and by how many workers.
        shard_size: Images of a shard; None for 256.
        part: Which part of how many, from 0.
        is_resumed: Whether to go on with the plan that lies there.
        is_shared: Whether jobs share the plan: the first makes it, and the others take it.
        asked: What of the request bears on scores and decisions: see `asked_of`.
        overwrite: Whether an earlier run in shards may be replaced.
        command: The command line.
    """

    out: Path
    placement: Placement
    shard_size: int | None = None
    part: tuple[int, int] = (0, 1)
    is_resumed: bool = False
    is_shared: bool = False
    asked: dict[str, Any]
    overwrite: bool = False
    command: str = ""


def asked_of(
    precision: str, product: str | None, threshold_overlay: Path | None, *, by_product: bool, use_overlay: bool
) -> dict[str, Any]:
    """Return what a plan states of a request; arguments as `evaluate_bundle`. Empty texts stand for none."""
    return {
        "precision": precision,
        "product": product or "",
        "by_product": by_product,
        "threshold_overlay": "" if threshold_overlay is None else stored_path(threshold_overlay),
        "use_overlay": use_overlay,
    }


def check_out(sharding: Sharding) -> None:
    """Check, before a bundle is loaded, that a measurement can be made in its folder.

    Raises:
        ArgumentError: If something else lies there, or an earlier run that shall neither go on nor be replaced.
    """
    out, goes_on = sharding.out, sharding.is_resumed or sharding.is_shared
    check_overwrite(sharding.overwrite, goes_on=goes_on)
    if goes_on and (out / PLAN).is_file():
        return
    if not sharding.overwrite and (out / PLAN).is_file():
        raise ArgumentError(
            f"{out}: expected a new folder, got the run of an earlier plan. Go on with it by --resume, choose another "
            "name, or replace it with --overwrite."
        )
    check_replaceable(out, PLAN, overwrite=sharding.overwrite)
    # Made, and not started: it refuses a placement that cannot be before anything is written.
    make_executor(encode_work(EvaluateWork(out=stored_path(out), plan="")), sharding.placement)


def measure_in_shards(
    sharding: Sharding,
    inspector: Inspector,
    samples: Sequence[Sample],
    progress: Progress,
    products: Mapping[str, Thresholds] | None = None,
) -> Measured:
    """Score images in shards, and return what `measure_images` returns; maps lie in a file.

    Args:
        sharding: How.
        inspector: The bundle, made ready: its backend and path are those of all workers.
        samples: The images.
        progress: Called with the progress.
        products: As in `measure_images`.

    Raises:
        ArgumentError: If another plan lies in the folder, or one that shall not go on.
        ShardsMissing: If shards of other jobs are not there yet.
        FlawscopeError: As `run_shards`.
    """
    check_out(sharding)
    truth = read_masks(samples, inspector.manifest)
    out = sharding.out
    plan = _planned(sharding, inspector, samples)
    work = EvaluateWork(out=stored_path(out), plan=plan.digest, bundle=stored_path(inspector.bundle.path))
    ran = run_shards(
        out,
        plan,
        work,
        sharding.placement,
        part=sharding.part,
        show=lambda done, total: progress("Scoring", done, total),
        command=sharding.command,
    )
    if ran.missing:
        raise ShardsMissing(
            f"{out}: expected {plan.shards} whole shards for the figures, got {plan.shards - ran.missing}: the others "
            "are of other jobs. When these are done, run the command without --shard, with --resume."
        )
    scored = (one for task in plan.tasks() for one in read_scored(out, plan, task))
    rows = [_as_named(one, sample.path).row for one, sample in zip(scored, samples, strict=True)]
    maps = _open_maps(out / MAPS, (plan.items, *map_size(inspector.manifest)))
    return assemble(inspector, samples, truth, rows, maps, products)


def _as_named(scored: Scored, path: Path) -> Scored:
    """Return what was found of an image, the path in its fault as it was named: workers have absolute ones."""
    if scored.fault is None:
        return scored
    return msgspec.structs.replace(scored, fault=scored.fault.replace(str(path.absolute()), str(path)))


def _planned(sharding: Sharding, inspector: Inspector, samples: Sequence[Sample]) -> Plan:
    """Return the plan: the one that lies there, if it is the same and may go on, or a new one."""
    out = sharding.out
    shape = (len(samples), *map_size(inspector.manifest))

    def plan_of(where: Path | None, size: int = sharding.shard_size or DEFAULT_SHARD) -> Plan:
        items = (encode_json(SampleItem(stored_path(sample.path), sample.category)) for sample in samples)
        written = write_item_lines(where, items, size)
        if where is not None:
            # Sparse: it takes no room before it is written.
            np.lib.format.open_memmap(where / MAPS, mode="w+", dtype=np.float32, shape=shape).flush()
        return Plan(
            kind="evaluate",
            bundle=inspector.manifest.digest,
            asked=sharding.asked,
            fixed={
                "backend": inspector.backend,
                "path": inspector.path,
                "thresholds": fingerprint(inspector.in_force),
                "threads": _threads(sharding.placement, inspector.backend),
            },
            items=written.items,
            items_sha256=written.sha256,
            shard_size=size,
        )

    if sharding.overwrite or not (out / PLAN).is_file():
        try:
            return write_plan(out, plan_of, overwrite=sharding.overwrite)
        except ArgumentError:
            # Of jobs that begin together one was first.
            if not (sharding.is_shared and (out / PLAN).is_file()):
                raise
    plan = read_plan(out)
    wanted = plan_of(None, sharding.shard_size or plan.shard_size)
    check_same(out, plan, wanted)
    for name in ("backend", "path", "thresholds"):
        if plan.fixed[name] != wanted.fixed[name]:
            raise ArgumentError(
                f"{out}: expected the {name} of its plan, {plan.fixed[name]}, got {wanted.fixed[name]}. Name it, or "
                "choose another folder."
            )
    return plan


def _threads(placement: Placement, backend: str) -> int | None:
    """Return the threads of a worker; None where the backend has no choice."""
    if "threads" not in backend_row(backend).cores:
        return None
    return threads_of_worker(placement)
