"""A line, from its start to its end: journal, bundles, stations, sinks, and the account that is checked each second."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import msgspec

from flawscope import __version__
from flawscope.files import storage_errors
from flawscope.runtime.line.clock import Clock, SystemClock, boot_id, iso
from flawscope.runtime.line.config_file import ReadConfig
from flawscope.runtime.line.drift.monitor import DriftMonitor
from flawscope.runtime.line.drift.state import warnings_of
from flawscope.runtime.line.gallery.gallery import Gallery
from flawscope.runtime.line.garbage import only_new_garbage
from flawscope.runtime.line.http.server import LineServer
from flawscope.runtime.line.journal.journal import Journal
from flawscope.runtime.line.journal.keeping import Bounds, RowKeeper
from flawscope.runtime.line.line_config import StationOptions, ViewOptions
from flawscope.runtime.line.measures import Measures
from flawscope.runtime.line.outputs.opening import open_output
from flawscope.runtime.line.recovery import record_open_parts
from flawscope.runtime.line.rollout.rollouts import Rollouts
from flawscope.runtime.line.scene.limits import SceneCheck
from flawscope.runtime.line.selftest import SelfTest
from flawscope.runtime.line.sinks.runner import SinkRunner, sink_names, sink_runners
from flawscope.runtime.line.sources.opening import open_source
from flawscope.runtime.line.sources.table import is_camera
from flawscope.runtime.line.station.deadlines import Deadlines
from flawscope.runtime.line.station.open_parts import OpenParts
from flawscope.runtime.line.station.station import Station
from flawscope.runtime.line.station.surroundings import LineServices, StationLimits
from flawscope.runtime.line.station.view import Measure, View
from flawscope.runtime.line.station.watch import look_at_scorings
from flawscope.runtime.line.status import STATUS, LineStatus, SinkStatus, StationStatus, StatusFile
from flawscope.runtime.line.swap.beginning import begin
from flawscope.runtime.line.swap.overlays import Overlays
from flawscope.runtime.line.swap.services import SwapServices
from flawscope.runtime.line.swap.station_bundles import tell_generation
from flawscope.runtime.line.swap.store import BundleStore
from flawscope.runtime.line.swap.swaps import Swaps
from flawscope.runtime.line.users.line_users import LineUsers

_JUMP_NS = 10**9
"""Difference between the clocks that counts as a jump of the wall clock."""
_FLUSH_S = 10.0
"""Longest wait of the end for the last records."""
_MOST_DOUBTS = 3
"""Times in a row that numbers and parts may differ: between two reads of them a part may come."""


class Line:
    """A line. `start` it, call `turn` once a second, `stop` it.

    Args:
        read: Its configuration.
        say: Told what happens, a sentence at a time: at the start, and when a station changes its state.
        clock: Its clock.

    Attributes:
        stations: Name -> station, after `start`.
        journal: The journal, after `start`.
        gallery: What is kept of images, after `start`.
        drift: Watches for drift, after `start`; None where no view is watched.
        users: Who may ask over HTTP, after `start`; None without a server.
        swaps: Bundles and thresholds while it runs; None before `start`.
        is_written: Whether all that was recorded is on the disk, after `stop`.
        lost: Why only a new process can go on, in words: a device that did not come back; else empty.
    """

    def __init__(self, read: ReadConfig, say: Callable[[str], None], clock: Clock | None = None) -> None:
        self._read, self._config, self._tell = read, read.config, say
        self._clock: Clock = SystemClock() if clock is None else clock
        self._stack = ExitStack()
        self.stations: dict[str, Station] = {}
        self._sinks: list[SinkRunner] = []
        self._server: LineServer | None = None
        self.users: LineUsers | None = None
        self._journal: Journal | None = None
        self.gallery: Gallery | None = None
        self.swaps: Swaps | None = None
        self._numbers: OpenParts | None = None
        self._first = 0
        self._drift_ns = self._clock.utc_ns() - self._clock.mono_ns()
        self._boot = boot_id()
        self._is_wrong = False
        self._doubts = 0
        self._told: dict[str, str] = {}
        self._failures: dict[str, int] = {}
        self._status_file = StatusFile(self._config.line.state / STATUS)
        self._is_stopped = False
        self.drift: DriftMonitor | None = None
        self._selftest: SelfTest | None = None
        self._rows: RowKeeper | None = None
        self._rollouts: Rollouts | None = None
        self.is_written = True
        self.lost = ""
        self._before: dict[tuple[str, str], int] = {}

    @property
    def journal(self) -> Journal:
        """The journal."""
        assert self._journal is not None
        return self._journal

    @property
    def page(self) -> str:
        """Address of its HTTP interface, `https://HOST:PORT` with TLS; empty without one."""
        return "" if self._server is None else self._server.url

    def start(self) -> None:
        """Start: the journal first, then what was left open, then bundles, stations, and sinks.

        Raises:
            FlawscopeError: If anything cannot be opened; what was opened before is closed.
        """
        try:
            self._start()
        except BaseException:
            self.stop()
            raise

    def _open_record(self) -> tuple[Journal, OpenParts]:
        """Open users, journal and numbers, and record the parts that were left open."""
        config, stack = self._config, self._stack
        state = config.line.state
        if config.http is not None:
            # First: a line that everybody could stop is not started.
            self.users = LineUsers.open(state, config.http)
            stack.callback(self.users.stop)
        with storage_errors(state):
            state.mkdir(parents=True, exist_ok=True)
        journal = self._journal = Journal.open(state, config.line.name, self._clock)
        stack.callback(journal.close)
        numbers = self._numbers = OpenParts(state / "open_parts.bin", journal.last_seq)
        stack.callback(numbers.close)
        # Before the numbers: what it still writes at its end is noted there.
        stack.callback(journal.close)
        journal.event(
            "started", object=f"line {config.line.name}", new=self._read.sha256, reason=f"flawscope {__version__}"
        )
        if faults := record_open_parts(journal, numbers, self._clock):
            self._say(f"{faults} parts were open when the line ended last; they are on record as faults")
        self._first, self._before = numbers.last, journal.counts()
        return journal, numbers

    def _start(self) -> None:
        config, stack = self._config, self._stack
        state = config.line.state
        journal, numbers = self._open_record()
        stack.callback(self._status_file.close)
        measures = Measures(config.trusted_keys, self._say)
        stack.callback(measures.close)
        self.gallery = Gallery(
            state,
            [station.name for station in config.stations],
            config.images,
            journal,
            self._clock,
            has_readers=config.http is not None,
        )
        stack.callback(self.gallery.stop)
        self.gallery.start()
        swapping = SwapServices(
            state,
            config.swap,
            config.trusted_keys,
            BundleStore(state / "bundles", config.trusted_keys),
            Overlays(state / "thresholds"),
            measures,
            journal,
            self._clock,
            self._say,
            journal.parts,
            journal.last_event,
        )
        swaps = self.swaps = Swaps(swapping, config.line.timezone)
        stack.callback(swaps.close)
        deadlines = Deadlines(self._clock)
        stack.callback(deadlines.close)
        self.drift = DriftMonitor.of(config, journal, self._clock, self.stations)
        if self.drift is not None:
            self.drift.start()
            stack.callback(self.drift.stop)
        services = LineServices(journal, numbers, deadlines, self._clock, self.gallery, self.drift)
        server: LineServer | None = None
        if config.http is not None:
            server = self._server = LineServer(config, self)
            stack.callback(server.stop)
            assert self.users is not None
            self.users.start(journal)
            # Again: before the journal is closed.
            stack.callback(self.users.stop)
        built = [self._station(options, swapping, services, server) for options in config.stations]
        for station in built:
            # Before it starts: what was opened when another output cannot be is closed again.
            stack.callback(station.stop)
            if journal.problem:
                station.readiness.forbid("journal", journal.problem, hold=True)
            self._heed_disk(station)
            station.start()
            self.stations[station.name] = station
        selftest = self._selftest = SelfTest(self.stations, journal, config.selftest_s)
        selftest.start()
        # Before the bundles are released: a test of one that was closed would fail.
        stack.callback(selftest.stop)
        if server is not None:
            server.start()
            self._say(self.page)
        for runner in sink_runners(config.sinks, config.line.name, journal):
            runner.start()
            self._sinks.append(runner)
            stack.callback(runner.stop)
        self._keep_rows(journal, numbers)
        rollouts = self._rollouts = Rollouts(config, swapping, swaps)
        stack.callback(rollouts.stop)
        rollouts.start()

    def _keep_rows(self, journal: Journal, numbers: OpenParts) -> None:
        """Begin to seal and drop old rows, where the configuration says so."""
        config = self._config
        if config.line.journal_days is None:
            return
        assert self.gallery is not None
        names = zip(sink_names(config.sinks), config.sinks, strict=True)
        required = [name for name, sink in names if sink.required]
        bounds = Bounds(required, lambda: numbers.oldest, self.gallery.drop)
        keeper = self._rows = RowKeeper(config.line.state, journal, self._clock, config.line.journal_days, bounds)
        keeper.start()
        self._stack.callback(keeper.stop)

    def _say(self, text: str) -> None:
        # A terminal that was closed, or a log that is full, is no reason to stop a line.
        with contextlib.suppress(OSError, ValueError):
            self._tell(text)

    def _station(
        self, options: StationOptions, swapping: SwapServices, services: LineServices, server: LineServer | None
    ) -> Station:
        deadline_ns = round(options.deadline_ms * 1e6)
        collect_ms = options.deadline_ms / 2 if options.collect_ms is None else options.collect_ms
        limits = StationLimits(
            deadline_ns,
            round(collect_ms * 1e6),
            options.depth,
            options.record == "before_accept",
            options.strict_alignment,
        )
        begun = begin(swapping, options)
        views = [self._view(options.name, view, begun.measures[view.name]) for view in options.views]
        outputs = [open_output(output, options.name) for output in options.outputs]
        if server is not None:
            # Whoever waits for a verdict over HTTP hears the one that the PLC was given, when it was given.
            outputs.append(server.output(options.name))
        generation = begun.active.generation
        tell_generation(services.journal.event, f"station {options.name}", generation, begun.measures)
        station = Station(options.name, limits, services, views, outputs, generation=generation)
        for name, problem in begun.problems.items():
            station.readiness.forbid(f"bundle {name}", problem)
        # Before it starts: a server may be away from the beginning.
        look_at_scorings(station.readiness, [measure.scoring for measure in begun.measures.values()])
        assert self.swaps is not None
        self.swaps.attach(options, station, begun.active)
        return station

    def _view(self, station: str, options: ViewOptions, measure: Measure) -> View:
        source = open_source(options, station, self._config.line.state)
        return View(options.name, source, measure, SceneCheck(scene_of(options)), options.crop)

    def turn(self) -> None:
        """Do what is done once a second: the account, the clocks, the heartbeat, the file of the state."""
        for station in self.stations.values():
            self._heed_disk(station)
            station.beat()
            if self._told.get(station.name) != (state := station.readiness.state):
                self._told[station.name] = state
                reason = f": {station.readiness.reason}" if station.readiness.reason else ""
                self._say(f"station {station.name}: {state}{reason}")
        if self.swaps is not None:
            # Before the devices: one that a new bundle broke may work with the old one.
            self.swaps.turn()
        self._check_devices()
        self._check_sinks()
        self._check_account()
        drift_ns = self._clock.utc_ns() - self._clock.mono_ns()
        if abs(drift_ns - self._drift_ns) > _JUMP_NS:
            self.journal.event(
                "clock_jump",
                object="clock",
                old=iso(self._drift_ns + self._clock.mono_ns()),
                new=iso(self._clock.utc_ns()),
                reason=f"the wall clock jumped by {(drift_ns - self._drift_ns) / 1e9:+.3f} s; nothing depends on it",
            )
            self._drift_ns = drift_ns
        self.write_status()

    def _check_devices(self) -> None:
        """Note devices that failed, and whether one of them is lost."""
        for station in self.stations.values():
            for name, view in station.views.items():
                scoring, label = view.measure.scoring, f"view {station.name}/{name}"
                if scoring.device_failures != self._failures.get(label, 0):
                    self._failures[label] = scoring.device_failures
                    self.journal.event("device_failed", object=label, reason=scoring.problem)
                if scoring.lost and not self.lost:
                    self.lost = f"{station.name}/{name}: {scoring.lost}"
                    self.journal.event("device_lost", object=label, reason=scoring.lost)

    def _check_sinks(self) -> None:
        for runner in self._sinks:
            if not runner.stops_line:
                continue
            against = runner.against()
            for station in self.stations.values():
                if against:
                    station.readiness.forbid(f"sink {runner.name}", against)
                else:
                    station.readiness.allow(f"sink {runner.name}")

    def _heed_disk(self, station: Station) -> None:
        """Let no part be judged while the disk has no room for its record, and again when it has."""
        reason = "" if self.gallery is None else self.gallery.forbids
        if reason:
            # Once: the words have the free space in them, which changes each second.
            if not station.readiness.against("disk"):
                station.readiness.forbid("disk", reason)
        else:
            station.readiness.allow("disk")

    def is_sound(self, period_s: float) -> bool:
        """Return whether a new process would be no better: what a watchdog must know.

        Args:
            period_s: Time within which the threads of all stations must have turned.

        Returns:
            False where a self-test has failed, an inspector or a thread hangs, a device is lost, or the account is
            wrong. What others cause (cameras, disks, the PLC) does not count.
        """
        if self._selftest is None or self.lost or self._is_wrong or not self._selftest.is_good:
            return False
        return all(
            station.turns(period_s) and not station.readiness.against("inspector") for station in self.stations.values()
        )

    @property
    def has_begun(self) -> bool:
        """Whether the challenges of the start are over, however they ended: then all is done that a start does."""
        return self.swaps is not None and self.swaps.challenges.has_begun

    @property
    def has_ended(self) -> bool:
        """Whether all sources of all stations have ended, as for folders that are not watched."""
        return all(station.has_ended for station in self.stations.values())

    def status(self, *, is_running: bool = True) -> LineStatus:
        """Return what is known now."""
        journal = self.journal
        drift = () if self.drift is None else self.drift.state()
        return LineStatus(
            line=self._config.line.name,
            utc=iso(self._clock.utc_ns()),
            mono_ns=self._clock.mono_ns(),
            boot_id=self._boot,
            timezone=self._config.line.timezone,
            pid=os.getpid(),
            is_running=is_running,
            last_seq=journal.last_seq,
            journal=journal.problem,
            account_holds=not self._is_wrong,
            images=None if self.gallery is None else self.gallery.status(),
            stations=tuple(
                self._status_of(station, warnings_of(drift, station.name)) for station in self.stations.values()
            ),
            sinks=tuple(
                SinkStatus(runner.name, runner.sent, runner.behind, runner.errors, runner.last_error)
                for runner in self._sinks
            ),
            drift=drift,
            selftests=() if self._selftest is None else self._selftest.state(),
            drift_missed=0 if self.drift is None else self.drift.missed,
            rollouts=() if self._rollouts is None else self._rollouts.state(),
        )

    def _status_of(self, station: Station, warnings: tuple[str, ...]) -> StationStatus:
        assert self.swaps is not None
        challenges = self.swaps.challenges
        warnings += challenges.warnings(station.name)
        return StationStatus.of(station, warnings, challenges.last(station.name))

    def write_status(self, *, is_running: bool = True) -> None:
        """Have the state written for `flawscope line status`; a disk that refuses it, or hangs, stops nothing."""
        self._status_file.write(self.status(is_running=is_running))

    def stop(self) -> None:
        """End: stations first, each up to its deadline, then sinks, bundles and the journal. Twice is harmless."""
        if self._is_stopped:
            return
        self._is_stopped = True
        with self._stack:
            for station in self.stations.values():
                station.readiness.set_phase("stopped")
            # All at once: what takes long are deadlines, and cameras that hang.
            enders = [threading.Thread(target=station.stop, daemon=True) for station in self.stations.values()]
            for thread in enders:
                thread.start()
            for thread in enders:
                thread.join()
            if self._server is not None:
                # After the stations: whoever waits hears his verdict. Before the account, which a trigger would change.
                self._server.stop()
            if self.gallery is not None:
                # Before the last head is signed: what it could not write is on record.
                self.gallery.stop()
            if self._selftest is not None:
                self._selftest.stop()
            if self.drift is not None:
                self.drift.stop()
            if self._rows is not None:
                self._rows.stop()
            if self._rollouts is not None:
                self._rollouts.stop()
            if self._journal is not None and self.stations:
                self._journal.event("stopped", object=f"line {self._config.line.name}")
                self.is_written = self._journal.flush(_FLUSH_S)
                self._check_account(is_over=True)
                self.write_status(is_running=False)

    def _check_account(self, *, is_over: bool = False) -> None:
        """Check that parts = accept + reject + fault + open, that no number is missing, and at the end the journal."""
        numbers = self._numbers
        if numbers is None or not self.stations:
            return
        last = numbers.last
        counts = {name: station.counters.now() for name, station in self.stations.items()}
        wrong = [f"station {name}: {count}" for name, count in counts.items() if not count.holds]
        # A part gets its number a moment before it is counted, in other threads: only what stays different is wrong.
        parts = sum(count.parts for count in counts.values())
        self._doubts = self._doubts + 1 if parts != last - self._first and last == numbers.last else 0
        if self._doubts >= _MOST_DOUBTS or (is_over and self._doubts):
            wrong.append(f"{parts} parts were counted since number {self._first}, the last number is {last}")
        if is_over and self.is_written and not self.journal.problem:
            recorded = self.journal.counts()
            for name, count in counts.items():
                for verdict in ("accept", "reject", "fault"):
                    there = recorded.get((name, verdict), 0) - self._before.get((name, verdict), 0)
                    if there != getattr(count, verdict):
                        wrong.append(f"station {name}: {getattr(count, verdict)} {verdict}, on record are {there}")
        if wrong and not self._is_wrong:
            self._is_wrong = True
            self.journal.event("account_wrong", object=f"line {self._config.line.name}", reason="; ".join(wrong))
            for station in self.stations.values():
                station.readiness.forbid("account", "parts are not accept + reject + fault + open", hold=True)


def run(
    line: Line,
    should_stop: Callable[[], bool],
    *,
    wait: Callable[[float], Any] = time.sleep,
    each: Callable[[], None] = lambda: None,
) -> None:
    """Turn a line that was started once a second, until it is asked to stop, or is lost, or its sources have ended.

    Args:
        line: The line.
        should_stop: Whether it is asked to stop.
        wait: Waits for some seconds, or less.
        each: Called 20 times a second, by the same thread.
    """
    next_turn = time.monotonic()
    with only_new_garbage():
        while not should_stop() and not line.lost and not line.has_ended:
            if time.monotonic() >= next_turn:
                line.turn()
                next_turn = time.monotonic() + 1.0
            each()
            wait(0.05)


def scene_of(options: ViewOptions) -> Any:
    """Return the limits of a view's scene; where it does not say, equal images are a fault from cameras alone."""
    if options.scene.frozen is not None:
        return options.scene
    return msgspec.structs.replace(options.scene, frozen="fault" if is_camera(options.source) else "note")
