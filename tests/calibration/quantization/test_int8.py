"""INT8 graphs: what is quantised, how, and the choice of what is not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from flawscope.calibration.quantization.int8 import Quantiser
from flawscope.errors import ArgumentError

SIZE = (12, 10)


def graph(folder: Path) -> Path:
    """Cast, transpose, two convolutions with a ReLU between, two resamplings, and a product of two things that vary."""
    draw = np.random.default_rng(0)
    weights = {
        "first": draw.normal(size=(6, 3, 3, 3)).astype(np.float32) / 255,
        "second": draw.normal(size=(4, 6, 1, 1)).astype(np.float32),
    }
    nodes = [
        helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["float"], ["pixels"], perm=[0, 3, 1, 2]),
        helper.make_node("MatMul", ["pixels", "columns"], ["channels"], name="backbone.resizing.0/MatMul_5"),
        helper.make_node("Conv", ["channels", "first", "bias"], ["a"], name="stem/Conv_0", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"], name="stem/Relu_1"),
        helper.make_node("Conv", ["b", "second"], ["c"], name="body/Conv_2"),
        helper.make_node("MatMul", ["c", "columns"], ["e"], name="alignment/MatMul_3"),
        helper.make_node("Transpose", ["c"], ["d"], perm=[0, 1, 3, 2]),
        helper.make_node("MatMul", ["e", "d"], ["patches"], name="body/MatMul_4"),
    ]
    constants = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    constants.append(numpy_helper.from_array(np.linspace(-1, 1, 6).astype(np.float32), "bias"))
    constants.append(numpy_helper.from_array(np.eye(SIZE[1], dtype=np.float32), "columns"))
    image = helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", *SIZE, 3])
    patches = helper.make_tensor_value_info("patches", TensorProto.FLOAT, ["N", 4, SIZE[0], SIZE[0]])
    model = helper.make_model(
        helper.make_graph(nodes, "graph", [image], [patches], constants),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=10,
    )
    onnx.save(model, folder / "features.onnx")
    return folder / "features.onnx"


def images(count: int = 9) -> list[np.ndarray]:
    return list(np.random.default_rng(1).integers(0, 256, (count, *SIZE, 3), np.uint8))


@pytest.fixture(params=["percentile", "entropy"])
def quantiser(tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Quantiser:
    empty = tmp_path / "here"
    empty.mkdir()
    monkeypatch.chdir(empty)
    progress: list[tuple[int, int]] = []
    with_ranges = Quantiser(
        graph(tmp_path), images(), request.param, lambda done, total: progress.append((done, total))
    )
    assert progress == [(4, 9), (8, 9), (9, 9)]
    assert list(empty.iterdir()) == []  # ONNX Runtime's own default leaves a model where one happens to be
    return with_ranges


def constants(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def test_only_products_with_weights_can_be_quantised_and_no_resampling(quantiser: Quantiser) -> None:
    assert quantiser.operators == {"stem/Conv_0": "Conv", "body/Conv_2": "Conv"}


def test_weights_are_quantised_per_channel_everything_symmetric_and_biases_stay(quantiser: Quantiser) -> None:
    model = quantiser.quantise(list(quantiser.operators))
    onnx.checker.check_model(model, full_check=True)
    values = constants(model)
    pairs = [node for node in model.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert pairs
    for node in pairs:
        assert values[node.input[2]].dtype == np.int8
        assert not values[node.input[2]].any()
    assert sorted(values[node.input[1]].size for node in pairs if node.input[0] in values) == [4, 6]
    first = next(node for node in model.graph.node if node.name == "stem/Conv_0")
    assert values[first.input[2]].dtype == np.float32
    np.testing.assert_allclose(values[first.input[2]], np.linspace(-1, 1, 6), atol=0.1)  # but corrected
    assert all(node.domain in ("", "ai.onnx") for node in model.graph.node)


def test_only_what_is_named_is_quantised(quantiser: Quantiser) -> None:
    model = quantiser.quantise(["body/Conv_2"])
    producers = {name: node.op_type for node in model.graph.node for name in node.output}
    by_name = {node.name: node for node in model.graph.node}
    assert producers[by_name["body/Conv_2"].input[1]] == "DequantizeLinear"
    assert by_name["stem/Conv_0"].input[1] in constants(model)
    assert not {node.op_type for node in quantiser.quantise([]).graph.node} & {"QuantizeLinear", "DequantizeLinear"}
    with pytest.raises(ArgumentError, match=r"operators: expected names of features\.onnx, got 'other'"):
        quantiser.quantise(["other"])


def test_what_cannot_be_calibrated_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="calibration: expected at least one normal image, got none"):
        Quantiser(graph(tmp_path), [])
    with pytest.raises(ArgumentError, match="method: expected one of percentile, entropy, got 'minmax'"):
        Quantiser(graph(tmp_path), images(), "minmax")  # type: ignore[arg-type]
