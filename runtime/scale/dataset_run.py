"""`synth dataset` in shards: the plan, the copying, and the dataset that becomes of it, as one process writes it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from flawscope.datasets import open_dataset
from flawscope.datasets.defects.drawn_set import DrawnSource
from flawscope.datasets.defects.set_files import read_json
from flawscope.datasets.defects.support_set import read_support
from flawscope.errors import ArgumentError, DataError, GateError
from flawscope.files import atomic_folder, check_replaceable, locked, storage_errors
from flawscope.open_files import list_folder
from flawscope.progress import Progress
from flawscope.runtime.scale.dataset_work import FILES, DatasetWork, read_copied
from flawscope.runtime.scale.executors import Placement, make_executor
from flawscope.runtime.scale.plan import (
    DEFAULT_SHARD,
    PLAN,
    SHARDS,
    Plan,
    check_overwrite,
    check_same,
    read_plan,
    write_plan,
)
from flawscope.runtime.scale.plan_forms import DatasetSources
from flawscope.runtime.scale.plan_items import write_item_lines
from flawscope.runtime.scale.run_shards import merge, run_shards
from flawscope.runtime.scale.work import encode_work
from flawscope.runtime.synthesis.mixed_datasets import (
    MARKER,
    DatasetLayout,
    DatasetPlan,
    Labels,
    SynthDatasetRecord,
    plan_dataset,
)
from flawscope.stored_paths import path_from, stored_path
from flawscope.terminal import echo
from flawscope.text import encode_json

DATASET = "dataset"


def parts_of(out: Path) -> Path:
    """Return the folder in which an unfinished dataset lies."""
    return out.parent / f"{out.name}.parts"


def write_in_shards(
    make: Callable[[], DatasetPlan],
    asked: dict[str, Any],
    out: Path,
    placement: Placement,
    *,
    shard_size: int | None = None,
    part: tuple[int, int] = (0, 1),
    is_resumed: bool = False,
    is_shared: bool = False,
    plan_only: bool = False,
    overwrite: bool = False,
    sources: dict[str, Any] | None = None,
    report: Progress,
    command: str = "",
) -> SynthDatasetRecord | None:
    """Write a dataset in shards: the same files as `write_synth_dataset`.

    Args:
        make: Returns what the dataset is made of; called once the folder proved free.
        asked: What was asked for, by option: a run that goes on must ask for the same.
        out: The folder to make; what is not finished lies in `out`.parts beside it.
        placement: Where, and by how many workers.
        shard_size: Images of a shard; None for 256.
        part: Which part of how many, from 0; the others are for others. Whoever does the last shard finishes.
        is_resumed: Whether to go on with what lies there.
        is_shared: Whether jobs share the plan: the first makes it, and the others take it.
        plan_only: Whether only the plan is made.
        overwrite: Whether an earlier dataset, or an unfinished one, may be replaced.
        sources: What `flawscope merge` calls `plan_dataset` with again, beside `asked`; None where nobody will.
        report: Called with the progress.
        command: The command line, for reports.

    Returns:
        The content of `dataset.json`; None where shards of other jobs are missing.

    Raises:
        ArgumentError: If `out` is taken, or another run lies in `out`.parts.
        DataError: If a drawn file was changed, or as `write_synth_dataset`; what was copied stays.
        GateError: If every worker died of some images.
        FlawscopeError: As `run_shards`.
    """
    parts = parts_of(out)
    check_overwrite(overwrite, goes_on=is_resumed or is_shared)
    if shard_size is not None and shard_size < 1:
        raise ArgumentError(f"--shard-size: expected at least 1, got {shard_size}.")
    has_plan = (parts / PLAN).is_file()
    found = read_plan(parts, DATASET) if has_plan and (is_resumed or is_shared) else None
    replaces = overwrite if found is None else found.fixed["replaces"]
    if (is_resumed or is_shared) and not replaces and (out / MARKER).is_file():
        return _finished_before(out, make())
    check_replaceable(out, MARKER, overwrite=replaces)
    if has_plan and found is None:
        if not overwrite:
            raise ArgumentError(
                f"{parts}: expected a free name for what is not finished, got an earlier run. Go on with it by "
                "--resume, or replace it with --overwrite."
            )
        _remove(parts)
    # Made, and not started: it refuses a placement that cannot be before anything is written.
    make_executor(encode_work(DatasetWork(out=stored_path(parts), plan="")), placement)
    copies = make()
    with locked(parts):
        plan = _planned(parts, copies, asked, shard_size, {"replaces": replaces, "threads": 1, "sources": sources})
    if plan_only:
        echo(
            f"{parts / PLAN}: {plan.items} images in {plan.shards} shards. Do a part of them with --shard I/N, I from "
            "0 to N-1.",
            err=True,
        )
        return None
    work = DatasetWork(out=stored_path(parts), plan=plan.digest)
    ran = run_shards(
        parts,
        plan,
        work,
        placement,
        part=part,
        show=lambda done, total: report("writing images", done, total),
        command=command,
    )
    if ran.missing:
        echo(
            f"note: {ran.missing} shards of {plan.shards} are of other jobs and not there yet. The last job finishes; "
            f"or, when all are done: flawscope merge {out}",
            err=True,
        )
        return None
    return _finish(parts, plan, copies, out)


def _finished_before(out: Path, copies: DatasetPlan) -> SynthDatasetRecord:
    """Say that a dataset is there, if it is the one that is asked for; what it was made of is removed."""
    record = read_json(out / MARKER, SynthDatasetRecord, "the record of a dataset")
    if record != copies.record:
        raise ArgumentError(
            f"{out}: expected the dataset of this command to go on with, got one of other images or options. Choose "
            "another name for --out."
        )
    echo(f"{out}: finished before", err=True)
    if (parts_of(out) / PLAN).is_file():
        _remove(parts_of(out))
    return record


def _planned(
    parts: Path, copies: DatasetPlan, asked: dict[str, Any], shard_size: int | None, fixed: dict[str, Any]
) -> Plan:
    """Return the plan: the one that lies there, if it is the same, or a new one."""

    def plan_of(where: Path | None, size: int) -> Plan:
        written = write_item_lines(where, (encode_json(copy.absolute()) for copy in copies.copies()), size)
        return Plan(
            kind=DATASET,
            asked=asked,
            fixed=fixed,
            items=written.items,
            items_sha256=written.sha256,
            shard_size=size,
        )

    if not (parts / PLAN).is_file():
        return write_plan(parts, lambda where: plan_of(where, shard_size or DEFAULT_SHARD))
    plan = read_plan(parts, DATASET)
    check_same(parts, plan, plan_of(None, shard_size or plan.shard_size))
    return plan


class _Asked(msgspec.Struct):
    layout: DatasetLayout
    labels: Labels
    take: dict[DrawnSource, int]


def finish_parts(parts: Path) -> tuple[Path, SynthDatasetRecord]:
    """Write the dataset that jobs have copied, by what lies in its folder; return the dataset's folder and record.

    Raises:
        ArgumentError: If images came, went or changed since.
        DataError: If a shard is missing, or what it was made of is gone.
        GateError: As `write_in_shards`.
    """
    plan = read_plan(parts, DATASET)
    if plan.fixed.get("sources") is None:
        raise DataError(
            f"{parts}: expected the plan of a command, got one of Python. Call the function again, with is_resumed."
        )
    merge(parts)  # raises where it is not whole
    try:
        sources, asked = msgspec.convert(plan.fixed["sources"], DatasetSources), msgspec.convert(plan.asked, _Asked)
    except msgspec.ValidationError as err:
        raise DataError(
            f"{parts / PLAN}: expected what a dataset is made of, got: {err}. Put the plan back, or start again with "
            "--overwrite."
        ) from err
    copies = plan_dataset(
        [path_from(folder) for folder in sources.generated],
        open_dataset(path_from(sources.data), sources.category),
        layout=asked.layout,
        labels=asked.labels,
        take=asked.take,
        support=None if sources.support is None else read_support(path_from(sources.support)),
        are_files_checked=False,
    )
    _planned(parts, copies, plan.asked, None, plan.fixed)  # raises where it is no longer the same
    out = parts.with_name(parts.name.removesuffix(".parts"))
    return out, _finish(parts, plan, copies, out)


def _finish(parts: Path, plan: Plan, copies: DatasetPlan, out: Path) -> SynthDatasetRecord:
    faults = [copied.fault for task in plan.tasks() for copied in read_copied(parts, plan, task) if copied.fault]
    if faults:
        raise GateError(
            f"{parts}: expected a copy of every image, got none of {len(faults)}, the first {faults[0]}. Take them out "
            "and start again with --overwrite."
        )
    with locked(out), atomic_folder(out, replace_if=MARKER, overwrite=plan.fixed["replaces"]) as unfinished:
        # Whoever is killed from here on leaves shards without files, which are then no longer whole.
        for entry in list_folder(parts / FILES):
            entry.rename(unfinished / entry.name)
        copies.finish(unfinished)
    _remove(parts)
    return copies.record


def _remove(parts: Path) -> None:
    with storage_errors(parts):
        for name in (FILES, SHARDS):
            if (parts / name).is_dir():
                shutil.rmtree(parts / name)
        shutil.rmtree(parts)
