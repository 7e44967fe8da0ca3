"""FP16 by AutoCast of NVIDIA ModelOpt: converts a graph and reports which operators stay in FP32, with the reason.

ModelOpt pins an ONNX Runtime of its own, so it runs in another interpreter (`modelopt.find_python`); the two
interpreters exchange files.
"""

from __future__ import annotations

import json
import math
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from flawscope.arrays import UInt8Array
from flawscope.calibration.quantization.modelopt import HELP
from flawscope.calibration.quantization.value_ranges import largest_values
from flawscope.errors import ArgumentError, GateError
from flawscope.files import temporary_folder

MOST_VALUE = 512.0
"""Operators with larger values stay in FP32: from 512 on, neighbouring FP16 numbers are 0.5 apart."""

HEAVY_BYTES = 1 << 20
"""Weights of this many bytes or more are not passed to ModelOpt."""


@dataclass(frozen=True)
class Converted:
    """A graph in FP16.

    Attributes:
        model: The graph; inputs and outputs have the types they had.
        kept: Name of every operator that stayed in FP32 -> why.
        version: Version of ModelOpt.
    """

    model: onnx.ModelProto
    kept: dict[str, str]
    version: str


def to_fp16(
    graph: Path,
    images: Sequence[UInt8Array],
    python: Path,
    quantised: Sequence[str] = (),
    excluded: Sequence[str] = (),
) -> Converted:
    """Convert a graph with one input, uint8 [N, H, W, 3], to FP16; see `convert_graph`.

    Args:
        graph: ONNX file.
        images: Prepared images, each uint8 [H, W, 3].
        python: Interpreter with ModelOpt.
        quantised: Operators with Q/DQ nodes around them.
        excluded: Operators that stay as they are, whatever their values.

    Raises:
        ArgumentError: If that interpreter cannot do it.
        GateError: If ModelOpt cannot convert the graph.
    """
    if not images:
        raise ArgumentError("calibration: expected at least one normal image, got none.")
    name = onnx.load(graph, load_external_data=False).graph.input[0].name
    return convert_graph(graph, {name: np.stack(images)}, python, quantised, excluded)


def convert_graph(
    graph: Path,
    inputs: Mapping[str, npt.NDArray[Any]],
    python: Path,
    quantised: Sequence[str] = (),
    excluded: Sequence[str] = (),
) -> Converted:
    """Convert a graph to FP16.

    Args:
        graph: ONNX file, whose operators have names; its weights may lie beside it.
        inputs: Input name -> values as they come in use, the same number of each; an operator whose values pass
            `MOST_VALUE` on them stays in FP32.
        python: Interpreter with ModelOpt.
        quantised: Operators with Q/DQ nodes around them. They stay as they are, with their Q/DQ nodes: a scale can be
            too small for FP16, and a cast between them would keep them from being computed in INT8.
        excluded: Operators that stay as they are, whatever their values: a scoring head. They are not among `kept`.

    Raises:
        ArgumentError: If that interpreter cannot do it.
        GateError: If ModelOpt cannot convert the graph.
    """
    # ModelOpt can measure the values itself, but would hold all tensors of all inputs in memory for it.
    source = onnx.load(graph, load_external_data=False)
    large = _too_large(source, graph.name, largest_values(graph, inputs))
    with temporary_folder() as scratch:
        heavy = _write_light(source, graph.parent, scratch / "fp32.onnx")
        large |= _too_heavy(source, heavy, graph)
        request: dict[str, Any] = {
            "graph": str(scratch / "fp32.onnx"),
            "out": str(scratch / "fp16.onnx"),
            "exclude": [*quantised, *excluded, *large],
            "exclude_types": ["QuantizeLinear", "DequantizeLinear"] if quantised else [],
            "answer": str(scratch / "answer.json"),
        }
        answer = _ask(request, scratch, python)
        if "missing" in answer:
            raise ArgumentError(
                f"FP16: expected nvidia-modelopt[onnx] in {python}, got no module {answer['missing']}. {HELP}"
            )
        if "error" in answer:
            raise GateError(
                f"fp16: ModelOpt could not convert {graph.name}: {answer['error']}. Export without it, or with another "
                "version of ModelOpt."
            )
        model = onnx.load(scratch / "fp16.onnx")
    # ModelOpt also reports nodes that it has added itself. Of nodes that we have excluded it gives the name of its rule
    # alone; the reason is ours.
    names = {node.name for node in source.graph.node} - set(excluded)
    reasons = {node: large.get(node, reason) for node, reason in answer["kept"].items() if node in names}
    _put_weights(model, heavy, graph.parent)
    model.producer_name = "flawscope"
    return Converted(model, reasons, str(answer["version"]))


def _write_light(model: onnx.ModelProto, folder: Path, out: Path) -> list[onnx.TensorProto]:
    """Write a model whose large weights are inputs, and return these weights; external data is not loaded.

    ModelOpt makes several copies of a model. All it needs to know of the values of a weight is whether FP16 can hold
    them, which `_too_heavy` finds out here.
    """
    heavy: list[onnx.TensorProto] = []
    rest: list[onnx.TensorProto] = []
    for tensor in model.graph.initializer:
        is_heavy = tensor.data_type == onnx.TensorProto.FLOAT and 4 * math.prod(tensor.dims) >= HEAVY_BYTES
        (heavy if is_heavy else rest).append(tensor)
    for tensor in rest:
        if onnx.external_data_helper.uses_external_data(tensor):
            onnx.external_data_helper.load_external_data_for_tensor(tensor, str(folder))
            tensor.data_location = onnx.TensorProto.DEFAULT
            del tensor.external_data[:]
    onnx.save(_copied(model, rest, heavy), out)
    return heavy


