"""Stages that end in every way there is, for the runner of `tools/gpu_check.py`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from gpu_stages.report import Absent, Report
from gpu_stages.table import Stage


def passes(report: Report) -> None:
    report.put(answer=42, rate=float("nan"))
    report.check(True, "a check that holds")
    report.summary("all well")


def fails(report: Report) -> None:
    report.row("table", n=1)
    report.check(True, "holds")
    report.check(False, "what does not hold")


def raises(report: Report) -> None:
    raise RuntimeError("something unforeseen")


def crashes(report: Report) -> None:
    report.put(before="the crash")
    os.kill(os.getpid(), signal.SIGSEGV)


def leaves_early(report: Report) -> None:
    sys.stdout.flush()
    os._exit(0)


def is_absent(report: Report) -> None:
    raise Absent("no such tool here")


def fails_and_lacks(report: Report) -> None:
    report.check(False, "what does not hold")
    raise Absent("no such tool here")


def hangs(report: Report) -> None:
    report.put(before="the end")
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    Path(report.work / "child.pid").write_text(str(child.pid))
    time.sleep(600)


def toy(name: str, *, limit_s: int = 30, least_s: int = 1, needs: tuple[str, ...] = (), twin: bool = True) -> Stage:
    """Return a row whose stage and twin are a function above."""
    place = f"toy_stages:{name}"
    return Stage(name, "for tests", place, limit_s, least_s, needs, place if twin else None, limit_s)
