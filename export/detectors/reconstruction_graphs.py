"""The networks of a detector that reconstructs as graphs: `denoise`, `compare`; with latents `encode`, `decode` too."""

from __future__ import annotations

from collections.abc import Iterator

import onnx
import torch

from flawscope.export.onnx_trace import export_network
from flawscope.training.diffusion.torch_reconstruction import Reconstruction


def reconstruction_graphs(
    reconstruction: Reconstruction, size: tuple[int, int], max_batch: int
) -> Iterator[tuple[str, onnx.ModelProto]]:
    """Yield name and graph of every network, one after the other, because together they may not fit into memory.

    Args:
        reconstruction: The detector, on the CPU.
        size: Height and width of the pictures.
        max_batch: Largest batch the graphs take.

    Raises:
        RunError: If torch cannot export a network.
    """
    modules = reconstruction.networks.modules
    image = torch.zeros((1, *size, 3), dtype=torch.uint8)
    latents = torch.zeros((1, *reconstruction.noise.shape[1:]))
    inputs = {"x": latents, "timestep": torch.zeros(1, dtype=torch.int64)}
    if "encode" in modules:
        shown = {"image": image}
        if reconstruction.networks.edges:
            shown["edges"] = torch.zeros((1, 1, *size))
        with torch.no_grad():
            _, hint = modules["encode"](*shown.values())
        yield "encode", export_network(modules["encode"], shown, max_batch, ("latents", "hint"), "encode")
        inputs["hint"] = hint
        yield "decode", export_network(modules["decode"], {"latents": latents}, max_batch, ("picture",), "decode")
    yield "denoise", export_network(modules["denoise"], inputs, max_batch, ("noise",), "denoise")
    compared = {"image": image, "reconstruction": torch.zeros((1, 3, *size))}
    yield "compare", export_network(modules["compare"], compared, max_batch, ("pixel_map", "feature_map"), "compare")
