"""Runs stages one after another, each in a process of its own with a limit, and keeps the record up to date."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from gpu_stages import document
from gpu_stages.document import ABSENT, CRASHED, FAILED, LEFT_OUT, OUT_OF_TIME, PASSED
from gpu_stages.here import TOOLKIT
from gpu_stages.table import TWINS_NEED, Stage

TOOLS = Path(__file__).resolve().parent.parent
KEPT_OUTPUT = 4000
"""Characters of a stage's output that are kept where it did not pass."""


class Ended(NamedTuple):
    """How a process ended: exit status, None where it was stopped at its limit; output on both streams; seconds."""

    status: int | None
    output: str
    seconds: float


def environment(work: Path) -> dict[str, str]:
    """Return the environment of a stage: what was built and brought along comes before what is installed."""
    folders = [work / "build" / "tree", work / "site", TOOLS]
    paths = [str(folder) for folder in folders if folder.is_dir()]
    inherited = [os.environ["PYTHONPATH"]] if os.environ.get("PYTHONPATH") else []
    programs = [str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath), str(TOOLKIT)]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([*paths, *inherited]),
        "PATH": os.pathsep.join(programs),
        "PYTHONUNBUFFERED": "1",
    }


def run_process(command: Sequence[object], limit_s: float, work: Path) -> Ended:
    """Run a command in a session of its own; stop it and all that it started after `limit_s` seconds."""
    started = time.monotonic()
    # To a file and not to a pipe: a process that outlives the stage would keep a pipe open, and us with it.
    log = work / "output.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [str(part) for part in command],
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment(work),
            cwd=work,
            start_new_session=True,
        )
        try:
            status: int | None = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            # Also after a stage that ended by itself: what it left running would disturb the next one.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    text = log.read_text(encoding="utf-8", errors="replace")
    return Ended(status, text, time.monotonic() - started)


def run_stage(stage: Stage, twin: bool, limit_s: float, work: Path, extra: Sequence[object] = ()) -> dict[str, Any]:
    """Run one stage; return its entry in the document.

    Args:
        stage: Its row.
        twin: Whether to run its twin on the CPU.
        limit_s: Seconds until it is stopped.
        work: Folder of what is built.
        extra: Further arguments of the process.
    """
    result = work / "result.json"
    result.unlink(missing_ok=True)
    place = stage.twin if twin else stage.place
    command = [sys.executable, "-m", "gpu_stages.child", place, "--result", result, "--seconds", limit_s]
    ended = run_process([*command, "--work", work, *extra], limit_s, work)
    found = json.loads(result.read_text(encoding="utf-8")) if result.is_file() else {}
    entry = {"state": _state(ended, found), "on": "cpu twin" if twin else "gpu", "seconds": round(ended.seconds, 2)}
    entry |= {"limit_s": limit_s}
    for name in ("summary", "figures", "checks", "failed", "failures", "left_out"):
        if found.get(name):
            entry[name] = found[name]
    if entry["state"] == ABSENT:
        entry["reason"] = found["absent"]
    elif entry["state"] == OUT_OF_TIME:
        entry["reason"] = f"stopped after {limit_s:.0f} s"
    elif entry["state"] == CRASHED:
        entry["reason"] = f"ended by signal {signal.Signals(-(ended.status or 0)).name}"
    elif entry["state"] == FAILED:
        last = (ended.output.strip().splitlines() or ["it said nothing"])[-1]
        is_check = bool(found.get("failed"))
        entry["reason"] = f"{found['failed']} of {found['checks']} checks" if is_check else last[:300]
    if entry["state"] not in (PASSED, ABSENT):
        entry["output"] = ended.output[-KEPT_OUTPUT:]
    return entry


