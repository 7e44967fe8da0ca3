"""Cold start: the time from starting a process to its first decision."""

from __future__ import annotations

import itertools
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from flawscope.errors import BackendError
from flawscope.files import storage_errors, temporary_folder
from flawscope.runtime.inspector import Inspector

REPEATS = 3  # odd, so that a median is one of the runs
_TIMEOUT_S, _BUILD_TIMEOUT_S = 300, 3600
PARTS = ("process", "interpreter", "import", "load", "first_decision")

# Run in a new interpreter. `-c` puts the current folder on sys.path: a file such as json.py there must not be imported.
# Imports that are not part of a start (json, resident_memory) come after the last mark.
_CODE = """
import sys, time
sys.path[:] = [place for place in sys.path if place]
marks = [time.perf_counter()]
from flawscope.runtime import Inspector
marks.append(time.perf_counter())
inspector = Inspector.load(*sys.argv[1:5], **{name: int(value) for name, value in map(str.split, sys.argv[6:])})
marks.append(time.perf_counter())
result = inspector(sys.argv[5])
marks.append(time.perf_counter())
ended_ns = time.time_ns()
if result.score is None:
    sys.exit(result.reason)
import json
from flawscope.resident_memory import peak_kib, resident_kib
print(json.dumps([marks, ended_ns, resident_kib(), peak_kib()]))
"""


def cold_start(inspector: Inspector, bundle: Path) -> dict[str, Any]:
    """Start a new process three times, each of which loads a bundle and decides on its first golden image.

    The bundle's files are in the system's page cache by then, and engines in theirs: this is a restart of the program,
    not of the machine.

    Args:
        inspector: The loaded bundle. Backend and precision are its own, which are known to work, and the path is
            that which was asked for: `kernel` by name is refused where `auto` takes it with less.
        bundle: Path of the bundle.

    Returns:
        Medians in milliseconds: `process` from the call that starts it to the decision; as parts of that, `interpreter`
        (the start of Python), `import`, `load` (opening, checking every file, opening sessions, golden check) and
        `first_decision`. Every run as well, and the resident memory of such a process after the decision and at its
        peak in KiB. With `tensorrt` also one run with an empty cache, which builds the engine.

    Raises:
        BackendError: If a new process cannot do what this one did.
    """
    golden = inspector.manifest.golden_of(inspector.precision)[0].file
    with temporary_folder() as folder:
        image = folder / Path(golden).name
        with storage_errors(image):
            image.write_bytes(inspector.bundle.read(golden))
        cores = [f"{name} {value}" for name, value in inspector.cores.given().items()]
        arguments = [str(bundle), inspector.backend, inspector.asked_path, inspector.precision, str(image), *cores]
        runs = [_run(arguments) for _ in range(REPEATS)]
        without_engine = _without_engine(arguments) if inspector.backend == "tensorrt" else None
    memory = [run.pop("memory") for run in runs]
    return {
        "without_engine_ms": without_engine,
        "processes": REPEATS,
        "median_ms": {part: statistics.median(run[part] for run in runs) for part in PARTS},
        "runs_ms": runs,
        "rss_kib": _median([resident for resident, _ in memory]),
        "peak_rss_kib": _median([peak for _, peak in memory]),
    }


def _without_engine(arguments: list[str]) -> dict[str, float]:
    """Return milliseconds per part of a process that has to build its engine first."""
    with temporary_folder() as empty:
        run = _run(arguments, {"FLAWSCOPE_ENGINES": str(empty)}, _BUILD_TIMEOUT_S)
    del run["memory"]
    return run


def _run(
    arguments: list[str], variables: Mapping[str, str] | None = None, timeout_s: float | None = None
) -> dict[str, Any]:
    """Run one process; return milliseconds per part, and its memory as resident and peak KiB."""
    limit_s = _TIMEOUT_S if timeout_s is None else timeout_s
    # Not perf_counter: its origin may differ between processes. time_ns is the only clock that they certainly share.
    started_ns = time.time_ns()
    try:
        process = subprocess.run(
            [sys.executable, "-c", _CODE, *arguments],
            capture_output=True,
            text=True,
            timeout=limit_s,
            check=False,
            env={**os.environ, **(variables or {})},
        )
    except subprocess.TimeoutExpired as err:
        raise BackendError(
            f"cold start: expected a decision within {limit_s:g} s, got none. Leave it out with --no-cold-start."
        ) from err
    if process.returncode != 0:
        # The last line of a traceback names the error.
        reason = (process.stderr.strip().splitlines() or [f"exit status {process.returncode}"])[-1]
        raise BackendError(
            f"cold start: expected a new process to do what this one did, got: {reason}. "
            "Leave it out with --no-cold-start."
        )
    marks, ended_ns, *memory = msgspec.json.decode(process.stdout)
    steps = [1e3 * (after - before) for before, after in itertools.pairwise(marks)]
    whole = (ended_ns - started_ns) / 1e6
    # The start of the interpreter has no marks of its own: it is what the other parts leave.
    return {**dict(zip(PARTS, (whole, whole - sum(steps), *steps), strict=True)), "memory": memory}


def _median(values: list[int | None]) -> float | None:
    numbers = [value for value in values if value is not None]
    return statistics.median(numbers) if numbers else None
