"""The scores of a bundle's calibration, as far as a view accepts them: what its normal parts should look like."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from flawscope.runtime.line.line_config import LineConfig
from flawscope.runtime.line.station.view import Measure, View


class HasMeasures(Protocol):
    """A station, as far as it is used here."""

    @property
    def views(self) -> Mapping[str, View]:
        """Name -> view."""


class CalibratedScores:
    """Called with station, view and digest of a bundle, returns the scores of its calibration.

    Args:
        config: Configuration of the line.
        stations: Name -> station, with the bundles in use.
    """

    def __init__(self, config: LineConfig, stations: Mapping[str, HasMeasures]) -> None:
        self._stations = stations
        # A product has scores of its own, and no bundle holds them.
        self._precisions = {
            (station.name, view.name): view.precision
            for station in config.stations
            for view in station.views
            if view.product is None
        }

    def __call__(self, station: str, view: str, bundle: str) -> tuple[float, ...]:
        """Return the scores that the view accepts now; none where the bundle is not in use, or does not hold them."""
        precision = self._precisions.get((station, view))
        if precision is None or station not in self._stations:
            return ()
        measure = self._stations[station].views[view].measure
        return _accepted(measure, precision) if measure.bundle == bundle else ()


def _accepted(measure: Measure, precision: str) -> tuple[float, ...]:
    """Return those up to the threshold: of its own images, too, a view compares the accepted ones alone."""
    thresholds = None if measure.manifest is None else measure.manifest.thresholds_of(precision)
    if thresholds is None:
        return ()
    most = thresholds.image.value if measure.threshold is None else measure.threshold
    return tuple(score for score in thresholds.normal_scores if score <= most)