def _state(ended: Ended, found: Mapping[str, Any]) -> str:
    if ended.status is None:
        return OUT_OF_TIME
    if ended.status < 0:
        return CRASHED
    # A check that did not hold is not undone by what a later part lacks.
    if ended.status == 0 and found.get("absent") and not found.get("failed"):
        return ABSENT
    # A process that ends well without having said so has skipped its work.
    return PASSED if ended.status == 0 and found.get("ended") and not found.get("failed") else FAILED


def ask_here(work: Path, wheels: Path | None) -> dict[str, Any]:
    """Return what this machine has: `missing` and `gpu`, as `gpu_stages.here` says it."""
    ended = run_process([sys.executable, "-m", "gpu_stages.here", *([wheels] if wheels else [])], 120, work)
    try:
        found: dict[str, Any] = json.loads(ended.output.strip().splitlines()[-1])
    except (ValueError, IndexError):
        # A driver that ends or hangs the process that asks it: nothing on the GPU can be run.
        how = "hung" if ended.status is None else f"ended the process with status {ended.status}"
        found = {"missing": {"driver": f"asking it {how}"}, "gpu": None}
    return found


def machine(gpu: str | None) -> dict[str, Any]:
    """Return what is said of the machine before any stage: two runs of one file must agree on it."""
    return {"system": f"{platform.system()} {platform.machine()}", "cores": os.cpu_count(), "gpu": gpu}


class Plan(NamedTuple):
    """What a run shall do.

    Attributes:
        stages: In the order in which they run.
        named: Whether they were named: then they run again though they are finished.
        minutes: After which nothing more begins; None for no end.
        twins: Whether twins run although there is a GPU.
        extra: Further arguments of every stage.
    """

    stages: Sequence[Stage]
    named: bool = False
    minutes: float | None = None
    twins: bool = False
    extra: Sequence[object] = ()


def run(
    plan: Plan,
    record: dict[str, Any],
    out: Path,
    work: Path,
    missing: Mapping[str, Any],
    say: Callable[[str], None] = print,
) -> None:
    """Run a plan, writing the record after every stage.

    Args:
        plan: What to do.
        record: The document to go on with; changed.
        out: Its file.
        work: Folder of what is built.
        missing: Why things are not here by name, None for what is; see `here.missing`.
        say: Takes a line of progress.
    """
    started = time.monotonic()
    work.mkdir(parents=True, exist_ok=True)
    # In the order of the table, whichever run a stage is of.
    stages: dict[str, Any] = record["stages"]
    for stage in plan.stages:
        if not plan.named and stages.get(stage.name, {}).get("state") in document.FINISHED:
            say(f"{stage.name}: {stages[stage.name]['state']} in an earlier run")
            continue
        twin = plan.twins or missing.get("driver") is not None
        left = None if plan.minutes is None else 60 * plan.minutes - (time.monotonic() - started)
        entry = _without_running(stage, twin, left, missing, plan.minutes)
        if entry is None:
            full = stage.twin_limit_s if twin else stage.limit_s
            limit = full if left is None else min(full, left)
            say(f"{stage.name}: {'twin on the CPU' if twin else 'on the GPU'}, at most {limit:.0f} s")
            entry = run_stage(stage, twin, limit, work, plan.extra)
        stages[stage.name] = entry
        say(f"{stage.name}: {entry['state']}" + (f" ({entry['reason']})" if "reason" in entry else ""))
        document.write(out, record)


def _without_running(
    stage: Stage, twin: bool, left: float | None, missing: Mapping[str, Any], minutes: float | None
) -> dict[str, Any] | None:
    """Return the entry of a stage that is not run, or None where it shall run."""
    if twin and stage.twin is None:
        return {"state": ABSENT, "reason": missing.get("driver") or "it has no twin on a CPU"}
    needs = [need for need in stage.needs if not twin or need in TWINS_NEED]
    lacking = [missing[need] for need in needs if missing.get(need) is not None]
    if lacking:
        return {"state": ABSENT, "reason": lacking[0]}
    if left is not None and left < stage.least_s:
        return {"state": LEFT_OUT, "reason": f"no time left of {minutes:g} minutes"}
    return None
