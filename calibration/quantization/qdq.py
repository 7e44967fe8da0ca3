"""Explicit Q/DQ nodes: a graph whose chosen operators take INT8 values and weights, and nothing else does.

A tensor is quantised for the operators that are in INT8, and every other consumer keeps the one in FP32. Where pooling,
resizing or concatenation got the dequantised tensor, OpenVINO 2026.4 moved the dequantisation behind a padded average
pooling and gave wrong numbers in silence; and features that are compared with a bank are not rounded for nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

OPERATORS = ("Conv", "Gemm", "MatMul")
"""Operators that are quantised: nearly all multiplications are in them."""

_PASSED = ("Clip", "Dropout", "Identity", "Relu")  # between Concat and rounding

_STEPS = 127  # of INT8 to either side: -128 stays unused, so that a value and its negative are both there
_LARGEST_BIAS = 2.0**30


def insert_qdq(model: onnx.ModelProto, operators: Collection[str], largest: Mapping[str, float]) -> onnx.ModelProto:
    """Return a graph with these operators in INT8: symmetric, weights per output channel, biases in FP32.

    Args:
        model: The graph in FP32; it is not changed.
        operators: Names of operators, of types `OPERATORS`, whose second input is an initializer.
        largest: Tensor -> the absolute value that is the end of the range of INT8; for each first input of them.
    """
    quantised = onnx.ModelProto()
    quantised.CopyFrom(model)
    graph = quantised.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    nodes: list[onnx.NodeProto] = []
    done: set[str] = set()  # one tensor may enter several operators
    for node in graph.node:
        if node.name in operators:
            tensor, weight = node.input[0], node.input[1]
            step = _step(largest[tensor])
            if tensor not in done:
                nodes += _quantised_tensor(graph, tensor, step)
                done.add(tensor)
            values = numpy_helper.to_array(constants[weight]).astype(np.float32)
            bias = constants.get(node.input[2]) if len(node.input) > 2 else None
            largest_bias = None if bias is None else np.abs(numpy_helper.to_array(bias).astype(np.float64))
            nodes.append(_quantised_weight(graph, node, values, output_axis(node, values.ndim), step, largest_bias))
            node.input[0], node.input[1] = f"{tensor}/dequantised", f"{node.name}/weight.dequantised"
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    used = {name for node in graph.node for name in node.input}
    left = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(left)
    quantised.producer_name = "flawscope"
    return quantised


def joined_tensors(model: onnx.ModelProto) -> set[str]:
    """Return the tensors that must not be rounded, because they are joined: outputs of Concat, and of ReLU behind it.

    OpenVINO 2026.4 moves the rounding of such a tensor in front of the Concat, and gives wrong numbers in silence.
    """
    # Other activations, pooling and resampling between keep it from that.
    joined: set[str] = set()
    for node in model.graph.node:
        if node.op_type == "Concat" or (node.op_type in _PASSED and node.input[0] in joined):
            joined.update(node.output)
    return joined


def output_axis(node: onnx.NodeProto, dimensions: int) -> int:
    """Return the axis of an operator's weight along which its output channels lie."""
    if node.op_type == "Conv":
        return 0
    transposed = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
    return dimensions - (2 if transposed else 1)


def _step(largest: float) -> np.float32:
    # A tensor that is zero on all images has any step.
    return np.float32(max(largest, 1e-6) / _STEPS)


def _quantised_tensor(graph: onnx.GraphProto, tensor: str, step: np.float32) -> list[onnx.NodeProto]:
    """Return the two nodes that round a tensor to INT8 and back."""
    scale, zero = f"{tensor}/scale", f"{tensor}/zero"
    graph.initializer.append(numpy_helper.from_array(np.asarray(step), scale))
    graph.initializer.append(numpy_helper.from_array(np.asarray(0, np.int8), zero))
    return [
        helper.make_node("QuantizeLinear", [tensor, scale, zero], [f"{tensor}/int8"], name=f"{tensor}/Quantise"),
        helper.make_node(
            "DequantizeLinear",
            [f"{tensor}/int8", scale, zero],
            [f"{tensor}/dequantised"],
            name=f"{tensor}/Dequantise",
        ),
    ]


def _quantised_weight(
    graph: onnx.GraphProto,
    node: onnx.NodeProto,
    values: npt.NDArray[np.float32],
    axis: int,
    step: np.float32,
    largest_bias: npt.NDArray[np.float64] | None,
) -> onnx.NodeProto:
    """Store the weight of an operator in INT8, a scale per output channel; return the node that dequantises it."""
    others = tuple(index for index in range(values.ndim) if index != axis)
    scales: npt.NDArray[Any] = np.abs(values).max(others).astype(np.float64) / _STEPS
    # ONNX Runtime rounds biases to INT32 itself, in steps of both scales together. In a channel with weights next to
    # zero a bias does not fit into that, and came out as another number.
    if largest_bias is not None:
        scales = np.maximum(scales, largest_bias / (float(step) * _LARGEST_BIAS))
    scales = np.maximum(scales, 1e-12).astype(np.float32)
    shape = [1] * values.ndim
    shape[axis] = -1
    rounded = np.clip(np.rint(values / scales.reshape(shape)), -_STEPS, _STEPS).astype(np.int8)
    names = [f"{node.name}/weight.{part}" for part in ("int8", "scale", "zero")]
    for name, array in zip(names, (rounded, scales, np.zeros(len(scales), np.int8)), strict=True):
        graph.initializer.append(numpy_helper.from_array(array, name))
    return helper.make_node(
        "DequantizeLinear", names, [f"{node.name}/weight.dequantised"], name=f"{node.name}/DequantiseWeight", axis=axis
    )
