"""Nsight Compute on two shapes of the search. Written, not run."""

from __future__ import annotations

import csv
import subprocess
import sys

from gpu_stages.here import program
from gpu_stages.report import Absent, Report
from gpu_stages.said import last_lines, refusal

SHAPES = ((6272, 16384, 384, 1), (784, 16384, 384, 9))
SECTIONS = ("SpeedOfLight", "ComputeWorkloadAnalysis", "MemoryWorkloadAnalysis_Tables", "WarpStateStats", "LaunchStats")


REFUSED = ("ERR_NVGPUCTRPERM", "not supported on", "unsupported gpu", "driver resource was unavailable")
"""What it says where it cannot work: counters that only an administrator may read, a device that it does not know, or
counters that another program has."""


def on_card(report: Report) -> None:
    """Both shapes, as far as the time goes.

    Raises:
        Absent: If it says that it cannot work here.
    """
    for shape in SHAPES:
        name = " x ".join(map(str, shape))
        if report.left_s < 10:
            report.leave_out(name, "no time left")
            continue
        # Clocks stay as they are: measured is this machine, and the card may belong to others as well.
        command = [program("ncu"), "--clock-control", "none", "--csv", "--page", "details"]
        command += [part for section in SECTIONS for part in ("--section", section)]
        command += ["--kernel-name", "regex:search", "--launch-skip", "1", "--launch-count", "1"]
        command += [sys.executable, "-m", "gpu_stages.small_run", str(report.work), *map(str, shape)]
        limit = report.left_s
        try:
            ended = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False)
        except subprocess.TimeoutExpired:
            report.leave_out(name, f"not done after {limit:.0f} s")
            continue
        text, rows = ended.stdout + ended.stderr, metrics(ended.stdout)
        if not rows and (why := refusal(text, REFUSED)) is not None:
            raise Absent(f"Nsight Compute does not work here: {why}")
        if rows:
            report.row("shapes", shape=list(shape), metrics=rows)
        what = f"{len(rows)} metrics, status {ended.returncode}: {last_lines(text)}"
        report.check(bool(rows) and ended.returncode == 0, f"{name}: {what}")
    report.check(bool(report.figures("shapes")), "no shape was measured")
    report.summary(f"{len(report.figures('shapes'))} shapes")


def metrics(text: str) -> list[dict[str, str]]:
    """Return kernel, name, unit and value of every metric in the CSV of Nsight Compute."""
    lines = text.splitlines()
    start = next((place for place, line in enumerate(lines) if line.startswith('"ID"')), None)
    if start is None:
        return []
    return [
        {
            "kernel": row["Kernel Name"].split("(")[0],
            "name": row["Metric Name"],
            "unit": row["Metric Unit"],
            "value": row["Metric Value"],
        }
        for row in csv.DictReader(lines[start:])
        if row.get("Metric Name")
    ]
