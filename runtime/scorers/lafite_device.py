"""Denoising of features on a CUDA device: all steps of LafitE's sampling, without a way through the host between them.

Written against TensorRT's and PyCUDA's interfaces, not run on a GPU; tests compare it with the loop in NumPy, with the
kernel in emulation.
"""

from __future__ import annotations

import numpy as np

from flawscope.arrays import Float32Array
from flawscope.diffusion.schedule import Sampling
from flawscope.diffusion.step_table import reconstruction_table
from flawscope.runtime.backends.device_engines import DeviceEngines
from flawscope.runtime.backends.sampling_loop import SamplingLoop, place


class DeviceDenoising:
    """The sampling of a LafitE bundle on a device.

    Features come from the host, where the bank edits them, and go back there: the map is their distance to those of
    the image. All steps are one CUDA graph for each number of images; so is the graph `encode`.

    Args:
        engines: The engines `encode` and `denoise`.
        features: Channels, height and width of the features.
        most: Largest number of images.

    Attributes:
        loop: The loop of the steps.

    Raises:
        BackendError: If this installation has no CUDA kernels, or an engine has other arrays.
        DeviceError: If there is not memory enough.
    """

    def __init__(self, engines: DeviceEngines, features: tuple[int, int, int], most: int) -> None:
        self._engines, encode = engines, engines.sessions["encode"]
        # Before anything is copied: an address carries no size.
        place(encode, encode.names[1][0], features, np.float32)
        self.loop = SamplingLoop(
            engines, features, most, guided=False, masked=False, same_noise=True, after=lambda device, count: None
        )

    def make_ready(self, sampling: Sampling, arrays: int) -> None:
        """Capture a sampling for every number of images, with so many arrays of noise, and `encode`.

        Raises:
            DeviceError: If the device fails, or has not memory enough.
        """
        with self._engines.using() as device:
            self.loop.make_ready(device, reconstruction_table(sampling), arrays)
            self._engines.sessions["encode"].capture_batches()

    def run(self, features: Float32Array, noise: Float32Array, sampling: Sampling) -> Float32Array:
        """Return features float32 [N, C, h, w] noised and denoised; see `flawscope.diffusion.schedule.reconstruct`.

        Args:
            features: Float32 [N, C, h, w].
            noise: Float32 [K, C, h, w].
            sampling: Noise levels and steps.

        Raises:
            DeviceError: If the device fails.
        """
        changed = np.empty(features.shape, np.float32)
        given = np.ascontiguousarray(features)
        with self._engines.using() as device:
            device.copy_in(self.loop.clean, given)
            self.loop.prepare(device, reconstruction_table(sampling), noise)
            self.loop.run(device, len(features))
            device.copy_out(changed, self.loop.x)
            device.wait()  # until then the stream copies from `given`
        return changed
