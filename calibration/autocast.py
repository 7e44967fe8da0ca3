"""FP16 by the AutoCast of NVIDIA ModelOpt: which operators compute in 16 bits, and which stay in FP32, with the reason.

ModelOpt pins an ONNX Runtime of its own, so it runs in another interpreter (`modelopt.find_python`); files go between.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from flawscope.calibration.modelopt import HELP
from flawscope.errors import ArgumentError, GateError

UInt8Array = npt.NDArray[np.uint8]

MOST_VALUE = 512.0
"""Values above stay in FP32: from here on FP16 has steps of 0.5."""


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


def to_fp16(graph: Path, images: Sequence[UInt8Array], python: Path, quantised: Sequence[str] = ()) -> Converted:
    """Convert a graph with one input, uint8 [N, H, W, 3], to FP16; see `convert_graph`.

    Args:
        graph: ONNX file.
        images: Prepared pictures, each uint8 [H, W, 3].
        python: Interpreter with ModelOpt.
        quantised: Operators with Q/DQ nodes around them.

    Raises:
        ArgumentError: If that interpreter cannot do it.
        GateError: If ModelOpt cannot convert the graph.
    """
    if not images:
        raise ArgumentError("calibration: expected at least one good picture, got none.")
    name = onnx.load(graph, load_external_data=False).graph.input[0].name
    return convert_graph(graph, {name: np.stack(images)}, python, quantised)


def convert_graph(
    graph: Path, inputs: Mapping[str, npt.NDArray[Any]], python: Path, quantised: Sequence[str] = ()
) -> Converted:
    """Convert a graph to FP16.

    Args:
        graph: ONNX file.
        inputs: Input name -> values as they come in use, the same number of each; an operator whose values pass
            `MOST_VALUE` on them stays in FP32.
        python: Interpreter with ModelOpt.
        quantised: Operators with Q/DQ nodes around them. They stay as they are, with their Q/DQ nodes: a scale can be
            too small for FP16, and a cast between them would keep them from being computed in INT8.

    Raises:
        ArgumentError: If that interpreter cannot do it.
        GateError: If ModelOpt cannot convert the graph.
    """
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        request: dict[str, Any] = {
            "graph": str(graph.absolute()),
            "inputs": str(scratch / "inputs.npz"),
            "out": str(scratch / "fp16.onnx"),
            "most_value": MOST_VALUE,
            "exclude": list(quantised),
            "exclude_types": ["QuantizeLinear", "DequantizeLinear"] if quantised else [],
            "answer": str(scratch / "answer.json"),
        }
        np.savez(scratch / "inputs.npz", **dict(inputs))  # type: ignore[arg-type]
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
    names = {node.name for node in onnx.load(graph, load_external_data=False).graph.node}
    kept = {node: reason for node, reason in answer["kept"].items() if node in names}
    model.producer_name = "flawscope"
    return Converted(model, kept, str(answer["version"]))


def operators_in(model: onnx.ModelProto, types: Sequence[str], element: int) -> list[str]:
    """Return the names of the operators of these types whose output has this element type (`onnx.TensorProto`)."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    outputs = {
        value.name for value in (*graph.value_info, *graph.output) if value.type.tensor_type.elem_type == element
    }
    return [node.name for node in model.graph.node if node.op_type in types and node.output[0] in outputs]


def _ask(request: dict[str, Any], scratch: Path, python: Path) -> dict[str, Any]:
    (scratch / "request.json").write_text(json.dumps(request), encoding="utf-8")
    # -I: neither our working folder nor our module path may bring our packages into that interpreter.
    command = [str(python), "-I", str(Path(__file__).with_name("autocast_worker.py")), str(scratch / "request.json")]
    try:
        done = subprocess.run(command, capture_output=True, text=True, cwd=scratch, check=False)
    except OSError as err:
        raise ArgumentError(f"--modelopt-python: could not run {python}: {err.strerror}. {HELP}") from err
    try:
        answer: dict[str, Any] = json.loads((scratch / "answer.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as err:
        last = (done.stderr.strip() or done.stdout.strip() or "it said nothing").splitlines()[-1]
        raise GateError(f"fp16: {python} ended with status {done.returncode} and no answer: {last}") from err
    return answer
