"""The self-test: a golden image of each bundle in use, scored again and again while a line runs.

Driver, device and memory may begin to compute something else long after the bundle was checked at its load. A golden
image that does not have its stored score stops all stations that decide by the bundle, until one has it again and
somebody has acknowledged it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from typing import Any
from weakref import WeakKeyDictionary

from flawscope.errors import DeviceError
from flawscope.imaging.images import decode_image, prepare
from flawscope.runtime.backends.table import golden_tolerance
from flawscope.runtime.inspector import Inspector
from flawscope.runtime.line.journal.recorder import Recorder
from flawscope.runtime.line.selftest_status import SelfTestStatus
from flawscope.runtime.line.station.station import Station
from flawscope.runtime.line.station.view import Measure
from flawscope.runtime.scorers.golden import compare_golden
from flawscope.runtime.shared_scoring import SharedScoring

_QUIET_S = 0.25
"""Seconds without an image after which a line counts as idle. On one that never is, the test comes when no image waits,
a period later; and where one always does, before them, another period later."""
_AGAIN_S = 5.0
"""Seconds until a test that failed is repeated, where the period is longer."""
_STOP_S = 2.0

_FAILED, _WRONG = "self-test", "golden image"
"""Causes: that a test has failed, until it is acknowledged; and that the last one has, until one holds."""

_log = logging.getLogger(__name__)


def golden_check(inspector: Inspector, number: int) -> Callable[[], None]:
    """Read and prepare a golden image and return what scores it.

    Args:
        inspector: The inspector of its bundle.
        number: Number of the image; beyond the last it begins anew.

    Returns:
        Scores it by `Inspector.infer` and raises BundleError unless score and map are the stored ones.
    """
    bundle, backend, precision = inspector.bundle, inspector.backend, inspector.precision
    entries = bundle.manifest.golden_of(precision, backend)
    golden = entries[number % len(entries)]
    image = prepare(decode_image(bundle.read(golden.file), golden.file), bundle.manifest.input)[None]

    def check() -> None:
        maps, scores = inspector.infer(image)
        tolerance = golden_tolerance(backend, precision)
        compare_golden(golden, maps, scores, tolerance, inspector.scorer.least_score, bundle.path, backend)

    return check


class _Tested:
    """What is known of one bundle. Times by `time.monotonic`."""

    def __init__(self, measure: Measure, problem: str = "") -> None:
        self.measure = measure
        self.good_at = self.tried_at = time.monotonic()
        self.number = 0
        self.problem = problem
        self.pending: Future[Any] | None = None


class SelfTest:
    """Tests the bundles of a line in a thread of its own, from `start` to `stop`.

    Args:
        stations: Name -> station; their bundles may be exchanged.
        journal: Where events are recorded.
        period_s: Seconds between two tests of a bundle.
    """

    def __init__(self, stations: Mapping[str, Station], journal: Recorder, period_s: float) -> None:
        self._stations, self._journal, self._period_s = stations, journal, period_s
        self._tested: dict[SharedScoring, _Tested] = {}
        # Why the last test of bundles failed that are not in use now: a rollback may put one back.
        self._failed_before: WeakKeyDictionary[SharedScoring, str] = WeakKeyDictionary()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="self-test", daemon=True)

    def start(self) -> None:
        """Begin; the bundles were tested when they were loaded."""
        self._look()
        self._thread.start()

    def stop(self) -> None:
        """End within two seconds; a test that hangs is left behind. Twice is harmless."""
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join(_STOP_S)

    @property
    def is_good(self) -> bool:
        """Whether the last test of every bundle in use held."""
        return not any(tested.problem for tested in list(self._tested.values()))

    def state(self) -> tuple[SelfTestStatus, ...]:
        """Return what is known of all bundles in use."""
        now = time.monotonic()
        return tuple(
            SelfTestStatus(tested.measure.bundle, round(now - tested.good_at, 3), tested.problem)
            for tested in list(self._tested.values())
        )

    def _run(self) -> None:
        while not self._stopping.wait(min(self._period_s / 4, _QUIET_S)):
            try:
                self._look()
                for tested in self._tested.values():
                    self._turn(tested)
            except Exception:  # a mistake of ours must not end the test for ever; its age says that none held
                _log.exception("The self-test failed in an unforeseen way; it is tried again.")

    def _look(self) -> None:
        """Take note of the bundles in use, and keep stations from those that have failed."""
        measures = {
            measure.scoring: measure
            for station in self._stations.values()
            for measure in _measures(station)
            if measure.golden is not None
        }
        for scoring, tested in self._tested.items():
            if tested.problem and scoring not in measures:
                self._failed_before[scoring] = tested.problem
        # Replaced as a whole: others read it.
        self._tested = {
            scoring: self._tested.get(scoring) or _Tested(measure, self._failed_before.pop(scoring, ""))
            for scoring, measure in measures.items()
        }
        for station in self._stations.values():
            problems = [self._tested[scoring].problem for scoring in self._scorings(station)]
            problem = next((text for text in problems if text), "")
            if not problem:
                station.readiness.allow(_WRONG)
            else:
                _stop(station, problem)

    def _turn(self, tested: _Tested) -> None:
        """Begin a test that is due, or take what came out of one."""
        now = time.monotonic()
        if tested.pending is not None:
            if tested.pending.done():
                future, tested.pending, tested.tried_at = tested.pending, None, now
                self._answer(tested, future)
            return
        period_s = min(self._period_s, _AGAIN_S) if tested.problem else self._period_s
        late_s = now - tested.tried_at - period_s
        scoring, golden = tested.measure.scoring, tested.measure.golden
        if late_s < 0 or golden is None or (scoring.idle_s() < _QUIET_S and late_s < period_s):
            return
        tested.number += 1
        try:
            tested.pending = scoring.submit_last(
                golden(tested.number), time.monotonic_ns() + round(self._period_s * 1e9)
            )
        except Exception as err:  # the image cannot be read any more, or what prepares it is broken
            tested.tried_at = now
            self._failed(tested, f"{type(err).__name__}: {err}")

    def _answer(self, tested: _Tested, future: Future[Any]) -> None:
        error = future.exception()
        if isinstance(error, DeviceError) and tested.measure.scoring.comes_back:
            return  # a server that is away computes nothing wrong; the station waits for it
        if error is not None:
            self._failed(tested, str(error) or type(error).__name__)
        elif future.result() is None:
            tested.good_at = time.monotonic()
            if tested.problem:
                tested.problem = ""
                self._journal.event("selftest_passed", object=f"bundle {tested.measure.bundle}")
                self._look()

    def _failed(self, tested: _Tested, problem: str) -> None:
        # Whoever exchanged the bundle meanwhile has closed it.
        users = [one for one in self._stations.values() if tested.measure.scoring in self._scorings(one)]
        if not users or self._stopping.is_set():
            return
        if not tested.problem:
            self._journal.event("selftest_failed", object=f"bundle {tested.measure.bundle}", reason=problem)
        tested.problem = problem
        for station in users:
            _stop(station, problem)

    def _scorings(self, station: Station) -> list[SharedScoring]:
        return [measure.scoring for measure in _measures(station) if measure.scoring in self._tested]


def _measures(station: Station) -> Iterable[Measure]:
    return [view.measure for view in station.views.values()]


def _stop(station: Station, problem: str) -> None:
    """Let a station judge no part. Who acknowledges it before a test holds again has acknowledged nothing."""
    if not station.readiness.against(_WRONG):
        station.readiness.forbid(_WRONG, problem)
    if not station.readiness.against(_FAILED):
        station.readiness.forbid(_FAILED, "has failed; acknowledge it when it holds again", hold=True)
