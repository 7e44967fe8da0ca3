"""The two matrices of the map head, against other implementations of the same filters."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import ndimage
from tolerances import FLOAT32, FLOAT64

from flawscope.imaging.grid_places import GridPlaces, centred_places
from flawscope.imaging.map_upsampling import (
    gaussian_matrix,
    map_matrices,
    resampling_matrix,
    upsample_matrix,
    window_matrix,
)

SIZES = [1, 2, 3, 7, 8, 28, 32]


def random_map(rows, columns):
    return np.random.default_rng(rows * 1000 + columns).standard_normal((rows, columns))


# --- up-sampling


def test_doubling_is_exact_on_a_small_case():
    expected = [[1, 0], [0.75, 0.25], [0.25, 0.75], [0, 1]]
    np.testing.assert_array_equal(upsample_matrix(2, 4), expected)


@pytest.mark.parametrize("size", SIZES)
def test_the_same_size_is_the_identity(size):
    np.testing.assert_array_equal(upsample_matrix(size, size), np.eye(size))


@given(st.integers(1, 40), st.integers(1, 300))
def test_every_row_of_the_interpolation_has_two_weights_that_sum_to_one(source, target):
    matrix = upsample_matrix(source, target)
    assert matrix.shape == (target, source)
    assert matrix.min() >= 0
    assert np.count_nonzero(matrix, axis=1).max() <= 2
    np.testing.assert_allclose(matrix.sum(axis=1), 1, rtol=0, atol=FLOAT64.gamma(4))


@pytest.mark.parametrize("grid", [(1, 1), (7, 5), (28, 28), (16, 24), (32, 32)])
@pytest.mark.parametrize("size", [(32, 32), (56, 61), (224, 224), (256, 320)])
def test_up_sampling_is_the_bilinear_resize_of_opencv(grid, size):
    source = random_map(*grid)
    got = upsample_matrix(grid[0], size[0]) @ source @ upsample_matrix(grid[1], size[1]).T
    expected = cv2.resize(source, size[::-1], interpolation=cv2.INTER_LINEAR)
    # OpenCV keeps position and weights in float32; the position is a number up to the grid's size.
    tolerance = np.abs(source).max() * 2 * max(grid) * FLOAT32.gamma(4)
    np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance)


# --- resampling, up and down


@given(st.integers(1, 60), st.integers(1, 60))
def test_resampling_is_that_of_torch_which_leaves_out_no_value(source, target):
    torch = pytest.importorskip("torch")
    values = torch.from_numpy(random_map(1, source))[None, None]
    expected = torch.nn.functional.interpolate(
        values, size=(1, target), mode="bilinear", align_corners=False, antialias=True
    )
    got = resampling_matrix(source, target) @ values.numpy()[0, 0, 0]
    np.testing.assert_allclose(got, expected.numpy()[0, 0, 0], rtol=0, atol=1e-12)
    if target >= source:
        np.testing.assert_allclose(
            resampling_matrix(source, target), upsample_matrix(source, target), rtol=0, atol=FLOAT64.gamma(8) * 60
        )


@given(st.integers(1, 60), st.integers(1, 60))
def test_means_of_windows_are_those_of_every_window_that_lies_inside(size, window):
    assume(window <= size)
    values = random_map(1, size)[0]
    expected = [values[start : start + window].mean() for start in range(size - window + 1)]
    np.testing.assert_allclose(window_matrix(size, window) @ values, expected, rtol=1e-5, atol=1e-6)


# --- smoothing


@pytest.mark.parametrize("sigma", [0.0, 1e-9, 0.1])
@pytest.mark.parametrize("size", SIZES)
def test_no_or_hardly_any_sigma_is_the_identity(size, sigma):
    np.testing.assert_array_equal(gaussian_matrix(size, sigma), np.eye(size))


@pytest.mark.parametrize("sigma", [0.2, 0.5, 1.0, 2.5, 4.0, 33.0])
@pytest.mark.parametrize("size", SIZES)
def test_smoothing_is_the_gaussian_of_scipy_with_mirrored_borders(size, sigma):
    source = random_map(size, 17)
    got = gaussian_matrix(size, sigma) @ source
    expected = ndimage.gaussian_filter1d(source, sigma, axis=0, mode="mirror", truncate=4)
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("sigma", [1.0, 4.0])
@pytest.mark.parametrize("size", [(32, 32), (40, 56)])
def test_smoothing_both_axes_is_the_two_dimensional_gaussian_of_scipy(size, sigma):
    source = random_map(*size)
    got = gaussian_matrix(size[0], sigma) @ source @ gaussian_matrix(size[1], sigma).T
    expected = ndimage.gaussian_filter(source, sigma, mode="mirror", truncate=4)
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-12)


def test_the_border_is_mirrored_without_repeating_the_edge():
    matrix = gaussian_matrix(3, 0.3)  # a radius of one pixel
    outer = np.exp(-0.5 / 0.3**2)
    near, centre = outer / (1 + 2 * outer), 1 / (1 + 2 * outer)
    expected = [[centre, 2 * near, 0], [near, centre, near], [0, 2 * near, centre]]
    np.testing.assert_allclose(matrix, expected, rtol=0, atol=1e-15)


@settings(deadline=None)
@given(st.integers(1, 60), st.floats(0, 50))
def test_smoothing_takes_weighted_means(size, sigma):
    matrix = gaussian_matrix(size, sigma)
    assert matrix.shape == (size, size)
    assert matrix.min() >= 0
    np.testing.assert_allclose(matrix.sum(axis=1), 1, rtol=0, atol=1e-12)


# --- both


@settings(deadline=None, max_examples=50)
@given(
    st.tuples(st.integers(1, 12), st.integers(1, 12)),
    st.tuples(st.integers(1, 70), st.integers(1, 70)),
    st.floats(0, 10),
    st.floats(-1e3, 1e3, width=32),
)
def test_a_constant_map_stays_constant(grid, size, sigma, value):
    rows, columns = map_matrices(grid, size, sigma)
    got = rows @ np.full(grid, value, np.float32) @ columns
    assert got.shape == size
    # Two products, each a weighted mean of at most `grid` terms.
    tolerance = abs(value) * FLOAT32.rows_of(sum(grid) + 1)
    np.testing.assert_allclose(got, value, rtol=0, atol=tolerance)


@pytest.mark.parametrize(("grid", "size"), [((28, 28), (224, 224)), ((8, 12), (64, 100))])
def test_the_map_head_is_resize_then_gaussian(grid, size):
    source = random_map(*grid)
    rows, columns = map_matrices(grid, size, 4.0)
    assert rows.shape == (size[0], grid[0])
    assert columns.shape == (grid[1], size[1])
    assert rows.dtype == columns.dtype == np.float32
    assert columns.flags.c_contiguous
    got = rows @ source.astype(np.float32) @ columns
    resized = cv2.resize(source, size[::-1], interpolation=cv2.INTER_LINEAR)
    expected = ndimage.gaussian_filter(resized, 4.0, mode="mirror", truncate=4)
    # Rounding the map and both matrices to float32 and two float32 products; OpenCV's own float32 weights.
    tolerance = np.abs(source).max() * (FLOAT32.rows_of(sum(grid) + 4) + 2 * max(grid) * FLOAT32.gamma(4))
    np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance)


def test_a_peak_stays_in_its_place():
    source = np.zeros((8, 8), np.float32)
    source[2, 5] = 1
    rows, columns = map_matrices((8, 8), (64, 64), 2.0)
    peak = np.unravel_index((rows @ source @ columns).argmax(), (64, 64))
    assert (peak[0] // 8, peak[1] // 8) == (2, 5)


# --- places


@settings(deadline=None, max_examples=50)
@given(st.tuples(st.integers(1, 12), st.integers(1, 12)), st.tuples(st.integers(12, 70), st.integers(12, 70)))
def test_the_places_of_a_centred_grid_give_the_map_without_places(grid, size):
    source = random_map(*grid).astype(np.float32)
    maps = []
    for places in (None, centred_places(grid, size)):
        rows, columns = map_matrices(grid, size, 2.0, places)
        maps.append(rows @ source @ columns)
    tolerance = np.abs(source).max() * (FLOAT32.rows_of(sum(grid) + 4) + 2 * max(grid) * FLOAT32.gamma(4))
    np.testing.assert_allclose(maps[1], maps[0], rtol=0, atol=tolerance)


@settings(deadline=None)
@given(
    st.tuples(st.integers(-6, 9), st.integers(-6, 9)),
    st.tuples(st.integers(2, 9), st.integers(2, 9)),
    st.tuples(st.integers(1, 6), st.integers(1, 6)),
)
def test_a_peak_is_drawn_at_its_place(start, step, index):
    source = np.zeros((8, 8), np.float32)
    source[index] = 1
    place = tuple(start[axis] + step[axis] * index[axis] for axis in (0, 1))
    assume(min(place) >= 0)  # a place beyond the border is not drawn
    rows, columns = map_matrices((8, 8), (90, 90), 0.0, GridPlaces(start, step))
    drawn = rows @ source @ columns
    assert drawn[place] == 1
    assert np.argwhere(drawn == 1).tolist() == [list(place)]


def test_places_move_by_whole_pixels_what_is_drawn():
    source = random_map(6, 9).astype(np.float32)
    drawn = []
    for start in ((4, 7), (6, 4)):
        rows, columns = map_matrices((6, 9), (80, 80), 0.0, GridPlaces(start, (5, 7)))
        drawn.append(rows @ source @ columns)
    # Not to the last bit: a matrix product may sum the last columns of a matrix in another order than the others.
    np.testing.assert_allclose(drawn[1][2:, :-3], drawn[0][:-2, 3:], rtol=0, atol=1e-6)
