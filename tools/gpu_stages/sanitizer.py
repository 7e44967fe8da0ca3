"""NVIDIA's compute-sanitizer over every kernel on small sizes. Written, not run."""

from __future__ import annotations

import re
import subprocess
import sys

from gpu_stages.here import program
from gpu_stages.report import Absent, Report
from gpu_stages.said import last_lines, refusal

TOOLS = ("memcheck", "racecheck", "synccheck", "initcheck")
REFUSED = ("Device not supported", "not supported on this", "Unable to find", "ERR_NVGPUCTRPERM", "permission")
"""What it says where it cannot work at all, as in some virtual machines."""

WHOLE = "checks, failed: none"
"""What `small_run` says at its end: a tool may count no errors of a program that it never started."""

_SUMMARY = re.compile(r"(?:ERROR|RACECHECK) SUMMARY: (\d+)")


def on_card(report: Report) -> None:
    """Each tool in turn.

    Raises:
        Absent: If every tool that ran says that it cannot work here.
    """
    tool_path = program("compute-sanitizer")
    done, refused = [], []
    for number, tool in enumerate(TOOLS):
        limit = report.left_s / (len(TOOLS) - number)
        if limit < 5:
            report.leave_out(tool, "no time left")
            continue
        command = [tool_path, "--tool", tool, sys.executable, "-m", "gpu_stages.small_run", str(report.work)]
        try:
            ended = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False)
        except subprocess.TimeoutExpired:
            report.leave_out(tool, f"not done after {limit:.0f} s")
            continue
        text = ended.stdout + ended.stderr
        errors = errors_of(text)
        if errors is None and (why := refusal(text, REFUSED)) is not None:
            refused.append(why)
            report.leave_out(tool, why)
            continue
        report.row("tools", tool=tool, errors=errors, status=ended.returncode, said=text[-1500:])
        report.check(*judged(tool, errors, ended.returncode, text))
        done.append(tool)
    if refused and not done:
        raise Absent(f"compute-sanitizer does not work here: {refused[0]}")
    report.check(bool(done), "no tool came to its end")
    report.summary(", ".join(done) or "no tool came to its end")


def errors_of(text: str) -> int | None:
    """Return the errors that a tool counts, or None where it did not come to counting them."""
    match = _SUMMARY.search(text)
    return None if match is None else int(match[1])


def judged(tool: str, errors: int | None, status: int, text: str) -> tuple[bool, str]:
    """Return whether a tool found nothing in a run that was whole, and what to say where it is not so."""
    if errors is None:
        return False, f"{tool}: no summary, status {status}: {last_lines(text)}"
    if errors or status or WHOLE not in text:
        return False, f"{tool}: {errors} errors, status {status}: {last_lines(text)}"
    return True, tool
