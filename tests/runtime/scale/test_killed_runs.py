"""Processes of a run in shards are killed: workers, the driver, and the worker of one image each time."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import poison_work
import pytest
from tiny_bundle import tiny_thresholds, write_tiny_bundle

from flawscope import cli
from flawscope.runtime.scale.executors import Placement
from flawscope.runtime.scale.run_shards import run_shards
from flawscope.runtime.scale.score_plan import ScoreRequest, plan_score
from flawscope.runtime.scale.work import WORKS

pytestmark = [pytest.mark.serial, pytest.mark.long]  # they kill processes

IMAGES = 240


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_tiny_bundle(tmp_path / "t.flaw", thresholds=tiny_thresholds(150.0), min_area_px=1)
    (tmp_path / "parts").mkdir()
    for number in range(IMAGES):
        cv2.imwrite(str(tmp_path / f"parts/{number:03d}.png"), np.full((16, 16, 3), number, np.uint8))
    return tmp_path


def command(*arguments: str) -> list[str]:
    options = ["--backend", "cpu", "--threads", "1", "--out"]
    return [sys.executable, "-m", "flawscope", "score", "t.flaw", "parts", *options, *arguments]


def in_shards(*arguments: str) -> list[str]:
    return command("out", "--workers", "2", "--shard-size", "2", *arguments)


def whole() -> int:
    return len(list(Path("out/shards").glob("*.jsonl")))


def until(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 120
    while not condition() and process.poll() is None:
        assert time.monotonic() < end, "it did not come true in time"
        time.sleep(0.002)


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_alive(pid: int) -> bool:
    try:
        return " Z " not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False


def killed_amid(number: signal.Signals) -> tuple[list[int], str]:
    """End a run by a signal when two of its shards are whole; return its workers, and what it said.

    Where this process got no time before the run was over, it is begun again.
    """
    for _ in range(10):
        process, workers = subprocess.Popen(in_shards(), stderr=subprocess.PIPE, text=True), list[int]()
        until(lambda: whole() >= 2, process)
        with contextlib.suppress(OSError):
            workers = children(process.pid)
        process.send_signal(number)
        told = process.communicate(timeout=120)[1]
        if len(workers) == 2 and not Path("out/report.json").exists():
            assert process.returncode in (-number, 128 + number), told
            return workers, told
        shutil.rmtree("out")
    raise AssertionError("no run was killed while it had two workers")


def run_with_two_kills() -> None:
    """Let a run come to its end of which two workers are killed, one after the other.

    Where this process got no time before the run was over, it is begun again.
    """
    for _ in range(10):
        process, kills = subprocess.Popen(in_shards(), stderr=subprocess.PIPE, text=True), 0
        for least in (2, 20):
            until(lambda least=least: whole() >= least, process)  # type: ignore[misc]
            with contextlib.suppress(OSError, IndexError):
                os.kill(children(process.pid)[0], signal.SIGKILL)
                kills += 1
        told = process.communicate(timeout=300)[1]
        assert process.returncode == 0, told
        if kills == 2:
            return
        shutil.rmtree("out")
    raise AssertionError("no run had two workers to kill")


def check_same_as_one_process() -> None:
    assert cli.run(command("one")[3:]) == 0
    assert Path("out/results.jsonl").read_bytes() == Path("one/results.jsonl").read_bytes()


@pytest.mark.parametrize(
    "number",
    [
        signal.SIGKILL,
        pytest.param(signal.SIGINT, marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, marks=pytest.mark.slow),
    ],
)
def test_a_driver_that_is_killed_leaves_what_is_whole_and_no_worker(number: signal.Signals) -> None:
    workers, told = killed_amid(number)
    end = time.monotonic() + 60
    while any(map(is_alive, workers)):
        assert time.monotonic() < end, "workers are left behind"
        time.sleep(0.02)
    if number != signal.SIGKILL:
        assert "--resume" in told
    kept = whole()
    assert kept >= 2
    assert cli.run(in_shards("--resume")[3:]) == 0
    report = json.loads(Path("out/report.json").read_bytes())
    assert report["shards_skipped"] == kept
    assert report["images"] == IMAGES
    first, second = report["runs"]
    assert (first["ended"], second["ended"]) == ("" if number == signal.SIGKILL else first["ended"] or None, "done")
    assert second["shards"] == IMAGES // 2 - kept
    assert not [path for path in Path("out/shards").iterdir() if path.name.startswith(".")]
    check_same_as_one_process()


@pytest.mark.slow
def test_workers_that_are_killed_cost_no_image() -> None:
    run_with_two_kills()
    assert json.loads(Path("out/report.json").read_bytes())["given_up"] == []
    check_same_as_one_process()


@pytest.mark.slow
def test_the_image_that_kills_its_process_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(WORKS, poison_work.KIND, poison_work.PLACE)
    request = ScoreRequest(
        bundle=Path("t.flaw"), images=["parts"], out=Path("out"), backend="cpu", threads=1, shard_size=8
    )
    planned = plan_score(request)
    work = poison_work.PoisonWork(planned.work.out, planned.plan.digest, planned.work.bundle, "/101.png")
    ran = run_shards(request.out, planned.plan, work, Placement(workers=2), show=lambda done, total: None)
    assert (ran.outcome.given_up, ran.missing) == ([101], 0)
    assert (ran.count("accept") + ran.count("reject"), ran.count("fault")) == (IMAGES - 1, 1)
    assert cli.run(command("one")[3:]) == 0
    lines, expected = (Path(f"{name}/results.jsonl").read_bytes().splitlines() for name in ("out", "one"))
    killed = json.loads(lines.pop(101))
    assert (killed["image"], killed["decision"]) == ("parts/101.png", "fault")
    assert "the scorer died" in killed["reason"]
    del expected[101]
    assert lines == expected
