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
from flawscope.calibration.quantization.int8 import OPERATORS
from flawscope.errors import GateError
from flawscope.export.graph_files import write_graph
from flawscope.export.synthesis.image_parity import STEPS, Call, Drawing, GraphCalls, draw_checked, measure_images
from flawscope.progress import Progress

FP16_PSNR_LIMIT = 30.0
"""Least peak signal-to-noise ratio in dB of an image drawn in FP16, against the same in FP32 from the same noise."""

_EXAMPLES = 4
"""Inputs of a graph whose values are looked at, spread over its calls."""


class _Recorder:
    """Calls graphs and keeps what they were given."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self.inputs: dict[str, list[Mapping[str, npt.NDArray[Any]]]] = {}

    def __call__(self, name: str, inputs: Mapping[str, npt.NDArray[Any]]) -> npt.NDArray[np.float32]:
        self.inputs.setdefault(name, []).append(inputs)
        return self._call(name, inputs)

    def examples(self, name: str) -> dict[str, npt.NDArray[Any]]:
        """Return inputs of a graph, spread over its calls: both ends of the noise are among them."""
        calls = self.inputs[name]
        whole = {key: np.concatenate([call[key] for call in calls]) for key in calls[0]}
        count = len(next(iter(whole.values())))
        rows = np.unique(np.linspace(0, count - 1, min(count, _EXAMPLES)).round().astype(int))
        return {key: value[rows] for key, value in whole.items()}


def reduce_generator(
    graphs: Mapping[str, Graph], folder: Path, drawing: Drawing, max_batch: int, python: Path, progress: Progress
) -> tuple[Precision, ImageParity]:
    """Write every graph in FP16 beside its own, as `NAME.fp16.onnx`, and draw with them.

    Args:
        graphs: Of the bundle, in FP32.
        folder: Where they lie.
        drawing: What is drawn; its images give the ranges of values as well.
        max_batch: Largest batch the graphs take.
        python: Interpreter with ModelOpt.
        progress: Told what is being done.

    Raises:
        ArgumentError: If that interpreter cannot do it.
        GateError: If ModelOpt cannot convert a graph, or images differ by more than `FP16_PSNR_LIMIT`.
    """
    recorder, exact = _drawn(graphs, folder, drawing)
    lowered: dict[str, Graph] = {}
    kept: list[KeptNode] = []
    count, version = 0, ""
    for number, (name, graph) in enumerate(graphs.items()):
        progress("FP16 by AutoCast", number, len(graphs))
        converted = convert_graph(folder / graph.file, recorder.examples(name), python)
        version = converted.version
        count += len(operators_in(converted.model, OPERATORS, onnx.TensorProto.FLOAT16))
        types = {node.name: node.op_type for node in converted.model.graph.node}
        kept += [KeptNode(node, types.get(node, "?"), reason) for node, reason in converted.kept.items()]
        # AutoCast gives unlike sizes one name (those before and after a UNet's enlarging), and ONNX Runtime then puts
        # both into the same memory. Without its notes the shapes are inferred anew.
        del converted.model.graph.value_info[:]
        lowered[name] = write_graph(max_batch, f"{name}.fp16", converted.model, folder)
    progress("FP16 by AutoCast", len(graphs), len(graphs))
    if not count:
        raise GateError("fp16: expected operators that FP16 can hold, got none in these networks. Export without it.")
    ratio = measure_images(exact, _drawn(lowered, folder, drawing)[1])
    if not ratio >= FP16_PSNR_LIMIT:
        raise GateError(
            f"fp16: images drawn in {STEPS} steps against those in FP32 from the same noise: expected a ratio from "
            f"{FP16_PSNR_LIMIT:g} dB, got {ratio:.1f} dB. No bundle was written. Export without it."
        )
    parity = ImageParity("the graphs in fp32, cpu", "the graphs in fp16, cpu", len(exact), STEPS, ratio)
    precision = Precision(
        graphs=lowered,
        golden=(),
        method=f"AutoCast of ModelOpt {version}",
        calibration_images=len(drawing.images),
        quantised=count,
        kept=tuple(kept),
    )
    return precision, parity


def _drawn(graphs: Mapping[str, Graph], folder: Path, drawing: Drawing) -> tuple[_Recorder, UInt8Array]:
    calls = GraphCalls(graphs, folder)
    recorder = _Recorder(calls)
    try:
        return recorder, draw_checked(recorder, drawing)
    finally:
        calls.close()
