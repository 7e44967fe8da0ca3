"""Worker processes on this machine: tasks come back once, a death is told with its reason, and none is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import toy_work
from project_paths import ROOT

from flawscope.errors import ArgumentError, BackendError, DataError
from flawscope.runtime.scale.executors import EXECUTORS, Placement
from flawscope.runtime.scale.executors.local import LocalExecutor, default_workers, gpu_variables
from flawscope.runtime.scale.executors.patience import Patience
from flawscope.runtime.scale.task import Died, Done, Failed, Task
from flawscope.runtime.scale.work import WORKS, encode_work

pytestmark = pytest.mark.serial  # they kill processes


@pytest.fixture(autouse=True)
def toys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(WORKS, toy_work.KIND, toy_work.PLACE)


def local(folder: Path, workers: int = 1, patience: Patience | None = None, **options: Any) -> LocalExecutor:
    work = toy_work.ToyWork(str(folder), **options)
    return LocalExecutor(encode_work(work), Placement(workers=workers), patience)


def outcomes_of(executor: LocalExecutor, tasks: list[Task]) -> list[Done | Died | Failed]:
    for task in tasks:
        executor.submit(task)
    outcomes: list[Done | Died | Failed] = []
    while len(outcomes) < len(tasks):
        outcomes += executor.wait()
    return outcomes


def is_alive(pid: int) -> bool:
    try:
        return " Z " not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False


def until(condition: Any, limit_s: float = 60) -> None:
    end = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end, "it did not come true in time"
        time.sleep(0.02)


def test_every_task_comes_back_once_and_workers_are_closed(tmp_path: Path) -> None:
    tasks = [Task(number, 3 * number, 3 * number + 3) for number in range(7)]
    with local(tmp_path, workers=2) as executor:
        assert executor.slots == 2
        done = outcomes_of(executor, tasks)
        pids = executor.pids
    assert sorted(outcome.task.shard for outcome in done) == list(range(7))
    assert all(isinstance(outcome, Done) and outcome.counts == {"accept": 3} for outcome in done)
    assert len(list(tmp_path.glob("part-*.txt"))) == 7
    assert 1 <= len(executor.workers) <= 2  # one may have done all before the other was ready
    for pid in pids:
        assert not is_alive(pid)
        assert (tmp_path / f"closed-{pid}").exists()


@pytest.mark.long
def test_a_death_is_told_with_its_reason_and_the_worker_replaced(tmp_path: Path) -> None:
    harm = {"0": "kill", "1": "crash", "2": "exit", "3": "lose"}
    with local(tmp_path, harm=harm) as executor:
        died = outcomes_of(executor, [Task(number, number, number + 1) for number in range(5)])
        assert executor.wait() == []  # nothing is under way: it does not wait for ever
    reasons = {outcome.task.shard: outcome.reason for outcome in died if isinstance(outcome, Died)}
    assert "ended by SIGKILL (so the system ends it where memory is short)" in reasons[0]
    assert "ended by SIGSEGV: Fatal Python error: Segmentation fault" in reasons[1]
    assert reasons[2] == "its process ended with status 3: toy: these are my last words"
    assert reasons[3] == "DeviceLost: toy: the device is lost. Start again"
    assert [outcome.task.shard for outcome in died if isinstance(outcome, Done)] == [4]
    assert len(executor.workers) == 5


def test_one_that_is_killed_from_outside_while_idle_is_replaced(tmp_path: Path) -> None:
    with local(tmp_path) as executor:
        os.kill(executor.pids[0], signal.SIGKILL)
        assert isinstance(outcomes_of(executor, [Task(0, 0, 1)])[0], Done | Died)
        assert isinstance(outcomes_of(executor, [Task(1, 1, 2)])[0], Done)


def test_an_error_of_a_task_ends_it_with_its_message_and_a_mistake_too(tmp_path: Path) -> None:
    with local(tmp_path, harm={"0": "refuse", "1": "mistake", "2": "print"}) as executor:
        refused, mistaken, printed = outcomes_of(executor, [Task(number, number, number + 1) for number in range(3)])
    assert refused == Failed(Task(0, 0, 1), "toy: expected a harmless item, got one that refuses. Take another.")
    assert isinstance(mistaken, Failed)
    assert "unexpected KeyError: 'toy'" in mistaken.message
    assert isinstance(printed, Done)  # half a megabyte on its output stops nobody


def test_one_that_hangs_is_killed_in_time(tmp_path: Path) -> None:
    with local(tmp_path, patience=Patience(0.3, 0.2), harm={"0": "hang"}) as executor:
        (died,) = outcomes_of(executor, [Task(0, 0, 1)])
    assert died == Died(Task(0, 0, 1), "its time was over before its answer was there")


def test_patience_follows_the_slowest_task() -> None:
    patience = Patience(10, 100)
    assert patience.limit_s(Task(0, 0, 4)) == 410
    patience.note(Done(Task(0, 0, 4), {}, 2.0))
    patience.note(Done(Task(1, 4, 8), {}, 1.0))
    assert patience.limit_s(Task(0, 0, 4)) == 10 + 20 * 0.5 * 4
    patience.note(Done(Task(1, 0, 1), {}, 1000.0))
    assert patience.limit_s(Task(0, 0, 4)) == 410


def test_work_that_cannot_be_opened_is_told_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="toy: expected a harmless item"), local(tmp_path, opening="refuse"):
        raise AssertionError("it has started")


def test_processes_that_never_start_are_not_tried_for_ever(tmp_path: Path) -> None:
    with (
        pytest.raises(BackendError, match=r"3 in a row that did not: its process ended with status 3: toy: these"),
        local(tmp_path, opening="exit"),
    ):
        raise AssertionError("it has started")


DRIVER = """
import sys
import toy_work
from flawscope.runtime.scale.executors import Placement
from flawscope.runtime.scale.executors.local import LocalExecutor
from flawscope.runtime.scale.task import Task
from flawscope.runtime.scale.work import WORKS, encode_work
WORKS[toy_work.KIND] = toy_work.PLACE
work = toy_work.ToyWork(sys.argv[1], harm={"0": "hang", "1": "hang"})
with LocalExecutor(encode_work(work), Placement(workers=3)) as executor:
    executor.submit(Task(0, 0, 1))
    executor.submit(Task(1, 1, 2))
    print(*executor.pids, flush=True)
    executor.wait()
