"""`synth generate` in shards: rounds of drawing, each a plan of its own, and the set that becomes of them.

    DIR.parts/round-001/    plan, records and shards of the first round: all records
    DIR.parts/round-002/    of the second: those of which the first accepted no drawing; and so on
    DIR                     the set, as one process writes it: there, whole, when the last round is done

Rounds are the same as in one process, and so are the batches in them: shards are cut between batches. What depends on
what others drew is only which records are in the next round, and the names of files, which are given at the end.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from flawscope.errors import DataError, GateError
from flawscope.progress import Progress
from flawscope.runtime.scale.executors import Placement
from flawscope.runtime.scale.generate_merge import merge_rounds
from flawscope.runtime.scale.generate_plan import (
    GENERATE,
    Planned,
    Request,
    finished_before,
    next_plan,
    pending_records,
    request_of,
    round_folder,
    work_of,
)
from flawscope.runtime.scale.generate_work import fixed_of, read_judged
from flawscope.runtime.scale.plan import PLAN, Plan, read_plan
from flawscope.runtime.scale.run_shards import Ran, merge, run_shards
from flawscope.runtime.synthesis.generated_set import GenerateRecord


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """What a run in shards came to.

    Attributes:
        record: The record of the set; None while shards of other jobs are missing.
        round: Number of the last round that was worked on, from 1.
        missing: Its shards that are not whole.
        shards: Shards of all rounds so far.
        skipped: How many of them were whole before.
        deaths: How often a worker died.
    """

    record: GenerateRecord | None
    round: int
    missing: int
    shards: int
    skipped: int
    deaths: int


def draw_planned(
    request: Request,
    out: Path,
    placement: Placement,
    planned: Planned,
    *,
    part: tuple[int, int] = (0, 1),
    report: Progress,
    command: str = "",
) -> Drawn:
    """Draw a set in shards and write what `generate_images` writes: the same bytes, but for `generate.json`.

    Args:
        request: What is drawn.
        out: The folder to make.
        placement: Where, and by how many workers.
        planned: The first round.
        part: Which part of how many, from 0; the others are for others. Whoever does the last shard writes the set.
        report: Called with the progress.
        command: The command line, for reports.

    Raises:
        DataError: If a site cannot be drawn on, as `generate_images`; what was drawn stays.
        GateError: If every worker died of some records; nothing is written, and what was drawn stays.
        FlawscopeError: As `run_shards`.
    """
    try:
        return _draw_rounds(request, out, placement, planned, part, report, command)
    except DataError:
        # Another job of the array was as late, and has written the set and removed its shards.
        record = finished_before(request, out)
        if part == (0, 1) or record is None:
            raise
        return Drawn(record=record, round=1, missing=0, shards=0, skipped=0, deaths=0)


def _draw_rounds(
    request: Request,
    out: Path,
    placement: Placement,
    planned: Planned,
    part: tuple[int, int],
    report: Progress,
    command: str,
) -> Drawn:
    plans = [(planned.folder, planned.plan)]
    skipped = deaths = 0
    while True:
        folder, plan = plans[-1]
        ran = _run(folder, plan, request, placement, part, report, command)
        skipped, deaths = skipped + ran.skipped, deaths + len(ran.outcome.deaths)
        if not ran.missing:
            _check_faults(folder, plan)
        if ran.missing or len(plans) == request.settings.rounds or next(pending_records(folder, plan), None) is None:
            break
        after = round_folder(planned.folder, len(plans) + 1)
        plans.append((after, next_plan(after, folder, plan)))
    return Drawn(
        record=None if ran.missing else merge_rounds(request, plans, out, report=report),
        round=len(plans),
        missing=ran.missing,
        shards=sum(plan.shards for _, plan in plans),
        skipped=skipped,
        deaths=deaths,
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
    work, turn = work_of(request, folder, plan), fixed_of(plan).turn
    title = "drawing" if turn == 0 else f"drawing again ({turn + 1})"
    return run_shards(folder, plan, work, placement, part=part, show=partial(report, title), command=command)


def finish_rounds(first: Path, *, report: Progress) -> tuple[Path, GenerateRecord]:
    """Write the set of rounds that jobs have drawn, by what lies in their folders; return its folder and record.

    Args:
        first: Folder of the first round.
        report: Called with the progress.

    Raises:
        DataError: If a shard is missing, or records are still to be drawn again.
        GateError: As `draw_planned`.
        FlawscopeError: If the bundle or the dataset is no longer where it was.
    """
    parts, plans = first.parent, list[tuple[Path, Plan]]()
    out = parts.with_name(parts.name.removesuffix(".parts"))
    request = request_of(first, read_plan(first, GENERATE))
    if (record := finished_before(request, out)) is not None:
        return out, record
    while True:
        folder = round_folder(first, len(plans) + 1)
        plan = merge(folder)  # raises where it is not whole
        _check_faults(folder, plan)
        plans.append((folder, plan))
        if len(plans) == request.settings.rounds or (left := _count_pending(folder, plan)) == 0:
            return out, merge_rounds(request, plans, out, report=report)
        if not (round_folder(first, len(plans) + 1) / PLAN).is_file():
            raise DataError(
                f"{parts}: expected all rounds drawn, got {len(plans)} of at most {request.settings.rounds}: {left} "
                "records have no accepted drawing, and are drawn again. Run the command of the run again, each job or "
                "one with --resume."
            )


def _count_pending(folder: Path, plan: Plan) -> int:
    return sum(1 for _ in pending_records(folder, plan))


def _check_faults(folder: Path, plan: Plan) -> None:
    faults = [
        judged.fault for task in plan.tasks() for judged in read_judged(folder, plan, task) if judged.accepted is None
    ]
    if faults:
        raise GateError(
            f"{folder}: expected a drawing of every record, got none of {len(faults)}, the first {faults[0]}. Take "
            "their lines out and start again with --overwrite."
        )
