"""Export of a method whose network has anomaly map and score as outputs: one traced graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from flawscope.arrays import Float32Array, UInt8Array
from flawscope.bundle import DestsegHead, DraemHead, Head, Manifest, SegmenterHead, StfpmHead
from flawscope.export.exporter import ExportedGraphs
from flawscope.export.graph_files import INLINE_LIMIT, write_graph
from flawscope.export.onnx_trace import export_module
from flawscope.training.detectors.detector_run import Run
from flawscope.training.loop.network_scores import network_scores

OUTPUTS = ("anomaly_map", "score")


@dataclass(frozen=True)
class GraphExporter:
    """Exports a module: image uint8 [N, H, W, 3] in, map and score out; see `Exporter` for the contract.

    Attributes:
        make_head: `(settings, scale) -> head`; the scale is the mean score of the run's sample images.
        networks: Modules that a reduced precision computes, as the names of their operators begin, such as `student.`;
            all else, which turns their outputs into map and score, stays in FP32. Empty for a method in FP32 alone.
    """

    make_head: Callable[[Any, float], Head]
    networks: tuple[str, ...] = ()
    graph_words = "score.onnx, cpu"
    other_paths: tuple[str, ...] = ()
    traced = OUTPUTS  # the whole graph is one trace, so `explain` can compare it with torch layer by layer
    converted = "score"
    precisions: tuple[str, ...] = ("fp16", "int8")

    @property
    def reducible(self) -> GraphExporter | None:
        """This exporter, where networks are named."""
        return self if self.networks else None

    def head(self, run: Run, images: Sequence[UInt8Array]) -> Head:
        """Return the head; its scale is measured on the sample images."""
        return self.make_head(run.record.config, float(network_scores(run.module, images)[1].mean()))

    def graphs(self, run: Run, head: Head, scratch: Path, max_batch: int, room: int | None) -> ExportedGraphs:
        """Write `score.onnx`."""
        model = export_module(run.module, run.record.config.preprocessing.size, max_batch, OUTPUTS)
        return ExportedGraphs({"score": write_graph(max_batch, "score", model, scratch, INLINE_LIMIT)})

    def score_head(self, manifest: Manifest, tensors: Mapping[str, npt.NDArray[Any]]) -> None:
        """Return None: the graph ends in the score."""

    def examples(self, bundle: Path, images: Sequence[UInt8Array]) -> dict[str, npt.NDArray[Any]]:
        """Return the images themselves."""
        return {"image": np.stack(images)}

    def reduced_graphs(self, model: onnx.ModelProto, manifest: Manifest, scratch: Path) -> dict[str, onnx.ModelProto]:
        """Return the one graph."""
        return {"score": model}

    def reference(self, run: Run, head: Head, images: Sequence[UInt8Array]) -> tuple[Float32Array, Float32Array]:
        """Return maps and scores by torch."""
        return network_scores(run.module, images)


STFPM = GraphExporter(lambda config, scale: StfpmHead(config.maps.sigma, scale), ("teacher.", "student."))
SEGMENTER = GraphExporter(lambda config, scale: SegmenterHead(config.maps.sigma, config.top, scale), ("segmenter.",))
DRAEM = GraphExporter(lambda config, scale: DraemHead(config.score_window, scale), ("networks.",))
DESTSEG = GraphExporter(lambda config, scale: DestsegHead(config.top, scale), ("teacher.", "networks."))
