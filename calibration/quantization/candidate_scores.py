"""Maps and scores of a graph that is no bundle yet, on the backends that it is to serve."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from flawscope.arrays import UInt8Array
from flawscope.bundle import OnnxModel
from flawscope.runtime.backends import Session
from flawscope.runtime.backends.ort import OrtSession

Head = Callable[[npt.NDArray[np.float32]], tuple[Any, npt.NDArray[np.float32]]]
"""patches float32 [N, P, D] → maps float32 [N, H, W], scores float32 [N]."""


@dataclass(frozen=True)
class CandidateScores:
    """Maps and scores of some images.

    Attributes:
        maps: float32 [N, H, W], [N, 0, 0] where they were not kept.
        scores: float32 [N].
    """

    maps: npt.NDArray[np.float32]
    scores: npt.NDArray[np.float32]

    def score_changes(self, exact: CandidateScores) -> npt.NDArray[np.float64]:
        """Return the change of each score, relative to the exact one: float64 [N]."""
        before = exact.scores.astype(np.float64)
        return np.abs(self.scores - before) / np.maximum(np.abs(before), 1e-12)

    def change(self, exact: CandidateScores) -> float:
        """Return how far scores and maps moved: the larger of both, root mean square, relative to the exact ones."""
        return max(
            float(np.sqrt(np.mean(self.score_changes(exact) ** 2))),
            _size(self.maps.astype(np.float64) - exact.maps) / (_size(exact.maps) or 1.0),
        )


def score_candidate(
    model: onnx.ModelProto,
    head: Head | None,
    images: Sequence[UInt8Array],
    backend: str = "cpu",
    with_maps: bool = True,
) -> CandidateScores:
    """Run a graph on images.

    Args:
        model: The graph; its weights are within.
        head: What makes maps and scores of its `patches`; None for a graph that ends in `anomaly_map` and `score`.
        images: Prepared images, each uint8 [H, W, 3].
        backend: `cpu` or `openvino`.
        with_maps: False where only scores are compared: maps of many large images take gigabytes.

    Raises:
        BackendError: If the backend cannot run the graph.
    """
    session = _open(OnnxModel("candidate.onnx", model.SerializeToString(), {}), backend)
    maps, scores = [], []
    try:
        for image in images:
            outputs = session.infer(image[None])
            found = (outputs["anomaly_map"], outputs["score"]) if head is None else head(outputs["patches"])
            maps.append(np.asarray(found[0]) if with_maps else np.zeros((1, 0, 0), np.float32))
            scores.append(np.asarray(found[1]))
    finally:
        session.close()
    return CandidateScores(np.concatenate(maps), np.concatenate(scores))


def _open(model: OnnxModel, backend: str) -> Session:
    if backend == "openvino":
        from flawscope.runtime.backends.openvino import OpenvinoSession  # imported on use: it may not be installed
        from flawscope.runtime.backends.openvino_graph import Place

        return OpenvinoSession(model, Place(backend, "CPU", "int8"))
    return OrtSession(model, backend)


def _size(values: npt.NDArray[Any]) -> float:
    # float64: a sum of squares over millions of values loses digits in float32.
    return float(np.sqrt(np.mean(values.astype(np.float64) ** 2)))
