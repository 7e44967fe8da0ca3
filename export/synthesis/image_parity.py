"""Parity gate of generator bundles: torch and the graphs generate the same images from the same noise."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from flawscope.arrays import Float32Array, UInt8Array
from flawscope.bundle import Graph, ImageParity, OnnxModel, SynthHead
from flawscope.diffusion.latent_inpainting import classifier_free_guidance, draw_latents, draw_noise, keep_of
from flawscope.diffusion.prompts import Tokens
from flawscope.diffusion.reconstruction import signed, unsigned
from flawscope.errors import GateError
from flawscope.export.synthesis.generator_graphs import OUTPUTS
from flawscope.runtime.backends.ort import OrtSession

STEPS = 4
"""Sampling steps of the gate. Each step feeds the differences of the one before back into the UNet, so a few show what
many would; with a large UNet each takes minutes on a CPU."""

PSNR_LIMIT = 50.0
"""Smallest accepted PSNR in dB of an image: a mean square of 0.65, so about half of all bytes may differ by one."""

EQUAL_DB = 100.0
"""Stands for the infinite PSNR of equal images, which JSON cannot hold."""

Call = Callable[[str, Mapping[str, npt.NDArray[Any]]], Float32Array]
"""Runs a network: `(graph name, inputs by name) -> its one output`."""


@dataclass(frozen=True)
class Drawing:
    """What the gate draws.

    Attributes:
        head: Settings of the drawing, but for the steps, which are `STEPS`.
        images: Normal images, uint8 [N, H, W, 3].
        texts: A prompt for each image, as tokens.
        empty: The empty prompt of classifier-free guidance, once.
        max_batch: Largest batch of the networks.
    """

    head: SynthHead
    images: UInt8Array
    texts: Tokens
    empty: Tokens
    max_batch: int


def draw_checked(call: Call, drawing: Drawing) -> UInt8Array:
    """Return the images with a box in the middle drawn anew, half as high and wide, uint8 [N, H, W, 3].

    Images go through the networks in the largest batches that guidance allows.
    """
    # Guidance runs every image with its prompt and with the empty one, in one batch.
    most = max(1, drawing.max_batch // 2)
    empty = call("text", _inputs(drawing.empty, slice(0, 1)))
    drawn = []
    for start in range(0, len(drawing.images), most):
        part = slice(start, min(start + most, len(drawing.images)))
        context = call("text", _inputs(drawing.texts, part))
        drawn.append(_draw(call, drawing, part, context, empty))
    return np.concatenate(drawn)


def _inputs(tokens: Tokens, part: slice) -> dict[str, npt.NDArray[Any]]:
    return {"tokens": tokens.tokens[part], "vectors": tokens.vectors[part], "placed": tokens.placed[part]}


def _draw(call: Call, drawing: Drawing, part: slice, context: Float32Array, empty: Float32Array) -> UInt8Array:
    head, images = drawing.head, signed(drawing.images[part])
    # The same calls as in `flawscope.runtime.synthesis`, on whole images: the gate compares what will run.
    count, (height, width) = len(images), images.shape[2:]
    mask = np.zeros((height, width), np.bool_)
    mask[height // 4 : -(height // 4), width // 4 : -(width // 4)] = True
    keep = np.broadcast_to(keep_of(mask, head.latents[1:]), (count, 1, *head.latents[1:])).copy()
    clean = call("encode", {"image": images})
    beside = []
    if head.mode == "inpaint":
        # In the channel order of the UNet: mask (1 inside the box), then the latents of the image without the box.
        beside = [np.float32(1.0) - keep, call("encode", {"image": images * (~mask).astype(np.float32)})]
    contexts = np.concatenate([context, *[empty] * count])
    sampling = msgspec.structs.replace(head.sampling, steps=STEPS)

    def predict(x: Float32Array, timestep: int) -> Float32Array:
        unet_input = np.concatenate([x, *beside], axis=1)
        inputs = {
            "x": np.concatenate([unet_input, unet_input]),
            "timestep": np.full(2 * count, timestep, np.int64),
            "context": contexts,
        }
        noise = call("denoise", inputs)
        return classifier_free_guidance(noise[:count], noise[count:], head.guidance)

    # Seeded by the image's number in `drawing`, so that the noise does not depend on the batch size.
    noise = np.stack([draw_noise(part.start + index, head.mode, sampling, head.latents) for index in range(count)])
    latents = draw_latents(head.mode, clean, keep, noise, sampling, predict)
    return unsigned(call("decode", {"latents": latents}))


def torch_call(modules: Mapping[str, nn.Module]) -> Call:
    """Return a `Call` that runs torch modules: the reference of the gate."""

    def call(name: str, inputs: Mapping[str, npt.NDArray[Any]]) -> Float32Array:
        with torch.inference_mode():
            tensors = {key: torch.from_numpy(np.ascontiguousarray(value)) for key, value in inputs.items()}
            output: Float32Array = modules[name](**tensors).numpy()
        return output

    return call


class GraphCalls:
    """Calls graphs on the CPU, one session at a time: together they may not fit into memory.

    Args:
        graphs: Name → entry of the manifest.
        folder: Folder of the graphs.
    """

    def __init__(self, graphs: Mapping[str, Graph], folder: Path) -> None:
        self._graphs, self._folder = graphs, folder
        self._name = ""
        self._session: OrtSession | None = None

    def __call__(self, name: str, inputs: Mapping[str, npt.NDArray[Any]]) -> Float32Array:
        """Return the output of a graph."""
        if self._session is None or self._name != name:
            # The old session goes first, or both networks would be in memory at once.
            self.close()
            model = OnnxModel.of_file(self._folder / self._graphs[name].file)
            self._session, self._name = OrtSession(model, "cpu"), name
        output: Float32Array = self._session.run(inputs)[OUTPUTS[name]]
        return output

    def close(self) -> None:
        """Release the session; closing twice is harmless."""
        if self._session is not None:
            self._session.close()
        self._session = None


def measure_images(expected: UInt8Array, measured: UInt8Array) -> float:
    """Return the smallest PSNR in dB over images uint8 [N, H, W, 3]; 100 where they are equal."""
    # float64: differences of uint8 would wrap around, and their squares leave the range.
    differences = expected.astype(np.float64) - measured.astype(np.float64)
    worst = float((differences**2).mean(axis=(1, 2, 3)).max())
    return EQUAL_DB if worst == 0.0 else min(EQUAL_DB, 10.0 * float(np.log10(255.0**2 / worst)))


def check_images(expected: UInt8Array, measured: UInt8Array) -> ImageParity:
    """Return the parity of the images drawn by the graphs with those by torch.

    Raises:
        GateError: If the PSNR of an image is below `PSNR_LIMIT`.
    """
    ratio = measure_images(expected, measured)
    if not ratio >= PSNR_LIMIT:
        raise GateError(
            f"parity: images drawn by the graphs against those by torch, in {STEPS} steps from the same noise: "
            f"expected a PSNR of at least {PSNR_LIMIT:g} dB, got {ratio:.1f} dB. No bundle was written."
        )
    return ImageParity("torch", "denoise.onnx and the others, cpu", len(expected), STEPS, ratio)
