"""Value ranges of a graph: the largest absolute value of every tensor on given inputs.

The graph is run, one input at a time, with two more operators on each tensor, which reduce it to its largest and its
smallest value. Memory stays close to that of running the graph, however large its tensors are (the attention of a UNet
at 512 px alone has gigabytes of them).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper

from flawscope.calibration.extras import require
from flawscope.errors import GateError

_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE)
_ENDS = ("ReduceMax", "ReduceMin")
_PREFIX = "flawscope_range_"


def largest_values(graph: Path, inputs: Mapping[str, npt.NDArray[Any]]) -> dict[str, float]:
    """Return the largest absolute value of every floating-point tensor: of all inputs and outputs of operators.

    Args:
        graph: ONNX file; its weights may lie beside it.
        inputs: Input name -> values, the same number N of each; they are run one by one.

    Returns:
        Tensor name -> largest absolute value, infinite where a value was infinite or NaN.

    Raises:
        GateError: If ONNX Runtime cannot run the graph.
        MissingExtra: If ONNX Runtime is not installed.
    """
    onnxruntime: Any = require("onnxruntime", "onnxruntime", "measuring the values of a graph")
    model = onnx.load(graph, load_external_data=False)
    measured = _with_ranges(model)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.enable_cpu_mem_arena = False  # the arena would keep what the largest tensors took
    # In the default order the reductions come last, after all nodes of the model, and all tensors are held until then.
    options.execution_order = onnxruntime.ExecutionOrder.PRIORITY_BASED
    # The model is passed as bytes, without a place: weights beside the graph are looked for here.
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(graph.parent))
    ranges = {
        name: _largest(values.min(), values.max())
        for name, values in inputs.items()
        if values.size and values.dtype.kind == "f"
    }
    try:
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        names = [f"{_PREFIX}{end}_{number}" for number in range(len(measured)) for end in _ENDS]
        count = len(next(iter(inputs.values())))
        for row in range(count):
            ends = session.run(names, {name: values[row : row + 1] for name, values in inputs.items()})
            for number, tensor in enumerate(measured):
                value = _largest(*(float(end) for end in ends[2 * number : 2 * number + 2]))
                ranges[tensor] = max(ranges.get(tensor, 0.0), value)
    except Exception as err:  # ONNX Runtime raises classes of its own, which have no common base
        first = next(iter(str(err).splitlines()), "no message")
        raise GateError(f"fp16: expected a graph that ONNX Runtime runs, got {graph.name}: {first}") from err
    return ranges


def _with_ranges(model: onnx.ModelProto) -> list[str]:
    """Replace the outputs of a model by the ends of every floating-point tensor; return the names of those tensors."""
    # Shape inference gives the element types; a tensor without one is not measured.
    typed = onnx.shape_inference.infer_shapes(model).graph
    types = {value.name: value.type.tensor_type.elem_type for value in (*typed.value_info, *typed.output)}
    graph = model.graph
    tensors = [name for node in graph.node for name in node.output if types.get(name) in _FLOATS]
    del graph.output[:]
    for number, name in enumerate(tensors):
        for end in _ENDS:
            out = f"{_PREFIX}{end}_{number}"
            graph.node.append(helper.make_node(end, [name], [out], name=out, keepdims=0))
            graph.output.append(helper.make_tensor_value_info(out, types[name], ()))
    return tensors


def _largest(*ends: float) -> float:
    values = np.abs(np.array(ends, np.float64))
    # NaN compares false with everything, so `max` and limits would let it pass: infinity fails every limit.
    return float(values.max()) if not np.isnan(values).any() else float("inf")
