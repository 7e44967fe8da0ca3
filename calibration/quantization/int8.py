"""INT8 quantization by explicit Q/DQ nodes: ranges from normal images, weights per channel, choice of operators.

Everything is symmetric, as TensorRT requires of explicit quantization, and biases stay in FP32. The graph keeps its
inputs and outputs; what follows it (the scoring head) is not touched. ONNX Runtime's quantizer does the work.
"""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from flawscope.arrays import Float32Array, UInt8Array
from flawscope.calibration.extras import require
from flawscope.calibration.quantization.gate_limits import METHODS, Method
from flawscope.errors import ArgumentError
from flawscope.files import temporary_folder

OPERATORS = ("Conv", "Gemm", "MatMul")
"""Operators that are quantised: nearly all multiplications are in them."""

_RESAMPLING = ("alignment/", "backbone.resizing.")
"""Modules whose products resample feature stages, or images: their matrices say places and are no weights."""

_CHUNK = 4
"""Images whose activations are held at a time: all of them together would take gigabytes."""

# TensorRT takes zero points of 0 alone (symmetric). ONNX Runtime quantises biases to INT32 by default, for which
# TensorRT has no Q/DQ.
_OPTIONS = {"QuantizeBias": False, "ActivationSymmetric": True, "WeightSymmetric": True}


class Quantiser:
    """A graph with the value ranges of its tensors.

    Args:
        graph: ONNX file with one input, uint8 [N, H, W, 3].
        images: Prepared normal images, each uint8 [H, W, 3].
        method: How a range is found from a tensor's histogram: `entropy` (least divergence) or `percentile` (99.999).
        progress: Told how many images are done.
        networks: Modules whose operators may be quantised, as their names begin; empty for all.

    Attributes:
        operators: Name of every operator that can be quantised -> its type; those that resample cannot.

    Raises:
        ArgumentError: If there is no image or the method is not known.
        MissingExtra: If ONNX Runtime's quantiser is not there.
    """

    def __init__(
        self,
        graph: Path,
        images: Sequence[UInt8Array],
        method: Method = "percentile",
        progress: Callable[[int, int], None] | None = None,
        networks: tuple[str, ...] = (),
    ) -> None:
        if method not in METHODS:
            raise ArgumentError(f"method: expected one of {', '.join(METHODS)}, got {method!r}.")
        if not images:
            raise ArgumentError("calibration: expected at least one normal image, got none.")
        self._graph = graph
        model = onnx.load(graph)
        self._input = model.graph.input[0].name
        self._outputs = [output.name for output in model.graph.output]
        constants = {tensor.name for tensor in model.graph.initializer}
        # A product of two tensors that both vary is attention's, not a layer's: it has no weight.
        self.operators = {
            node.name: node.op_type
            for node in model.graph.node
            if node.op_type in OPERATORS
            and any(name in constants for name in node.input[1:2])
            and not node.name.startswith(_RESAMPLING)
            and (not networks or node.name.startswith(networks))
        }
        # ONNX Runtime would write its augmented graph into the working folder.
        with temporary_folder() as folder:
            self._ranges = self._find_ranges(graph, folder, images, method, progress)

    def _find_ranges(
        self,
        graph: Path,
        scratch: Path,
        images: Sequence[UInt8Array],
        method: Method,
        progress: Callable[[int, int], None] | None,
    ) -> Any:
        calibrate: Any = require("onnxruntime.quantization.calibrate", "onnxruntime", "quantising a graph")
        kinds = calibrate.CalibrationMethod
        with _quiet():
            calibrator = calibrate.create_calibrator(
                graph,
                list(OPERATORS),
                augmented_model_path=str(scratch / "augmented.onnx"),
                calibrate_method={"entropy": kinds.Entropy, "percentile": kinds.Percentile}[method],
                extra_options={"symmetric": True},
            )
        for start in range(0, len(images), _CHUNK):
            with _quiet():
                # Each call extends the histograms of earlier ones, whose bin width the first images set: another _CHUNK
                # or order of images gives slightly other ranges.
                calibrator.collect_data(_Reader(self._input, images[start : start + _CHUNK]))
            if progress is not None:
                progress(min(start + _CHUNK, len(images)), len(images))
        with _quiet():
            return calibrator.compute_data()

    def quantise(self, operators: Sequence[str]) -> onnx.ModelProto:
        """Return the graph with these operators in INT8 and all others as they were."""
        if unknown := sorted(set(operators) - set(self.operators)):
            raise ArgumentError(f"operators: expected names of {self._graph.name}, got {unknown[0]!r}.")
        if not operators:
            return onnx.load(self._graph)  # an empty list means "all of them" to the quantizer
        quantisation: Any = require("onnxruntime.quantization.qdq_quantizer", "onnxruntime", "quantising a graph")
        utilities: Any = require("onnxruntime.quantization.quant_utils", "onnxruntime", "quantising a graph")
        with _quiet():
            quantizer = quantisation.QDQQuantizer(
                utilities.load_model_with_shape_infer(self._graph),  # anew each time: the quantizer changes its model
                True,  # per channel
                False,  # the whole range of 8 bits
                utilities.QuantType.QInt8,
                utilities.QuantType.QInt8,
                self._ranges,
                list(operators),
                [],
                list(OPERATORS),
                extra_options=_OPTIONS,
            )
            quantizer.quantize_model()
            quantizer.model.topological_sort()  # the new nodes come last, and the checker reads in order
        model: onnx.ModelProto = quantizer.model.model
        model.producer_name = "flawscope"
        return model

    def sensitivities(
        self, images: Sequence[UInt8Array], progress: Callable[[int, int], None] | None = None
    ) -> dict[str, float]:
        """Return how far the output moves when one operator alone is quantised, the most sensitive first.

        Args:
            images: Prepared images, each uint8 [H, W, 3].
            progress: Told how many operators are done.

        Returns:
            Name -> root mean square of the change, relative to that of the output.
        """
        exact = self._run(onnx.load(self._graph), images)
        # float64: a sum of squares over millions of patch values loses digits in float32.
        size = float(np.sqrt(np.mean(exact.astype(np.float64) ** 2))) or 1.0
        changes = {}
        for done, name in enumerate(self.operators, 1):
            moved = self._run(self.quantise([name]), images).astype(np.float64) - exact
            changes[name] = float(np.sqrt(np.mean(moved**2))) / size
            if progress is not None:
                progress(done, len(self.operators))
        # By name among equals, so that the choice of operators does not depend on the order of nodes.
        return dict(sorted(changes.items(), key=lambda item: (-item[1], item[0])))

    def _run(self, model: onnx.ModelProto, images: Sequence[UInt8Array]) -> Float32Array:
        onnxruntime: Any = require("onnxruntime", "onnxruntime", "quantising a graph")
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # fatal: warnings about Q/DQ nodes would fill the terminal
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return np.concatenate([session.run(self._outputs[:1], {self._input: image[None]})[0] for image in images])


