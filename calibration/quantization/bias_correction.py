"""Bias correction: what rounding adds to the mean of every channel is taken from the bias of its operator.

Rounded weights and values move the mean of a channel, and the moves of one layer after the other add up: distances to
a bank grow. Layers are corrected in their order, each on what the corrected ones before it give.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from flawscope.calibration.extras import require
from flawscope.runtime.backends.ort import EXACT_INT8

Means = dict[str, npt.NDArray[np.float64]]
"""Name of an operator -> mean of each of its output channels."""

Values = dict[str, npt.NDArray[Any]]


def correctable(model: onnx.ModelProto, operators: Sequence[str]) -> list[str]:
    """Return those operators, in the graph's order, whose bias is an initializer that nothing else uses."""
    constants = {tensor.name for tensor in model.graph.initializer}
    uses: dict[str, int] = {}
    for node in model.graph.node:
        for name in node.input:
            uses[name] = uses.get(name, 0) + 1
    wanted = set(operators)
    return [
        node.name
        for node in model.graph.node
        if node.name in wanted
        # A Conv alone: a bias of Gemm may be scaled, and a MatMul has none.
        and node.op_type == "Conv"
        and len(node.input) > 2
        and node.input[2] in constants
        and uses[node.input[2]] == 1
    ]


def channel_means(model: onnx.ModelProto, operators: Sequence[str], images: Sequence[Values]) -> Means:
    """Return the mean of every channel of these operators over images.

    Args:
        model: A graph whose operators named here have outputs [N, C, H, W].
        operators: Their names.
        images: The inputs of the graph by name, of one image each.
    """
    if not operators:
        return {}
    measured = onnx.ModelProto()
    measured.CopyFrom(model)
    graph = measured.graph
    outputs = {node.name: node.output[0] for node in graph.node}
    del graph.output[:]
    graph.initializer.append(numpy_helper.from_array(np.array([0, 2, 3], np.int64), "flawscope_axes"))
    names = [f"flawscope_mean_{number}" for number in range(len(operators))]
    for name, operator in zip(names, operators, strict=True):
        graph.node.append(
            helper.make_node("ReduceMean", [outputs[operator], "flawscope_axes"], [name], name=name, keepdims=0)
        )
        graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    session = _session(measured)
    sums = [np.zeros(1)] * len(names)
    for image in images:
        sums = [total + mean for total, mean in zip(sums, session.run(names, image), strict=True)]
    return {operator: total / len(images) for operator, total in zip(operators, sums, strict=True)}


def correct_biases(
    quantised: onnx.ModelProto, operators: Sequence[str], exact: Means, images: Sequence[Values]
) -> onnx.ModelProto:
    """Return a graph in INT8 whose operators have, on these images, the channel means of the graph in FP32.

    The graph is run once, in sections that end at the operators; what a section gives is held for all images.

    Args:
        quantised: The graph with Q/DQ nodes; it is not changed.
        operators: Of `correctable`.
        exact: `channel_means` of the graph in FP32 over the same images.
        images: The inputs of the graph by name, of one image each.
    """
    corrected = onnx.ModelProto()
    corrected.CopyFrom(quantised)
    biases = {tensor.name: tensor for tensor in corrected.graph.initializer}
    held = [dict(image) for image in images]
    for section, node, later in _sections(corrected, operators):
        session = _session(section)
        names = [output.name for output in section.graph.output]
        for values in held:
            given = {entry.name: values[entry.name] for entry in section.graph.input}
            values.update(zip(names, session.run(names, given), strict=True))
        output = node.output[0]
        mean = np.mean([values[output].astype(np.float64).mean((0, 2, 3)) for values in held], axis=0)
        shift = (exact[node.name] - mean).astype(np.float32)
        bias = biases[node.input[2]]
        bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + shift, bias.name))
        for values in held:
            values[output] = values[output] + shift[None, :, None, None]
            for name in values.keys() - later:
                del values[name]
    return corrected


def _sections(
    model: onnx.ModelProto, operators: Sequence[str]
) -> Iterator[tuple[onnx.ModelProto, onnx.NodeProto, set[str]]]:
    """Yield the graph in sections, each up to one of the operators, which it ends with; and what later nodes need."""
    typed = onnx.shape_inference.infer_shapes(model).graph
    kinds = {entry.name: entry.type.tensor_type.elem_type for entry in (*typed.input, *typed.value_info, *typed.output)}
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    nodes = list(model.graph.node)
    wanted = set(operators)
    start = 0
    for end, last in enumerate(nodes):
        if last.name not in wanted:
            continue
        part = nodes[start : end + 1]
        start = end + 1
        later = {name for node in nodes[start:] for name in node.input}
        made = [name for node in part for name in node.output]
        needed = dict.fromkeys(name for node in part for name in node.input if name and name not in set(made))
        inputs = [_value(name, kinds) for name in needed if name not in constants]
        outputs = [_value(name, kinds) for name in made if name in later or name == last.output[0]]
        weights = [constants[name] for name in needed if name in constants]
        graph = helper.make_graph(part, "section", inputs, outputs, weights)
        yield (
            helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version),
            last,
            later,
        )


def _value(name: str, kinds: Mapping[str, int]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kinds[name], None)


def _session(model: onnx.ModelProto) -> Any:
    onnxruntime: Any = require("onnxruntime", "onnxruntime", "quantising a graph")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # fatal: warnings about Q/DQ nodes would fill the terminal
    options.add_session_config_entry(*EXACT_INT8)
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
