"""By what a station begins: the bundle of its configuration, or the one that a swap put in its place.

| the configuration names | the station begins with |
|---|---|
| the bundle that it named when the active file was written | what the active file says: a swap survives restarts |
| another one | that of the configuration: whoever changed it meant it |
| either, and it cannot be used | the next one that can: active, previous, configuration; else it is not ready |
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import msgspec

from flawscope.bundle import InForce, open_bundle
from flawscope.errors import BundleError, FlawscopeError
from flawscope.runtime.line.clock import iso
from flawscope.runtime.line.line_config import StationOptions, ViewOptions
from flawscope.runtime.line.measures import check_calibrated
from flawscope.runtime.line.station.view import Measure
from flawscope.runtime.line.swap.active import Active, ActiveView, active_file, read_active, write_active
from flawscope.runtime.line.swap.services import SwapServices, thresholds_label, thresholds_words

_LAST_PARTS = 100
"""Parts in which the last generation is looked for: those that were open at a kill have none."""


@dataclass
class Beginning:
    """By what a station begins.

    Attributes:
        active: The same as its file says.
        measures: View -> measure.
        problems: View -> why it has no bundle that can be used.
    """

    active: Active
    measures: dict[str, Measure]
    problems: dict[str, str] = field(default_factory=dict)


def begin(services: SwapServices, station: StationOptions) -> Beginning:
    """Choose and load the bundles of a station, and write its active file where it says something else.

    Raises:
        FlawscopeError: If it has never run and the bundle of its configuration cannot be used; or the store or the
            active file cannot be written.
    """
    path = active_file(services.state, station.name)
    try:
        old = read_active(path)
    except FlawscopeError as err:
        _tell(services, station.name, "active_file_broken", str(err))
        old = None
    measures: dict[str, Measure] = {}
    problems: dict[str, str] = {}
    rows = []
    for view in station.views:
        row, measure, problem = _View(services, station.name, view, old).begin()
        measures[view.name] = measure
        if row is not None:
            rows.append(row)
        if problem:
            problems[view.name] = problem
    active = Active(station.name, 1, tuple(rows), changed=iso(services.clock.utc_ns()))
    if old is not None:
        active = _following(old, active)
    # Where the file was lost, or the last change could not be written, the numbers go on behind those on record: none
    # must name two sets.
    last = _last_generation(services, station.name)
    if old is None or last > old.generation:
        active = msgspec.structs.replace(active, generation=max(last + 1, active.generation))
    if active != old:
        write_active(path, active)
    return Beginning(active, measures, problems)


def _last_generation(services: SwapServices, station: str) -> int:
    """Return the largest number of a set that is on record; 0 for none."""
    parts = services.parts(0, _LAST_PARTS, station, newest_first=True)
    told = services.last_event("generation", f"station {station}").partition(":")[0]
    return max(int(told) if told.isascii() and told.isdecimal() else 0, *(part.generation for part in parts), 0)


def _following(old: Active, new: Active) -> Active:
    """Return the state after one that was there: under its number if it decides the same, else under the next."""
    changed = {_decides(row) for row in old.views} ^ {_decides(row) for row in new.views}
    if not changed:
        is_equal = old.views == new.views
        return old if is_equal else Active(old.station, old.generation, new.views, old.previous, new.changed)
    views = {view for view, _, _ in changed}
    previous = tuple(row for row in old.views if row.view in views)
    return Active(old.station, old.generation + 1, new.views, previous, new.changed)


def _decides(row: ActiveView) -> tuple[str, str, int]:
    return row.view, row.digest, row.threshold_revision


class _View:
    def __init__(self, services: SwapServices, station: str, view: ViewOptions, old: Active | None) -> None:
        self._services, self._station, self._view = services, station, view
        self._kept = None if old is None else old.of(view.name)
        self._before = None if old is None else old.before(view.name)
        self._label = f"station {station} view {view.name}"
        # Digest -> thresholds that were told in this start: the journal may not have it on the disk yet.
        self._said: dict[str, str] = {}

    def begin(self) -> tuple[ActiveView | None, Measure, str]:
        """Return what the active file says of the view, its measure, and why it has none that can be used."""
        kept, configured, problem = self._kept, "", ""
        try:
            configured = self._configured()
        except FlawscopeError as err:
            if kept is None:
                raise
            problem = str(err)
            self._tell("bundle_refused", problem, new="of the configuration")
        is_new = kept is None or (bool(configured) and configured != kept.configured)
        if kept is not None and is_new:
            self._tell(
                "bundle_configured", "the configuration names another bundle than before", kept.digest, configured
            )
        for digest in self._order(configured, is_new=is_new):
            try:
                name = self._name(digest, configured)
                measure = self._services.load(self._station, self._view, digest, name, may_be_away=True)
                self._check_revision(measure)
            except FlawscopeError as err:
                if kept is None:
                    raise
                problem = str(err)
                self._tell("bundle_refused", problem, new=digest)
                continue
            if kept is not None and not is_new and digest != kept.digest:
                self._tell("bundle_replaced", f"the one in force cannot be used: {problem}", kept.digest, digest)
            elif digest != configured:
                self._services.say(f"{self._label}: bundle {digest[:12]}… by a swap, not that of the configuration")
            # Kept where the configuration's cannot be read: whether it is another one is not known.
            named = configured or ("" if kept is None else kept.configured)
            self._tell_unsaid(measure)
            return ActiveView(self._view.name, digest, named, measure.revision), measure, ""
        return kept, self._services.measures.none(self._view.name, problem), problem

    def _configured(self) -> str:
        """Return the digest of the configuration's bundle, which is in the store then."""
        services, view = self._services, self._view
        with open_bundle(view.bundle, trusted_keys=services.trusted_keys) as bundle:
            check_calibrated(bundle.manifest, view, view.bundle)
            digest = services.store.keep(bundle)
            said, is_copied = services.overlays.take_over(self._station, view, bundle.manifest)
            if is_copied:
                in_force = services.overlays.in_force(self._station, view, view.bundle, bundle.manifest)
                self._tell_thresholds(digest, in_force, said)
            elif said:
                self._tell("threshold_refused", said, new=digest)
        return digest

    def _tell_unsaid(self, measure: Measure) -> None:
        """Record thresholds that are in force and that no event tells of: the line was killed when they were set."""
        if measure.revision and measure.in_force is not None:
            label = thresholds_label(self._station, self._view.name, measure.bundle)
            said = self._said.get(measure.bundle) or self._services.last_event("threshold", label)
            if said != thresholds_words(measure.in_force):
                # By the line: who asked for it, in which role, has no record. His name is in the file.
                reason = f"in force and not on record, found at the start: {measure.in_force.source}"
                self._tell_thresholds(measure.bundle, measure.in_force, reason)

    def _tell_thresholds(self, digest: str, in_force: InForce | None, reason: str) -> None:
        self._said[digest] = thresholds_words(in_force)
        label = thresholds_label(self._station, self._view.name, digest)
        self._services.journal.event("threshold", object=label, new=self._said[digest], reason=reason)
        self._services.say(f"{self._label}: {reason}")

    def _check_revision(self, measure: Measure) -> None:
        """Refuse the bundle's own thresholds where others were in force: they may have been the stricter ones.

        Raises:
            BundleError: If they are gone.
        """
        rows = (row for row in (self._kept, self._before) if row is not None and row.digest == measure.bundle)
        wanted = next((row.threshold_revision for row in rows), 0)
        if measure.revision < wanted:
            place = self._services.overlays.place(self._station, self._view.name, measure.bundle)
            raise BundleError(
                f"{place}: expected the thresholds of revision {wanted}, which were in force, got "
                f"{f'revision {measure.revision}' if measure.revision else 'none'}. Put a copy back and start again, "
                "or swap to the bundle, which decides by what there is."
            )

    def _order(self, configured: str, *, is_new: bool) -> Iterable[str]:
        kept = "" if self._kept is None else self._kept.digest
        before = "" if self._before is None else self._before.digest
        order = (configured, kept, before) if is_new else (kept, before, configured)
        return dict.fromkeys(digest for digest in order if digest)

    def _name(self, digest: str, configured: str) -> str:
        return self._view.bundle.name if digest == configured else f"bundle {digest[:12]}"

    def _tell(self, action: str, reason: str, old: str = "", new: str = "") -> None:
        _tell(self._services, self._station, action, reason, self._view.name, old, new)


def _tell(
    services: SwapServices, station: str, action: str, reason: str, view: str = "", old: str = "", new: str = ""
) -> None:
    label = f"station {station} view {view}" if view else f"station {station}"
    services.journal.event(action, object=label, old=old, new=new, reason=reason)
    services.say(f"{label}: {reason}")
