"""The end of `score` in shards: the lines of all images in one file, the account that must close, and the report."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import msgspec

from flawscope import __version__
from flawscope.errors import DataError
from flawscope.files import write_bytes
from flawscope.open_files import RECORD_BYTES, read_regular
from flawscope.runtime.scale.plan import REPORT, Plan
from flawscope.runtime.scale.run_records import RunRecord, WorkerDeath, busy_seconds
from flawscope.runtime.scale.shards import durable_file, read_blocks, read_results
from flawscope.runtime.scale.task import Done
from flawscope.runtime.scale.work import Account
from flawscope.runtime.score_files import RESULTS
from flawscope.runtime.score_summary import DECISIONS, ScoreReport, Slowest
from flawscope.text import NOT_JSON, encode_json


class Conservation(msgspec.Struct, frozen=True):
    """Every image has one line, and every shard is counted once: `listed` = accept + reject + fault = `lines`.

    Attributes:
        listed: Images of the plan.
        lines: Lines of `results.jsonl`.
        shards: Shards of the plan, each with its whole file.
        results_sha256: SHA-256 of `results.jsonl`.
    """

    listed: int
    lines: int
    shards: int
    results_sha256: str


class ShardedReport(ScoreReport, frozen=True, kw_only=True):
    """The file `report.json` of `score` in shards: that of `score`, and how it was done.

    Percentiles are of a histogram, exact to 1.1 %. `seconds`, `images_per_second`, `workers`, `deaths` and `given_up`
    are of all runs over the plan: jobs that shared it, and those that were ended before they were done.

    Attributes:
        ms_p99: 99 of 100 images took this many milliseconds at most.
        on: Where the run that wrote the report placed its work; `merge` where it was only merged.
        workers: Names of the workers.
        images_per_second: Images that were scored by `seconds`, in which at least one run was at work; null where no
            run left a record.
        shards_skipped: Shards that were whole before the run that wrote the report.
        deaths: Workers that died; each shard was tried again, or cut until the image was found.
        given_up: Numbers of the images that killed every worker: faults.
        runs: Each run, in the order in which they began.
        noted: Images that are unlike all that the bundle learned from; `notes` of their lines say in what.
        maps_missing: Images that were decided on, and of which no heat map could be drawn.
        conservation: The account.
        plan: Digest of the plan.
    """

    ms_p99: float | None
    on: str
    workers: list[str]
    images_per_second: float | None
    shards_skipped: int
    deaths: list[WorkerDeath]
    given_up: list[int]
    runs: list[RunRecord]
    noted: int
    maps_missing: int
    conservation: Conservation
    plan: str

    def __post_init__(self) -> None:
        """Refuse counts that do not come to the images, as of a changed file: an exit status is made of them."""
        counts = (self.accept, self.reject, self.fault)
        totals = {self.images, sum(counts), self.conservation.listed, self.conservation.lines}
        if min(counts) < 0 or len(totals) != 1 or not 0 <= self.maps_missing <= self.images:
            raise ValueError(f"expected accept + reject + fault = images = lines, got {counts} of {self.images}")


def merge_shards(out: Path, plan: Plan, shards: Sequence[Done], account: Account) -> ShardedReport:
    """Write `results.jsonl` and, as the last file, `report.json`.

    Args:
        out: Folder of the plan.
        plan: The plan.
        shards: What became of each shard, in order.
        account: What the run took.

    Raises:
        DataError: If a shard is missing, or its file is not what it says.
        StorageError: If something cannot be written.
    """
    if [done.task for done in shards] != list(plan.tasks()):
        raise DataError(f"{out}: expected every shard of the plan once, got others. Run it again with --resume.")
    digest, lines = hashlib.sha256(), 0
    with durable_file(out / RESULTS) as file:
        for done in shards:
            for block in read_blocks(out, plan, done.task):
                digest.update(block)
                lines += block.count(b"\n")
                file.write(block)
    counts = {name: sum(done.counts.get(name, 0) for done in shards) for name in DECISIONS}
    if not lines == sum(counts.values()) == plan.items:
        raise DataError(
            f"{out}: expected {plan.items} images with one decision each, got {lines} lines and {counts}. Remove the "
            "folder shards and run it again with --resume."
        )
    given_up = _given_up(out, plan, account)
    conservation = Conservation(plan.items, lines, len(shards), digest.hexdigest())
    report = _report(plan, shards, counts, account, given_up, conservation)
    data = msgspec.json.format(encode_json(report), indent=1) + b"\n"
    write_bytes(out / REPORT, data, durable=True)
    return report


class _Decided(msgspec.Struct):
    decision: str


def _given_up(out: Path, plan: Plan, account: Account) -> list[int]:
    """Return the images that were given up by any run, without those that were decided on later."""
    by_shard: dict[int, list[int]] = {}
    for number in sorted({number for run in account.runs for number in run.given_up if 0 <= number < plan.items}):
        by_shard.setdefault(number // plan.shard_size, []).append(number)
    given_up = list[int]()
    for shard, numbers in by_shard.items():
        task = plan.task(shard)
        lines = read_results(out, plan, task, _Decided)
        given_up += [number for number in numbers if lines[number - task.first].decision == "fault"]
    return given_up


def _report(
    plan: Plan,
    shards: Sequence[Done],
    counts: dict[str, int],
    account: Account,
    given_up: list[int],
    conservation: Conservation,
) -> ShardedReport:
    took, runs, fixed, asked = account.took, account.runs, plan.fixed, plan.asked
    seconds = busy_seconds(runs)
    return ShardedReport(
        images=plan.items,
        accept=counts["accept"],
        reject=counts["reject"],
        fault=counts["fault"],
        near_threshold=_more(shards, "near_threshold"),
        ms_median=took.percentile(0.5),
        ms_mean=took.mean_ms,
        slowest=Slowest(took.slowest, took.slowest_ms) if took.slowest else None,
        seconds=seconds,
        bundle=fixed["name"],
        digest=plan.bundle,
        method=fixed["method"],
        precision=asked["precision"],
        backend=fixed["backend"],
        path=fixed["path"],
        product=asked["product"],
        image_threshold=fixed["image_threshold"],
        pixel_threshold=fixed["pixel_threshold"],
        threshold_revision=fixed["threshold_revision"],
        threshold_source=fixed["threshold_source"],
        options=_options(plan),
        command=account.command,
        made=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        flawscope=__version__,
        ms_p99=took.percentile(0.99),
        on=account.on,
        workers=list(dict.fromkeys(name for run in runs for name in run.workers)),
        images_per_second=sum(run.items for run in runs) / seconds if seconds else None,
        shards_skipped=account.skipped,
        deaths=[death for run in runs for death in run.deaths],
        given_up=given_up,
        runs=runs,
        noted=_more(shards, "noted"),
        maps_missing=_more(shards, "maps_missing"),
        conservation=conservation,
        plan=plan.digest,
    )


def _more(shards: Sequence[Done], name: str) -> int:
    return sum(done.more.get(name, 0) for done in shards)


def _options(plan: Plan) -> dict[str, Any]:
    asked, fixed = plan.asked, plan.fixed
    return {
        "images": asked["images"],
        "batch": asked["batch"],
        "strict": asked["strict"],
        "threads": fixed["threads"],
        "shard_size": plan.shard_size,
        "masks_passed_over": fixed["masks_passed_over"],
    }


def read_report(out: Path) -> ShardedReport | None:
    """Return the report of a run that is finished; None where it is not, or its results are gone.

    Raises:
        DataError: If it cannot be read.
    """
    if not (out / RESULTS).is_file():
        return None
    try:
        return msgspec.json.decode(read_regular(out / REPORT, RECORD_BYTES), type=ShardedReport)
    except FileNotFoundError:
        return None
    except (OSError, *NOT_JSON) as err:
        raise DataError(
            f"{out / REPORT}: expected the report of a run in shards, got what cannot be read: {err}. Remove it, and "
            f"write it again: flawscope merge {out}"
        ) from err
