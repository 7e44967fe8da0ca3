"""Nearest rows within windows: exact on integers, bounded on floats, and their properties, for every implementation."""

from __future__ import annotations

from functools import cache
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from kernel_cases import INTEGERS, assert_same, integers, random, slack, true_distances
from tolerances import FLOAT32

from flawscope.cpp_ext import native, reference
from flawscope.errors import ArgumentError


def places_of(count, grid, seed=0):
    """Places of that many rows, in order."""
    cells = np.sort(np.random.default_rng(seed).integers(grid[0] * grid[1], size=count))
    return np.stack([cells // grid[1], cells % grid[1]], axis=1)


def naive_reach(places, grid, radius):
    """The definition: the radius, at most the longer side of the grid, or as far as the nearest row is."""
    away = [np.abs(places - cell).max(axis=1).min() for cell in np.ndindex(*grid)]
    return np.maximum(np.array(away), min(radius, max(grid))).reshape(grid)


def naive_within(queries, rows, places, grid, radius):
    """Squared distances and rows by Python integers, a minimum over (distance, row) of the rows that are in reach."""
    reach = naive_reach(places, grid, radius)
    found = []
    for place, query in zip(list(np.ndindex(*grid)) * (len(queries) // reach.size), queries, strict=True):
        near = [m for m in range(len(rows)) if np.abs(places[m] - place).max() <= reach[place]]
        found.append(min((sum((int(a) - int(b)) ** 2 for a, b in zip(query, rows[m], strict=True)), m) for m in near))
    return np.array([d for d, _ in found], np.float32), np.array([m for _, m in found])


# --- exact on integers


@pytest.mark.parametrize("radius", [0, 1, 3, 9])
@pytest.mark.parametrize(
    ("grid", "rows", "channels"), [((1, 1), 3, 1), ((1, 9), 30, 2), ((5, 3), 7, 3), ((4, 6), 70, 17)]
)
def test_integers_give_the_exact_distances_and_rows(kernels, grid, rows, channels, radius):
    queries, bank = integers(2 * grid[0] * grid[1], channels), integers(rows, channels, seed=1)
    places = places_of(rows, grid)
    squared, found = kernels.window_bank(bank, places, grid, radius).nearest(queries)
    assert (squared.dtype, found.dtype) == (np.float32, np.int64)
    assert_same((squared, found), naive_within(queries, bank, places, grid, radius))


# Rows for a part of a panel and for many of them, grids beyond a tile, places with many rows and with none.
GRIDS = ((1, 1), (2, 2), (3, 5), (7, 7), (1, 40), (40, 1), (13, 17))
ROWS = (1, 2, 15, 33, 64, 65, 700)


@cache
def shape_case(grid, rows, channels, radius, images):
    queries = integers(images * grid[0] * grid[1], channels, high=2)
    bank, places = integers(rows, channels, seed=1, high=2), places_of(rows, grid)
    reach = naive_reach(places, grid, radius)
    return queries, bank, places, reference.nearest_within(queries, bank, places, reach)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("channels", [1, 33])
def test_every_level_equals_the_reference_on_every_shape(compiled, channels, dtype):
    for grid, rows, radius, images in product(GRIDS, ROWS, (0, 1, 4), (1, 3)):
        queries, bank, places, wanted = shape_case(grid, rows, channels, radius, images)
        windows = compiled.window_bank(bank, places, grid, radius)
        assert_same(windows.nearest(queries.astype(dtype)), wanted, (grid, rows, radius, images))


def test_what_the_screen_of_a_level_cannot_prove_is_found_in_float32(compiled):
    grid, rows, channels, images = (9, 11), 1500, 48, 5
    places = places_of(rows, grid)
    bank = np.tile(integers(32, channels, seed=1, high=9), (rows // 32 + 1, 1))[:rows]
    bank = np.ascontiguousarray(bank)  # every row comes again a panel later: the second of its lane is as near as it
    windows = compiled.window_bank(bank, places, grid, 3)
    has_screen = windows.nbytes > 1.2 * bank.nbytes
    products = []
    for seed in range(4):  # above 1,024 queries a screen that proves too little is switched off
        queries, before = integers(images * 99, channels, seed=2 + seed, high=9), windows.computed
        assert_same(windows.nearest(queries), reference.nearest_within(queries, bank, places, windows.reach), seed)
        products.append(windows.computed - before)
    assert (products[3] < 0.75 * products[0]) == has_screen


def test_more_images_than_are_searched_at_a_time_all_get_theirs(compiled):
    grid, channels = (3, 3), 64
    queries, bank = integers(9 * 9000, channels, high=2), integers(50, channels, seed=1, high=2)
    places = places_of(50, grid)
    assert 8 * queries.size > 32 << 20
    windows = compiled.window_bank(bank, places, grid, 1)
    assert_same(windows.nearest(queries), reference.nearest_within(queries, bank, places, windows.reach))


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
def test_the_number_of_threads_changes_nothing(compiled, threads):
    for grid, rows, radius, images in product(((1, 1), (6, 9)), (1, 33, 3000), (0, 2), (1, 20)):
        queries = integers(images * grid[0] * grid[1], 7, high=2)
        bank, places = integers(rows, 7, seed=1, high=2), places_of(rows, grid)
        windows = compiled.window_bank(bank, places, grid, radius, threads=threads)
        wanted = reference.nearest_within(queries, bank, places, windows.reach)
        assert_same(windows.nearest(queries, threads=threads), wanted, (grid, rows, radius, images))


@pytest.mark.parametrize("threads", [2, 3, 8])
def test_the_number_of_threads_changes_no_bit_of_floats(compiled, threads):
    windows = compiled.window_bank(random(900, 37, seed=1), places_of(900, (8, 8)), (8, 8), 2)
    queries = random(5 * 64, 37)
    assert_same(windows.nearest(queries, threads=threads), windows.nearest(queries, threads=1))


# --- the whole grid, and other windows


@pytest.mark.parametrize("channels", [3, 40])
def test_a_window_of_the_whole_grid_is_the_search_of_the_whole_bank(kernels, channels):
    grid, rows = (6, 5), 500
    queries, bank = random(4 * 30, channels), random(rows, channels, seed=1)
    squared, found = kernels.window_bank(bank, places_of(rows, grid), grid, 5).nearest(queries)
    whole = kernels.nearest(queries, bank, 1)
    true = true_distances(queries, bank)
    np.testing.assert_allclose(
        squared, np.take_along_axis(true, found[:, None], 1)[:, 0], rtol=FLOAT32.direct(channels)
    )
    # Both may take a row that is farther than the nearest by the rounding of the product form, and no more.
    bound = slack(queries, bank)[:, 0] + 2 * FLOAT32.direct(channels) * whole[0][:, 0]
    assert (np.abs(squared - whole[0][:, 0]) <= bound).all()


def test_a_window_of_the_whole_grid_is_the_search_of_the_whole_bank_bit_for_bit(kernels):
    grid, rows = (6, 5), 500
    queries, bank = integers(4 * 30, 9), integers(rows, 9, seed=1)  # many ties
    whole = kernels.nearest(queries, bank, 1)
    for radius in (5, 6, 1000, 2**31, 2**40):
        windows = kernels.window_bank(bank, places_of(rows, grid), grid, radius)
        assert_same(windows.nearest(queries), (whole[0][:, 0], whole[1][:, 0]), radius)
        assert windows.pairs == 30 * rows


@pytest.mark.parametrize(("scale", "offset"), [(1.0, 0.0), (1e-3, 10.0), (1e3, 0.0)])
def test_floats_give_distances_within_the_bounds(kernels, scale, offset):
    grid, rows, channels = (6, 7), 300, 24
    queries = random(2 * 42, channels, scale=scale, offset=offset)
    bank, places = random(rows, channels, seed=1, scale=scale, offset=offset), places_of(rows, grid)
    windows = kernels.window_bank(bank, places, grid, 1)
    squared, found = windows.nearest(queries)
    true = true_distances(queries, bank)
    own = np.take_along_axis(true, found[:, None], axis=1)[:, 0]
    np.testing.assert_allclose(squared, own, rtol=FLOAT32.direct(channels), atol=0)
    cells = np.array(list(np.ndindex(*grid)) * 2)
    away = np.abs(cells[:, None] - places[None]).max(axis=2)
    within = away <= windows.reach[tuple(cells.T)][:, None]
    assert within[np.arange(len(found)), found].all()
    best = np.where(within, true, np.inf).min(axis=1)
    assert (own <= best + slack(queries, bank)[:, 0] + FLOAT32.direct(channels) * best).all()


# --- properties


@st.composite
def cases(draw):
    grid = draw(st.tuples(st.integers(1, 6), st.integers(1, 6)))
    rows, channels = draw(st.integers(1, 40)), draw(st.integers(1, 3))
    cells = np.sort(draw(hnp.arrays(np.int64, rows, elements=st.integers(0, grid[0] * grid[1] - 1))))
    bank = np.sign(draw(hnp.arrays(np.float32, (rows, channels), elements=INTEGERS)))  # ties are the rule
    images = draw(st.integers(1, 3))
    queries = draw(hnp.arrays(np.float32, (images * grid[0] * grid[1], channels), elements=INTEGERS))
    return grid, bank, np.stack([cells // grid[1], cells % grid[1]], axis=1), queries, draw(st.integers(0, 6))


@settings(deadline=None, max_examples=60)
@given(cases())
def test_properties_of_windows(kernels, case):
    grid, bank, places, queries, radius = case
    windows = kernels.window_bank(bank, places, grid, radius)
    squared, found = windows.nearest(queries)
    assert_same((squared, found), naive_within(queries, bank, places, grid, radius))
    assert_same(windows.reach, naive_reach(places, grid, radius))
    positions = list(np.ndindex(*grid))
    assert windows.pairs == sum((np.abs(places - cell).max(axis=1) <= windows.reach[cell]).sum() for cell in positions)
    wider = kernels.window_bank(bank, places, grid, radius + 1).nearest(queries)[0]
    assert (wider <= squared).all()  # a larger window is never farther
    whole = kernels.window_bank(bank, places, grid, max(grid)).nearest(queries)
    assert_same(whole, tuple(part[:, 0] for part in kernels.nearest(queries, bank, 1)))
    # Images one by one are as the images together.
    alone = [windows.nearest(image) for image in queries.reshape(-1, len(positions), bank.shape[1])]
    assert_same(tuple(np.concatenate(parts) for parts in zip(*alone, strict=True)), (squared, found))
    # Mirrored, grid and rows and patches, everything is at the mirrored place. Of equal rows another may be the first.
    order = np.lexsort((grid[1] - 1 - places[:, 1], places[:, 0]))
    mirrored = np.stack([places[order, 0], grid[1] - 1 - places[order, 1]], axis=1)
    turned = queries.reshape(-1, *grid, bank.shape[1])[:, :, ::-1].reshape(queries.shape)
    other = kernels.window_bank(bank[order], mirrored, grid, radius).nearest(turned)[0]
    assert_same(other.reshape(-1, *grid)[:, :, ::-1].reshape(-1), squared)


@pytest.mark.parametrize("radius", [0, 2])
def test_where_a_window_has_no_row_it_reaches_to_the_nearest(kernels, radius):
    bank, places = np.array([[1.0], [2.0]], np.float32), np.array([[0, 0], [0, 1]])
    windows = kernels.window_bank(bank, places, (5, 9), radius)
    squared, found = windows.nearest(np.full((45, 1), 2, np.float32))
    assert windows.reach[4, 8] == 7
    assert windows.reach[4, 0] == 4
    assert windows.reach[0, 0] == radius
    # From the far corner only the second row is in reach; above the first row both are.
    assert found.reshape(5, 9)[4, 8] == 1
    assert found.reshape(5, 9)[0, 0] == (0 if radius == 0 else 1)
    assert squared.reshape(5, 9)[0, 0] == (1 if radius == 0 else 0)


# --- patches without a distance


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_patch_that_is_not_finite_gets_nan_and_no_row(kernels, bad, dtype):
    grid, rows = (5, 7), integers(90, 9, seed=1, high=9)
    windows = kernels.window_bank(rows, places_of(90, grid), grid, 1)
    queries = integers(35, 9, high=9)
    wanted = windows.nearest(queries)
    broken = [0, 5, 13, 14, 34]
    queries[broken, 2] = bad
    squared, found = windows.nearest(queries.astype(dtype))
    assert np.isnan(squared[broken]).all()
    assert (found[broken] == -1).all()
    whole = np.setdiff1d(np.arange(35), broken)
    assert_same((squared[whole], found[whole]), (wanted[0][whole], wanted[1][whole]))


def test_no_queries_give_empty_results(kernels):
    squared, found = kernels.window_bank(integers(9, 4), places_of(9, (2, 3)), (2, 3), 1).nearest(
        np.empty((0, 4), np.float32)
    )
    assert (squared.shape, squared.dtype, found.shape, found.dtype) == ((0,), np.float32, (0,), np.int64)


# --- the cost


def test_a_window_costs_a_fraction_of_the_bank(compiled):
    grid, rows, images = (28, 28), 5 * 784, 1
    bank, places = random(rows, 8), places_of(rows, grid)
    windows = compiled.window_bank(bank, places, grid, 3)
    windows.nearest(random(images * 784, 8))
    whole = 784 * rows * images
    assert windows.pairs <= windows.computed / images
    assert windows.pairs < whole / 15
    assert windows.computed < whole / 4


def test_products_are_counted_whatever_the_number_of_threads(compiled):
    windows = compiled.window_bank(random(600, 8), places_of(600, (9, 9)), (9, 9), 1)
    counts = []
    for threads in (1, 1, 2):
        before = windows.computed
        windows.nearest(random(81, 8), threads=threads)
        counts.append(windows.computed - before)
    assert counts[0] == counts[1] > 0
    assert counts[2] > 0


# --- wrong arguments

ROWS_2 = integers(4, 3)
PLACES = np.array([[0, 0], [0, 2], [1, 0], [1, 1]])


@pytest.mark.parametrize(
    ("rows", "places", "radius", "message"),
    [
        (ROWS_2, PLACES[::-1], 1, "places: expected them in ascending order, by grid row and then by column"),
        (ROWS_2, PLACES[:3], 1, "places: expected one for each of the 4 rows, got 3"),
        (ROWS_2, PLACES[:0], 1, "places: expected an integer from 1"),
        (ROWS_2, PLACES + 1, 1, "places: expected rows below 2 and columns below 3, got 1 to"),
        (ROWS_2, PLACES - 1, 1, "places: expected rows below 2 and columns below 3, got -1 to"),
        (ROWS_2, PLACES.astype(np.float32), 1, r"places: expected integers \[M, 2\], got float32 \[4, 2\]"),
        (ROWS_2, PLACES[:, 0], 1, r"places: expected integers \[M, 2\], got int64 \[4\]"),
        (ROWS_2, PLACES.tolist(), 1, r"places: expected integers \[M, 2\], got list"),
        (ROWS_2, PLACES, -1, "radius: expected an integer of at least 0, got -1"),
        (ROWS_2, PLACES, 1.0, "radius: expected an integer of at least 0, got 1.0"),
        (ROWS_2, PLACES, True, "radius: expected an integer of at least 0, got True"),
        (ROWS_2.astype(np.float64), PLACES, 1, "rows: expected .*float32.*, got float64"),
        (ROWS_2[0], PLACES, 1, r"rows: expected .*float32 \[M, D\].* got float32 \[3\]"),
        (ROWS_2 * np.float32(np.nan), PLACES, 1, "rows: expected finite rows"),
    ],
)
def test_wrong_banks_are_refused(face, rows, places, radius, message):
    with pytest.raises(ArgumentError, match=message):
        face.window_bank(rows, places, (2, 3), radius)


@pytest.mark.parametrize(
    ("queries", "message"),
    [
        (integers(7, 3), "queries: expected whole images of 6 patches, got 7 patches"),
        (integers(6, 2), r"queries: expected .*\[N, 3\].* got float32 \[6, 2\]"),
        (integers(6, 3).astype(np.float64), "queries: expected .* got float64"),
        (integers(6, 3)[0], r"queries: expected .* got float32 \[3\]"),
        (None, "queries: expected .* got NoneType"),
    ],
)
def test_wrong_queries_are_refused(face, queries, message):
    windows = face.window_bank(ROWS_2, PLACES, (2, 3), 1)
    with pytest.raises(ArgumentError, match=message):
        windows.nearest(queries)


@pytest.mark.parametrize("threads", [-1, 1.0, True, 2000])
def test_wrong_threads_are_refused(face, threads):
    windows = face.window_bank(ROWS_2, PLACES, (2, 3), 1)
    with pytest.raises(ArgumentError, match="threads: expected"):
        windows.nearest(integers(6, 3), threads=threads)
    with pytest.raises(ArgumentError, match="threads: expected"):
        face.window_bank(ROWS_2, PLACES, (2, 3), 1, threads=threads)


@pytest.mark.skipif(not native.HAVE_NATIVE, reason=f"no native kernels: {native.MISSING_BECAUSE}")
def test_the_binding_refuses_starts_that_lead_out_of_the_bank():
    reach = np.zeros((1, 2), np.int32)
    for starts in ([0, 2, 5], [1, 2, 4], [0, 5, 4], [0, 4], [0, 1, 2, 4]):
        with pytest.raises(ArgumentError, match=r"windows|starts"):
            native.MODULE.Windows(ROWS_2, np.array(starts, np.int64), reach, 1)
    with pytest.raises(ArgumentError, match="windows"):
        native.MODULE.Windows(ROWS_2, np.array([0, 1, 4], np.int64), reach - 1, 1)
