"""Sessions: who has logged in, known to the server alone. They end with it."""

from __future__ import annotations

import hashlib
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

MOST_OF_A_USER = 20
"""Sessions of one user; one more ends the one that has asked nothing for longest."""

MOST = 500
"""Sessions of all users."""


@dataclass
class Session:
    """A browser in which somebody has logged in.

    Attributes:
        name: His name.
        stamp: Of the account when he logged in; another one ends the session.
        csrf: What a request that changes something has to bring, beside the cookie.
        began: When he logged in, in seconds of the clock.
        seen: When he asked last.
    """

    name: str
    stamp: str
    csrf: str
    began: float
    seen: float


class Sessions:
    """The sessions of a line. Calls may come from any thread.

    Args:
        idle_s: Seconds without a request after which one ends.
        longest_s: Seconds after which each ends.
        now: Seconds of a clock that does not jump.
    """

    def __init__(self, idle_s: float, longest_s: float, now: Callable[[], float] = time.monotonic) -> None:
        self._idle_s, self._longest_s, self._now = idle_s, longest_s, now
        self._lock = threading.Lock()
        self._by_hash: dict[str, Session] = {}

    def __len__(self) -> int:
        """Return how many there are; some may be over."""
        return len(self._by_hash)

    def begin(self, name: str, stamp: str) -> tuple[str, Session]:
        """Begin a session; returns the value of its cookie, which is kept nowhere, and the session."""
        value = secrets.token_urlsafe(32)
        now = self._now()
        session = Session(name, stamp, secrets.token_urlsafe(32), now, now)
        with self._lock:
            self._sweep(now)
            own = [key for key, one in self._by_hash.items() if one.name == name]
            if len(own) >= MOST_OF_A_USER:
                del self._by_hash[self._oldest(own)]
            elif len(self._by_hash) >= MOST:
                del self._by_hash[self._oldest(list(self._by_hash))]
            self._by_hash[_hash(value)] = session
        return value, session

    def find(self, value: str, *, touch: bool = True) -> Session | None:
        """Return the session of a cookie; None where there is none, or it is over.

        Args:
            value: Value of the cookie.
            touch: Whether it counts as a request.
        """
        key, now = _hash(value), self._now()
        with self._lock:
            session = self._by_hash.get(key)
            if session is None:
                return None
            if self._is_over(session, now):
                del self._by_hash[key]
                return None
            if touch:
                session.seen = now
            return session

    def end(self, value: str) -> None:
        """End the session of a cookie."""
        with self._lock:
            self._by_hash.pop(_hash(value), None)

    def _oldest(self, keys: list[str]) -> str:
        return min(keys, key=lambda key: self._by_hash[key].seen)

    def _sweep(self, now: float) -> None:
        for key in [key for key, session in self._by_hash.items() if self._is_over(session, now)]:
            del self._by_hash[key]

    def _is_over(self, session: Session, now: float) -> bool:
        return now - session.seen > self._idle_s or now - session.began > self._longest_s


def _hash(value: str) -> str:
    # Looked up by its hash: how long that takes says nothing of the value.
    return hashlib.sha256(value.encode("utf-8", "surrogatepass")).hexdigest()
