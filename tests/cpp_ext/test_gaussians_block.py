"""Packed Gaussians as one block: the same results to the bit, nothing copied, and whatever is not theirs is refused."""

from __future__ import annotations

import gc
import mmap
from itertools import product

import numpy as np
import pytest
from kernel_cases import integers, random

from flawscope.cpp_ext import Gaussians, native, reference
from flawscope.errors import ArgumentError
from flawscope.triangles import pack_triangles, triangle_size, unpack_triangles

DTYPES = [np.float32, np.float16]
# Strips have 1, 4, 8 or 16 columns.
SHAPES = [*product((1, 3), (1, 4, 5, 15, 16, 17, 33)), (40, 100)]


def tables(positions, channels, dtype=np.float32, seed=0):
    mean = random(positions, channels, seed=seed)
    return mean, random(positions, triangle_size(channels), seed=seed + 1).astype(dtype)


def mapped(block):
    """Return a block as processes have it that share it: read-only, at the beginning of a page."""
    memory = mmap.mmap(-1, len(block))
    memory[:] = block.tobytes()
    found = np.frombuffer(memory, np.uint8)
    found.flags.writeable = False
    return found


def block_of(kernels, *given):
    with kernels.active():
        return Gaussians.block_of(*given)


def opened(kernels, block, *given):
    with kernels.active():
        return Gaussians.from_block(block, *given)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("threads", [1, 3])
def test_a_block_gives_the_bits_of_its_gaussians(compiled, dtype, threads):
    for positions, channels in SHAPES:
        mean, triangles = tables(positions, channels, dtype)
        with compiled.active():
            block = Gaussians.block_of(mean, triangles, threads=threads)
            again = Gaussians.from_block(mapped(block), mean, triangles, threads=threads)
        own = compiled.gaussians_of_triangles(mean, triangles)
        assert again.shape == own.shape
        for count in (1, 5, 33):
            patches = random(count, positions, channels, seed=5)
            one, other = own.mahalanobis(patches), again.mahalanobis(patches)
            np.testing.assert_array_equal(one.view(np.uint8), other.view(np.uint8))


def test_small_integers_are_exact_through_a_block(compiled):
    mean, patches = integers(7, 19, seed=1, high=2), integers(9, 7, 19, high=2)
    triangles = pack_triangles(np.triu(integers(7, 19, 19, seed=2, high=2)))
    found = opened(compiled, mapped(block_of(compiled, mean, triangles)), mean, triangles).mahalanobis(patches)
    np.testing.assert_array_equal(found, reference.mahalanobis(patches, mean, unpack_triangles(triangles, 19)))


def test_equal_gaussians_give_equal_blocks_of_little_more_than_their_numbers(compiled):
    mean, triangles = tables(300, 100, np.float16)
    block = block_of(compiled, mean, triangles)
    np.testing.assert_array_equal(block, block_of(compiled, mean.copy(), triangles.copy()))
    assert len(block) <= 1.08 * (mean.nbytes + triangles.nbytes) + 3 * 4096


def test_nothing_is_copied_and_the_block_lives_with_its_gaussians(compiled):
    mean, triangles = tables(30, 40)
    patches = random(3, 30, 40, seed=4)
    wanted = compiled.gaussians_of_triangles(mean, triangles).mahalanobis(patches)
    memory = mmap.mmap(-1, len(block := block_of(compiled, mean, triangles)))
    memory[:] = block.tobytes()
    gaussians = opened(compiled, np.frombuffer(memory, np.uint8), mean, triangles)
    del block, triangles
    gc.collect()
    np.testing.assert_array_equal(gaussians.mahalanobis(patches), wanted)
    with pytest.raises(BufferError):
        memory.close()  # somebody reads it
    memory[4096 : 4096 + mean.nbytes] = (mean + np.float32(50)).tobytes()
    assert (gaussians.mahalanobis(patches) > 2 * wanted).any()
    del gaussians
    gc.collect()
    memory.close()


