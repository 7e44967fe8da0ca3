"""The check at load: golden images must reproduce the scores that were measured at export.

It finds what no hash can: another resize in OpenCV, a driver or a processor that computes something else.
"""

from __future__ import annotations

from flawscope.bundle import Bundle
from flawscope.errors import BundleError
from flawscope.imaging.images import prepare, read_image
from flawscope.runtime.backends.table import golden_tolerance
from flawscope.runtime.scorers.scorer import Scorer, ScorerOptions


def check_golden(bundle: Bundle, scorer: Scorer, options: ScorerOptions) -> None:
    """Raise BundleError unless a scorer reproduces the golden scores of its bundle.

    Differences are relative to the stored value, or to `Scorer.least_score` if that is larger.
    """
    tolerance = golden_tolerance(options.backend, options.precision)
    for golden in bundle.manifest.golden_of(options.precision):
        # Golden images are stored as files, so that decoding and resizing are checked too.
        image = prepare(read_image(bundle.file(golden.file)), bundle.manifest.input)
        maps, scores = scorer.score(image[None])
        for quantity, got, stored in (("score", scores[0], golden.score), ("map", maps[0].max(), golden.map_max)):
            # `not <=` instead of `>`: every comparison with NaN is false, and NaN must fail.
            if not abs(float(got) - stored) <= tolerance * max(abs(stored), scorer.least_score):
                raise BundleError(
                    f"{bundle.path}: golden image {golden.file}: expected {quantity} {stored:.6g} as at export, got "
                    f"{float(got):.6g} on {options.backend}. This installation computes something else: see flawscope "
                    "doctor."
                )
