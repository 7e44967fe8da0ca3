"""The slope of a series of samples, with a confidence interval that allows for autocorrelation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from flawscope.arrays import Float64Array

BLOCKS = 20
"""Number of blocks, each replaced by its mean, to which a line is fitted."""
LEAST_SAMPLES = 8
"""Fewest samples for which a slope is fitted."""
_NORMAL_97_5 = 1.959963984540054  # 97.5 % point of the standard normal distribution
_MOST_CORRELATION = 0.9  # of 20 blocks, more cannot be told from 1, which would make the interval infinite


@dataclass(frozen=True)
class Slope:
    """A slope in units of y per unit of x, and its two-sided 95 % interval.

    Attributes:
        value: The least-squares slope.
        low: Lower end of the interval.
        high: Upper end.
        blocks: Number of block means that the line was fitted to.
        correlation: Correlation of the residuals of neighbouring blocks, 0 to 0.9, which widened the interval.
    """

    value: float
    low: float
    high: float
    blocks: int
    correlation: float

    @property
    def holds_zero(self) -> bool:
        """Whether zero lies in the interval."""
        return self.low <= 0.0 <= self.high


def fit_slope(x: Float64Array, y: Float64Array) -> Slope | None:
    """Return the slope of y over x, or None below 8 samples.

    Successive samples of memory or latency are correlated (a heap grows in steps, a machine is busy for a while).
    Ordinary least squares takes them for independent, and its interval is far too narrow. Hence:

    1. The series is cut into B = 20 blocks of successive samples (or as many as there are samples), each replaced by
       its means (x̄ᵢ, ȳᵢ). This removes correlation that is shorter than a block.
    2. slope = Σ(x̄ᵢ − x̄)·ȳᵢ / Σ(x̄ᵢ − x̄)²; residuals eᵢ; s² = Σeᵢ² / (B − 2); error = s / √Σ(x̄ᵢ − x̄)².
    3. The correlation that is left between neighbouring blocks, r = Σeᵢ·eᵢ₊₁ / Σeᵢ², is corrected for the bias of the
       fitted line, (r + 2/B) / (1 − 4/B), and limited to 0 to 0.9. It widens the error by √((1 + r) / (1 − r)) and
       leaves B·(1 − r) / (1 + r) − 2 degrees of freedom, at least 2.
    4. The interval is slope ± t · error, t being Student's 97.5 % point.

    Step 3 is the effective sample size of a mean under first-order autoregression. A test measures how often the
    interval misses a true slope of zero (white and autocorrelated noise, single steps). A random walk has no slope
    either, but is given one more often: in less than 20 % of series.

    Args:
        x: float64 [N], ascending, not all equal.
        y: float64 [N].
    """
    count = min(BLOCKS, len(x))
    if count < LEAST_SAMPLES:
        return None
    x_means = np.array([block.mean() for block in np.array_split(x, count)])
    y_means = np.array([block.mean() for block in np.array_split(y, count)])
    centred = x_means - x_means.mean()
    spread = float(centred @ centred)
    # Centred as well, though the formula needs only one of them: a constant series then has a slope of exactly 0.
    deviations = y_means - y_means.mean()
    value = float(centred @ deviations) / spread
    residuals = deviations - value * centred
    power = float(residuals @ residuals)
    correlation = 0.0
    # Below this the residuals are rounding of float64, whose correlation means nothing (and 0 / 0 is NaN).
    if power > (1e-12 * float(np.abs(y_means).max())) ** 2 * count:
        neighbours = float(residuals[:-1] @ residuals[1:]) / power
        correlation = min(_MOST_CORRELATION, max(0.0, (neighbours + 2 / count) / (1 - 4 / count)))
    inflation = (1 + correlation) / (1 - correlation)
    margin = student_97_5(max(2.0, count / inflation - 2)) * np.sqrt(power / (count - 2) / spread * inflation)
    return Slope(value, value - float(margin), value + float(margin), count, correlation)


def student_97_5(freedom: float) -> float:
    """Return the 97.5 % point of Student's t with at least 2 degrees of freedom, within 1 %, from 4 within 0.1 %.

    Source: the expansion around the normal point z in powers of 1/freedom, M. Abramowitz and I. A. Stegun, Handbook
    of Mathematical Functions, 26.7.5.
    """
    z = _NORMAL_97_5
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / freedom**power for power, term in enumerate(terms, start=1))
