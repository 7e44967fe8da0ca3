"""Room in a memory bank: what is stored behind the rows in use, and the record of additions."""

from __future__ import annotations

import math
import re
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flawscope.bank_names import bank_names, norm_names, place_names
from flawscope.bundle import AddedRows, Additions, Upkeep, decode_additions, with_room
from flawscope.bundle.upkeep import ROOM_NORM, in_use
from flawscope.errors import BundleError


def some_banks(rows: tuple[int, ...], seed: int = 0) -> dict[str, npt.NDArray[Any]]:
    generator = np.random.default_rng(seed)
    tensors: dict[str, npt.NDArray[Any]] = {"foreground": np.ones((3, 1), np.float32)}
    names = zip(bank_names(len(rows)), norm_names(len(rows)), place_names(len(rows)), rows, strict=True)
    for bank, norms, places, count in names:
        tensors[bank] = generator.integers(-3, 4, (count, 3)).astype(np.float32)
        tensors[norms] = (tensors[bank] ** 2).sum(axis=1)
        tensors[places] = np.sort(generator.integers(0, 4, count))[:, None] * np.ones((1, 2), np.int64)
    if len(rows) == 1:
        tensors["neighbours"] = generator.integers(0, rows[0], (rows[0], 2))
    return tensors


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9)), min_size=1, max_size=3), st.integers(0, 99))
def test_rows_come_back_without_their_room(sizes: list[tuple[int, int]], seed: int) -> None:
    rows, room = tuple(count for count, _ in sizes), tuple(spare for _, spare in sizes)
    tensors = some_banks(rows, seed)
    stored = with_room(tensors, room)
    assert len(stored[bank_names(len(rows))[0]]) == rows[0] + room[0]
    used = in_use(stored, Upkeep(rows, room), "bank")
    assert used.keys() == tensors.keys()
    for name, value in tensors.items():
        np.testing.assert_array_equal(used[name], value)
        assert used[name].dtype == value.dtype


def test_no_patch_is_near_a_row_of_the_room() -> None:
    stored = with_room(some_banks((5,)), (3,))
    # As the graph computes it: ‖m‖² - 2 q·m. The largest patch that kernels take has a squared norm of 2**126.
    patch = np.full(3, math.sqrt(2.0**126 / 3), np.float32)
    distances = stored["norms"] - 2 * (stored["bank"] @ patch)
    assert distances[:5].max() < distances[5:].min() == ROOM_NORM
    # TF32 keeps 10 bits of the mantissa, rounded up at most; it must stay finite.
    assert float(ROOM_NORM) * (1 + 2.0**-10) < np.finfo(np.float32).max


@pytest.mark.parametrize("name", ["bank", "norms", "places", "neighbours"])
def test_a_row_behind_those_in_use_is_no_room(name: str) -> None:
    stored = with_room(some_banks((5,)), (2,))
    stored[name][6] += 1 if name != "norms" else np.float32(-9e37)
    with pytest.raises(BundleError, match=rf"expected 5 rows in {name} and room behind them, got more rows\. Export"):
        in_use(stored, Upkeep((5,), (2,)), "bank")


def test_a_bank_of_another_size_is_refused() -> None:
    stored = with_room(some_banks((5,)), (2,))
    with pytest.raises(BundleError, match="expected 5 rows and room for 3 in bank, got 7"):
        in_use(stored, Upkeep((5,), (3,)), "bank")


def test_a_record_is_read_back_and_a_broken_one_is_named() -> None:
    record = Additions(("pixels:a", "pixels:b"), (1, 3), (AddedRows((4, 7), (0, 1)),), ("pixels:c",))
    assert decode_additions(record.encode(), "b.flaw") == record
    for wrong in (
        {"images": ["a"], "numbers": []},
        {"images": ["a"], "numbers": [0]},
        {"images": ["a"], "numbers": [1], "banks": [{"rows": [3, 3], "images": [0, 0]}]},
        {"images": ["a"], "numbers": [1], "banks": [{"rows": [3], "images": [1]}]},
        {"images": ["a"], "numbers": [1], "banks": [{"rows": [3, 4], "images": [0]}]},
        {"other": 1},
    ):
        with pytest.raises(BundleError, match=re.escape("b.flaw: expected the record of added images, got a broken")):
            decode_additions(msgspec.json.encode(wrong), "b.flaw")
