"""What `synth generate` in shards says, and the order of its steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flawscope.runtime.scale.generate_plan import Request, finished_before, parts_of, plan_generate
from flawscope.runtime.scale.generate_run import Drawn, draw_planned
from flawscope.runtime.scale.placement import make_placement
from flawscope.runtime.scale.plan import PLAN
from flawscope.runtime.scale.shard_options import read_part, saying_how_to_go_on
from flawscope.runtime.synthesis.generated_set import GenerateRecord
from flawscope.terminal import command_line, echo, progress_bars


def run_in_shards(request: Request, out: Path, sharding: dict[str, Any], *, overwrite: bool) -> GenerateRecord | None:
    """Draw a set in shards, or the part of it that is asked for.

    Args:
        request: What is drawn.
        out: The folder to make.
        sharding: The arguments of `shard_options`.
        overwrite: Whether an earlier set may be replaced.

    Returns:
        The record of the set; None where it is not finished.
    """
    part = read_part(sharding["shard"])
    placement = make_placement(sharding["on"], sharding["workers"], sharding["gpus_per_worker"])
    may_go_on = sharding["resume"] or part.is_given
    if may_go_on and (record := finished_before(request, out)) is not None:
        echo(f"{out}: finished before", err=True)
        return record
    planned = plan_generate(
        request,
        out,
        placement,
        shard_size=sharding["shard_size"],
        is_resumed=sharding["resume"],
        is_shared=part.is_given,
        overwrite=overwrite,
    )
    echo(f"backend {planned.plan.fixed['backend']} ({planned.plan.fixed['backend_reason']})", err=True)
    if sharding["plan_only"]:
        echo(
            f"{planned.folder}: {planned.plan.items} records in {planned.plan.shards} shards. Do a part of them with "
            "--shard I/N, I from 0 to N-1.",
            err=True,
        )
        return None
    stays = f"what is whole stays in {parts_of(out)}"
    with saying_how_to_go_on(planned.folder / PLAN, lambda: stays), progress_bars() as show:
        drawn = draw_planned(request, out, placement, planned, part=part.pair, report=show, command=command_line())
    _say(drawn, out)
    return drawn.record


def _say(drawn: Drawn, out: Path) -> None:
    kept = f", {drawn.skipped} of them whole before" if drawn.skipped else ""
    if drawn.deaths:
        echo(f"warning: workers died {drawn.deaths} times; what they were at was drawn again", err=True)
    if drawn.record is not None:
        rounds = f" of {drawn.round} rounds" if drawn.round > 1 else ""
        echo(f"shards: {drawn.shards}{rounds}{kept}", err=True)
        return
    echo(
        f"note: {drawn.missing} shards of round {drawn.round} are of other jobs and not there yet. The last job goes "
        f"on; or, when all are done: flawscope merge {out}. Unfinished: {parts_of(out)}",
        err=True,
    )
