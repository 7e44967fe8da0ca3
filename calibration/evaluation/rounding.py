"""How figures are written: the terminal and the report use these, so that both say the same."""

from __future__ import annotations

import math

from flawscope.calibration.evaluation.intervals import Interval, Rate

NOTHING = "–"
"""Stands where a figure is undefined."""


def percent(value: float | None) -> str:
    """Return a fraction as per cent with two significant digits below ten per cent."""
    if value is None:
        return NOTHING
    text = f"{100 * value:.1f}" if value >= 0.01 else f"{100 * value:.2g}"
    if value < 1 and text == "100.0":
        text = "99.9"  # 9,999 of 10,000 is not 100 %: one part was missed
    return text.removesuffix(".0") + "%"


def figure(value: float | None) -> str:
    """Return a figure from 0 to 1 with three decimals, never rounded up to a perfect one."""
    if value is None:
        return NOTHING
    return f"{min(value, 0.999) if value < 1 else value:.3f}"


def number(value: float | None) -> str:
    """Return a score or time with four significant digits."""
    return NOTHING if value is None else f"{value:.4g}"


def span(interval: Interval | None) -> str:
    """Return an interval as `0.812 to 0.901`, rounded outwards at the lower end; empty without one."""
    return "" if interval is None else f"{math.floor(interval.low * 1000) / 1000:.3f} to {figure(interval.high)}"


def share(rate: Rate) -> str:
    """Return a rate as `3 of 191`; a dash without images."""
    return NOTHING if rate.value is None else f"{rate.count} of {rate.n}"


def limits(rate: Rate) -> str:
    """Return the two-sided interval of a rate as `0.33% to 4.5%`; empty without images."""
    return "" if rate.value is None else f"{percent(rate.low)} to {percent(rate.high)}"