def fewest_kept(
    sensitivities: dict[str, float], is_good: Callable[[list[str]], bool], most_tries: int = 12
) -> tuple[list[str], int]:
    """Return the operators to quantise: all except the fewest of the most sensitive ones with which `is_good` holds.

    A bisection over how many stay in FP32, in log₂(n) tries. It assumes that more operators in FP32 never make the
    result worse; where that is wrong it may not find the fewest, but what it returns was tried and is good.

    Args:
        sensitivities: Name -> sensitivity, the most sensitive first.
        is_good: Whether the result with these operators quantised is good enough.
        most_tries: Most calls of `is_good`.

    Returns:
        Operators to quantise, empty if none can be, and how many tries it took.
    """
    names = list(sensitivities)
    low, high, tries = 0, len(names), 0  # keeping `high` is good: keeping all of them is the graph as it was
    while low < high and tries < most_tries:
        # First everything, because that is the usual result, and then takes one try instead of log₂(n).
        middle = 0 if tries == 0 else (low + high) // 2
        tries += 1
        if is_good(names[middle:]):
            high = middle
        else:
            low = middle + 1
    return names[high:], tries


class _Reader:
    """Calibration data reader of ONNX Runtime: gives one input after the other."""

    def __init__(self, name: str, images: Sequence[UInt8Array]) -> None:
        self._name = name
        self._images = iter(images)

    def get_next(self) -> dict[str, UInt8Array] | None:
        image = next(self._images, None)
        return None if image is None else {self._name: image[None]}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppress what the quantizer prints, and its advice on the root logger."""
    # The level is restored: the root logger belongs to the program that imports us.
    level = logging.root.level
    logging.root.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.root.setLevel(level)
