"""A real CUDA device through PyCUDA: what the stand-ins of the other tests claim. Skips where there is none.

A dead context is for a process of its own: `tools/gpu_stages/bad_address.py`.
"""

from __future__ import annotations

import threading

import numpy as np
import pytest

from flawscope.errors import DeviceError, DeviceLost
from flawscope.runtime.backends.device import Device, device_problem
from flawscope.runtime.engines import current_target

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def needs_a_device() -> None:
    problem = device_problem()
    if problem is not None:
        pytest.skip(problem)


def test_the_device_is_named() -> None:
    target = current_target()
    assert target.gpu
    assert target.driver
    assert target.compute_capability >= (5, 0)


def test_copies_captured_and_not_give_the_same_in_any_thread() -> None:
    made: list[Device] = []
    thread = threading.Thread(target=lambda: made.append(Device()))
    thread.start()
    thread.join()
    device = made[0]
    with device.current():
        source, target = device.pinned((64,), np.float32), device.pinned((64,), np.float32)
        source[...] = np.arange(64)
        address = device.upload(np.zeros(64, np.float32))

        def work() -> None:
            device.copy_in(address, source)
            device.copy_out(target, address)

        work()
        device.wait()
        np.testing.assert_array_equal(target, source)
        target[...] = 0
        other = threading.Thread(target=copy_elsewhere)

        def with_another() -> None:
            other.start()
            other.join()
            work()

        graph = device.capture(with_another)
        np.testing.assert_array_equal(target, 0)
        source += 1
        graph.launch()
        device.wait()
        np.testing.assert_array_equal(target, source)
        device.close(graph.close)
    Device().close()


def copy_elsewhere() -> None:
    """Do what would break the capture of another thread's stream, if the stream waited for the default one."""
    device, array = Device(), np.arange(8, dtype=np.float32)
    fetched = np.zeros_like(array)
    with device.current():
        address = device.upload(np.zeros_like(array))
        device._pycuda.memcpy_htod(address, array)  # on the default stream, as another library does
        device.fetch(fetched, address)
    device.close()
    np.testing.assert_array_equal(fetched, array)


def test_out_of_memory_passes() -> None:
    device = Device()
    with pytest.raises(DeviceError, match="out of memory") as caught, device.current():
        device.allocate(1 << 50)
    assert not isinstance(caught.value, DeviceLost)
    with device.current():
        device.allocate(1 << 10)
    device.close()
