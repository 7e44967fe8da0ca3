"""NVIDIA's compute-sanitizer over every kernel on small sizes. Written, not run."""

from __future__ import annotations

import re
import subprocess
import sys

from gpu_stages.here import program
from gpu_stages.report import Absent, Report

TOOLS = ("memcheck", "racecheck", "synccheck", "initcheck")
REFUSED = ("Device not supported", "not supported on this", "Unable to find")
"""What it says where it cannot work at all, as in some virtual machines."""

_SUMMARY = re.compile(r"(?:ERROR|RACECHECK) SUMMARY: (\d+)")


def on_card(report: Report) -> None:
    """Each tool in turn."""
    tool_path = program("compute-sanitizer")
    done = []
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
        report.row("tools", tool=tool, errors=errors, status=ended.returncode, said=text[-1500:])
        report.check(errors == 0 and ended.returncode == 0, f"{tool}: {errors} errors, status {ended.returncode}")
        done.append(tool)
    report.summary(", ".join(done) or "no tool came to its end")


def errors_of(text: str) -> int:
    """Return the errors that a tool counts.

    Raises:
        Absent: If it says that it cannot work here, or counts nothing.
    """
    match = _SUMMARY.search(text)
    if match is None:
        lines = text.strip().splitlines() or ["it said nothing"]
        why = next((line for line in lines if any(words in line for words in REFUSED)), lines[-1])
        raise Absent(f"compute-sanitizer does not work here: {why.strip('= ')[:200]}")
    return int(match[1])
