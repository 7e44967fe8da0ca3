"""Real trainings in two processes beside the same in one, started by the command, killed and gone on with.

Slow: each process imports torch and trains. Their quick sibling is `test_ranks.py`, with a training of a few numbers.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from process_trainings import TRAININGS, prepare
from rank_processes import run_processes
from safetensors.numpy import load_file

pytestmark = [pytest.mark.slow, pytest.mark.serial]

SCRIPT = Path(__file__).parents[2] / "helpers" / "process_trainings.py"
# Relative, of the mean loss of an epoch. Without batch norm only the order of sums differs; batch norms over a few
# values of random networks enlarge that.
TOLERANCE = {"stfpm": 2e-2, "draem": 2e-3, "destseg": 2e-2}
PLAIN = 1e-5


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("processes")
    prepare(folder)
    return folder


def lines_of(run: Path) -> list[dict[str, Any]]:
    """Return the lines of all metrics below a run."""
    return [json.loads(text) for path in sorted(run.rglob("metrics.jsonl")) for text in path.read_text().splitlines()]


def test_two_processes_train_every_method_as_one_does(prepared: Path, tmp_path: Path) -> None:
    for count in (1, 2):
        for process in run_processes([str(SCRIPT), str(prepared), str(tmp_path / str(count)), *TRAININGS], count, 1500):
            assert process.returncode == 0, process.stderr[-3000:]
    for name in TRAININGS:
        alone, together = (lines_of(tmp_path / str(count) / name) for count in (1, 2))
        assert [line["step"] for line in alone] == [line["step"] for line in together]
        np.testing.assert_allclose(
            [line["loss"] for line in together],
            [line["loss"] for line in alone],
            rtol=TOLERANCE.get(name, PLAIN),
            err_msg=name,
        )
        facts = json.loads((tmp_path / "2" / name / "run.json").read_text())["facts"]
        size = TRAININGS[name][1]["batch_size"]
        assert facts["processes"] == 2
        assert (facts["effective_batch"], facts["batch_per_process"]) == (size, size // 2)
        assert "processes" not in json.loads((tmp_path / "1" / name / "run.json").read_text())["facts"]


# --- the command


def command(prepared: Path, out: Path, *more: str) -> list[str]:
    settings = {**TRAININGS["ddad"][1], "epochs": 12}
    named = [f"--set={key}={json.dumps(value)}" for key, value in settings.items() if key != "backbone"]
    data = ["--data", str(prepared / "parts"), "--category", "steel", "--backbone", "scattering", "--no-drawn-check"]
    return [sys.executable, "-m", "flawscope", "train", "ddad", *data, *named, "--out", str(out), *more]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def ranks_of(launcher: int) -> dict[int, int]:
    """Return rank -> process number of what a launcher has started."""
    found = {}
    for place in Path("/proc").iterdir():
        try:
            told = (place / "environ").read_bytes().split(b"\0")
            parent = int((place / "stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError, IndexError):
            continue
        if parent == launcher:
            found |= {int(one[5:]): int(place.name) for one in told if one.startswith(b"RANK=")}
    return found


def is_alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_for(condition: Any, seconds: float = 180) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def whole(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training in two processes without interruption."""
    out = tmp_path_factory.mktemp("whole") / "run"
    done = subprocess.run(
        command(prepared, out, "--processes", "2"), env=environment(), capture_output=True, text=True, check=True
    )
    assert done.stdout.count("run: ") == 1  # one process tells it
    assert "processes 2, effective batch 8, batch per process 4" in done.stdout
    return out


@pytest.mark.skipif(not Path("/proc/self/environ").is_file(), reason="finds processes by /proc")
@pytest.mark.parametrize("victim", ["rank 0", "rank 1", "launcher"])
def test_a_killed_process_ends_all_and_the_training_goes_on(
    prepared: Path, whole: Path, tmp_path: Path, victim: str
) -> None:
    out = tmp_path / "run"
    launcher = subprocess.Popen(
        command(prepared, out, "--processes", "2"),
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    checkpoints = tmp_path / "run.training" / "checkpoints"
    try:
        wait_for(lambda: launcher.poll() is not None or list(checkpoints.glob("epoch_*")))
        found = ranks_of(launcher.pid)
        assert sorted(found) == [0, 1], launcher.communicate()
        os.kill(launcher.pid if victim == "launcher" else found[int(victim[-1])], signal.SIGKILL)
        _, said = launcher.communicate(timeout=180)
        wait_for(lambda: not any(map(is_alive, found.values())), 180)
    finally:
        launcher.kill()
    if victim != "launcher":
        assert launcher.returncode == 2
        assert said.splitlines()[-1].startswith(f"error: process {victim[-1]} of 2: ")
        assert "got killed by SIGKILL" in said
        assert "Continue it with: flawscope train ddad" in said
        assert "Traceback" not in said
    # Gone on with in one process: who has an image changes nothing.
    more = ("--resume", "latest", *(("--processes", "2") if victim == "rank 0" else ()))
    subprocess.run(command(prepared, out, *more), env=environment(), capture_output=True, check=True)
    expected, got = ([(line["epoch"], line["step"], line["loss"]) for line in lines_of(run)] for run in (whole, out))
    np.testing.assert_allclose(got, expected, rtol=1e-4)
    if victim == "rank 0":
        assert got == expected
        weights = [load_file(run / "weights.safetensors") for run in (whole, out)]
        assert all(np.array_equal(value, weights[1][name]) for name, value in weights[0].items())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


def test_torchrun_does_the_same(prepared: Path, whole: Path, tmp_path: Path) -> None:
    _, _, *flawscope = command(prepared, tmp_path / "run")
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    subprocess.run([sys.executable, *torchrun, *flawscope], env=environment(), capture_output=True, check=True)
    weights = [load_file(run / "weights.safetensors") for run in (whole, tmp_path / "run")]
    assert all(np.array_equal(value, weights[1][name]) for name, value in weights[0].items())


@pytest.mark.skipif(not Path("/proc/self/environ").is_file(), reason="finds processes by /proc")
def test_a_killed_torchrun_leaves_no_process_behind(prepared: Path, tmp_path: Path) -> None:
    _, _, *flawscope = command(prepared, tmp_path / "run", "--set", "epochs=100000")
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    with (tmp_path / "said").open("wb") as said:
        launcher = subprocess.Popen(
            [sys.executable, *torchrun, *flawscope], env=environment(), stdout=said, stderr=said
        )
    found: dict[int, int] = {}
    try:
        checkpoints = tmp_path / "run.training" / "checkpoints"
        wait_for(lambda: launcher.poll() is not None or list(checkpoints.glob("epoch_*")))
        found = ranks_of(launcher.pid)
        assert sorted(found) == [0, 1], (tmp_path / "said").read_text()
        launcher.kill()
        wait_for(lambda: not any(map(is_alive, found.values())), 60)
    finally:
        launcher.kill()
        launcher.wait()
        for process in filter(is_alive, found.values()):
            os.kill(process, signal.SIGKILL)


def test_an_error_of_all_processes_is_said_once(prepared: Path, tmp_path: Path) -> None:
    # Only torch can tell: no check before the start finds it.
    wrong = command(prepared, tmp_path / "run", "--processes", "2", "--set", "learning_rate=1e30")
    done = subprocess.run(wrong, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.count("expected a finite") == 1, done.stderr
    assert "Traceback" not in done.stderr
