"""Captures of CUDA graphs while other threads open and close sessions, on the stand-ins; and the lock between them."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from cuda_stand_in import Stand, check_left, stand_in
from cuda_stand_in_errors import MemoryError_
from onnx import TensorProto, helper
from ort_cuda_stand_in import onnxruntime_with_cuda
from tensorrt_stand_in import tensorrt_module

from flawscope.bundle import OnnxModel
from flawscope.diffusion.step_table import ROW
from flawscope.errors import DeviceError, DeviceLost
from flawscope.runtime.backends import ort, ort_cuda, sampling_loop
from flawscope.runtime.backends.device import Device, SharedDevice
from flawscope.runtime.backends.device_engines import DeviceEngines
from flawscope.runtime.backends.sampling_loop import SamplingLoop
from flawscope.runtime.backends.tensorrt import TensorrtSession
from flawscope.runtime.engines import TensorRT
from flawscope.runtime.engines.capture_lock import CAPTURES, CaptureLock

LONG_S = 20.0
"""More than anything here takes: a thread that is still alive then waits for ever."""


@pytest.fixture
def stand(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stand]:
    stand = Stand()
    stand_in(stand, monkeypatch)
    runtime = onnxruntime_with_cuda(stand)
    for module in (ort, ort_cuda):
        monkeypatch.setattr(module, "import_onnxruntime", lambda: runtime)
    ort._preload_cuda.cache_clear()
    yield stand
    ort._preload_cuda.cache_clear()
    check_left(stand)


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    """A graph that turns image uint8 [N, 4] into patches float32 [N, 4]."""
    batch = ["batch", 4]
    made = helper.make_graph(
        [helper.make_node("Cast", ["image"], ["patches"], to=TensorProto.FLOAT)],
        "tiny",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, batch)],
        [helper.make_tensor_value_info("patches", TensorProto.FLOAT, batch)],
    )
    path = tmp_path / "tiny.onnx"
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


class NoHead:
    """A bank that computes nothing."""

    def enqueue(self, count: int, patches: int) -> None:
        """Nothing."""

    def finish(self, count: int, patches: int) -> Any:
        return np.zeros((count, 1, 1), np.float32), np.zeros(count, np.float32)


def open_tensorrt(stand: Stand, graph: Path, shared: SharedDevice | None = None) -> TensorrtSession:
    tensorrt = TensorRT("tensorrt", "11.0", tensorrt_module(stand))
    return TensorrtSession(str(graph).encode(), tensorrt, range(1, 3), shared=shared, graphs=shared is None)


def open_beside_bank(stand: Stand, graph: Path) -> ort_cuda.OrtDeviceSession:
    return ort_cuda.OrtDeviceSession(OnnxModel("tiny.onnx", graph.read_bytes(), {}), 2, lambda *_: NoHead())


def open_plain(stand: Stand, graph: Path) -> ort.OrtSession:
    return ort.OrtSession(OnnxModel("tiny.onnx", graph.read_bytes(), {}), "cuda")


OPENING = pytest.mark.parametrize("opening", [open_tensorrt, open_beside_bank, open_plain])


def while_capturing(work: Callable[[], object]) -> None:
    """Do something in another thread, which begins while this one captures."""
    device = Device()
    thread = threading.Thread(target=work)

    def captured() -> None:
        thread.start()
        thread.join(0.1)

    with device.current():
        device.capture(captured).close()
    thread.join(LONG_S)
    assert not thread.is_alive()
    device.close()


@OPENING
def test_opening_and_closing_a_session_wait_until_a_capture_is_over(stand: Stand, graph: Path, opening: Any) -> None:
    opened: list[Any] = []
    while_capturing(lambda: opened.append(opening(stand, graph)))
    assert getattr(opened[0], "graph_problem", None) is None
    while_capturing(opened[0].close)


def test_sessions_that_capture_are_opened_by_several_threads_at_once(stand: Stand, graph: Path) -> None:
    problems: list[str | None] = []

    def open_and_close() -> None:
        for _ in range(3):
            session = open_tensorrt(stand, graph)
            problems.append(session.graph_problem)
            session.close()

    threads = [threading.Thread(target=open_and_close) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LONG_S)
    assert problems == [None] * 9


def test_engines_of_a_device_that_is_lost_while_the_next_is_opened_are_kept_for_ever(stand: Stand, graph: Path) -> None:
    def open_one(name: str, shared: SharedDevice) -> TensorrtSession:
        if name == "second":
            stand.sticky = 700
        return open_tensorrt(stand, graph, shared)

    with pytest.raises(DeviceLost):
        DeviceEngines(["first", "second"], open_one)
    gc.collect()
    assert stand.complaints == []


def test_engines_of_a_device_that_goes_on_are_released_where_the_next_cannot_be_opened(
    stand: Stand, graph: Path
) -> None:
    def open_one(name: str, shared: SharedDevice) -> TensorrtSession:
        if name == "second":
            stand.fail_next = RuntimeError("not of the device")
        return open_tensorrt(stand, graph, shared)

    with pytest.raises(RuntimeError, match="not of the device"):
        DeviceEngines(["first", "second"], open_one)
    gc.collect()
    assert (stand.freed, stand.unpinned, stand.streams) == (stand.allocated, stand.pinned, {})


# --- the loop of a sampling


class Engines:
    """Engines of which nothing but a device and the network's arrays is there."""

    def __init__(self) -> None:
        self.device = Device()
        arrays = {"x": ((2, 3, 4), np.float32), "timestep": ((), np.int64), "out": ((2, 3, 4), np.float32)}

        def tensor(name: str) -> tuple[int, tuple[int, ...], np.dtype[Any]]:
            shape, dtype = arrays[name]
            return 0, shape, np.dtype(dtype)

        network = SimpleNamespace(
            names=(("x", "timestep"), ("out",)), tensor=tensor, launch=lambda count: None, name="denoise"
        )
        self.sessions = {"denoise": network}
        self.loop: Any = None

    @contextmanager
    def using(self) -> Iterator[Device]:
        with self.device.current():
            yield self.device

    def add(self, loop: Any) -> None:
        self.loop = loop


