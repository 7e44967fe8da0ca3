"""A bank as one block: the same results to the bit, nothing copied, and whatever is not that bank is refused."""

from __future__ import annotations

import gc
import mmap

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_cases import integers, random

from flawscope.cpp_ext import Bank, native, reference
from flawscope.errors import ArgumentError

STORAGES = ["float32", "float16", "int8"]
VERSION = 8  # where a header has it


def mapped(block):
    """Return a block as processes have it that share it: read-only, at the beginning of a page."""
    memory = mmap.mmap(-1, len(block))
    memory[:] = block.tobytes()
    found = np.frombuffer(memory, np.uint8)
    found.flags.writeable = False
    return found


def opened(kernels, block, rows, storage="float32", **options):
    with kernels.active():
        return Bank.from_block(block, rows, storage, **options)


def assert_equal_bits(first, second, queries, ks):
    for k in ks:
        for one, other in zip(first.nearest(queries, k), second.nearest(queries, k), strict=True):
            np.testing.assert_array_equal(one.view(np.uint8), other.view(np.uint8))


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("screen", [False, True])
def test_a_block_gives_the_bits_of_its_bank(compiled, storage, screen):
    if screen and storage != "float32":
        pytest.skip("a screen is of float32 alone")
    for rows, channels in ((1, 1), (31, 3), (33, 64), (700, 65), (1500, 40)):
        bank_rows, queries = random(rows, channels), random(75, channels, seed=1)
        bank = compiled.bank(bank_rows, storage, screen=screen)
        again = opened(compiled, mapped(bank.to_block()), bank_rows, storage, screen=screen)
        assert (again.shape, again.storage, again.error_bound) == (bank.shape, bank.storage, bank.error_bound)
        assert_equal_bits(bank, again, queries, [k for k in (1, 3, 16, 64) if k <= rows])
        if rows > 9:
            for one, other in zip(bank.nearest(queries, 3, rerank=9), again.nearest(queries, 3, rerank=9), strict=True):
                np.testing.assert_array_equal(one, other)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 300), st.integers(1, 150), st.integers(1, 40), st.integers(1, 64), st.integers(0, 2**16))
def test_small_integers_are_exact_through_a_block(compiled, rows, channels, count, k, seed):
    bank_rows, queries = integers(rows, channels, seed=seed), integers(count, channels, seed=seed + 1)
    k = min(k, rows)
    block = compiled.bank(bank_rows).to_block()
    found = opened(compiled, mapped(block), bank_rows).nearest(queries, k)
    for one, other in zip(found, reference.nearest(queries, bank_rows, k), strict=True):
        np.testing.assert_array_equal(one, other)


def test_queries_without_a_proof_are_searched_for_in_the_block_too(compiled):
    # All rows nearly alike: the 8-bit copy tells none apart, and the float32 panels of the block must answer.
    rows = np.float32(100) + random(700, 64) * np.float32(1e-3)
    bank = compiled.bank(rows, screen=True)
    again = opened(compiled, mapped(bank.to_block()), rows, screen=True)
    assert_equal_bits(bank, again, rows[:50] + np.float32(1e-4), [1, 4])
    assert again.unproved_share == bank.unproved_share > 0


def test_equal_banks_give_equal_blocks_and_a_mapped_one_gives_its_own(compiled):
    rows = random(333, 37)
    block = compiled.bank(rows).to_block()
    np.testing.assert_array_equal(block, compiled.bank(rows.copy()).to_block())
    np.testing.assert_array_equal(block, opened(compiled, mapped(block), rows).to_block())


def test_nothing_is_copied_and_the_block_lives_with_its_bank(compiled):
    rows, queries = random(600, 50), random(20, 50, seed=1)
    wanted = compiled.bank(rows).nearest(queries, 2)
    block = mapped(compiled.bank(rows).to_block())
    bank = opened(compiled, block, rows)
    assert np.shares_memory(bank.rows, block)
    np.testing.assert_array_equal(bank.rows, rows)
    assert not bank.rows.flags.writeable
    first = block.ctypes.data
    del block, rows
    gc.collect()
    assert bank.rows.ctypes.data - first == native.MODULE.BLOCK_ROWS
    for one, other in zip(bank.nearest(queries, 2), wanted, strict=True):
        np.testing.assert_array_equal(one, other)


