"""The plan of a run in shards: what is to be done, with what, and how it is cut. `plan.json` of the folder.

A plan is made once and never changed: whoever works on it later, on this machine or another, does exactly the same.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import msgspec

from flawscope import __version__
from flawscope.errors import ArgumentError, DataError
from flawscope.files import atomic_folder
from flawscope.open_files import RECORD_BYTES, read_regular
from flawscope.runtime.scale.plan_forms import form_problem
from flawscope.runtime.scale.task import Task
from flawscope.text import NOT_JSON, encode_json

PLAN, ITEMS, OFFSETS, SHARDS, REPORT = "plan.json", "items.jsonl", "items.offsets", "shards", "report.json"
RUNS = "runs"
"""Folder of what each run left of itself."""
DEFAULT_SHARD = 256
"""Items of a shard: a minute of work or so, which is what a killed worker loses at most."""


class Plan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, dict=True):
    """The file `plan.json`.

    Attributes:
        schema: Version of the form of the folder.
        kind: Kind of work, a row of `flawscope.runtime.scale.work.WORKS`.
        flawscope: Version that made it: another one may compute other bits.
        bundle: Digest of the bundle; empty for work without one.
        asked: What was asked for, by option: a run that goes on must ask for the same.
        fixed: What was chosen where that leaves a choice, such as the backend: all workers take it.
        items: Items.
        items_sha256: SHA-256 of `items.jsonl`; empty where items are numbers alone.
        shard_size: Items of a shard; the last may have fewer.
    """

    schema: Literal[1] = 1
    kind: str
    flawscope: str = __version__
    bundle: str = ""
    asked: dict[str, Any]
    fixed: dict[str, Any] = {}
    items: int
    items_sha256: str = ""
    shard_size: int = DEFAULT_SHARD

    def __post_init__(self) -> None:
        """Refuse what cannot be cut."""
        if self.items < 1 or self.shard_size < 1:
            raise ArgumentError(
                f"plan: expected at least 1 item and a shard size of at least 1, got {self.items} and "
                f"{self.shard_size}. Name images, or another --shard-size."
            )

    @property
    def shards(self) -> int:
        """How many shards it has."""
        return -(-self.items // self.shard_size)

    def task(self, shard: int) -> Task:
        """Return a shard by its number, as a whole."""
        first = shard * self.shard_size
        return Task(shard, first, min(first + self.shard_size, self.items))

    def tasks(self, part: tuple[int, int] = (0, 1)) -> Iterator[Task]:
        """Yield the shards of one of N parts, as `--shard I/N` names it: every N-th from I on."""
        index, count = part
        return (self.task(shard) for shard in range(index, self.shards, count))

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 of the plan: workers compare it, so that none works on another plan under the same name."""
        return hashlib.sha256(encode_json(self, order="deterministic")).hexdigest()


def write_plan(out: Path, make: Callable[[Path], Plan], *, overwrite: bool = False) -> Plan:
    """Make the folder of a plan, whole or not at all.

    Args:
        out: The folder.
        make: Returns the plan, after it has written into a folder what belongs to it, such as the items.
        overwrite: Whether an earlier run may be replaced, with all that was made by it.

    Raises:
        ArgumentError: If something else lies there, or an earlier run that may not be replaced.
        StorageError: If it cannot be written.
    """
    own = (PLAN, ITEMS, OFFSETS, SHARDS, RUNS, REPORT, "results.jsonl")
    marker = PLAN if (out / PLAN).is_file() else REPORT  # the latter: of a run that had no plan
    with atomic_folder(out, replace_if=marker, overwrite=overwrite, own=own, durable=True) as folder:
        plan = make(folder)
        (folder / PLAN).write_bytes(msgspec.json.format(encode_json(plan, order="deterministic"), indent=1) + b"\n")
        (folder / SHARDS).mkdir()
    return plan


