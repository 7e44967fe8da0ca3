"""TensorRT's part in a session, played by one copy: images in, the same bytes out as patches.

So the session, its memory, its graphs and the bank beside it run on the device, with an engine whose results are known.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import numpy as np

CHANNELS = 96
WIDTH = 4 * CHANNELS // 3
"""Pixels of a row of an image, so that its uint8 [WIDTH, 3] are the bytes of one patch, float32 [CHANNELS]."""

Copy = Callable[[int, int, int, int], None]
"""(target, source, bytes, stream): puts a copy within the device on the stream."""


def images_of(patches: np.ndarray) -> np.ndarray:
    """Return the images uint8 [N, P, WIDTH, 3] whose patches are float32 [N, P, CHANNELS]."""
    n, p, _ = patches.shape
    return np.ascontiguousarray(patches, np.float32).view(np.uint8).reshape(n, p, WIDTH, 3)


class _Context:
    def __init__(self, engine: _Engine) -> None:
        self._engine, self._addresses, self._count = engine, dict[str, int](), 0

    def set_device_memory(self, memory: int, size: int) -> None:
        if not memory or size < self._engine.device_memory_size_v2:
            raise ValueError("no memory to compute in")

    def set_tensor_address(self, name: str, address: int) -> bool:
        self._addresses[name] = address
        return address != 0

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self._count = shape[0]
        return name == "images"

    def execute_async_v3(self, stream: int) -> bool:
        size = 4 * self._count * self._engine.positions * CHANNELS
        self._engine.copy(self._addresses["patches"], self._addresses["images"], size, stream)
        return True


class _Engine:
    num_io_tensors = 2
    device_memory_size_v2 = 1024

    def __init__(self, positions: int, copy: Copy) -> None:
        self.positions, self.copy = positions, copy

    def get_tensor_name(self, number: int) -> str:
        return ("images", "patches")[number]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return (-1, self.positions, WIDTH, 3) if name == "images" else (-1, self.positions, CHANNELS)

    def get_tensor_dtype(self, name: str) -> type[np.generic]:
        return np.uint8 if name == "images" else np.float32

    def get_tensor_mode(self, name: str) -> int:
        return 0 if name == "images" else 1

    def create_execution_context(self, strategy: object = None) -> _Context:
        return _Context(self)


def module(positions: int, copy: Copy) -> Any:
    """Return what stands in for the module `tensorrt`.

    Args:
        positions: Patches of an image.
        copy: Copies within the device.
    """

    class ILogger:
        Severity = types.SimpleNamespace(ERROR=1, WARNING=2)

    class Runtime:
        def __init__(self, logger: object) -> None:
            self.logger = logger

        def deserialize_cuda_engine(self, plan: bytes) -> _Engine:
            return _Engine(positions, copy)

    stand_in: Any = types.ModuleType("engine_stand_in")
    stand_in.ILogger, stand_in.Runtime = ILogger, Runtime
    stand_in.TensorIOMode = types.SimpleNamespace(INPUT=0, OUTPUT=1)
    stand_in.ExecutionContextAllocationStrategy = types.SimpleNamespace(STATIC="static", USER_MANAGED="user")
    stand_in.nptype = lambda dtype: dtype
    return stand_in
