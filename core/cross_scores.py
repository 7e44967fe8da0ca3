"""Scores of cross-fitting: of every normal image by a fit that has not seen it.

The scores take the place of those of held-out images where images are few: the detector learns from all of them, and
`calibrate` sets thresholds on all of them. What that allows to claim is less than with held-out images:

- *Held out.* The detector is fixed before the n held-out scores are drawn, so the true false-reject rate of a threshold
  at their k-th smallest is distributed as Beta(n - k + 1, k) (Vovk, "Conditional validity of inductive conformal
  predictors", 2012; Bates et al., "Testing for outliers with conformal p-values", 2023). The stated bound holds for 95
  of 100 drawings of images: it is a bound.
- *Cross-fitted, on average.* Let s_A(z) be the score of an image z by a detector fitted on the images A. Where more
  images never raise a score, s_B(z) <= s_A(z) for A within B, a new image is rejected with probability at most
  (n - k + 1) / (n + 1), averaged over drawings of the n images and of the new one, whatever the number of folds: the
  n + 1 scores of every image by a fit on all others are exchangeable, that of the new image is its score by the final
  detector, and those of the others are at most their cross-fitted scores, so the threshold is not below that of full
  conformal prediction (Vovk, Gammerman and Shafer, "Algorithmic Learning in a Random World", 2005, section 2.2; for
  nearest neighbours Laxhammar and Falkman, 2010). This holds for distances to a bank of all patches (`coreset=1`,
  `reweight=none`, `standardize=none`), not for a coreset, the re-weighting, whitening, a measured foreground, or PaDiM.
- *Cross-fitted, otherwise.* CV+ (Barber et al., "Predictive inference with the jackknife+", 2021, theorem 4) and
  cross-conformal prediction (Vovk, "Cross-conformal predictors", 2015) guarantee about twice the rate at most, on
  average, and only if a new image is scored by the detectors of all folds. One detector is shipped, so for it the rate
  is an estimate: right as far as a fit on all images and one on a few less give new images alike scores.
- *In 95 of 100 drawings.* For cross-fitted scores there is no Beta law: they share images, and the jackknife+ has no
  such guarantee without assumptions (Bian and Barber, "Training-conditional coverage for distribution-free predictive
  inference", 2023). The same formula with all n is stated as an estimate. `benchmarks/few_images.py` counts how often
  the true rate exceeds it.
"""

from __future__ import annotations

import math

import msgspec


class CrossScores(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Scores of the normal images that a detector has learned, each by a fit that has not seen it.

    Attributes:
        folds: Number of those fits.
        images: Content hash of every image, each once: copies are one image, and always in one fold.
        scores: Image score of each, float32 values, computed by torch in FP32.
        map_max: Largest value of the anomaly map of each.
    """

    folds: int
    images: tuple[str, ...]
    scores: tuple[float, ...]
    map_max: tuple[float, ...]

    def __post_init__(self) -> None:
        """Raise ValueError unless every image has a finite score and a finite map value, and no fold is empty."""
        if not len(self.images) == len(self.scores) == len(self.map_max) == len(set(self.images)):
            raise ValueError(
                f"expected a score and a map value of every image, got {len(set(self.images))} images, "
                f"{len(self.scores)} scores and {len(self.map_max)} map values"
            )
        if not 2 <= self.folds <= len(self.images):
            raise ValueError(f"expected 2 to {len(self.images)} folds, got {self.folds}")
        if not all(math.isfinite(value) for value in (*self.scores, *self.map_max)):
            raise ValueError("expected finite scores, got NaN or infinity")
