"""The work of `synth generate` in shards: each worker opens the bundle once, and draws records of a round."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from flawscope.errors import BundleError, DataError
from flawscope.resident_memory import peak_kib
from flawscope.runtime.backends.cores import OWN_CHOICE, Cores
from flawscope.runtime.backends.table import backend_row
from flawscope.runtime.scale.generate_shards import (
    ARCHIVE,
    ArchiveReader,
    ArchiveWriter,
    Cost,
    Judged,
    read_records,
)
from flawscope.runtime.scale.plan import PLAN, Plan, known_plan
from flawscope.runtime.scale.plan_forms import GenerateFixed
from flawscope.runtime.scale.shards import (
    read_results,
    remove_parts,
    task_file,
    whole,
    write_lines,
)
from flawscope.runtime.scale.task import Done, Task, joined
from flawscope.runtime.scale.times import Stopwatch
from flawscope.runtime.scale.work import Account, Worker
from flawscope.runtime.synthesis.draw_options import GenerateSettings
from flawscope.runtime.synthesis.masked_lpips import MaskedLpips
from flawscope.runtime.synthesis.record_drawing import RecordDrawer, SiteChecks
from flawscope.runtime.synthesis.set_lines import LineMaker
from flawscope.runtime.synthesis.synthesizer import Synthesizer
from flawscope.stored_paths import path_from
from flawscope.text import encode_json

COUNTS = ("accepted", "rejected", "fault")
RESIZED = "resized"

_Kind = TypeVar("_Kind", bound=msgspec.Struct)


def fixed_of(plan: Plan) -> GenerateFixed:
    """Return what a plan fixes; raises DataError for one of another kind or version."""
    return _converted(plan.fixed, GenerateFixed, "fixed")


def settings_of(plan: Plan) -> GenerateSettings:
    """Return the settings that a plan asks for; errors as `fixed_of`."""
    return _converted(plan.asked.get("settings"), GenerateSettings, "settings")


def _converted(plain: Any, kind: type[_Kind], name: str) -> _Kind:
    try:
        return msgspec.convert(plain, kind)
    except msgspec.ValidationError as err:
        raise DataError(
            f"{PLAN}: expected the {name} of synth generate in this version of flawscope, got: {err}. Use the version "
            "that made it, put it back, or start again with --overwrite."
        ) from err


class GenerateWork(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="generate"):
    """The work of one round.

    Attributes:
        out: Folder of the round's plan, absolute.
        plan: Digest of the plan.
        bundle: Path of the bundle, absolute; empty where no worker is opened.
        lpips: Weights that candidates are compared with, two files, absolute; None without.
    """

    out: str
    plan: str
    bundle: str = ""
    lpips: tuple[str, str] | None = None

    def open(self) -> Worker:
        """Load the bundle, and compare it with the plan; see `Work.open`.

        Raises:
            DataError: If another plan, or other weights, lie there.
            BundleError: If another bundle lies there.
            FlawscopeError: As `Synthesizer.load`.
        """
        plan = self._plan()
        fixed = fixed_of(plan)
        distance = None if self.lpips is None else MaskedLpips.load(*map(path_from, self.lpips))
        if (files := {} if distance is None else dict(distance.files)) != plan.asked["lpips"]:
            raise DataError(
                f"{self.lpips}: expected the weights of the plan, {plan.asked['lpips']}, got {files}. Put them back, "
                "or start again with --overwrite."
            )
        cores = Cores(threads=fixed.threads) if "threads" in backend_row(fixed.backend).cores else OWN_CHOICE
        synthesizer = Synthesizer.load(path_from(self.bundle), fixed.backend, plan.asked["precision"], cores=cores)
        if synthesizer.manifest.digest != plan.bundle:
            got = synthesizer.manifest.digest
            synthesizer.close()
            raise BundleError(
                f"{self.bundle}: expected the bundle of the plan ({plan.bundle[:12]}…), got another one "
                f"({got[:12]}…): images of one set must come from the same. Put it back, or start again with "
                "--overwrite."
            )
        return GenerateWorker(path_from(self.out), plan, synthesizer, distance)

    @property
    def grain(self) -> int:
        """Records of a batch."""
        return fixed_of(self._plan()).batch

    def whole(self, task: Task) -> Done | None:
        """As `Work.whole`."""
        return whole(path_from(self.out), self._plan(), task, ARCHIVE)

    def give_up(self, task: Task, reason: str) -> Done:
        """Write the file of a record that kills whoever draws it, without a drawing; the run cannot be merged."""
        out, plan = path_from(self.out), self._plan()
        (record,) = read_records(out, plan, task)
        with task_file(out, plan, task, ARCHIVE) as file:
            ArchiveWriter(file).finish(Cost(0.0, None))
            size = file.tell()
        why = f"{record.place}: every worker died of drawing on it: {reason}"
        done = _done(task, Counter({"fault": 1}), 0)
        lines = [encode_json(Judged(record.number, None, why))]
        write_lines(out, plan, done, lines, archive_bytes=size)
        return done

    def join(self, shard: Task, parts: Sequence[Done]) -> Done:
        """Write a shard from its parts; see `Work.join`."""
        out, plan = path_from(self.out), self._plan()
        tasks = [part.task for part in parts]
        seconds, peaks = 0.0, [0]
        with task_file(out, plan, shard, ARCHIVE) as file:
            archive = ArchiveWriter(file)
            for task in tasks:
                with ArchiveReader(out, plan, task) as part:
                    seconds, peaks = seconds + part.cost.seconds, [*peaks, part.cost.peak_kib or 0]
                    for line, files in part.drawings():
                        archive.add(line, files)
            archive.finish(Cost(seconds, max(peaks) or None))
            size = file.tell()
        done = joined(shard, parts)
        lines = [encode_json(judged) for task in tasks for judged in read_judged(out, plan, task)]
        write_lines(out, plan, done, lines, archive_bytes=size)
        remove_parts(out, plan, tasks, ("jsonl", ARCHIVE))
        return done

    def merge(self, shards: Sequence[Done], account: Account) -> None:
        """Nothing: shards of several rounds become one set, see `flawscope.runtime.scale.generate_run`."""

    def _plan(self) -> Plan:
        return known_plan(path_from(self.out), self.plan)


def read_judged(out: Path, plan: Plan, task: Task) -> list[Judged]:
    """Return what became of each record of a task; raises DataError if its file is not whole."""
    return read_results(out, plan, task, Judged)


def _done(task: Task, counts: Counter[str], resized: int, **more: Any) -> Done:
    return Done(task, {name: counts[name] for name in COUNTS}, more={RESIZED: resized}, **more)


class GenerateWorker:
    """Draws the tasks of a plan.

    Args:
        out: Folder of the plan.
        plan: The plan.
        synthesizer: The bundle, made ready; it is closed with the worker.
        distance: Compares candidates where the settings want that.
    """

    def __init__(self, out: Path, plan: Plan, synthesizer: Synthesizer, distance: MaskedLpips | None) -> None:
        self._out, self._plan, self._synthesizer = out, plan, synthesizer
        self._settings, self._fixed = settings_of(plan), fixed_of(plan)
        self._drawer = RecordDrawer(synthesizer, self._settings, self._fixed.records, distance)
        self._maker = LineMaker(synthesizer, self._settings)

    def run(self, task: Task) -> Done:
        """As `Worker.run`: all sites of the task are checked before the first is drawn on."""
        began, watch = time.perf_counter(), Stopwatch()
        batch, shard = self._fixed.batch, self._plan.task(task.shard)
        # Whole batches, as of the whole shard: sums of some kernels differ in their last bits between batch sizes, and
        # a part of a shard must come out as the shard would have.
        first = task.first - task.first % batch
        stop = min(-(-task.stop // batch) * batch, shard.stop)
        records = read_records(self._out, self._plan, Task(task.shard, first, stop))
        own = {record.number for record in records[task.first - first : task.stop - first]}
        checks = SiteChecks(self._synthesizer, self._settings.texts)
        sites = {record.number: record.site for record in records}
        for number, site in sites.items():
            if number in own:
                checks.check(site)
        kept: set[int] = set()
        with task_file(self._out, self._plan, task, ARCHIVE) as file:
            archive = ArchiveWriter(file)
            numbers = list(sites)
            for at in range(0, len(numbers), batch):
                chunk = [(number, sites[number]) for number in numbers[at : at + batch]]
                for candidate, accepted in self._drawer.draw(chunk, self._fixed.turn):
                    if candidate.number not in own:
                        continue
                    archive.add(*self._maker.make(candidate, checks.hashes[candidate.site.good], accepted=accepted))
                    watch.add(candidate.site.place, candidate.drawn.seconds * 1000)
                    if accepted:
                        kept.add(candidate.number)
            archive.finish(Cost(time.perf_counter() - began, peak_kib()))
            size = file.tell()
        counts = Counter({"accepted": len(kept), "rejected": len(own) - len(kept)})
        resized = sum(sites[number] in checks.fitted for number in own)
        done = _done(task, counts, resized, seconds=time.perf_counter() - began, took=watch.took())
        lines = [encode_json(Judged(number, number in kept)) for number in numbers if number in own]
        write_lines(self._out, self._plan, done, lines, archive_bytes=size)
        return done

    def close(self) -> None:
        """Close the bundle."""
        self._synthesizer.close()
