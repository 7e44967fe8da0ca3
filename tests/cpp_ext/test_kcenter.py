"""Greedy k-centre selection: the definition on integers, greedy up to rounding on floats, and how a call ends."""

from __future__ import annotations

import os
import signal
import threading
import time
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_cases import first_row, integer_arrays, integers, naive_kcenter, random, true_distances
from tolerances import FLOAT32

from flawscope.cpp_ext import kcenter_greedy, nearest, reference
from flawscope.errors import ArgumentError

# --- exact on integers


@pytest.mark.parametrize("seed", [0, 1, 7])
@pytest.mark.parametrize(("rows", "channels", "high"), [(1, 1, 4), (12, 2, 1), (50, 3, 4), (80, 16, 100)])
def test_integers_give_the_exact_selection(kernels, rows, channels, high, seed):
    features = integers(rows, channels, seed=seed, high=high)
    for count in {1, (rows + 1) // 2, rows}:
        got = kernels.kcenter_greedy(features, count, seed)
        assert got.dtype == np.int64
        assert got.tolist() == naive_kcenter(features, count, first_row(rows, seed))


# Rows go in blocks of 128 and are compared four at a time; centres come in steps of 4 and 32; vectors have 1 to 16
# lanes. Few values a channel: most rows are as far as many others.
EDGES = [
    *((rows, 3, rows) for rows in (1, 2, 3, 4, 5, 31, 32, 33, 127, 128, 129, 255, 256, 257)),
    *((300, channels, 40) for channels in (1, 2, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 65)),
    *((150, 9, count) for count in (1, 2, 3, 4, 5, 8, 9, 31, 32, 33, 34, 63, 64, 65, 66, 149)),
    (2000, 6, 300),
]


@cache
def edge_case(rows, channels, count, high):
    features = integers(rows, channels, seed=rows, high=high)
    return features, reference.kcenter_greedy(features, count, 0)


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
@pytest.mark.parametrize("high", [1, 9])
def test_every_level_and_number_of_threads_selects_as_the_reference(compiled, high, threads):
    for rows, channels, count in EDGES:
        features, wanted = edge_case(rows, channels, count, high)
        got = compiled.kcenter_greedy(features, count, 0, threads=threads)
        np.testing.assert_array_equal(got, wanted, err_msg=str((rows, channels, count)))


def test_a_line_is_selected_from_its_ends_inwards(kernels):
    features = np.array([[0], [1], [4], [9], [16]], np.float32)
    seed = next(seed for seed in range(100) if first_row(5, seed) == 0)
    assert kernels.kcenter_greedy(features, 5, seed).tolist() == [0, 4, 3, 2, 1]


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_properties_of_the_selection(kernels, data):
    features = data.draw(integer_arrays(st.integers(1, 25), st.integers(1, 4)))
    count, seed = data.draw(st.integers(1, len(features))), data.draw(st.integers(0, 1000))
    got = kernels.kcenter_greedy(features, count, seed)
    assert got.tolist() == naive_kcenter(features, count, first_row(len(features), seed))
    assert len(set(got.tolist())) == count
    assert got.tolist() == kernels.kcenter_greedy(features, count, seed).tolist()
    # A longer one begins the same.
    assert got.tolist() == kernels.kcenter_greedy(features, len(features), seed)[:count].tolist()
    distinct = len(np.unique(features, axis=0))
    assert len(np.unique(features[got], axis=0)) == min(count, distinct)  # repeats come last


# --- rows that repeat


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(
    "features",
    [np.ones((400, 3), np.float32), np.repeat(random(80, 30, offset=50.0), 5, axis=0)],
    ids=["equal", "five"],
)
def test_rows_that_repeat_are_still_all_different(kernels, features, threads):
    got = kernels.kcenter_greedy(features, 400, 0, threads=threads)
    assert sorted(got.tolist()) == list(range(400))


def test_of_equal_rows_the_lowest_is_next(kernels):
    first = first_row(300, 0)
    got = kernels.kcenter_greedy(np.ones((300, 5), np.float32), 300, 0)
    assert got.tolist() == [first, *(row for row in range(300) if row != first)]


# With fewer channels two different rows can be nearer than the rounding of a product: a repeat is as far as they are.
@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**32 - 1), st.integers(4, 20), st.integers(2, 60))
def test_a_repeated_row_is_not_taken_while_others_remain(kernels, seed, channels, distinct):
    features = random(distinct, channels, seed=seed)
    features = features[np.random.default_rng(seed).permutation(np.arange(3 * distinct) % distinct)]
    got = kernels.kcenter_greedy(features, 3 * distinct, 0)
    assert len(np.unique(features[got[:distinct]], axis=0)) == distinct


