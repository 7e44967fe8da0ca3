"""Nearest neighbours: exact on integers, bounded on floats, and their properties, for every implementation."""

from __future__ import annotations

from functools import cache
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_cases import (
    assert_same,
    exact_nearest,
    integer_arrays,
    integers,
    naive_nearest,
    random,
    slack,
    true_distances,
)
from tolerances import FLOAT32

from flawscope.cpp_ext import native, nearest, reference

needs_native = pytest.mark.skipif(not native.HAVE_NATIVE, reason=f"no native kernels: {native.MISSING_BECAUSE}")

# --- exact on integers


@pytest.mark.parametrize("k", [1, 2, 5, 9])
@pytest.mark.parametrize(("count", "rows", "channels"), [(1, 9, 1), (4, 9, 3), (7, 40, 2), (3, 65, 17)])
def test_integers_give_the_exact_distances_and_rows(kernels, count, rows, channels, k):
    queries, bank = integers(count, channels), integers(rows, channels, seed=1)
    distances, indices = kernels.nearest(queries, bank, k)
    assert (distances.dtype, indices.dtype) == (np.float32, np.int64)
    assert_same((distances, indices), naive_nearest(queries, bank, k))


# Tiles are 4, 6 or 14 queries high, panels 2, 16 or 32 rows wide; vectors have 1, 4, 8 or 16 lanes.
QUERIES = (1, 3, 4, 5, 6, 7, 12, 13, 14, 15, 28, 29)
ROWS = (1, 2, 3, 8, 9, 15, 16, 17, 31, 32, 33, 64, 65, 97)
CHANNELS = (1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65)
EDGES = sorted(
    {*product(QUERIES, ROWS, (3, 17)), *product((5, 14), (2, 17, 33, 65), CHANNELS), *product((7,), (66,), CHANNELS)}
)


@cache
def edge_case(count, rows, channels, k):
    # Few different values where there are few channels: then most neighbours are ties.
    queries, bank = integers(count, channels, high=2), integers(rows, channels, seed=1, high=2)
    return queries, bank, reference.nearest(queries, bank, k)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("k", [1, 2, 9, 64])
def test_every_level_equals_the_reference_on_every_tile_edge(compiled, k, dtype):
    for count, rows, channels in EDGES:
        if k <= rows:
            queries, bank, wanted = edge_case(count, rows, channels, k)
            assert_same(compiled.nearest(queries.astype(dtype), bank, k), wanted, (count, rows, channels))


@cache
def many_rows():
    """Several times what is packed at a time (8 MiB), with rows that come again in a later chunk."""
    bank = integers(70_001, 64, seed=1, high=2)
    bank[50_000:] = bank[:20_001]
    queries = np.concatenate([integers(8, 64, high=2), bank[[0, 20_000, 50_000, 70_000, 35_000]]])
    assert bank.nbytes > 2 * (8 << 20)
    return queries, bank, exact_nearest(queries, bank, 64)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("k", [1, 64])
def test_rows_that_are_packed_in_several_parts_are_one_bank(kernels, k, threads):
    queries, bank, (distances, rows) = many_rows()
    assert_same(kernels.nearest(queries, bank, k, threads=threads), (distances[:, :k], rows[:, :k]))


@cache
def many_queries(k):
    """More queries than are searched at a time: their candidates take 24 MiB at every level."""
    count, rows = (1_050_000, 6) if k == 1 else (50_000, 66)
    queries, bank = integers(count, 2, high=9), integers(rows, 2, seed=1, high=9)
    return queries, bank, exact_nearest(queries, bank, k)


@pytest.mark.parametrize("k", [1, 64])
@pytest.mark.parametrize("packed", [False, True])
def test_queries_that_are_searched_in_several_runs_all_get_theirs(compiled, packed, k):
    queries, bank, wanted = many_queries(k)
    assert_same(compiled.nearest(queries, compiled.bank(bank) if packed else bank, k), wanted)


