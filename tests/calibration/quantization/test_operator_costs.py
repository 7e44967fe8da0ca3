"""Multiply-adds of a graph's operators."""

from __future__ import annotations

import int8_graphs
import numpy as np
from onnx import TensorProto, helper, numpy_helper

from flawscope.calibration.quantization.operator_costs import multiply_adds


def test_convolutions_count_each_place_and_weight() -> None:
    model = int8_graphs.two_stages(np.random.default_rng(0))
    places, channels = int8_graphs.SIZE**2, int8_graphs.CHANNELS
    assert multiply_adds(model, {"second", "stem"}) == {
        "stem": places * channels * 3 * 9,
        "second": places * channels * channels * 9,
    }


def test_strides_groups_and_products_count() -> None:
    nodes = [
        helper.make_node("Conv", ["x", "grouped"], ["a"], name="conv", strides=[2, 2], group=4),
        helper.make_node("MatMul", ["a", "columns"], ["b"], name="product"),
    ]
    constants = [
        numpy_helper.from_array(np.zeros((8, 1, 2, 2), np.float32), "grouped"),
        numpy_helper.from_array(np.zeros((6, 5), np.float32), "columns"),
    ]
    image = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4, 10, 12])
    end = helper.make_tensor_value_info("b", TensorProto.FLOAT, ["N", 8, 5, 5])
    model = helper.make_model(
        helper.make_graph(nodes, "graph", [image], [end], constants), opset_imports=[helper.make_opsetid("", 18)]
    )
    assert multiply_adds(model, ["product", "conv"]) == {"conv": 5 * 6 * 8 * 4, "product": 8 * 5 * 6 * 5}
