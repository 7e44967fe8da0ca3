"""A real CUDA device through PyCUDA: what the stand-ins of the other tests claim. Skips where there is none."""

from __future__ import annotations

import subprocess
import sys
import threading
from typing import Any

import numpy as np
import pytest

from flawscope import cpp_ext
from flawscope.errors import DeviceError, DeviceLost
from flawscope.runtime.backends.device import Device, device_problem
from flawscope.runtime.engines import current_target

pytestmark = pytest.mark.gpu

BAD_ADDRESS = """
from flawscope.cpp_ext.cuda_kernels import CudaKernels
from flawscope.errors import DeviceLost
from flawscope.runtime.backends.device import Device

device, bad = Device(), 1 << 20
try:
    with device.current():
        CudaKernels().mahalanobis(
            mean=bad, whitening=bad, p=1, d=32, features=bad, n=1, squared=bad, stream=device.stream_number
        )
        device.wait()
except DeviceLost as err:
    print(err)
device.close()
try:
    Device()
except DeviceLost as err:
    print(err)
"""


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
        device.fetch(fetched, device.upload(array))
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


def test_a_bad_address_leaves_the_context_dead_for_the_process() -> None:
    if not cpp_ext.HAVE_CUDA:
        pytest.skip("this installation has no CUDA kernels, which the bad address is given to")
    done: Any = subprocess.run(
        [sys.executable, "-c", BAD_ADDRESS], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert "CUDA error 7" in first
    assert first.endswith("This process cannot use it any more. Start it again.")
    assert "cannot be used any more in this process" in second
