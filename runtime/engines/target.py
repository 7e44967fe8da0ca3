"""The target of an engine: a GPU, its compute capability and its driver."""

from __future__ import annotations

import importlib
import re
from typing import Any

import msgspec

from flawscope.errors import ArgumentError, BackendError
from flawscope.runtime.engines import cuda_driver

_NAME_BYTES = 256


class Target(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The device of an engine.

    Attributes:
        gpu: Name of the GPU, or empty for any of its compute capability.
        compute_capability: Major and minor, for example (8, 9).
        driver: Version of the driver; where only CUDA can be asked, `of CUDA 12.6`; empty if the target is another
            machine.
    """

    # Part of the cache's key: an engine is rebuilt after an update of the driver. It might work without, but slower
    # kernels or a failure at load would then show on the line.

    gpu: str
    compute_capability: tuple[int, int]
    driver: str

    def __str__(self) -> str:
        name = self.gpu or "any GPU"
        driver = f", driver {self.driver}" if self.driver else ""
        return f"{name} of compute capability {self.compute_capability[0]}.{self.compute_capability[1]}{driver}"


def named_target(text: str, buildable: tuple[tuple[int, int], ...]) -> Target:
    """Return the target with a compute capability such as `8.9`: any such GPU, on any machine.

    Args:
        text: Compute capability as `MAJOR.MINOR`.
        buildable: The compute capabilities that the builder can build for.

    Raises:
        ArgumentError: If the text is no compute capability, or not one of these.
    """
    match = re.fullmatch(r"(\d+)\.(\d)", text.strip())
    choices = (
        ", ".join(f"{major}.{minor}" for major, minor in buildable) or "none: this builder builds only for the GPU here"
    )
    if match is None:
        raise ArgumentError(f"target: expected a compute capability such as 8.9, got {text!r}. Known: {choices}.")
    capability = (int(match[1]), int(match[2]))
    if capability not in buildable:
        raise ArgumentError(f"target: expected a compute capability the builder knows ({choices}), got {text}.")
    return Target("", capability, "")


def current_target(index: int = 0) -> Target:
    """Return a GPU of this machine, counted as CUDA counts.

    Raises:
        BackendError: If there is none, or its driver cannot be asked.
    """
    # CUDA and not NVML, which counts by PCI bus, knows no `CUDA_VISIBLE_DEVICES`, and may be silent on a Jetson.
    device = cuda_driver.device_of(index)
    attributes = cuda_driver.bindings().CUdevice_attribute
    try:
        name: bytes = cuda_driver.call("cuDeviceGetName", _NAME_BYTES, device)
        major, minor = (
            int(cuda_driver.call("cuDeviceGetAttribute", attribute, device))
            for attribute in (
                attributes.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR,
                attributes.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
            )
        )
        versions = nvml_versions()
        driver = f"of CUDA {cuda_driver.cuda_of_driver()}" if versions is None else versions[0]
    except cuda_driver.DriverError as err:
        raise BackendError(f"device: the driver does not tell what its device {index} is: {err}") from err
    return Target(name.split(b"\0")[0].decode(errors="replace").strip(), (major, minor), driver)


def nvml_versions() -> tuple[str, str] | None:
    """Return the versions of the driver, such as `580.65`, and of the newest CUDA that it supports, by NVML.

    None where NVML is not there or does not answer, as on some Jetsons.
    """
    try:
        pynvml: Any = importlib.import_module("pynvml")
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    try:
        version, cuda = pynvml.nvmlSystemGetDriverVersion(), int(pynvml.nvmlSystemGetCudaDriverVersion_v2())
    except pynvml.NVMLError:
        return None
    finally:
        pynvml.nvmlShutdown()
    text = version.decode() if isinstance(version, bytes) else str(version)  # bytes: older versions of the bindings
    return text, cuda_driver.dotted(cuda)