def read_plan(out: Path, kind: str | None = None) -> Plan:
    """Return the plan of a folder.

    Args:
        out: The folder.
        kind: What kind it must be of; None for any.

    Raises:
        DataError: If there is none, it cannot be read, is of another kind, or lacks what one of its kind holds.
    """
    try:
        plan = msgspec.json.decode(read_regular(out / PLAN, RECORD_BYTES), type=Plan)
    except OSError as err:
        raise DataError(
            f"{out}: expected the folder of a run in shards, with {PLAN}, got: {err.strerror or err}. Name the folder "
            "that --out named."
        ) from err
    except NOT_JSON as err:
        raise DataError(
            f"{out / PLAN}: expected a plan of this version of flawscope, got what it cannot read: {err}. Use the "
            "version that made it, put it back, or start again in another folder."
        ) from err
    if kind is not None and plan.kind != kind:
        raise DataError(f"{out / PLAN}: expected a plan of {kind}, got one of {plan.kind}. Choose another folder.")
    # Of another version it may hold other things: whoever goes on says that it is another one.
    if plan.flawscope == __version__:
        check_form(out, plan)
    return plan


def check_form(out: Path, plan: Plan) -> None:
    """Raise DataError unless a plan holds what one of its kind holds."""
    if problem := form_problem(plan.kind, plan.asked, plan.fixed):
        raise DataError(
            f"{out / PLAN}: expected a plan of {plan.kind} as flawscope {__version__} writes it, got: {problem}. Use "
            "the version that made it, put it back, or start again in another folder."
        )


def check_still_there(out: Path, plan: Plan) -> None:
    """Raise DataError unless a plan still lies in its folder: another run may have replaced it in the middle of work.

    Raises:
        DataError: If another one lies there, or none.
    """
    if read_plan(out).digest != plan.digest:
        raise DataError(
            f"{out}: expected the plan of this run, got another one: the folder was replaced since, or is not the same "
            "on every machine. Give each run a folder of its own, and run the command again."
        )


_known: dict[str, Plan] = {}


def known_plan(out: Path, digest: str) -> Plan:
    """Return the plan of a folder by its digest; it is read once in a process.

    Raises:
        DataError: As `read_plan`, or if another plan lies there.
    """
    plan = _known.get(digest)
    if plan is None:
        plan = read_plan(out)
        if plan.digest != digest:
            raise DataError(
                f"{out}: expected the plan of this run, got another one. Is it the same folder on every machine? Run "
                "the command again with --resume."
            )
        _known[digest] = plan
    return plan


def check_overwrite(overwrite: bool, *, goes_on: bool) -> None:
    """Raise ArgumentError where a run shall replace an earlier one and go on with it, too."""
    if overwrite and goes_on:
        raise ArgumentError(
            "overwrite: expected a run of its own, got one that goes on or is shared: it would replace what was done. "
            "Leave --overwrite out, or --resume and --shard."
        )


def check_same(out: Path, plan: Plan, wanted: Plan) -> None:
    """Raise ArgumentError unless a plan is the one that is wanted now, item by item.

    Args:
        out: The folder of the plan, for the message.
        plan: The plan that lies there.
        wanted: What is asked for now; what it leaves open (`asked` of None) may be anything.
    """
    differences = [
        f"{name} {getattr(plan, name)!r}, not {getattr(wanted, name)!r}"
        for name in ("kind", "flawscope", "bundle", "items", "shard_size")
        if getattr(plan, name) != getattr(wanted, name)
    ]
    if plan.items == wanted.items and plan.items_sha256 != wanted.items_sha256:
        differences.append("as many items, but others")
    differences += [
        f"{name} {plan.asked.get(name)!r}, not {value!r}"
        for name, value in wanted.asked.items()
        if value is not None and plan.asked.get(name) != value
    ]
    if differences:
        raise ArgumentError(
            f"{out}: expected the plan of this command, got another one: {'; '.join(differences)}. Give the options "
            "that it was made with, or choose another name for --out."
        )
