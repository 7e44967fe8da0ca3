"""A graph in INT8 whose border OpenVINO 2026.4 computes wrong, in silence, and one beside it that it computes right."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

SIZE = 64


def pooled_model(*, is_read_twice: bool, channels: int = 8) -> onnx.ModelProto:
    """A convolution in INT8 whose result is pooled with zeros around it, as PatchCore pools its stages.

    Args:
        is_read_twice: Whether another convolution in INT8 reads the result too. OpenVINO 2026.4 then moves the
            dequantization behind the pooling, whose zeros no longer mean zero: the border of the result is wrong.
        channels: Channels of both convolutions.
    """
    rng = np.random.default_rng(0)
    constants: list[TensorProto] = []
    nodes: list[onnx.NodeProto] = []

    def constant(name: str, value: np.ndarray) -> str:
        constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def add(operator: str, inputs: list[str], output: str, **attributes: object) -> str:
        nodes.append(helper.make_node(operator, inputs, [output], **attributes))
        return output

    def quantised(name: str, scale: float) -> str:
        by = [constant(f"{name}.scale", np.float32(scale)), constant(f"{name}.zero", np.int8(0))]
        return add("DequantizeLinear", [add("QuantizeLinear", [name, *by], f"{name}.q"), *by], f"{name}.dq")

    def convolved(source: str, name: str, inputs: int) -> str:
        weight = constant(f"{name}.w", rng.integers(-127, 128, (channels, inputs, 3, 3)).astype(np.int8))
        scale = constant(f"{name}.ws", rng.uniform(0.0002, 0.0004, channels).astype(np.float32))
        zero = constant(f"{name}.wz", np.zeros(channels, np.int8))
        add("DequantizeLinear", [weight, scale, zero], f"{name}.wdq", axis=0)
        return add("Conv", [source, f"{name}.wdq"], name, pads=[1, 1, 1, 1])

    add("Cast", ["image"], "as_numbers", to=TensorProto.FLOAT)
    add("Mul", ["as_numbers", constant("share", np.float32(1 / 127))], "scaled")
    add("Transpose", ["scaled"], "pixels", perm=[0, 3, 1, 2])
    first = quantised(convolved(quantised("pixels", 0.02), "first", 3), 0.01)
    stages = [first, *([convolved(first, "second", channels)] if is_read_twice else [])]
    pooling = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "strides": [1, 1], "count_include_pad": 1}
    pooled = [add("AveragePool", [stage], f"pooled{number}", **pooling) for number, stage in enumerate(stages)]
    add("Concat", pooled, "patches", axis=1)
    add("ReduceSumSquare", ["patches", constant("channel", np.array([1]))], "anomaly_map", keepdims=0)
    add("ReduceMax", ["anomaly_map", constant("places", np.array([1, 2]))], "score", keepdims=0)
    graph = helper.make_graph(
        nodes,
        "pooled",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", SIZE, SIZE, 3])],
        [
            helper.make_tensor_value_info("anomaly_map", TensorProto.FLOAT, ["N", SIZE, SIZE]),
            helper.make_tensor_value_info("score", TensorProto.FLOAT, ["N"]),
        ],
        initializer=constants,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
