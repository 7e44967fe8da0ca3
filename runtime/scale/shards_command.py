"""What `flawscope score` in shards says, and the order of its steps."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from flawscope.runtime.scale.inputs.urls import shown
from flawscope.runtime.scale.plan import ITEMS, PLAN, SHARDS, Plan, check_still_there
from flawscope.runtime.scale.plan_items import check_size
from flawscope.runtime.scale.run_shards import Ran
from flawscope.runtime.scale.score_api import run_planned
from flawscope.runtime.scale.score_plan import ScoreRequest, plan_score
from flawscope.runtime.scale.score_report import ShardedReport, read_report
from flawscope.runtime.scale.shard_options import Part, saying_how_to_go_on
from flawscope.runtime.scale.shards import place_of
from flawscope.runtime.score_files import RESULTS
from flawscope.runtime.score_summary import DECISIONS
from flawscope.terminal import command_line, echo, progress_bars


def score_in_shards(request: ScoreRequest, part: Part, *, plan_only: bool, fail_on_reject: bool) -> int:
    """Do `flawscope score` in shards, and return its exit status."""
    planned = plan_score(request)
    plan, out = planned.plan, request.out
    for folder in plan.fixed["masks_passed_over"] if planned.is_new else []:
        echo(f"note: {folder}: masks of a dataset, passed over. Name it to score what is in it.", err=True)
    if request.backend == "auto":
        echo(f"backend {plan.fixed['backend']}, path {plan.fixed['path']}: fixed by the plan", err=True)
    if plan_only:
        echo(
            f"{out / PLAN}: {_counted(plan.items, 'image')} ({ITEMS}) in {_counted(plan.shards, 'shard')}. Do a part "
            f"of them with --shard I/N, I from 0 to N-1.",
            err=True,
        )
        return 0
    if not planned.is_new and not part.is_given and (report := read_report(out)) is not None:
        echo(f"{out}: finished before, all {_counted(plan.shards, 'shard')} are whole and merged", err=True)
        return end_score(report, fail_on_reject)
    with saying_how_to_go_on(out / PLAN, partial(_whole, out, plan)), progress_bars() as show:
        ran = run_planned(request, planned, show, part=part.pair, command=shown(command_line()))
    _say(ran)
    if not ran.missing and (report := read_report(out)) is not None:
        echo(f"{out / RESULTS}: {_counted(plan.items, 'image')} of {_counted(plan.shards, 'shard')}, merged", err=True)
        return end_score(report, fail_on_reject)
    echo(
        f"note: {_counted(ran.missing, 'shard')} of {plan.shards} are of other jobs and not there yet. The last job "
        f"merges; or, when all are done: flawscope merge {out}",
        err=True,
    )
    return _status(ran.count("fault"), ran.count("reject"), ran.count("maps_missing"), fail_on_reject)


def _whole(out: Path, plan: Plan) -> str:
    # Not where another run has replaced it: there is nothing to go on with.
    check_still_there(out, plan)
    check_size(out, plan)
    whole = sum(place_of(out, plan, task).is_file() for task in plan.tasks())
    return f"{whole} of {_counted(plan.shards, 'shard')} whole in {out / SHARDS}"


def _say(ran: Ran) -> None:
    if ran.skipped:
        echo(f"{_counted(ran.skipped, 'shard')} whole before, kept", err=True)
    if deaths := ran.outcome.deaths:
        given_up = len(ran.outcome.given_up)
        became = f"; {_counted(given_up, 'image')} killed every worker: a fault each" if given_up else ""
        echo(
            f"warning: {_counted(len(deaths), 'worker')} died, the last in shard {deaths[-1].task.shard}: "
            f"{deaths[-1].reason}. What they had was done again{became}.",
            err=True,
        )


def end_score(report: ShardedReport, fail_on_reject: bool) -> int:
    """Say what came of all, and return the exit status."""
    total = ", ".join(f"{getattr(report, decision)} {decision}" for decision in DECISIONS)
    echo(f"{_counted(report.images, 'image')}: {total}", err=True)
    if report.noted:
        echo(
            f"note: {report.noted} of {_counted(report.images, 'image')} unlike all that the bundle learned from: see "
            f"notes in {RESULTS}",
            err=True,
        )
    if report.maps_missing:
        echo(f"error: {_counted(report.maps_missing, 'image')} decided on, but not drawn: changed or gone.", err=True)
    if report.images_per_second is not None:
        echo(f"time: {report.seconds:.1f} s, {report.images_per_second:.1f} images/s", err=True)
    return _status(report.fault, report.reject, report.maps_missing, fail_on_reject)


def _status(fault: int, reject: int, maps_missing: int, fail_on_reject: bool) -> int:
    if maps_missing:
        return 2
    return 1 if fault or (fail_on_reject and reject) else 0


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"