# --- floats


@pytest.mark.parametrize("offset", [0.0, 20.0])
def test_all_rows_are_a_permutation_also_of_floats(kernels, offset):
    got = kernels.kcenter_greedy(random(70, 24, offset=offset), 70, 3)
    assert sorted(got.tolist()) == list(range(70))


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(("scale", "offset"), [(1.0, 0.0), (1e-2, 5.0), (1e3, 0.0)])
@pytest.mark.parametrize("channels", [1, 16, 37])
def test_every_row_that_is_taken_is_the_farthest_up_to_rounding(kernels, channels, scale, offset, threads):
    features = random(700, channels, scale=scale, offset=offset)
    got = kernels.kcenter_greedy(features, 60, 0, threads=threads)
    true = true_distances(features, features[got])
    norm = np.linalg.norm(features.astype(np.float64), axis=1).max()
    # Both the distance that was taken and the one that was passed over are off by at most the bound.
    bound = 2 * FLOAT32.product_form(channels) * (2 * norm) ** 2
    closest = np.minimum.accumulate(true, axis=1)
    for step in range(1, 60):
        left = np.setdiff1d(np.arange(700), got[:step])
        assert closest[got[step], step - 1] >= closest[left, step - 1].max() - bound


def test_floats_give_a_selection_that_covers_as_well_as_the_exact_one(kernels):
    features = random(200, 16)
    got = kernels.kcenter_greedy(features, 20, 0)
    true = true_distances(features, features)
    radius = true[:, got].min(axis=1).max()
    wanted = true[:, naive_kcenter(features, 20, first_row(200, 0))].min(axis=1).max()
    norm = np.linalg.norm(features.astype(np.float64), axis=1).max()
    assert radius == pytest.approx(wanted, abs=2 * FLOAT32.product_form(16) * (2 * norm) ** 2)


@pytest.mark.parametrize("offset", [0.0, 30.0])
def test_the_number_of_threads_changes_nothing_for_floats(compiled, offset):
    features = random(1500, 29, offset=offset)
    alone = compiled.kcenter_greedy(features, 200, 0, threads=1)
    for threads in (2, 3, 8, 40):  # 40: more than there are blocks of rows
        np.testing.assert_array_equal(compiled.kcenter_greedy(features, 200, 0, threads=threads), alone)


def test_the_seed_chooses_the_first_row(kernels):
    features = integers(50, 4)
    got = [int(kernels.kcenter_greedy(features, 1, seed)[0]) for seed in range(20)]
    assert got == [first_row(50, seed) for seed in range(20)]
    assert len({first_row(50, seed) for seed in range(20)}) > 5


def test_the_features_are_not_changed(kernels):
    features = random(20, 4)
    before = features.copy()
    kernels.kcenter_greedy(features, 10, 0)
    np.testing.assert_array_equal(features, before)


def test_numpy_integers_are_counts_too(kernels):
    assert len(kernels.kcenter_greedy(integers(4, 3), np.int32(2), np.int64(0))) == 2


# --- progress, and calls that end early


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("count", "calls"), [(1, [1]), (63, [63]), (64, [64]), (65, [64, 65]), (150, [64, 128, 150])])
def test_progress_is_told_now_and_then_and_at_the_end(kernels, count, calls, threads):
    told = []
    kernels.kcenter_greedy(random(150, 2), count, 0, lambda done, total: told.append((done, total)), threads=threads)
    assert told == [(done, count) for done in calls]


class Stop(Exception):
    pass


