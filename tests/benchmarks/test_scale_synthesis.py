"""The benchmark of many generated images: what it refuses, and that a kill waits for the workers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from benchmark_scripts import load_script


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_script("scale_synthesis")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["plan", "--images", "1500"], "expected a multiple of 1000, got 1500"),
        (["plan", "--images", "0"], "expected a multiple of 1000, got 0"),
        (["draw"], "expected the step plan before it, got none"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    script: ModuleType,
    arguments: list[str],
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["scale_synthesis.py", *arguments, "--work", str(tmp_path)])
    with pytest.raises(SystemExit):
        script.main()
    assert told in capsys.readouterr().err


def test_a_kill_waits_for_workers_that_live_a_little_longer(script: ModuleType) -> None:
    run = script.Run.__new__(script.Run)
    command = ["bash", "-c", "sleep 1 & echo $!; wait"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as run.process:
        worker = int(run.process.stdout.readline())
        assert script.resident_mb(worker) > 0
        run.kill()
        assert script.resident_mb(worker) == 0
