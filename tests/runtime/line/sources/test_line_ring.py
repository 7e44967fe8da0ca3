"""The ring of shared memory: what was written is what is read, and what is not whole is a fault."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from flawscope.runtime.line.sources.ring import SLOTS, Ring, checksum, make_memory
from flawscope.runtime.line.sources.source import Frame

SLOT_BYTES = 3 * 50 * 40


@pytest.fixture
def rings() -> Iterator[tuple[Ring, Ring]]:
    """The two sides of one ring."""
    memory = make_memory(SLOTS, SLOT_BYTES)
    ours, theirs = Ring(memory, SLOTS, SLOT_BYTES), Ring(memory, SLOTS, SLOT_BYTES)
    os.close(memory)
    yield ours, theirs
    ours.close()
    theirs.close()


@pytest.mark.parametrize("shape", [(40, 50), (40, 50, 3), (1, 1), (7, 3, 3)])
def test_pixels_come_as_they_were_and_belong_to_the_receiver(rings: tuple[Ring, Ring], shape: tuple[int, ...]) -> None:
    ours, theirs = rings
    image = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    frame = Frame(image, 123, 7, "", "incomplete_image", "two packets", 3)
    theirs.write(2, frame, 9)
    read = ours.read(2, 9)
    theirs.write(2, Frame(np.zeros_like(image), 1), 10)
    assert isinstance(read.image, np.ndarray)
    np.testing.assert_array_equal(read.image, image)
    assert read.image.flags.writeable
    assert (read.mono_ns, read.frame_id, read.problem, read.detail, read.lost) == (
        123, 7, "incomplete_image", "two packets", 3,
    )  # fmt: skip


def test_the_bytes_of_a_file_and_images_that_are_none_pass(rings: tuple[Ring, Ring]) -> None:
    ours, theirs = rings
    theirs.write(0, Frame(b"\x89PNG...", 1, None, "ü.png"), 1)
    theirs.write(1, Frame(None, 1, is_last=True), 2)
    assert (ours.read(0, 1).image, ours.read(0, 1).source) == (b"\x89PNG...", "ü.png")
    assert (ours.read(1, 2).image, ours.read(1, 2).is_last) == (None, True)


def test_images_that_lie_otherwise_in_memory_are_the_same(rings: tuple[Ring, Ring]) -> None:
    ours, theirs = rings
    image = np.arange(40 * 50 * 3, dtype=np.uint8).reshape(40, 50, 3)[::2, ::-1]
    theirs.write(0, Frame(image, 1), 1)
    np.testing.assert_array_equal(ours.read(0, 1).image, image)


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (np.zeros((50, 50, 3), np.uint8), "slot_mb"),
        (b"x" * (SLOT_BYTES + 1), "slot_mb"),
        (np.zeros((4, 4), np.uint16), "uint16"),
        (np.zeros((4, 4, 4), np.uint8), "[4, 4, 4]"),
        (np.zeros((0, 4), np.uint8), "[0, 4]"),
    ],
)
def test_what_does_not_fit_is_the_word_that_it_cannot_be_read(
    rings: tuple[Ring, Ring], image: np.ndarray | bytes, expected: str
) -> None:
    ours, theirs = rings
    theirs.write(0, Frame(image, 5, 6, "a.png", lost=2), 1)  # type: ignore[arg-type]
    read = ours.read(0, 1)
    assert (read.image, read.problem, read.source, read.frame_id, read.lost) == (
        None,
        "unreadable_image",
        "a.png",
        6,
        2,
    )
    assert expected in read.detail


def test_a_slot_that_is_not_whole_or_another_one_is_a_fault(rings: tuple[Ring, Ring]) -> None:
    ours, theirs = rings
    image = np.arange(40 * 50, dtype=np.uint8).reshape(40, 50)

    def spoiled(at: int, sequence: int = 1) -> Frame:
        theirs.write(1, Frame(image, 1, source="a.png"), 1)
        stride = len(theirs._memory) // SLOTS
        theirs._memory[stride + at] ^= 1
        return ours.read(1, sequence)

    for frame in (spoiled(0), spoiled(8), spoiled(12), spoiled(40), spoiled(4096), spoiled(4096 + 1999)):
        assert (frame.image, frame.problem) == (None, "unreadable_image")
        assert "shared memory" in frame.detail
    assert spoiled(4096).source == "a.png"
    theirs.write(1, Frame(image, 1), 1)
    assert ours.read(1, 1).problem == ""
    for slot, sequence in ((1, 2), (0, 1), (SLOTS, 1), (-1, 1)):
        assert ours.read(slot, sequence).problem == "unreadable_image"


def test_of_large_images_blocks_are_checked_and_the_ends_are_among_them() -> None:
    data = np.zeros(20 << 20, np.uint8)
    before = checksum(data)
    for place in (0, len(data) - 1):
        data[place] = 1
        assert checksum(data) != before
        data[place] = 0
    small = np.zeros(8 << 20, np.uint8)
    before = checksum(small)
    small[5 << 20] = 1
    assert checksum(small) != before


def test_nothing_has_a_name_in_the_system_and_its_size_stays(rings: tuple[Ring, Ring]) -> None:
    memory = make_memory(2, 1 << 20)
    # Not a comparison of /dev/shm before and after: others have files there, too.
    assert str(Path(f"/proc/self/fd/{memory}").readlink()) == "/memfd:flawscope-images (deleted)"
    with pytest.raises(OSError, match="not permitted"):
        os.ftruncate(memory, 0)
    with pytest.raises(ValueError, match="shared memory of"):
        Ring(memory, 3, 1 << 20)
    os.close(memory)


def test_a_header_that_does_not_fit_is_a_mistake_of_the_program(rings: tuple[Ring, Ring]) -> None:
    with pytest.raises(ValueError, match="too long a name"):
        rings[0].write(0, Frame(None, time.monotonic_ns(), source="x" * 5000), 1)
