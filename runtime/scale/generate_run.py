"""`synth generate` in shards: rounds of drawing, each a plan of its own, and the set that becomes of them.

    DIR.parts/round-001/    plan, records and shards of the first round: all records
    DIR.parts/round-002/    of the second: those of which the first accepted no drawing; and so on
    DIR                     the set, as one process writes it: there, whole, when the last round is done

Rounds are the same as in one process, and so are the batches in them: shards are cut between batches. What depends on
what others drew is only which records are in the next round, and the names of files, which are given at the end.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from flawscope.bundle import Manifest, SynthHead
from flawscope.datasets import Dataset
from flawscope.errors import ArgumentError, DataError, GateError
from flawscope.files import atomic_folder, check_replaceable, locked, storage_errors
from flawscope.imaging.images import decode_image, read_image
from flawscope.imaging.masks import decode_mask
from flawscope.progress import Progress
from flawscope.runtime.backends import choose_backend
from flawscope.runtime.scale.executors import Placement
from flawscope.runtime.scale.generate_shards import ArchiveReader, RecordItem, read_records
from flawscope.runtime.scale.generate_work import RESIZED, Fixed, GenerateWork, read_judged, settings_of
from flawscope.runtime.scale.plan import PLAN, Plan, check_same, read_plan, write_plan
from flawscope.runtime.scale.plan_items import write_item_lines
from flawscope.runtime.scale.run_shards import Ran, run_shards
from flawscope.runtime.scale.task import Task
from flawscope.runtime.synthesis.draw_options import GenerateSettings
from flawscope.runtime.synthesis.generated_set import MARKER, GeneratedImage, GenerateRecord
from flawscope.runtime.synthesis.generation import support_in_test
from flawscope.runtime.synthesis.masked_lpips import MaskedLpips
from flawscope.runtime.synthesis.record_drawing import check_distance, check_seeds, sites_of_records
from flawscope.runtime.synthesis.set_lines import Files
from flawscope.runtime.synthesis.set_writer import DrawnBy, SetFacts, SetWriter, Shown
from flawscope.runtime.synthesis.sites import Site
from flawscope.text import encode_json, name_bytes


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is to be drawn.

    Attributes:
        bundle: Path of the bundle.
        manifest: Its manifest.
        head: Its description of how it draws.
        sites: Where to draw.
        settings: How many images, and how.
        backend: Backend, or `auto`.
        precision: Precision of the graphs.
        lpips: Two files of weights that candidates are compared with; None without.
        dataset: Dataset whose test split is searched for support images.
        lines: File of lines that the sites come from -> SHA-256.
    """

    bundle: Path
    manifest: Manifest
    head: SynthHead
    sites: Sequence[Site]
    settings: GenerateSettings
    backend: str
    precision: str
    lpips: tuple[Path, Path] | None
    dataset: Dataset | None
    lines: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """What a run in shards came to.

    Attributes:
        record: The record of the set; None while shards of other jobs are missing.
        round: Number of the last round that was worked on, from 1.
        missing: Its shards that are not whole.
        shards: How many it has.
        skipped: Shards of all rounds that were whole before.
        deaths: How often a worker died.
    """

    record: GenerateRecord | None
    round: int
    missing: int
    shards: int
    skipped: int
    deaths: int


def generate_in_shards(
    request: Request,
    out: Path,
    placement: Placement,
    *,
    shard_size: int,
    part: tuple[int, int] = (0, 1),
    resume: bool = False,
    overwrite: bool = False,
    report: Progress,
    command: str = "",
) -> Drawn:
    """Draw a set in shards and write what `generate_images` writes: the same bytes, but for `generate.json`.

    Args:
        request: What is drawn.
        out: The folder to make; what is not finished lies in `out`.parts beside it.
        placement: Where, and by how many workers.
        shard_size: Records of a shard; rounded up to whole batches.
        part: Which part of how many, from 0; the others are for others. Whoever does the last shard writes the set.
        resume: Whether to go on with what lies there.
        overwrite: Whether an earlier set, or an unfinished one, may be replaced.
        report: Called with the progress.
        command: The command line, for reports.

    Raises:
        ArgumentError: If a setting is out of range, `out` is taken, or another run lies in `out`.parts.
        DataError: If a site cannot be drawn on, as `generate_images`; what was drawn stays.
        GateError: If every worker died of some records; nothing is written, and what was drawn stays.
        FlawscopeError: As `run_shards`.
    """
    check_replaceable(out, MARKER, overwrite=overwrite)
    parts = parts_of(out)
    _check_parts(parts, part, resume=resume, overwrite=overwrite)
    plans: list[tuple[Path, Plan]] = []
    skipped = deaths = 0
    for turn in range(request.settings.rounds):
        folder = parts / f"round-{turn + 1:03d}"
        plan = _first_plan(folder, request, placement, shard_size) if turn == 0 else _next_plan(folder, *plans[-1])
        plans.append((folder, plan))
        ran = _run(folder, plan, request, placement, part, report, command)
        skipped, deaths = skipped + ran.skipped, deaths + len(ran.outcome.deaths)
        if ran.missing:
            break
        _check_faults(folder, plan)
        if not any(True for _ in _pending(folder, plan)):
            break
    record = None if ran.missing else _merge(request, plans, out, overwrite=overwrite, report=report)
    return Drawn(
        record=record,
        round=len(plans),
        missing=ran.missing,
        shards=plan.shards,
        skipped=skipped,
        deaths=deaths,
    )


