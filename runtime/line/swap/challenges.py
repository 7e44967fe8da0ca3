"""Challenges of the bundles in force at the moments of the configuration, and what follows of how they end.

They have a thread of their own: a swap may wait for parts of a station, and the station for its challenge.
"""

from __future__ import annotations

import logging
import threading
import time
from functools import partial

from flawscope.errors import FlawscopeError
from flawscope.runtime.line.clock import iso
from flawscope.runtime.line.line_config import ViewOptions
from flawscope.runtime.line.sources.table import is_camera
from flawscope.runtime.line.station.view import Measure
from flawscope.runtime.line.swap.challenge import challenge_folder, parts_of, run_challenge
from flawscope.runtime.line.swap.challenge_status import ChallengeStatus, failed_cause
from flawscope.runtime.line.swap.run import GivenUp
from flawscope.runtime.line.swap.services import SwapServices
from flawscope.runtime.line.swap.station_bundles import StationBundles
from flawscope.runtime.line.swap.time_of_day import TimesOfDay

_AWAY_S = 60.0
"""Seconds without a camera after which there may be another lens, lamp or camera in its place."""
_QUIET_S = 0.25
"""Seconds without an image after which a line counts as idle, as for the self-test."""
_PATIENCE_S = 5.0
"""Longest time for which an image waits until the line is idle, and after that until no part is open."""
_HASTE_S = 0.05
"""The same where the station judges no parts meanwhile: only others, with the same bundle, are in its way."""
_LOOK_S = 0.005
_CLOSE_S = 5.0

_START = "at the start"
_FIRST = "the site's own parts come first"

_log = logging.getLogger(__name__)


