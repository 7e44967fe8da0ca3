"""Data and slow definitions that the tests of the kernels share."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from tolerances import FLOAT32

INTEGERS = st.integers(-9, 9).map(float)
"""So small that every sum of squares of a test is exact in float32."""


def random(*shape, seed=0, scale=1.0, offset=0.0):
    return (offset + scale * np.random.default_rng(seed).standard_normal(shape)).astype(np.float32)


def integers(*shape, seed=0, high=4):
    return np.random.default_rng(seed).integers(-high, high + 1, shape).astype(np.float32)


def integer_arrays(rows, channels):
    return st.tuples(rows, channels).flatmap(lambda shape: hnp.arrays(np.float32, shape, elements=INTEGERS))


def naive_nearest(queries, bank, k):
    """Squared distances and rows by Python integers and a sort by (distance, row)."""
    found = [
        sorted((sum((int(a) - int(b)) ** 2 for a, b in zip(query, row, strict=True)), m) for m, row in enumerate(bank))[
            :k
        ]
        for query in queries
    ]
    return np.array([[d for d, _ in row] for row in found]), np.array([[m for _, m in row] for row in found])


def exact_nearest(queries, bank, k, block=1 << 22):
    """The same for integers in NumPy, a block at a time: one int64 key holds distance and row, so ties need no care."""
    rows = len(bank)
    norms = (bank.astype(np.float64) ** 2).sum(axis=1)
    keys = np.empty((len(queries), k), np.int64)
    step = max(1, block // rows)
    for start in range(0, len(queries), step):
        part = queries[start : start + step].astype(np.float64)
        squared = (part**2).sum(axis=1)[:, None] + norms - 2 * (part @ bank.T.astype(np.float64))
        key = squared.astype(np.int64) * rows + np.arange(rows)
        keys[start : start + step] = np.sort(np.partition(key, k - 1, axis=1)[:, :k], axis=1)
    return keys // rows, keys % rows


def true_distances(queries, bank):
    difference = queries[:, None].astype(np.float64) - bank[None].astype(np.float64)
    return (difference**2).sum(axis=2)


def slack(queries, bank):
    """How much farther than the true neighbour a chosen row may be, [N, 1]: both products are off by the bound."""
    norms = np.linalg.norm(queries.astype(np.float64), axis=1)[:, None] + np.linalg.norm(
        bank.astype(np.float64), axis=1
    )
    return 2 * FLOAT32.product_form(queries.shape[1]) * norms.max(axis=1, keepdims=True) ** 2


def first_row(rows, seed):
    return int(np.random.default_rng(seed).integers(rows))


def naive_kcenter(features, count, first):
    """The definition, by float64 distances to all centres at every step."""
    true = true_distances(features, features)
    chosen = [first]
    while len(chosen) < count:
        closest = true[:, chosen].min(axis=1)
        closest[chosen] = -1
        chosen.append(int(closest.argmax()))
    return chosen


def covariances(positions, channels, seed=3):
    root = np.random.default_rng(seed).standard_normal((positions, channels, 2 * channels))
    return root @ root.transpose(0, 2, 1) / (2 * channels) + 0.05 * np.eye(channels)


def assert_same(got, wanted, case=""):
    """Arrays, or pairs of them, equal in every element."""
    if isinstance(got, tuple):
        for one, other in zip(got, wanted, strict=True):
            np.testing.assert_array_equal(one, other, err_msg=str(case))
    else:
        np.testing.assert_array_equal(got, wanted, err_msg=str(case))
