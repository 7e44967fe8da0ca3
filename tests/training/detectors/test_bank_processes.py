"""`train patchcore|padim --processes 2`: the run of one process, and an end where one of them is killed.

Slow: each process imports torch. Their quick sibling is `test_bank_ranks.py`.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from tiny_dataset import CATEGORY

pytestmark = [pytest.mark.slow, pytest.mark.serial]

SETTINGS = {"patchcore": ["coreset=40", "batch_size=4"], "padim": ["channels=12", "batch_size=4"]}


def start(method: str, root: Path, out: Path, *options: str) -> subprocess.Popen[str]:
    settings = ["resize=64", "stages=[1,2]", *SETTINGS[method]]
    assignments = [word for setting in settings for word in ("--set", setting)]
    command = [sys.executable, "-m", "flawscope", "train", method, "--data", str(root / CATEGORY), "--out", str(out)]
    # As many threads as each of two processes has on two cores: with others networks round otherwise.
    return subprocess.Popen(
        [*command, *assignments, *options, "--no-drawn-check"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )


@pytest.mark.parametrize("options", [[], ["--set", "cross_fit=4"]])
@pytest.mark.parametrize("method", ["patchcore", "padim"])
def test_two_processes_write_the_run_of_one(tiny_root: Path, tmp_path: Path, method: str, options: list[str]) -> None:
    for count in ("1", "2"):
        process = start(method, tiny_root, tmp_path / count, "--processes", count, *options)
        _, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
    alone, together = (load_file(tmp_path / count / "weights.safetensors") for count in ("1", "2"))
    assert alone.keys() == together.keys()
    for name, tensor in alone.items():
        if method == "patchcore":
            np.testing.assert_array_equal(together[name], tensor)
        else:  # in float16, where its neighbours are further apart
            step = 2e-3 if tensor.dtype == np.float16 else 2e-7
            np.testing.assert_allclose(together[name], tensor, rtol=step, atol=step)
    records = [json.loads((tmp_path / count / "run.json").read_text()) for count in ("1", "2")]
    assert records[1]["facts"] == {**records[0]["facts"], "processes": 2}
    if options:
        assert records[0]["cross"]["images"] == records[1]["cross"]["images"]
        np.testing.assert_allclose(records[1]["cross"]["scores"], records[0]["cross"]["scores"], rtol=1e-4)


def rank_of(launcher: int, rank: int) -> int | None:
    """Return the process id of a rank that a launcher started, or None where it is not there yet."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1])
            if parent == launcher and f"RANK={rank}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                return int(folder.name)
        except OSError:
            continue
    return None


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="processes are found in /proc")
def test_a_process_that_is_killed_ends_the_fit(tiny_root: Path, tmp_path: Path) -> None:
    launcher = start("padim", tiny_root, tmp_path / "run", "--processes", "2")
    try:
        until = time.monotonic() + 120
        while (found := rank_of(launcher.pid, 1)) is None:
            assert launcher.poll() is None
            assert time.monotonic() < until
            time.sleep(0.02)
        os.kill(found, signal.SIGKILL)
        _, err = launcher.communicate(timeout=120)
    finally:
        launcher.kill()
    assert launcher.returncode != 0
    assert "Traceback" not in err
    assert "process 1 of 2: expected it to go on, got killed by SIGKILL" in err
    assert not (tmp_path / "run").exists()
