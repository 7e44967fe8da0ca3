"""FP16 by AutoCast: what is converted, what is kept and why; and every way in which the other interpreter can fail."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from modelopt_here import modelopt_python, needs_modelopt
from onnx import TensorProto, helper, numpy_helper

from flawscope.calibration.quantization import autocast, modelopt
from flawscope.calibration.quantization.autocast import MOST_VALUE, convert_graph, operators_in, to_fp16
from flawscope.calibration.quantization.int8 import Quantiser
from flawscope.calibration.quantization.modelopt import PYTHON, find_python
from flawscope.calibration.quantization.qdq import OPERATORS
from flawscope.errors import ArgumentError, GateError

pytestmark = pytest.mark.long

SIZE = (12, 10)


def graph(folder: Path, gain: float = 1.0) -> Path:
    """Cast, transpose and three convolutions, the second of which multiplies by `gain` and the third divides by it."""
    draw = np.random.default_rng(0)
    weights = {
        "first": draw.normal(size=(6, 3, 3, 3)).astype(np.float32) / 255,
        "second": gain * draw.normal(size=(4, 6, 1, 1)).astype(np.float32),
        "third": draw.normal(size=(4, 4, 1, 1)).astype(np.float32) / np.float32(gain),
    }
    nodes = [
        helper.make_node("Cast", ["image"], ["float"], name="start/Cast_0", to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["float"], ["channels"], name="start/Transpose_1", perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["channels", "first"], ["a"], name="stem/Conv_2", pads=[1, 1, 1, 1]),
        helper.make_node("Conv", ["a", "second"], ["b"], name="body/Conv_3"),
        helper.make_node("Conv", ["b", "third"], ["patches"], name="body/Conv_4"),
    ]
    image = helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", *SIZE, 3])
    patches = helper.make_tensor_value_info("patches", TensorProto.FLOAT, ["N", 4, *SIZE])
    constants = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    model = helper.make_model(
        helper.make_graph(nodes, "graph", [image], [patches], constants),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=10,
    )
    onnx.save(model, folder / "features.onnx")
    return folder / "features.onnx"


def images(count: int = 5) -> list[np.ndarray]:
    return list(np.random.default_rng(1).integers(0, 256, (count, *SIZE, 3), np.uint8))


def run(model: bytes | str) -> np.ndarray:
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"image": np.stack(images())})[0])


def answering(folder: Path, body: str) -> Path:
    """Return an interpreter that runs `body` in place of the worker; the request is `request`."""
    script = folder / "answering.py"
    script.write_text(f"import json, sys, shutil\nrequest = json.load(open(sys.argv[-1]))\n{body}\n")
    python = folder / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{script}" "$@"\n')
    python.chmod(0o755)
    return python


# --- with ModelOpt


@needs_modelopt
def test_everything_that_fp16_can_hold_is_converted(tmp_path: Path) -> None:
    source = graph(tmp_path)
    converted = to_fp16(source, images(), modelopt_python())
    assert converted.kept == {}
    assert operators_in(converted.model, OPERATORS, TensorProto.FLOAT16) == [
        "stem/Conv_2",
        "body/Conv_3",
        "body/Conv_4",
    ]
    assert [
        value.type.tensor_type.elem_type for value in (*converted.model.graph.input, *converted.model.graph.output)
    ] == [
        TensorProto.UINT8,
        TensorProto.FLOAT,
    ]
    onnx.checker.check_model(converted.model, full_check=True)
    exact, half = run(str(source)), run(converted.model.SerializeToString())
    far = float(np.abs(half - exact).max() / np.abs(exact).max())
    assert 0 < far < 5e-3
    assert converted.version


@needs_modelopt
def test_values_too_large_for_fp16_stay_in_fp32_and_say_so(tmp_path: Path) -> None:
    source = graph(tmp_path, gain=1e4)
    assert float(np.abs(run(str(source))).max()) < MOST_VALUE
    converted = to_fp16(source, images(), modelopt_python())
    assert set(converted.kept) == {"body/Conv_3", "body/Conv_4"}
    assert all("range" in reason for reason in converted.kept.values())
    assert operators_in(converted.model, OPERATORS, TensorProto.FLOAT16) == ["stem/Conv_2"]
    np.testing.assert_allclose(run(converted.model.SerializeToString()), run(str(source)), rtol=0, atol=2e-2)


@needs_modelopt
def test_what_is_quantised_stays_quantised(tmp_path: Path) -> None:
    quantiser = Quantiser(graph(tmp_path), images())
    mixed = tmp_path / "mixed.onnx"
    onnx.save(quantiser.quantise(["body/Conv_3"]), mixed)
    converted = to_fp16(mixed, images(), modelopt_python(), ["body/Conv_3"])
    assert operators_in(converted.model, OPERATORS, TensorProto.FLOAT16) == ["stem/Conv_2", "body/Conv_4"]
    scales = {node.input[1] for node in converted.model.graph.node if node.op_type == "QuantizeLinear"}
    types = {tensor.name: tensor.data_type for tensor in converted.model.graph.initializer}
    assert scales
    assert {types[name] for name in scales} == {TensorProto.FLOAT}
    exact, half = run(str(mixed)), run(converted.model.SerializeToString())
    assert float(np.abs(half - exact).max() / np.abs(exact).max()) < 2e-2


def test_a_graph_that_cannot_be_run_is_one_sentence(tmp_path: Path) -> None:
    source = graph(tmp_path)
    model = onnx.load(source)
    model.graph.node[3].input[1] = "nowhere"
    onnx.save(model, source)
    with pytest.raises(GateError, match=r"^fp16: expected a graph that ONNX Runtime runs, got features\.onnx: [^\n]+$"):
        to_fp16(source, images(), Path(sys.executable))


def test_an_operator_with_large_values_needs_a_name_to_be_kept_by(tmp_path: Path) -> None:
    source = graph(tmp_path, gain=1e4)
    model = onnx.load(source)
    for node in model.graph.node:
        node.name = ""
    onnx.save(model, source)
    with pytest.raises(GateError, match=r"operators with names in features\.onnx, got Conv without a name\.$"):
        to_fp16(source, images(), Path(sys.executable))


# --- the other interpreter


def test_an_interpreter_without_modelopt_is_named_with_the_recipe(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=r"got no module modelopt.*pip install \"flawscope\[fp16\]\""):
        to_fp16(graph(tmp_path), images(), Path(sys.executable))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("sys.exit(3)", "ended with status 3 and no answer: no output"),
        ("raise RuntimeError('no room')", "no answer: RuntimeError: no room"),
        ("open(request['answer'], 'w').write('{')", "no answer"),
        ("json.dump({'error': 'ValueError: odd'}, open(request['answer'], 'w'))", "ValueError: odd. Export without it"),
    ],
)
def test_a_worker_that_fails_is_one_sentence(tmp_path: Path, body: str, message: str) -> None:
    with pytest.raises(GateError) as caught:
        to_fp16(graph(tmp_path), images(), answering(tmp_path, body))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_names_that_are_not_in_the_graph_are_not_reported(tmp_path: Path) -> None:
    body = (
        "shutil.copy(request['graph'], request['out'])\n"
        "json.dump({'kept': {'body/Conv_3': 'too large', 'cast_of_its_own': 'new'}, 'version': '9'}, "
        "open(request['answer'], 'w'))"
    )
    converted = to_fp16(graph(tmp_path), images(), answering(tmp_path, body))
    assert (converted.kept, converted.version) == ({"body/Conv_3": "too large"}, "9")
    assert operators_in(converted.model, OPERATORS, TensorProto.FLOAT16) == []


def test_the_interpreter_is_the_one_given_the_one_named_or_this_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    argument, named = answering(tmp_path, ""), Path(sys.executable)
    monkeypatch.setenv(PYTHON, str(named))
    assert find_python(argument) == argument
    assert find_python() == named
    with pytest.raises(
        ArgumentError, match=r"--modelopt-python: expected a Python interpreter, got .*nobody\. ModelOpt"
    ):
        find_python(tmp_path / "nobody")
    monkeypatch.delenv(PYTHON)
    monkeypatch.setattr(modelopt.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ArgumentError, match=r"FP16: expected the package nvidia-modelopt\[onnx\] in this environment"):
        find_python()
    monkeypatch.setattr(modelopt.importlib.util, "find_spec", lambda name: object())
    assert find_python() == Path(sys.executable)


def test_no_image_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="expected at least one normal image"):
        to_fp16(graph(tmp_path), [], Path(sys.executable))


# --- weights that are not handed over


def wide(folder: Path, *, beside: bool, gain: float = 1.0) -> Path:
    """Two products by one weight, and one by a weight of its own; in between the values are times `gain`."""
    draw = np.random.default_rng(2)
    weights = {
        "shared": draw.normal(size=(16, 16)).astype(np.float32) / 16,
        "own": (gain * draw.normal(size=(16, 16))).astype(np.float32),
        "least": np.full(16, 1e-3, np.float32),
    }
    nodes = [
        helper.make_node("MatMul", ["x", "shared"], ["a"], name="first"),
        helper.make_node("MatMul", ["a", "own"], ["b"], name="second"),
        helper.make_node("Add", ["b", "least"], ["c"], name="third"),
        helper.make_node("MatMul", ["c", "shared"], ["y"], name="fourth"),
    ]
    model = helper.make_model(
        helper.make_graph(
            nodes,
            "wide",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 16])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 16])],
            [numpy_helper.from_array(value, name) for name, value in weights.items()],
        ),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=10,
    )
    onnx.save(model, folder / "wide.onnx", save_as_external_data=beside, location="wide.data", size_threshold=0)
    return folder / "wide.onnx"


def product(model: onnx.ModelProto) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": inputs()["x"]})[0])


def inputs() -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(3).normal(size=(5, 16)).astype(np.float32)}


@needs_modelopt
@pytest.mark.parametrize(("beside", "gain"), [pytest.param(False, 1.0, marks=pytest.mark.slow), (True, 1e4)])
def test_weights_that_are_not_handed_over_come_out_as_if_they_had_been(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, beside: bool, gain: float
) -> None:
    source = wide(tmp_path, beside=beside, gain=gain)
    expected = convert_graph(source, inputs(), modelopt_python())
    monkeypatch.setattr(autocast, "HEAVY_BYTES", 1024)
    converted = convert_graph(source, inputs(), modelopt_python())
    assert converted.kept == expected.kept
    assert set(converted.kept) == (set() if gain == 1.0 else {"second", "third", "fourth"})
    assert [node.op_type for node in converted.model.graph.node].count("MatMul") == 3
    assert [value.name for value in converted.model.graph.input] == ["x"]
    types = {tensor.name: tensor.data_type for tensor in converted.model.graph.initializer}
    # What is multiplied in both types is there in both.
    kinds = [types[node.input[1]] for node in converted.model.graph.node if node.op_type == "MatMul"]
    half, full = TensorProto.FLOAT16, TensorProto.FLOAT
    assert kinds == ([half, half, half] if gain == 1.0 else [half, full, full])
    onnx.checker.check_model(converted.model, full_check=True)
    assert product(converted.model).tobytes() == product(expected.model).tobytes()


@needs_modelopt
def test_a_weight_that_fp16_cannot_hold_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = wide(tmp_path, beside=True)
    model = onnx.load(source)
    values = np.zeros((16, 16), np.float32)
    values[0, 0] = 1e5
    model.graph.initializer[1].CopyFrom(numpy_helper.from_array(values, "own"))
    onnx.save(model, source)
    monkeypatch.setattr(autocast, "HEAVY_BYTES", 1024)
    zeros = {"x": np.zeros((1, 16), np.float32)}
    converted = convert_graph(source, zeros, modelopt_python())
    assert set(converted.kept) == {"second"}
    assert "weights up to 1e+05, above 65504" in converted.kept["second"]