class Challenges:
    """The challenges of all stations. Calls come from any thread.

    Args:
        services: What all stations share.
        timezone: Time zone of the line.
    """

    def __init__(self, services: SwapServices, timezone: str) -> None:
        self._services = services
        self._times = TimesOfDay(timezone, services.clock.utc_ns())
        self._stations: dict[str, StationBundles] = {}
        self._wake = threading.Condition()
        # Station -> for what it waits to be challenged, in words and in their order.
        self._waiting: dict[str, dict[str, None]] = {}
        self._begins: set[str] = set()
        # Station, view and bundle: what was found of one that is put back counts again.
        self._last: dict[tuple[str, str, str], ChallengeStatus] = {}
        self._is_closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="challenges", daemon=True)
        self._thread.start()

    def attach(self, bundles: StationBundles) -> None:
        """Take care of a station; before it starts."""
        options, state = bundles.options, self._services.state
        name, at = options.name, options.challenge.at
        self._stations[name] = bundles
        if "camera" in at:
            bundles.station.readiness.going = partial(self._going, bundles)
        # Most stations have no parts of their own: they are ready at once.
        if "start" in at and (options.challenge.folder is not None or challenge_folder(options, state).is_dir()):
            self._begins.add(name)
            self._ask(bundles, _START, holds=True)

    def turn(self) -> None:
        """Look whether a time of day has come, and whether servers are back; called once a second."""
        times = {moment for bundles in self._stations.values() for moment in bundles.options.challenge.at}
        come = self._times.come(times - {"start", "swap", "camera"}, self._services.clock.utc_ns())
        for bundles in self._stations.values():
            if found := [moment for moment in come if moment in bundles.options.challenge.at]:
                self._ask(bundles, f"at {found[0]}", holds=False)
        with self._wake:
            self._wake.notify()

    @property
    def has_begun(self) -> bool:
        """Whether the challenges of the start are over, however they ended."""
        return not self._begins

    def last(self, station: str) -> tuple[ChallengeStatus, ...]:
        """Return how the last challenges of a station ended, those of bundles in force."""
        measures = self._stations[station].station.measures
        found = (self._last.get((station, view, measure.bundle)) for view, measure in measures.items())
        return tuple(status for status in found if status is not None)

    def warnings(self, station: str) -> tuple[str, ...]:
        """Return what failed at a station that goes on all the same."""
        if self._stations[station].options.challenge.on_failure != "warn":
            return ()
        failed = (status for status in self.last(station) if status.state == "failed")
        return tuple(f"challenge of {one.view} {one.when} failed: {one.detail}" for one in failed)

    def close(self) -> None:
        """End; an image that is being scored is waited for, if it does not hang."""
        self._is_closed.set()
        with self._wake:
            self._wake.notify()
        if self._thread.is_alive():
            self._thread.join(_CLOSE_S)

    def ended(
        self,
        bundles: StationBundles,
        view: str,
        state: str,
        detail: str,
        when: str,
        actor: str = "line",
        role: str = "",
    ) -> None:
        """Take note of how a challenge of the bundle in force ended: on record, and for the state of the station.

        Args:
            bundles: The bundles of the station.
            view: Name of the view.
            state: `passed`, `failed`, `skipped` or `given_up`.
            detail: What was found, in words.
            when: What it was for, in words.
            actor: Who asked for it.
            role: His role.
        """
        digest = bundles.station.measures[view].bundle
        self._services.journal.event(
            f"challenge_{state}",
            actor=actor,
            role=role,
            object=f"station {bundles.options.name} view {view}",
            new=digest,
            reason=f"{when}: {detail}",
        )
        if state == "passed":
            self.note(bundles, view, digest, state, detail, when)
            bundles.station.readiness.lift(failed_cause(view))
        elif state == "failed":
            self.note(bundles, view, digest, state, detail, when)
            self._services.say(f"station {bundles.options.name} view {view}: challenge {when} failed: {detail}")
            if bundles.options.challenge.on_failure == "stop":
                bundles.station.readiness.forbid(failed_cause(view), f"{when}: {detail}", hold=True)

    def note(self, bundles: StationBundles, view: str, digest: str, state: str, detail: str, when: str) -> None:
        """Take note of what a challenge of a bundle found, which may be that of its swap."""
        utc = iso(self._services.clock.utc_ns())
        self._last[bundles.options.name, view, digest] = ChallengeStatus(view, state, when, detail, utc)

    def _going(self, bundles: StationBundles, cause: str, lasted_s: float) -> None:
        """Keep a station from being ready whose camera is back after a long time."""
        for view in bundles.options.views:
            if lasted_s > _AWAY_S and cause == f"source {view.name}" and is_camera(view.source):
                self._ask(bundles, f"after {view.name} was away", holds=True)

    def _ask(self, bundles: StationBundles, when: str, *, holds: bool) -> None:
        # No look at the disk: whoever calls may hold a lock of the station.
        if holds:
            bundles.station.readiness.begin(_pending(when), _FIRST)
        with self._wake:
            self._waiting.setdefault(bundles.options.name, {})[when] = None
            self._wake.notify()

    def _run(self) -> None:
        while not self._is_closed.is_set():
            with self._wake:
                self._wake.wait_for(lambda: self._next() or self._is_closed.is_set())
                name = self._next()
                if self._is_closed.is_set() or not name:
                    continue
                # What is asked for from now on is another challenge.
                moments = self._waiting.pop(name)
            bundles = self._stations[name]
            is_over = all(self._challenge(bundles, view, ", ".join(moments)) for view in bundles.options.views)
            if not is_over:
                with self._wake:
                    self._waiting[name] = moments | self._waiting.get(name, {})
                continue
            if self._is_closed.is_set():
                return
            with self._wake:
                over = moments.keys() - self._waiting.get(name, {}).keys()
            for when in over:
                bundles.station.readiness.allow(_pending(when))
            if _START in moments:
                self._begins.discard(name)

    def _next(self) -> str:
        """Return a station that waits for a challenge, and for no server besides; empty for none. Holds the lock."""
        for name in self._waiting:
            if not any(_is_away(measure) for measure in self._stations[name].station.measures.values()):
                return name
        return ""

    def _challenge(self, bundles: StationBundles, view: ViewOptions, when: str) -> bool:
        """Challenge the bundle of a view; where it is exchanged meanwhile, or decides otherwise, the one after it.

        Returns:
            Whether it is over: not where its server went away meanwhile, which says nothing of the bundle.
        """
        measures = bundles.station.measures
        while (measure := measures[view.name]).manifest is not None:
            state, detail = self._found(bundles, view, measure)
            if self._is_closed.is_set():
                return True
            if state == "failed" and _is_away(measure):
                return False
            measures = bundles.station.measures
            if measures[view.name] is measure:
                # Most stations have none, and a start is no news to them.
                if state != "skipped":
                    self.ended(bundles, view.name, state, detail, when)
                return True
        return True

    def _found(self, bundles: StationBundles, view: ViewOptions, measure: Measure) -> tuple[str, str]:
        try:
            parts = parts_of(bundles.options, view.name, self._services.state)
            if not parts:
                return "skipped", "no parts"
            judge = bundles.station.views[view.name].judged_by(measure)
            return "passed", run_challenge(parts, judge, partial(self._pause, bundles, measure))
        except FlawscopeError as err:
            return "failed", str(err)
        except Exception as err:  # a fault of ours is no challenge that was passed
            _log.exception("challenges")
            return "failed", f"unexpected {type(err).__name__}: {err}"

    def _pause(self, bundles: StationBundles, measure: Measure) -> None:
        """Let parts go first: an image that is being scored holds up those of parts that come meanwhile."""
        counters, scoring = bundles.station.counters, measure.scoring
        patience_s, quiet_s = (_PATIENCE_S, _QUIET_S) if bundles.station.readiness.is_ready else (_HASTE_S, 0.0)
        until = time.monotonic() + patience_s
        while scoring.idle_s() <= quiet_s or counters.now().open:
            if time.monotonic() > until + (0.0 if counters.now().open == 0 else patience_s):
                break
            if self._is_closed.wait(_LOOK_S):
                break
        if self._is_closed.is_set():
            raise GivenUp("the line is being stopped")


def _is_away(measure: Measure) -> bool:
    return measure.scoring.comes_back and bool(measure.scoring.problem)


def _pending(when: str) -> str:
    """Return the cause that keeps a station from judging parts before its challenge."""
    return f"challenge {when}"
