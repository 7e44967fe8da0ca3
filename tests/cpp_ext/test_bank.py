"""Banks: every storage is exact where it loses nothing, and within its stated bound where it does."""

from __future__ import annotations

import gc
from functools import cache
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_cases import assert_same, exact_nearest, integers, random, slack, true_distances
from tolerances import FLOAT32

from flawscope.cpp_ext import reference
from flawscope.errors import ArgumentError

STORAGES = ["float32", "float16", "int8"]


def with_peak(array, peak=127):
    """Rows whose largest magnitude is 127, so that 8-bit integers hold them exactly: the factor of each is one."""
    array = array.copy()
    row = np.arange(len(array))
    array[row, row % array.shape[1]] = np.where(row % 2, -peak, peak)
    return array


# --- exact where nothing is lost

# The sizes lie on the edges of tiles (4, 6, 14, 32), panels (2, 16, 32), four panels, vectors and groups of 4 and 64
# channels.
EDGES = sorted(
    {
        *product((1, 4, 6, 7, 14, 15, 29, 32, 33), (1, 2, 15, 16, 17, 32, 33, 65, 128, 129), (3, 17)),
        *product((5, 14), (33, 65), (1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 33, 63, 64, 65, 128, 129)),
    }
)


@cache
def edge_case(count, rows, channels, k):
    queries, bank = with_peak(integers(count, channels, high=3)), with_peak(integers(rows, channels, seed=1, high=3))
    return queries, bank, reference.nearest(queries, bank, k)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("k", [1, 2, 9, 64])
@pytest.mark.parametrize("storage", STORAGES)
def test_integers_that_the_storage_holds_give_the_exact_result(kernels, storage, k, dtype):
    for count, rows, channels in EDGES:
        if k <= rows:
            queries, rows_, wanted = edge_case(count, rows, channels, k)
            bank = kernels.bank(rows_, storage)
            assert bank.error_bound == 0
            assert_same(bank.nearest(queries.astype(dtype), k), wanted, (count, rows, channels))


@pytest.mark.parametrize("k", [1, 2, 9])
@pytest.mark.parametrize("storage", STORAGES)
def test_reranking_changes_no_exact_result(kernels, storage, k):
    queries, rows, wanted = edge_case(29, 65, 17, k)
    bank = kernels.bank(rows, storage)
    for rerank in (k, 10, 33, 64):
        assert_same(bank.nearest(queries, k, rerank=rerank), wanted, rerank)
    few = kernels.bank(rows[:10], storage)  # more candidates than there are rows
    assert_same(few.nearest(queries, k, rerank=64), reference.nearest(queries, rows[:10], k))


@pytest.mark.parametrize("k", [1, 3])
def test_float16_holds_integers_up_to_2048(kernels, k):
    rows = np.array([[2048], [-2047], [1025], [-1], [0], [2047]], np.float32)
    queries = np.array([[2048], [1024], [-2048], [3]], np.float32)
    bank = kernels.bank(rows, "float16")
    assert bank.error_bound == 0
    assert_same(bank.nearest(queries, k), exact_nearest(queries, rows, k))


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("threads", [1, 2, 3, 8])
def test_the_number_of_threads_changes_nothing(compiled, threads, storage):
    for count, k in product((1, 40), (1, 9)):
        queries, rows, wanted = edge_case(count, 3000, 9, k)
        bank = compiled.bank(rows, storage, threads=threads)
        assert_same(bank.nearest(queries, k, threads=threads), wanted, (count, k))


