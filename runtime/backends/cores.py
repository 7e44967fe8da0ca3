"""How many cores a bundle may use, and how a batch is spread over them."""

from __future__ import annotations

import os
from dataclasses import dataclass

from flawscope.errors import ArgumentError


@dataclass(frozen=True)
class Cores:
    """Threads and streams of a session; both are the backend's own choice unless set.

    Attributes:
        threads: Threads of the graph, and of the kernels behind it. None for all cores that this process may use.
        streams: Images of a batch that are inferred at once, each on its part of the threads. One image alone has all
            threads, whatever is set.
    """

    threads: int | None = None
    streams: int | None = None

    def given(self) -> dict[str, int]:
        """Return what is set, by name."""
        pairs = (("threads", self.threads), ("streams", self.streams))
        return {name: value for name, value in pairs if value is not None}

    def __str__(self) -> str:
        return ", ".join(f"{name} {value}" for name, value in self.given().items()) or "as the backend chooses"

    def check(self) -> None:
        """Raise ArgumentError unless both fit the cores that this process may use."""
        most, what = usable_cores(), "the cores that this process may use"
        for name, value in self.given().items():
            # bool is a subclass of int: True would pass as 1.
            if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
                raise ArgumentError(f"{name}: expected 1 to {most} ({what}), got {value!r}.")
            if name == "threads":  # they come first: a stream has at least one of them
                most, what = value, "the threads"


OWN_CHOICE = Cores()
"""Nothing is set."""


def usable_cores() -> int:
    """Return how many cores this process may use: those that `taskset` or a container's set of cores leaves it.

    A container's quota of processor time is no set of cores, and not seen.
    """
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
