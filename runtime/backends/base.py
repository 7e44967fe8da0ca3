"""What a backend is, and how one is chosen. A backend that was asked for and is not there is an error."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from flawscope.errors import ArgumentError, BackendError

BACKENDS = ("auto", "cpu", "cuda")
"""Names that `choose_backend` takes."""


class Session(Protocol):
    """A graph made ready on one device.

    `infer` takes uint8 [N, H, W, 3] and returns one array per output name. The arrays are the caller's: a later call
    does not change them.
    """

    def infer(self, images: npt.NDArray[np.uint8]) -> dict[str, npt.NDArray[Any]]:
        """Run the graph on a batch.

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
    """Resolve a backend name; `auto` takes the fastest that works and says why.

    Raises:
        ArgumentError: If the name is not known.
        BackendError: If the backend was asked for by name and is not there.
    """
    from flawscope.runtime.backends.ort import cuda_problem, import_onnxruntime

    if name not in BACKENDS:
        raise ArgumentError(f"backend: expected one of {', '.join(BACKENDS)}, got {name!r}.")
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


def open_session(graph: Path, backend: str) -> Session:
    """Make an ONNX graph ready on a resolved backend.

    Raises:
        BackendError: If the backend cannot take the graph.
    """
    from flawscope.runtime.backends.ort import OrtSession

    return OrtSession(graph, backend)