def test_8_bit_sums_do_not_overflow_at_the_largest_number_of_channels(kernels):
    channels = 65_536
    halves = np.where(np.arange(channels) < channels // 2, np.float32(127), np.float32(-127))
    quarters = np.where(np.arange(channels) < channels // 4, np.float32(-127), np.float32(127))
    ones = np.full(channels, 127, np.float32)
    rows = np.stack([-ones, halves, quarters, ones, -ones])
    bank = kernels.bank(rows, "int8")
    for query, wanted in ((ones, [3, 2, 1, 0]), (-ones, [0, 4, 1, 2])):
        distances, indices = bank.nearest(query[None], 4)
        assert indices.tolist() == [wanted]
        assert distances[0, 0] == 0


# --- the stated error


def quantised(rows, storage):
    return reference.stored_rows(rows, storage).astype(np.float64)


@settings(deadline=None, max_examples=40)
@given(
    st.sampled_from(["float16", "int8"]),
    st.integers(0, 2**32 - 1),
    st.integers(1, 70),
    st.integers(1, 40),
    st.sampled_from([1e-3, 1.0, 30.0]),
    st.sampled_from([0.0, 5.0]),
)
def test_the_error_bound_is_the_largest_distance_of_a_row_to_what_is_stored(
    kernels, storage, seed, rows, channels, scale, offset
):
    values = random(rows, channels, seed=seed, scale=scale, offset=offset)
    bank = kernels.bank(values, storage)
    wanted = np.linalg.norm(values.astype(np.float64) - quantised(values, storage), axis=1).max()
    assert bank.error_bound == pytest.approx(wanted, rel=FLOAT32.unit)
    assert bank.error_bound > 0 or channels == 1


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_distances_are_off_by_at_most_the_bound(kernels, data):
    storage = data.draw(st.sampled_from(STORAGES))
    seed, channels = data.draw(st.integers(0, 2**32 - 1)), data.draw(st.integers(1, 40))
    offset = data.draw(st.sampled_from([0.0, 3.0]))
    queries = random(9, channels, seed=seed, offset=offset)
    rows = random(50, channels, seed=seed + 1, offset=offset)
    bank = kernels.bank(rows, storage)
    k = data.draw(st.sampled_from([1, 4, 50]))
    distances, indices = bank.nearest(queries, k)
    roots = np.sqrt(distances.astype(np.float64))
    true = np.sqrt(np.take_along_axis(true_distances(queries, rows), indices, axis=1))
    # √(1 + δ) is nearer to one than 1 + δ; the distance to what is stored is at most the true one plus the bound.
    rounding = FLOAT32.direct(channels) * (true + bank.error_bound)
    assert (np.abs(roots - true) <= bank.error_bound + rounding).all()
    stored = np.sqrt(np.take_along_axis(true_distances(queries, quantised(rows, storage)), indices, axis=1))
    np.testing.assert_allclose(roots, stored, rtol=FLOAT32.direct(channels))  # it is the distance to what is stored


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_the_row_that_is_found_is_at_most_twice_the_errors_farther_than_the_nearest(kernels, data):
    storage = data.draw(st.sampled_from(["float16", "int8"]))
    seed, channels = data.draw(st.integers(0, 2**32 - 1)), data.draw(st.integers(1, 40))
    queries, rows = random(9, channels, seed=seed), random(50, channels, seed=seed + 1)
    bank = kernels.bank(rows, storage)
    true = true_distances(queries, rows)
    found = np.sqrt(np.take_along_axis(true, bank.nearest(queries, 1)[1], axis=1))[:, 0]
    nearest = np.sqrt(true.min(axis=1))
    seen = quantised(queries, "int8") if storage == "int8" else queries.astype(np.float64)
    lost = np.linalg.norm(queries - seen, axis=1)
    norms = np.linalg.norm(seen, axis=1) + np.linalg.norm(quantised(rows, storage), axis=1).max()
    # Two comparisons are each off by the product form; a square that is off by ε has a root off by at most √ε.
    rounding = np.sqrt(2 * FLOAT32.int8_form(channels)) * norms
    assert (found <= nearest + 2 * (bank.error_bound + lost) + rounding).all()


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_reranked_distances_are_those_of_float32(kernels, data):
    storage = data.draw(st.sampled_from(["float16", "int8"]))
    seed, channels = data.draw(st.integers(0, 2**32 - 1)), data.draw(st.integers(1, 40))
    queries, rows = random(9, channels, seed=seed), random(60, channels, seed=seed + 1)
    k = data.draw(st.integers(1, 9))
    distances, indices = kernels.bank(rows, storage).nearest(queries, k, rerank=data.draw(st.integers(k, 64)))
    assert (np.diff(distances, axis=1) >= 0).all()
    for n in range(len(queries)):
        # One row at a time: a search among k rows gives the very distances, to the bit.
        got = [kernels.nearest(queries[n : n + 1], rows[m : m + 1], 1)[0][0, 0] for m in indices[n]]
        assert_same(distances[n], np.array(got))


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(1, 9), st.sampled_from(["float16", "int8"]))
def test_with_all_rows_as_candidates_reranking_finds_the_true_neighbours(kernels, seed, channels, k, storage):
    queries, rows = random(9, channels, seed=seed), random(64, channels, seed=seed + 1)
    distances, _ = kernels.bank(rows, storage).nearest(queries, k, rerank=64)
    best = np.sort(true_distances(queries, rows), axis=1)[:, :k]
    np.testing.assert_allclose(distances, best, rtol=2 * FLOAT32.direct(channels))
    exact, _ = kernels.nearest(queries, rows, k)
    assert (distances <= exact * (1 + 2 * FLOAT32.direct(channels))).all()
    assert (exact <= distances + slack(queries, rows)).all()


def test_values_that_the_storage_rounds_to_zero_are_zero(kernels):
    rows = np.array([[1e-8, 0], [-1e-8, 1e-8], [0, 0]], np.float32)
    bank = kernels.bank(rows, "float16")
    distances, indices = bank.nearest(np.zeros((1, 2), np.float32), 3)
    assert distances.tolist() == [[0, 0, 0]]
    assert indices.tolist() == [[0, 1, 2]]
    assert bank.error_bound == pytest.approx(np.sqrt(2) * np.float64(np.float32(1e-8)))


def test_rows_are_rounded_to_float16_as_numpy_rounds_them(kernels):
    # Halfway cases, subnormal numbers and the last number before infinity, each as the only row of a bank.
    values = [2.0**-24, 2.0**-25, 3 * 2.0**-25, 2.0**-14 - 2.0**-25, 1 + 2.0**-11, 1 + 3 * 2.0**-11, 65519.0, -0.1]
    for value in values:
        rows = np.array([[value]], np.float32)
        bank = kernels.bank(rows, "float16")
        stored = rows.astype(np.float16).astype(np.float32)
        assert bank.nearest(stored)[0].tolist() == [[0]], value
        assert bank.error_bound == abs(float(rows[0, 0]) - float(stored[0, 0])), value


# --- the object


def test_it_tells_what_it_holds(kernels):
    rows = random(640, 32)
    banks = {storage: kernels.bank(rows, storage) for storage in STORAGES}
    for storage, bank in banks.items():
        assert (bank.shape, len(bank), bank.storage) == ((640, 32), 640, storage)
    assert banks["float32"].error_bound == 0
    assert 0 < banks["float16"].error_bound < banks["int8"].error_bound


def test_narrower_storage_takes_less_memory(compiled):
    sizes = [compiled.bank(random(6400, 64), storage).nbytes for storage in ("int8", "float16", "float32")]
    assert sizes == sorted(sizes)
    for size, width in zip(sizes, (1, 2, 4), strict=True):
        # Beside the rows: a norm, and for int8 a factor and a sum; large blocks come in pages of 2 MiB.
        assert 6400 * 64 * width <= size <= 6400 * (64 * width + 12) + (2 << 20)


@pytest.mark.parametrize("storage", STORAGES)
def test_it_keeps_what_it_reads_alive(kernels, storage):
    rows = integers(400, 33, high=9)
    queries = integers(20, 33, seed=1, high=9)
    bank = kernels.bank(np.repeat(rows, 2, axis=1)[:, ::2], storage)  # a copy that nobody else holds
    gc.collect()
    junk = [np.full((400, 33), 1e9, np.float32) for _ in range(50)]
    got = bank.nearest(queries, 9, rerank=9)
    del junk
    assert_same(got[0], np.take_along_axis(true_distances(queries, rows), got[1], axis=1).astype(np.float32))


@pytest.mark.parametrize("storage", ["float16", "int8"])
def test_without_its_rows_it_does_not_need_them(kernels, storage):
    rows = with_peak(integers(200, 9))
    queries = with_peak(integers(20, 9, seed=1))
    wanted = kernels.nearest(queries, rows, 5)
    bank = kernels.bank(rows, storage, keep_rows=False)
    rows[:] = np.nan
    assert_same(bank.nearest(queries, 5), wanted)


@pytest.mark.parametrize("storage", STORAGES)
def test_it_keeps_the_level_it_was_packed_for(compiled, storage):
    queries, rows, wanted = edge_case(29, 65, 17, 9)
    bank = compiled.bank(rows, storage)
    assert bank._packed.simd_level == compiled.name
    assert_same(bank.nearest(queries, 9), wanted)  # while another level is in use


def test_nearest_takes_a_bank_too(kernels):
    queries, rows, wanted = edge_case(29, 65, 17, 9)
    assert_same(kernels.nearest(queries, kernels.bank(rows, "int8"), 9), wanted)


def test_one_neighbour_is_the_default(kernels):
    queries, rows, wanted = edge_case(29, 65, 17, 1)
    assert_same(kernels.bank(rows).nearest(queries), wanted)


# --- wrong options and rows

ROWS, QUERIES = np.ones((4, 3), np.float32), np.ones((2, 3), np.float32)


@pytest.mark.parametrize(
    ("storage", "k", "options", "message"),
    [
        ("int8", 2, {"rerank": 1}, "rerank: expected 0, or at least k = 2, got 1"),
        ("int8", 1, {"rerank": -1}, "rerank: expected an integer from 1 to 64 .*, got -1"),
        ("int8", 1, {"rerank": 65}, "rerank: expected an integer from 1 to 64 .*, got 65"),
        ("float16", 1, {"rerank": 2.0}, "rerank: expected an integer from 1 to 64 .*, got 2.0"),
        ("float16", 1, {"rerank": True}, "rerank: expected an integer from 1 to 64 .*, got True"),
        ("float32", 0, {}, "k: expected an integer from 1 to 4 .*, got 0"),
        ("float32", 5, {}, r"k: expected an integer from 1 to 4 \(rows of the bank.*\), got 5"),
        ("int8", 1, {"threads": -1}, "threads: expected an integer from 0 .*, got -1"),
    ],
)
def test_wrong_options_are_refused(face, storage, k, options, message):
    bank = face.bank(ROWS, storage)
    with pytest.raises(ArgumentError, match=message):
        bank.nearest(QUERIES, k, **options)


@pytest.mark.parametrize("storage", ["float16", "int8"])
def test_reranking_needs_the_rows(kernels, storage):
    bank = kernels.bank(ROWS, storage, keep_rows=False)
    with pytest.raises(ArgumentError, match=r"rerank: expected a bank with its float32 rows, got .*keep_rows=False"):
        bank.nearest(QUERIES, 1, rerank=2)


def test_float32_always_has_its_rows(kernels):
    assert kernels.bank(ROWS, keep_rows=False).nearest(QUERIES, 1, rerank=2)[0].tolist() == [[0], [0]]


@pytest.mark.parametrize("storage", ["int4", "", None, "FLOAT32"])
def test_an_unknown_storage_is_refused(face, storage):
    with pytest.raises(ArgumentError, match="storage: expected one of float32, float16, int8, got"):
        face.bank(ROWS, storage)


@pytest.mark.parametrize("place", [0, 1, 63, 64, 199])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("storage", STORAGES)
def test_rows_that_are_not_finite_are_refused(kernels, storage, bad, place):
    rows = random(200, 5)
    rows[place, place % 5] = bad
    with pytest.raises(ArgumentError, match=r"bank: expected finite .*NaN"):
        kernels.bank(rows, storage)
    with pytest.raises(ArgumentError, match=r"bank: expected finite .*NaN"):
        kernels.nearest(rows[:2], rows, 1)


@pytest.mark.parametrize("storage", ["float32", "int8"])
def test_rows_whose_norm_is_out_of_range_are_refused(kernels, storage):
    rows = np.array([[1, 2], [9.3e18, 0]], np.float32)
    with pytest.raises(
        ArgumentError, match=r"bank: expected finite rows with squared norms below 2\^126, got NaN, infinite or larger"
    ):
        kernels.bank(rows, storage)
    with pytest.raises(
        ArgumentError, match=r"bank: expected finite rows with squared norms below 2\^126, got NaN, infinite or larger"
    ):
        kernels.nearest(rows[:1], rows, 1)


@pytest.mark.parametrize("value", [1e5, -65520.0])
def test_rows_beyond_float16_are_refused_by_that_storage(kernels, value):
    rows = np.array([[1, 2], [value, 0]], np.float32)
    with pytest.raises(ArgumentError, match=r"bank: expected .*within float16"):
        kernels.bank(rows, "float16")
    assert kernels.bank(rows, "int8").shape == (2, 2)


def test_more_channels_than_8_bit_sums_hold_are_refused_in_words(compiled):
    with pytest.raises(ArgumentError, match=r"bank: expected .*65,?536"):
        compiled.bank(np.ones((2, 65_537), np.float32), "int8")
