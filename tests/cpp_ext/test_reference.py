"""What only the reference has: its blocks, k beyond 64, and its words for wrong arrays."""

from __future__ import annotations

import numpy as np
import pytest
from kernel_cases import assert_same, exact_nearest, integers, random

from flawscope.cpp_ext import reference
from flawscope.errors import ArgumentError


def test_blocks_of_queries_change_nothing(monkeypatch):
    queries, bank = integers(37, 5), integers(20, 5, seed=1)
    whole = reference.nearest(queries, bank, 4)
    for elements in (1, 20, 41, 37 * 20 - 1):
        monkeypatch.setattr(reference, "_BLOCK_ELEMENTS", elements)
        assert_same(reference.nearest(queries, bank, 4), whole, elements)


@pytest.mark.parametrize("k", [65, 199, 200])
def test_it_takes_any_number_of_neighbours(k):
    queries, bank = integers(5, 3, high=2), integers(200, 3, seed=1, high=2)
    assert_same(reference.nearest(queries, bank, k), exact_nearest(queries, bank, k))


@pytest.mark.parametrize("k", [199, 200])
def test_of_equal_rows_the_first_are_taken(k):
    distances, indices = reference.nearest(np.zeros((2, 3), np.float32), np.ones((200, 3), np.float32), k)
    np.testing.assert_array_equal(distances, np.full((2, k), 3))
    np.testing.assert_array_equal(indices, [list(range(k))] * 2)


# --- rows as a bank stores them


def test_float32_rows_are_stored_as_they_are():
    rows = random(5, 3)
    assert reference.stored_rows(rows, "float32") is rows


def test_float16_rows_are_rounded_to_the_nearest():
    rows = np.array([[1 + 2.0**-11, 1 + 3 * 2.0**-11, 65519, 2.0**-25, 3 * 2.0**-25]], np.float32)
    stored = reference.stored_rows(rows, "float16")
    np.testing.assert_array_equal(stored, [[1, 1 + 2.0**-9, 65504, 0, 2.0**-23]])  # ties go to the even one


def test_int8_rows_are_127_steps_of_their_largest_value():
    rows = np.array([[127, -3.4, 3.5, 4.5], [0, 0, 0, 0], [-254, 1, 3, 2.9]], np.float32)
    np.testing.assert_array_equal(reference.stored_rows(rows, "int8"), [[127, -3, 4, 4], [0, 0, 0, 0], [-254, 0, 4, 2]])


def test_int8_rows_too_small_for_a_factor_stay_within_their_steps():
    tiny = np.array([[190 * 2.0**-149, 2.0**-149]], np.float32)  # the factor is rounded to one subnormal step
    stored = reference.stored_rows(tiny, "int8")
    np.testing.assert_array_equal(stored, np.array([[127 * 2.0**-149, 2.0**-149]], np.float32))


# --- wrong arguments, where the message is the reference's own

Q, B = np.ones((2, 3), np.float32), np.ones((4, 3), np.float32)
F, M, W = np.ones((2, 3, 4), np.float32), np.ones((3, 4), np.float32), np.ones((3, 4, 4), np.float32)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((Q.tolist(), B, 1), r"queries: expected a NumPy array float32 \[N, 3\], got list"),
        ((Q.astype(np.float64), B, 1), r"queries: expected float32 \[N, 3\] .*, got float64 \[2, 3\]"),
        ((Q[0], B, 1), r"queries: expected .* got float32 \[3\]"),
        ((Q[:0, :2], B, 1), r"queries: expected .* got float32 \[0, 2\]"),
        ((Q[:0].astype(np.float64), B, 1), r"queries: expected .* got float64 \[0, 3\]"),
        ((Q, B.astype(np.float16), 1), r"bank: expected float32 \[M, D\] .*, got float16 \[4, 3\]"),
        ((Q, B[:, :2], 1), r"queries: expected float32 \[N, 2\] .*, got float32 \[2, 3\]"),
        ((Q, B[:0], 1), r"bank: expected .* got float32 \[0, 3\]"),
        ((Q, None, 1), "bank: expected a NumPy array .* got NoneType"),
        ((Q, B * np.float32(np.nan), 1), "bank: expected finite rows .* in 4 rows"),
        ((Q, B, 0), r"k: expected an integer from 1 to 4 \(rows of the bank\), got 0"),
        ((Q, B, 5), r"k: expected an integer from 1 to 4 .*, got 5"),
    ],
)
def test_wrong_arguments_of_nearest_are_refused(arguments, message):
    with pytest.raises(ArgumentError, match=message):
        reference.nearest(*arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((F[0], M, W), r"features: expected float32 \[N, 3, 4\] .*, got float32 \[3, 4\]"),
        ((F.astype(np.float64), M, W), "features: expected .* got float64"),
        ((F[:0].astype(np.float64), M, W), r"features: expected .* got float64 \[0, 3, 4\]"),
        ((F, M[:2], W), r"features: expected float32 \[N, 2, 4\] .*, got float32 \[2, 3, 4\]"),
        ((F, M.astype(np.int32), W), "mean: expected .* got int32"),
        ((F, M, W[:, :, :3]), r"whitening: expected float32 \[3, 4, 4\] .*, got float32 \[3, 4, 3\]"),
        ((F, M, W[0]), r"whitening: expected .* got float32 \[4, 4\]"),
        ((F, M, "W"), "whitening: expected a NumPy array .* got str"),
    ],
)
def test_wrong_arguments_of_mahalanobis_are_refused(arguments, message):
    with pytest.raises(ArgumentError, match=message):
        reference.mahalanobis(*arguments)


NAN = np.where(np.arange(12).reshape(4, 3) == 5, np.nan, 1).astype(np.float32)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((B.astype(np.float64), 1, 0), r"features: expected float32 \[N, D\] .*, got float64"),
        ((B[:0], 1, 0), r"features: expected .* got float32 \[0, 3\]"),
        (([[1.0]], 1, 0), "features: expected a NumPy array .* got list"),
        ((NAN, 1, 0), "features: expected finite rows .* in 1 rows"),
    ],
)
def test_wrong_arguments_of_the_selection_are_refused(arguments, message):
    with pytest.raises(ArgumentError, match=message):
        reference.kcenter_greedy(*arguments)