def parts_of(out: Path) -> Path:
    """Return the folder in which the rounds of an unfinished set lie."""
    return out.with_name(f"{out.name}.parts")


def _check_parts(parts: Path, part: tuple[int, int], *, resume: bool, overwrite: bool) -> None:
    """Refuse, go on with, or remove what lies there."""
    if resume or not parts.exists():
        return
    is_ours = (parts / "round-001" / PLAN).is_file()
    # Of the jobs of an array the first makes the plan, and the others find it.
    if is_ours and part != (0, 1):
        return
    if not is_ours or not overwrite:
        what = "an unfinished run" if is_ours else "a folder with other files"
        raise ArgumentError(
            f"{parts}: expected a new folder for what is not finished, got {what}. "
            + ("Go on with --resume, or start again with --overwrite." if is_ours else "Choose another name for --out.")
        )
    with storage_errors(parts):
        shutil.rmtree(parts)


def _first_plan(folder: Path, request: Request, placement: Placement, shard_size: int) -> Plan:
    """Return the plan of all records: the one that lies there, if it is the same, or a new one."""
    settings = request.settings
    check_distance(settings, is_given=request.lpips is not None)
    batch = request.manifest.max_batch // 2 if settings.batch is None else settings.batch
    if not 1 <= batch <= request.manifest.max_batch // 2:
        raise ArgumentError(
            f"batch: expected 1 to {request.manifest.max_batch // 2}, half of the bundle's largest batch, got {batch}."
        )
    if shard_size < 1:
        raise ArgumentError(f"--shard-size: expected at least 1, got {shard_size}.")
    sites = sites_of_records(request.sites, settings)
    check_seeds(settings, len(sites))
    for site in dict.fromkeys(request.sites):
        for path in (site.good, site.mask):
            if name_bytes(str(path)) is not None:
                raise DataError(f"{path}: expected a name in UTF-8 for work in shards, got other bytes. Rename it.")
    size = -(-shard_size // batch) * batch
    lpips = {} if request.lpips is None else dict(MaskedLpips.load(*request.lpips).files)
    choice = choose_backend(request.backend)
    fixed = Fixed(0, len(sites), batch, choice.name, choice.reason, placement.threads)
    asked = {
        "settings": msgspec.to_builtins(settings),
        "precision": request.precision,
        "backend": request.backend,
        "lines": dict(request.lines),
        "lpips": lpips,
    }

    def plan_of(where: Path | None) -> Plan:
        lines = (encode_json(RecordItem.of(number, site)) for number, site in enumerate(sites))
        written = write_item_lines(where, lines, size)
        return Plan(
            kind="generate",
            bundle=request.manifest.digest,
            asked=asked,
            fixed=msgspec.to_builtins(fixed),
            items=written.items,
            items_sha256=written.sha256,
            shard_size=size,
        )

    with locked(folder):
        if not (folder / PLAN).is_file():
            return write_plan(folder, plan_of)
        plan = read_plan(folder)
        check_same(folder, plan, plan_of(None))
        return plan


def _next_plan(folder: Path, before: Path, plan: Plan) -> Plan:
    """Return the plan of the records of which the round before accepted no drawing."""

    def plan_of(where: Path) -> Plan:
        fixed = msgspec.structs.replace(Fixed.of(plan), turn=Fixed.of(plan).turn + 1)
        written = write_item_lines(where, map(encode_json, _pending(before, plan)), plan.shard_size)
        return msgspec.structs.replace(
            plan, fixed=msgspec.to_builtins(fixed), items=written.items, items_sha256=written.sha256
        )

    with locked(folder):
        return read_plan(folder) if (folder / PLAN).is_file() else write_plan(folder, plan_of)


def _pending(folder: Path, plan: Plan) -> Iterator[RecordItem]:
    """Yield the records of a round that have no accepted drawing, in order; the round must be whole."""
    for task in plan.tasks():
        for record, judged in zip(read_records(folder, plan, task), read_judged(folder, plan, task), strict=True):
            if not judged.accepted:
                yield record


def _work_of(request: Request, folder: Path, plan: Plan) -> GenerateWork:
    weights = request.lpips
    return GenerateWork(
        out=str(folder.absolute()),
        plan=plan.digest,
        bundle=str(request.bundle.absolute()),
        lpips=None if weights is None else (str(weights[0].absolute()), str(weights[1].absolute())),
    )


def _run(
    folder: Path,
    plan: Plan,
    request: Request,
    placement: Placement,
    part: tuple[int, int],
    report: Progress,
    command: str,
) -> Ran:
    work, turn = _work_of(request, folder, plan), Fixed.of(plan).turn
    title = "drawing" if turn == 0 else f"drawing again ({turn + 1})"
    return run_shards(folder, plan, work, placement, part=part, show=partial(report, title), command=command)


def _check_faults(folder: Path, plan: Plan) -> None:
    faults = [
        judged.fault for task in plan.tasks() for judged in read_judged(folder, plan, task) if judged.accepted is None
    ]
    if faults:
        raise GateError(
            f"{folder}: expected a drawing of every record, got none of {len(faults)}, the first {faults[0]}. Take "
            "their lines out and start again with --overwrite."
        )


def _merge(
    request: Request, plans: Sequence[tuple[Path, Plan]], out: Path, *, overwrite: bool, report: Progress
) -> GenerateRecord:
    """Write the set, and remove the rounds that it was made of."""
    first = plans[0][1]
    in_test = 0 if request.dataset is None else support_in_test(request.dataset, request.head, report)
    wanted, resized = Counter[str](), 0
    for task in first.tasks():
        wanted.update(record.site.key for record in read_records(plans[0][0], first, task))
        done = _work_of(request, *plans[0]).whole(task)
        resized += 0 if done is None else done.more.get(RESIZED, 0)
    with (
        locked(out),
        atomic_folder(out, replace_if=MARKER, overwrite=overwrite) as unfinished,
        SetWriter(unfinished) as writer,
    ):
        seconds, peaks = 0.0, [0]
        total = sum(plan.shards for _, plan in plans)
        merged = 0
        for folder, plan in plans:
            for task in plan.tasks():
                with ArchiveReader(folder, plan, task) as archive:
                    seconds, peaks = seconds + archive.cost.seconds, [max(*peaks, archive.cost.peak_kib or 0)]
                    _add(writer, archive, partial(_goods, folder, plan, task), request.manifest.input.bits)
                merged += 1
                report("writing the set", merged, total)
        fixed = Fixed.of(first)
        by = DrawnBy(
            request.manifest,
            request.head,
            fixed.backend,
            fixed.backend_reason,
            request.precision,
            settings_of(first),
        )
        facts = SetFacts(
            wanted=wanted,
            seconds=seconds,
            peak_kib=max(peaks) or None,
            in_test=in_test,
            lines=request.lines,
            weights=first.asked["lpips"],
            resized=resized,
        )
        record = writer.finish(by, facts)
    parts = parts_of(out)
    with storage_errors(parts):
        shutil.rmtree(parts)
    return record


def _add(writer: SetWriter, archive: ArchiveReader, goods: Any, bits: int) -> None:
    sites: dict[int, Path] = {}

    def show(line: GeneratedImage, files: Files) -> Shown:
        if not sites:  # of few shards anything is shown
            sites.update(goods())
        good = sites[line.number]
        mask, region = decode_mask(files.mask, line.good), decode_mask(files.box_mask, line.good)
        image = decode_image(files.image, line.good)
        return Shown(good.name, read_image(good, bits), image, mask, region)

    for line, files in archive.drawings():
        writer.add(line, files, partial(show, line, files))


def _goods(folder: Path, plan: Plan, task: Task) -> dict[int, Path]:
    return {record.number: Path(record.good) for record in read_records(folder, plan, task)}
