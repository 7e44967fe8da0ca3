"""The coreset of a stream: its radius beside the best possible one, its rows, its plan, and its memory."""

from __future__ import annotations

import itertools
import math
import tracemalloc
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flawscope.arrays import Float32Array, Int64Array
from flawscope.cpp_ext import kcenter_greedy
from flawscope.cpp_ext.streaming_coreset import Levels, StreamingCoreset, last_distance, least_budget, plan_levels
from flawscope.errors import ArgumentError


def greedy(rows: Float32Array, positions: Int64Array, count: int) -> Int64Array:
    return kcenter_greedy(rows, count, 0)


def stream(levels: Levels, rows: Float32Array, chunks: list[int]) -> StreamingCoreset:
    """Return the coreset of a stream that comes in chunks of these sizes, again and again."""
    coreset = StreamingCoreset(levels, rows.shape[1], greedy)
    start = 0
    for size in itertools.cycle(chunks):
        coreset.add(rows[start : start + size], np.arange(start, min(start + size, len(rows))))
        start += size
        if start >= len(rows):
            return coreset
    raise AssertionError


def reference(levels: Levels, rows: Float32Array) -> Float32Array:
    """Return the rows that are held, all blocks of a level at once."""
    held: list[Float32Array] = []
    size = levels.block
    for _ in range(levels.depth + 1):
        *full, last = [rows[start : start + size] for start in range(0, len(rows), size)]
        held.insert(0, last)
        if not full:
            return np.concatenate(held)
        rows = np.concatenate([block[kcenter_greedy(block, levels.kept, 0)] for block in full])
        size = levels.block // levels.kept * levels.kept
    raise AssertionError("a plan for fewer rows")


def distances(rows: Float32Array) -> npt.NDArray[np.float64]:
    return np.linalg.norm(rows[:, None].astype(np.float64) - rows[None], axis=2)


@st.composite
def streams(draw: st.DrawFn) -> tuple[Float32Array, int, Levels, list[int]]:
    count = draw(st.integers(1, 3), label="rows of the coreset")
    rows = draw(st.integers(18, 40), label="rows of the stream")
    budget = draw(st.integers(least_budget(rows, count), rows), label="budget")
    levels = plan_levels(rows, count, budget)
    assert levels is not None
    generator = np.random.default_rng(draw(st.integers(0, 9999), label="seed"))
    kind = draw(st.sampled_from(["normal", "grid", "far"]), label="kind")
    values = generator.normal(size=(rows, 2))
    if kind == "grid":  # many equal rows and distances
        values = np.round(2 * values)
    if kind == "far":  # groups that are seen one after another
        values += 20 * (np.arange(rows) * 5 // rows)[:, None]
    return values.astype(np.float32), count, levels, draw(st.lists(st.integers(1, 20), min_size=1, max_size=4))


@settings(max_examples=150, deadline=None)
@given(streams())
def test_the_radius_is_within_the_factor_of_the_best_possible(case: Any) -> None:
    rows, count, levels, chunks = case
    held, _ = stream(levels, rows, chunks).held()
    apart = distances(rows)
    # The best rows as centres: balls anywhere else could be smaller, but not by more than a half.
    centres = np.array(list(itertools.combinations(range(len(rows)), count)))
    best = float(apart[:, centres].min(axis=2).max(axis=0).min())
    chosen = held[kcenter_greedy(held, count, 0)]
    radius = float(np.linalg.norm(rows[:, None].astype(np.float64) - chosen[None], axis=2).min(axis=1).max())
    assert radius <= levels.factor * best * (1 + 1e-6) + 1e-6


@settings(max_examples=150, deadline=None)
@given(streams())
def test_what_is_held_is_rows_of_the_stream_however_it_comes_and_as_the_reference_has_it(case: Any) -> None:
    rows, _, levels, chunks = case
    coreset = stream(levels, rows, chunks)
    held, positions = coreset.held()
    np.testing.assert_array_equal(held, rows[positions])
    assert len(set(positions.tolist())) == len(held) <= levels.rows
    np.testing.assert_array_equal(held, reference(levels, rows))
    at_once, _ = stream(levels, rows, [len(rows)]).held()
    np.testing.assert_array_equal(held, at_once)


@settings(max_examples=100, deadline=None)
@given(streams())
def test_no_row_is_farther_from_what_is_held_than_the_reach(case: Any) -> None:
    rows, _, levels, chunks = case
    coreset = stream(levels, rows, chunks)
    held, _ = coreset.held()
    away = np.linalg.norm(rows[:, None].astype(np.float64) - held[None], axis=2).min(axis=1).max()
    assert away <= coreset.reach * (1 + 1e-6) + 1e-6


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 10**10), st.integers(1, 20000), st.integers(1, 10**8))
def test_a_plan_is_within_the_budget_and_has_room_for_the_stream(rows: int, count: int, budget: int) -> None:
    levels = plan_levels(rows, count, budget)
    if levels is None:
        assert budget < least_budget(rows, count)
        return
    assert budget >= least_budget(rows, count)
    if levels.depth == 0:
        assert (levels.block, levels.factor) == (rows, 2)
        return
    assert levels.rows + 2 * levels.kept <= budget
    assert count < levels.kept <= levels.block // 2
    assert levels.block * (levels.block // levels.kept) ** levels.depth >= rows


def test_the_least_budget_is_the_least() -> None:
    for rows, count in ((1000, 10), (10**6, 1000), (784 * 10**6, 16384)):
        least = least_budget(rows, count)
        assert plan_levels(rows, count, least) is not None
        assert plan_levels(rows, count, least - 1) is None


def test_the_last_distance_bounds_how_far_any_row_is_from_the_others() -> None:
    rows = np.random.default_rng(0).normal(size=(6000, 5)).astype(np.float32)
    order = kcenter_greedy(rows, 5000, 0)
    chosen = rows[order]
    expected = math.sqrt(np.square(chosen[:-1].astype(np.float64) - chosen[-1]).sum(axis=1).min())
    assert last_distance(chosen) == pytest.approx(expected, rel=1e-12)
    assert last_distance(chosen[:1]) == 0.0


def test_more_rows_than_were_planned_for_are_refused() -> None:
    levels = Levels(1, 8, 3)
    coreset = StreamingCoreset(levels, 2, greedy)
    coreset.add(np.zeros((24, 2), np.float32), np.arange(24))
    with pytest.raises(ArgumentError, match=r"stream: expected at most the rows that its levels were planned for"):
        coreset.add(np.zeros((1, 2), np.float32), np.arange(1))


@pytest.mark.serial
def test_memory_does_not_grow_with_the_stream() -> None:
    generator, channels = np.random.default_rng(0), 16
    source = generator.normal(size=(10_000, channels)).astype(np.float32)

    def peak(rows: int) -> int:
        levels = plan_levels(rows, 500, 20_000)
        assert levels is not None
        assert levels.depth > 0
        tracemalloc.start()
        coreset = StreamingCoreset(levels, channels, greedy)
        for start in range(0, rows, len(source)):
            coreset.add(source, np.arange(start, start + len(source)))
        coreset.held()
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    few, many = peak(50_000), peak(400_000)
    assert 1.3 * 20_000 * (4 * channels + 8) > many
    assert many < 1.3 * few
