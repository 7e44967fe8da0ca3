"""What depends on constants alone is computed at export, where torch's exporter leaves it in the graph.

It does so with a weight that is used at two places, as every weight is where a network sees an image at several scales:
each place turns it around anew, and a product of it no longer looks like one with a weight, which INT8 and the estimate
of memory go by. And a network that takes any size of image brings its table of positions to each one by an operator
(cubic resizing with averaging) that TensorRT does not have.
"""

from __future__ import annotations

from collections.abc import Container, Mapping

import numpy as np
import numpy.typing as npt
import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, numpy_helper

from flawscope.runtime.backends.ort import import_onnxruntime


def fold_constants(model: ModelProto) -> None:
    """Put constants in place of resized tables and transposed weights; a graph without such is left as it is.

    Args:
        model: The graph, changed in place; its constants lie in it.
    """
    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    makers: dict[str, NodeProto] = {}
    folded: dict[str, TensorProto] = {}
    for node in graph.node:  # in the order of computation
        if not _is_fixed(node) or any(name and name not in constants and name not in makers for name in node.input):
            continue
        makers |= dict.fromkeys(node.output, node)
        if node.op_type == "Resize" or _transposes_weight(node, constants):
            name = node.output[0]
            value = _value(model, name, makers, {**constants, **folded})
            folded[name] = numpy_helper.from_array(np.ascontiguousarray(value), name)
    if not folded:
        return
    _replace(graph, folded, makers.keys())


def _is_fixed(node: NodeProto) -> bool:
    """Return whether a node gives the same for the same inputs, with nothing but them."""
    has_graph = any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute)
    return not has_graph and not node.op_type.startswith(("Random", "Bernoulli", "Multinomial"))


def _transposes_weight(node: NodeProto, constants: Mapping[str, TensorProto]) -> bool:
    source = constants.get(node.input[0]) if node.op_type == "Transpose" else None
    return source is not None and len(source.dims) == 2


def _value(
    model: ModelProto, name: str, makers: Mapping[str, NodeProto], constants: Mapping[str, TensorProto]
) -> npt.NDArray[np.generic]:
    """Return a tensor that follows from constants, computed as the graph would."""
    needed: dict[str, TensorProto] = {}
    steps: set[str] = set()
    pending = [name]
    while pending:
        current = pending.pop()
        if current in constants:
            needed[current] = constants[current]
        elif current:
            steps |= set(makers[current].output)
            pending += makers[current].input
    nodes = [node for node in model.graph.node if not steps.isdisjoint(node.output)]
    graph = onnx.helper.make_graph(nodes, "constants", [], [onnx.ValueInfoProto(name=name)], list(needed.values()))
    alone = onnx.helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
    session = import_onnxruntime().InferenceSession(alone.SerializeToString(), providers=["CPUExecutionProvider"])
    value: npt.NDArray[np.generic] = session.run(None, {})[0]
    return value


def _replace(graph: GraphProto, folded: Mapping[str, TensorProto], fixed: Container[str]) -> None:
    """Put constants in place of what makes them, and drop what nothing needs any more."""
    used = {value.name for value in graph.output}
    kept = []
    for node in reversed(graph.node):
        is_fixed = all(name in fixed for name in node.output)
        if is_fixed and not any(name in used and name not in folded for name in node.output):
            continue
        kept.append(node)
        used |= set(node.input)
    tensors = [tensor for tensor in graph.initializer if tensor.name in used]
    tensors += [tensor for name, tensor in folded.items() if name in used]
    made = {name for node in kept for name in node.output}
    infos = [info for info in graph.value_info if info.name in made]
    for field, values in ((graph.node, kept[::-1]), (graph.initializer, tensors), (graph.value_info, infos)):
        copies = [type(value).FromString(value.SerializeToString()) for value in values]
        del field[:]
        field.extend(copies)
