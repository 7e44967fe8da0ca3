"""The benchmark of many generated images: what it refuses, and that a kill waits for the workers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
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
    run, is_ended = script.Run.__new__(script.Run), threading.Event()
    command = ["bash", "-c", "sleep 600 > /dev/null & echo $!; wait"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as run.process:
        worker = int(run.process.stdout.readline())

        def end() -> None:
            is_ended.set()
            os.kill(worker, signal.SIGKILL)

        timer = threading.Timer(0.5, end)
        timer.start()
        run.kill()
        assert is_ended.is_set()
        timer.join()
