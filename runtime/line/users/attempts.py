"""How often somebody may try: a few times at once, then once in a while. Memory is bounded, whatever is tried."""

from __future__ import annotations

import ipaddress
import time
from collections import OrderedDict
from collections.abc import Callable

MOST_KEYS = 4096
"""Names or addresses that are remembered; beyond that the one that tried longest ago is forgotten."""


class Attempts:
    """Counts failed attempts by a key. Not locked: one thread uses it at a time.

    Args:
        burst: Attempts that may be made at once.
        every_s: Seconds after which one more may be made.
        now: Seconds of a clock that does not jump.
    """

    def __init__(self, burst: int, every_s: float, now: Callable[[], float] = time.monotonic) -> None:
        self._burst, self._every_s, self._now = burst, every_s, now
        self._used: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def __len__(self) -> int:
        """Return how many keys are remembered."""
        return len(self._used)

    def wait_s(self, key: str) -> float:
        """Return the seconds until one more attempt may be made; 0 for now."""
        return max(0.0, (self._level(key) - (self._burst - 1)) * self._every_s)

    def count(self, key: str) -> None:
        """Count an attempt, before it is known whether it succeeds: many may be made at once."""
        self._set(key, self._level(key) + 1)

    def give_back(self, key: str) -> None:
        """Take one back that succeeded; those before it stay, as somebody may try others' names beside his own."""
        self._set(key, max(0.0, self._level(key) - 1))

    def forget(self, key: str) -> None:
        """Forget the attempts of a key."""
        self._used.pop(key, None)

    def _level(self, key: str) -> float:
        level, then = self._used.get(key, (0.0, 0.0))
        return max(0.0, level - (self._now() - then) / self._every_s)

    def _set(self, key: str, level: float) -> None:
        self._used[key] = (level, self._now())
        self._used.move_to_end(key)
        while len(self._used) > MOST_KEYS:
            self._used.popitem(last=False)


def network_of(address: str) -> str:
    """Return what counts as one address: of IPv6 the 64 bits of the network, as a host has all below it."""
    try:
        known = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(known, ipaddress.IPv6Address):
        if known.ipv4_mapped is not None:
            return str(known.ipv4_mapped)
        return str(ipaddress.ip_network((known, 64), strict=False))
    return str(known)
