"""The interface of a backend: a session per graph, and on a device a memory bank beside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy.typing as npt

from flawscope.arrays import Float32Array, UInt8Array


class Session(Protocol):
    """A graph that is loaded on one device.

    `infer` takes uint8 [N, H, W, 3] for the graph's only input, `run` an array for each input by name, all with the
    same first dimension. Both return one array per output name. The arrays belong to the caller: a later call does not
    change them, so a session that reuses its buffers must copy. Where the backend's row lets several bundles have one
    session, several threads may call both at once.

    Attributes:
        outputs: Names of what `infer` returns.
    """

    outputs: tuple[str, ...]

    def infer(self, images: UInt8Array) -> dict[str, npt.NDArray[Any]]:
        """Run the graph on a batch.

        Raises:
            DeviceError: If the device fails.
        """

    def run(self, inputs: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """Run the graph on several inputs.

        Raises:
            DeviceError: If the device fails.
        """

    def close(self) -> None:
        """Release the device's memory; closing twice is harmless."""


class DeviceHead(Protocol):
    """Turns patches on a device into anomaly maps and scores, without copying the patches to the host."""

    def enqueue(self, count: int, patches: int) -> None:
        """Enqueue the work for `count` images on the stream; `patches` is the device address of their patches.

        It is also called while a CUDA graph is captured: it must neither allocate nor wait.
        """

    def finish(self, count: int, patches: int) -> tuple[Float32Array, Float32Array]:
        """Return maps float32 [N, H, W] and scores float32 [N]; the caller has waited for the stream."""


MakeDeviceHead = Callable[[Any, int], DeviceHead]
"""Puts the bank of a method on a device: (`flawscope.runtime.backends.device.Device`, largest batch) -> head. The
device's context is current."""
