"""Nsight Compute on two shapes of the search. Written, not run."""

from __future__ import annotations

import csv
import subprocess
import sys

from gpu_stages.here import program
from gpu_stages.report import Absent, Report

SHAPES = ((6272, 16384, 384, 1), (784, 16384, 384, 9))
SECTIONS = ("SpeedOfLight", "ComputeWorkloadAnalysis", "MemoryWorkloadAnalysis_Tables", "WarpStateStats", "LaunchStats")


def on_card(report: Report) -> None:
    """Both shapes, as far as the time goes."""
    for shape in SHAPES:
        if report.left_s < 10:
            report.leave_out(" x ".join(map(str, shape)), "no time left")
            continue
        # Clocks stay as they are: measured is this machine, and the card may belong to others as well.
        command = [program("ncu"), "--clock-control", "none", "--csv", "--page", "details"]
        command += [part for section in SECTIONS for part in ("--section", section)]
        command += ["--kernel-name", "regex:search", "--launch-skip", "1", "--launch-count", "1"]
        command += [sys.executable, "-m", "gpu_stages.small_run", str(report.work), *map(str, shape)]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=report.left_s, check=False)
        rows = metrics(ended.stdout)
        if not rows:
            text = (ended.stdout + ended.stderr).strip().splitlines() or ["it said nothing"]
            why = next((line for line in text if "==ERROR==" in line), text[-1])
            raise Absent(f"Nsight Compute does not work here: {why[:200]}")
        report.row("shapes", shape=list(shape), metrics=rows)
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
