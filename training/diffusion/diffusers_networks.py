"""Helpers for diffusers networks: lazy import, and numbers of groups and heads for small widths."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from flawscope.errors import MissingExtra
from flawscope.training.loop.optimizers import quiet_bitsandbytes

MOST_GROUPS = 32
"""Groups of the group normalisation, as in Stable Diffusion."""


def import_diffusers() -> Any:
    """Return the module diffusers; it takes seconds to import, so it is imported only when needed.

    Raises:
        MissingExtra: If it is not installed.
    """
    quiet_bitsandbytes()
    try:
        import diffusers
    except ImportError as err:
        raise MissingExtra("diffusion", "diffusers", "train") from err
    return diffusers


def group_count(widths: Sequence[int]) -> int:
    """Return the largest number of groups, up to `MOST_GROUPS`, that divides the channels of every level."""
    return _divisor(widths, MOST_GROUPS)


def head_width(most: int, widths: Sequence[int]) -> int:
    """Return the channels of an attention head: the largest number, up to `most`, that divides every width."""
    return _divisor(widths, most)


def _divisor(widths: Sequence[int], most: int) -> int:
    common = math.gcd(*widths)
    return max(number for number in range(1, most + 1) if common % number == 0)
