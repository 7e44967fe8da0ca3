"""What an engine is built for: a GPU, its compute capability and its driver."""

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
        driver: Version of the driver, or empty where the target is another machine.
    """

    gpu: str
    compute_capability: tuple[int, int]
    driver: str

    def __str__(self) -> str:
        name = self.gpu or "any GPU"
        driver = f", driver {self.driver}" if self.driver else ""
        return f"{name} of compute capability {self.compute_capability[0]}.{self.compute_capability[1]}{driver}"


def named_target(text: str, known: tuple[tuple[int, int], ...]) -> Target:
    """Return the target that `8.9` names: any GPU of that compute capability, on whatever machine.

    Args:
        text: Compute capability as `MAJOR.MINOR`.
        known: What the builder can build for.

    Raises:
        ArgumentError: If it is none, or none of these.
    """
    match = re.fullmatch(r"(\d+)\.(\d)", text.strip())
    choices = ", ".join(f"{major}.{minor}" for major, minor in known) or "none: this builder builds for the GPU here"
    if match is None:
        raise ArgumentError(f"target: expected a compute capability such as 8.9, got {text!r}. Known: {choices}.")
    capability = (int(match[1]), int(match[2]))
    if capability not in known:
        raise ArgumentError(f"target: expected a compute capability the builder knows ({choices}), got {text}.")
    return Target("", capability, "")


def current_target(index: int = 0) -> Target:
    """Return the GPU of this machine.

    Raises:
        BackendError: If there is none, or its driver cannot be asked.
    """
    try:
        pynvml: Any = importlib.import_module("pynvml")
    except ImportError as err:
        raise BackendError(
            "device: asking the driver needs the package nvidia-ml-py, which is not installed. "
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
    """Older bindings return bytes."""
    return value.decode() if isinstance(value, bytes) else value
