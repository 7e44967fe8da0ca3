"""The nearest rows within a memory bank: the table that PatchCore re-weights its score by."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from flawscope.arrays import Float32Array
from flawscope.cpp_ext.bank import nearest


def neighbour_table(bank: Float32Array, count: int) -> npt.NDArray[np.int64]:
    """Return the `count` nearest bank rows of every bank row, itself first: int64 [M, count].

    Equation 7 of the paper needs the neighbours of the matched row, which do not depend on the inspected image.
    """
    _, table = nearest(bank, bank, count)
    # Of identical rows each is at distance 0 of the other, and either may come first: the row itself is put there.
    for row in np.flatnonzero(table[:, 0] != np.arange(len(bank))):
        neighbours = table[row][table[row] != row][: count - 1]
        table[row] = np.concatenate(([row], neighbours))
    return table
