"""Random choices that depend on a seed and names alone: adding an image or a defect type changes no other choice."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import TypeVar

import numpy as np

from flawscope.errors import ArgumentError

MAX_SEED = 2**63 - 1

_Item = TypeVar("_Item")


def check_seed(seed: int) -> int:
    """Return `seed` if it is from 0 to 2⁶³ − 1, or raise ArgumentError."""
    if not 0 <= seed <= MAX_SEED:
        raise ArgumentError(f"seed: expected a whole number from 0 to {MAX_SEED}, got {seed}.")
    return seed


def check_count(value: int, name: str, low: int, high: int) -> int:
    """Return `value` if it is from `low` to `high`, or raise ArgumentError."""
    if not low <= value <= high:
        raise ArgumentError(f"{name}: expected a whole number from {low} to {high}, got {value}.")
    return value


def check_fraction(value: float, name: str, low: float, high: float) -> float:
    """Return `value` if it is from `low` to `high`, or raise ArgumentError; NaN is refused too."""
    if not low <= value <= high:
        raise ArgumentError(f"{name}: expected a number from {low:g} to {high:g}, got {value:g}.")
    return value


def generator(seed: int, *names: str | int) -> np.random.Generator:
    """Return the random generator of one object, such as mask 7 of one defect type."""
    # PCG64 by name, not default_rng: NumPy may change what that is, and a seed has to give the same files.
    return np.random.Generator(np.random.PCG64(int.from_bytes(_digest(seed, names), "big")))


def seeded_order(items: Iterable[tuple[str, _Item]], seed: int, *names: str) -> list[_Item]:
    """Return the items shuffled by the SHA-256 of seed, names and each item's own name.

    Args:
        items: Pairs of a name, such as the path below the dataset's root, and the item it stands for.
        seed: Seed of the order.
        names: Names of the purpose, such as category and defect type.
    """
    # Not rng.shuffle: an item that is added would move all others.
    keyed = sorted(((_digest(seed, (*names, name)), name, item) for name, item in items), key=lambda entry: entry[:2])
    return [item for _, _, item in keyed]


def _digest(seed: int, names: Iterable[str | int]) -> bytes:
    digest = hashlib.sha256(b"%d" % seed)
    for name in names:
        data = str(name).encode(errors="surrogateescape")
        digest.update(b"/%d:%s" % (len(data), data))  # with its length, so that no two lists of names give one text
    return digest.digest()
