"""What is known of the releases of a view at one moment."""

from __future__ import annotations

import msgspec


class RolloutStatus(msgspec.Struct, frozen=True):
    """The releases of a view.

    Attributes:
        station: Its station.
        view: The view.
        tag: The tag that it follows.
        release: Digest of the release that the tag was last seen at; empty before the first.
        bundle: Digest of the bundle of that release; empty where it is not known.
        state: `none`, `waiting`, `pulling`, `swapping`, `done`, `refused`, `failed` or `rolled_back`.
        detail: The same in words.
        problem: Why the source could not be asked last, or the release not be had; empty where it could.
        age_s: Seconds since the source last answered, or since the start.
    """

    station: str
    view: str
    tag: str
    release: str
    bundle: str
    state: str
    detail: str
    problem: str
    age_s: float
