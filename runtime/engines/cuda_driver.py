"""The CUDA driver by NVIDIA's bindings (package `cuda-bindings`): which devices there are, and what PyCUDA lacks.

Nothing here makes a context, which would take hundreds of MiB of a device's memory. Written against the bindings, whose
names and arguments a test compares where they are installed; not run on a GPU.
"""

from __future__ import annotations

import functools
import importlib
from typing import Any

from flawscope.errors import BackendError, DeviceError

STICKY = {
    214: "ECC_UNCORRECTABLE",
    220: "NVLINK_UNCORRECTABLE",
    226: "CONTAINED",
    700: "ILLEGAL_ADDRESS",
    702: "LAUNCH_TIMEOUT",
    709: "CONTEXT_IS_DESTROYED",
    710: "ASSERT",
    714: "HARDWARE_STACK_ERROR",
    715: "ILLEGAL_INSTRUCTION",
    716: "MISALIGNED_ADDRESS",
    717: "INVALID_ADDRESS_SPACE",
    718: "INVALID_PC",
    719: "LAUNCH_FAILED",
    721: "TENSOR_MEMORY_LEAK",
    810: "MPS_CLIENT_TERMINATED",
    911: "EXTERNAL_DEVICE",
}
"""Errors after which a context can do nothing more: most of them by the words of `cuda.h`, "the process must be
terminated and relaunched". The first two by experience."""

INVALID_CONTEXT = 201
"""No context is current, or one that is none any more, as after a `cudaDeviceReset`; `Device` finds out which."""


_BUS_BYTES = 32  # 13 are needed


class DriverError(DeviceError):
    """The driver refused a call.

    Attributes:
        code: Its `CUresult`.
    """

    def __init__(self, call: str, code: int, name: str) -> None:
        super().__init__(f"{call} failed with CUDA error {code} ({name}).")
        self.code = code


@functools.cache
def bindings() -> Any:
    """Return the module `cuda.bindings.driver`. It loads without a driver; a call does not work then.

    Raises:
        BackendError: If it is not installed, or cannot be loaded.
    """
    try:
        return importlib.import_module("cuda.bindings.driver")
    except ModuleNotFoundError as err:
        raise BackendError(
            "device: the package cuda-bindings, which asks the driver, is not installed. Install it with: "
            "pip install cuda-bindings (that of JetPack 6: pip install 'cuda-bindings<13')."
        ) from err
    except (ImportError, OSError, RuntimeError) as err:
        raise BackendError(f"device: the package cuda-bindings cannot be loaded: {first_line(err)}.") from err


def call(name: str, *arguments: Any) -> Any:
    """Call a function of the driver and return what it returns beside its status: nothing, a value or several.

    Raises:
        BackendError: If there is no driver, or the bindings are not installed.
        DriverError: If the driver refuses.
    """
    function = getattr(bindings(), name)
    try:
        status, *results = function(*arguments)
    # It loads the driver's library at the first call, and raises errors of its own classes.
    except (RuntimeError, OSError) as err:
        raise BackendError(
            f"device: no NVIDIA driver answers ({first_line(err)}). Is there a GPU, and its driver?"
        ) from (err)
    if int(status) != 0:
        raise DriverError(name, int(status), str(getattr(status, "name", "unknown")).removeprefix("CUDA_ERROR_"))
    return results[0] if len(results) == 1 else tuple(results) or None


def device_of(index: int) -> Any:
    """Return the driver's handle of a device, counted as CUDA counts: fastest first, of `CUDA_VISIBLE_DEVICES` alone.

    Raises:
        BackendError: If there is none, or no driver.
    """
    try:
        call("cuInit", 0)
        count = int(call("cuDeviceGetCount"))
        if not index < count:
            raise BackendError(f"device: expected CUDA device {index}, got {count} devices.")
        return call("cuDeviceGet", index)
    except DriverError as err:
        raise BackendError(f"device: no NVIDIA driver answers ({str(err).rstrip('.')}). Is there a GPU?") from err


def bus_of(index: int) -> str:
    """Return where a device sits on the PCI bus, as `0000:01:00.0`, by which NVML finds the same one.

    Raises:
        BackendError: If there is none, or its driver cannot be asked.
    """
    device = device_of(index)
    try:
        name: bytes = call("cuDeviceGetPCIBusId", _BUS_BYTES, device)
    except DriverError as err:
        raise BackendError(f"device: the driver does not tell where its device {index} is: {err}") from err
    return name.split(b"\0")[0].decode(errors="replace")


def cuda_of_driver() -> str:
    """Return the newest CUDA that the driver supports, for example `13.0`.

    Raises:
        BackendError: If there is no driver, or the bindings are not installed.
    """
    return dotted(int(call("cuDriverGetVersion")))


def dotted(version: int) -> str:
    """Return a version of CUDA as text; the number is 1000 · major + 10 · minor."""
    return f"{version // 1000}.{version % 1000 // 10}"


def first_line(err: BaseException) -> str:
    """Return the first line of an error, without a full stop."""
    return (str(err).strip() or type(err).__name__).splitlines()[0].rstrip(".")
