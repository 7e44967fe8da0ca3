"""TensorRT's part in sessions, played by copies within the device.

So the sessions, their memory, their graphs and the kernels beside them run on the device, with engines whose results
are known: an engine copies what it is given to other places, and computes nothing.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

CHANNELS = 96
WIDTH = 4 * CHANNELS // 3
"""Pixels of a row of an image, so that its uint8 [WIDTH, 3] are the bytes of one patch, float32 [CHANNELS]."""

Copy = Callable[[int, int, int, int], None]
"""(target, source, bytes, stream): puts a copy within the device on the stream."""

Tensors = Mapping[str, tuple[tuple[int, ...], type[np.generic]]]
"""Name → shape of one of a batch, and type."""


class Part(NamedTuple):
    """What an engine has and does.

    Attributes:
        inputs: Its inputs.
        outputs: Its outputs.
        play: (address by name, batch size, stream): puts the copies on the stream.
    """

    inputs: Tensors
    outputs: Tensors
    play: Callable[[Mapping[str, int], int, int], None]


def images_of(patches: np.ndarray) -> np.ndarray:
    """Return the images uint8 [N, P, WIDTH, 3] whose patches are float32 [N, P, CHANNELS]."""
    n, p, _ = patches.shape
    return np.ascontiguousarray(patches, np.float32).view(np.uint8).reshape(n, p, WIDTH, 3)


def patches_part(positions: int, copy: Copy) -> Part:
    """Return a part that takes images and gives the same bytes as patches.

    Args:
        positions: Patches of an image.
        copy: Copies within the device.
    """

    def play(addresses: Mapping[str, int], count: int, stream: int) -> None:
        copy(addresses["patches"], addresses["images"], 4 * count * positions * CHANNELS, stream)

    images, patches = (positions, WIDTH, 3), (positions, CHANNELS)
    return Part({"images": (images, np.uint8)}, {"patches": (patches, np.float32)}, play)


class _Context:
    def __init__(self, engine: _Engine) -> None:
        self._engine, self._addresses, self._counts = engine, dict[str, int](), dict[str, int]()

    def set_device_memory(self, memory: int, size: int) -> None:
        if not memory or size < self._engine.device_memory_size_v2:
            raise ValueError("no memory to compute in")

    def set_tensor_address(self, name: str, address: int) -> bool:
        self._addresses[name] = address
        return address != 0

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self._counts[name] = shape[0]
        return name in self._engine.part.inputs and shape[1:] == self._engine.part.inputs[name][0]

    def execute_async_v3(self, stream: int) -> bool:
        part = self._engine.part
        (count,) = set(self._counts.values())
        if (
            self._counts.keys() != part.inputs.keys()
            or self._addresses.keys() != {**part.inputs, **part.outputs}.keys()
        ):
            return False
        part.play(self._addresses, count, stream)
        return True


class _Engine:
    device_memory_size_v2 = 1024

    def __init__(self, part: Part) -> None:
        self.part = part
        self.tensors = {**part.inputs, **part.outputs}
        self.num_io_tensors = len(self.tensors)

    def get_tensor_name(self, number: int) -> str:
        return list(self.tensors)[number]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return (-1, *self.tensors[name][0])

    def get_tensor_dtype(self, name: str) -> type[np.generic]:
        return self.tensors[name][1]

    def get_tensor_mode(self, name: str) -> int:
        return 0 if name in self.part.inputs else 1

    def create_execution_context(self, strategy: object = None) -> _Context:
        return _Context(self)


def module(parts: Mapping[bytes, Part]) -> Any:
    """Return what stands in for the module `tensorrt`.

    Args:
        parts: What the engine of each plan has and does.
    """

    class ILogger:
        Severity = types.SimpleNamespace(ERROR=1, WARNING=2)

    class Runtime:
        def __init__(self, logger: object) -> None:
            self.logger = logger

        def deserialize_cuda_engine(self, plan: bytes) -> _Engine:
            return _Engine(parts[plan])

    stand_in: Any = types.ModuleType("engine_stand_in")
    stand_in.ILogger, stand_in.Runtime = ILogger, Runtime
    stand_in.TensorIOMode = types.SimpleNamespace(INPUT=0, OUTPUT=1)
    stand_in.ExecutionContextAllocationStrategy = types.SimpleNamespace(STATIC="static", USER_MANAGED="user")
    stand_in.nptype = lambda dtype: dtype
    return stand_in
