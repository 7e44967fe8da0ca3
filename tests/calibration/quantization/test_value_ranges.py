"""How large the values of a graph become: by hand, against all tensors held at once, and with weights beside it."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from flawscope.calibration.quantization.value_ranges import largest_values
from flawscope.errors import GateError

SIDE = 5


def write(folder: Path, *, beside: bool = False) -> Path:
    """Write image -> times 3 -> minus 100 -> its root of 2 -> shape and values."""
    nodes = [
        helper.make_node("Cast", ["image"], ["numbers"], name="cast", to=TensorProto.FLOAT),
        helper.make_node("Mul", ["numbers", "three"], ["scaled"], name="mul"),
        helper.make_node("Sub", ["scaled", "hundred"], ["shifted"], name="sub"),
        helper.make_node("Shape", ["shifted"], ["shape"], name="shape"),
        helper.make_node("Sqrt", ["shifted"], ["root"], name="sqrt"),
    ]
    weights = [
        numpy_helper.from_array(np.full((SIDE, SIDE), 3, np.float32), "three"),
        numpy_helper.from_array(np.array(100, np.float32), "hundred"),
    ]
    model = helper.make_model(
        helper.make_graph(
            nodes,
            "ranges",
            [helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", SIDE, SIDE])],
            [helper.make_tensor_value_info("shape", TensorProto.INT64, [3])],
            weights,
        ),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=10,
    )
    onnx.save(model, folder / "graph.onnx", save_as_external_data=beside, location="graph.data", size_threshold=0)
    return folder / "graph.onnx"


@pytest.mark.parametrize("beside", [False, True])
def test_every_floating_point_tensor_has_its_largest_absolute_value_over_all_inputs(
    tmp_path: Path, beside: bool
) -> None:
    images = np.zeros((2, SIDE, SIDE), np.uint8)
    images[0, 2, 3], images[1] = 7, 40
    graph = write(tmp_path, beside=beside)
    assert (tmp_path / "graph.data").exists() == beside
    before = sorted(path.name for path in tmp_path.iterdir())
    ranges = largest_values(graph, {"image": images})
    # The first image has negative numbers under the root.
    assert ranges == {"numbers": 40, "scaled": 120, "shifted": 100, "root": np.inf}
    assert largest_values(graph, {"image": images[1:]})["root"] == pytest.approx(20**0.5)
    assert sorted(path.name for path in tmp_path.iterdir()) == before


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), count=st.integers(1, 4), scale=st.floats(1e-3, 1e3))
def test_they_are_those_of_all_tensors_held_at_once(seed: int, count: int, scale: float) -> None:
    draw = np.random.default_rng(seed)
    weight = numpy_helper.from_array((scale * draw.normal(size=(4, 3, 3, 3))).astype(np.float32), "weight")
    nodes = [
        helper.make_node("Conv", ["x", "weight"], ["a"], name="conv", pads=[1, 1, 1, 1]),
        helper.make_node("Softmax", ["a"], ["b"], name="softmax", axis=1),
        helper.make_node("Neg", ["a"], ["c"], name="neg"),
    ]
    names = ["a", "b", "c"]
    model = helper.make_model(
        helper.make_graph(
            nodes,
            "random",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 6, 6])],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 4, 6, 6]) for name in names],
            [weight],
        ),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=10,
    )
    x = draw.normal(size=(count, 3, 6, 6)).astype(np.float32)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    expected = {
        name: float(np.abs(value).max()) for name, value in zip(names, session.run(names, {"x": x}), strict=True)
    }
    with tempfile.TemporaryDirectory() as folder:
        onnx.save(model, Path(folder, "random.onnx"))
        ranges = largest_values(Path(folder, "random.onnx"), {"x": x})
    assert ranges.pop("x") == float(np.abs(x).max())
    assert ranges == pytest.approx(expected, rel=1e-6)


def test_a_graph_that_cannot_be_run_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(GateError, match=r"^fp16: expected a graph that ONNX Runtime runs, got graph\.onnx: [^\n]+$"):
        largest_values(write(tmp_path), {"image": np.zeros((1, SIDE, SIDE + 1), np.uint8)})
