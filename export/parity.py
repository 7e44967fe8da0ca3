"""The parity gate: torch, `score.onnx` and the native path must agree on real images before a bundle is written."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from flawscope.arrays import Float32Array
from flawscope.bundle import Parity
from flawscope.calibration.evaluation.metrics import spearman
from flawscope.errors import GateError

SCORE_LIMIT = 1e-3
"""Largest accepted relative difference of a score. float32 explains less: measured differences are near 1e-6."""
MAP_LIMIT = 1e-3
"""The same for a map, relative to its largest value."""
SPEARMAN_LIMIT = 0.999
"""Smallest accepted rank correlation of the scores."""
ROUNDING = 1e-5
"""Relative difference of a score that the order of float32 additions alone may cause."""


def measure_parity(
    reference: str,
    candidate: str,
    expected: tuple[Float32Array, Float32Array],
    measured: tuple[Float32Array, Float32Array],
    least: float = 0.0,
) -> Parity:
    """Compare maps [N, H, W] and scores [N] of two implementations.

    Args:
        reference: Name of the implementation that is taken as true.
        candidate: Name of the one that is compared with it.
        expected: Maps and scores of the reference.
        measured: Maps and scores of the candidate.
        least: Errors are relative to the reference value, but at least to this.
    """
    maps, scores = expected
    other_maps, other_scores = measured
    spread = float(np.abs(scores).max()) or 1.0
    # A relative error means nothing where the reference score is (almost) zero.
    relative = np.abs(other_scores - scores) / np.maximum(np.abs(scores), max(least, 1e-6 * spread))
    return Parity(
        reference=reference,
        candidate=candidate,
        images=len(scores),
        score_max_relative=float(relative.max()),
        map_max_relative=float(np.abs(other_maps - maps).max() / (max(float(np.abs(maps).max()), least) or 1.0)),
        # Images with almost the same score swap ranks by rounding alone; differences within ROUNDING count as none.
        score_spearman=spearman(scores, np.where(relative <= ROUNDING, scores, other_scores), "export"),
    )


def check_parity(rows: Sequence[Parity]) -> None:
    """Raise GateError if a row is outside the limits, or not a number."""
    for row in rows:
        rank = row.score_spearman
        # Written as `not (a <= b ...)`, so that NaN is refused: no comparison with it is true.
        if not (
            row.score_max_relative <= SCORE_LIMIT
            and row.map_max_relative <= MAP_LIMIT
            and (rank is None or rank >= SPEARMAN_LIMIT)
        ):
            raise GateError(
                f"parity: {row.candidate} against {row.reference} on {row.images} images: expected relative errors "
                f"up to {SCORE_LIMIT:g} (scores), {MAP_LIMIT:g} (maps) and a rank correlation from {SPEARMAN_LIMIT}, "
                f"got {row.score_max_relative:.2g}, {row.map_max_relative:.2g} and "
                f"{'none' if rank is None else f'{rank:.4f}'}. No bundle was written."
            )
