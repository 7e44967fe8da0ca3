"""Limits of the quality filter as text: `NAME=VALUE`, as `synth generate --limit` takes them."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from flawscope.errors import ArgumentError
from flawscope.near_names import did_you_mean
from flawscope.runtime.synthesis.quality import REASONS, QualityLimits

LIMITS: tuple[str, ...] = QualityLimits.__struct_fields__
"""Names of all limits."""

_OF_REASON = {"empty-mask": "mask_px", "full-mask": "full", "faint": "contrast, noise or texture"}
"""Reasons of a verdict whose limits have other names, which a user reads first."""


def read_limits(texts: Sequence[str]) -> QualityLimits:
    """Return the default limits with those that are named changed.

    Args:
        texts: `NAME=VALUE` of each limit, in any order.

    Raises:
        ArgumentError: If a text is no assignment, a name is no limit or comes twice, or a value is out of range.
    """
    changed: dict[str, float] = {}
    for text in texts:
        name, has_value, value = text.partition("=")
        name = name.strip()
        if not has_value:
            raise ArgumentError(f"limit: expected NAME=VALUE, for example seam=0.06, got {text!r}.")
        if name not in LIMITS:
            raise ArgumentError(f"limit: expected one of {', '.join(LIMITS)}, got {name!r}. {_hint(name)}")
        if name in changed:
            raise ArgumentError(f"limit: expected each name once, got {name} twice. Leave one out.")
        changed[name] = _number(name, value.strip())
    return msgspec.structs.replace(QualityLimits(), **changed)


def _hint(name: str) -> str:
    if name in _OF_REASON:
        return f"The reason {name} has the limit {_OF_REASON[name]}."
    if name in REASONS:  # every other reason is the name of its limit, but for one
        return f"The reason {name} has no limit: such an image is never kept."
    return did_you_mean(name, LIMITS).strip() or "docs/synthesis.md has what each of them measures."


def _number(name: str, value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        raise ArgumentError(f"{name}: expected a number, got {value!r}.") from None
    if name != "mask_px":
        return number
    if not number.is_integer():
        raise ArgumentError(f"{name}: expected a whole number of pixels, got {value}.")
    return int(number)
