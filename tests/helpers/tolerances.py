"""How far a computed number may be from the true one: one table per dtype, every entry derived.

With the unit roundoff u, every operation gives the exact result times (1 + δ), |δ| ≤ u, and n of them in a chain at
most γ(n) = n·u / (1 − n·u) (Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., section 3.1). A sum of n
products is off by at most γ(n) times the sum of their absolute values, in any order of summation, so the bounds hold
for every BLAS, block size and number of threads. They are bounds, not fits: a test that passes them has no slack to
lose, and one that fails them is wrong.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Tolerances:
    """The table of one dtype.

    Attributes:
        unit: Unit roundoff u: half the distance from 1 to the next number.
    """

    unit: float

    def gamma(self, operations: int) -> float:
        """γ(n), the relative error of n rounded operations in a chain."""
        return operations * self.unit / (1.0 - operations * self.unit)

    def direct(self, channels: int) -> float:
        """Relative error of Σ(q − m)² over D channels.

        One rounding in q − m counts twice in its square, one in the square itself, at most D in the sum, all of
        whose terms are positive: γ(D + 3).
        """
        return self.gamma(channels + 3)

    def product_form(self, channels: int) -> float:
        """Error of ‖m‖² − 2·q·m over D channels, relative to (‖q‖ + ‖m‖)².

        ‖m‖² is off by γ(D)·‖m‖² and 2·q·m by γ(D)·2·Σ|q·m| ≤ γ(D)·2·‖q‖·‖m‖; the last addition adds one rounding of
        a result below (‖q‖ + ‖m‖)². ‖q‖², where it is added, follows the same way: γ(D + 2).
        """
        return self.gamma(channels + 2)

    def int8_form(self, channels: int) -> float:
        """Error of ‖m̂‖² − 2·q̂·m̂ over D channels, relative to (‖q̂‖ + ‖m̂‖)², for 8-bit integers with a factor each.

        Where the sum of integers is exact, its conversion and the products with the two factors are three roundings.
        Where q̂ and m̂ are multiplied as float32 they are D; q̂ and m̂ themselves are each one rounding away from factor
        times integer. ‖m̂‖² and the last addition follow as in `product_form`: γ(D + 6) holds for both ways.
        """
        return self.gamma(channels + 6)

    def mahalanobis(self, channels: int) -> float:
        """Error of ‖(x − μ)·W‖² over D channels, relative to ‖|x − μ|·|W|‖².

        A component of (x − μ)·W is off by γ(D + 1) of its absolute value sum a; its square by (2·γ + γ²)·a², hence
        below γ(2·(D + 1))·a²; squaring and summing add D + 1: γ(3·D + 3).
        """
        return self.gamma(3 * channels + 3)

    def rows_of(self, terms: int) -> float:
        """Error of a weighted mean of n terms with weights that sum to 1, relative to the largest term.

        One rounding in every weight, n in the sum of products: γ(n + 1).
        """
        return self.gamma(terms + 1)


FLOAT32 = Tolerances(unit=2.0**-24)
FLOAT64 = Tolerances(unit=2.0**-53)

TABLES = {np.dtype(np.float32): FLOAT32, np.dtype(np.float64): FLOAT64}


def exact_limit(dtype: npt.DTypeLike) -> int:
    """Return the integer up to which all integers, and so all sums and products below it, are exact in a dtype."""
    return int(1.0 / TABLES[np.dtype(dtype)].unit)
