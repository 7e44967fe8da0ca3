"""Scorer of methods whose single graph, `score.onnx`, computes map and score."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy.typing as npt

from flawscope.arrays import Float32Array, UInt8Array
from flawscope.bundle import Bundle
from flawscope.errors import BundleError
from flawscope.runtime.backends import Session
from flawscope.runtime.scorers.scorer import ZERO_SHARE, Part, Reconstructor, ScorerOptions, check_graph_path


class GraphScorer:
    """One session with the outputs `anomaly_map` and `score`; see `Scorer` for the contract.

    Args:
        bundle: The opened bundle.
        graph: Name of the graph.
        session: Session of the graph.
        path: Value of `Scorer.path`.
        precision: Precision of the graph.
        least_score: Value of `Scorer.least_score`.
        computed_by: What computes maps and scores, in words.
    """

    reconstructor: Reconstructor | None = None

    def __init__(
        self,
        bundle: Bundle,
        graph: str,
        session: Session,
        path: str,
        precision: str,
        least_score: float,
        computed_by: str = "in the graph",
    ) -> None:
        self.path, self.least_score = path, least_score
        self._graph, self._model = graph, partial(bundle.model, graph, precision)
        self._session, self._computed_by = session, computed_by

    def score(self, images: UInt8Array) -> tuple[Float32Array, Float32Array]:
        """Return maps and scores."""
        outputs = self._session.infer(images)
        return outputs["anomaly_map"], outputs["score"]

    def outputs(self, images: UInt8Array) -> dict[str, npt.NDArray[Any]]:
        """Return the session's outputs."""
        return self._session.infer(images)

    def parts(self, images: UInt8Array) -> list[Part]:
        """Return the one graph."""
        return [Part(self._graph, self._model(), self._session, {"image": images})]

    def describe(self) -> str:
        """Return what computes maps and scores."""
        return self._computed_by

    def close(self) -> None:
        """Release the session."""
        self._session.close()


class GraphMethod:
    """Methods with `score.onnx` alone, whose head has the size of an ordinary score as `scale`."""

    def open(self, bundle: Bundle, options: ScorerOptions) -> GraphScorer:
        """Open the scorer of a bundle; see `open_scorer`."""
        path, least = check_graph_path(bundle, options.path), share_of_scale(bundle)
        session = options.session(bundle, "score")
        return GraphScorer(bundle, "score", session, path, options.precision, least)


def share_of_scale(bundle: Bundle) -> float:
    """Return `Scorer.least_score` of a head that has the size of an ordinary score as `scale`.

    Raises:
        BundleError: If the head has no scale.
    """
    # By attribute and not by kind: any head of the table with a scale may use this.
    scale = getattr(bundle.manifest.head, "scale", None)
    if not isinstance(scale, float):
        raise BundleError(f"{bundle.path}: expected a head with its scale, got none. Export the bundle again.")
    return ZERO_SHARE * scale


GRAPH = GraphMethod()
