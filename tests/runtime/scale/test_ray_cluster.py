"""Shards on a real Ray cluster of two node processes: equal bytes, and workers, nodes and drivers that are killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import toy_work
from free_ports import free_port
from project_paths import ROOT
from tiny_bundle import tiny_thresholds, write_tiny_bundle

from flawscope.errors import ArgumentError
from flawscope.runtime.scale.driver import Driver
from flawscope.runtime.scale.executors import Placement
from flawscope.runtime.scale.executors.ray import RayExecutor
from flawscope.runtime.scale.score_api import score
from flawscope.runtime.scale.task import Task
from flawscope.runtime.scale.work import WORKS, encode_work

pytestmark = [
    pytest.mark.slow,
    pytest.mark.serial,
    # Ray leaves files of its logs open in the process that starts a cluster.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning"),
]

IMAGES = 40
_STORE_BYTES = 80 << 20


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head with one CPU; tests add the second node, so that they can take it away."""
    pytest.importorskip("ray", reason="ray is not installed")
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        # Workers import the works of tests.
        helpers = str(ROOT / "tests" / "helpers")
        patch.setenv("PYTHONPATH", os.pathsep.join([helpers, os.environ.get("PYTHONPATH", "")]))
        head = {"num_cpus": 1, "include_dashboard": False, "object_store_memory": _STORE_BYTES}
        port = free_port()
        made = Cluster(initialize_head=True, head_node_args=head | {"ray_client_server_port": port})
        made.client_address = f"ray://127.0.0.1:{port}"
        yield made
        made.shutdown()


@pytest.fixture
def second(cluster: Any) -> Iterator[Any]:
    node = cluster.add_node(num_cpus=1, object_store_memory=_STORE_BYTES)
    yield node
    if node in cluster.list_all_nodes():
        cluster.remove_node(node)


@pytest.fixture(autouse=True)
def toys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(WORKS, toy_work.KIND, toy_work.PLACE)


