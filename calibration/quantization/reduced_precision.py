"""Reduced precision of a graph: conversion to FP16 or INT8, and which operators stay in FP32.

A detector with a memory bank has its features reduced, and the head follows in FP32. Of a detector that is one graph,
the networks in it are reduced, by the names of their modules; what turns their outputs into map and score stays in
FP32.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from flawscope.arrays import UInt8Array
from flawscope.bundle import KeptNode
from flawscope.calibration.quantization.autocast import convert_graph, operators_in, to_fp16
from flawscope.calibration.quantization.gate_limits import Limits, Method
from flawscope.calibration.quantization.int8 import OPERATORS, Quantiser, fewest_kept
from flawscope.calibration.quantization.modelopt import find_python
from flawscope.errors import GateError
from flawscope.progress import Progress
from flawscope.runtime.backends.ort import import_onnxruntime

Head = Callable[[npt.NDArray[np.float32]], tuple[Any, npt.NDArray[np.float32]]]
"""patches float32 [N, P, D] → maps, scores float32 [N]."""

FP16_IMAGES = 16
"""Images from which the value ranges of FP16 are measured."""

_SENSITIVITY = 8
"""Images for the sensitivity of operators; every operator costs a pass over them."""


@dataclass(frozen=True)
class ReducedPrecision:
    """A feature graph in a lower precision.

    Attributes:
        model: The graph.
        lowered: Number of operators that compute in the lower precision.
        kept: Operators that stay in FP32, with the reason.
        method: How it was made, in words, for the manifest.
    """

    model: onnx.ModelProto
    lowered: int
    kept: tuple[KeptNode, ...]
    method: str


def reduce_to_fp16(
    graph: Path,
    inputs: Mapping[str, npt.NDArray[Any]],
    modelopt_python: Path | None,
    progress: Progress,
    networks: tuple[str, ...] = (),
) -> ReducedPrecision:
    """Return a graph in FP16; operators whose values are too large for it stay in FP32.

    Args:
        graph: The graph in FP32.
        inputs: Input name -> values as they come in use, the same number of each.
        modelopt_python: See `find_python`.
        progress: Called with each step.
        networks: Modules that are reduced, as the names of their operators begin; empty for all.

    Raises:
        ArgumentError: If ModelOpt is not installed.
        GateError: If it cannot convert the graph, or nothing in it.
    """
    python = find_python(modelopt_python)
    progress("FP16 by AutoCast", 0, 1)
    source = onnx.load(graph, load_external_data=False)
    converted = convert_graph(graph, inputs, python, excluded=outside_of(source, networks))
    progress("FP16 by AutoCast", 1, 1)
    lowered = operators_in(converted.model, OPERATORS, onnx.TensorProto.FLOAT16)
    if not lowered:
        raise GateError("fp16: expected operators that FP16 can hold, got none in this network. Export without it.")
    types = {node.name: node.op_type for node in source.graph.node}
    kept_nodes = tuple(KeptNode(node, types[node], reason) for node, reason in converted.kept.items())
    return ReducedPrecision(converted.model, len(lowered), kept_nodes, f"AutoCast of ModelOpt {converted.version}")


def outside_of(model: onnx.ModelProto, networks: tuple[str, ...]) -> list[str]:
    """Return the names of the operators outside of some modules; none where no module is named."""
    return [node.name for node in model.graph.node if networks and not node.name.startswith(networks)]


def quantize_to_int8(
    graph: Path,
    head: Head | None,
    calibration: Sequence[UInt8Array],
    good: Sequence[UInt8Array],
    method: Method,
    limits: Limits,
    rest: str,
    modelopt_python: Path | None,
    progress: Progress,
    networks: tuple[str, ...] = (),
) -> ReducedPrecision:
    """Return a graph in INT8, except for the fewest operators with which normal images keep their scores.

    Args:
        graph: The graph in FP32.
        head: The head of the bundle, for a graph that ends in patches; None for one that ends in the score.
        calibration: Prepared normal images for value ranges, each uint8 [H, W, 3].
        good: Prepared normal images whose scores must stay within the limits.
        method: How value ranges are chosen.
        limits: Its `score_error` is the largest relative change of a score.
        rest: Precision of all other operators, `fp32` or `fp16`.
        modelopt_python: See `find_python`; needed for `fp16`.
        progress: Called with each step.
        networks: As of `reduce_to_fp16`.

    Raises:
        ArgumentError: If ModelOpt is needed and not installed.
        GateError: If no operator can be quantized within the limits.
    """
    # First, although it is used last: without ModelOpt the minutes in between would be lost.
    python = find_python(modelopt_python) if rest == "fp16" else None
    quantiser = Quantiser(
        graph, calibration, method, lambda done, total: progress("Value ranges", done, total), networks
    )
    if not quantiser.operators:
        raise GateError("int8: expected operators that can be quantised, got none in this network. Export without.")
    sensitivities = quantiser.sensitivities(
        calibration[:_SENSITIVITY], lambda done, total: progress("Sensitivity", done, total)
    )
    exact = _scores(onnx.load(graph), head, good)

    # By scores, because decisions are made on them, and image by image: a mean would hide one that becomes a false
    # reject.
    def is_good(operators: list[str]) -> bool:
        moved = np.abs(_scores(quantiser.quantise(operators), head, good) - exact)
        return bool((moved <= limits.score_error * np.maximum(exact, 1e-12)).all())

    progress("Choosing operators", 0, 1)
    chosen, tries = fewest_kept(sensitivities, is_good)
    progress("Choosing operators", 1, 1)
    if not chosen:
        raise GateError(
            f"int8: expected operators whose INT8 keeps the scores of normal images within {limits.score_error:.1%}, "
            f"got none after {tries} tries. Export without it, or allow more."
        )
    model = quantiser.quantise(chosen)
    description = f"explicit Q/DQ, symmetric, weights per channel, ranges by {method}"
    if python is not None:
        # INT8 first, because the conversion to FP16 leaves Q/DQ nodes and their FP32 scales as they are.
        quantised = graph.with_name(f"{graph.stem}.quantised.onnx")
        onnx.save(model, quantised)
        # Q/DQ nodes are inside of the networks by their place, whatever their names.
        outside = outside_of(onnx.load(graph, load_external_data=False), networks)
        converted = to_fp16(quantised, calibration[:FP16_IMAGES], python, chosen, outside)
        model, description = converted.model, f"{description}; the rest in FP16 by ModelOpt {converted.version}"
    kept_nodes = tuple(
        KeptNode(
            node,
            quantiser.operators[node],
            f"quantised alone it moves the {'map' if head is None else 'patches'} by {value:.2%}",
        )
        for node, value in sensitivities.items()
        if node not in set(chosen)
    )
    return ReducedPrecision(model, len(chosen), kept_nodes, description)


def _scores(model: onnx.ModelProto, head: Head | None, images: Sequence[UInt8Array]) -> npt.NDArray[np.float32]:
    onnxruntime = import_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    if head is None:
        return np.concatenate([session.run(["score"], {name: image[None]})[0] for image in images])
    return np.concatenate([head(session.run(["patches"], {name: image[None]})[0])[1] for image in images])
