"""Mahalanobis distances: exact on integers, bounded on floats, and their properties, for every implementation."""

from __future__ import annotations

from functools import cache
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from kernel_cases import INTEGERS, assert_same, covariances, integers, random
from tolerances import FLOAT32, exact_limit

from flawscope.cpp_ext import reference
from flawscope.errors import ArgumentError


def test_integers_give_the_exact_mahalanobis_distance(kernels):
    features, mean, whitening = integers(4, 5, 3), integers(5, 3, seed=1), integers(5, 3, 3, seed=2)
    wanted = np.zeros((4, 5), int)
    for n in range(4):
        for p in range(5):
            for j in range(3):
                component = sum(int(features[n, p, i] - mean[p, i]) * int(whitening[p, i, j]) for i in range(3))
                wanted[n, p] += component**2
    assert wanted.max() < exact_limit(np.float32)
    got = kernels.mahalanobis(features, mean, whitening)
    assert got.dtype == np.float32
    assert got.flags.c_contiguous
    np.testing.assert_array_equal(got, wanted)


# Columns are cut into strips of 1, 4, 8 or 16; samples are taken 64, 16, 8, 4 and 1 at a time; positions 16.
SAMPLES = (1, 2, 3, 4, 5, 7, 8, 9, 12, 13, 15, 16, 17, 29, 63, 64, 65, 77, 129)
CHANNELS = (1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33)
EDGES = [
    *product(SAMPLES, (2,), (5, 17)),
    *product((1, 13), (3,), CHANNELS),
    *product((2,), (1, 15, 16, 17, 130), (3,)),
]
SHAPES = ["full", "lower", "upper", "diagonal", "zero", "banded"]


def shaped(whitening, shape):
    """Matrices with zeros where the kernel stores nothing, and with holes where it has to."""
    channels = whitening.shape[1]
    row, column = np.indices((channels, channels))
    keep = {
        "full": row >= 0,
        "lower": row >= column,
        "upper": row <= column,
        "diagonal": row == column,
        "zero": row < 0,
        "banded": (np.abs(row - column) > 1) & (column % 5 != 2) & (row % 7 != 3),
    }[shape]
    return np.where(keep, whitening, np.float32(0))


@cache
def edge_case(count, positions, channels, shape):
    features, mean = integers(count, positions, channels, high=2), integers(positions, channels, seed=1, high=2)
    whitening = shaped(integers(positions, channels, channels, seed=2, high=2), shape)
    wanted = reference.mahalanobis(features, mean, whitening)
    assert wanted.max() < exact_limit(np.float32)
    return features, mean, whitening, wanted


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
@pytest.mark.parametrize("shape", SHAPES)
def test_every_level_equals_the_reference_on_every_edge(compiled, shape, threads):
    for case in EDGES:
        features, mean, whitening, wanted = edge_case(*case, shape)
        assert_same(compiled.mahalanobis(features, mean, whitening, threads=threads), wanted, case)


@pytest.mark.parametrize("shape", SHAPES)
def test_gaussians_may_be_used_again_with_any_number_of_samples(kernels, shape):
    gaussians = kernels.gaussians(*edge_case(65, 3, 17, shape)[1:3])
    assert gaussians.shape == (3, 17)
    for count in (65, 1, 8, 64, 0, 5):
        features, *_, wanted = edge_case(65, 3, 17, shape)
        assert_same(gaussians.mahalanobis(features[:count]), wanted[:count], count)


def test_zeros_of_a_triangle_are_not_stored(compiled):
    full = compiled.gaussians(random(40, 128), random(40, 128, 128)).nbytes
    lower = compiled.gaussians(random(40, 128), shaped(random(40, 128, 128), "lower")).nbytes
    assert full >= 40 * 128 * 128 * 4
    assert 0.4 * full < lower < 0.7 * full


@pytest.mark.parametrize(("count", "positions", "channels"), [(1, 1, 1), (3, 5, 2), (6, 9, 20), (2, 3, 100)])
def test_it_is_the_distance_by_the_inverse_covariance(kernels, count, positions, channels):
    features, mean = random(count, positions, channels), random(positions, channels, seed=1)
    inverse = np.linalg.inv(covariances(positions, channels))
    whitening = np.linalg.cholesky(inverse).astype(np.float32)
    centred = features.astype(np.float64) - mean
    wanted = np.einsum("npi,pij,npj->np", centred, inverse, centred)
    scale = (np.einsum("npi,pij->npj", np.abs(centred), np.abs(whitening.astype(np.float64))) ** 2).sum(axis=2)
    # The kernel's own rounding, and twice that of the whitening to float32.
    bound = (FLOAT32.mahalanobis(channels) + FLOAT32.gamma(2)) * scale
    assert (np.abs(kernels.mahalanobis(features, mean, whitening) - wanted) <= bound).all()


@pytest.mark.parametrize("threads", [2, 3, 8])
def test_the_number_of_threads_changes_no_bit_of_floats(compiled, threads):
    features, gaussians = random(9, 60, 30), compiled.gaussians(random(60, 30, seed=1), random(60, 30, 30, seed=2))
    assert_same(gaussians.mahalanobis(features, threads=threads), gaussians.mahalanobis(features, threads=1))


