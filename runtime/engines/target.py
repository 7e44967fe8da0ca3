"""The target of an engine: a GPU, its compute capability and its driver."""

from __future__ import annotations

import importlib
import re
from typing import Any

import msgspec

from flawscope.errors import ArgumentError, BackendError


class Target(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The device of an engine.

    Attributes:
        gpu: Name of the GPU, or empty for any of its compute capability.
        compute_capability: Major and minor, for example (8, 9).
        driver: Version of the driver, or empty if the target is another machine.
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
    """Return the GPU of this machine.

    Raises:
        BackendError: If there is none, or its driver cannot be asked.
    """
    # NVML and not CUDA: it creates no context, which would take hundreds of MiB of device memory to answer a question.
    try:
        pynvml: Any = importlib.import_module("pynvml")
    except ImportError as err:
        raise BackendError(
            "device: the package nvidia-ml-py, which asks the driver, is not installed. "
            "Install it with: pip install nvidia-ml-py."
        ) from err
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as err:
        raise BackendError(f"device: no NVIDIA driver answers ({err}). Is there a GPU, and its driver?") from err
    try:
        handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        major, minor = pynvml.nvmlDeviceGetCudaComputeCapability(handle)
        return Target(
            _text(pynvml.nvmlDeviceGetName(handle)), (major, minor), _text(pynvml.nvmlSystemGetDriverVersion())
        )
    except pynvml.NVMLError as err:
        raise BackendError(f"device: the driver has no GPU number {index} ({err}).") from err
    finally:
        pynvml.nvmlShutdown()


def _text(value: str | bytes) -> str:
    """Return text; older versions of the bindings return bytes."""
    return value.decode() if isinstance(value, bytes) else value
