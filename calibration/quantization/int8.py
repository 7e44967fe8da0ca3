"""INT8 quantization by explicit Q/DQ nodes: ranges from normal images, weights per channel, corrected biases.

Everything is symmetric, as TensorRT requires of explicit quantization, and biases stay in FP32. The graph keeps its
inputs and outputs; what follows it (the scoring head) is not touched. ONNX Runtime's calibrator finds the ranges.
"""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import onnx

from flawscope.arrays import UInt8Array
from flawscope.calibration.extras import require
from flawscope.calibration.quantization.bias_correction import channel_means, correct_biases, correctable
from flawscope.calibration.quantization.gate_limits import METHODS, Method
from flawscope.calibration.quantization.qdq import OPERATORS, insert_qdq, joined_tensors
from flawscope.errors import ArgumentError
from flawscope.files import temporary_folder

_RESAMPLING = ("alignment/", "backbone.resizing.")
"""Modules whose products resample feature stages, or images: their matrices say places and are no weights."""

_CHUNK = 4
"""Images whose activations are held at a time: all of them together would take gigabytes."""

BIAS_IMAGES = 16
"""Images on which biases are corrected; the values between two operators are held for all of them."""


class Quantiser:
    """A graph with the value ranges of its tensors.

    Args:
        graph: ONNX file with one input, uint8 [N, H, W, 3].
        images: Prepared normal images, each uint8 [H, W, 3].
        method: How a range is found from a tensor's histogram: `entropy` (least divergence) or `percentile` (99.999).
        progress: Told how many images are done.
        networks: Modules whose operators may be quantised, as their names begin; empty for all.

    Attributes:
        operators: Name of every operator that can be quantised -> its type; those that resample cannot, nor can those
            that take joined tensors, see `joined_tensors`.

    Raises:
        ArgumentError: If there is no image or the method is not known.
        MissingExtra: If ONNX Runtime's calibrator is not there.
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
        constants = {tensor.name for tensor in model.graph.initializer}
        joined = joined_tensors(model)
        # A product of two tensors that both vary is attention's, not a layer's: it has no weight.
        self.operators = {
            node.name: node.op_type
            for node in model.graph.node
            if node.op_type in OPERATORS
            and any(name in constants for name in node.input[1:2])
            and not node.name.startswith(_RESAMPLING)
            and node.input[0] not in joined
            and (not networks or node.name.startswith(networks))
        }
        # ONNX Runtime would write its augmented graph into the working folder.
        with temporary_folder() as folder:
            ranges = self._find_ranges(graph, folder, images, method, progress)
        inputs = {node.input[0] for node in model.graph.node if node.name in self.operators}
        self._largest = {name: _largest(ranges[name]) for name in inputs}
        self._bias_images = [{self._input: image[None]} for image in images[:BIAS_IMAGES]]
        self._means = channel_means(model, correctable(model, list(self.operators)), self._bias_images)

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
        """Return the graph with these operators in INT8 and all others as they were.

        Raises:
            ArgumentError: If one of them cannot be quantised.
        """
        if unknown := sorted(set(operators) - set(self.operators)):
            raise ArgumentError(f"operators: expected names of {self._graph.name}, got {unknown[0]!r}.")
        if not operators:
            return onnx.load(self._graph)
        quantised = insert_qdq(onnx.load(self._graph), set(operators), self._largest)
        return correct_biases(quantised, correctable(quantised, operators), self._means, self._bias_images)


def _largest(measured: Any) -> float:
    """Return the end of a range as ONNX Runtime gives it, lowest and highest value."""
    return max(abs(float(end)) for end in measured.range_value)


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
