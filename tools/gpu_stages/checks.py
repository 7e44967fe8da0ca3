"""The programs of checks of tests/cpp_ext, on the card or in emulation."""

from __future__ import annotations

import re
import subprocess

from gpu_stages.build import EMULATED, checks
from gpu_stages.card import Card
from gpu_stages.report import Absent, Report

_TOTAL = re.compile(r"(\d+) checks, (\d+) failures\s*$")


def on_card(report: Report) -> None:
    """Those that were compiled for the card."""
    facts = Card().driver.facts()
    _run(report, "card_", int(str(facts["compute_capability"]).replace(".", "")) * 10)


def on_cpu(report: Report) -> None:
    """The same in emulation."""
    _run(report, "", EMULATED)


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