@pytest.mark.parametrize("threads", [1, 3])
def test_what_progress_raises_ends_the_selection_and_comes_through(kernels, threads):
    told = []

    def progress(done, total):
        told.append(done)
        if done == 128:
            raise Stop("enough")

    features = random(1000, 3)
    with pytest.raises(Stop, match=r"^enough$"):
        kernels.kcenter_greedy(features, 1000, 0, progress, threads=threads)
    assert told == [64, 128]
    # And the next call is whole again.
    assert sorted(kernels.kcenter_greedy(features, 1000, 0, threads=threads).tolist()) == list(range(1000))


@pytest.mark.parametrize("threads", [1, 3])
def test_ctrl_c_during_progress_ends_the_selection(kernels, threads):
    told = []

    def progress(done, total):
        told.append(done)
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        kernels.kcenter_greedy(random(1000, 3), 1000, 0, progress, threads=threads)
    assert told == [64]


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.serial
def test_ctrl_c_ends_the_selection_also_where_nobody_asked_for_progress(kernels, threads):
    # All rows of many channels: seconds, of which the signal cuts off most.
    features, finished = random(20_000, 64), False
    timer = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):  # noqa: PT012
        timer.start()
        kernels.kcenter_greedy(features, 20_000, 0, threads=threads)
        finished = True
        time.sleep(10)
    assert not finished


@pytest.mark.parametrize("threads", [1, 3])
def test_progress_may_call_kernels_itself(compiled, threads):
    features, found = random(300, 5), []

    def progress(done, total):
        found.append(nearest(features, features, 1, threads=threads)[1][:, 0])
        found.append(kcenter_greedy(features[:40], 40, 0, threads=threads))

    got = compiled.kcenter_greedy(features, 130, 0, progress, threads=threads)
    assert len(set(got.tolist())) == 130
    assert len(found) >= 4
    for rows, inner in zip(found[::2], found[1::2], strict=True):
        assert rows.tolist() == list(range(300))
        assert sorted(inner.tolist()) == list(range(40))


# --- wrong arguments

B = np.ones((4, 3), np.float32)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((B.astype(np.float64), 1, 0), r"features: expected float32 \[N, D\] .*, got float64"),
        ((B[0], 1, 0), r"features: expected .* got float32 \[3\]"),
        ((B[None], 1, 0), r"features: expected .* got float32 \[1, 4, 3\]"),
        ((B[:0], 1, 0), r"features: expected .* got float32 \[0, 3\]"),
        ((B[:, :0], 1, 0), r"features: expected .* got float32 \[4, 0\]"),
        (([[1.0]], 1, 0), "^features: expected .* got list"),
        ((B, 0, 0), r"count: expected an integer from 1 to 4 \(rows of features\), got 0"),
        ((B, 5, 0), "count: expected an integer from 1 to 4 .*, got 5"),
        ((B, 0.5, 0), "count: expected an integer from 1 to 4 .*, got 0.5"),
        ((B, True, 0), "count: expected an integer from 1 to 4 .*, got True"),
        ((B, 1, -1), "seed: expected an integer of at least 0, got -1"),
        ((B, 1, None), "seed: expected an integer of at least 0, got None"),
        ((B, 1, 0.5), "seed: expected an integer of at least 0, got 0.5"),
    ],
)
def test_wrong_arguments_of_the_selection_are_refused(face, arguments, message):
    with pytest.raises(ArgumentError, match=message):
        face.kcenter_greedy(*arguments)


@pytest.mark.parametrize("place", [0, 127, 128, 299])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_features_that_are_not_finite_are_refused(kernels, bad, place):
    features = random(300, 7)
    features[place, place % 7] = bad
    with pytest.raises(ArgumentError, match=r"features: expected finite rows.*, got .*NaN"):
        kernels.kcenter_greedy(features, 2, 0)


def test_features_whose_norm_is_out_of_range_are_refused(kernels):
    features = np.array([[1, 2], [1e30, 0], [3, 4]], np.float32)
    with pytest.raises(ArgumentError, match=r"features: expected finite rows with squared norms below 2\^126"):
        kernels.kcenter_greedy(features, 2, 0)
