"""Drawing in windows on a CUDA device: latents, texts and noise stay there from the first network to the last.

Written against TensorRT's and PyCUDA's interfaces, not run on a GPU; tests compare it with `HostDrawing`, with the
kernel in emulation.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable

import numpy as np
import numpy.typing as npt

from flawscope.arrays import BoolArray, Float32Array, UInt8Array
from flawscope.bundle import SynthHead
from flawscope.diffusion.latent_inpainting import keep_of, noises_of_drawing
from flawscope.diffusion.reconstruction import signed
from flawscope.diffusion.step_table import StepTable, drawing_table
from flawscope.errors import BundleError
from flawscope.runtime.backends.device import Device
from flawscope.runtime.backends.device_engines import DeviceEngines
from flawscope.runtime.backends.sampling_loop import SamplingLoop, place
from flawscope.runtime.synthesis.kept import Kept, Slots
from flawscope.runtime.synthesis.window_drawing import (
    MOST_KEPT,
    DrawnWindows,
    Manner,
    blanked,
    reconstructed,
    window_keys,
)

_MOST_SLOTS = 256
_SLOT_BYTES = 16 << 20


class DeviceDrawing:
    """Draws on one device; see `HostDrawing` for what is drawn.

    From the host come windows that are new, texts, noise and the table of the steps, once for a batch; to the host go
    the drawn windows, their latents and the reconstructions of new windows. The steps and the decoding of what they
    have drawn are one CUDA graph for each number of steps and images.

    Args:
        engines: The engines `encode`, `denoise` and `decode`.
        head: How the bundle draws.
        size: Height and width of a window.
        most: Largest number of windows.

    Attributes:
        loop: The loop of the steps.

    Raises:
        BackendError: If this installation has no CUDA kernels, or an engine has other arrays.
        DeviceError: If there is not memory enough.
    """

    def __init__(self, engines: DeviceEngines, head: SynthHead, size: tuple[int, int], most: int) -> None:
        self._engines, self._head, self._size = engines, head, size
        self._encode, self._decode = engines.sessions["encode"], engines.sessions["decode"]
        self._image_at = place(self._encode, "image", (3, *size), np.float32)
        self._encoded_at = place(self._encode, self._encode.names[1][0], head.latents, np.float32)
        self._latents_at = place(self._decode, "latents", head.latents, np.float32)
        self._decoded_at = place(self._decode, self._decode.names[1][0], (3, *size), np.float32)
        self._context_at, self._text_shape, _ = engines.sessions["denoise"].tensor("context")
        self.loop = SamplingLoop(
            engines,
            head.latents,
            most,
            guided=True,
            masked=head.mode == "inpaint",
            same_noise=False,
            after=self._decode_drawn,
        )
        self._known = Kept(MOST_KEPT)
        # Latents of windows, on the device; twice as many as a batch has, as each may have two.
        slots = max(2 * most, min(_MOST_SLOTS, _SLOT_BYTES // self.loop.bytes))
        self._slots = Slots(slots)
        with engines.using() as device:
            self._slots_at = device.allocate(slots * self.loop.bytes)

    def make_ready(self, manner: Manner) -> None:
        """Capture drawing in a manner, for every number of windows.

        Raises:
            DeviceError: If the device fails, or has not memory enough.
        """
        arrays = noises_of_drawing(manner.mode, manner.sampling, manner.strength)
        with self._engines.using() as device:
            self.loop.make_ready(device, _table(manner), arrays)

    def draw(
        self, windows: UInt8Array, masks: BoolArray, context: Float32Array, noise: Float32Array, manner: Manner
    ) -> DrawnWindows:
        """Return drawn windows; see `HostDrawing.draw`.

        Raises:
            DeviceError: If the device fails.
        """
        wanted = (2 * len(windows), *self._text_shape)
        if context.shape != wanted:
            raise BundleError(
                f"text: expected float32 {list(wanted)}, got {list(context.shape)}. Export the bundle again."
            )
        try:
            return self._draw(windows, masks, context, noise, manner)
        except BaseException:
            self._slots.clear()  # what should lie there may never have been computed
            raise

    def _draw(
        self, windows: UInt8Array, masks: BoolArray, context: Float32Array, noise: Float32Array, manner: Manner
    ) -> DrawnWindows:
        count, table = len(windows), _table(manner)
        latents = np.empty((count, *self._head.latents), np.float32)
        decoded, known = (np.empty((count, 3, *self._size), np.float32) for _ in range(2))
        keys = window_keys("known", windows)
        kept = self._known.find(keys)
        with self._engines.using() as device:
            held = self._give(device, windows, masks, context)
            self.loop.prepare(device, table, noise, np.stack([keep_of(mask, self._head.latents[1:]) for mask in masks]))
            self.loop.run(device, count)
            device.copy_out(latents, self.loop.x)
            device.copy_out(decoded, self._decoded_at)
            if kept is None:
                device.copy_on(self._latents_at, self.loop.clean, count * self.loop.bytes)
                self._decode.launch(count)
                device.copy_out(known, self._decoded_at)
            device.wait()
            del held  # what the stream copies must live until here
        if kept is not None:
            return DrawnWindows(latents, decoded, np.stack(kept))
        images = reconstructed(known)
        self._known.keep(keys, list(images))
        return DrawnWindows(latents, decoded, images)

    def _give(
        self, device: Device, windows: UInt8Array, masks: BoolArray, context: Float32Array
    ) -> list[npt.NDArray[np.float32]]:
        """Enqueue what the loop takes beside its noise, and return what must live until the stream has come to it."""
        held = [np.ascontiguousarray(context)]
        device.copy_in(self._context_at, held[0])
        self._latents_into(device, self.loop.clean, window_keys("encode", windows), lambda: signed(windows), held)
        if self.loop.masked:
            keys = window_keys("masked", windows, masks)
            self._latents_into(device, self.loop.masked, keys, lambda: blanked(signed(windows), masks), held)
        return held

    def _latents_into(
        self,
        device: Device,
        target: int,
        keys: list[Hashable],
        images: Callable[[], Float32Array],
        held: list[npt.NDArray[np.float32]],
    ) -> None:
        """Enqueue the encoding of windows, or the copies of their latents if the device has them all."""
        size = self.loop.bytes
        found = self._slots.find(keys)
        if found is None:
            held.append(images())
            device.copy_in(self._image_at, held[-1])
            self._encode.launch(len(keys))
            device.copy_on(target, self._encoded_at, len(keys) * size)
            for number, slot in enumerate(self._slots.take(keys)):
                device.copy_on(self._slots_at + slot * size, target + number * size, size)
            return
        for number, slot in enumerate(found):
            device.copy_on(target + number * size, self._slots_at + slot * size, size)

    def _decode_drawn(self, device: Device, count: int) -> None:
        """Enqueue the decoding of x; within the graph."""
        device.copy_on(self._latents_at, self.loop.x, count * self.loop.bytes)
        self._decode.launch(count)


def _table(manner: Manner) -> StepTable:
    return drawing_table(
        manner.mode,
        manner.sampling,
        manner.guidance,
        strength=manner.strength,
        solver=manner.solver,
        restore=manner.restore,
    )
