"""Rows that are inserted into a memory bank and taken out: what is left is what was there, to the last bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from flawscope.arrays import Float32Array, Int64Array
from flawscope.bank_names import bank_names, norm_names, place_names
from flawscope.bundle import AddedRows, PatchcoreHead, with_room
from flawscope.cpp_ext import neighbour_table
from flawscope.errors import BundleError
from flawscope.runtime.upkeep.bank_rows import TRAINED, BankRows, NewRows, rows_problem

GRID = (3, 4)


def head(banks: int = 1, *, window: int | None = None, reweight: Any = "none", neighbors: int = 1) -> PatchcoreHead:
    return PatchcoreHead(GRID, neighbors, reweight, 0.0, banks=banks, window=window)


def some_rows(generator: np.random.Generator, count: int) -> tuple[Float32Array, Int64Array]:
    """Rows of whole numbers, with repeats, and places in ascending order."""
    return generator.integers(-2, 3, (count, 2)).astype(np.float32), np.sort(generator.integers(0, 12, count))


def bank_of(made: PatchcoreHead, counts: list[int], generator: np.random.Generator) -> dict[str, npt.NDArray[Any]]:
    tensors: dict[str, npt.NDArray[Any]] = {}
    for number, count in enumerate(counts):
        rows, positions = some_rows(generator, count)
        tensors[bank_names(made.banks)[number]] = rows
        tensors[norm_names(made.banks)[number]] = (rows**2).sum(axis=1)
        if made.window is not None:
            tensors[place_names(made.banks)[number]] = np.stack(np.divmod(positions, GRID[1]), axis=1)
    if made.reweight == "paper":
        tensors["neighbours"] = neighbour_table(tensors["bank"], min(made.neighbors, counts[0]))
    return tensors


def new_rows(generator: np.random.Generator, count: int, images: int, first: int) -> NewRows:
    rows, positions = some_rows(generator, count)
    return NewRows(rows, generator.permutation(positions), np.sort(generator.integers(first, first + images, count)))


HEADS = [head(), head(2), head(window=1), head(2, window=2), head(reweight="paper", neighbors=3)]


@pytest.mark.parametrize("made", HEADS)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_what_was_added_can_be_taken_out_in_any_order(made: PatchcoreHead, data: st.DataObject) -> None:
    generator = np.random.default_rng(data.draw(st.integers(0, 999)))
    counts = [data.draw(st.integers(3, 9)) for _ in range(made.banks)]
    tensors = bank_of(made, counts, generator)
    before = BankRows.of(made, tensors, ())
    first = before.with_added([new_rows(generator, data.draw(st.integers(0, 6)), 2, 0) for _ in counts])
    both = first.with_added([new_rows(generator, data.draw(st.integers(0, 6)), 2, 2) for _ in counts])
    # Images 2 and 3 go, then the rest: as it was after the first addition, and before it.
    again = both.only([origin < 2 for origin in both.origins])
    for name, value in first.tensors.items():
        np.testing.assert_array_equal(again.tensors[name], value)
    none = both.only([origin == TRAINED for origin in both.origins])
    for name, value in tensors.items():
        np.testing.assert_array_equal(none.tensors[name], value)
    # Images 0 and 1 go: the rows that stay keep their order, and are those that came with images 2 and 3.
    late = both.only([(origin == TRAINED) | (origin >= 2) for origin in both.origins])
    assert late.counts == tuple(
        count + int((origin >= 2).sum()) for count, origin in zip(counts, both.origins, strict=True)
    )


@pytest.mark.parametrize("made", HEADS)
def test_rows_of_a_bank_are_in_the_order_that_the_search_wants(made: PatchcoreHead) -> None:
    generator = np.random.default_rng(1)
    before = BankRows.of(made, bank_of(made, [7] * made.banks, generator), ())
    after = before.with_added([new_rows(generator, 5, 3, 0) for _ in range(made.banks)])
    for number, bank in enumerate(bank_names(made.banks)):
        rows = after.tensors[bank]
        np.testing.assert_array_equal(after.tensors[norm_names(made.banks)[number]], (rows**2).sum(axis=1))
        if made.window is not None:
            places = after.tensors[place_names(made.banks)[number]]
            cells = places[:, 0] * GRID[1] + places[:, 1]
            assert (np.diff(cells) >= 0).all()
            # Within a place those of the training come first.
            assert (np.diff(after.origins[number])[np.diff(cells) == 0] >= 0).all()
    if made.reweight == "paper":
        np.testing.assert_array_equal(after.tensors["neighbours"], neighbour_table(after.tensors["bank"], 3))


def test_the_record_says_which_rows_are_of_which_image() -> None:
    generator = np.random.default_rng(2)
    made = head(window=1)
    tensors = bank_of(made, [6], generator)
    after = BankRows.of(made, tensors, ()).with_added([new_rows(generator, 4, 2, 0)])
    again = BankRows.of(made, after.tensors, after.added_rows())
    np.testing.assert_array_equal(again.origins[0], after.origins[0])
    with pytest.raises(BundleError, match="expected rows of the 6 of bank, got 9"):
        BankRows.of(made, tensors, (AddedRows((9,), (0,)),))


def test_a_file_keeps_its_layout_and_takes_no_more_than_it_has_room_for() -> None:
    generator = np.random.default_rng(3)
    made = head(reweight="paper", neighbors=3)
    tensors = bank_of(made, [8], generator)
    stored = safetensors.numpy.save(with_room(tensors, (4,)))
    before = BankRows.of(made, tensors, ())
    assert before.encode(stored) == stored
    full = before.with_added([new_rows(generator, 4, 2, 0)])
    changed = full.encode(stored)
    assert len(changed) == len(stored)
    assert full.room(changed) == (0,)
    np.testing.assert_array_equal(safetensors.numpy.load(changed)["bank"], full.tensors["bank"])
    with pytest.raises(BundleError, match="expected room for 1 rows more, got none"):
        before.with_added([new_rows(generator, 5, 2, 0)]).encode(stored)
    foreign = safetensors.numpy.save({**with_room(tensors, (4,)), "other": np.zeros(2, np.float32)})
    with pytest.raises(BundleError, match="expected a file as flawscope export writes it"):
        full.encode(foreign)


def test_a_bank_whose_graph_would_not_fit_other_rows_is_named() -> None:
    generator = np.random.default_rng(4)
    made = head(reweight="seed", neighbors=9)
    assert rows_problem(made, bank_of(made, [9], generator)) is None
    problem = rows_problem(made, bank_of(made, [8], generator))
    assert problem == "expected at least 9 rows, as many as the neighbours that re-weight a score, got 8"
    made = head(window=1)
    tensors = {"bank": np.zeros((1, 2), np.float32), "places": np.array([[0, 0]])}
    assert rows_problem(made, tensors) == "expected rows in the window of every patch, got 8 patches without"