def changed(block, place, to=None):
    damaged = block.copy()
    damaged[place] = damaged[place] ^ 0x80 if to is None else to
    return mapped(damaged)


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_bit_anywhere_is_noticed(compiled, dtype):
    mean, triangles = tables(9, 21, dtype)
    block = block_of(compiled, mean, triangles)
    opened(compiled, mapped(block), mean, triangles)
    for place in [*range(128), *range(128, len(block), 37), *range(len(block) - 130, len(block))]:
        with pytest.raises(ArgumentError, match="block: expected one that Gaussians of these numbers wrote"):
            opened(compiled, changed(block, place), mean, triangles)


@pytest.mark.parametrize("length", [1, 64, 4095, 4096, 5000, -64, -1])
def test_a_block_that_is_cut_off_is_refused(compiled, length):
    mean, triangles = tables(9, 21)
    with pytest.raises(ArgumentError, match="is cut off"):
        opened(compiled, mapped(block_of(compiled, mean, triangles)[:length]), mean, triangles)


def test_a_block_of_other_gaussians_is_refused(compiled):
    mean, triangles = tables(12, 8)
    block = mapped(block_of(compiled, mean, triangles))
    other = triangles.copy()
    other[11, 35] += 1
    for given in (
        (mean, other),
        (mean + np.float32(1), triangles),
        (mean[:6], triangles[:6]),
        (mean, triangles.astype(np.float16)),
        tables(9, 9),
    ):
        with pytest.raises(ArgumentError, match="other rows or factors"):
            opened(compiled, block, *given)
    with pytest.raises(ArgumentError, match="of another version"):
        opened(compiled, changed(np.array(block), 8, 2), mean, triangles)


def test_a_block_of_another_level_is_refused(compiled):
    mean, triangles = tables(12, 8)
    block = mapped(block_of(compiled, mean, triangles))
    others = [level for level in native.MODULE.simd_levels() if level != compiled.name]
    if not others:
        pytest.skip("this processor has one level")
    for level in others:
        with pytest.raises(ArgumentError, match=f"level {level}"):
            opened(type(compiled)(level), block, mean, triangles)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_numbers_that_are_not_finite_are_refused_before_and_behind_a_block(compiled, bad):
    mean, triangles = tables(12, 8)
    block = block_of(compiled, mean, triangles)
    for place in range(2):
        harmed = [mean.copy(), triangles.copy()]
        harmed[place].flat[5] = bad
        with pytest.raises(ArgumentError, match=r"NaN|finite"):
            block_of(compiled, *harmed)
        # Said of the numbers, and not of the block.
        with pytest.raises(ArgumentError, match=r"NaN|finite"):
            opened(compiled, mapped(block), *harmed)


def test_what_is_no_block_is_refused(compiled):
    mean, triangles = tables(12, 8)
    block = mapped(block_of(compiled, mean, triangles))
    for wrong, match in (
        (block[1:], "multiple of 64"),
        (np.repeat(block, 2)[::2], "without gaps"),
        (block.view(np.int8), "uint8"),
        (bytes(block), "NumPy array"),
        (mapped(np.zeros(8192, np.uint8)), "is none of a bank"),
        (mapped(compiled.bank(mean).to_block()), "is none of a bank"),
    ):
        with pytest.raises(ArgumentError, match=match):
            opened(compiled, wrong, mean, triangles)
    with pytest.raises(ArgumentError, match=r"^triangles: expected .*\[12, 36\]"):
        block_of(compiled, mean, triangles[:, :35])


def test_the_reference_has_no_blocks():
    mean, triangles = tables(3, 2)
    before, native.HAVE_NATIVE = native.HAVE_NATIVE, False
    try:
        with pytest.raises(ArgumentError, match="native kernels"):
            Gaussians.block_of(mean, triangles)
        with pytest.raises(ArgumentError, match="native kernels"):
            Gaussians.from_block(np.zeros(64, np.uint8), mean, triangles)
    finally:
        native.HAVE_NATIVE = before
