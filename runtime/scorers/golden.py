"""The check at load: golden images must reproduce the scores that were measured at export.

It finds what no hash can: another resize in OpenCV, a driver or a processor that computes something else.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from flawscope.arrays import Float32Array
from flawscope.bundle import Bundle, Golden
from flawscope.errors import BundleError
from flawscope.imaging.images import decode_image, prepare
from flawscope.runtime.backends.table import golden_tolerance
from flawscope.runtime.scorers.scorer import Scorer, ScorerOptions


def check_golden(bundle: Bundle, scorer: Scorer, options: ScorerOptions) -> None:
    """Raise BundleError unless a scorer reproduces the golden scores of its bundle.

    Differences are relative to the stored value, or to `Scorer.least_score` if that is larger.
    """
    tolerance = golden_tolerance(options.backend, options.precision)
    for golden in bundle.manifest.golden_of(options.precision, options.backend):
        # Golden images are stored as files, so that decoding and resizing are checked too.
        image = prepare(decode_image(bundle.read(golden.file), golden.file), bundle.manifest.input)
        maps, scores = scorer.score(image[None])
        check_outputs(maps, scores, 1, bundle.manifest.input.size)
        compare_golden(golden, maps, scores, tolerance, scorer.least_score, bundle.path, options.backend)


def compare_golden(
    golden: Golden,
    maps: Float32Array,
    scores: Float32Array,
    tolerance: float,
    least_score: float,
    path: Path,
    backend: str,
) -> None:
    """Raise BundleError unless map and score of a golden image are the stored ones.

    Args:
        golden: The golden image.
        maps: Its anomaly map, float32 [1, H, W].
        scores: Its score, float32 [1].
        tolerance: Largest difference as a share of the stored value, or of `least_score` if that is larger.
        least_score: As `Scorer.least_score`.
        path: The bundle.
        backend: Backend that computed them.
    """
    for quantity, got, stored in (("score", scores[0], golden.score), ("map", maps[0].max(), golden.map_max)):
        # `not <=` instead of `>`: every comparison with NaN is false, and NaN must fail.
        if not abs(float(got) - stored) <= tolerance * max(abs(stored), least_score):
            raise BundleError(
                f"{path}: golden image {golden.file}: expected {quantity} {stored:.6g} as at export, got "
                f"{float(got):.6g} on {backend}. This installation computes something else: see flawscope doctor."
            )


def measured_golden(bundle: Bundle, scorer: Scorer, entries: Sequence[Golden]) -> tuple[Golden, ...]:
    """Return golden images with the scores that a scorer gives them.

    Args:
        bundle: The bundle that has their files.
        scorer: The scorer.
        entries: The golden images; their scores are not read.
    """
    measured = []
    for entry in entries:
        image = prepare(decode_image(bundle.read(entry.file), entry.file), bundle.manifest.input)
        maps, scores = scorer.score(image[None])
        measured.append(Golden(entry.file, float(scores[0]), float(maps[0].max())))
    return tuple(measured)


def check_outputs(maps: Float32Array, scores: Float32Array, images: int, size: tuple[int, int]) -> None:
    """Raise BundleError unless maps are float32 [N, H, W] of the input's size and scores float32 [N].

    What a graph computes is the bundle's word: an empty map would have no pixel above any threshold.
    """
    for name, array, shape in (("anomaly map", maps, (images, *size)), ("score", scores, (images,))):
        if not isinstance(array, np.ndarray) or array.dtype != np.float32 or array.shape != shape:
            got = f"{array.dtype} {list(array.shape)}" if isinstance(array, np.ndarray) else type(array).__name__
            raise BundleError(
                f"graph output {name}: expected float32 {list(shape)}, got {got}. Export the bundle again."
            )
