"""One CUDA device, with stand-ins for PyCUDA and the driver: contexts, threads, streams, captures, errors."""

from __future__ import annotations

import importlib
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from cuda_frames import FakeCudaArray, FakeDriver
from cuda_stand_in import Stand, check_left, stand_in
from cuda_stand_in_driver import driver_bindings
from cuda_stand_in_errors import Error, LogicError, MemoryError_

from flawscope.errors import BackendError, DeviceError, DeviceLost
from flawscope.runtime import device_arrays
from flawscope.runtime.backends.device import Device, device_problem
from flawscope.runtime.engines import cuda_driver


@pytest.fixture
def stand(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stand]:
    stand = Stand()
    stand_in(stand, monkeypatch)
    yield stand
    check_left(stand)


def elsewhere(work: Callable[[], Any]) -> Any:
    """Return what a function returns in another thread."""
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(work()))
    thread.start()
    thread.join()
    return results[0]


def test_what_is_uploaded_can_be_fetched(stand: Stand) -> None:
    device = Device()
    array, fetched = np.arange(12, dtype=np.float32).reshape(3, 4), np.zeros((3, 4), np.float32)
    with device.current():
        device.fetch(fetched, device.upload(array))
    device.close()
    np.testing.assert_array_equal(fetched, array)


# --- contexts and threads


def test_the_primary_context_is_retained_once_and_stays(stand: Stand) -> None:
    for _ in range(2):
        devices = Device(), Device()
        for device in devices:
            device.close()
            device.close()
    assert (stand.retained, stand.streams, stand.destroyed_streams) == (1, {}, 4)


def test_a_device_may_be_opened_used_and_closed_in_different_threads(stand: Stand) -> None:
    device: Device = elsewhere(Device)

    def use() -> np.ndarray:
        with device.current():
            pinned = device.pinned((4,), np.float32)
            device.copy_out(pinned, device.upload(np.arange(4, dtype=np.float32)))
            device.wait()
            return pinned.copy()

    np.testing.assert_array_equal(elsewhere(use), np.arange(4, dtype=np.float32))
    elsewhere(device.close)
    assert (stand.freed, stand.unpinned, stand.destroyed_streams) == (1, 1, 1)


def test_pinned_memory_that_somebody_still_refers_to_can_be_read_and_goes_with_the_last_reference(
    stand: Stand,
) -> None:
    device = Device()
    with device.current():
        device.pinned((4,), np.float32)
        kept = device.pinned((4,), np.float32)
        kept[...] = 3
    device.close()
    assert (stand.unpinned, stand.pinned) == (1, 2)
    np.testing.assert_array_equal(kept, 3)
    del kept
    assert stand.unpinned == 2


def test_what_others_made_is_released_while_the_context_is_current(stand: Stand) -> None:
    device, current = Device(), []
    device.close(lambda: current.append(len(stand.stacks()[0])))
    assert current == [1]


# --- streams and captures


def test_a_copy_of_another_thread_does_not_break_a_capture(stand: Stand) -> None:
    capturing, copying = Device(), Device()
    target = np.zeros(4, np.float32)

    def copy() -> None:
        with copying.current():
            copying.fetch(target, copying.upload(np.ones(4, np.float32)))

    with capturing.current():
        graph = capturing.capture(lambda: elsewhere(copy))
        graph.launch()
        graph.close()
    np.testing.assert_array_equal(target, 1)
    for device in (capturing, copying):
        device.close()


