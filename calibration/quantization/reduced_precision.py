"""Reduced precision of a graph: conversion to FP16 or INT8, and which operators stay in FP32.

A detector with a memory bank has its features reduced, and the head follows in FP32. Of a detector that is one graph,
the networks in it are reduced, by the names of their modules; what turns their outputs into map and score stays in
FP32.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt
import onnx

from flawscope.arrays import UInt8Array
from flawscope.bundle import KeptNode
from flawscope.calibration.quantization.autocast import convert_graph, operators_in, to_fp16
from flawscope.calibration.quantization.candidate_scores import Head, first_moved, score_candidate
from flawscope.calibration.quantization.gate_limits import Limits, Method
from flawscope.calibration.quantization.int8 import Quantiser
from flawscope.calibration.quantization.modelopt import find_python
from flawscope.calibration.quantization.operator_choice import Budget, OperatorChoice, choose_operators
from flawscope.calibration.quantization.operator_costs import multiply_adds
from flawscope.calibration.quantization.qdq import OPERATORS
from flawscope.errors import GateError
from flawscope.progress import Progress

FP16_IMAGES = 16
"""Images from which the value ranges of FP16 are measured."""

_SENSITIVITY = 8
"""Normal images, which the detector has not learned, for the ranking of operators; each costs a pass over them."""


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
    backends: Sequence[str] = ("cpu",),
    minutes: float | None = None,
) -> ReducedPrecision:
    """Return a graph in INT8, except for operators in FP32 that let normal images keep their scores.

    Which they are: see `choose_operators`.

    Args:
        graph: The graph in FP32.
        head: The head of the bundle, for a graph that ends in patches; None for one that ends in the score.
        calibration: Prepared normal images for value ranges and biases, each uint8 [H, W, 3].
        good: Prepared normal images whose scores must stay within the limits.
        method: How value ranges are chosen.
        limits: Its `score_error` is the largest relative change of a score.
        rest: Precision of all other operators, `fp32` or `fp16`.
        modelopt_python: See `find_python`; needed for `fp16`.
        progress: Called with each step.
        networks: As of `reduce_to_fp16`.
        backends: Where scores must stay within the limits: one graph for all of them.
        minutes: Budget of the search, which begins when value ranges are known; None for as long as it takes.

    Raises:
        ArgumentError: If ModelOpt is needed and not installed, or the budget is no time.
        GateError: If no operator can be quantized within the limits.
    """
    Budget(minutes)  # refused before the minutes of value ranges, which it is not for
    # First, although it is used last: without ModelOpt the minutes in between would be lost.
    python = find_python(modelopt_python) if rest == "fp16" else None
    quantiser = Quantiser(
        graph, calibration, method, lambda done, total: progress("Value ranges", done, total), networks
    )
    if not quantiser.operators:
        raise GateError("int8: expected operators that can be quantised, got none in this network. Export without.")
    choice = _choose(quantiser, graph, head, good, limits, backends, Budget(minutes), progress)
    if not choice.quantised:
        ended, more = (" before the budget ended", ", or more time (--int8-budget)") if choice.ended_early else ("", "")
        raise GateError(
            f"int8: expected operators whose INT8 keeps the scores of normal images within {limits.score_error:.1%} on "
            f"{' and '.join(backends)}, got none after {choice.tries} tries{ended}. Export without it, or allow "
            f"more{more}."
        )
    model = quantiser.quantise(choice.quantised)
    description = (
        f"explicit Q/DQ, symmetric, weights per channel, biases corrected, ranges by {method}; "
        f"{_described(choice, backends)}"
    )
    if python is not None:
        model, description = _rest_in_fp16(
            graph, model, calibration[:FP16_IMAGES], python, choice.quantised, networks, description
        )
    return ReducedPrecision(model, len(choice.quantised), _kept(quantiser, choice), description)


def _choose(
    quantiser: Quantiser,
    graph: Path,
    head: Head | None,
    good: Sequence[UInt8Array],
    limits: Limits,
    backends: Sequence[str],
    budget: Budget,
    progress: Progress,
) -> OperatorChoice:
    """Search for the operators that can be quantised on all backends."""
    source = onnx.load(graph)
    exact = {backend: score_candidate(source, head, good, backend, with_maps=False) for backend in backends}
    order = list(range(len(good)))

    # By scores, because decisions are made on them, and image by image: a mean would hide one that becomes a false
    # reject. Each backend against itself in FP32.
    def is_good(operators: list[str]) -> bool:
        candidate = quantiser.quantise(operators)
        for backend in backends:
            moved = first_moved(candidate, head, good, backend, exact[backend], limits.score_error, order)
            if moved is not None:
                # It is asked first from now on: most sets that fail, fail on the same few images.
                order.remove(moved)
                order.insert(0, moved)
                return False
        return True

    some = good[:_SENSITIVITY]
    reference = score_candidate(source, head, some, backends[0])
    return choose_operators(
        multiply_adds(source, quantiser.operators),
        is_good,
        lambda name: score_candidate(quantiser.quantise([name]), head, some, backends[0]).change(reference),
        budget.is_spent,
        lambda task, done, total: progress(f"INT8: {task}", done, total),
    )


def _described(choice: OperatorChoice, backends: Sequence[str]) -> str:
    """Return how the operators were chosen, in words, and what the budget left untried."""
    text = (
        f"operators with {choice.share:.0%} of the multiply-adds, chosen for {' and '.join(backends)} in "
        f"{choice.tries} {'try' if choice.tries == 1 else 'tries'}"
    )
    if not choice.ended_early:
        return text
    unknown = sum(math.isinf(value) for value in choice.sensitivities.values())
    left = f"; {unknown} operators stay in FP32 that it had no time to try alone" if unknown else ""
    return f"{text}, until the budget ended{left}"


def _kept(quantiser: Quantiser, choice: OperatorChoice) -> tuple[KeptNode, ...]:
    """Return the operators that stay in FP32, with the reason of each."""
    return tuple(
        KeptNode(
            node,
            quantiser.operators[node],
            f"quantised alone it moves scores or maps of normal images by {value:.2%}"
            if math.isfinite(value)
            else "no group with it kept the scores, and the budget ended before it was measured alone",
        )
        for node, value in choice.sensitivities.items()
        if node not in set(choice.quantised)
    )


def _rest_in_fp16(
    graph: Path,
    model: onnx.ModelProto,
    images: Sequence[UInt8Array],
    python: Path,
    quantised: Sequence[str],
    networks: tuple[str, ...],
    description: str,
) -> tuple[onnx.ModelProto, str]:
    """Convert what is not in INT8 to FP16."""
    # INT8 first, because the conversion to FP16 leaves Q/DQ nodes and their FP32 scales as they are.
    path = graph.with_name(f"{graph.stem}.quantised.onnx")
    onnx.save(model, path)
    # Q/DQ nodes are inside of the networks by their place, whatever their names.
    outside = outside_of(onnx.load(graph, load_external_data=False), networks)
    converted = to_fp16(path, images, python, quantised, outside)
    return converted.model, f"{description}; the rest in FP16 by ModelOpt {converted.version}"
