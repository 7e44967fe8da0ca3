"""Export of LafitE: a graph for the features, one for the denoiser, and the bank and noise that the runtime needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors.numpy
import torch

from flawscope.arrays import Float32Array, UInt8Array
from flawscope.bundle import LafiteHead
from flawscope.export.exporter import ExportedGraphs, Reducible
from flawscope.export.graph_files import INLINE_LIMIT, write_graph
from flawscope.export.onnx_trace import export_network
from flawscope.training.detectors.detector_run import Run
from flawscope.training.detectors.lafite_scores import LafiteDetector, lafite_head

BANK = "bank.safetensors"


@dataclass(frozen=True)
class LafiteExporter:
    """Exports features and denoiser; see `Exporter` for the contract."""

    graph_words = "encode.onnx and the others, cpu"
    other_paths: tuple[str, ...] = ()
    traced: tuple[str, ...] | None = None
    reducible: Reducible | None = None

    def head(self, run: Run, images: Sequence[UInt8Array]) -> LafiteHead:
        """Return the head; its scale is measured on the sample images."""
        detector: LafiteDetector = run.module
        return lafite_head(run.record.config, float(detector.scores(images)[1].mean()))  # type: ignore[arg-type]

    def graphs(self, run: Run, head: LafiteHead, scratch: Path, max_batch: int, room: int | None) -> ExportedGraphs:
        """Write `encode.onnx`, `denoise.onnx`, and the file with bank and noise."""
        detector: LafiteDetector = run.module
        # Not called `features`: that graph alone would stand for a whole bundle where engines are built.
        encode = export_network(
            detector.features,
            {"image": torch.zeros((1, *detector.size, 3), dtype=torch.uint8)},
            max_batch,
            ("features",),
            "encode",
        )
        graphs = {"encode": write_graph(max_batch, "encode", encode, scratch, INLINE_LIMIT)}
        if detector.denoiser is not None:
            examples = {
                "x": torch.zeros((1, detector.features.channels, *head.grid)),
                "timestep": torch.zeros(1, dtype=torch.int64),
            }
            denoise = export_network(detector.denoiser, examples, max_batch, ("noise",), "denoise")
            graphs["denoise"] = write_graph(max_batch, "denoise", denoise, scratch, INLINE_LIMIT)
        arrays = {
            name: np.ascontiguousarray(value)
            for name, value in (("bank", detector.bank), ("noise", detector.noise))
            if value is not None
        }
        path = scratch / BANK
        path.write_bytes(safetensors.numpy.save(arrays))
        return ExportedGraphs(graphs, path.name)

    def reference(self, run: Run, head: LafiteHead, images: Sequence[UInt8Array]) -> tuple[Float32Array, Float32Array]:
        """Return maps and scores by torch, with the noise of the run."""
        detector: LafiteDetector = run.module
        return detector.scores(images)


LAFITE = LafiteExporter()
