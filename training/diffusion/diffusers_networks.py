"""Helpers for diffusers networks: lazy import, and group and head counts for small widths."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Any

from flawscope.errors import MissingExtra

MOST_GROUPS = 32
"""Groups in which channels are normalised, as in Stable Diffusion."""


def import_diffusers() -> Any:
    """Return the module diffusers, which takes seconds to import: only where it is needed.

    Raises:
        MissingExtra: If it is not installed.
    """
    quiet_bitsandbytes()
    try:
        import diffusers
    except ImportError as err:
        raise MissingExtra("diffusion", "diffusers", "train") from err
    return diffusers


def quiet_bitsandbytes() -> None:
    """Let the import of bitsandbytes say nothing: it warns of kernels for 4-bit weights, which nothing here uses.

    Where it is installed, diffusers imports it as well.
    """
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)


def group_count(widths: Sequence[int]) -> int:
    """Return the largest number of groups up to 32 into which the channels of every level can be divided."""
    return _divisor(widths, MOST_GROUPS)


def head_width(wanted: int, widths: Sequence[int]) -> int:
    """Return the channels of an attention head: the most up to `wanted` that every width can be divided into."""
    return _divisor(widths, wanted)


def _divisor(widths: Sequence[int], most: int) -> int:
    common = math.gcd(*widths)
    return max(number for number in range(1, most + 1) if common % number == 0)
