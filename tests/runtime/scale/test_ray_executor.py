"""The executor `ray` with a stand-in for Ray, and what a worker checks; test_ray_cluster.py has real clusters."""

from __future__ import annotations

import os
import socket
import sys
import threading
from pathlib import Path
from typing import Any

import msgspec
import pytest
import toy_work
from stand_in_ray import StandInRay

from flawscope import __version__
from flawscope.errors import ArgumentError, BackendError, DataError, MissingExtra
from flawscope.runtime.scale.driver import Driver
from flawscope.runtime.scale.executors import Placement, executor_of, make_executor, ray_cluster
from flawscope.runtime.scale.executors.messages import (
    Leaving,
    Marker,
    Opened,
    Order,
    Refusal,
    decode_answer,
    encode_order,
)
from flawscope.runtime.scale.executors.patience import Patience
from flawscope.runtime.scale.executors.ray import RayExecutor
from flawscope.runtime.scale.executors.ray_cluster import quiet_output, reason_of
from flawscope.runtime.scale.executors.worker_side import WorkerSide
from flawscope.runtime.scale.task import Died, Done, Failed, Task
from flawscope.runtime.scale.work import WORKS, encode_work


@pytest.fixture(autouse=True)
def toys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(WORKS, toy_work.KIND, toy_work.PLACE)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def stand_in(monkeypatch: pytest.MonkeyPatch, *cpus: int, harm: Any = lambda number, name: False) -> StandInRay:
    ray = StandInRay(cpus or (2, 2), harm)
    monkeypatch.setitem(sys.modules, "ray", ray)
    return ray


def on_ray(folder: Path, patience: Patience | None = None, **options: Any) -> RayExecutor:
    placement = Placement(on=options.pop("on", "ray"), workers=options.pop("workers", 2), folder=folder)
    return RayExecutor(encode_work(toy_work.ToyWork(str(folder), **options)), placement, patience)


def test_tasks_are_done_by_actors_of_a_cluster_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ray, tasks = stand_in(monkeypatch), [Task(number, number, number + 1) for number in range(6)]
    work = toy_work.ToyWork(str(tmp_path))
    with on_ray(tmp_path) as executor:
        outcome = Driver(work, executor, lambda done, total: None).run(tasks, 6)
        assert executor.workers[0].endswith(f"({socket.gethostname()}, process {os.getpid()})")
    assert sorted(outcome.done) == list(range(6))
    name, address, options = ray.calls[0]
    assert (name, address, options["num_cpus"], options["log_to_driver"]) == ("init", "local", 2, False)
    assert ray.calls[-1] == ("shutdown",)
    assert "RAY_USAGE_STATS_ENABLED" not in os.environ
    assert {actor.options["num_cpus"] for actor in ray.actors} == {1}
    assert {actor.options["max_restarts"] for actor in ray.actors} == {0}
    assert not list(tmp_path.glob(".flawscope-*"))


