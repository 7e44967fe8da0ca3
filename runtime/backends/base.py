"""What a backend has to offer: a session a graph, and on a device a place for the memory bank beside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy.typing as npt

from flawscope.arrays import Float32Array, UInt8Array


class Session(Protocol):
    """A graph made ready on one device.

    `infer` takes uint8 [N, H, W, 3] for the graph's only input, `run` an array for each input by name, all with the
    same first dimension. Both return one array per output name. The arrays are the caller's: a later call does not
    change them.

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
        """Release the device's memory."""


class DeviceHead(Protocol):
    """What turns patches on a device into anomaly maps and scores, without their leaving it."""

    def enqueue(self, count: int, patches: int) -> None:
        """Put the work for `count` images on the stream; their patches lie at this address."""

    def finish(self, count: int, patches: int) -> tuple[Float32Array, Float32Array]:
        """Return maps float32 [N, H, W] and scores float32 [N] once the stream is done."""


MakeDeviceHead = Callable[[Any, int], DeviceHead]
"""Puts the bank of a method on a device (`flawscope.runtime.backends.device.Device`, current) for a largest batch."""
