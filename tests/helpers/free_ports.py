"""Ports for servers that take a number, and not 0: free, and not soon taken by somebody else."""

from __future__ import annotations

import random
import socket

_FIRST, _LAST = 24_100, 32_500
"""Below those that systems give to whoever connects (Linux: from 32768 on), of which the tests that run beside this one
take hundreds; and above those that Ray takes by itself."""

_chance = random.SystemRandom()
"""Not the seeded one: processes that draw the same numbers would meet at the same ports."""


def free_port() -> int:
    """Return a port of 127.0.0.1 that nothing listens at."""
    for _ in range(1000):
        port = _chance.randint(_FIRST, _LAST)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
    raise AssertionError(f"no port of {_FIRST} to {_LAST} is free")
