"""The definitions of the kernels: exact on integers against loops, bounded on floats, and their properties."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from tolerances import FLOAT32, exact_limit

from flawscope.cpp_ext import kcenter_greedy, mahalanobis, nearest, reference
from flawscope.errors import ArgumentError

INTEGERS = st.integers(-9, 9).map(float)
"""So small that every sum of squares below is exact in float32."""


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


def true_distances(queries, bank):
    difference = queries[:, None].astype(np.float64) - bank[None].astype(np.float64)
    return (difference**2).sum(axis=2)


def slack(queries, bank):
    """How much farther than the true neighbour a chosen row may be, [N, M]: both products are off by the bound."""
    norms = np.linalg.norm(queries.astype(np.float64), axis=1)[:, None] + np.linalg.norm(
        bank.astype(np.float64), axis=1
    )
    return 2 * FLOAT32.product_form(queries.shape[1]) * norms.max(axis=1, keepdims=True) ** 2


# --- nearest neighbours


@pytest.mark.parametrize("k", [1, 2, 5, 9])
@pytest.mark.parametrize(("count", "rows", "channels"), [(1, 9, 1), (4, 9, 3), (7, 40, 2), (3, 65, 17)])
def test_integers_give_the_exact_distances_and_rows(count, rows, channels, k):
    queries, bank = integers(count, channels), integers(rows, channels, seed=1)
    distances, indices = nearest(queries, bank, k)
    wanted, wanted_rows = naive_nearest(queries, bank, k)
    assert (distances.dtype, indices.dtype) == (np.float32, np.int64)
    np.testing.assert_array_equal(distances, wanted)
    np.testing.assert_array_equal(indices, wanted_rows)


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_ties_take_the_lowest_rows(data):
    channels = data.draw(st.integers(1, 3))
    queries = data.draw(integer_arrays(st.integers(1, 4), st.just(channels)))
    bank = data.draw(integer_arrays(st.integers(1, 30), st.just(channels)))
    bank = np.sign(bank)  # three values a channel: ties are the rule
    k = data.draw(st.integers(1, len(bank)))
    distances, indices = nearest(queries, bank, k)
    wanted, wanted_rows = naive_nearest(queries, bank, k)
    np.testing.assert_array_equal(distances, wanted)
    np.testing.assert_array_equal(indices, wanted_rows)


@pytest.mark.parametrize("k", [1, 2, 9, 199, 200])
def test_of_equal_rows_the_first_are_taken(k):
    distances, indices = nearest(np.zeros((2, 3), np.float32), np.ones((200, 3), np.float32), k)
    np.testing.assert_array_equal(distances, np.full((2, k), 3))
    np.testing.assert_array_equal(indices, [list(range(k))] * 2)


def test_blocks_of_queries_change_nothing(monkeypatch):
    queries, bank = integers(37, 5), integers(20, 5, seed=1)
    whole = nearest(queries, bank, 4)
    for elements in (1, 20, 41, 37 * 20 - 1):
        monkeypatch.setattr(reference, "_BLOCK_ELEMENTS", elements)
        for got, wanted in zip(nearest(queries, bank, 4), whole, strict=True):
            np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize("k", [1, 3, 9])
@pytest.mark.parametrize("channels", [1, 8, 96])
@pytest.mark.parametrize(("scale", "offset"), [(1.0, 0.0), (1e-3, 10.0), (1e3, 0.0)])
def test_floats_give_distances_within_the_bounds(k, channels, scale, offset):
    queries = random(30, channels, scale=scale, offset=offset)
    bank = random(50, channels, seed=1, scale=scale, offset=offset)
    distances, indices = nearest(queries, bank, k)
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


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_properties_of_the_neighbours(data):
    channels = data.draw(st.integers(1, 6))
    queries = data.draw(integer_arrays(st.integers(1, 5), st.just(channels)))
    bank = data.draw(integer_arrays(st.integers(1, 25), st.just(channels)))
    k = data.draw(st.integers(1, len(bank)))
    distances, indices = nearest(queries, bank, k)
    assert distances.shape == indices.shape == (len(queries), k)
    assert (distances >= 0).all()
    assert (np.diff(distances, axis=1) >= 0).all()
    assert all(len(set(row)) == k for row in indices.tolist())
    assert indices.min() >= 0
    assert indices.max() < len(bank)
    order = data.draw(st.permutations(range(len(bank))))
    np.testing.assert_array_equal(
        nearest(queries, bank[order], k)[0], distances
    )  # an order of the bank changes nothing
    np.testing.assert_array_equal(nearest(queries, bank, 1)[0], distances[:, :1])
    np.testing.assert_array_equal(nearest(bank, bank, 1)[0], np.zeros((len(bank), 1)))
    np.testing.assert_array_equal(nearest(queries + 1, bank + 1, k)[0], distances)  # nor does a shift of both


@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_a_row_finds_itself_at_exactly_zero_also_among_floats_far_from_the_origin(offset):
    bank = random(60, 24, offset=offset)
    distances, indices = nearest(bank, bank, 9)
    np.testing.assert_array_equal(indices[:, 0], np.arange(60))
    np.testing.assert_array_equal(distances[:, 0], 0)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.sampled_from([0.0, 30.0]))
def test_one_neighbour_is_the_minimum_of_nine_and_any_order_of_the_bank_agrees(seed, channels, offset):
    queries, bank = random(8, channels, seed=seed, offset=offset), random(30, channels, seed=seed + 1, offset=offset)
    nine = nearest(queries, bank, 9)[0].min(axis=1)
    one = nearest(queries, bank, 1)[0][:, 0]
    mixed = nearest(queries, bank[np.random.default_rng(seed).permutation(30)], 1)[0][:, 0]
    bound = slack(queries, bank)[:, 0] + 2 * FLOAT32.direct(channels) * nine
    assert (np.abs(one - nine) <= bound).all()
    assert (np.abs(mixed - nine) <= bound).all()


def test_the_arguments_are_not_changed():
    queries, bank = random(5, 4), random(9, 4, seed=1)
    before = queries.copy(), bank.copy()
    nearest(queries, bank, 3)
    np.testing.assert_array_equal(queries, before[0])
    np.testing.assert_array_equal(bank, before[1])


def test_arrays_need_not_lie_in_one_piece():
    queries, bank = integers(10, 8), integers(18, 8, seed=1)
    got = nearest(queries[::2, ::2], bank[::2, ::2], 3)
    wanted = nearest(queries[::2, ::2].copy(), bank[::2, ::2].copy(), 3)
    for one, other in zip(got, wanted, strict=True):
        np.testing.assert_array_equal(one, other)


Q, B = np.ones((2, 3), np.float32), np.ones((4, 3), np.float32)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((Q.tolist(), B, 1), r"queries: expected a NumPy array float32 \[N, D\], got list"),
        ((Q.astype(np.float64), B, 1), r"queries: expected float32 \[N, D\] .*, got float64 \[2, 3\]"),
        ((Q[0], B, 1), r"queries: expected .* got float32 \[3\]"),
        ((Q[:0], B, 1), r"queries: expected .* got float32 \[0, 3\]"),
        ((Q, B.astype(np.float16), 1), r"bank: expected float32 \[M, 3\] .*, got float16 \[4, 3\]"),
        ((Q, B[:, :2], 1), r"bank: expected float32 \[M, 3\] .*, got float32 \[4, 2\]"),
        ((Q, B[:0], 1), r"bank: expected .* got float32 \[0, 3\]"),
        ((Q, None, 1), "bank: expected a NumPy array .* got NoneType"),
        ((Q, B, 0), r"k: expected an integer from 1 to 4 \(rows of the bank\), got 0"),
        ((Q, B, 5), r"k: expected an integer from 1 to 4 .*, got 5"),
        ((Q, B, -1), r"k: expected an integer from 1 to 4 .*, got -1"),
        ((Q, B, 1.5), "k: expected an integer from 1 to 4 .*, got 1.5"),
        ((Q, B, "2"), "k: expected an integer from 1 to 4 .*, got '2'"),
        ((Q, B, True), "k: expected an integer from 1 to 4 .*, got True"),
        ((Q, B, None), "k: expected an integer from 1 to 4 .*, got None"),
    ],
)
def test_wrong_arguments_of_nearest_are_refused(arguments, message):
    with pytest.raises(ArgumentError, match=message):
        nearest(*arguments)


def test_numpy_integers_are_counts_too():
    assert nearest(Q, B, np.int64(2))[0].shape == (2, 2)
    assert len(kcenter_greedy(B, np.int32(2), np.int64(0))) == 2


# --- Mahalanobis distance


def test_integers_give_the_exact_mahalanobis_distance():
    features, mean, whitening = integers(4, 5, 3), integers(5, 3, seed=1), integers(5, 3, 3, seed=2)
    wanted = np.zeros((4, 5), int)
    for n in range(4):
        for p in range(5):
            for j in range(3):
                component = sum(int(features[n, p, i] - mean[p, i]) * int(whitening[p, i, j]) for i in range(3))
                wanted[n, p] += component**2
    assert wanted.max() < exact_limit(np.float32)
    got = mahalanobis(features, mean, whitening)
    assert got.dtype == np.float32
    assert got.flags.c_contiguous
    np.testing.assert_array_equal(got, wanted)


def covariances(positions, channels, seed=3):
    root = np.random.default_rng(seed).standard_normal((positions, channels, 2 * channels))
    return root @ root.transpose(0, 2, 1) / (2 * channels) + 0.05 * np.eye(channels)


@pytest.mark.parametrize(("count", "positions", "channels"), [(1, 1, 1), (3, 5, 2), (6, 9, 20), (2, 3, 100)])
def test_it_is_the_distance_by_the_inverse_covariance(count, positions, channels):
    features, mean = random(count, positions, channels), random(positions, channels, seed=1)
    inverse = np.linalg.inv(covariances(positions, channels))
    whitening = np.linalg.cholesky(inverse).astype(np.float32)
    centred = features.astype(np.float64) - mean
    wanted = np.einsum("npi,pij,npj->np", centred, inverse, centred)
    scale = (np.einsum("npi,pij->npj", np.abs(centred), np.abs(whitening.astype(np.float64))) ** 2).sum(axis=2)
    # The kernel's own rounding, and twice that of the whitening to float32.
    bound = (FLOAT32.mahalanobis(channels) + FLOAT32.gamma(2)) * scale
    assert (np.abs(mahalanobis(features, mean, whitening) - wanted) <= bound).all()


@settings(deadline=None, max_examples=50)
@given(st.data())
def test_properties_of_the_mahalanobis_distance(data):
    positions, channels = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 5))
    features = data.draw(hnp.arrays(np.float32, (3, positions, channels), elements=INTEGERS))
    mean = data.draw(hnp.arrays(np.float32, (positions, channels), elements=INTEGERS))
    whitening = data.draw(hnp.arrays(np.float32, (positions, channels, channels), elements=INTEGERS))
    got = mahalanobis(features, mean, whitening)
    assert got.shape == (3, positions)
    assert (got >= 0).all()
    np.testing.assert_array_equal(mahalanobis(mean[None], mean, whitening), np.zeros((1, positions)))
    identity = np.broadcast_to(np.eye(channels, dtype=np.float32), whitening.shape)
    np.testing.assert_array_equal(mahalanobis(features, mean, identity), ((features - mean) ** 2).sum(axis=2))
    np.testing.assert_array_equal(mahalanobis(features, mean, -2 * whitening), 4 * got)
    np.testing.assert_array_equal(mahalanobis(features[::-1], mean, whitening), got[::-1])  # images do not mix
    np.testing.assert_array_equal(mahalanobis(features[:, :1], mean[:1], whitening[:1]), got[:, :1])  # nor positions


def test_it_is_never_negative_near_the_mean():
    mean = random(4, 30, scale=100)
    features = mean + random(50, 4, 30, seed=1, scale=1e-4)
    whitening = np.linalg.cholesky(np.linalg.inv(covariances(4, 30))).astype(np.float32)
    assert (mahalanobis(features, mean, whitening) >= 0).all()


F, M, W = np.ones((2, 3, 4), np.float32), np.ones((3, 4), np.float32), np.ones((3, 4, 4), np.float32)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((F[0], M, W), r"features: expected float32 \[N, P, D\] .*, got float32 \[3, 4\]"),
        ((F.astype(np.float64), M, W), "features: expected .* got float64"),
        ((F[:0], M, W), r"features: expected .* got float32 \[0, 3, 4\]"),
        ((F, M[:2], W), r"mean: expected float32 \[3, 4\] .*, got float32 \[2, 4\]"),
        ((F, M.astype(np.int32), W), "mean: expected .* got int32"),
        ((F, M, W[:, :, :3]), r"whitening: expected float32 \[3, 4, 4\] .*, got float32 \[3, 4, 3\]"),
        ((F, M, W[0]), r"whitening: expected .* got float32 \[4, 4\]"),
        ((F, M, "W"), "whitening: expected a NumPy array .* got str"),
    ],
)
def test_wrong_arguments_of_mahalanobis_are_refused(arguments, message):
    with pytest.raises(ArgumentError, match=message):
        mahalanobis(*arguments)


# --- greedy k-centre


def naive_kcenter(features, count, first):
    """The definition, by float64 distances to all centres at every step."""
    true = true_distances(features, features)
    chosen = [first]
    while len(chosen) < count:
        closest = true[:, chosen].min(axis=1)
        closest[chosen] = -1
        chosen.append(int(closest.argmax()))
    return chosen


def first_row(rows, seed):
    return int(np.random.default_rng(seed).integers(rows))


@pytest.mark.parametrize("seed", [0, 1, 7])
@pytest.mark.parametrize(("rows", "channels", "high"), [(1, 1, 4), (12, 2, 1), (50, 3, 4), (80, 16, 100)])
def test_integers_give_the_exact_selection(rows, channels, high, seed):
    features = integers(rows, channels, seed=seed, high=high)
    for count in {1, (rows + 1) // 2, rows}:
        got = kcenter_greedy(features, count, seed)
        assert got.dtype == np.int64
        assert got.tolist() == naive_kcenter(features, count, first_row(rows, seed))


def test_a_line_is_selected_from_its_ends_inwards():
    features = np.array([[0], [1], [4], [9], [16]], np.float32)
    seed = next(seed for seed in range(100) if first_row(5, seed) == 0)
    assert kcenter_greedy(features, 5, seed).tolist() == [0, 4, 3, 2, 1]


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_properties_of_the_selection(data):
    features = data.draw(integer_arrays(st.integers(1, 25), st.integers(1, 4)))
    count, seed = data.draw(st.integers(1, len(features))), data.draw(st.integers(0, 1000))
    got = kcenter_greedy(features, count, seed)
    assert got.tolist() == naive_kcenter(features, count, first_row(len(features), seed))
    assert len(set(got.tolist())) == count
    assert got.tolist() == kcenter_greedy(features, count, seed).tolist()
    assert (
        got.tolist() == kcenter_greedy(features, len(features), seed)[:count].tolist()
    )  # a longer one begins the same
    distinct = len(np.unique(features, axis=0))
    assert len(np.unique(features[got], axis=0)) == min(count, distinct)  # repeats come last


@pytest.mark.parametrize("features", [np.ones((40, 3), np.float32), np.repeat(random(8, 30, offset=50.0), 5, axis=0)])
def test_rows_that_repeat_are_still_all_different(features):
    got = kcenter_greedy(features, 40, 0)
    assert sorted(got.tolist()) == list(range(40))


@pytest.mark.parametrize("offset", [0.0, 20.0])
def test_all_rows_are_a_permutation_also_of_floats(offset):
    got = kcenter_greedy(random(70, 24, offset=offset), 70, 3)
    assert sorted(got.tolist()) == list(range(70))


def test_floats_give_a_selection_that_covers_as_well_as_the_exact_one():
    features = random(200, 16)
    got = kcenter_greedy(features, 20, 0)
    true = true_distances(features, features)
    radius = true[:, got].min(axis=1).max()
    wanted = true[:, naive_kcenter(features, 20, first_row(200, 0))].min(axis=1).max()
    norm = np.linalg.norm(features.astype(np.float64), axis=1).max()
    assert radius == pytest.approx(wanted, abs=2 * FLOAT32.product_form(16) * (2 * norm) ** 2)


def test_the_seed_chooses_the_first_row():
    features = integers(50, 4)
    assert [int(kcenter_greedy(features, 1, seed)[0]) for seed in range(20)] == [first_row(50, s) for s in range(20)]
    assert len({first_row(50, seed) for seed in range(20)}) > 5


@pytest.mark.parametrize(("count", "calls"), [(1, [1]), (64, [64]), (65, [64, 65]), (150, [64, 128, 150])])
def test_progress_is_told_now_and_then_and_at_the_end(count, calls):
    told = []
    kcenter_greedy(random(150, 2), count, 0, lambda done, total: told.append((done, total)))
    assert told == [(done, count) for done in calls]


def test_the_features_are_not_changed():
    features = random(20, 4)
    before = features.copy()
    kcenter_greedy(features, 10, 0)
    np.testing.assert_array_equal(features, before)


NAN = np.where(np.arange(12).reshape(4, 3) == 5, np.nan, 1).astype(np.float32)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((B.astype(np.float64), 1, 0), r"features: expected float32 \[N, D\] .*, got float64"),
        ((B[0], 1, 0), r"features: expected .* got float32 \[3\]"),
        ((B[:0], 1, 0), r"features: expected .* got float32 \[0, 3\]"),
        ((B[:, :0], 1, 0), r"features: expected .* got float32 \[4, 0\]"),
        (([[1.0]], 1, 0), "features: expected a NumPy array .* got list"),
        ((NAN, 1, 0), "features: expected finite numbers, got 1 NaN or infinite values"),
        ((B, 0, 0), r"count: expected an integer from 1 to 4 \(rows of features\), got 0"),
        ((B, 5, 0), "count: expected an integer from 1 to 4 .*, got 5"),
        ((B, 0.5, 0), "count: expected an integer from 1 to 4 .*, got 0.5"),
        ((B, True, 0), "count: expected an integer from 1 to 4 .*, got True"),
        ((B, 1, -1), "seed: expected an integer of at least 0, got -1"),
        ((B, 1, None), "seed: expected an integer of at least 0, got None"),
        ((B, 1, 0.5), "seed: expected an integer of at least 0, got 0.5"),
    ],
)
def test_wrong_arguments_of_the_selection_are_refused(arguments, message):
    with pytest.raises(ArgumentError, match=message):
        kcenter_greedy(*arguments)
