"""What a backend is, and how one is chosen. A backend that was asked for and is not there is an error."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from flawscope.bundle import Bundle
from flawscope.errors import ArgumentError, BackendError

BACKENDS = ("auto", "cpu", "cuda", "tensorrt")
"""Names that `choose_backend` takes."""


class Session(Protocol):
    """A graph made ready on one device.

    `infer` takes uint8 [N, H, W, 3] for the graph's only input, `run` an array for each input by name, all with the
    same first dimension. Both return one array per output name. The arrays are the caller's: a later call does not
    change them.

    Attributes:
        outputs: Names of what `infer` returns.
    """

    outputs: tuple[str, ...]

    def infer(self, images: npt.NDArray[np.uint8]) -> dict[str, npt.NDArray[Any]]:
        """Run the graph on a batch.

        Raises:
            DeviceError: If the device fails.
        """

    def run(self, inputs: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """Run the graph on several inputs.

        Raises:
            DeviceError: If the device fails.
        """

    def close(self) -> None:
        """Release the device's memory."""


@dataclass(frozen=True)
class Choice:
    """The backend that was taken, and why."""

    name: str
    reason: str


def choose_backend(name: str) -> Choice:
    """Resolve a backend name; `auto` takes CUDA where ONNX Runtime has it, else the CPU, and says why.

    It never takes `tensorrt`, which may have to build an engine first: that takes minutes, and somebody's word.

    Raises:
        ArgumentError: If the name is not known.
        BackendError: If the backend was asked for by name and is not there.
    """
    from flawscope.runtime.backends.ort import cuda_problem, import_onnxruntime

    if name not in BACKENDS:
        raise ArgumentError(f"backend: expected one of {', '.join(BACKENDS)}, got {name!r}.")
    if name == "tensorrt":
        from flawscope.runtime.scorers.engine_session import tensorrt_problem

        if problem := tensorrt_problem():
            raise BackendError(
                f"backend tensorrt: is not there: {problem} There is no fall-back; use --backend cpu or auto."
            )
        return Choice("tensorrt", "asked for")
    import_onnxruntime()
    if name == "cpu":
        return Choice("cpu", "asked for")
    problem = cuda_problem()
    if name == "cuda":
        if problem:
            raise BackendError(
                f"backend cuda: is not there: {problem} There is no fall-back; use --backend cpu or auto."
            )
        return Choice("cuda", "asked for")
    if problem:
        return Choice("cpu", f"auto: no CUDA: {problem}")
    return Choice("cuda", "auto: ONNX Runtime offers CUDA")


def open_session(bundle: Bundle, graph: str, precision: str, backend: str) -> Session:
    """Make a graph of a bundle ready on a resolved backend.

    Args:
        bundle: The opened bundle.
        graph: Name of the graph, `features` or `score`. With `tensorrt` and CUDA kernels in this installation the bank
            joins `features` on the device, and the session gives `anomaly_map` and `score`.
        precision: Precision of the graph.
        backend: Name of a backend, not `auto`.

    Raises:
        ArgumentError: If the bundle lacks the precision.
        BackendError: If the backend cannot take the graph.
    """
    if backend == "tensorrt":
        from flawscope.runtime.scorers.engine_session import open_engine

        return open_engine(bundle, graph, precision)
    from flawscope.runtime.backends.ort import OrtSession

    return OrtSession(bundle.graph(graph, precision), backend)


def open_backbone(bundle: Bundle, precision: str, backend: str) -> Session:
    """Make the features of a bundle ready without any bank: what everything else is measured against."""
    if backend == "tensorrt":
        from flawscope.runtime.scorers.engine_session import open_engine

        return open_engine(bundle, "features", precision, join_bank=False)
    return open_session(bundle, "features", precision, backend)
