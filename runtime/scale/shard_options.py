"""The options of commands that can work in shards: where, by how many workers, and which part."""

from __future__ import annotations

import contextlib
import re
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click

from flawscope.errors import ArgumentError, DataError, FlawscopeError
from flawscope.given_options import is_given
from flawscope.terminal import command_line, echo

_Command = TypeVar("_Command", bound=Callable[..., Any])

PARAMETERS = ("on", "workers", "gpus_per_worker", "shard_size", "shard", "resume", "plan_only")
"""The parameters of `shard_options`."""
_PART = re.compile(r"(\d{1,9})/(\d{1,9})")

_OPTIONS = (
    click.option(
        "--on",
        default="local",
        show_default=True,
        metavar="local|ray|ray://HOST:PORT",
        help="Work in shards, by processes of this machine or on a Ray cluster.",
    ),
    click.option("--workers", type=int, help="Worker processes, each with its own model.  [default: as --on chooses]"),
    click.option(
        "--gpus-per-worker", type=float, default=0.0, show_default=True, help="GPUs of a worker; 0.25: four share one."
    ),
    click.option("--shard-size", type=int, help="Images of a shard.  [default: 256, or the multiple of --batch below]"),
    click.option(
        "--shard", metavar="I/N", help="Do part I of N alone (from 0), as a job of an array; the last one merges."
    ),
    click.option("--resume", is_flag=True, help="Go on with the run in --out: what is whole is kept."),
    click.option("--plan-only", is_flag=True, help="Only make the plan, for jobs to share."),
)


def shard_options(command: _Command) -> _Command:
    """Add the options to a click command, as its arguments `PARAMETERS`."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


@dataclass(frozen=True)
class Part:
    """Which shards a job does: every `count`-th from `index` on. All of them where it is no part."""

    index: int = 0
    count: int = 1
    is_given: bool = False

    @property
    def pair(self) -> tuple[int, int]:
        """Both numbers."""
        return self.index, self.count


def read_part(text: str | None) -> Part:
    """Return the part that `--shard` names.

    Raises:
        ArgumentError: If it is none.
    """
    if text is None:
        return Part()
    found = _PART.fullmatch(text.strip())
    if found is None:
        raise ArgumentError(f"--shard: expected I/N, such as 0/8 for the first of eight jobs, got {text!r}.")
    index, count = int(found[1]), int(found[2])
    if not 0 <= index < count:
        raise ArgumentError(
            f"--shard: expected I from 0 to N-1, here 0 to {max(count - 1, 0)}, got {text!r}. Let the numbers of the "
            f"jobs begin at 0, as with sbatch --array=0-{max(count - 1, 0)}."
        )
    return Part(index, count, is_given=True)


@contextlib.contextmanager
def saying_how_to_go_on(plan: Path, words: Callable[[], str], *, keeps_overwrite: bool = False) -> Iterator[None]:
    """Say what is whole, and the command that goes on, where the block ends early: Ctrl-C, SIGTERM or an error.

    Args:
        plan: File of the plan; without it nothing was begun, and nothing is said.
        words: Says what is whole, and where; raises DataError where there is nothing to go on with.
        keeps_overwrite: Whether `--overwrite` may stand beside `--resume`.
    """
    try:
        yield
    except (KeyboardInterrupt, SystemExit, FlawscopeError):
        with contextlib.suppress(DataError):
            if plan.is_file():
                said = words()
                dropped = {"--resume"} if keeps_overwrite else {"--resume", "--overwrite"}
                kept = [word for word in shlex.split(command_line()) if word not in dropped]
                echo(f"note: {said}. Go on with: {shlex.join([*kept, '--resume'])}", err=True)
        raise


def is_sharded(out: Path | None, on: str, workers: int | None) -> bool:
    """Return whether the running command works in shards: whether one of these options asks for it.

    `--on local` and `--workers 1` without `--out` are what a command does by itself.

    Raises:
        ArgumentError: If one does, and there is no folder for shards.
    """
    given = [name for name in PARAMETERS if is_given(name)]
    if not given:
        return False
    if out is not None:
        return True
    if set(given) <= {"on", "workers"} and on == "local" and workers in (None, 1):
        return False
    option = f"--{given[0].replace('_', '-')}"
    raise ArgumentError(
        f"{option}: expected --out DIR beside it, the folder of shards and results, got none. Name one."
    )
