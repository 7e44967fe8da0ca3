"""Helpers of all commands: progress bars, and the command line for records."""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
from collections.abc import Callable, Iterator


def command_line() -> str:
    """Return the running command line, quoted so that it can be typed again."""
    name = "flawscope" if os.path.basename(sys.argv[0]) in ("flawscope", "__main__.py") else sys.argv[0]  # noqa: PTH119
    return shlex.join([name, *sys.argv[1:]])


@contextlib.contextmanager
def progress_bars() -> Iterator[Callable[[str, int, int], None]]:
    """Yield a callback (task, completed, total) that draws bars on stderr, or nothing where that is no terminal."""
    if not sys.stderr.isatty():
        yield lambda task, completed, total: None
        return
    # Here and not at the top: rich costs start-up time, and where stderr is no terminal nobody sees its bars.
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description:<26}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bars:
        tasks: dict[str, object] = {}

        def report(task: str, completed: int, total: int) -> None:
            if task not in tasks:
                tasks[task] = bars.add_task(task, total=total)
            bars.update(tasks[task], completed=completed, total=total)  # type: ignore[arg-type]

        yield report
