"""Reconstruction on a CUDA device: from the images to the maps of their differences, nothing passes through the host.

Written against TensorRT's and PyCUDA's interfaces, not run on a GPU; tests compare it with the loop in NumPy, with the
kernel in emulation.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from flawscope.arrays import Float32Array, UInt8Array
from flawscope.diffusion.reconstruction import signed
from flawscope.diffusion.schedule import Sampling
from flawscope.diffusion.step_table import StepTable, reconstruction_table
from flawscope.runtime.backends.device import Device
from flawscope.runtime.backends.device_engines import DeviceEngines
from flawscope.runtime.backends.sampling_loop import SamplingLoop, place


@dataclass(frozen=True)
class Compared:
    """Reconstructions float32 [N, 3, H, W], and their differences of pixels and of features, each float32 [N, H, W]."""

    reconstructions: Float32Array
    pixel: Float32Array
    feature: Float32Array


class DeviceReconstruction:
    """The networks of a reconstruction bundle on one device, and the sampling between them.

    Encoding, sampling, decoding and comparison are one CUDA graph for each number of steps and images.

    Args:
        engines: The engines `denoise`, `compare`, and with latents `encode` and `decode`.
        latents: Channels, height and width of x.
        size: Height and width of the images.
        most: Largest number of images.

    Raises:
        BackendError: If this installation has no CUDA kernels, or an engine has other arrays.
        DeviceError: If there is not memory enough.
    """

    def __init__(self, engines: DeviceEngines, latents: tuple[int, int, int], size: tuple[int, int], most: int) -> None:
        self._engines, self._size = engines, size
        self._encode, self._decode = engines.sessions.get("encode"), engines.sessions.get("decode")
        self._compare, denoise = engines.sessions["compare"], engines.sessions["denoise"]
        self._images_at = place(self._compare, "image", (*size, 3), np.uint8)
        self._reconstructions_at = place(self._compare, "reconstruction", (3, *size), np.float32)
        self._pixel_at = place(self._compare, "pixel_map", size, np.float32)
        self._feature_at = place(self._compare, "feature_map", size, np.float32)
        self._bytes = 4 * 3 * size[0] * size[1]
        # Conditions: (where `encode` puts them, where `denoise` takes them, bytes of an image's).
        self._conditions: list[tuple[int, int, int]] = []
        if self._encode is not None:
            self._encoded_at = place(self._encode, "latents", latents, np.float32)
            for name in self._encode.names[1]:
                if name != "latents":
                    source, shape, kind = self._encode.tensor(name)
                    size_of = math.prod(shape) * kind.itemsize
                    self._conditions.append((source, place(denoise, name, shape, kind), size_of))
        if self._decode is not None:
            self._latents_at = place(self._decode, "latents", latents, np.float32)
            self._decoded_at = place(self._decode, self._decode.names[1][0], (3, *size), np.float32)
        self.loop = SamplingLoop(
            engines,
            latents,
            most,
            guided=False,
            masked=False,
            same_noise=True,
            after=self._decode_and_compare,
            before=None if self._encode is None else self._encode_images,
        )

    def make_ready(self, sampling: Sampling, arrays: int) -> None:
        """Capture a sampling for every number of images, with so many arrays of noise.

        Raises:
            DeviceError: If the device fails, or has not memory enough.
        """
        with self._engines.using() as device:
            self.loop.make_ready(device, self._table(sampling), arrays)

    def run(
        self,
        images: UInt8Array,
        encoder_inputs: Mapping[str, npt.NDArray[Any]],
        sampling: Sampling,
        noise: Float32Array,
    ) -> Compared:
        """Reconstruct and compare images.

        Args:
            images: uint8 [N, H, W, 3].
            encoder_inputs: Inputs of `encode`; not used without one.
            sampling: Noise levels, steps and conditioning.
            noise: Float32 [K, C, h, w].

        Raises:
            DeviceError: If the device fails.
        """
        count, table = len(images), self._table(sampling)
        made = np.empty((count, 3, *self._size), np.float32)
        pixel, feature = (np.empty((count, *self._size), np.float32) for _ in range(2))
        # Held until the stream is done: it copies from them.
        held: list[npt.NDArray[Any]] = [np.ascontiguousarray(images)]
        with self._engines.using() as device:
            device.copy_in(self._images_at, held[0])
            if self._encode is None:
                held.append(signed(images))
                device.copy_in(self.loop.clean, held[-1])
            else:
                for name, array in encoder_inputs.items():
                    held.append(np.ascontiguousarray(array))
                    device.copy_in(self._encode.tensor(name)[0], held[-1])
            self.loop.prepare(device, table, noise)
            self.loop.run(device, count)
            for array, address in ((made, self._reconstructions_at), (pixel, self._pixel_at)):
                device.copy_out(array, address)
            device.copy_out(feature, self._feature_at)
            device.wait()
        return Compared(made, pixel, feature)

    def _table(self, sampling: Sampling) -> StepTable:
        # Without a decoder x is the image itself, and is clipped as `SessionNetworks.decode` does.
        return reconstruction_table(sampling, bounded=self._decode is None)

    def _encode_images(self, device: Device, count: int) -> None:
        """Enqueue what comes before the sampling; within the graph."""
        assert self._encode is not None
        self._encode.launch(count)
        device.copy_on(self.loop.clean, self._encoded_at, count * self.loop.bytes)
        for source, target, size in self._conditions:
            device.copy_on(target, source, count * size)

    def _decode_and_compare(self, device: Device, count: int) -> None:
        """Enqueue what follows the sampling; within the graph."""
        found = self.loop.x
        if self._decode is not None:
            device.copy_on(self._latents_at, self.loop.x, count * self.loop.bytes)
            self._decode.launch(count)
            found = self._decoded_at
        device.copy_on(self._reconstructions_at, found, count * self._bytes)
        self._compare.launch(count)
