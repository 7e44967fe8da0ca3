"""What a line says of its self-test."""

from __future__ import annotations

import msgspec


class SelfTestStatus(msgspec.Struct, frozen=True):
    """The self-test of one bundle at one moment.

    Attributes:
        bundle: Digest of the bundle.
        age_s: Seconds since a golden image had its stored score; its load counts as the first time.
        problem: Why the last test failed; empty where it did not.
    """

    bundle: str
    age_s: float
    problem: str
