"""Export of reconstruction detectors (DDAD, DSAD): a graph for each network, and the noise of the sampling."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import safetensors.numpy
import torch

from flawscope.arrays import Float32Array, UInt8Array
from flawscope.bundle import DdadHead, DsadHead, Manifest, ReconstructionHead, open_bundle
from flawscope.diffusion.schedule import plan_steps
from flawscope.export.exporter import ExportedGraphs
from flawscope.export.graph_files import INLINE_LIMIT, write_graph
from flawscope.export.onnx_trace import export_network
from flawscope.runtime import Inspector
from flawscope.training.detectors.detector_run import Run
from flawscope.training.detectors.torch_scores import reconstruction_scores
from flawscope.training.diffusion.torch_reconstruction import Reconstruction

NOISE = "noise.safetensors"


@dataclass(frozen=True)
class ReconstructionExporter:
    """Exports denoiser and comparison, for latent diffusion also encoder and decoder; see `Exporter` for the contract.

    Attributes:
        make_head: `(reconstruction, scale) -> head`; the scale is the mean score of the run's sample
            images.
    """

    make_head: Callable[[Reconstruction, float], ReconstructionHead]
    graph_words = "denoise.onnx and the others, cpu"
    other_paths: tuple[str, ...] = ()
    traced: tuple[str, ...] | None = None
    converted = "denoise"
    precisions: tuple[str, ...] = ("fp16",)
    networks: tuple[str, ...] = ()

    @property
    def reducible(self) -> ReconstructionExporter:
        """This exporter: the denoiser, which is run in every step, in FP16; all else stays in FP32."""
        return self

    def head(self, run: Run, images: Sequence[UInt8Array]) -> ReconstructionHead:
        """Return the head; its scale is measured on the sample images."""
        return self.make_head(run.module, float(reconstruction_scores(run.module, images)[1].mean()))

    def graphs(
        self, run: Run, head: ReconstructionHead, scratch: Path, max_batch: int, room: int | None
    ) -> ExportedGraphs:
        """Write the graphs of the networks and the noise."""
        reconstruction: Reconstruction = run.module
        # The noise is part of the bundle: one drawn at run time would give other scores on every device and version.
        noise = scratch / NOISE
        noise.write_bytes(safetensors.numpy.save({"noise": np.ascontiguousarray(reconstruction.noise)}))
        size = run.record.config.preprocessing.size
        graphs = {
            name: write_graph(max_batch, name, model, scratch, INLINE_LIMIT)
            for name, model in reconstruction_graphs(reconstruction, size, max_batch)
        }
        return ExportedGraphs(graphs, noise.name)

    def score_head(self, manifest: Manifest, tensors: Mapping[str, npt.NDArray[Any]]) -> None:
        """Return None: the denoiser has neither patches nor a score, and is not quantised to INT8."""

    def examples(self, bundle: Path, images: Sequence[UInt8Array]) -> dict[str, npt.NDArray[Any]]:
        """Return inputs of the denoiser, at the timesteps of the sampling in turn."""
        head: Any
        with open_bundle(bundle) as opened:
            head = opened.manifest.head
            inspector = Inspector(opened, "cpu", "graph", is_candidate=True)
            parts = inspector.scorer.parts(np.stack(images))
            inputs = next(dict(part.inputs) for part in parts if part.name == "denoise")
        timesteps = np.array([step.timestep for step in plan_steps(head.sampling)], np.int64)
        return inputs | {"timestep": np.resize(timesteps, len(images))}

    def reduced_graphs(self, model: onnx.ModelProto, manifest: Manifest, scratch: Path) -> dict[str, onnx.ModelProto]:
        """Return the denoiser."""
        return {"denoise": model}

    def reference(
        self, run: Run, head: ReconstructionHead, images: Sequence[UInt8Array]
    ) -> tuple[Float32Array, Float32Array]:
        """Return maps and scores by torch, with the noise of the run."""
        return reconstruction_scores(run.module, images)


def reconstruction_graphs(
    reconstruction: Reconstruction, size: tuple[int, int], max_batch: int
) -> Iterator[tuple[str, onnx.ModelProto]]:
    """Yield name and graph of every network, one at a time, because together they may not fit into memory.

    Args:
        reconstruction: The detector, on the CPU.
        size: Height and width of the images.
        max_batch: Largest batch the graphs take.

    Raises:
        RunError: If torch cannot export a network.
    """
    modules = reconstruction.networks.modules
    image = torch.zeros((1, *size, 3), dtype=torch.uint8)
    latents = torch.zeros((1, *reconstruction.noise.shape[1:]))
    inputs = {"x": latents, "timestep": torch.zeros(1, dtype=torch.int64)}
    if "encode" in modules:
        encoder_inputs = {"image": image}
        if reconstruction.networks.edges:
            encoder_inputs["edges"] = torch.zeros((1, 1, *size))
        # Run once for the shape of the hint, which the denoiser's example needs.
        with torch.no_grad():
            _, hint = modules["encode"](*encoder_inputs.values())
        yield "encode", export_network(modules["encode"], encoder_inputs, max_batch, ("latents", "hint"), "encode")
        inputs["hint"] = hint
        yield "decode", export_network(modules["decode"], {"latents": latents}, max_batch, ("picture",), "decode")
    yield "denoise", export_network(modules["denoise"], inputs, max_batch, ("noise",), "denoise")
    compared = {"image": image, "reconstruction": torch.zeros((1, 3, *size))}
    yield "compare", export_network(modules["compare"], compared, max_batch, ("pixel_map", "feature_map"), "compare")


def _dsad_head(reconstruction: Reconstruction, scale: float) -> DsadHead:
    edges = reconstruction.networks.edges
    return DsadHead(reconstruction.sampling, reconstruction.rule, scale, "canny" if edges else "none")


DDAD = ReconstructionExporter(
    lambda reconstruction, scale: DdadHead(reconstruction.sampling, reconstruction.rule, scale)
)
DSAD = ReconstructionExporter(_dsad_head)
