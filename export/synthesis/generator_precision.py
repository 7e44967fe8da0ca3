"""FP16 of generator bundles: every graph by AutoCast, accepted by the images it generates."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from flawscope.arrays import UInt8Array
from flawscope.bundle import Graph, ImageParity, KeptNode, Precision
from flawscope.calibration.quantization.autocast import convert_graph, operators_in
from flawscope.calibration.quantization.qdq import OPERATORS
from flawscope.errors import GateError
from flawscope.export.graph_files import write_graph
from flawscope.export.synthesis.image_parity import STEPS, Call, Drawing, GraphCalls, draw_checked, measure_images
from flawscope.progress import Progress

FP16_PSNR_LIMIT = 30.0
"""Smallest accepted PSNR in dB between an image drawn in FP16 and the same image in FP32, from the same noise."""

_EXAMPLES = 4
"""Recorded inputs of a graph that AutoCast runs it on to find value ranges."""


class _Recorder:
    """Calls graphs and records their inputs."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self.inputs: dict[str, list[Mapping[str, npt.NDArray[Any]]]] = {}

    def __call__(self, name: str, inputs: Mapping[str, npt.NDArray[Any]]) -> npt.NDArray[np.float32]:
        self.inputs.setdefault(name, []).append(inputs)
        return self._call(name, inputs)

    def examples(self, name: str) -> dict[str, npt.NDArray[Any]]:
        """Return recorded inputs of a graph, spread evenly from the highest to the lowest noise level."""
        calls = self.inputs[name]
        whole = {key: np.concatenate([call[key] for call in calls]) for key in calls[0]}
        count = len(next(iter(whole.values())))
        # unique: with few calls rounding gives the same row twice.
        rows = np.unique(np.linspace(0, count - 1, min(count, _EXAMPLES)).round().astype(int))
        return {key: value[rows] for key, value in whole.items()}


def reduce_generator(
    graphs: Mapping[str, Graph], folder: Path, drawing: Drawing, max_batch: int, python: Path, progress: Progress
) -> tuple[Precision, ImageParity]:
    """Write every graph in FP16 beside the FP32 one, as `NAME.fp16.onnx`, and compare the images that they draw.

    Args:
        graphs: The FP32 graphs of the bundle.
        folder: Folder of the graphs.
        drawing: What is drawn; drawing it in FP32 also gives the inputs that value ranges are measured on.
        max_batch: Largest batch the graphs take.
        python: Interpreter with ModelOpt.
        progress: Told what is being done.

    Raises:
        ArgumentError: If that interpreter has no ModelOpt.
        GateError: If ModelOpt cannot convert a graph, or the PSNR of an image is below `FP16_PSNR_LIMIT`.
    """
    recorder, exact = _draw_recorded(graphs, folder, drawing)
    reduced: dict[str, Graph] = {}
    kept: list[KeptNode] = []
    operator_count, version = 0, ""
    for number, (name, graph) in enumerate(graphs.items()):
        progress("FP16 by AutoCast", number, len(graphs))
        converted = convert_graph(folder / graph.file, recorder.examples(name), python)
        version = converted.version
        operator_count += len(operators_in(converted.model, OPERATORS, onnx.TensorProto.FLOAT16))
        types = {node.name: node.op_type for node in converted.model.graph.node}
        kept += [KeptNode(node, types.get(node, "?"), reason) for node, reason in converted.kept.items()]
        # AutoCast gives different sizes the same symbolic name (those before and after a UNet's upsampling), and ONNX
        # Runtime then puts both tensors into one buffer. Without value_info, shapes are inferred anew.
        del converted.model.graph.value_info[:]
        reduced[name] = write_graph(max_batch, f"{name}.fp16", converted.model, folder)
    progress("FP16 by AutoCast", len(graphs), len(graphs))
    if not operator_count:
        raise GateError("fp16: expected operators that can run in FP16, got none in these networks. Export without it.")
    ratio = measure_images(exact, _draw_recorded(reduced, folder, drawing)[1])
    if not ratio >= FP16_PSNR_LIMIT:
        raise GateError(
            f"fp16: images drawn in {STEPS} steps against those in FP32 from the same noise: expected a PSNR of at "
            f"least {FP16_PSNR_LIMIT:g} dB, got {ratio:.1f} dB. No bundle was written. Export without it."
        )
    parity = ImageParity("the graphs in fp32, cpu", "the graphs in fp16, cpu", len(exact), STEPS, ratio)
    precision = Precision(
        graphs=reduced,
        golden=(),
        method=f"AutoCast of ModelOpt {version}",
        calibration_images=len(drawing.images),
        quantised=operator_count,
        kept=tuple(kept),
    )
    return precision, parity


def _draw_recorded(graphs: Mapping[str, Graph], folder: Path, drawing: Drawing) -> tuple[_Recorder, UInt8Array]:
    calls = GraphCalls(graphs, folder)
    recorder = _Recorder(calls)
    try:
        return recorder, draw_checked(recorder, drawing)
    finally:
        calls.close()
