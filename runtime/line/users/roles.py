"""Roles: what a user may do is in one order, so that a route needs one word."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

Role = Literal["", "machine", "operator", "engineer", "admin"]
"""Who may ask: empty for everybody, `machine` for programs and all people; of the others each may what those before
it may."""

_ORDER: tuple[str, ...] = get_args(Role)


@dataclass(frozen=True)
class User:
    """Who asks.

    Attributes:
        name: In the journal, as actor; empty for somebody who has not logged in.
        role: What he may do.
    """

    name: str
    role: Role


LOCAL = User("local", "admin")
"""Whoever asks from this machine, while there are no users."""

NOBODY = User("", "")
"""Whoever has not logged in."""

RESERVED = ("line", LOCAL.name)
"""Names of no user: in the journal they are the line itself, and this machine."""


def may(user: User, needed: Role) -> bool:
    """Return whether a user may do what needs a role; a role that is not known may nothing.

    Raises:
        ValueError: If what is needed is no role.
    """
    least = _ORDER.index(needed)
    return least == 0 or (user.role in _ORDER and _ORDER.index(user.role) >= least)