@needs_native
def test_more_pairs_than_32_bits_count():
    # The bank is a whole grid in some order and the queries lie on it: where each is found is known without a search.
    grid = np.random.default_rng(0).permutation(40_000)
    bank = np.stack([grid // 200, grid % 200], axis=1).astype(np.float32)
    cells = np.random.default_rng(1).integers(40_000, size=60_000)
    queries = np.stack([cells // 200, cells % 200], axis=1).astype(np.float32)
    assert len(queries) * len(bank) > 2**31
    distances, indices = nearest(queries, bank, 1)
    assert_same(distances[:, 0], np.zeros(len(queries)))
    assert_same(indices[:, 0], np.argsort(grid)[cells])


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
def test_the_number_of_threads_changes_nothing(compiled, threads):
    for count, rows, k in product((1, 5, 50, 300), (1, 130, 3000), (1, 9)):
        if k <= rows:
            queries, bank, wanted = edge_case(count, rows, 7, k)
            assert_same(compiled.nearest(queries, bank, k, threads=threads), wanted, (count, rows, k))
            assert_same(compiled.bank(bank, threads=threads).nearest(queries, k, threads=threads), wanted)


@pytest.mark.parametrize("threads", [2, 3, 8])
def test_the_number_of_threads_changes_no_bit_of_floats(compiled, threads):
    queries, bank = random(200, 37), random(900, 37, seed=1)
    alone = compiled.nearest(queries, bank, 9, threads=1)
    assert_same(compiled.nearest(queries, bank, 9, threads=threads), alone)


# --- ties


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_ties_take_the_lowest_rows(kernels, data):
    channels = data.draw(st.integers(1, 3))
    queries = data.draw(integer_arrays(st.integers(1, 4), st.just(channels)))
    bank = data.draw(integer_arrays(st.integers(1, 30), st.just(channels)))
    bank = np.sign(bank)  # three values a channel: ties are the rule
    k = data.draw(st.integers(1, len(bank)))
    assert_same(kernels.nearest(queries, bank, k), naive_nearest(queries, bank, k))


@pytest.mark.parametrize("k", [1, 2, 9, 64])
def test_of_equal_rows_the_first_are_taken(kernels, k):
    distances, indices = kernels.nearest(np.zeros((2, 3), np.float32), np.ones((200, 3), np.float32), k)
    np.testing.assert_array_equal(distances, np.full((2, k), 3))
    np.testing.assert_array_equal(indices, [list(range(k))] * 2)


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
def test_of_equal_rows_the_first_are_taken_also_where_the_bank_is_cut(compiled, threads):
    bank = np.ones((5000, 3), np.float32)
    for k in (1, 9):
        indices = compiled.nearest(np.zeros((2, 3), np.float32), bank, k, threads=threads)[1]
        assert indices.tolist() == [list(range(k))] * 2


# --- floats


@pytest.mark.parametrize("k", [1, 3, 9])
@pytest.mark.parametrize("channels", [1, 8, 96])
@pytest.mark.parametrize(("scale", "offset"), [(1.0, 0.0), (1e-3, 10.0), (1e3, 0.0)])
def test_floats_give_distances_within_the_bounds(kernels, k, channels, scale, offset):
    queries = random(30, channels, scale=scale, offset=offset)
    bank = random(50, channels, seed=1, scale=scale, offset=offset)
    distances, indices = kernels.nearest(queries, bank, k)
    true = true_distances(queries, bank)
    # What is said of a row is its own distance, however it was found.
    np.testing.assert_allclose(
        distances, np.take_along_axis(true, indices, axis=1), rtol=FLOAT32.direct(channels), atol=0
    )
    # And no row left out is nearer than the rounding of the product form explains.
    best = np.sort(true, axis=1)[:, :k]
    assert (
        np.take_along_axis(true, indices, axis=1) <= best + slack(queries, bank) + FLOAT32.direct(channels) * best
    ).all()


@pytest.mark.parametrize("storage", ["float32", "float16", "int8"])
def test_float16_queries_are_the_same_numbers_in_float32(kernels, storage):
    halves = random(40, 19).astype(np.float16)
    halves[0, :3] = [2.0**-24, -(2.0**-15), 65504]  # subnormal numbers and the largest one
    bank = kernels.bank(random(70, 19, seed=1), storage)
    assert_same(bank.nearest(halves, 5), bank.nearest(halves.astype(np.float32), 5))


@pytest.mark.parametrize("k", [1, 5])
def test_every_float16_number_is_read_as_what_it_is(kernels, k):
    every = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    finite = every[np.isfinite(every)].reshape(-1, 1)
    bank = np.array([[0], [1], [-1], [1e-6], [5e4]], np.float32)
    distances, indices = kernels.nearest(finite, bank, k)
    wanted = (finite.astype(np.float32) - bank[indices][:, :, 0]) ** 2
    assert_same(distances, wanted)


# --- properties


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_properties_of_the_neighbours(kernels, data):
    channels = data.draw(st.integers(1, 6))
    queries = data.draw(integer_arrays(st.integers(1, 5), st.just(channels)))
    bank = data.draw(integer_arrays(st.integers(1, 25), st.just(channels)))
    k = data.draw(st.integers(1, len(bank)))
    distances, indices = kernels.nearest(queries, bank, k)
    assert distances.shape == indices.shape == (len(queries), k)
    assert (distances >= 0).all()
    assert (np.diff(distances, axis=1) >= 0).all()
    assert all(len(set(row)) == k for row in indices.tolist())
    assert indices.min() >= 0
    assert indices.max() < len(bank)
    order = data.draw(st.permutations(range(len(bank))))
    assert_same(kernels.nearest(queries, bank[order], k)[0], distances)  # an order of the bank changes nothing
    one = kernels.nearest(queries, bank, 1)
    assert_same(one, (distances[:, :1], indices[:, :1]))  # nor does asking for fewer
    assert_same(kernels.nearest(bank, bank, 1)[0], np.zeros((len(bank), 1)))
    assert_same(kernels.nearest(queries + 1, bank + 1, k)[0], distances)  # nor a shift of both


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_a_row_that_comes_twice_is_named_by_its_first_place(kernels, data):
    bank = data.draw(integer_arrays(st.integers(1, 40), st.integers(1, 3)))
    again = np.concatenate([bank, bank])
    distances, indices = kernels.nearest(bank, again, 1)
    first = [int(np.flatnonzero((bank == row).all(axis=1))[0]) for row in bank]
    assert indices[:, 0].tolist() == first
    assert not distances.any()


@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_a_row_finds_itself_at_exactly_zero_also_among_floats_far_from_the_origin(kernels, offset):
    bank = random(60, 24, offset=offset)
    distances, indices = kernels.nearest(bank, bank, 9)
    np.testing.assert_array_equal(indices[:, 0], np.arange(60))
    np.testing.assert_array_equal(distances[:, 0], 0)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.sampled_from([0.0, 30.0]))
def test_one_neighbour_is_the_minimum_of_nine_and_any_order_of_the_bank_agrees(kernels, seed, channels, offset):
    queries, bank = random(8, channels, seed=seed, offset=offset), random(30, channels, seed=seed + 1, offset=offset)
    nine = kernels.nearest(queries, bank, 9)[0].min(axis=1)
    one = kernels.nearest(queries, bank, 1)[0][:, 0]
    mixed = kernels.nearest(queries, bank[np.random.default_rng(seed).permutation(30)], 1)[0][:, 0]
    bound = slack(queries, bank)[:, 0] + 2 * FLOAT32.direct(channels) * nine
    assert (np.abs(one - nine) <= bound).all()
    assert (np.abs(mixed - nine) <= bound).all()


def test_the_arguments_are_not_changed(kernels):
    queries, bank = random(5, 4), random(9, 4, seed=1)
    before = queries.copy(), bank.copy()
    kernels.nearest(queries, bank, 3)
    assert_same((queries, bank), before)


# --- queries without a distance


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("storage", [None, "float32", "float16", "int8"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_query_that_is_not_finite_gets_nan_and_no_row(kernels, bad, storage, dtype):
    queries, rows = integers(33, 9, high=9), integers(40, 9, seed=1, high=9)
    bank = rows if storage is None else kernels.bank(rows, storage)
    queries[:, 0] = 9
    wanted = kernels.nearest(queries, bank, 3)
    broken = [0, 5, 13, 14, 32]  # first and last of a tile among them
    for place, row in enumerate(broken):
        queries[row, place * 2] = bad
    distances, indices = kernels.nearest(queries.astype(dtype), bank, 3)
    assert np.isnan(distances[broken]).all()
    assert (indices[broken] == -1).all()
    whole = np.setdiff1d(np.arange(33), broken)
    assert_same((distances[whole], indices[whole]), (wanted[0][whole], wanted[1][whole]))  # and the others theirs


@pytest.mark.parametrize("k", [1, 2])
def test_a_query_whose_norm_is_out_of_range_gets_nan_and_no_row(kernels, k):
    queries = np.array([[1e30, 0], [1, 2], [-2e19, 0]], np.float32)
    distances, indices = kernels.nearest(queries, np.eye(2, dtype=np.float32), k)
    assert np.isnan(distances[[0, 2]]).all()
    assert indices[[0, 2]].tolist() == [[-1] * k] * 2
    assert_same(distances[1], np.array([2, 4], np.float32)[:k])


@pytest.mark.parametrize("storage", [None, "float32", "int8"])
def test_a_query_whose_norm_is_out_of_range_gets_nan_also_where_its_distance_is_within(kernels, storage):
    queries, rows = np.array([[9.3e18], [1.0]], np.float32), np.array([[9e18]], np.float32)
    distances, indices = kernels.nearest(queries, rows if storage is None else kernels.bank(rows, storage), 1)
    assert np.isnan(distances[0, 0])
    assert np.isfinite(distances[1, 0])
    assert indices.tolist() == [[-1], [0]]


@pytest.mark.parametrize("storage", [None, "float32", "int8"])
def test_norms_just_within_range_have_their_true_neighbours(kernels, storage):
    queries, rows = np.array([[9e18], [7.4e18]], np.float32), np.array([[8e18], [9.2e18]], np.float32)
    distances, indices = kernels.nearest(queries, rows if storage is None else kernels.bank(rows, storage), 1)
    assert indices.tolist() == [[1], [0]]
    assert np.isfinite(distances).all()


@pytest.mark.parametrize("k", [1, 2])
def test_the_largest_distance_between_norms_within_range_is_finite(kernels, k):
    queries, bank = np.full((1, 1), 9.2e18, np.float32), np.full((2, 1), -9.2e18, np.float32)
    distances, indices = kernels.nearest(queries, bank, k)
    np.testing.assert_array_equal(distances, np.full((1, k), np.square(np.float32(9.2e18) * 2)))
    assert indices.tolist() == [list(range(k))]


@pytest.mark.parametrize("storage", [None, "float32", "float16", "int8"])
def test_no_queries_give_empty_results(kernels, storage):
    rows = integers(9, 4)
    distances, indices = kernels.nearest(
        np.empty((0, 4), np.float32), rows if storage is None else kernels.bank(rows, storage), 2
    )
    assert (distances.shape, distances.dtype) == ((0, 2), np.float32)
    assert (indices.shape, indices.dtype) == ((0, 2), np.int64)


def test_numpy_integers_are_counts_too(kernels):
    assert kernels.nearest(integers(2, 3), integers(4, 3), np.int64(2), threads=np.int32(1))[0].shape == (2, 2)
