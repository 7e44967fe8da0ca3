"""Mahalanobis distances by upper triangles alone, in float32 and float16: exact on integers, bounded on floats."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_cases import assert_same, covariances, integers, random
from tolerances import FLOAT32, exact_limit

from flawscope.cpp_ext import reference
from flawscope.errors import ArgumentError
from flawscope.triangles import pack_triangles, unpack_triangles

DTYPES = [np.float32, np.float16]
# Strips have 1, 4, 8 or 16 columns, samples are taken 16, 8, 4 and 1 at a time and centred 64 at a time, positions 16.
EDGES = [
    *product((1, 2, 3, 4, 5, 7, 8, 9, 13, 15, 16, 17, 33, 63, 64, 65, 130), (2,), (5, 17)),
    *product((1, 13, 17), (3,), (1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 47)),
    *product((2,), (1, 15, 16, 17, 130), (3,)),
]


def case(count, positions, channels, dtype, high=2):
    """Return features, mean, packed triangles and the exact distances; every number is an integer."""
    features, mean = integers(count, positions, channels, high=high), integers(positions, channels, seed=1, high=high)
    whitening = np.triu(integers(positions, channels, channels, seed=2, high=high))
    wanted = reference.mahalanobis(features, mean, whitening)
    assert wanted.max() < exact_limit(np.float32)
    return features, mean, pack_triangles(whitening).astype(dtype), wanted


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("threads", [1, 3])
def test_every_level_equals_the_reference_on_every_edge(kernels, dtype, threads):
    for edge in EDGES:
        features, mean, triangles, wanted = case(*edge, dtype)
        gaussians = kernels.gaussians_of_triangles(mean, triangles, threads=threads)
        assert gaussians.shape == mean.shape
        assert_same(gaussians.mahalanobis(features, threads=threads), wanted, edge)


@pytest.mark.parametrize("count", [1, 4, 20])
def test_triangles_give_the_very_bits_of_whole_matrices(kernels, count):
    features, mean = random(count, 20, 37), random(20, 37, seed=1)
    whitening = np.triu(random(20, 37, 37, seed=2))
    whole = kernels.gaussians(mean, whitening).mahalanobis(features)
    assert_same(kernels.gaussians_of_triangles(mean, pack_triangles(whitening)).mahalanobis(features), whole)


def test_nothing_but_the_triangle_is_held(compiled):
    for channels in (56, 100, 128, 448):
        triangles = pack_triangles(np.triu(random(40, channels, channels)))
        floats = compiled.gaussians_of_triangles(random(40, channels), triangles).nbytes
        halves = compiled.gaussians_of_triangles(random(40, channels), triangles.astype(np.float16)).nbytes
        # Large blocks are whole pages of 2 MiB; see memory.cpp.
        room = (1 << 22) + 4 * 40 * channels
        assert floats <= 1.08 * triangles.nbytes + room
        assert halves <= 0.54 * triangles.nbytes + room


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 40), st.sampled_from([1, 3, 8, 17]), st.integers(0, 2**32 - 1), st.sampled_from([1e-3, 1, 300]))
def test_float16_moves_a_distance_by_no_more_than_its_bound(kernels, channels, count, seed, scale):
    rng = np.random.default_rng(seed)
    positions = 3
    inverse = np.linalg.inv(covariances(positions, channels) * scale**2)
    # Factorised from the other end, so that it is an upper triangle: W·Wᵀ = Σ⁻¹.
    whitening = np.linalg.cholesky(inverse[:, ::-1, ::-1])[:, ::-1, ::-1]
    halves = pack_triangles(whitening).astype(np.float16)
    rounded = unpack_triangles(halves, channels).astype(np.float64)
    error = np.linalg.norm(np.linalg.solve(whitening, rounded) - np.eye(channels), axis=(1, 2))
    features = (scale * rng.standard_normal((count, positions, channels))).astype(np.float32)
    mean = (scale * rng.standard_normal((positions, channels))).astype(np.float32)
    centred = features.astype(np.float64) - mean
    true = np.linalg.norm(np.einsum("npi,pij->npj", centred, whitening), axis=2)
    size = np.linalg.norm(np.einsum("npi,pij->npj", np.abs(centred), np.abs(rounded)), axis=2)
    got = np.sqrt(kernels.gaussians_of_triangles(mean, halves).mahalanobis(features).astype(np.float64))
    rounding = np.sqrt(FLOAT32.mahalanobis(channels)) * size
    assert (np.abs(got - true) <= error * true + rounding).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_patch_that_is_not_finite_gets_nan_also_where_only_zeros_meet_it(kernels, bad, zeros, dtype):
    features, mean, triangles, _ = case(21, 3, 17, dtype)
    if zeros:
        triangles = np.zeros_like(triangles)
    wanted = reference.mahalanobis(features, mean, unpack_triangles(triangles, 17))
    broken = np.zeros(wanted.shape, bool)
    for n, p, channel in ((0, 0, 0), (7, 1, 16), (8, 2, 3), (20, 0, 15)):
        features[n, p, channel] = bad
        broken[n, p] = True
    got = kernels.gaussians_of_triangles(mean, triangles).mahalanobis(features)
    assert np.isnan(got[broken]).all()
    assert_same(got[~broken], wanted[~broken])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_factors_that_are_not_finite_are_refused_wherever_they_stand(kernels, bad, dtype):
    for place in (0, 44, 45 * 19, 45 * 20 - 1):
        triangles = np.ones((20, 45), dtype)
        triangles.flat[place] = bad
        with pytest.raises(ArgumentError, match=r"triangles.*: .*(NaN|finite)"):
            kernels.gaussians_of_triangles(random(20, 9), triangles)


M, T = np.ones((3, 4), np.float32), np.ones((3, 10), np.float32)


@pytest.mark.parametrize(
    ("mean", "triangles", "message"),
    [
        (M, T[:, :9], r"^triangles: expected .*\[3, 10\].*, got float32 \[3, 9\]"),
        (M, T[:2], r"^triangles: expected .*\[3, 10\].*, got float32 \[2, 10\]"),
        (M, T.astype(np.float64), "^triangles: expected .* got float64"),
        (M, T.astype(np.int16), "^triangles: expected .* got int16"),
        (M, "T", "^triangles: expected .* got str"),
        (M[:0], T, r"^mean: expected .* got float32 \[0, 4\]"),
        (M.astype(np.float16), T, "^mean: expected .* got float16"),
    ],
)
def test_wrong_arguments_are_refused(face, mean, triangles, message):
    with pytest.raises(ArgumentError, match=message):
        face.gaussians_of_triangles(mean, triangles)
