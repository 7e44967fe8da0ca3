"""The slope of a series that was sampled over a long run, with an interval that takes autocorrelation seriously."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from flawscope.arrays import Float64Array

BLOCKS = 20
"""Blocks that a series is averaged to."""
LEAST_SAMPLES = 8
"""Fewest samples for which a slope is fitted."""
_NORMAL_97_5 = 1.959963984540054
_MOST_CORRELATION = 0.9


@dataclass(frozen=True)
class Slope:
    """A slope in units of y per unit of x, and its two-sided 95 % interval.

    Attributes:
        value: The least-squares slope.
        low: Lower end of the interval.
        high: Upper end.
        blocks: Block means it was fitted to.
        correlation: Correlation of neighbouring blocks beside the line, 0 to 0.9, that widened the interval.
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

    Samples of memory or latency that follow each other are alike (a heap grows in steps, a machine is busy for a
    while), and ordinary least squares would take each for news and give an interval far too narrow. Hence:

    1. The series is cut into B = 20 runs of neighbours (or as many as there are samples), each replaced by its means
       (x̄ᵢ, ȳᵢ). Correlation that is shorter than a run is gone.
    2. slope = Σ(x̄ᵢ − x̄)·ȳᵢ / Σ(x̄ᵢ − x̄)²; residuals eᵢ; s² = Σeᵢ² / (B − 2); error = s / √Σ(x̄ᵢ − x̄)².
    3. What is left between neighbouring runs, r = Σeᵢ·eᵢ₊₁ / Σeᵢ², corrected for the bias that the fitted line gives
       it, (r + 2/B) / (1 − 4/B), and limited to 0 to 0.9, widens the error by √((1 + r) / (1 − r)) and leaves
       B·(1 − r) / (1 + r) − 2 degrees of freedom, at least 2.
    4. The interval is slope ± t · error, t being Student's 97.5 % point.

    Step 3 is the effective size of a mean under first-order autoregression; a test measures how often the interval
    misses a true slope of zero (white and autocorrelated noise, single steps). A series that wanders without
    returning, a random walk, has no slope and is given one more often, in less than 20 % of series.

    Args:
        x: float64 [N], ascending, not all equal.
        y: float64 [N].
    """
    count = min(BLOCKS, len(x))
    if count < LEAST_SAMPLES:
        return None
    across = np.array([part.mean() for part in np.array_split(x, count)])
    up = np.array([part.mean() for part in np.array_split(y, count)])
    centred = across - across.mean()
    spread = float(centred @ centred)
    deviations = up - up.mean()  # of a constant series exactly zero, and so is its slope
    value = float(centred @ deviations) / spread
    rest = deviations - value * centred
    power = float(rest @ rest)
    correlation = 0.0
    # Rounding alone is no residual: a constant series has none.
    if power > (1e-12 * float(np.abs(up).max())) ** 2 * count:
        neighbours = float(rest[:-1] @ rest[1:]) / power
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