@pytest.fixture
def loop(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> Iterator[SamplingLoop]:
    def step(*, stream: int, **_: object) -> None:
        stand.streams[stream].launch("step", lambda: None)

    monkeypatch.setattr(sampling_loop, "CudaKernels", lambda: SimpleNamespace(diffusion_step=step))
    engines: Any = Engines()
    yield SamplingLoop(
        engines, (2, 3, 4), 3, guided=False, masked=False, same_noise=False, after=lambda device, count: None
    )
    engines.device.close(engines.loop.release, engines.loop.made)
    assert stand.freed == stand.allocated


def sample(loop: SamplingLoop, arrays: int) -> None:
    with loop._engines.using() as device:
        loop.prepare(device, np.zeros(3, ROW), np.zeros((2, arrays, 2, 3, 4), np.float32))
        loop.run(device, 2)
        device.wait()


def test_noise_that_has_grown_takes_its_own_memory_alone(stand: Stand, loop: SamplingLoop) -> None:
    sample(loop, 1)
    in_use = stand.allocated - stand.freed
    for arrays in (2, 5, 4, 30):
        sample(loop, arrays)
        assert stand.allocated - stand.freed == in_use
        assert len(loop._graphs) == 1, "graphs that know the old address are gone"


def test_noise_for_which_there_is_no_memory_is_asked_for_again(
    stand: Stand, loop: SamplingLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    def allocate(size: int) -> int:
        raise MemoryError_("cuMemAlloc failed: out of memory")

    sample(loop, 1)
    in_use = stand.allocated - stand.freed
    with monkeypatch.context() as full:
        full.setattr(loop._engines.device, "allocate", allocate)  # type: ignore[attr-defined]
        with pytest.raises(DeviceError, match="out of memory"):
            sample(loop, 4)
    assert stand.allocated - stand.freed == in_use - 1
    sample(loop, 4)
    assert stand.allocated - stand.freed == in_use


def test_a_sampling_does_not_wait_for_a_session_that_is_opened_and_is_captured_later(loop: SamplingLoop) -> None:
    is_opening, is_over = threading.Event(), threading.Event()

    def open_slowly() -> None:
        with CAPTURES.disturbing():
            is_opening.set()
            assert is_over.wait(LONG_S)

    thread = threading.Thread(target=open_slowly)
    thread.start()
    assert is_opening.wait(LONG_S)
    sample(loop, 1)
    assert (len(loop._graphs), loop.graph_problem) == (0, None)
    is_over.set()
    thread.join(LONG_S)
    sample(loop, 1)
    assert len(loop._graphs) == 1


def make_ready(loop: SamplingLoop, arrays: int) -> None:
    with loop._engines.using() as device:
        loop.make_ready(device, np.zeros(3, ROW), arrays)


def test_a_loop_that_is_made_ready_captures_every_number_of_images_and_runs_as_graphs(
    stand: Stand, loop: SamplingLoop
) -> None:
    make_ready(loop, 2)
    assert list(loop._graphs) == [(2, 3), (2, 2), (2, 1)]
    in_use, launches = stand.allocated - stand.freed, stand.launches
    for arrays in (1, 2):
        sample(loop, arrays)
    assert stand.launches == launches + 2
    assert stand.allocated - stand.freed == in_use
    sample(loop, 3)
    assert list(loop._graphs) == [(2, 2)], "the others know the old address of the noise"


def test_a_loop_that_is_made_ready_waits_for_a_session_that_is_opened(loop: SamplingLoop) -> None:
    is_opening = threading.Event()

    def open_slowly() -> None:
        with CAPTURES.disturbing():
            is_opening.set()
            time.sleep(0.2)

    thread = threading.Thread(target=open_slowly)
    thread.start()
    assert is_opening.wait(LONG_S)
    make_ready(loop, 1)
    assert len(loop._graphs) == 3
    thread.join(LONG_S)


def test_a_loop_that_cannot_be_captured_is_ready_all_the_same(stand: Stand, loop: SamplingLoop) -> None:
    stand.capturable = False
    make_ready(loop, 1)
    assert (len(loop._graphs), "capture" in str(loop.graph_problem).lower()) == (0, True)
    sample(loop, 1)
    assert stand.launches == 0


# --- the lock


def test_whoever_disturbs_waits_for_no_other_and_may_do_so_within(stand: Stand) -> None:
    lock, both = CaptureLock(), threading.Barrier(2, timeout=LONG_S)

    def disturb() -> None:
        with lock.disturbing(), lock.disturbing():
            both.wait()

    threads = [threading.Thread(target=disturb) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LONG_S)
    assert not both.broken
    with lock.capturing(wait=False) as is_mine:
        assert is_mine


def test_captures_take_turns_and_are_not_nested_in_what_disturbs() -> None:
    lock, seen = CaptureLock(), []

    def try_it() -> None:
        with lock.capturing(wait=False) as is_mine:
            seen.append(is_mine)

    for held in (lock.capturing, lock.disturbing):
        with held():
            thread = threading.Thread(target=try_it)
            thread.start()
            thread.join(LONG_S)
    try_it()
    assert seen == [False, False, True]
    with lock.disturbing(), pytest.raises(AssertionError, match="its own thread"), lock.capturing():
        pass