def changed(block, place, to=None):
    damaged = block.copy()
    damaged[place] = damaged[place] ^ 0x80 if to is None else to
    return mapped(damaged)


def test_one_bit_anywhere_is_noticed(compiled):
    rows = random(300, 33)
    block = compiled.bank(rows, screen=True).to_block()
    opened(compiled, mapped(block), rows, screen=True)
    for place in [*range(128), *range(128, len(block), 499), len(block) - 1]:
        with pytest.raises(ArgumentError, match="block: expected one that a bank of these rows wrote"):
            opened(compiled, changed(block, place), rows, screen=True)


def test_two_sign_bits_do_not_cancel_out(compiled):
    rows = random(300, 64)
    block = compiled.bank(rows).to_block()
    for distance in (4, 8, 64, 128, 4096):
        damaged = block.copy()
        for place in (20_003, 20_003 + distance):
            damaged[place] ^= 0x80
        with pytest.raises(ArgumentError, match="was changed"):
            opened(compiled, mapped(damaged), rows)


@pytest.mark.parametrize("length", [1, 64, 4095, 4096, 10_000, -64, -1])
def test_a_block_that_is_cut_off_is_refused(compiled, length):
    rows = random(300, 33)
    block = compiled.bank(rows).to_block()
    with pytest.raises(ArgumentError, match="is cut off"):
        opened(compiled, mapped(block[:length]), rows)


def test_a_block_of_another_bank_is_refused(compiled):
    rows = random(300, 33)
    block = mapped(compiled.bank(rows, screen=True).to_block())
    other = rows.copy()
    other[299, 32] += 1
    for given_rows, storage, screen in (
        (other, "float32", True),
        (rows[:299], "float32", True),
        (rows.reshape(33, 300), "float32", True),
        (rows, "float32", False),
        (rows, "float16", None),
        (rows, "int8", None),
    ):
        with pytest.raises(ArgumentError, match="other rows"):
            opened(compiled, block, given_rows, storage, screen=screen)
    with pytest.raises(ArgumentError, match="of another version"):
        opened(compiled, changed(np.array(block), VERSION, 2), rows, screen=True)


def test_a_block_of_another_level_is_refused(compiled):
    rows = random(300, 33)
    block = mapped(compiled.bank(rows).to_block())
    others = [level for level in native.MODULE.simd_levels() if level != compiled.name]
    if not others:
        pytest.skip("this processor has one level")
    for level in others:
        with pytest.raises(ArgumentError, match=f"level {level}"):
            opened(type(compiled)(level), block, rows)


def test_what_is_no_block_is_refused(compiled):
    rows = random(300, 33)
    block = mapped(compiled.bank(rows).to_block())
    for wrong, match in (
        (block[1:], "multiple of 64"),
        (np.repeat(block, 2)[::2], "without gaps"),
        (block.view(np.int8), "uint8"),
        (bytes(block), "NumPy array"),
        (mapped(np.zeros(8192, np.uint8)), "is none of a bank"),
    ):
        with pytest.raises(ArgumentError, match=match):
            opened(compiled, wrong, rows)
    for storage in ("float16", "int8"):
        with pytest.raises(ArgumentError, match="keep_rows"):
            compiled.bank(rows, storage, keep_rows=False).to_block()


def test_the_reference_has_no_blocks(face):
    rows = random(30, 3)
    bank = face.bank(rows)
    if face.name == "reference":
        with face.active(), pytest.raises(ArgumentError, match="native kernels"):
            bank.to_block()
        assert bank.rows is rows
    else:
        assert len(bank.to_block()) > rows.nbytes