def test_an_actor_that_dies_is_told_and_replaced(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ray = stand_in(monkeypatch, harm=lambda number, name: number == 0 and name == "run")
    with on_ray(tmp_path, workers=1, harm={"1": "lose", "2": "refuse"}) as executor:
        answers = []
        for task in (Task(0, 0, 1), Task(0, 0, 1), Task(1, 1, 2), Task(2, 2, 3)):
            executor.submit(task)
            answers += executor.wait()
    died, done, lost, refused = answers
    assert died == Died(Task(0, 0, 1), "its process or its node is gone: Ray says: it was killed")
    assert isinstance(done, Done)
    assert lost == Died(Task(1, 1, 2), "DeviceLost: toy: the device is lost. Start again")
    assert isinstance(refused, Failed)
    assert [actor.is_dead for actor in ray.actors] == [True] * 3  # none is left, idle or not


def test_one_that_never_opens_ends_the_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stand_in(monkeypatch, harm=lambda number, name: True)
    with pytest.raises(BackendError, match="got 3 in a row that did not: its process or its node is gone"):
        on_ray(tmp_path).__enter__()
    stand_in(monkeypatch)
    with pytest.raises(DataError, match="toy: expected a harmless item"):
        on_ray(tmp_path, opening="refuse").__enter__()


def test_one_that_hangs_is_killed_in_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stand_in(monkeypatch)
    with on_ray(tmp_path, Patience(0.2, 0.0), workers=1, seconds=5.0) as executor:
        executor.submit(Task(0, 0, 1))
        assert executor.wait() == [Died(Task(0, 0, 1), "its time was over before its answer was there")]


def test_workers_are_as_many_as_the_nodes_have_room_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stand_in(monkeypatch, 5, 3)
    work = encode_work(toy_work.ToyWork(str(tmp_path)))
    with RayExecutor(work, Placement(on="ray", threads=2)) as executor:
        assert executor.slots == 3
    with RayExecutor(work, Placement(on="ray", threads=2, most=2)) as executor:
        assert executor.slots == 2
    with pytest.raises(BackendError, match="a node with 6 CPUs and 0 GPUs for a worker, got none among 2"):
        RayExecutor(work, Placement(on="ray", threads=6)).__enter__()
    with pytest.raises(BackendError, match=r"1 CPUs and 0\.5 GPUs"):
        RayExecutor(work, Placement(on="ray", gpus_per_worker=0.5)).__enter__()
    with pytest.raises(ArgumentError, match="at least 1, got 0"):
        RayExecutor(work, Placement(on="ray", workers=0))


def test_a_cluster_that_is_connected_already_is_used_and_stays(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ray = stand_in(monkeypatch)
    ray.init("mine")
    with on_ray(tmp_path) as executor:
        assert executor.slots == 2
    assert ray.is_initialized()
    assert [call[0] for call in ray.calls] == ["init"]


def test_addresses(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert [executor_of(on) for on in ("ray", "ray://head:10001", "10.0.0.1:6379", "local")] == ["ray"] * 3 + ["local"]
    with pytest.raises(ArgumentError, match="expected one of local, ray, ray://HOST:PORT, HOST:PORT, got 'rai'"):
        executor_of("rai")
    ray = stand_in(monkeypatch)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with on_ray(tmp_path, on=address):
            pass
        monkeypatch.setenv("RAY_ADDRESS", f"ray://{address}")
        with on_ray(tmp_path):
            pass
    assert [call[1] for call in ray.calls if call[0] == "init"] == [address, f"ray://{address}"]
    monkeypatch.setattr(ray_cluster, "_ANSWER_S", 0.2)
    with pytest.raises(BackendError, match=rf"expected a cluster at ray://{address}, got: .*refused"):
        on_ray(tmp_path).__enter__()


def test_the_port_of_a_cluster_that_has_just_started_is_waited_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ray, asked = stand_in(monkeypatch), []
    with socket.create_server(("127.0.0.1", 0)) as server:
        connect = socket.create_connection

        def opens_late(*arguments: Any, **options: Any) -> socket.socket:
            asked.append(arguments)
            if len(asked) < 3:
                raise ConnectionRefusedError(111, "Connection refused")
            return connect(*arguments, **options)

        monkeypatch.setattr(ray_cluster, "_PAUSE_S", 0.01)
        monkeypatch.setattr(ray_cluster.socket, "create_connection", opens_late)
        host, port = server.getsockname()
        with on_ray(tmp_path, on=f"ray://{host}:{port}"):
            pass
        assert len(asked) == 3
        # Of a node nobody waits: its port is open when `ray start` returns.
        asked.clear()
        with pytest.raises(BackendError, match="refused"):
            on_ray(tmp_path, on=f"{host}:{port}").__enter__()
    assert len(asked) == 1
    assert [call[0] for call in ray.calls] == ["init", "shutdown"]


@pytest.mark.parametrize("failures", [2, 3])
def test_a_driver_whose_process_on_the_cluster_died_is_served_by_the_next_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, failures: int
) -> None:
    ray = stand_in(monkeypatch)
    died = ConnectionAbortedError("Initialization failure from server:\nZombieProcess: it's a zombie")
    ray.refusals = [died] * failures
    monkeypatch.setattr(ray_cluster, "_PAUSE_S", 0.01)
    with socket.create_server(("127.0.0.1", 0)) as server:
        executor = on_ray(tmp_path, on=f"ray://127.0.0.1:{server.getsockname()[1]}")
        if failures == 2:
            with executor:
                assert executor.slots == 2
        else:
            with pytest.raises(BackendError, match=r"got ConnectionAbortedError: ZombieProcess: it's a zombie\. Is it"):
                executor.__enter__()
    assert [call[0] for call in ray.calls].count("init") == 3


def test_without_ray_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtra, match=r'pip install "flawscope\[ray\]"'):
        make_executor(b"{}", Placement(on="ray"))


def test_a_worker_checks_version_and_folder(tmp_path: Path) -> None:
    def opened(order: bytes) -> Any:
        return decode_answer(WorkerSide().open(order))

    work, marker = encode_work(toy_work.ToyWork(str(tmp_path))), tmp_path / "marker"
    other = Order(msgspec.Raw(work), {}, "0.0.1")
    told = opened(msgspec.json.encode(other))
    assert isinstance(told, Refusal)
    assert f"expected flawscope 0.0.1, which the driver has, got {__version__}" in told.message
    for text in (None, "of another run"):
        if text is not None:
            marker.write_text(text)
        told = opened(encode_order(work, Marker(str(marker), "mine")))
        assert isinstance(told, Refusal)
        assert f"{tmp_path}: expected on {socket.gethostname()} the folder that the driver writes to" in told.message
    marker.write_text("mine")
    assert isinstance(opened(encode_order(work, Marker(str(marker), "mine"))), Opened)
    assert isinstance(opened(encode_order(encode_work(toy_work.ToyWork(str(tmp_path), opening="lose")))), Leaving)


def test_an_error_keeps_its_class_and_status() -> None:
    assert isinstance(Refusal("DataError", "d").as_error(), DataError)
    assert type(Refusal("MissingExtra", "m").as_error()) is BackendError
    assert type(Refusal("__name__", "n").as_error()) is BackendError


def test_what_ray_prints_does_not_mix_with_results(capsys: pytest.CaptureFixture[str]) -> None:
    with quiet_output():
        listener = threading.Thread(
            target=lambda: sys.stdout.write("a worker died\n"), name="ray_listen_error_messages"
        )
        listener.start()
        listener.join()
        sys.stdout.write("a result\n")
    sys.stdout.write("another\n")
    assert capsys.readouterr() == ("a result\nanother\n", "")


def test_the_words_of_ray_are_cut() -> None:
    text = "x\nWorker exit detail: Worker unexpectedly exits. End of file. Some common causes include: (1) y"
    assert reason_of(Exception(text)).endswith("Ray says: Worker unexpectedly exits. End of file")
    assert len(reason_of(Exception("z" * 9000))) < 400
