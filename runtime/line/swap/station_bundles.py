"""The bundles of one station: the flip to others, the way back, and what is watched meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from flawscope.errors import ArgumentError, FlawscopeError
from flawscope.runtime.line.clock import iso
from flawscope.runtime.line.line_config import StationOptions, ViewOptions
from flawscope.runtime.line.parts import ViewRecord
from flawscope.runtime.line.sources.source import Frame
from flawscope.runtime.line.station.part_in_work import PartInWork
from flawscope.runtime.line.station.station import Station
from flawscope.runtime.line.station.view import Measure
from flawscope.runtime.line.swap.active import Active, ActiveView, active_file, write_active
from flawscope.runtime.line.swap.challenge_status import failed_cause
from flawscope.runtime.line.swap.run import CHALLENGE, SwapRun
from flawscope.runtime.line.swap.services import SwapServices, thresholds_label, thresholds_words
from flawscope.runtime.line.swap.shadow import Shadow
from flawscope.runtime.shared_scoring import SharedScoring

_GRACE_NS = 10**9
"""Longer than a deadline a bundle stays in memory after its last part was opened."""
_STUCK_S = 5.0
"""Seconds at one image after which a bundle that was just put in is taken back."""


@dataclass(frozen=True)
class Kept:
    """What was in force before a swap, ready to be put back.

    Attributes:
        measures: View -> measure, of the views that were changed.
        generation: Number of the first set after it.
        parts: Parts of the station at the swap.
        against: View -> why no part was judged by it, where its challenge had failed and nobody had acknowledged that.
    """

    measures: Mapping[str, Measure]
    generation: int
    parts: int
    against: Mapping[str, str]


class StationBundles:
    """The bundles of a station. Calls come from any thread.

    Args:
        services: What all stations share.
        options: Its configuration.
        station: The station.
        active: What its active file says.

    Attributes:
        options: Its configuration.
        active: What its active file says.
        kept: What was in force before the last swap, while it is in memory; else None.
        last_run: The last swap, whether it runs or is over; None before the first.
        shadow: Compares two bundles while a swap does so; else None.
    """

    def __init__(self, services: SwapServices, options: StationOptions, station: Station, active: Active) -> None:
        self._services, self.options, self.station, self.active = services, options, station, active
        self.kept: Kept | None = None
        self.last_run: SwapRun | None = None
        self.shadow: Shadow | None = None
        self._lock = threading.RLock()
        self._faults = self._outage = 0
        self._is_unwritten = False
        self._retired: list[tuple[SharedScoring, int]] = []
        station.observer = self

    @property
    def is_running(self) -> bool:
        """Whether a swap is on its way."""
        return self.last_run is not None and not self.last_run.has_ended.is_set()

    def view(self, name: str | None) -> ViewOptions:
        """Return the options of a view; with None of the only one.

        Raises:
            ArgumentError: If there is none of that name, or several and none is named.
        """
        views = self.options.views
        if name is None and len(views) == 1:
            return views[0]
        found = next((view for view in views if view.name == name), None)
        if found is None:
            names = ", ".join(view.name for view in views)
            raise ArgumentError(f"view: expected one of {names}, got {name or 'none'}. Name one of them.")
        return found

    def flip(self, run: SwapRun, measure: Measure) -> int:
        """Put a new bundle in force, and keep the old one ready; returns the number of the new set.

        Raises:
            GivenUp: If the swap was given up.
            StorageError: If the active file cannot be written: then the old one stays.
        """
        with self._lock:
            run.check()
            old, readiness = self.station.measures[run.view], self.station.readiness
            failed = failed_cause(run.view)
            against = readiness.against(failed)
            # Thresholds may have been changed meanwhile, and the file is what a restart reads.
            measure = self._services.with_thresholds(self.options.name, self.view(run.view), measure)
            # Before the flip: if it cannot be written nothing has changed, and no part has a number that a restart
            # would give again.
            active = self._next({run.view: measure}, keeps=True)
            write_active(self._file, active)
            self.active, self._is_unwritten = active, False
            reason = (
                f"bundle {run.digest[:12]}… after {', '.join(step.name for step in run.steps if step.state == 'ok')}"
            )
            self._put({run.view: measure}, "swap", run.actor, run.role, old.bundle or run.old, run.digest, reason)
            run.has_flipped = True
            self._retire(self.kept)
            # A place without a bundle is nothing to go back to.
            kept = Kept({run.view: old}, active.generation, self._parts(), {run.view: against} if against else {})
            self.kept = kept if old.bundle else None
            self._faults = self._outage = 0
            readiness.allow(f"bundle {run.view}")
            if run.step_of(CHALLENGE).state == "ok":
                # Here, and not when the swap is over: it may have been taken back by then.
                readiness.lift(failed)
            return active.generation

    def roll_back(self, actor: str, role: str, reason: str) -> str:
        """Put back what was in force before the last swap, and give up the swap that runs; returns what was done.

        Neither waits for the other: a bundle that hangs while it is loaded must not keep one in force that is wrong.

        Raises:
            ArgumentError: If there is nothing to put back or to give up.
        """
        with self._lock:
            run, given_up = self.last_run, ""
            # One whose flip this has waited for is done, although its thread has not said so yet.
            if run is not None and self.is_running and not run.has_flipped:
                if not run.is_given_up.is_set():
                    what = f"swap to {run.digest[:12]}…" if run.is_swap else "challenge"
                    given_up = f"the {what} was given up in step {run.current_step}"
                run.give_up()
            if given_up and self.kept is None:
                return given_up
            self._put_back(actor, role, f"{reason}; {given_up}" if given_up else reason)
            return f"rolled back; {given_up}" if given_up else "rolled back"

    def end(self, run: SwapRun, failure: str = "") -> None:
        """Note that a swap or a challenge is over, and why it failed; one that was taken back meanwhile stays so."""
        with self._lock:
            if run.state == "running":
                run.state, run.reason = ("failed", failure) if failure else ("done", run.reason)
            run.has_ended.set()

    def drop(self, run: SwapRun, nothing: Measure) -> None:
        """Let go of the bundle that a swap replaces; for a station that is not ready and has no open part.

        A start begins with it all the same: the active file is not changed.

        Args:
            run: The swap.
            nothing: What stands in its place.
        """
        with self._lock:
            run.check()
            # Nor is there room for what was kept; and no open part needs either.
            self.kept, self._retired = None, []
            self.active = msgspec.structs.replace(self.active, generation=self.active.generation + 1)
            reason = "to make room for another one"
            self._put({run.view: nothing}, "bundle_dropped", run.actor, run.role, run.old, "", reason)

    def put_again(self, view: str, measure: Measure, reason: str) -> None:
        """Put a bundle in force again that was dropped."""
        with self._lock:
            active = msgspec.structs.replace(self._next({view: measure}, keeps=False), previous=self.active.previous)
            reason += self._written(active)
            self._put({view: measure}, "bundle_loaded_again", "line", "", "", measure.bundle, reason)

    def write_again(self) -> None:
        """Write the active file where it could not be written: a restart must not put back what was taken away."""
        with self._lock:
            if self._is_unwritten:
                self._written(self.active)

    def _put_back(self, actor: str, role: str, reason: str) -> None:
        with self._lock:
            run = self.last_run
            if (kept := self.kept) is None:
                raise ArgumentError(
                    f"station {self.options.name}: expected a swap not longer than "
                    f"{self._services.options.rollback.window_parts} parts ago, got none whose bundle before is still "
                    "in memory. Swap to that bundle."
                )
            measures = {name: self._refreshed(name, measure) for name, measure in kept.measures.items()}
            given_up = {name: self.station.measures[name] for name in measures}
            active = self._next(measures, keeps=False)
            reason += self._written(active)
            self.kept = None
            for name, why in kept.against.items():
                self.station.readiness.forbid(failed_cause(name), why, hold=True)
            old = ", ".join(measure.bundle for measure in given_up.values())
            new = ", ".join(measure.bundle for measure in measures.values())
            self._put(measures, "rollback", actor, role, old, new, reason)
            self._retire(Kept(given_up, 0, 0, {}))
            if run is not None and run.has_flipped:
                run.state, run.reason = "rolled_back", reason

    def set_threshold(self, view: str | None, image: float, reason: str, actor: str, role: str) -> Measure:
        """Decide by another threshold from the next part on, within the limits of the bundle; returns the new measure.

        Raises:
            ArgumentError: If it is outside of the limits, the bundle has none, or the reason is empty.
            StorageError: If its overlay cannot be written: then the old one stays.
        """
        options = self.view(view)
        with self._lock:
            old = self.station.measures[options.name]
            if old.manifest is None:
                raise ArgumentError(f"view {options.name}: expected a view with a bundle, got none. Swap one in first.")
            path = self._services.store.path_of(old.bundle)
            self._services.overlays.set(self.options.name, options, path, old.manifest, image, actor, reason)
            new = self._services.with_thresholds(self.options.name, options, old)
            active = msgspec.structs.replace(
                self._next({options.name: new}, keeps=False), previous=self.active.previous
            )
            reason += self._written(active)
            label = thresholds_label(self.options.name, options.name, old.bundle)
            said = [thresholds_words(measure.in_force, measure.threshold) for measure in (old, new)]
            self._put({options.name: new}, "threshold", actor, role, said[0], said[1], reason, label)
            return new

    def turn(self) -> None:
        """Look whether what was kept is needed any longer; called once a second."""
        with self._lock:
            kept = self.kept
            if kept is None:
                return
            # A server that is away is so for the bundle before, too: that is no failure of the new one.
            new = [scoring for name in kept.measures if not (scoring := self.station.measures[name].scoring).comes_back]
            stuck_s = max((scoring.stuck_s() for scoring in new), default=0.0)
            problem = next((scoring.problem for scoring in new if scoring.problem), "")
            if self._faults >= self._services.options.rollback.device_faults:
                problem = problem or f"{self._faults} parts in a row could not be scored"
            if stuck_s > _STUCK_S:
                problem = f"the new bundle has been at one image for {stuck_s:.0f} s"
            if problem:
                self._take_back(problem)
            elif self._parts() - kept.parts >= self._services.options.rollback.window_parts:
                self._retire(kept)
                self.kept = None

    def used(self) -> Iterator[SharedScoring]:
        """Yield what must stay in memory: what is in force, what was kept, and what open parts may still need."""
        with self._lock:
            now = self._services.clock.mono_ns()
            self._retired = [(scoring, until) for scoring, until in self._retired if until > now]
            measures = [*self.station.measures.values(), *(self.kept.measures.values() if self.kept else ())]
            yield from [measure.scoring for measure in measures]
            yield from [scoring for scoring, _ in self._retired]

    def begins(self, part: PartInWork, frames: Mapping[str, Frame]) -> None:
        """Take note of a part that is scored now; see `WatchesParts`."""
        if (shadow := self.shadow) is not None:
            shadow.begins(part.seq, frames)

    def decided(self, part: PartInWork, views: tuple[ViewRecord, ...]) -> None:
        """Take note of what was found in a part; see `WatchesParts`."""
        if (shadow := self.shadow) is not None:
            shadow.decided(part.seq, views)
        kept = self.kept
        if kept is None or part.generation < kept.generation:
            return
        failed = next((view for view in views if view.view in kept.measures and view.reason == "inference"), None)
        if failed is None:
            self._faults = 0
            return
        scoring = part.measures[failed.view].scoring
        if scoring.comes_back and scoring.problem:
            # An outage counts once, whatever it costs: the server is away for the bundle before, too. A bundle that
            # makes it fail each time does so again when it is back.
            if scoring.device_failures == self._outage:
                return
            self._outage = scoring.device_failures
        self._faults += 1
        if self._faults == self._services.options.rollback.device_faults:
            reason = f"{self._faults} parts in a row could not be scored: {failed.detail}"
            # In a thread: it writes a file, and whoever calls this scores the next images.
            threading.Thread(target=self._take_back, args=(reason, kept), name="rollback", daemon=True).start()

    def _take_back(self, reason: str, kept: Kept | None = None) -> None:
        with self._lock:
            # Somebody may have been quicker, or another swap have come.
            if self.kept is None or (kept is not None and self.kept is not kept):
                return
            if self.is_running and self.last_run is not None:
                # Its bundle was compared with one that fails.
                self.last_run.give_up()
            self._put_back("line", "", reason)
        self._services.say(f"station {self.options.name}: the swap was taken back: {reason}")

    def _refreshed(self, view: str, measure: Measure) -> Measure:
        try:
            return self._services.with_thresholds(self.options.name, self.view(view), measure)
        except FlawscopeError:
            return measure  # as it was in force before

    def _next(self, measures: Mapping[str, Measure], *, keeps: bool) -> Active:
        """Return the state with other measures; `keeps` notes what they were before."""
        old = self.active
        changed = tuple(row for row in old.views if row.view in measures)
        return Active(
            old.station,
            old.generation + 1,
            tuple(_with(row, measures.get(row.view)) for row in old.views),
            changed if keeps else (),
            iso(self._services.clock.utc_ns()),
        )

    def _written(self, active: Active) -> str:
        """Write the active file, and return what there is to say of it.

        For what must happen even if it cannot be written: a bundle that failed has to go, and of thresholds the overlay
        is what a start reads. It is then written as soon as it can be.
        """
        self.active = active
        try:
            write_active(self._file, active)
        except FlawscopeError as err:
            self._is_unwritten = True
            return f"; {err}"
        self._is_unwritten = False
        return ""

    def _put(
        self,
        measures: Mapping[str, Measure],
        action: str,
        actor: str,
        role: str,
        old: str,
        new: str,
        reason: str,
        label: str = "",
    ) -> None:
        """Replace measures, with the events of it before the first part that is decided by them."""
        journal, station = self._services.journal, f"station {self.options.name}"

        def told(generation: int) -> None:
            tell_generation(journal.event, station, generation, measures)
            journal.event(action, actor=actor, role=role, object=label or station, old=old, new=new, reason=reason)

        self.station.replace(measures, told)

    def _retire(self, kept: Kept | None) -> None:
        """Let go of measures when no open part can need them any more."""
        until = self._services.clock.mono_ns() + round(self.options.deadline_ms * 1e6) + _GRACE_NS
        if kept is not None:
            self._retired += [(measure.scoring, until) for measure in kept.measures.values()]

    def _parts(self) -> int:
        return self.station.counters.now().parts

    @property
    def _file(self) -> Path:
        return active_file(self._services.state, self.options.name)


def tell_generation(event: Callable[..., None], station: str, generation: int, measures: Mapping[str, Measure]) -> None:
    """Record what a set of bundles and thresholds holds, a view at a time; a view without a bundle decides nothing."""
    for view, measure in measures.items():
        if not measure.bundle:
            continue
        revision = f", thresholds revision {measure.revision}" if measure.revision else ""
        event("generation", object=station, new=f"{generation}: {view} by bundle {measure.bundle}{revision}")


def _with(row: ActiveView, measure: Measure | None) -> ActiveView:
    if measure is None:
        return row
    return msgspec.structs.replace(row, digest=measure.bundle, threshold_revision=measure.revision)
