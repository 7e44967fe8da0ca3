"""The networks of a generator as torch modules and ONNX graphs: `text`, `encode`, `denoise`, `decode`.

    text:    tokens int64 [N, L], vectors float32 [N, L, W], placed float32 [N, L] -> context float32 [N, L, D]
    encode:  image float32 [N, 3, H, W] in [-1, 1]                                 -> latents float32 [N, C, h, w]
    denoise: x float32 [N, C or 2C+1, h, w], timestep int64 [N], context           -> noise float32 [N, C, h, w]
    decode:  latents float32 [N, C, h, w]                                          -> image float32 [N, 3, H, W]

Latents are the scaled mean of the posterior; decoded images are clipped to [-1, 1]. If the autoencoder itself expects
another normalization, the graphs convert.
"""

from __future__ import annotations

import gc
from typing import Any, cast

import onnx
import torch
from torch import Tensor, nn

from flawscope.export.onnx_trace import export_network
from flawscope.training.diffusion.autoencoder import Decoder, Encoder
from flawscope.training.synthesis.base_model import SynthesisBase

GRAPHS = ("text", "encode", "denoise", "decode")
"""In the order in which drawing calls them."""

OUTPUTS = {"text": "context", "encode": "latents", "denoise": "noise", "decode": "picture"}
"""Graph -> its output."""


class SignedEncoder(nn.Module):
    """Images float32 [N, 3, H, W] in [-1, 1] in, latents float32 [N, C, h, w] out: the mean, no random sample.

    Args:
        encoder: The encoder for uint8 images; its parameters are shared, not copied.
    """

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder: Any = encoder
        # From [-1, 1] to 0..255 and on to the encoder's own normalization, as one factor and one offset per channel;
        # in float64, so that only the results are rounded.
        center, spread = (encoder.get_buffer(name).double().reshape(3, 1, 1) for name in ("center", "spread"))
        # Not persistent: the state of the module stays that of the encoder.
        self.register_buffer("gain", (127.5 / spread).float(), persistent=False)
        self.register_buffer("shift", ((127.5 - center) / spread).float(), persistent=False)
        self.eval()

    def forward(self, image: Tensor) -> Tensor:
        """Return the latents of a batch."""
        normalised = image * self.get_buffer("gain") + self.get_buffer("shift")
        mean = self.encoder.moments(self.encoder.encoder(normalised)).chunk(2, dim=1)[0]
        return cast(Tensor, mean * self.encoder.scaling)


class Predictor(nn.Module):
    """A UNet2DConditionModel of diffusers whose only output is the noise float32 [N, C, h, w].

    Args:
        unet: The UNet; its parameters are shared, not copied.
    """

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.unet = unet
        self.eval()

    def forward(self, x: Tensor, timestep: Tensor, context: Tensor) -> Tensor:
        """Return the noise in a batch of latents."""
        return cast(Tensor, self.unet(x, timestep, encoder_hidden_states=context, return_dict=False)[0])


def synthesis_modules(base: SynthesisBase, unet: nn.Module) -> dict[str, nn.Module]:
    """Return the modules of the graphs by name, frozen and in inference mode.

    Args:
        base: The base model.
        unet: The base's own UNet, or an adapted one.
    """
    return {
        "text": base.text,
        "encode": SignedEncoder(Encoder(base.autoencoder, base.normalization)),
        "denoise": Predictor(unet),
        "decode": Decoder(base.autoencoder, base.normalization),
    }


def example_inputs(base: SynthesisBase) -> dict[str, dict[str, Tensor]]:
    """Return example inputs for one image: graph → input name → tensor."""
    length, width = base.prompts.rules.length, base.text.width
    channels, *sides = base.latents
    tokens = {
        "tokens": torch.zeros((1, length), dtype=torch.int64),
        "vectors": torch.zeros((1, length, width)),
        "placed": torch.zeros((1, length)),
    }
    with torch.inference_mode():
        context = base.text(*tokens.values()).clone()
    # An inpainting UNet also takes the mask (1) and the latents of the masked image (C).
    in_channels = 2 * channels + 1 if base.is_inpainting else channels
    return {
        "text": tokens,
        "encode": {"image": torch.zeros((1, 3, *base.size))},
        "denoise": {
            "x": torch.zeros((1, in_channels, *sides)),
            "timestep": torch.zeros(1, dtype=torch.int64),
            # Of `context` only the shape is used: a tensor of inference mode is nothing to trace with.
            "context": torch.zeros(context.shape),
        },
        "decode": {"latents": torch.zeros((1, channels, *sides))},
    }


def synthesis_graph(name: str, module: nn.Module, examples: dict[str, Tensor], max_batch: int) -> onnx.ModelProto:
    """Return the graph of a module with a dynamic batch.

    Args:
        name: One of `GRAPHS`.
        module: Its module from `synthesis_modules`, on the CPU.
        examples: Its inputs from `example_inputs`.
        max_batch: Largest batch the graph takes.

    Raises:
        RunError: If torch cannot export it.
    """
    return export_network(module, examples, max_batch, (OUTPUTS[name],), name)


def release_weights() -> None:
    """Release the memory of the network that was exported last.

    The rewrite rules of torch's exporter are global objects that remember the nodes they matched last, and through
    them all weights. Exporting a tiny network replaces what they remember.
    """
    export_network(_PlusOne(), {"x": torch.zeros((1, 1))}, 1, ("y",), "release")
    gc.collect()


class _PlusOne(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + 1.0
