"""The table of nearest rows within a memory bank, against a naive search."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from flawscope.arrays import Float32Array
from flawscope.cpp_ext import neighbour_table


def naive_neighbours(bank: Float32Array, count: int) -> list[list[float]]:
    distances = ((bank[:, None].astype(np.float64) - bank[None]) ** 2).sum(axis=2)
    return [sorted(row)[:count] for row in distances.tolist()]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_the_table_holds_the_nearest_rows_itself_first_also_with_repeated_rows(data: st.DataObject) -> None:
    rows = data.draw(st.integers(1, 12), label="rows")
    count = data.draw(st.integers(1, rows), label="count")
    seed = data.draw(st.integers(0, 1000), label="seed")
    bank = np.random.default_rng(seed).integers(0, 2, (rows, 3)).astype(np.float32)  # eight values: many repeats
    table = neighbour_table(bank, count)
    assert table.shape == (rows, count)
    assert table.dtype == np.int64
    np.testing.assert_array_equal(table[:, 0], np.arange(rows))
    for row, (neighbours, expected) in enumerate(zip(table, naive_neighbours(bank, count), strict=True)):
        assert len(set(neighbours.tolist())) == count
        assert sorted(((bank[row] - bank[neighbours]) ** 2).sum(axis=1).tolist()) == expected