@pytest.fixture
def parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of images, one broken, and a bundle beside it."""
    monkeypatch.chdir(tmp_path)
    write_tiny_bundle(tmp_path / "t.flaw", thresholds=tiny_thresholds(150.0), min_area_px=1)
    (tmp_path / "parts").mkdir()
    for number in range(IMAGES):
        image = np.full((16, 16, 3), 60 + 4 * number, np.uint8)
        cv2.imwrite(str(tmp_path / "parts" / f"{number:02d}.png"), image)
    (tmp_path / "parts" / "broken.png").write_bytes(b"no image")
    return tmp_path


def lines(out: str) -> bytes:
    return Path(out, "results.jsonl").read_bytes()


def scored(out: str, on: str, **options: Any) -> Any:
    return score("t.flaw", "parts", out=out, on=on, backend="cpu", threads=1, shard_size=3, **options)


def on_cluster(cluster: Any, folder: Path, workers: int = 2, **options: Any) -> tuple[toy_work.ToyWork, RayExecutor]:
    work = toy_work.ToyWork(str(folder), **options)
    placement = Placement(on=cluster.address, workers=workers, folder=folder)
    return work, RayExecutor(encode_work(work), placement)


def when(condition: Callable[[], bool], do: Callable[[], object]) -> threading.Thread:
    """Do something in another thread as soon as a condition holds."""

    def run() -> None:
        end = time.monotonic() + 120
        while not condition() and time.monotonic() < end:
            time.sleep(0.02)
        do()

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def files_of_tasks(folder: Path) -> int:
    return len(list(folder.glob("part-*.txt")))


def test_the_bytes_are_those_of_one_process_and_of_local_workers(cluster: Any, second: Any, parts: Path) -> None:
    reports = [scored(out, on, workers=2, maps=True) for out, on in (("ray", cluster.address), ("local", "local"))]
    assert lines("ray") == lines("local")
    assert lines("ray").count(b"\n") == IMAGES + 1
    archives = [sorted(Path(out, "shards").glob("*.maps.*")) for out in ("ray", "local")]
    assert [path.name for path in archives[0]] == [path.name for path in archives[1]] != []
    assert [path.read_bytes() for path in archives[0]] == [path.read_bytes() for path in archives[1]]
    assert [report.fault for report in reports] == [1, 1]
    with pytest.raises(ArgumentError, match="expected the plan of this command, got another one"):
        score("t.flaw", "parts", out="ray", on=cluster.address, backend="cpu", threads=1, shard_size=4, resume=True)
    command = [sys.executable, "-m", "flawscope", "score", "t.flaw", "parts", "--backend", "cpu", "--threads", "1"]
    one = subprocess.run([*command, "--out", "one"], capture_output=True, check=False)
    assert one.returncode == 1  # the broken image
    assert lines("one") == lines("ray")


def test_an_actor_that_is_killed_loses_nothing(cluster: Any, second: Any, tmp_path: Path) -> None:
    work, executor = on_cluster(cluster, tmp_path, seconds=0.05)
    with executor:
        assert executor.slots == 2
        pid = int(executor.workers[0].rpartition(" ")[2].rstrip(")"))
        killer = when(lambda: files_of_tasks(tmp_path) >= 3, lambda: os.kill(pid, signal.SIGKILL))
        tasks = [Task(number, 4 * number, 4 * number + 4) for number in range(20)]
        outcome = Driver(work, executor, lambda done, total: None).run(tasks, 80)
        killer.join()
        assert len(executor.workers) >= 2
    assert sorted(outcome.done) == list(range(20))
    assert files_of_tasks(tmp_path) == 20
    assert outcome.given_up == []
    # None where it was between two tasks.
    assert len(outcome.deaths) <= 1


def test_a_node_that_is_killed_loses_nothing(cluster: Any, second: Any, tmp_path: Path) -> None:
    work, executor = on_cluster(cluster, tmp_path, seconds=0.1)
    with executor:
        killer = when(
            lambda: files_of_tasks(tmp_path) >= 3 and len(executor.workers) >= 2,
            lambda: cluster.remove_node(second, allow_graceful=False),
        )
        tasks = [Task(number, 4 * number, 4 * number + 4) for number in range(30)]
        outcome = Driver(work, executor, lambda done, total: None).run(tasks, 120)
        killer.join()
    assert sorted(outcome.done) == list(range(30))
    assert files_of_tasks(tmp_path) == 30
    assert outcome.given_up == []
    # None where it was between two tasks; that all are done shows that it was noticed.
    assert len(outcome.deaths) <= 1
    assert all("its process or its node is gone" in died.reason for died in outcome.deaths)


def test_the_item_that_kills_is_found_and_given_up(cluster: Any, second: Any, tmp_path: Path) -> None:
    work, executor = on_cluster(cluster, tmp_path, harm={"5": "kill"})
    with executor:
        outcome = Driver(work, executor, lambda done, total: None).run([Task(0, 0, 8), Task(1, 8, 16)], 16)
    assert outcome.given_up == [5]
    assert outcome.done[0].counts == {"accept": 7, "fault": 1}
    assert (tmp_path / "part-0-8.txt").read_text().splitlines()[5].startswith("5 its process or its node is gone")


def test_a_driver_that_is_killed_leaves_no_worker_and_is_resumed(cluster: Any, second: Any, parts: Path) -> None:
    scored("local", "local", workers=2)
    driver = [
        sys.executable,
        "-m",
        "flawscope",
        *("score", "t.flaw", "parts", "--backend", "cpu", "--threads", "1", "--shard-size", "3"),
        *("--out", "ray", "--on", cluster.address, "--workers", "2"),
    ]
    process = subprocess.Popen(driver, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    shards = parts / "ray" / "shards"
    killer = when(lambda: len(list(shards.glob("shard-*.jsonl"))) >= 2 or process.poll() is not None, process.kill)
    process.wait()
    killer.join()
    assert process.returncode == -signal.SIGKILL
    assert not (parts / "ray" / "results.jsonl").exists()
    kept = {path.name: path.stat().st_mtime_ns for path in shards.glob("shard-*.jsonl")}
    assert kept
    report = scored("ray", cluster.address, workers=2, resume=True)
    assert lines("ray") == lines("local")
    assert report.fault == 1
    for name, changed in kept.items():
        assert (shards / name).stat().st_mtime_ns == changed, "what was whole was done again"


def test_a_driver_outside_of_the_cluster_gets_the_same_bytes(cluster: Any, second: Any, parts: Path) -> None:
    scored("local", "local", workers=2)
    report = scored("ray", cluster.client_address, workers=2)
    assert lines("ray") == lines("local")
    assert report.fault == 1


def test_a_cluster_of_its_own_needs_none_and_prints_nothing(parts: Path) -> None:
    pytest.importorskip("ray", reason="ray is not installed")
    command = [sys.executable, "-m", "flawscope", "score", "t.flaw", "parts", "--backend", "cpu", "--threads", "1"]
    own = subprocess.run(
        [*command, "--shard-size", "8", "--out", "ray", "--on", "ray", "--workers", "2"],
        capture_output=True,
        check=False,
        env={name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"},
    )
    here = subprocess.run(
        [*command, "--shard-size", "8", "--out", "local", "--workers", "2"], capture_output=True, check=False
    )
    assert own.returncode == here.returncode == 1
    assert lines("ray") == lines("local")
    # Times differ; what Ray prints would be further lines.
    assert own.stdout.count(b"\n") == here.stdout.count(b"\n")
    assert b"ray" not in own.stdout.replace(b"ray/", b"")
