"""The programs of checks of tests/cpp_ext, on the card or in emulation."""

from __future__ import annotations

import re
import subprocess
import sys

from gpu_stages.build import EMULATED, checks
from gpu_stages.document import ROOT
from gpu_stages.driver import Driver
from gpu_stages.report import Absent, Report

MARK = "mark.gpu"

_TOTAL = re.compile(r"(\d+) checks, (\d+) failures\s*$")


def on_card(report: Report) -> None:
    """Those that were compiled for the card."""
    facts = Driver().facts()
    _run(report, "card_", int(str(facts["compute_capability"]).replace(".", "")) * 10)


def on_cpu(report: Report) -> None:
    """The same in emulation."""
    _run(report, "", EMULATED)


def marked_tests(report: Report) -> None:
    """The project's tests that are marked `gpu`, with the kernels that were built here. Written, not run."""
    if not (report.work / "build" / "tree").is_dir():
        raise Absent("the stage build has left no kernels for Python here")
    # These files alone: others need packages that the machine may lack.
    files = [str(path) for path in sorted((ROOT / "tests").rglob("test_*.py")) if MARK in path.read_text("utf-8")]
    if not files:
        raise Absent("no test is marked so")
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-p", "no:cacheprovider", *files]
    limit = max(1.0, report.left_s)
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=limit, check=False)
    said = (done.stdout + done.stderr).strip()
    report.put(said=said[-3000:])
    read_tests(report, done.returncode, said)


def read_tests(report: Report, status: int, said: str) -> None:
    """Make a check of what pytest says.

    Raises:
        Absent: If no test could be run: none is marked, all were skipped, or a package of the tests is not here.
    """
    lines = said.splitlines() or ["it said nothing"]
    missing = next((line for line in lines if "ModuleNotFoundError" in line), None)
    if status not in (0, 1) and missing is not None:
        raise Absent(f"the tests cannot be loaded: {missing.strip('E ')[:200]}")
    if status == 5 or (status == 0 and " passed" not in lines[-1]):
        raise Absent(f"no test was run: {lines[-1][:200]}")
    report.check(status == 0, f"pytest: status {status}: {lines[-1][:200]}")
    report.summary(lines[-1].strip("= ")[:100])


def _run(report: Report, prefix: str, architecture: int) -> None:
    programs = [report.work / "build" / f"{prefix}{source.stem}" for source in checks()]
    if not all(program.is_file() for program in programs):
        raise Absent("the stage build has left no programs of checks here")
    done = []
    for program in programs:
        command = [str(program), str(architecture)]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=report.left_s, check=False)
        match = _TOTAL.search(ended.stdout)
        report.row("programs", name=program.name, status=ended.returncode, said=ended.stdout[-2000:])
        for line in ended.stdout.splitlines():
            if line.startswith("FAILED"):
                report.check(False, f"{program.name}: {line}")
        report.check(
            match is not None and ended.returncode == 0,
            f"{program.name}: status {ended.returncode}: {(ended.stdout + ended.stderr).strip()[-300:]}",
        )
        done.append(match[1] if match else "?")
    report.summary(f"{' + '.join(done)} checks")
