"""`flawscope merge`: it joins what several jobs made, where none of them could; for each kind of work its own end."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

import click

from flawscope.bundle.trusted_keys_option import trusted_keys_option
from flawscope.errors import DataError
from flawscope.files import sha256_file
from flawscope.runtime.scale.inputs.urls import shown
from flawscope.runtime.scale.plan import PLAN, Plan, read_plan
from flawscope.runtime.scale.run_shards import merge
from flawscope.runtime.scale.score_report import ShardedReport, read_report
from flawscope.runtime.scale.shards_command import end_score
from flawscope.runtime.score_files import RESULTS
from flawscope.terminal import command_line, echo, progress_bars

PARTS = ".parts"
"""Ending of the folder beside an output that is not finished, for work whose output is no folder of shards."""
_FIRST_ROUND = "round-001"
_MARKERS = ("generate.json", "dataset.json")
"""Records of outputs that lose their plan when they are finished."""


@click.command("merge")
@click.argument("folder", type=click.Path(path_type=Path), metavar="DIR")
@trusted_keys_option
def merge_command(folder: Path) -> int:
    """Join the shards of a run that several jobs worked on, once all are whole.

    DIR is what --out named. The last job does it by itself, unless it could not see yet what the others had written.
    """
    return merge_folder(folder)


def merge_folder(folder: Path) -> int:
    """Merge the shards of a run, say what came of it, and return the exit status."""
    place = find_plan(folder)
    # The last job has written it, and removed what it was made of.
    if not (place / PLAN).is_file() and any((folder / name).is_file() for name in _MARKERS):
        echo(f"{folder}: finished before", err=True)
        return 0
    plan = read_plan(place)
    if plan.kind not in MERGES:
        raise DataError(
            f"{place}: expected a run of {', '.join(MERGES)}, got one of {plan.kind}. Use the version that made it."
        )
    return MERGES[plan.kind](place, plan)


def find_plan(folder: Path) -> Path:
    """Return the folder of the plan of a run, from the one that `--out` named, or from one of its parts."""
    beside = folder.with_name(f"{folder.name}{PARTS}") if folder.name else folder
    for place in (folder, folder / _FIRST_ROUND, beside, beside / _FIRST_ROUND):
        if (place / PLAN).is_file():
            # Rounds are joined from the first one on, whichever was named.
            first = place.with_name(_FIRST_ROUND)
            return first if place.name.startswith("round-") and (first / PLAN).is_file() else place
    return folder


def _merge_score(folder: Path, plan: Plan) -> int:
    if (report := _merged(folder)) is not None:
        echo(f"{folder}: merged before, and as it was then", err=True)
        return end_score(report, fail_on_reject=False)
    merge(folder, command=shown(command_line()))
    echo(f"{folder}: {plan.items:,} images of {plan.shards:,} shards, merged", err=True)
    report = read_report(folder)
    return 0 if report is None else end_score(report, fail_on_reject=False)


def _merged(folder: Path) -> ShardedReport | None:
    """Return the report of a run that was merged and is as it was then."""
    if (report := read_report(folder)) is None:
        return None
    with contextlib.suppress(OSError):
        if sha256_file(folder / RESULTS) == report.conservation.results_sha256:
            return report
    return None


def _merge_generate(folder: Path, plan: Plan) -> int:
    from flawscope.runtime.scale.generate_run import finish_rounds
    from flawscope.runtime.synthesis.generate_command import end_generate

    with progress_bars() as report:
        out, record = finish_rounds(folder, report=report)
    end_generate(record, out)
    return 0


def _merge_dataset(folder: Path, plan: Plan) -> int:
    from flawscope.runtime.scale.dataset_run import finish_parts
    from flawscope.runtime.synthesis.dataset_command import end_dataset

    out, record = finish_parts(folder)
    end_dataset(record, out)
    return 0


def _merge_evaluate(folder: Path, plan: Plan) -> int:
    raise DataError(
        f"{folder}: expected a run whose result is a file of its shards, got an evaluation: its command makes the "
        "figures. Run that without --shard, with --resume."
    )


MERGES: dict[str, Callable[[Path, Plan], int]] = {
    "score": _merge_score,
    "generate": _merge_generate,
    "dataset": _merge_dataset,
    "evaluate": _merge_evaluate,
}
"""Kind of work, as in `flawscope.runtime.scale.work.WORKS` -> what joins its shards and says what came of it."""