@settings(deadline=None, max_examples=50)
@given(st.data())
def test_properties_of_the_mahalanobis_distance(kernels, data):
    positions, channels = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 5))
    features = data.draw(hnp.arrays(np.float32, (3, positions, channels), elements=INTEGERS))
    mean = data.draw(hnp.arrays(np.float32, (positions, channels), elements=INTEGERS))
    whitening = data.draw(hnp.arrays(np.float32, (positions, channels, channels), elements=INTEGERS))
    got = kernels.mahalanobis(features, mean, whitening)
    assert got.shape == (3, positions)
    assert (got >= 0).all()
    assert_same(kernels.mahalanobis(mean[None], mean, whitening), np.zeros((1, positions)))
    identity = np.broadcast_to(np.eye(channels, dtype=np.float32), whitening.shape)
    assert_same(kernels.mahalanobis(features, mean, identity), ((features - mean) ** 2).sum(axis=2))
    assert_same(kernels.mahalanobis(features, mean, -2 * whitening), 4 * got)
    assert_same(kernels.mahalanobis(features[::-1], mean, whitening), got[::-1])  # images do not mix
    assert_same(kernels.mahalanobis(features[:, :1], mean[:1], whitening[:1]), got[:, :1])  # nor positions


def test_it_is_never_negative_near_the_mean(kernels):
    mean = random(4, 30, scale=100)
    features = mean + random(50, 4, 30, seed=1, scale=1e-4)
    whitening = np.linalg.cholesky(np.linalg.inv(covariances(4, 30))).astype(np.float32)
    assert (kernels.mahalanobis(features, mean, whitening) >= 0).all()


def test_the_arguments_are_not_changed(kernels):
    arguments = random(3, 2, 5), random(2, 5, seed=1), random(2, 5, 5, seed=2)
    before = [array.copy() for array in arguments]
    kernels.mahalanobis(*arguments)
    for array, old in zip(arguments, before, strict=True):
        assert_same(array, old)


# --- patches without a distance


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_patch_that_is_not_finite_gets_nan_also_where_only_zeros_meet_it(kernels, bad, shape):
    features, mean, whitening, wanted = edge_case(13, 3, 17, shape)
    features = features.copy()
    broken = np.zeros(wanted.shape, bool)
    for n, p, channel in ((0, 0, 0), (7, 1, 16), (8, 2, 3), (12, 0, 15)):
        features[n, p, channel] = bad
        broken[n, p] = True
    got = kernels.mahalanobis(features, mean, whitening)
    assert np.isnan(got[broken]).all()
    assert_same(got[~broken], wanted[~broken])  # and the others theirs


def test_a_distance_beyond_float32_is_nan(kernels):
    features = np.array([[[1e30, 0]], [[0, 0]], [[3e38, 0]]], np.float32)
    got = kernels.mahalanobis(features, np.array([[-1e38, 0]], np.float32), np.eye(2, dtype=np.float32)[None])
    assert np.isnan(got).all()


def test_no_images_give_an_empty_result(kernels):
    got = kernels.mahalanobis(np.empty((0, 3, 4), np.float32), random(3, 4), random(3, 4, 4))
    assert (got.shape, got.dtype) == ((0, 3), np.float32)


# --- wrong arguments

F, M, W = np.ones((2, 3, 4), np.float32), np.ones((3, 4), np.float32), np.ones((3, 4, 4), np.float32)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((F[0], M, W), r"features: expected float32 \[N, 3, 4\].*, got float32 \[3, 4\]"),
        ((F[:, :2], M, W), r"features: expected float32 \[N, 3, 4\].*, got float32 \[2, 2, 4\]"),
        ((F.astype(np.float64), M, W), "features: expected .* got float64"),
        ((F.astype(np.float16), M, W), "features: expected .* got float16"),
        ((F[:0, :, :2], M, W), r"features: expected .* got float32 \[0, 3, 2\]"),
        ((F, M[:2], W), r"whitening: expected float32 \[2, 4, 4\] .*, got float32 \[3, 4, 4\]"),
        ((F, M[:0], W), r"mean: expected .* got float32 \[0, 4\]"),
        ((F, M.astype(np.int32), W), "mean: expected .* got int32"),
        ((F, M, W[:, :, :3]), r"whitening: expected float32 \[3, 4, 4\] .*, got float32 \[3, 4, 3\]"),
        ((F, M, W[0]), r"whitening: expected .* got float32 \[4, 4\]"),
        ((F, M, "W"), "^whitening: expected .* got str"),
        ((F, None, W), "^mean: expected .* got NoneType"),
        ((F.tolist(), M, W), "^features: expected .* got list"),
    ],
)
def test_wrong_arguments_of_mahalanobis_are_refused(face, arguments, message):
    with pytest.raises(ArgumentError, match=message):
        face.mahalanobis(*arguments)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("name", ["mean", "whitening"])
def test_gaussians_that_are_not_finite_are_refused(kernels, name, bad):
    arrays = {"mean": random(20, 9), "whitening": random(20, 9, 9)}
    arrays[name][(-1,) * arrays[name].ndim] = bad
    with pytest.raises(ArgumentError, match=f"{name}.*: .*(NaN|finite)"):
        kernels.gaussians(**arrays)


def test_a_wrong_number_of_threads_is_refused(face):
    with pytest.raises(ArgumentError, match=r"threads: expected an integer from 0 .*, got -1"):
        face.mahalanobis(F, M, W, threads=-1)
