"""The proof of size: what is too large or cannot be known is refused before anything is written."""

from __future__ import annotations

import re

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from flawscope.errors import RunError
from flawscope.export.size_check import LIMIT, check_tensor_sizes

Nodes = list[onnx.NodeProto]


def model_of(nodes: Nodes, constants: dict[str, np.ndarray] | None = None, width: int = 4) -> onnx.ModelProto:
    """Return a graph from `image` float32 [N, width] to `out` float32 [N, ...] of unknown further size."""
    initializers = [numpy_helper.from_array(value, name) for name, value in (constants or {}).items()]
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", width])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, ["N", None])],
        initializers,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def wide(width: int) -> onnx.ModelProto:
    """Return a graph in which [N, 1] becomes [N, width] on its way."""
    nodes = [
        helper.make_node("ReduceMax", ["image", "one"], ["narrow"], keepdims=1),
        helper.make_node("Expand", ["narrow", "shape"], ["big"]),
        helper.make_node("ReduceMax", ["big", "one"], ["out"], keepdims=1),
    ]
    return model_of(nodes, {"one": np.array([1], np.int64), "shape": np.array([1, width], np.int64)})


def test_the_largest_tensor_is_named_with_its_size_at_the_largest_batch() -> None:
    proof = check_tensor_sizes(wide(1000), 7)
    assert (proof.largest_tensor, proof.largest_elements) == ("big", 7000)


def test_the_limit_is_two_to_the_31() -> None:
    assert LIMIT == 2147483648
    assert check_tensor_sizes(wide(LIMIT - 1), 1).largest_elements == LIMIT - 1
    assert check_tensor_sizes(wide(2**29), 3).largest_elements == 3 * 2**29
    with pytest.raises(
        RunError, match=r"export: big would have 2,147,483,648 elements at batch 1, .* Lower --max-batch"
    ):
        check_tensor_sizes(wide(LIMIT), 1)
    with pytest.raises(RunError, match=r"big would have 2,147,483,648 elements at batch 4"):
        check_tensor_sizes(wide(2**29), 4)


def test_a_size_that_depends_on_the_values_cannot_be_proven() -> None:
    nodes = [
        helper.make_node("NonZero", ["image"], ["places"]),
        helper.make_node("Cast", ["places"], ["out"], to=TensorProto.FLOAT),
    ]
    with pytest.raises(RunError, match=r"export: the size of places \(NonZero\) at batch 2 could not be proven"):
        check_tensor_sizes(model_of(nodes), 2)


def test_an_operator_that_nobody_knows_cannot_be_proven() -> None:
    nodes = [helper.make_node("Mystery", ["image"], ["strange"], domain="com.example")]
    nodes.append(helper.make_node("Identity", ["strange"], ["out"]))
    model = model_of(nodes)
    model.opset_import.append(helper.make_opsetid("com.example", 1))
    with pytest.raises(RunError, match=r"export: the sizes? .* could not be proven"):
        check_tensor_sizes(model, 2)


def test_shapes_that_contradict_each_other_are_one_sentence() -> None:
    nodes = [helper.make_node("MatMul", ["image", "weights"], ["out"])]
    model = model_of(nodes, {"weights": np.zeros((5, 3), np.float32)})
    with pytest.raises(RunError, match=r"export: the sizes at batch 2 could not be proven: .*") as caught:
        check_tensor_sizes(model, 2)
    assert "\n" not in str(caught.value)


def test_branches_are_not_believed() -> None:
    branch = helper.make_graph(
        [helper.make_node("Identity", ["image"], ["inner"])],
        "branch",
        [],
        [helper.make_tensor_value_info("inner", TensorProto.FLOAT, ["N", 4])],
    )
    nodes = [helper.make_node("If", ["condition"], ["out"], then_branch=branch, else_branch=branch)]
    with pytest.raises(RunError, match=re.escape("the size of out (If) at batch 2 could not be proven")):
        check_tensor_sizes(model_of(nodes, {"condition": np.array(True)}), 2)


def test_a_tensor_without_elements_is_proven_too() -> None:
    nodes = [
        helper.make_node("Slice", ["image", "zero", "zero", "one"], ["nothing"]),
        helper.make_node("Concat", ["image", "nothing"], ["out"], axis=1),
    ]
    model = model_of(nodes, {"zero": np.array([0], np.int64), "one": np.array([1], np.int64)})
    assert check_tensor_sizes(model, 3).largest_elements == 12


def test_the_peak_counts_constants_their_packed_copies_and_what_lives_at_once() -> None:
    nodes = [
        helper.make_node("MatMul", ["image", "weights"], ["first"]),  # [N, 10]
        helper.make_node("Relu", ["first"], ["second"]),
        helper.make_node("Add", ["first", "second"], ["third"]),
        helper.make_node("Relu", ["third"], ["out"]),
    ]
    model = model_of(nodes, {"weights": np.zeros((4, 10), np.float32)})
    weights = 4 * 10 * 4
    # In the Add, first, second and third are alive: 3 tensors of 10 floats for each of 5 images.
    assert check_tensor_sizes(model, 5).peak_bytes == 2 * weights + 3 * 5 * 10 * 4


def test_the_model_itself_stays_as_it_was() -> None:
    model = wide(10)
    before = model.SerializeToString()
    check_tensor_sizes(model, 3)
    assert model.SerializeToString() == before


@pytest.mark.parametrize("method", ["patchcore", "padim"])
def test_bundles_record_the_proof_of_their_graphs(uncalibrated_bundles: dict, method: str) -> None:
    from flawscope.bundle import open_bundle

    with open_bundle(uncalibrated_bundles[method]) as bundle:
        manifest = bundle.manifest
        for name in ("features", "score"):
            model = onnx.load(bundle.path / bundle.graph_file(name), load_external_data=False)
            proof = check_tensor_sizes(model, manifest.max_batch)
            recorded = manifest.graphs[name]
            assert recorded.largest_elements == proof.largest_elements
            assert recorded.largest_tensor == proof.largest_tensor
            assert recorded.peak_bytes == proof.peak_bytes > recorded.largest_elements
