"""Kills of commands: a share of the long harness (`make kills`), and proof that torn artefacts are found."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from killing.states import Expected, artefacts, scratch
from project_paths import ROOT

PLANTED = """
import os, sys, time
from killing.commands import COMMANDS, Command

def torn(path):
    path.mkdir(exist_ok=True)
    (path / "one").write_bytes(b"1")
    (path / "two").write_bytes(b"2")

def untidy(path):
    temporary = path.parent / f".flawscope-{os.getpid()}.tmp"
    temporary.write_bytes(b"1")
    os.rename(temporary, path)

def forgetful(path):
    if (path.parent / "begun").exists():
        sys.exit("begun before")
    (path.parent / "begun").write_bytes(b"")
    time.sleep(0.2)
    path.write_bytes(b"1")
    os.remove(path.parent / "begun")

if __name__ == "__main__":
    import kill_harness
    for name in ("torn", "untidy", "forgetful"):
        COMMANDS[name] = Command((f"planted:{name}", name))
    sys.exit(kill_harness.main())
"""


def run_harness(
    script: Path, out: Path, kills: int, *only: str, path: str = ""
) -> tuple[subprocess.CompletedProcess[str], dict[str, Any]]:
    """Run the harness; return the process, and the rows by the names of their commands."""
    arguments = [argument for name in only for argument in ("--only", name)]
    paths = (str(ROOT / "tools"), str(ROOT / "tests" / "helpers"), path, os.environ.get("PYTHONPATH", ""))
    process = subprocess.run(
        [sys.executable, str(script), "--kills", str(kills), "--jobs", "2", "--out", str(out), *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (out / "summary.json").is_file(), process.stderr
    return process, {row["name"]: row for row in json.loads((out / "summary.json").read_bytes())}


def check_rows(process: subprocess.CompletedProcess[str], rows: dict[str, Any], kills: int) -> None:
    assert process.returncode == 0, process.stdout
    assert sum(row["kills"] for row in rows.values()) == kills
    assert all(row["events"] > 0 for row in rows.values())
    # Kills that always come too late, or before anything is written, would show nothing.
    assert any(row["left_before"] for row in rows.values())


@pytest.mark.slow
def test_quick_commands_survive_kills(tmp_path: Path) -> None:
    names = ("bundle pack", "calibrate packed", "engine put")
    check_rows(*run_harness(ROOT / "tools" / "kill_harness.py", tmp_path, 30, *names), 30)


@pytest.mark.slow
def test_every_command_survives_kills(tmp_path: Path) -> None:
    process, rows = run_harness(ROOT / "tools" / "kill_harness.py", tmp_path, 50)
    check_rows(process, rows, 50)
    assert {"train", "export", "calibrate", "evaluate", "synth generate"} <= set(rows)


@pytest.mark.slow
def test_commands_that_tear_litter_or_refuse_are_found(tmp_path: Path) -> None:
    (tmp_path / "planted.py").write_text(PLANTED)
    process, rows = run_harness(
        tmp_path / "planted.py", tmp_path / "out", 45, "torn", "untidy", "forgetful", path=str(tmp_path)
    )
    assert process.returncode == 1
    assert any("after the kill: torn: neither before nor after" in text for text in rows["torn"]["findings"])
    assert any("left behind after the next command" in text for text in rows["untidy"]["findings"])
    assert any("the next command ended with 70" in text for text in rows["forgetful"]["findings"])
    assert rows["untidy"]["left_after"] > 0
    assert list((tmp_path / "out").glob("torn-*/finding.txt"))


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda folder: None, None),
        (lambda folder: (folder / "new").mkdir(), "new: neither before nor after: missing"),
        (lambda folder: (folder / "old.json").unlink(), "old.json: missing"),
        (lambda folder: (folder / "old.json").write_text("{"), "old.json: JSONDecodeError"),
        (lambda folder: (folder / "other").write_text(""), "other: unexpected"),
    ],
    ids=["before", "empty", "gone", "torn", "more"],
)
def test_states_between_before_and_after_are_told(
    tmp_path: Path, change: Callable[[Path], object], problem: str | None
) -> None:
    def folder(name: str, moment: str, is_after: bool) -> Path:
        place = tmp_path / name
        place.mkdir()
        (place / "old.json").write_text(moment if is_after else "{}")
        if is_after:
            (place / "new").mkdir()
            (place / "new" / "file").write_text("1")
        return place

    first, second = (artefacts(folder(moment, f'"{moment}"', is_after=True)) for moment in ("noon", "midnight"))
    before = folder("before", "", is_after=False)
    expected = Expected(artefacts(before), first, second)
    change(before)
    (before / ".flawscope-x.tmp").mkdir()
    problems = expected.problems(before, is_done=False)
    assert (problems == []) if problem is None else any(text.startswith(problem) for text in problems)
    assert expected.problems(before, is_done=True)
    assert scratch(before) == [".flawscope-x.tmp"]
    # The time in a file may be another one.
    assert expected.problems(folder("later", '"evening"', is_after=True), is_done=True) == []
