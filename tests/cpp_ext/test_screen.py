"""The int8 screen of a float32 bank: the result is that of a float32 search, whatever could be proved."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_cases import assert_same, exact_nearest, integer_arrays, integers, random, slack, true_distances
from tolerances import FLOAT32

from flawscope.errors import ArgumentError

NEIGHBOURS = (1, 2, 9, 16)
"""Numbers of neighbours that are looked for through a screen; 17 are not."""


def check_floats(kernels, queries, rows, **options):
    """Distances are those of the rows, and no rows are nearer than rounding explains: what holds without a screen."""
    channels, true = rows.shape[1], true_distances(queries, rows)
    ascending = np.sort(true, axis=1)
    for k in [k for k in NEIGHBOURS if k <= len(rows)]:
        bank = kernels.bank(rows, screen=True)
        assert bank.error_bound == 0
        for _ in range(3):  # later calls may do without the screen, if it proved little
            distances, indices = bank.nearest(queries, k, **options)
            own = np.take_along_axis(true, indices, axis=1)
            np.testing.assert_allclose(distances, own, rtol=FLOAT32.direct(channels), atol=0)
            assert (np.diff(distances, axis=1) >= 0).all()
            assert all(len(set(row)) == k for row in indices.tolist())
            best = ascending[:, :k]
            assert (own <= best + slack(queries, rows) + 2 * FLOAT32.direct(channels) * best).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("high", [1, 9, 100])
def test_integers_give_the_exact_result_on_every_tile_edge(kernels, high, dtype):
    for count, rows, channels in [
        *product((1, 4, 6, 7, 14, 15, 29, 32, 33), (1, 2, 16, 17, 32, 33, 65, 128, 129), (3, 17)),
        *product((15, 33), (65,), (1, 2, 4, 5, 7, 8, 9, 16, 31, 33, 63, 64, 65, 127, 129)),
    ]:
        queries, bank = integers(count, channels, high=high), integers(rows, channels, seed=1, high=high)
        screened = kernels.bank(bank, screen=True)
        for k in [k for k in (*NEIGHBOURS, 17) if k <= rows]:
            got = screened.nearest(queries.astype(dtype), k)
            assert_same(got, exact_nearest(queries, bank, k), (count, rows, channels, k))


@pytest.mark.parametrize("k", [1, 9])
@pytest.mark.parametrize("threads", [1, 2, 3, 8])
def test_the_number_of_threads_changes_nothing(kernels, threads, k):
    queries, rows = integers(301, 33, high=50), integers(3000, 33, seed=1, high=50)
    bank = kernels.bank(rows, screen=True, threads=threads)
    assert_same(bank.nearest(queries, k, threads=threads), exact_nearest(queries, rows, k))


@pytest.mark.parametrize("k", [1, 9])
def test_a_bank_with_more_panels_than_a_value_can_number_is_searched_too(kernels, k):
    # 4,096 panels of at most 32 rows are numbered in the low bits of the values.
    queries, rows = integers(9, 3, high=50), integers(4096 * 32 + 33, 3, seed=1, high=50)
    assert_same(kernels.bank(rows, screen=True).nearest(queries, k), exact_nearest(queries, rows, k))


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_ties_take_the_lowest_row(kernels, data):
    channels = data.draw(st.integers(1, 3))
    queries = data.draw(integer_arrays(st.integers(1, 5), st.just(channels)))
    rows = np.sign(data.draw(integer_arrays(st.integers(1, 40), st.just(channels))))
    for k in [k for k in NEIGHBOURS if k <= len(rows)]:
        assert_same(kernels.bank(rows, screen=True).nearest(queries, k), exact_nearest(queries, rows, k))


@settings(deadline=None, max_examples=60)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 200),
    st.integers(1, 80),
    st.sampled_from([0.0, 1.0, 50.0]),
    st.sampled_from([1e-12, 1e-3, 1.0, 1e4]),
)
def test_floats_are_found_as_without_a_screen(kernels, seed, rows, channels, offset, scale):
    queries = scale * random(17, channels, seed=seed, offset=offset)
    check_floats(kernels, queries, scale * random(rows, channels, seed=seed + 1, offset=offset))


@pytest.mark.parametrize("spread", [1e-1, 1e-3, 1e-6])
def test_rows_that_8_bits_cannot_tell_apart_are_told_apart_as_far_as_float32_can(kernels, spread):
    centre = random(1, 64)
    rows = centre + spread * random(500, 64, seed=1)
    check_floats(kernels, centre + spread * random(60, 64, seed=2), rows)


def test_a_row_finds_itself_among_rows_that_are_near(kernels):
    rows = random(1, 64) + 0.1 * random(500, 64, seed=1)
    distances, indices = kernels.bank(rows, screen=True).nearest(rows, 1)
    assert_same(distances, np.zeros((500, 1)))
    assert_same(indices[:, 0], np.arange(500))


def test_rows_of_very_different_size_are_searched_as_one_bank(kernels):
    sizes = np.geomspace(1e-6, 1e6, 300)[:, None].astype(np.float32)
    rows = random(300, 20) * sizes
    check_floats(kernels, random(60, 20, seed=1) * sizes[::5], rows)


def test_one_large_component_hides_no_row(kernels):
    # The step of 8 bits is set by the largest component: the others, which decide, are all rounded to zero.
    rows, queries = random(400, 30), random(50, 30, seed=1)
    rows[:, 3] = queries[:, 3] = 1e4
    check_floats(kernels, queries, rows)


def test_rows_and_queries_of_zeros_have_distances_too(kernels):
    rows = np.concatenate([integers(40, 9, high=9), np.zeros((40, 9), np.float32)])
    queries = np.concatenate([np.zeros((3, 9), np.float32), integers(3, 9, seed=1, high=9)])
    assert_same(kernels.bank(rows, screen=True).nearest(queries, 1), exact_nearest(queries, rows, 1))


@pytest.mark.parametrize("k", [1, 9])
@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e30])
def test_a_query_without_a_distance_gets_nan_and_no_row(kernels, bad, k):
    queries, rows = integers(33, 9, high=9), integers(80, 9, seed=1, high=9)
    wanted = exact_nearest(queries, rows, k)
    broken = [0, 13, 14, 32]
    queries[broken, 4] = bad
    distances, indices = kernels.bank(rows, screen=True).nearest(queries, k)
    assert np.isnan(distances[broken]).all()
    assert (indices[broken] == -1).all()
    whole = np.setdiff1d(np.arange(33), broken)
    assert_same((distances[whole], indices[whole]), (wanted[0][whole], wanted[1][whole]))


@pytest.mark.parametrize("k", [2, 9, 64])
def test_candidates_to_rank_again_change_nothing(kernels, k):
    queries, rows = integers(33, 9, high=9), integers(80, 9, seed=1, high=9)
    bank = kernels.bank(rows, screen=True)
    assert_same(bank.nearest(queries, k), exact_nearest(queries, rows, k))
    assert_same(bank.nearest(queries, 1, rerank=k), exact_nearest(queries, rows, 1))


def test_it_tells_how_much_it_could_not_prove(compiled):
    far = 100 * np.eye(64, dtype=np.float32)
    easy = compiled.bank(far, screen=True)
    assert_same(easy.nearest(far, 1)[1][:, 0], np.arange(64))
    assert easy.unproved_share == 0
    rows = random(1, 64) + 1e-6 * random(500, 64, seed=1)
    hard = compiled.bank(rows, screen=True)
    hard.nearest(rows, 1)
    assert 0.3 < hard.unproved_share <= 1
    assert compiled.bank(rows, screen=False).unproved_share == -1
    # Wherever a bank has a screen unasked it serves several neighbours too.
    unasked = compiled.bank(rows)
    if unasked.unproved_share != -1:
        unasked.nearest(rows, 9)
        assert unasked.unproved_share > 0
    assert compiled.bank(rows, "int8").unproved_share == -1


@pytest.mark.parametrize("storage", ["float16", "int8"])
def test_it_is_for_float32_banks_only(face, storage):
    with pytest.raises(ArgumentError, match=f"screen: expected a float32 bank, got {storage}"):
        face.bank(random(4, 3), storage, screen=True)
