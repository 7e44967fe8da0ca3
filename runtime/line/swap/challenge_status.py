"""How the last challenge of a view ended, as the state of a line tells it."""

from __future__ import annotations

import msgspec


class ChallengeStatus(msgspec.Struct, frozen=True):
    """The last challenge of the bundle in force of a view.

    Attributes:
        view: The view.
        state: `passed` or `failed`.
        when: What it was for, in words: `at the start`.
        detail: What was found; of a failure, which images were decided otherwise than they must.
        utc: When it ended.
    """

    view: str
    state: str
    when: str
    detail: str
    utc: str


def failed_cause(view: str) -> str:
    """Return the cause that keeps a station from judging parts whose view has failed a challenge."""
    return f"challenge {view}"
