"""Hears of every image that was scored and says where a view drifts. It changes no verdict and no threshold.

Images come through a bounded queue into a thread of its own: no part waits for it. What does not fit is left out and
counted; a comparison of windows bears that.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from flawscope.errors import FlawscopeError
from flawscope.runtime.line.clock import Clock, iso
from flawscope.runtime.line.drift.calibrated import CalibratedScores, HasMeasures
from flawscope.runtime.line.drift.seen import Seen
from flawscope.runtime.line.drift.state import QuantityDrift, ViewDrift
from flawscope.runtime.line.drift.stored import UNREADABLE, Reference, path_of, read_reference, write_reference
from flawscope.runtime.line.drift.watch import ViewWatch
from flawscope.runtime.line.journal.recorder import Recorder
from flawscope.runtime.line.line_config import DriftOptions, LineConfig
from flawscope.text import encode_json

_MOST_WAITING = 4096
_STOP_S = 2.0

_log = logging.getLogger(__name__)

_View = tuple[str, str]
"""Station and view."""


@dataclass
class _Watched:
    """The watch of a view as long as one bundle and threshold are in force.

    Attributes:
        generation: Number of the set of bundles.
        bundle: Digest of the bundle.
        revision: Revision of the threshold.
        watch: The watch.
        is_stored: Whether its whole reference is on the disk.
    """

    generation: int
    bundle: str
    revision: int
    watch: ViewWatch
    is_stored: bool = False


class DriftMonitor:
    """Watches the views of a line, from `start` to `stop`.

    Args:
        options: Station and view -> what the configuration says; views that are not named are not watched.
        state: State folder of the line.
        journal: Where events are recorded.
        clock: The clock.
        calibrated: Returns the scores of the calibration of a bundle that a view accepts, as far as they are known;
            called with station, view and digest.
    """

    def __init__(
        self,
        options: Mapping[_View, DriftOptions],
        state: Path,
        journal: Recorder,
        clock: Clock,
        calibrated: Callable[[str, str, str], Sequence[float]] = lambda station, view, bundle: (),
    ) -> None:
        self._options, self._folder, self._journal, self._clock = dict(options), state, journal, clock
        self._calibrated = calibrated
        self._queue: queue.Queue[Seen | Callable[[], None] | None] = queue.Queue(_MOST_WAITING)
        self._watched: dict[_View, _Watched] = {}
        self._lock = threading.Lock()
        self._missed = 0
        # Replaced as a whole, one view at a time: whoever asks never waits for the thread.
        self._states = {view: ViewWatch(one).state(view[0], view[1], "") for view, one in self._options.items()}
        self._is_stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="drift", daemon=True)

    @staticmethod
    def of(
        config: LineConfig, journal: Recorder, clock: Clock, stations: Mapping[str, HasMeasures]
    ) -> DriftMonitor | None:
        """Return the monitor of a line; None where no view is watched. The stations may come later."""
        options = {
            (station.name, view.name): view.drift
            for station in config.stations
            for view in station.views
            if view.drift is not None
        }
        calibrated = CalibratedScores(config, stations)
        return DriftMonitor(options, config.line.state, journal, clock, calibrated) if options else None

    @property
    def missed(self) -> int:
        """Images that were left out because too many waited."""
        return self._missed

    def start(self) -> None:
        """Begin to listen."""
        self._thread.start()

    def seen(self, image: Seen) -> None:
        """Take note of an image. It returns at once, and raises nothing."""
        if (image.station, image.view) not in self._options:
            return
        try:
            self._queue.put_nowait(image)
        except queue.Full:
            with self._lock:
                self._missed += 1

    def relearn(self, station: str, view: str, actor: str, role: str = "") -> bool:
        """Begin a new reference of a view, as after a new lamp; returns whether there is such a view.

        Args:
            station: Name of the station.
            view: Name of the view.
            actor: Who says so.
            role: Role of that user.

        Raises:
            FlawscopeError: If too many images wait.
        """
        key = (station, view)
        if key not in self._options:
            return False
        try:
            self._queue.put(lambda: self._relearn(key, actor, role), timeout=_STOP_S)
        except queue.Full:
            raise FlawscopeError("drift: expected room in its queue, got none. Try again.") from None
        return True

    def state(self) -> tuple[ViewDrift, ...]:
        """Return what is known of all views."""
        return tuple(self._states[view] for view in self._options)

    def stop(self) -> None:
        """End within two seconds, after what waits; references that are not whole yet are stored. Twice is harmless."""
        if self._is_stopping.is_set() or self._thread.ident is None:
            return
        self._is_stopping.set()
        try:
            self._queue.put(None, timeout=_STOP_S)
        except queue.Full:
            return
        self._thread.join(_STOP_S)

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            try:
                if isinstance(item, Seen):
                    self._take(item)
                else:
                    item()
            except Exception:  # a mistake of ours must not end the watch of all views
                _log.exception("The drift of an image could not be judged; the next ones are.")
        for view, watched in self._watched.items():
            self._store(view, watched)

    def _take(self, image: Seen) -> None:
        view = (image.station, image.view)
        watched = self._watched.get(view)
        if watched is not None and image.generation < watched.generation:
            return  # it was open while the bundle was exchanged
        if watched is None or (watched.bundle, watched.revision) != (image.bundle, image.revision):
            watched = self._watched[view] = self._begin(view, image)
        watched.generation = image.generation
        changed = watched.watch.add(image)
        self._states[view] = watched.watch.state(*view, watched.bundle)
        if watched.watch.has_learned and not watched.is_stored:
            self._store(view, watched)
        for one in changed:
            self._tell(view, one)

    def _begin(self, view: _View, image: Seen) -> _Watched:
        """Return the watch of a bundle, with the reference that is stored of it."""
        options = self._options[view]
        try:
            stored = read_reference(path_of(self._folder, *view))
        except UNREADABLE as err:
            stored = None
            self._event("drift_relearned", view, reason=f"its reference could not be read: {err}")
        same = (image.bundle, image.revision, options.reference)
        if stored is None or (stored.bundle, stored.revision, stored.size) != same:
            watch = self._watch(view, image.bundle)
        else:
            watch = ViewWatch(options, stored.values, stored.since, self._calibrated(*view, image.bundle))
        return _Watched(image.generation, image.bundle, image.revision, watch, watch.has_learned)

    def _watch(self, view: _View, bundle: str) -> ViewWatch:
        """Return a watch that learns its reference from now on."""
        since, calibrated = iso(self._clock.utc_ns()), self._calibrated(*view, bundle)
        return ViewWatch(self._options[view], since=since, calibrated=calibrated)

    def _relearn(self, view: _View, actor: str, role: str) -> None:
        self._event("drift_relearned", view, actor=actor, role=role)
        if (watched := self._watched.get(view)) is not None:
            watched.watch = self._watch(view, watched.bundle)
            self._states[view] = watched.watch.state(*view, watched.bundle)
            # At once: after a kill the old one must not come back.
            self._store(view, watched)
            watched.is_stored = False
        else:
            path_of(self._folder, *view).unlink(missing_ok=True)

    def _store(self, view: _View, watched: _Watched) -> None:
        """Write a reference; where the disk refuses it, the line goes on, and learns it anew at its next start."""
        watch = watched.watch
        reference = Reference(
            watched.bundle, watched.revision, self._options[view].reference, watch.since, watch.references
        )
        watched.is_stored = True
        if problem := write_reference(path_of(self._folder, *view), reference):
            _log.warning("The reference of station %s, view %s was not stored: %s", *view, problem)

    def _tell(self, view: _View, one: QuantityDrift) -> None:
        words = one.words(self._options[view].window)
        self._event("drift" if one.is_drifting else "drift_over", view, new=encode_json(one).decode(), reason=words)

    def _event(
        self, action: str, view: _View, *, actor: str = "line", role: str = "", new: str = "", reason: str = ""
    ) -> None:
        station, name = view
        self._journal.event(
            action, actor=actor, role=role, object=f"station {station}", old=f"view {name}", new=new, reason=reason
        )
