"""Maps and scores of a graph that is no bundle yet, on the backends that it is to serve."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Sequence
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
    maps, scores = [], []
    for found in _results(model, head, images, backend):
        maps.append(np.asarray(found[0]) if with_maps else np.zeros((1, 0, 0), np.float32))
        scores.append(np.asarray(found[1]))
    return CandidateScores(np.concatenate(maps), np.concatenate(scores))


def first_moved(
    model: onnx.ModelProto,
    head: Head | None,
    images: Sequence[UInt8Array],
    backend: str,
    exact: CandidateScores,
    limit: float,
    order: Sequence[int],
) -> int | None:
    """Return the first image whose score moves by more than a limit, relative to the exact one; None if none does.

    No image is scored after it. A score that is no number has moved.

    Args:
        model: As of `score_candidate`.
        head: As of it.
        images: As of it.
        backend: As of it.
        exact: Scores of all the images in FP32, on the same backend.
        limit: Largest relative change.
        order: Indices of images, in the order in which they are asked.
    """
    results = _results(model, head, [images[index] for index in order], backend)
    with contextlib.closing(results):
        for index, (_, scores) in zip(order, results, strict=True):
            one = CandidateScores(exact.maps[:0], np.asarray(scores))
            if not one.score_changes(CandidateScores(exact.maps[:0], exact.scores[index : index + 1]))[0] <= limit:
                return index
    return None


def _results(
    model: onnx.ModelProto, head: Head | None, images: Sequence[UInt8Array], backend: str
) -> Generator[tuple[Any, npt.NDArray[np.float32]], None, None]:
    """Yield maps [1, H, W] and scores [1] of one image after the other."""
    session = _open(OnnxModel("candidate.onnx", model.SerializeToString(), {}), backend)
    try:
        for image in images:
            outputs = session.infer(image[None])
            yield (outputs["anomaly_map"], outputs["score"]) if head is None else head(outputs["patches"])
    finally:
        session.close()


def _open(model: OnnxModel, backend: str) -> Session:
    if backend == "openvino":
        from flawscope.runtime.backends.openvino import OpenvinoSession  # imported on use: it may not be installed
        from flawscope.runtime.backends.openvino_graph import Place

        return OpenvinoSession(model, Place(backend, "CPU", "int8"))
    return OrtSession(model, backend)


def _size(values: npt.NDArray[Any]) -> float:
    # float64: a sum of squares over millions of values loses digits in float32.
    return float(np.sqrt(np.mean(values.astype(np.float64) ** 2)))