def test_an_image_from_the_device_waits_until_a_capture_is_over(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its copy waits for the whole context, in which a stream is captured."""
    seen: list[bool] = []

    class Driver(FakeDriver):
        def cuCtxSynchronize(self) -> int:
            seen.append(any(stream.capturing for stream in stand.streams.values()))
            return super().cuCtxSynchronize()

    monkeypatch.setattr(device_arrays, "_load_driver", Driver)
    array = np.arange(12, dtype=np.uint8)
    copies: list[np.ndarray] = []
    thread = threading.Thread(target=lambda: copies.append(device_arrays.on_host(FakeCudaArray(array), "image")))
    device = Device()

    def work() -> None:
        thread.start()
        thread.join(0.1)

    with device.current():
        device.capture(work).close()
    thread.join()
    device.close()
    assert seen == [False]
    np.testing.assert_array_equal(copies[0], array)


def test_a_copy_of_another_library_on_the_default_stream_does_not_break_a_capture(stand: Stand) -> None:
    """Nobody can have torch or another program's code copy elsewhere: our stream must not wait for that one."""
    capturing, other = Device(), Device()
    target, ones = np.zeros(4, np.float32), np.ones(4, np.float32)

    def copy() -> None:
        with other.current():
            other._pycuda.memcpy_htod(target.ctypes.data, ones)

    with capturing.current():
        capturing.capture(lambda: elsewhere(copy)).close()
    np.testing.assert_array_equal(target, 1)
    for device in (capturing, other):
        device.close()


def test_the_stand_in_breaks_a_capture_by_a_copy_on_the_default_stream(stand: Stand) -> None:
    """The rule of the test above, with what it is there to prevent: a stream with the default flags."""
    device = Device()
    with device.current():
        stand.streams[device.stream_number].flags = 0

        def copy() -> str:
            with device.current(), pytest.raises(LogicError) as caught:
                device._pycuda.memcpy_htod(0, np.ones(4))
            return str(caught.value)

        with pytest.raises(DeviceError, match=r"cuStreamEndCapture failed with CUDA error 901"):
            device.capture(lambda: capturing_error.append(elsewhere(copy)))
    assert capturing_error == ["cuMemcpyHtoDAsync failed: stream capture implicit"]
    device.close()


capturing_error: list[str] = []


def test_copies_that_wait_are_in_order_with_the_stream(stand: Stand) -> None:
    """One on the default stream would neither wait for ours, nor be waited for."""
    device, fetched = Device(), np.zeros(4, np.float32)
    array = np.arange(4, dtype=np.float32)
    with device.current():
        address = device.upload(np.zeros(4, np.float32))
        assert stand.enqueued == 1
        device.copy_in(address, array)
        device.fetch(fetched, address)
    device.close()
    np.testing.assert_array_equal(fetched, array)


def test_an_array_that_is_gone_before_the_stream_has_come_to_its_copy_is_noted_by_the_stand_in(stand: Stand) -> None:
    device = Device()
    with device.current():
        address = device.allocate(16)
        device.copy_in(address, np.ones(4, np.float32))
        device.wait()
    device.close()
    (complaint,) = stand.complaints
    assert complaint == "cuMemcpyHtoDAsync: the array of the host was gone before the stream came to it"
    stand.complaints.clear()


def test_a_kernel_that_was_never_launched_cannot_be_captured_and_one_that_was_can(stand: Stand) -> None:
    device, done = Device(), []
    with device.current():
        stream = stand.streams[device.stream_number]

        def work() -> None:
            stream.launch("kernel", lambda: done.append(1))

        with pytest.raises(Exception, match="900"):
            device.capture(work)
        work()
        device.wait()
        graph = device.capture(work)
        device.wait()
        assert done == [1]
        graph.launch()
        device.wait()
        assert done == [1, 1]
        graph.close()
    device.close()
    assert stand.graphs == {}


def test_work_that_fails_leaves_the_stream_out_of_capture(stand: Stand) -> None:
    device = Device()
    with device.current():
        stand.fail_next = LogicError("cuMemcpyHtoDAsync failed: operation not permitted")
        with pytest.raises(DeviceError, match="the device failed: cuMemcpyHtoDAsync failed: operation not permitted"):
            device.capture(lambda: device.copy_in(0, np.ones(4)))
        device.wait()
        stand.capturable = False
        with pytest.raises(DeviceError, match="cuStreamBeginCapture failed with CUDA error 900"):
            device.capture(lambda: None)
    device.close()
    assert stand.graphs == {}


# --- errors


def test_out_of_memory_is_told_as_such(stand: Stand) -> None:
    assert not issubclass(MemoryError_, MemoryError)
    device = Device()
    stand.fail_next = MemoryError_("cuMemAlloc failed: out of memory")
    with (
        pytest.raises(DeviceError, match=r"out of memory: cuMemAlloc failed: out of memory\. Take smaller batches"),
        device.current(),
    ):
        device.allocate(1 << 40)
    device.close()


def test_out_of_memory_of_the_driver_itself_is_told_as_such_too(stand: Stand) -> None:
    """A graph takes memory where it is made, which PyCUDA has no part in."""
    device = Device()
    driver = cuda_driver.bindings()
    driver.cuGraphUpload = lambda *_: (driver.CUresult(2),)
    with (
        pytest.raises(DeviceError, match=r"out of memory: cuGraphUpload failed with CUDA error 2 \(OUT_OF_M.*\. Take"),
        device.current(),
    ):
        device.capture(lambda: None)
    device.close()
    assert stand.graphs == {}


def test_an_error_that_passes_leaves_the_device_usable(stand: Stand) -> None:
    device = Device()
    stand.fail_next = Error("cuMemAlloc failed: something odd")
    with pytest.raises(DeviceError, match="the device failed") as caught, device.current():
        device.allocate(1)
    assert not isinstance(caught.value, DeviceLost)
    with device.current():
        device.allocate(1)
    device.close()
    assert stand.freed == stand.allocated == 1


@pytest.mark.parametrize("code", [700, 719])
def test_after_a_sticky_error_nothing_is_called_any_more(stand: Stand, code: int) -> None:
    device = Device()
    with device.current():
        device.allocate(1)
        device.pinned((1,), np.uint8)
    with device.current():
        stand.streams[device.stream_number].put(lambda: setattr(stand, "sticky", code))
    with pytest.raises(DeviceLost, match=rf"CUDA error {code}, {cuda_driver.STICKY[code]}"), device.current():
        device.wait()
    calls = stand.calls
    device.close()
    for use in (Device, lambda: device.current().__enter__()):
        with pytest.raises(DeviceLost, match=r"cannot be used any more in this process: .*\. Start it again\."):
            use()
    assert stand.calls == calls


def test_a_context_that_died_by_others_is_known_where_it_cannot_be_made_current(stand: Stand) -> None:
    device = Device()
    stand.sticky, stand.stubborn = 700, True
    with pytest.raises(
        DeviceLost, match=r"the device failed: cuCtxPushCurrent failed: .* \(CUDA error 700, ILLEGAL_ADD"
    ):
        device.current().__enter__()
    device.close()


def test_a_context_that_is_refused_takes_away_nobody_elses(stand: Stand) -> None:
    device, others = Device(), object()
    stand.stacks()[0].append(others)
    stand.sticky, stand.stubborn = 201, True
    with pytest.raises(DeviceLost, match=r"the device failed: cuCtxPushCurrent failed"):
        device.current().__enter__()
    assert stand.stacks()[0] == [others]
    stand.forget_threads()
    device.close()


@pytest.mark.parametrize("stubborn", [False, True])
def test_a_device_that_somebody_has_reset_is_lost_and_is_not_opened_again(stand: Stand, stubborn: bool) -> None:
    device = Device()
    stand.sticky, stand.stubborn = 201, stubborn
    with (
        pytest.raises(DeviceLost, match=r"\(CUDA error 201, INVALID_CONTEXT: was the device reset\?\)\. .* Start it"),
        device.current(),
    ):
        device.allocate(1)
    calls = stand.calls
    with pytest.raises(DeviceLost, match=r"cannot be used any more in this process"):
        Device()
    device.close()
    assert stand.calls == calls
    stand.forget_threads()


def test_a_context_that_another_library_has_popped_is_no_lost_device(stand: Stand) -> None:
    device = Device()

    def pop_and_allocate() -> None:
        with device.current():
            stand.stacks()[0].pop()
            device.allocate(1)

    with pytest.raises(DeviceError) as caught:
        pop_and_allocate()
    assert not isinstance(caught.value, DeviceLost)
    stand.forget_threads()
    with device.current():
        device.allocate(1)
    device.close()


def test_memory_is_freed_once_before_the_end_and_the_rest_at_the_end(stand: Stand) -> None:
    device = Device()
    with device.current():
        device.allocate(1)
        second = device.allocate(1)
        device.free(second)
        assert (stand.allocated, stand.freed) == (2, 1)
    device.close()
    assert stand.freed == 2


def test_a_context_that_dies_while_a_device_is_closed_is_left_as_it_is(stand: Stand) -> None:
    device, made = Device(), [object()]
    with device.current():
        device.allocate(1)
    stand.sticky = 719
    released: list[int] = []
    device.close(lambda: released.append(1), lambda: made)
    assert (stand.freed, released) == (0, [])


# --- the driver's bindings


def test_the_stand_in_has_the_names_and_arguments_of_the_bindings() -> None:
    real = pytest.importorskip("cuda.bindings.driver", reason="cuda-bindings is not installed")
    ours = driver_bindings(Stand())
    for name in [name for name in vars(ours) if name.startswith("cu")]:
        inner = getattr(ours, name).__wrapped__
        expected = getattr(real, name).__doc__.splitlines()[0].partition("(")[2].rstrip(")")
        arguments = [part.partition(":")[0].split()[-1] for part in expected.split(",") if part.strip()]
        assert arguments == list(inner.__code__.co_varnames[: inner.__code__.co_argcount]), name
    assert int(real.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL) == 1
    assert int(real.CUstream_flags.CU_STREAM_NON_BLOCKING) == 1
    for code, name in cuda_driver.STICKY.items():
        assert real.CUresult(code).name == f"CUDA_ERROR_{name}"


def test_the_real_bindings_without_a_driver_say_so() -> None:
    pytest.importorskip("cuda.bindings.driver", reason="cuda-bindings is not installed")
    cuda_driver.bindings.cache_clear()
    try:
        cuda_driver.call("cuInit", 0)
    except BackendError as err:
        assert "no NVIDIA driver answers" in str(err) or "cuInit failed with CUDA error" in str(err)  # noqa: PT017
    else:
        pytest.skip("there is a driver")


def test_without_the_bindings_the_problem_is_one_line(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", None)
    cuda_driver.bindings.cache_clear()
    problem = device_problem()
    assert problem is not None
    assert problem.startswith("device: the package cuda-bindings, which asks the driver, is not installed. Install")
    assert importlib.import_module("pycuda.driver").Device.count() == 1
