"""What was there before: each image once, and no place twice, with eight bytes a text instead of the text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from hashlib import blake2b
from itertools import islice

import msgspec
import numpy as np
import numpy.typing as npt

from flawscope.runtime.scale.inputs.items import Item

_BLOCK = 8192
_YOUNG = 1 << 16
"""Numbers that are kept in a set, before they go to a sorted array: 8 bytes each instead of 70."""


class Numbers:
    """A set of numbers of 64 bits; it only grows."""

    def __init__(self) -> None:
        self._young = set[int]()
        self._sorted: list[npt.NDArray[np.uint64]] = []

    def __len__(self) -> int:
        return len(self._young) + sum(map(len, self._sorted))

    def has_old(self, numbers: list[int]) -> npt.NDArray[np.bool_]:
        """Return which of the numbers are among those that were added before the last `settle`: bool [N]."""
        wanted = np.array(numbers, np.uint64)
        found = np.zeros(len(numbers), np.bool_)
        for array in self._sorted:
            places = np.minimum(np.searchsorted(array, wanted), len(array) - 1)
            found |= array[places] == wanted
        return found

    def add(self, number: int, *, is_old: bool | None = None) -> bool:
        """Add a number, and return whether it is a new one.

        Args:
            number: The number.
            is_old: What `has_old` said of it; None where it was not asked.
        """
        if is_old is None:
            is_old = bool(self.has_old([number])[0])
        if is_old or number in self._young:
            return False
        self._young.add(number)
        return True

    def settle(self) -> None:
        """Move what was added to the sorted arrays, once it is enough; `has_old` knows it from then on."""
        if len(self._young) < _YOUNG:
            return
        array = np.sort(np.fromiter(self._young, np.uint64, len(self._young)))
        self._young.clear()
        # Arrays of doubling length: each number is moved a few times, and a search looks into a few.
        while self._sorted and len(self._sorted[-1]) <= 2 * len(array):
            array = np.sort(np.concatenate([self._sorted.pop(), array]), kind="stable")
        self._sorted.append(array)


def _number(text: str, person: bytes) -> int:
    # Of the text alone: the places of a plan must be the same in every process.
    digest = blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8, person=person)
    return int.from_bytes(digest.digest(), "little")


def _identity(item: Item) -> str:
    return "\0".join((item.name, item.fault, *map(str, item.where)))


def each_once(items: Iterable[Item]) -> Iterator[Item]:
    """Yield the items that were not there before; two are the same if name and place to read are."""
    # Two numbers of each: one that is equal by chance would lose an image.
    seen, seen_too = Numbers(), Numbers()
    for block in _blocks(items):
        texts = [_identity(item) for item in block]
        numbers = [(_number(text, b"one"), _number(text, b"two")) for text in texts]
        old = seen.has_old([one for one, _ in numbers])
        old_too = seen_too.has_old([two for _, two in numbers])
        for item, (one, two), is_old, is_old_too in zip(block, numbers, old, old_too, strict=True):
            is_new = seen.add(one, is_old=bool(is_old))
            if seen_too.add(two, is_old=bool(is_old_too)) or is_new:
                yield item
        seen.settle()
        seen_too.settle()


def own_places(items: Iterable[Item]) -> Iterator[Item]:
    """Yield the items, a number appended to places that were taken, as `flawscope.files.free_name` does."""
    taken, counts = Numbers(), dict[str, int]()
    for block in _blocks(items):
        numbers = [_number(item.place, b"place") for item in block]
        for item, number, is_old in zip(block, numbers, taken.has_old(numbers), strict=True):
            # A fault of a listing has no map. A number that is equal by chance only costs a place its name.
            if item.fault or taken.add(number, is_old=bool(is_old)):
                yield item
                continue
            count = counts.get(item.place, 1) + 1
            while not taken.add(_number(f"{item.place}_{count}", b"place")):
                count += 1
            counts[item.place] = count
            yield msgspec.structs.replace(item, place=f"{item.place}_{count}")
        taken.settle()


def _blocks(items: Iterable[Item]) -> Iterator[list[Item]]:
    source = iter(items)
    while block := list(islice(source, _BLOCK)):
        yield block
