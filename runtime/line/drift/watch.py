"""One view with one bundle: all of its quantities, each compared with its reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from flawscope.runtime.line.drift.quantity import Plan, Quantity
from flawscope.runtime.line.drift.seen import Seen
from flawscope.runtime.line.drift.state import QuantityDrift, ViewDrift
from flawscope.runtime.line.line_config import DriftOptions

_CALIBRATED = "score_calibrated"
_LEAST_CALIBRATED = 50
"""Scores of its calibration that a bundle must hold, for the same reason as `reference`."""

QUANTITIES = (
    "score",
    _CALIBRATED,
    "map_mean",
    "rejected",
    "brightness_p1",
    "brightness_p50",
    "brightness_p99",
    "saturated",
    "sharpness",
)
"""What is watched: `score` and `map_mean`, the mean of the anomaly map, of accepted images; all others, the share of
rejected ones among them, of all images that were scored. `score_calibrated` is the score, compared with those of the
bundle's calibration where it holds them."""

_TESTS = 2 * len(QUANTITIES)
_MOST_ALPHA = 0.05


def plan_of(options: DriftOptions, reference: int | None = None) -> Plan:
    """Return how a quantity is watched so that all looks together alarm by chance no more often than is allowed.

    Args:
        options: What the configuration says.
        reference: Values of the reference; None for as many as it says.
    """
    step = max(1, options.window // 4)
    # Bonferroni: whatever depends on what, the chances of all tests of a look add up to its own at most.
    alpha = options.false_alarms / 1000 * step / _TESTS
    return Plan(reference or options.reference, options.window, step, options.bins, min(alpha, _MOST_ALPHA))


class ViewWatch:
    """Watches one view.

    Args:
        options: What the configuration says.
        references: Quantity -> values of its reference, as `references` gives them.
        since: When the reference began, in UTC.
        calibrated: Scores of the calibration that the view accepts; fewer than 50 are not used.
    """

    def __init__(
        self,
        options: DriftOptions,
        references: Mapping[str, Sequence[float]] | None = None,
        since: str = "",
        calibrated: Sequence[float] = (),
    ) -> None:
        self._options, self._since, self._plan = options, since, plan_of(options)
        given = references or {}
        self._quantities = {
            name: Quantity(self._plan, given.get(name, ()), seed)
            for seed, name in enumerate(QUANTITIES)
            if name != _CALIBRATED
        }
        if len(calibrated) >= _LEAST_CALIBRATED:
            plan = plan_of(options, len(calibrated))
            self._quantities[_CALIBRATED] = Quantity(plan, calibrated, QUANTITIES.index(_CALIBRATED))
        self._looked: dict[str, QuantityDrift] = {}

    @property
    def references(self) -> dict[str, Sequence[float]]:
        """Quantity -> values of its reference so far."""
        return {name: quantity.reference for name, quantity in self._quantities.items() if name != _CALIBRATED}

    @property
    def since(self) -> str:
        """When the reference began."""
        return self._since

    @property
    def has_learned(self) -> bool:
        """Whether the reference of the scores is whole."""
        return self._quantities["score"].has_learned

    def add(self, image: Seen) -> list[QuantityDrift]:
        """Take an image; returns the quantities that have begun to drift with it, or drift no more."""
        changed = []
        for name, quantity in self._quantities.items():
            value = image.values.get("score" if name == _CALIBRATED else name)
            if value is None:
                continue
            was_drifting = quantity.is_drifting
            found = quantity.add(value, image.seq, image.source)
            if found is None:
                continue
            self._looked[name] = now = QuantityDrift(
                name,
                quantity.is_drifting,
                found.psi,
                found.psi_limit,
                found.rank,
                found.rank_limit,
                found.mean_before,
                found.mean_now,
                found.shift,
                found.shares,
                found.moved,
            )
            if quantity.is_drifting != was_drifting:
                changed.append(now)
        return changed

    def state(self, station: str, view: str, bundle: str) -> ViewDrift:
        """Return what is known, under the names of station, view and bundle."""
        looked = tuple(self._looked[name] for name in QUANTITIES if name in self._looked)
        is_drifting = any(one.is_drifting for one in looked)
        return ViewDrift(
            station,
            view,
            bundle,
            "drift" if is_drifting else "watching" if self.has_learned else "learning",
            len(self._quantities["score"].reference),
            self._plan.reference,
            self._plan.window,
            self._since,
            looked,
        )
