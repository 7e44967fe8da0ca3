"""Constants that torch's exporter leaves to be computed: folded with the same results, and nothing else touched."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from flawscope.export.constant_folding import fold_constants

GENERATOR = np.random.default_rng(0)


def graph_of(nodes: list[onnx.NodeProto], **constants: np.ndarray) -> onnx.ModelProto:
    """Return a graph `x` float32 [N, 6] -> `y`, with constants."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 6])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    return model


def run(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    result: np.ndarray = session.run(None, {"x": x})[0]
    return result


def weight(*shape: int) -> np.ndarray:
    return GENERATOR.standard_normal(shape).astype(np.float32)


def test_a_weight_turned_at_two_places_and_a_resized_table_become_constants() -> None:
    nodes = [
        helper.make_node("Transpose", ["w"], ["w1"], perm=[1, 0]),
        helper.make_node("MatMul", ["x", "w1"], ["a"]),
        helper.make_node("Transpose", ["w"], ["w2"], perm=[1, 0]),
        helper.make_node("MatMul", ["a", "w2"], ["b"]),
        # A table of positions [2, 2] that is brought to [1, 6]: the steps before it are constants too.
        helper.make_node("Reshape", ["table", "shape"], ["grid"]),
        helper.make_node("Identity", ["sizes"], ["wanted"]),
        helper.make_node(
            "Resize", ["grid", "", "", "wanted"], ["resized"], mode="cubic", antialias=1, exclude_outside=1
        ),
        helper.make_node("Reshape", ["resized", "flat"], ["positions"]),
        helper.make_node("Add", ["b", "positions"], ["c"]),
        helper.make_node("Add", ["c", "table_row"], ["y"]),
    ]
    constants = {
        "w": weight(6, 6),
        "table": weight(4),
        "table_row": weight(6),
        "shape": np.array([1, 1, 2, 2]),
        "sizes": np.array([1, 1, 1, 6]),
        "flat": np.array([1, 6]),
    }
    model, x = graph_of(nodes, **constants), weight(3, 6)
    expected = run(model, x)
    fold_constants(model)
    assert Counter(node.op_type for node in model.graph.node) == {"MatMul": 2, "Add": 2, "Reshape": 1}
    np.testing.assert_array_equal(run(model, x), expected)
    names = {tensor.name for tensor in model.graph.initializer}
    assert {"w1", "w2", "resized", "table_row"} <= names
    assert not {"w", "table", "sizes", "shape"} & names  # nothing needs them any more
    before = model.SerializeToString(deterministic=True)
    fold_constants(model)
    assert model.SerializeToString(deterministic=True) == before


@pytest.mark.parametrize(
    "nodes",
    [
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        # Constants of other kinds are left to the runtime, as ever: graphs of earlier versions stay the same.
        [
            helper.make_node("Add", ["w", "w"], ["sum"]),
            helper.make_node("Transpose", ["sum"], ["turned"], perm=[1, 0]),
            helper.make_node("MatMul", ["x", "turned"], ["y"]),
        ],
        # Not constant, though no input of the graph is in it.
        [
            helper.make_node("RandomNormal", [], ["noise"], shape=[1, 1, 2, 6]),
            helper.make_node("Resize", ["noise", "", "", "sizes"], ["resized"], mode="linear"),
            helper.make_node("Squeeze", ["resized"], ["row"]),
            helper.make_node("Add", ["x", "row"], ["y"]),
        ],
    ],
)
def test_any_other_graph_is_left_as_it_is(nodes: list[onnx.NodeProto]) -> None:
    used = {name for node in nodes for name in node.input}
    constants = {"w": weight(6, 6), "sizes": np.array([1, 1, 1, 6])}
    model = graph_of(nodes, **{name: value for name, value in constants.items() if name in used})
    before = model.SerializeToString(deterministic=True)
    fold_constants(model)
    assert model.SerializeToString(deterministic=True) == before


def test_a_folded_output_of_the_graph_is_kept() -> None:
    model = graph_of(
        [
            helper.make_node("Transpose", ["w"], ["w1"], perm=[1, 0]),
            helper.make_node("MatMul", ["x", "w1"], ["y"]),
            helper.make_node("MatMul", ["x", "w"], ["z"]),
        ],
        w=weight(6, 6),
    )
    model.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, ["N", 6]))
    x = weight(2, 6)
    expected = run(model, x)
    fold_constants(model)
    np.testing.assert_array_equal(run(model, x), expected)
    assert {tensor.name for tensor in model.graph.initializer} == {"w", "w1"}