"""


@pytest.mark.long
def test_a_driver_that_is_killed_leaves_no_process_behind(tmp_path: Path) -> None:
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(tmp_path)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT / "tests/helpers")},
    )
    assert driver.stdout is not None
    pids = [int(word) for word in driver.stdout.readline().split()]
    assert len(pids) == 3
    until(lambda: (tmp_path / "did-0").exists())
    assert all(is_alive(pid) for pid in pids)
    driver.kill()
    driver.wait()
    driver.stdout.close()
    until(lambda: not any(is_alive(pid) for pid in pids))


def test_gpus_go_round(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-5")

    def given(count: int, each: float) -> list[str]:
        return [variables["CUDA_VISIBLE_DEVICES"] for variables in gpu_variables(count, each)]

    assert given(3, 0.5) == ["3", "GPU-5", "3"]
    assert given(2, 1) == ["3", "GPU-5"]
    assert given(1, 2) == ["3,GPU-5"]
    assert list(gpu_variables(2, 0)) == [{}, {}]
    assert default_workers(Placement(gpus_per_worker=0.5)) == 4
    with pytest.raises(ArgumentError, match="for 2 workers with 2 each, got 2 GPUs, enough for 1"):
        given(2, 2)
    with pytest.raises(ArgumentError, match=r"a part of a GPU or a whole number of them, got 1\.5"):
        given(2, 1.5)


def test_no_worker_is_refused_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="expected at least 1, got 0"):
        local(tmp_path, workers=0)


def test_the_table_has_it() -> None:
    assert EXECUTORS["local"].place == "flawscope.runtime.scale.executors.local:LocalExecutor"
