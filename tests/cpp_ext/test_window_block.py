"""A bank with windows whose rows lie in a block: the same results to the bit, and a block of other rows is refused."""

from __future__ import annotations

import gc
import mmap

import numpy as np
import pytest
from kernel_cases import random

from flawscope.cpp_ext import Bank, WindowBank, native
from flawscope.cpp_ext.window import windows_simd_level
from flawscope.errors import ArgumentError

GRID = (4, 5)


def case(rows=400, channels=40, seed=0):
    """Return rows and their places, some of the grid without any."""
    cells = np.sort(np.random.default_rng(seed).integers(3, GRID[0] * GRID[1], rows))
    return random(rows, channels, seed=seed), np.stack(np.divmod(cells, GRID[1]), axis=1)


def mapped(block):
    """Return a block as processes have it that share it: read-only, at the beginning of a page."""
    memory = mmap.mmap(-1, len(block))
    memory[:] = block.tobytes()
    found = np.frombuffer(memory, np.uint8)
    found.flags.writeable = False
    return found


def opened(kernels, block, *given):
    with kernels.active():
        return WindowBank.from_block(block, *given)


@pytest.mark.parametrize("radius", [0, 1, 4])
def test_a_block_gives_the_bits_of_its_windows(compiled, radius):
    for count, channels in ((30, 3), (400, 40), (900, 65)):
        rows, places = case(count, channels)
        own = compiled.window_bank(rows, places, GRID, radius)
        again = opened(compiled, mapped(own.to_block()), rows, places, GRID, radius)
        assert (again.shape, again.grid, again.pairs) == (own.shape, own.grid, own.pairs)
        np.testing.assert_array_equal(again.reach, own.reach)
        for images in (1, 3):
            queries = random(images * GRID[0] * GRID[1], channels, seed=7)
            for one, other in zip(own.nearest(queries), again.nearest(queries), strict=True):
                np.testing.assert_array_equal(one.view(np.uint8), other.view(np.uint8))


def test_it_is_the_block_of_the_whole_bank_on_the_level_of_windows(compiled):
    rows, places = case()
    with compiled.active():
        level = windows_simd_level()
    block = compiled.window_bank(rows, places, GRID, 1).to_block()
    np.testing.assert_array_equal(block, type(compiled)(level).bank(rows).to_block())
    # Places and radius are not in it.
    other = opened(compiled, mapped(block), rows, places, GRID, 2)
    assert (other.reach >= 2).all()


def test_nothing_is_copied_and_the_block_lives_with_its_windows(compiled):
    rows, places = case()
    queries = random(GRID[0] * GRID[1], 40, seed=7)
    wanted = compiled.window_bank(rows, places, GRID, 1).nearest(queries)
    block = mapped(compiled.window_bank(rows, places, GRID, 1).to_block())
    bank = opened(compiled, block, rows, places, GRID, 1)
    assert np.shares_memory(bank.rows, block)
    np.testing.assert_array_equal(bank.rows, rows)
    assert not bank.rows.flags.writeable
    del block, rows
    gc.collect()
    for one, other in zip(bank.nearest(queries), wanted, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_block_that_was_changed_or_is_of_other_rows_is_refused(compiled):
    rows, places = case()
    block = compiled.window_bank(rows, places, GRID, 1).to_block()
    for place in [*range(0, 128, 5), *range(128, len(block), 4999), len(block) - 1]:
        harmed = block.copy()
        harmed[place] ^= 0x80
        with pytest.raises(ArgumentError, match="block: expected one that a bank of these rows wrote"):
            opened(compiled, mapped(harmed), rows, places, GRID, 1)
    with pytest.raises(ArgumentError, match="is cut off"):
        opened(compiled, mapped(block[:-64]), rows, places, GRID, 1)
    with pytest.raises(ArgumentError, match="other rows"):
        opened(compiled, mapped(block), rows + np.float32(1), places, GRID, 1)
    with pytest.raises(ArgumentError, match="multiple of 64"):
        opened(compiled, mapped(block)[1:], rows, places, GRID, 1)
    with pytest.raises(ArgumentError, match=r"^places: expected one for each of the 400 rows, got 399"):
        opened(compiled, mapped(block), rows, places[:399], GRID, 1)


def test_a_block_of_another_level_is_refused(compiled):
    rows, places = case()
    block = mapped(compiled.window_bank(rows, places, GRID, 1).to_block())
    with compiled.active():
        own = windows_simd_level()
    others = [level for level in native.MODULE.simd_levels() if level not in (own, compiled.name, "avx512amx")]
    if not others:
        pytest.skip("this processor has one level")
    for level in others:
        with pytest.raises(ArgumentError, match=f"level {level}"):
            opened(type(compiled)(level), block, rows, places, GRID, 1)


def test_the_reference_has_no_blocks():
    rows, places = case()
    block = Bank(rows).to_block() if native.HAVE_NATIVE else np.zeros(64, np.uint8)
    before, native.HAVE_NATIVE = native.HAVE_NATIVE, False
    try:
        bank = WindowBank(rows, places, GRID, 1)
        assert bank.rows is rows
        assert windows_simd_level() == "none"
        with pytest.raises(ArgumentError, match="native kernels"):
            bank.to_block()
        with pytest.raises(ArgumentError, match="native kernels"):
            WindowBank.from_block(block, rows, places, GRID, 1)
    finally:
        native.HAVE_NATIVE = before
