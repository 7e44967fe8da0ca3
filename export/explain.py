"""Parity bisection: finds the first tensor of a graph on which two implementations differ, and its layer.

Only one tensor at a time becomes an output of the graphs: every further output would keep the runtime from fusing
operators there, and so could hide the difference. Bisection compares about log₂(n) tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import onnx

from flawscope.arrays import UInt8Array
from flawscope.errors import ArgumentError, BackendError, DeviceError
from flawscope.progress import Progress, no_progress
from flawscope.runtime.backends.ort import cuda_problem, import_onnxruntime, session_options, session_providers

TOLERANCES = {"fp32": 1e-4, "fp16": 1e-2, "int8": 1e-1}
"""Default tolerance by precision of the candidate: RMS of a tensor's difference, relative to the RMS of the tensor."""

_EXTERNAL_DATA_FOLDER = "session.model_external_initializers_file_folder_path"
_FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)


class Side(Protocol):
    """One of two implementations that compute the same tensors.

    Attributes:
        name: Its name for people.
        tensors: Names of the tensors that it can return, in the order of computation.
    """

    name: str
    tensors: tuple[str, ...]

    def values(self, tensor: str, images: Sequence[UInt8Array]) -> npt.NDArray[np.float64]:
        """Return a tensor for these images, float64 [N, …]."""


@dataclass(frozen=True)
class Probe:
    """Difference of two sides in one tensor.

    Attributes:
        tensor: Its name.
        operator: Operator that computes it.
        layer: Module of the network that it belongs to.
        shape: Its shape for one image.
        difference: RMS of the difference, relative to the RMS of the reference; infinite where only one side is finite.
        largest: Index of the element with the largest difference, and its two values.
    """

    tensor: str
    operator: str
    layer: str
    shape: tuple[int, ...]
    difference: float
    largest: tuple[tuple[int, ...], float, float]


@dataclass(frozen=True)
class Explanation:
    """Result of a bisection.

    Attributes:
        reference: Name of the side that was taken as true.
        candidate: Name of the side that was compared with it.
        tolerance: Largest difference that counts as agreement.
        images: Number of images.
        compared: Number of tensors that both sides have.
        end: Probe of the last of them.
        first: The first one outside the tolerance, or None where the last is within.
        before: The one before it, which is within, or None where the very first is outside.
        probes: All probes, in the order of the graph.
    """

    reference: str
    candidate: str
    tolerance: float
    images: int
    compared: int
    end: Probe
    first: Probe | None
    before: Probe | None
    probes: tuple[Probe, ...]


class GraphSide:
    """A graph in ONNX Runtime.

    Args:
        graph: ONNX file.
        name: Its name for people.
        backend: `cpu`, `cuda`, or `plain`: the CPU without graph optimisation.

    Raises:
        BackendError: If the backend is not available.
    """

    def __init__(self, graph: Path, name: str, backend: str) -> None:
        self.name = name
        self._folder = graph.parent
        # Without weights: the model is copied and serialized anew for every tensor that is compared.
        self._model = onnx.load(graph, load_external_data=False)
        self._backend = backend
        if backend == "cuda" and (problem := cuda_problem()):
            raise BackendError(f"backend cuda: is not there: {problem}")
        inferred = onnx.shape_inference.infer_shapes(self._model).graph
        self._types = {
            value.name: value.type.tensor_type.elem_type for value in (*inferred.value_info, *inferred.output)
        }
        outputs = [(name, node) for node in self._model.graph.node for name in node.output if name]
        self.nodes = dict(outputs)
        # Indices and shapes are left out: one that differs changes the floats that follow.
        self.tensors = tuple(name for name, _ in outputs if self._types.get(name) in _FLOATS)

    def values(self, tensor: str, images: Sequence[UInt8Array]) -> npt.NDArray[np.float64]:
        """Return a tensor for these images, float64 [N, …].

        Raises:
            DeviceError: If ONNX Runtime cannot run the graph.
        """
        model = onnx.ModelProto()
        model.CopyFrom(self._model)
        del model.graph.output[:]
        model.graph.output.append(onnx.helper.make_tensor_value_info(tensor, self._types[tensor], None))
        onnxruntime = import_onnxruntime()
        options = session_options()
        # The model is passed as bytes, so the session has to be told where its external data is.
        options.add_session_config_entry(_EXTERNAL_DATA_FOLDER, str(self._folder))
        providers = session_providers("cpu" if self._backend == "plain" else self._backend)
        if self._backend == "plain":
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        try:
            session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=providers)
            name = session.get_inputs()[0].name
            # One image at a time: the graph of a run is exported for a batch of one.
            outputs = [session.run([tensor], {name: image[None]})[0] for image in images]
        except Exception as err:
            # ONNX Runtime's exceptions share no base class of their own.
            raise DeviceError(f"{self.name}: could not compute {tensor}: {str(err).splitlines()[0]}") from err
        return np.stack(outputs).astype(np.float64)


