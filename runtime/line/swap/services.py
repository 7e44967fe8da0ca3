"""What a swap works with: what all stations of a line share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from flawscope.bundle import InForce, Manifest
from flawscope.runtime.line.clock import Clock
from flawscope.runtime.line.journal.recorder import Recorder
from flawscope.runtime.line.line_config import SwapOptions, ViewOptions
from flawscope.runtime.line.measures import Measures
from flawscope.runtime.line.parts import PartRecord
from flawscope.runtime.line.station.view import Measure
from flawscope.runtime.line.swap.overlays import Overlays
from flawscope.runtime.line.swap.store import BundleStore


@dataclass(frozen=True)
class SwapServices:
    """What all stations of a line share.

    Attributes:
        state: State folder of the line.
        options: What the configuration says of swaps.
        trusted_keys: Public keys that bundles must be signed by; None for any bundle.
        store: The bundles.
        overlays: The thresholds that were changed on the line.
        measures: Loads bundles.
        journal: Where everything is recorded.
        clock: The clock.
        say: Told what happens, a sentence at a time.
        parts: Returns parts on record, as `Journal.parts`.
        last_event: Returns what the last event of an action on an object has as new, as `Journal.last_event`.
    """

    state: Path
    options: SwapOptions
    trusted_keys: Path | None
    store: BundleStore
    overlays: Overlays
    measures: Measures
    journal: Recorder
    clock: Clock
    say: Callable[[str], None]
    parts: Callable[..., list[PartRecord]]
    last_event: Callable[[str, str], str]

    def load(
        self, station: str, view: ViewOptions, digest: str, name: str = "", *, may_be_away: bool = False
    ) -> Measure:
        """Return the measure of a view by a bundle of the store, with the thresholds that the line has for it.

        With `may_be_away` a server that is away is no error: it is looked for, as for what was in force before.

        Raises:
            FlawscopeError: If the bundle cannot be used, or its thresholds.
        """
        path = self.store.path_of(digest)
        measure = self.measures.measure_of(view, path, name or f"bundle {digest[:12]}", may_be_away=may_be_away)
        return self.with_thresholds(station, view, measure)

    def with_thresholds(self, station: str, view: ViewOptions, measure: Measure) -> Measure:
        """Return a measure with the thresholds that the line has for its bundle and a view."""
        manifest = manifest_of(measure)
        in_force = self.overlays.in_force(station, view, self.store.path_of(measure.bundle), manifest)
        return measure if in_force is None else measure.deciding_by(in_force)


def thresholds_label(station: str, view: str, digest: str) -> str:
    """Return the object of events about the thresholds of a view for a bundle: each bundle has its own."""
    return f"station {station} view {view} bundle {digest}"


def thresholds_words(in_force: InForce | None, otherwise: float | None = None) -> str:
    """Return thresholds as their events name them; `otherwise` is the bundle's own on the score."""
    thresholds, revision = (None, 0) if in_force is None else (in_force.thresholds, in_force.revision)
    image = otherwise if thresholds is None else thresholds.image.value
    return f"{image:.6g} (revision {revision})" if image is not None else f"none (revision {revision})"


def manifest_of(measure: Measure) -> Manifest:
    """Return the manifest of the bundle of a measure, which has one."""
    assert measure.manifest is not None
    return measure.manifest
