"""Names of the memory banks of a run and a bundle, in the order of the layers they are of."""

from __future__ import annotations


def bank_names(count: int) -> tuple[str, ...]:
    """Return the names of `count` banks: `bank` where there is one, else `bank.0`, `bank.1`, ..."""
    return ("bank",) if count == 1 else tuple(f"bank.{number}" for number in range(count))


def place_names(count: int) -> tuple[str, ...]:
    """Return the names of the places that their rows come from, which a window needs."""
    return tuple(name.replace("bank", "places", 1) for name in bank_names(count))


def norm_names(count: int) -> tuple[str, ...]:
    """Return the names of the squared norms of their rows."""
    return tuple(name.replace("bank", "norms", 1) for name in bank_names(count))