def explain(
    reference: Side,
    candidate: Side,
    images: Sequence[UInt8Array],
    tolerance: float,
    nodes: dict[str, onnx.NodeProto],
    progress: Progress = no_progress,
) -> Explanation:
    """Find the first tensor in which a candidate is outside the tolerance.

    Args:
        reference: Side that is taken as true.
        candidate: Side that is compared with it.
        images: Prepared images, each uint8 [H, W, 3].
        tolerance: Largest `Probe.difference` that counts as agreement.
        nodes: Tensor → node of the candidate's graph that computes it.
        progress: Told how many tensors were compared, of about how many.

    Raises:
        ArgumentError: If there is nothing to compare, or the tolerance is no positive number.
    """
    # Written as `not >`, so that NaN is refused too.
    if not tolerance > 0:
        raise ArgumentError(f"tolerance: expected more than 0, got {tolerance}.")
    if not images:
        raise ArgumentError("explain: expected at least one image, got none.")
    of_reference = frozenset(reference.tensors)
    names = [name for name in candidate.tensors if name in of_reference]
    if not names:
        raise ArgumentError(
            f"explain: expected tensors that both have, got none in common of {reference.name} and {candidate.name}."
        )
    expected_probes = 2 + len(names).bit_length()
    probes: dict[int, Probe] = {}

    def difference(index: int) -> float:
        if index not in probes:
            name = names[index]
            pair = reference.values(name, images), candidate.values(name, images)
            probes[index] = _probe(name, nodes.get(name), *pair)
            progress("Comparing tensors", len(probes), max(expected_probes, len(probes)))
        return probes[index].difference

    # Also probes the last tensor, which `end` below relies on.
    first = first_outside(len(names), lambda index: difference(index) > tolerance)
    return Explanation(
        reference=reference.name,
        candidate=candidate.name,
        tolerance=tolerance,
        images=len(images),
        compared=len(names),
        end=probes[len(names) - 1],
        first=None if first is None else probes[first],
        before=probes[first - 1] if first else None,
        probes=tuple(probes[index] for index in sorted(probes)),
    )


def first_outside(count: int, is_outside: Callable[[int], bool]) -> int | None:
    """Return an index that is outside while the one before it is not, by bisection; None if the last is inside.

    If every index after the first outside one is outside as well, this is the first.
    """
    if count == 0 or not is_outside(count - 1):
        return None
    low, high = -1, count - 1  # `high` is outside; `low` is inside, or before the first
    while high - low > 1:
        middle = (low + high) // 2
        if is_outside(middle):
            high = middle
        else:
            low = middle
    return high


def _probe(
    name: str, node: onnx.NodeProto | None, expected: npt.NDArray[np.float64], got: npt.NDArray[np.float64]
) -> Probe:
    layer = "" if node is None else node.name.rpartition("/")[0]
    operator = "" if node is None else node.op_type
    if expected.shape != got.shape:
        raise ArgumentError(f"explain: expected {name} in shape {list(expected.shape)}, got {list(got.shape)}.")
    # Equal infinities and NaN on both sides count as agreement: their difference would be NaN.
    equal = (expected == got) | (np.isnan(expected) & np.isnan(got))
    with np.errstate(invalid="ignore"):
        distances = np.where(equal, 0.0, np.abs(got - expected))
    if np.isnan(distances).any() or np.isinf(distances).any():
        distances = np.where(np.isfinite(distances), 0.0, np.inf)
        relative = np.inf
    else:
        rms = np.sqrt(np.mean(np.square(expected[np.isfinite(expected)]))) if expected.size else 0.0
        rms_distance = np.sqrt(np.mean(np.square(distances))) if distances.size else 0.0
        relative = float(rms_distance / rms) if rms > 0 else (0.0 if rms_distance == 0 else np.inf)
    place = np.unravel_index(int(distances.argmax()), distances.shape) if distances.size else ()
    values = (float(expected[place]), float(got[place])) if distances.size else (0.0, 0.0)
    # The first axis counts the images, the second is the batch of one.
    return Probe(
        name, operator, layer, expected.shape[2:], float(relative), (tuple(int(i) for i in place[2:]), *values)
    )
