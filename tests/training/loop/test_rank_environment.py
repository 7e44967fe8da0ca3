"""Processes of a training end with the launcher that started them, and only with that."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from flawscope.training.loop import rank_environment
from flawscope.training.loop.rank_environment import FOLLOWED, LAUNCHER, die_with_launcher

pytestmark = [
    pytest.mark.serial,  # they kill processes
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells of a parent's death"),
]

RANK = """
import os, sys, time
launcher = os.getppid()
from flawscope.training.loop.rank_environment import die_with_launcher
die_with_launcher()
print("ready", flush=True)
while os.getppid() == launcher:
    time.sleep(0.02)
time.sleep(0.5)
print("lived on", flush=True)
"""
START = """
import os, subprocess, sys
told = {name: str(os.getpid()) for name in sys.argv[2:]}
subprocess.run([sys.executable, "-c", sys.argv[1]], env={**os.environ, **told}, start_new_session=True)
"""


@pytest.mark.parametrize(
    ("told", "lives_on"), [([LAUNCHER], False), (["TORCHELASTIC_RUN_ID", "RANK"], False), (["RANK"], True)]
)
def test_a_rank_ends_with_a_launcher_that_is_killed(told: list[str], lives_on: bool) -> None:
    environment = {name: text for name, text in os.environ.items() if name not in (LAUNCHER, "TORCHELASTIC_RUN_ID")}
    launcher = subprocess.Popen([sys.executable, "-c", START, RANK, *told], env=environment, stdout=subprocess.PIPE)
    assert launcher.stdout is not None
    with launcher.stdout as said:
        assert said.readline() == b"ready\n"
        launcher.send_signal(signal.SIGKILL)
        # The end of the pipe: the rank, which has it too, is gone.
        assert said.read() == (b"lived on\n" if lives_on else b"")
    launcher.wait()


@pytest.mark.parametrize("told", [{LAUNCHER: "1000000000"}, {"TORCHELASTIC_RUN_ID": "7"}])
def test_a_rank_whose_launcher_died_before_it_looked_ends_by_itself(
    told: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # A stand-in, as the call would end this process with its own parent; init took the rank over.
    monkeypatch.setattr(rank_environment, "end_with_parent", lambda parent=None: parent is None)
    monkeypatch.setattr(os, "getppid", lambda: 1)
    monkeypatch.setattr(Path, "readlink", lambda path: Path("/usr/lib/systemd/systemd"))
    ended: list[int] = []
    monkeypatch.setattr(os, "_exit", ended.append)
    die_with_launcher(told)
    assert ended == [FOLLOWED]


def test_torchrun_as_the_first_process_of_a_container_is_no_death(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank_environment, "end_with_parent", lambda parent=None: True)
    monkeypatch.setattr(os, "getppid", lambda: 1)
    monkeypatch.setattr(Path, "readlink", lambda path: Path("/usr/bin/python3.12"))
    monkeypatch.setattr(os, "_exit", lambda status: pytest.fail("it ended"))
    die_with_launcher({"TORCHELASTIC_RUN_ID": "7"})