def _copied(
    model: onnx.ModelProto, weights: Sequence[onnx.TensorProto], inputs: Sequence[onnx.TensorProto]
) -> onnx.ModelProto:
    """Return a model with some of its weights, and others as inputs."""
    graph = model.graph
    weight_inputs = [
        onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims) for tensor in inputs
    ]
    # Built from parts: CopyFrom of the whole model would copy gigabytes of weights first.
    copy = onnx.helper.make_graph(
        graph.node, graph.name, [*graph.input, *weight_inputs], graph.output, weights, value_info=graph.value_info
    )
    return onnx.helper.make_model(
        copy, opset_imports=model.opset_import, functions=model.functions, ir_version=model.ir_version
    )


def _too_heavy(model: onnx.ModelProto, heavy: Sequence[onnx.TensorProto], graph: Path) -> dict[str, str]:
    """Return the names of operators with a weight that FP16 cannot hold -> what it reaches."""
    most = float(np.finfo(np.float16).max)
    # One weight at a time is loaded and dropped.
    largest = {tensor.name: float(np.abs(_numbers(tensor, graph.parent)).max()) for tensor in heavy}
    return {
        _name_of(node, graph.name): f"out of range: weights up to {largest[name]:.4g}, above {most:g}"
        for node in model.graph.node
        for name in node.input
        if largest.get(name, 0.0) > most
    }


def _numbers(tensor: onnx.TensorProto, folder: Path) -> npt.NDArray[np.float32]:
    """Return the numbers of a weight, which may lie beside its graph."""
    return np.asarray(onnx.numpy_helper.to_array(tensor, str(folder)), np.float32)


def _put_weights(model: onnx.ModelProto, heavy: Sequence[onnx.TensorProto], folder: Path) -> None:
    """Give a converted graph its large weights back: in FP16 where it casts them to that, in FP32 where it does not."""
    graph = model.graph
    weights = {tensor.name: tensor for tensor in heavy}
    # ModelOpt casts an input to FP16 where an operator needs it so. The result of the cast becomes a stored weight:
    # half the size, and no cast at run time.
    casts = {
        node.output[0]: node.input[0]
        for node in graph.node
        if node.op_type == "Cast" and node.input[0] in weights and node.attribute[0].i == onnx.TensorProto.FLOAT16
    }
    nodes = [node for node in graph.node if not (node.op_type == "Cast" and node.output[0] in casts)]
    used = {name for node in nodes for name in node.input}
    shapes = [value for value in graph.value_info if value.name not in casts]
    inputs = [value for value in graph.input if value.name not in weights]
    field: Any
    for field, left in ((graph.node, nodes), (graph.value_info, shapes), (graph.input, inputs)):
        del field[:]
        field.extend(left)
    for out, name in casts.items():
        halves = _numbers(weights[name], folder).astype(np.float16)
        graph.initializer.append(onnx.numpy_helper.from_array(halves, out))
    # Both forms where an operator in FP32 and one in FP16 share a weight. Sorted, so that the file is always the same.
    for name in sorted(weights.keys() & used):
        graph.initializer.append(onnx.numpy_helper.from_array(_numbers(weights[name], folder), name))


def _too_large(model: onnx.ModelProto, graph: str, largest: Mapping[str, float]) -> dict[str, str]:
    """Return the names of operators with inputs or outputs above `MOST_VALUE` -> what they reach, in words."""
    reasons = {}
    for node in model.graph.node:
        most = max((largest.get(name, 0.0) for name in (*node.input, *node.output)), default=0.0)
        if node.op_type != "Constant" and most > MOST_VALUE:
            reasons[_name_of(node, graph)] = f"out of range: values up to {most:.4g}, above {MOST_VALUE:g}"
    return reasons


def _name_of(node: onnx.NodeProto, graph: str) -> str:
    """Return the name by which an operator is excluded."""
    if not node.name:
        raise GateError(f"fp16: expected operators with names in {graph}, got {node.op_type} without a name.")
    return str(node.name)


def operators_in(model: onnx.ModelProto, types: Sequence[str], element: int) -> list[str]:
    """Return the names of the operators of these types whose output has this element type (`onnx.TensorProto`)."""
    # Without weights, on which no type depends: infer_shapes serialises the model, and Protobuf ends at 2 GB.
    graph = onnx.shape_inference.infer_shapes(_copied(model, (), model.graph.initializer)).graph
    outputs = {
        value.name for value in (*graph.value_info, *graph.output) if value.type.tensor_type.elem_type == element
    }
    return [node.name for node in model.graph.node if node.op_type in types and node.output[0] in outputs]


def _ask(request: dict[str, Any], scratch: Path, python: Path) -> dict[str, Any]:
    (scratch / "request.json").write_text(json.dumps(request), encoding="utf-8")
    # -I (isolated): neither the working folder nor PYTHONPATH may bring our ONNX Runtime into that interpreter. The
    # worker is run by its path, because `-m flawscope...` would import our package there.
    command = [str(python), "-I", str(Path(__file__).with_name("autocast_worker.py")), str(scratch / "request.json")]
    try:
        process = subprocess.run(command, capture_output=True, text=True, cwd=scratch, check=False)
    except OSError as err:
        raise ArgumentError(f"--modelopt-python: could not run {python}: {err.strerror}. {HELP}") from err
    try:
        answer: dict[str, Any] = json.loads((scratch / "answer.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as err:
        # No answer: the worker was killed, or is no Python that can run it. The last line of its output says most.
        last = (process.stderr.strip() or process.stdout.strip() or "no output").splitlines()[-1]
        raise GateError(f"fp16: {python} ended with status {process.returncode} and no answer: {last}") from err
    return answer
