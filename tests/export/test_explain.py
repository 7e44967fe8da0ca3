"""Parity bisection: the layer at which two graphs part is found, and named; and where they do not, that is said."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from flawscope import cli
from flawscope.errors import ArgumentError, BackendError, DeviceError
from flawscope.export.explain import Explanation, GraphSide, explain, first_outside
from flawscope.export.explain_sources import lines_of, parse_against
from flawscope.runtime.backends import ort

pytestmark = pytest.mark.long

DEPTH = 12
SHAPE = (6, 5, 3)


def chain(file: Path, change: int | None = None, by: float = 0.1) -> Path:
    """Write a chain of additions and tanh; layer `change` adds a little more in one channel."""
    nodes = [helper.make_node("Cast", ["image"], ["t0"], name="start/Cast_0", to=TensorProto.FLOAT)]
    constants = []
    for i in range(1, DEPTH):
        value = np.full(3, 0.01 * i, np.float32)
        if i == change:
            value[1] += by
        constants.append(numpy_helper.from_array(value, f"c{i}"))
        nodes.append(helper.make_node("Add", [f"t{i - 1}", f"c{i}"], [f"t{i}"], name=f"net.{i}.add/Add_{i}"))
    image = helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", *SHAPE])
    out = helper.make_tensor_value_info(f"t{DEPTH - 1}", TensorProto.FLOAT, ["N", *SHAPE])
    graph = helper.make_graph(nodes, "chain", [image], [out], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, file)
    return file


def compare(first: Path, second: Path, tolerance: float = 1e-4) -> Explanation:
    images = list(np.random.default_rng(0).integers(0, 3, (2, *SHAPE), np.uint8))
    reference, candidate = GraphSide(first, "first", "cpu"), GraphSide(second, "second", "plain")
    reports: list[tuple[str, int, int]] = []
    explanation = explain(reference, candidate, images, tolerance, candidate.nodes, lambda *args: reports.append(args))
    assert [count for _, count, _ in reports] == list(range(1, len(explanation.probes) + 1))
    return explanation


@pytest.mark.parametrize("layer", range(1, DEPTH))
def test_the_layer_that_differs_is_named(tmp_path: Path, layer: int) -> None:
    explanation = compare(chain(tmp_path / "a.onnx"), chain(tmp_path / "b.onnx", layer))
    assert explanation.first is not None
    assert (explanation.first.tensor, explanation.first.operator, explanation.first.layer) == (
        f"t{layer}",
        "Add",
        f"net.{layer}.add",
    )
    assert explanation.first.shape == SHAPE
    place, expected, got = explanation.first.largest
    assert place[-1] == 1
    assert got - expected == pytest.approx(0.1, abs=1e-5)
    assert explanation.before is not None
    assert explanation.before.tensor == f"t{layer - 1}"
    assert explanation.before.difference == 0
    assert explanation.end.tensor == f"t{DEPTH - 1}"
    assert len(explanation.probes) <= 1 + DEPTH.bit_length()
    text = "\n".join(lines_of(explanation))
    assert f"outside from t{layer} (Add of net.{layer}.add) [6, 5, 3]:" in text
    assert f"within up to t{layer - 1}" in text


def test_graphs_that_agree_take_one_look(tmp_path: Path) -> None:
    explanation = compare(chain(tmp_path / "a.onnx"), chain(tmp_path / "b.onnx"))
    assert (explanation.first, explanation.before, len(explanation.probes)) == (None, None, 1)
    assert lines_of(explanation)[1].startswith(f"  within to the end: t{DEPTH - 1} (Add of net.")


def test_a_difference_within_the_tolerance_is_none(tmp_path: Path) -> None:
    assert compare(chain(tmp_path / "a.onnx"), chain(tmp_path / "b.onnx", 3, 1e-3), 1e-2).first is None


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_only_one_side_cannot_compute_is_outside(tmp_path: Path, value: float) -> None:
    explanation = compare(chain(tmp_path / "a.onnx"), chain(tmp_path / "b.onnx", 4, value))
    assert explanation.first is not None
    assert (explanation.first.tensor, explanation.first.difference) == ("t4", np.inf)


def test_what_both_cannot_compute_is_the_same(tmp_path: Path) -> None:
    first, second = chain(tmp_path / "a.onnx", 2, np.inf), chain(tmp_path / "b.onnx", 2, np.inf)
    assert compare(first, second).first is None


@given(st.integers(0, 40), st.integers(0, 41))
def test_halving_finds_the_first_where_being_outside_does_not_end(count: int, begin: int) -> None:
    looked: list[int] = []

    def is_outside(index: int) -> bool:
        looked.append(index)
        return index >= begin

    assert first_outside(count, is_outside) == (begin if begin < count else None)
    assert len(set(looked)) == len(looked) <= 2 + count.bit_length()


@given(st.lists(st.booleans(), min_size=1, max_size=30))
def test_halving_always_finds_an_edge(outside: list[bool]) -> None:
    edge = first_outside(len(outside), outside.__getitem__)
    if not outside[-1]:
        assert edge is None
    else:
        assert edge is not None
        assert outside[edge]
        assert edge == 0 or not outside[edge - 1]


def test_wrong_requests_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    side = GraphSide(chain(tmp_path / "a.onnx"), "a", "cpu")
    image = np.zeros(SHAPE, np.uint8)
    with pytest.raises(ArgumentError, match="tolerance: expected more than 0, got 0"):
        explain(side, side, [image], 0.0, side.nodes)
    with pytest.raises(ArgumentError, match="expected at least one image"):
        explain(side, side, [], 1.0, side.nodes)
    with pytest.raises(DeviceError, match=r"^a: could not compute t0: [^\n]+$"):
        side.values("t0", [np.zeros((2, 2), np.uint8)])
    monkeypatch.setattr(ort.import_onnxruntime(), "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(BackendError, match="backend cuda: is not there"):
        GraphSide(tmp_path / "a.onnx", "a", "cuda")
    for text in ("cpu", "tpu", "cpu:int4", "cpu:fp32", ""):
        with pytest.raises(ArgumentError, match="--against: expected BACKEND"):
            parse_against(text)
    assert parse_against("plain") == ("plain", "fp32")
    assert parse_against("cpu:int8") == ("cpu", "int8")


@pytest.mark.parametrize("method", ["patchcore", "padim"])
def test_torch_and_its_graph_agree_layer_by_layer(
    runs: dict[str, Path], method: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["explain", str(runs[method])]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("features.onnx on cpu against torch: ")
    assert "within to the end: patches (" in printed


def test_torch_against_a_graph_that_computes_something_else(
    runs: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from flawscope.export import explain_sources

    real = explain_sources.export_module

    def wrong(*arguments: object) -> onnx.ModelProto:
        model = real(*arguments)  # type: ignore[arg-type]
        sums = [node for node in model.graph.node if node.op_type == "AveragePool"]
        for attribute in sums[0].attribute:
            if attribute.name == "count_include_pad":
                attribute.i = 0
        return model

    monkeypatch.setattr(explain_sources, "export_module", wrong)
    assert cli.run(["explain", str(runs["patchcore"])]) == 1
    assert "outside from " in capsys.readouterr().out


def test_a_bundle_against_the_plain_graph(patchcore_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["explain", str(patchcore_bundle), "--against", "plain"]) == 0
    assert capsys.readouterr().out.startswith("fp32 on plain against fp32 on cpu: ")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--against", "cpu:int8"), "error: precision: expected one the bundle has (fp32), got 'int8'."),
        (("--against", "gpu"), "error: --against: expected BACKEND[:PRECISION] with a backend of plain, cpu, cuda and"),
        (("--tolerance", "-1"), "error: tolerance: expected more than 0, got -1.0."),
    ],
)
def test_a_wrong_request_is_one_line(
    padim_bundle: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], message: str
) -> None:
    assert cli.run(["explain", str(padim_bundle), *options]) == 2
    output = capsys.readouterr()
    assert output.err.startswith(message)
    assert output.err.count("\n") == 1


def test_against_is_not_for_runs(runs: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["explain", str(runs["padim"]), "--against", "plain"]) == 2
    assert capsys.readouterr().err.startswith("error: --against: expected it with a bundle, got it with the run ")
