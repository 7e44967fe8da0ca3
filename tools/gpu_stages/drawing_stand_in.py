"""A sampling loop on a device with stand-ins for its engines, which keep what they are given, on the device as well."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from gpu_stages import engine_stand_in
from gpu_stages.drawing_reference import Case, Given, Kind, noises_of, shift_of, table_of
from gpu_stages.kernels import Array

MOST_STEPS = 9


class _Log:
    """Memory for what the network is given at each step of a run; its copies are within the captured graph.

    Of a run only as many slots are used as it has steps: the launches of its capture write to the same ones.
    """

    def __init__(self, inputs: int, timesteps: int, input_bytes: int, rows: int) -> None:
        self.inputs, self.timesteps, self._input_bytes, self._rows = inputs, timesteps, input_bytes, rows
        self._steps = self._calls = 0

    def begin(self, steps: int, first: int = 0) -> None:
        self._steps, self._calls = steps, first

    def keep(self, copy: engine_stand_in.Copy, x: int, timesteps: int, count: int, stream: int) -> None:
        slot = self._rows * (self._calls % self._steps)
        copy(self.inputs + slot * self._input_bytes, x, count * self._input_bytes, stream)
        copy(self.timesteps + slot * 8, timesteps, count * 8, stream)
        self._calls += 1


class Drawer:
    """A loop of one kind, with its engines `denoise` and `decode` on a device of their own.

    The network shifts the numbers of each row of its batch by others; the decoder copies.

    Args:
        kind: The kind.
        latents: Channels, height and width of x.
        most: Largest number of images.
        copy: Copies within the device.

    Attributes:
        loop: The `SamplingLoop`.
        engines: Its `DeviceEngines`.
    """

    def __init__(self, kind: Kind, latents: tuple[int, int, int], most: int, copy: engine_stand_in.Copy) -> None:
        from flawscope.runtime.backends.device_engines import DeviceEngines
        from flawscope.runtime.backends.sampling_loop import SamplingLoop, place

        self.kind, self.latents, self._copy, self._rows = kind, latents, copy, most * kind.halves
        channels = 2 * latents[0] + 1 if kind.masked else latents[0]
        self._given = (channels, *latents[1:])
        self._log: _Log | None = None  # engines run before there is one
        self.engines = DeviceEngines(("denoise", "decode"), self._opener(most))
        try:
            self._latents_at = place(self.engines.sessions["decode"], "latents", latents, np.float32)
            self._decoded_at = place(self.engines.sessions["decode"], "image", latents, np.float32)
            self.loop = SamplingLoop(
                self.engines, latents, most, guided=kind.guided, masked=kind.masked,
                same_noise=kind.name == "reconstruction", after=self._decode,
            )  # fmt: skip
            size, slots = 4 * math.prod(self._given), MOST_STEPS * self._rows
            with self.engines.using() as device:
                self._log = _Log(device.allocate(slots * size), device.allocate(slots * 8), size, self._rows)
        except BaseException:
            self.engines.close()
            raise

    @property
    def graphs(self) -> int:
        """Number of graphs that the loop has."""
        made: Any = self.loop.made()
        return len(made)

    def make_ready(self, case: Case) -> None:
        """Capture a case for every number of images."""
        assert self._log is not None
        table = table_of(self.kind, case)
        self._log.begin(len(table) - 1, first=-1)  # one step is taken before the captures
        with self.engines.using() as device:
            self.loop.make_ready(device, table, noises_of(self.kind, case))

    def enqueue(self, device: Any, case: Case, given: Given) -> None:
        """Enqueue all of a run but the loop itself."""
        assert self._log is not None
        table = table_of(self.kind, case)
        self._log.begin(len(table) - 1)
        device.copy_in(self.loop.clean, given.clean)
        if self.kind.masked:
            device.copy_in(self.loop.masked, given.masked)
        self.loop.prepare(device, table, given.noise, None if self.kind.name == "reconstruction" else given.keep)

    def run(self, case: Case, given: Given) -> tuple[Array, Array, Array]:
        """Run a case.

        Returns:
            What the network was given at each step, float32 [steps, B, channels, h, w], and its timesteps, int64
            [steps, B]; and the decoder's results, float32 [N, C, h, w].
        """
        assert self._log is not None
        count, steps = len(given.clean), len(table_of(self.kind, case)) - 1
        inputs = np.empty((steps, self._rows, *self._given), np.float32)
        timesteps, decoded = np.empty(inputs.shape[:2], np.int64), np.empty((count, *self.latents), np.float32)
        with self.engines.using() as device:
            self.enqueue(device, case, given)
            self.loop.run(device, count)
            device.fetch(decoded, self._decoded_at)
            device.fetch(inputs, self._log.inputs)
            device.fetch(timesteps, self._log.timesteps)
        batch = count * self.kind.halves
        return inputs[:, :batch], timesteps[:, :batch], decoded

    def close(self) -> None:
        """Close the engines; closing twice is harmless."""
        self.engines.close()

    def _opener(self, most: int) -> Any:
        """Return what opens an engine for `DeviceEngines`."""
        from flawscope.runtime.backends.tensorrt import TensorrtSession
        from flawscope.runtime.engines.tensorrt_modules import TensorRT

        latents, halves = (self.latents, np.float32), self.kind.halves
        given: engine_stand_in.Tensors = {"x": (self._given, np.float32), "timestep": ((), np.int64)}
        parts = {
            b"denoise": engine_stand_in.Part(given, {"noise": latents}, self._predict),
            b"decode": engine_stand_in.Part({"latents": latents}, {"image": latents}, self._copied),
        }
        tensorrt = TensorRT("tensorrt", "stand-in", engine_stand_in.module(parts))
        batches = {"denoise": range(halves, most * halves + 1, halves), "decode": range(1, most + 1)}

        def open_engine(name: str, shared: Any) -> Any:
            return TensorrtSession(name.encode(), tensorrt, batches[name], name=name, graphs=False, shared=shared)

        return open_engine

    def _predict(self, addresses: Mapping[str, int], count: int, stream: int) -> None:
        """Put on the stream what `drawing_reference.shifted` computes."""
        size, taken = math.prod(self._given), math.prod(self.latents)
        for row in range(count):
            source, target = addresses["x"] + 4 * row * size, addresses["noise"] + 4 * row * taken
            shift = shift_of(row, size)
            first = min(taken, size - shift)
            self._copy(target, source + 4 * shift, 4 * first, stream)
            if first < taken:
                self._copy(target + 4 * first, source, 4 * (taken - first), stream)
        if self._log is not None:
            self._log.keep(self._copy, addresses["x"], addresses["timestep"], count, stream)

    def _copied(self, addresses: Mapping[str, int], count: int, stream: int) -> None:
        self._copy(addresses["image"], addresses["latents"], 4 * count * math.prod(self.latents), stream)

    def _decode(self, device: Any, count: int) -> None:
        device.copy_on(self._latents_at, self.loop.x, count * self.loop.bytes)
        self.engines.sessions["decode"].launch(count)
