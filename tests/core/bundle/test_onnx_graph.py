"""Reading graphs without the package `onnx`: compared with that package, and held against hostile bytes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from flawscope.bundle import OnnxModel
from flawscope.bundle.onnx_graph import OPSETS, read_graph
from flawscope.bundle.onnx_inputs import external_as_inputs
from flawscope.errors import BundleError


def external(name: str, array: np.ndarray, **entries: object) -> TensorProto:
    tensor = numpy_helper.from_array(array, name)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def model_of(*tensors: TensorProto, nodes: tuple[onnx.NodeProto, ...] = (), **fields: object) -> onnx.ModelProto:
    graph = helper.make_graph(list(nodes), "g", [], [], initializer=list(tensors))
    opsets = fields.pop("opsets", [helper.make_opsetid("", OPSETS[0])])
    return helper.make_model(graph, opset_imports=opsets, ir_version=10, **fields)


ARRAYS = st.sampled_from([np.float32, np.float16, np.float64, np.int64, np.int8, np.uint8, np.bool_, np.int32]).flatmap(
    lambda kind: st.lists(st.integers(0, 4), max_size=4).map(lambda shape: np.ones(shape, kind))
)


@settings(max_examples=60)
@given(arrays=st.lists(ARRAYS, max_size=4), padding=st.integers(0, 3))
def test_external_tensors_are_those_of_onnx(arrays, padding, tmp_path_factory) -> None:
    folder = tmp_path_factory.mktemp("graph")
    data, tensors = b"", []
    for number, array in enumerate(arrays):
        data += bytes(padding)
        values = (np.arange(array.size).reshape(array.shape) % 2).astype(array.dtype)
        tensors.append(external(f"t{number}", values, location="bank", offset=len(data), length=values.nbytes))
        data += values.tobytes()
    (folder / "bank").write_bytes(data)
    # Without a tensor the file is not named, and need not be there.
    (folder / "g.onnx").write_bytes(model_of(*tensors).SerializeToString())
    read = OnnxModel.of_file(folder / "g.onnx")
    expected = {tensor.name: numpy_helper.to_array(tensor, str(folder)) for tensor in tensors}
    assert list(read.external) == list(expected)
    for name, array in expected.items():
        assert read.external[name].dtype == array.dtype
        np.testing.assert_array_equal(read.external[name], array)


def refuse(model: onnx.ModelProto | bytes, message: str) -> None:
    data = model if isinstance(model, bytes) else model.SerializeToString()
    with pytest.raises(BundleError, match=message) as caught:
        read_graph(data, "g.onnx")
    assert "\n" not in str(caught.value)


ARRAY = np.zeros(3, np.float32)
OUTSIDE = external("t", ARRAY, location="../../etc/passwd")


def inner(tensor: TensorProto) -> onnx.NodeProto:
    branch = helper.make_graph([], "inner", [], [], initializer=[tensor])
    return helper.make_node("If", ["c"], [], then_branch=branch, else_branch=branch)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (model_of(nodes=(helper.make_node("Gelu", [], [], domain="com.microsoft"),)), "domain 'com.microsoft'"),
        (model_of(opsets=[helper.make_opsetid("", 17)]), "version 17 in place of 18 or 19"),
        (model_of(opsets=[helper.make_opsetid("", 20)]), "version 20 in place of 18 or 19"),
        (model_of(opsets=[helper.make_opsetid("ai.onnx.ml", 3)]), "version none in place of 18"),
        (model_of(opsets=[helper.make_opsetid("", 18), helper.make_opsetid("ai.onnx", 17)]), "version 18, 17"),
        (model_of(nodes=(helper.make_node("Constant", [], ["c"], value=OUTSIDE),)), "external data in an attribute"),
        (model_of(nodes=(inner(OUTSIDE),)), "external data in an inner graph"),
        (model_of(external("t", ARRAY)), "without name, place or shape"),
        (model_of(external("", ARRAY, location="bank")), "without name, place or shape"),
        (model_of(external("t", ARRAY, location="bank", offset=-1)), "at the offset '-1'"),
        (model_of(external("t", ARRAY, location="bank", offset="x")), "at the offset 'x'"),
        (model_of(functions=[helper.make_function("d", "f", [], [], [], [helper.make_opsetid("", 18)])]), "functions"),
        (b"", "version none"),
        (b"this is no graph", "broken bytes"),
        (b"ORTM" + bytes(40), "broken bytes"),
    ],
)
def test_a_graph_that_the_format_does_not_name_is_refused(model, message: str) -> None:
    refuse(model, message)


@pytest.mark.parametrize("opset", OPSETS)
def test_every_version_that_an_export_writes_is_read(opset: int) -> None:
    assert read_graph(model_of(opsets=[helper.make_opsetid("", opset)]).SerializeToString(), "g.onnx") == ()


def test_external_data_anywhere_else_is_refused_before_it_is_read(tmp_path: Path) -> None:
    data = model_of(OUTSIDE).SerializeToString()
    (tensor,) = read_graph(data, "g.onnx")
    asked: list[str] = []

    def read(name: str) -> bytes:
        asked.append(name)
        if name != "sub/g.onnx":
            raise BundleError("not listed")
        return data

    with pytest.raises(BundleError, match="not listed"):
        OnnxModel.read("sub/g.onnx", read, "g.onnx")
    assert tensor.file == "../../etc/passwd"
    assert asked[-1] == "sub/../../etc/passwd"  # as it stands, so that no listed name can equal it


def test_a_file_too_short_for_its_tensors_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bank").write_bytes(bytes(11))
    (tmp_path / "g.onnx").write_bytes(model_of(external("t", ARRAY, location="bank")).SerializeToString())
    with pytest.raises(BundleError, match="expected 12 bytes of t from 0 on in bank, got a file of 11 bytes"):
        OnnxModel.of_file(tmp_path / "g.onnx")


def test_graphs_nested_without_end_are_refused() -> None:
    # By hand, as the package itself makes none so deep: a node (1) with an attribute (5) with a graph (6), and so on.
    graph = b""
    for _ in range(40):
        for number in (6, 5, 1):
            graph = bytes([number << 3 | 2]) + length_of(graph) + graph
    opset = bytes([2 << 3, OPSETS[0]])
    refuse(b"\x42" + length_of(opset) + opset + b"\x3a" + length_of(graph) + graph, "nested too deeply")


def length_of(data: bytes) -> bytes:
    value, encoded = len(data), b""
    while value > 127:
        encoded, value = encoded + bytes([value & 127 | 128]), value >> 7
    return encoded + bytes([value])


@settings(max_examples=300)
@given(st.data())
def test_mutated_graphs_are_read_or_refused(data: st.DataObject) -> None:
    honest = model_of(external("t", ARRAY, location="bank", offset=0), nodes=(inner(numpy_helper.from_array(ARRAY)),))
    changed = bytearray(honest.SerializeToString())
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(changed) - 1))
        changed[place : place + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=3))
        changed = changed or bytearray(b"\0")
    try:
        tensors = read_graph(bytes(changed), "g.onnx")
    except BundleError:
        return
    # What we accept, onnx must see no more in: every place outside the file that it finds is one of ours.
    try:
        theirs = onnx.load_model_from_string(bytes(changed))
    except Exception:
        return
    places = {entry.value for t in theirs.graph.initializer for entry in t.external_data if entry.key == "location"}
    assert places <= {tensor.file for tensor in tensors}


@settings(max_examples=40)
@given(arrays=st.lists(ARRAYS, max_size=4), inside=st.lists(ARRAYS, max_size=2))
def test_external_data_become_inputs_and_all_else_stays(arrays, inside) -> None:
    outer = [external(f"outer{number}", array, location="bank") for number, array in enumerate(arrays)]
    inner = [numpy_helper.from_array(array, f"inner{number}") for number, array in enumerate(inside)]
    node = helper.make_node("Elu", ["image"], ["y"], alpha=0.25)
    model = model_of(*outer, *inner, nodes=(node,), producer_name="somebody")
    model.graph.input.append(helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 3]))
    changed = onnx.ModelProto.FromString(external_as_inputs(model.SerializeToString()))
    expected = onnx.ModelProto()
    expected.CopyFrom(model)
    del expected.graph.initializer[:], expected.graph.input[:]
    expected.graph.initializer.extend(inner)
    # In the order of the fields: initializers come before inputs.
    expected.graph.input.extend(
        helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)) for tensor in outer
    )
    expected.graph.input.extend(model.graph.input)
    assert changed == expected
