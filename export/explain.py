"""Parity bisection: finds the first tensor of a graph on which two implementations differ.

A gate says that scores differ; this says where it begins, by the name of the layer. One tensor at a time becomes an
output of both graphs, so whatever the runtime fuses elsewhere stays fused, and halving takes log₂(n) such tensors.
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
"""Default by precision of the candidate: largest root mean square difference of a tensor, relative to the tensor's."""

_FOLDER = "session.model_external_initializers_file_folder_path"
_FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)


class Side(Protocol):
    """One of two ways to compute the same tensors.

    Attributes:
        name: What it is, in words.
        tensors: Names of the tensors that it can show, in the order in which they are computed.
    """

    name: str
    tensors: tuple[str, ...]

    def values(self, tensor: str, images: Sequence[UInt8Array]) -> npt.NDArray[np.float64]:
        """Return a tensor for these images, float64 [N, …]."""


@dataclass(frozen=True)
class Probe:
    """How far two sides are apart in one tensor.

    Attributes:
        tensor: Its name.
        operator: What makes it.
        layer: Module of the network that it belongs to.
        shape: Its shape for one image.
        difference: Root mean square of the difference, relative to the tensor's own; infinite where only one side is
            finite.
        largest: Index of the element that is furthest apart, and its two values.
    """

    tensor: str
    operator: str
    layer: str
    shape: tuple[int, ...]
    difference: float
    largest: tuple[tuple[int, ...], float, float]


@dataclass(frozen=True)
class Explanation:
    """Where two sides part.

    Attributes:
        reference: What was taken as true.
        candidate: What was compared with it.
        tolerance: Largest difference that counts as agreement.
        images: Number of images.
        compared: Number of tensors that both sides have.
        end: The last of them.
        first: The first that is outside, or None where the end is within.
        before: The one before it, which is within, or None where the very first is outside.
        probes: All that were looked at, in the order of the graph.
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
        name: What it is, in words.
        backend: `cpu`, `cuda`, or `plain`: the CPU without any optimisation of the graph.

    Raises:
        BackendError: If the backend is not there.
    """

    def __init__(self, graph: Path, name: str, backend: str) -> None:
        self.name = name
        self._folder = graph.parent
        self._model = onnx.load(graph, load_external_data=False)
        self._backend = backend
        if backend == "cuda" and (problem := cuda_problem()):
            raise BackendError(f"backend cuda: is not there: {problem}")
        inferred = onnx.shape_inference.infer_shapes(self._model).graph
        self._types = {
            value.name: value.type.tensor_type.elem_type for value in (*inferred.value_info, *inferred.output)
        }
        made = [(name, node) for node in self._model.graph.node for name in node.output if name]
        self.nodes = dict(made)
        self.tensors = tuple(name for name, _ in made if self._types.get(name) in _FLOATS)

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
        options.add_session_config_entry(_FOLDER, str(self._folder))
        providers = session_providers("cpu" if self._backend == "plain" else self._backend)
        if self._backend == "plain":
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        try:
            session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=providers)
            name = session.get_inputs()[0].name
            found = [session.run([tensor], {name: image[None]})[0] for image in images]
        except Exception as err:
            # ONNX Runtime's exceptions share no base class of their own.
            raise DeviceError(f"{self.name}: could not compute {tensor}: {str(err).splitlines()[0]}") from err
        return np.stack(found).astype(np.float64)


def explain(
    reference: Side,
    candidate: Side,
    images: Sequence[UInt8Array],
    tolerance: float,
    nodes: dict[str, onnx.NodeProto],
    progress: Progress = no_progress,
) -> Explanation:
    """Find the first tensor in which a candidate leaves the tolerance.

    Args:
        reference: Taken as true.
        candidate: Compared with it.
        images: Prepared images, each uint8 [H, W, 3].
        tolerance: Largest difference that counts as agreement, see `Probe.difference`.
        nodes: What makes each tensor of the candidate's graph.
        progress: Told how many tensors were compared, of about how many.

    Raises:
        ArgumentError: If there is nothing to compare, or the tolerance is no positive number.
    """
    if not tolerance > 0:
        raise ArgumentError(f"tolerance: expected more than 0, got {tolerance}.")
    if not images:
        raise ArgumentError("explain: expected at least one image, got none.")
    known = frozenset(reference.tensors)
    names = [name for name in candidate.tensors if name in known]
    if not names:
        raise ArgumentError(
            f"explain: expected tensors that both have, got none in {reference.name} and {candidate.name}."
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
    """Return an index that is outside while the one before it is not, by halving; None if the last is inside.

    Where being outside never ends once it has begun this is the first index that is outside.
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
    equal = (expected == got) | (np.isnan(expected) & np.isnan(got))
    with np.errstate(invalid="ignore"):
        apart = np.where(equal, 0.0, np.abs(got - expected))
    if np.isnan(apart).any() or np.isinf(apart).any():
        apart = np.where(np.isfinite(apart), 0.0, np.inf)
        relative = np.inf
    else:
        size = np.sqrt(np.mean(np.square(expected[np.isfinite(expected)]))) if expected.size else 0.0
        far = np.sqrt(np.mean(np.square(apart))) if apart.size else 0.0
        relative = float(far / size) if size > 0 else (0.0 if far == 0 else np.inf)
    place = np.unravel_index(int(apart.argmax()), apart.shape) if apart.size else ()
    values = (float(expected[place]), float(got[place])) if apart.size else (0.0, 0.0)
    # The first axis counts the images, the second is the batch of one.
    return Probe(
        name, operator, layer, expected.shape[2:], float(relative), (tuple(int(i) for i in place[2:]), *values)
    )
