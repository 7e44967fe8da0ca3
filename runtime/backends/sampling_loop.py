"""A diffusion sampling on a CUDA device: a network and the kernel between its calls, captured as one graph.

The kernel takes its coefficients from a table in device memory (`flawscope.diffusion.step_table`), so that one graph of
a number of steps and images serves every schedule, solver and option. Written against TensorRT's and PyCUDA's
interfaces, not run on a GPU; tests emulate the kernel.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from flawscope.arrays import Float32Array
from flawscope.cpp_ext.cuda_kernels import CudaKernels
from flawscope.diffusion.schedule import TRAINED_STEPS
from flawscope.diffusion.step_table import ROW, StepTable
from flawscope.errors import BackendError, DeviceError, DeviceLost
from flawscope.runtime.backends.device import Device, Graph
from flawscope.runtime.backends.device_engines import DeviceEngines
from flawscope.runtime.backends.tensorrt import TensorrtSession
from flawscope.runtime.engines.capture_lock import CAPTURES

_MOST_GRAPHS = 16
"""Graphs that are kept beside those of the bundle's own number of steps, one for each number of images."""


class SamplingLoop:
    """The loop of the network `denoise` on a device. What it allocates lives as long as the engines.

    Used while the device is: see `DeviceEngines.using`.

    Args:
        engines: The engines; they own the loop.
        latents: Channels, height and width of x.
        most: Largest number of images.
        guided: Whether the network runs every image without and with its text, in one batch.
        masked: Whether it is given the mask and the masked image, as further channels.
        same_noise: Whether all images have the same noise.
        after: `(device, images)`: enqueues what follows the last step, within the graph.
        before: Likewise what makes `clean`; None where it is written before each run.

    Attributes:
        x: Address of float32 [most, C, h, w], the result.
        clean: Address of float32 [most, C, h, w]: the normal images, to be written before a run.
        masked: Address of float32 [most, C, h, w]: the masked images likewise, or 0.
        bytes: Bytes of an image's x.
        graph_problem: Why runs are launched call by call, or None.

    Raises:
        BackendError: If this installation has no CUDA kernels, or the network's arrays are others.
        DeviceError: If there is not memory enough.
    """

    def __init__(
        self,
        engines: DeviceEngines,
        latents: tuple[int, int, int],
        most: int,
        *,
        guided: bool,
        masked: bool,
        same_noise: bool,
        after: Callable[[Device, int], None],
        before: Callable[[Device, int], None] | None = None,
    ) -> None:
        self._kernels = CudaKernels()
        self._engines, self._network = engines, engines.sessions["denoise"]
        self._latents, self._most, self._guided = latents, most, guided
        self._before, self._after = before, after
        self._same_noise = same_noise
        channels = 2 * latents[0] + 1 if masked else latents[0]
        (output,) = self._network.names[1]
        self._given = place(self._network, "x", (channels, *latents[1:]), np.float32)
        self._timesteps = place(self._network, "timestep", (), np.int64)
        self._predicted = place(self._network, output, latents, np.float32)
        self.bytes = 4 * math.prod(latents)
        self._cells = latents[1] * latents[2]
        with engines.using() as device:
            self.x, self.clean, self._past = (device.allocate(most * self.bytes) for _ in range(3))
            self.masked = device.allocate(most * self.bytes) if masked else 0
            self._keep = device.allocate(4 * most * self._cells)
            self._table = device.allocate(ROW.itemsize * (TRAINED_STEPS + 1))
        self._noise, self._room = 0, 0  # address, and arrays of an image that it has room for
        self._steps = 0
        self._held: list[npt.NDArray[np.generic]] = []
        self._graphs: OrderedDict[tuple[int, int], Graph] = OrderedDict()
        self.graph_problem: str | None = None
        engines.add(self)

    def make_ready(self, device: Device, table: StepTable, arrays: int) -> None:
        """Capture the sampling that a bundle asks for, for every number of images, so that no image waits for it.

        Args:
            device: The device.
            table: Rows of the bundle's own sampling. Others of as many steps are launched as the same graphs.
            arrays: Arrays of noise of an image that runs are given. With one of more, all graphs are captured anew.

        Raises:
            DeviceError: If the device fails, or has not memory enough.
        """
        images = np.zeros((self._most, *self._latents), np.float32)
        keep = np.zeros((self._most, 1, *self._latents[1:]), np.float32)
        noise = np.zeros((arrays, *self._latents), np.float32)
        self.prepare(device, table, noise if self._same_noise else noise[None], keep)
        for address in (self.clean, self._past, self.masked):
            if address:
                device.copy_in(address, images)
        # One step of one image: the kernel of the steps is loaded, as all else was in the engines' own first runs. A
        # capture executes nothing, and the driver loads a kernel at its first launch, which it cannot meanwhile.
        steps, self._steps = self._steps, 1
        with CAPTURES.disturbing():
            self._enqueue(device, 1)
            device.wait()
        self._steps = steps
        for count in reversed(range(1, self._most + 1)):  # the largest first: what does not fit is said at once
            if self.graph_problem is None:
                self._keep_graph(device, count, device.capture)

    def prepare(self, device: Device, table: StepTable, noise: Float32Array, keep: Float32Array | None = None) -> None:
        """Enqueue the copies of what a run takes from the host. The arrays are held until the next call.

        Args:
            device: The device.
            table: Its rows.
            noise: Float32 [N, K, C, h, w]; [K, C, h, w] where all images have the same.
            keep: Float32 [N, 1, h, w]; None where no row restores.
        """
        # Held: what is copied must live until the stream has come to it, and callers wait before they come again.
        self._held = [np.ascontiguousarray(table), np.ascontiguousarray(noise)]
        self._steps = len(table) - 1
        device.copy_in(self._table, self._held[0])
        arrays = len(noise) if self._same_noise else noise.shape[1]
        self._make_room(device, arrays)
        if self._same_noise:
            device.copy_in(self._noise, self._held[1])
        else:
            for image, own in enumerate(self._held[1]):
                device.copy_in(self._noise + image * self._room * self.bytes, own)
        if keep is not None:
            self._held.append(np.ascontiguousarray(keep))
            device.copy_in(self._keep, self._held[-1])

    def run(self, device: Device, count: int) -> None:
        """Enqueue the sampling of `count` images: as one graph, if it was made ready, or else from the second time on.

        From a later one where a session is being opened meanwhile: an image does not wait for that.
        """
        key = (self._steps, count)
        if (graph := self._graphs.get(key)) is not None:
            self._graphs.move_to_end(key)
            graph.launch()
            return
        # Once launch by launch, never captured at once: a capture executes nothing, and the driver loads kernels at
        # their first launch.
        with CAPTURES.disturbing():
            self._enqueue(device, count)
        if self.graph_problem is None:
            self._keep_graph(device, count, device.try_capture)

    def _keep_graph(self, device: Device, count: int, capture: Callable[[Callable[[], None]], Graph | None]) -> None:
        """Capture the sampling of `count` images, if it can be captured now or at all."""
        try:
            graph = capture(lambda: self._enqueue(device, count))
        except DeviceLost:
            raise
        except DeviceError as err:
            # No fault: slower, and `graph_problem` says why.
            self.graph_problem = str(err)
            return
        if graph is None:
            return
        self._graphs[self._steps, count] = graph
        if len(self._graphs) > _MOST_GRAPHS + self._most:
            device.wait()  # a graph that is released must not be running
            self._graphs.popitem(last=False)[1].close()

    def release(self) -> None:
        """Release the graphs; the device's context is current, and the stream is done."""
        for graph in self._graphs.values():
            graph.close()
        self._graphs.clear()

    def made(self) -> object:
        """Return all that was made on the device beside its memory."""
        return tuple(self._graphs.values())

    def _make_room(self, device: Device, arrays: int) -> None:
        if arrays <= self._room:
            return
        # Twice as much as before at least: all graphs are captured anew with each growth.
        room = max(arrays, 2 * self._room)
        device.wait()
        self.release()  # graphs know the old address
        if self._room:
            # Before the new one: on a small device there may not be memory for both.
            old, self._noise, self._room = self._noise, 0, 0
            device.free(old)
        self._noise = device.allocate((1 if self._same_noise else self._most) * room * self.bytes)
        self._room = room  # not before: where there is no memory for it, the next run must ask again

    def _enqueue(self, device: Device, count: int) -> None:
        if self._before is not None:
            self._before(device, count)
        for number in range(self._steps + 1):
            self._kernels.diffusion_step(
                row=self._table + number * ROW.itemsize,
                n=count,
                c=self._latents[0],
                cells=self._cells,
                guided=int(self._guided),
                predicted=self._predicted,
                clean=self.clean,
                hidden=0,
                keep=self._keep,
                masked=self.masked,
                noise=self._noise,
                arrays=0 if self._same_noise else self._room,
                x=self.x,
                past=self._past,
                input=self._given,
                timesteps=self._timesteps,
                stream=device.stream_number,
            )
            if number < self._steps:
                self._network.launch(count * (1 + self._guided))
        self._after(device, count)


def place(session: TensorrtSession, name: str, shape: tuple[int, ...], dtype: npt.DTypeLike) -> int:
    """Return the device address of an input or output of an engine, which must have this shape after the first axis.

    Raises:
        BackendError: If there is none, or another.
    """
    address, got, kind = session.tensor(name)
    if got != shape or kind != np.dtype(dtype):
        raise BackendError(
            f"backend tensorrt: {session.name}: {name}: expected {np.dtype(dtype).name} {list(shape)} an image, got "
            f"{kind.name} {list(got)}. Export the bundle again."
        )
    return address
