"""Metrics of a line for Prometheus, in a registry of their own; docs/line-http.md lists them.

Verdicts are counted when they are given out, each once, so that a counter never falls; latencies and scores are read
from the records in the journal. `test_line_metrics.py` compares both with the journal.
"""

from __future__ import annotations

import logging
import shutil
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client import Counter as CounterMetric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from flawscope.runtime.line.http.line_view import LineView
from flawscope.runtime.line.outputs.output import Signal
from flawscope.runtime.line.status import LineStatus

_LATENCY_S = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1.0, 2.0, 5.0, 10.0)
_SHARES = (0.25, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 1.0, 1.05, 1.1, 1.2, 1.5, 2.0, 4.0)
_SWAPS = {"swap": "done", "swap_failed": "failed", "rollback": "rolled_back"}
"""Event -> how its swap is counted."""
_BATCH = 500
_WAIT_S = 0.5

_log = logging.getLogger(__name__)


class LineMetrics:
    """Counts from `start` to `stop`; make it while the journal is open and before stations start.

    Args:
        line: The line.
        state: Its state folder, whose disk is looked at.
    """

    def __init__(self, line: LineView, state: Path) -> None:
        self._line, self._state = line, state
        self._lock = threading.Lock()
        self._parts: Counter[tuple[str, str, str]] = Counter()
        self._link = line.journal.last_link
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="metrics", daemon=True)
        self.registry = CollectorRegistry()
        self._latency = Histogram(
            "flawscope_latency_seconds",
            "Time from the trigger until images were collected, scored, and the verdict was there.",
            ("station", "stage"),
            buckets=_LATENCY_S,
            registry=self.registry,
        )
        self._score = Histogram(
            "flawscope_score",
            "Score as a share of its threshold, of every image whose threshold is above zero.",
            ("station", "view"),
            buckets=_SHARES,
            registry=self.registry,
        )
        self._swaps = CounterMetric(
            "flawscope_swaps", "Bundles that were changed, or not.", ("station", "result"), registry=self.registry
        )
        self.registry.register(self)

    def start(self) -> None:
        """Begin to read the journal."""
        self._thread.start()

    def stop(self) -> None:
        """End, within a second."""
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join(1.0)

    def signal(self, station: str, signal: Signal) -> None:
        """Count a verdict that was given out. It returns at once."""
        with self._lock:
            self._parts[station, signal.verdict, signal.reason] += 1

    def record(self, entry: dict[str, Any]) -> None:
        """Take note of an entry of the journal: the first record of a part, and what became of swaps."""
        if entry["kind"] == "event" and (result := _SWAPS.get(entry["action"])):
            # `station NAME`, and for some the view.
            self._swaps.labels(entry["object"].split()[1], result).inc()
        if entry["kind"] != "part" or entry["revision"]:
            return
        for stage, milliseconds in entry["latency_ms"].items():
            self._latency.labels(entry["station"], stage).observe(milliseconds / 1000)
        for view in entry["views"]:
            if view["score"] is not None and (view["threshold"] or 0) > 0:
                self._score.labels(entry["station"], view["view"]).observe(view["score"] / view["threshold"])

    def text(self) -> tuple[bytes, str]:
        """Return all metrics as text, and its content type."""
        return generate_latest(self.registry), CONTENT_TYPE_LATEST

    def collect(self) -> Iterator[Metric]:
        """Return what is counted elsewhere, as Prometheus' client asks for it."""
        status = self._line.status()
        yield self._verdicts(status)
        for name, words, field, kind in (
            ("flawscope_open_parts", "Parts without a verdict.", "open", GaugeMetricFamily),
            ("flawscope_skipped", "Images that were left out.", "skipped", CounterMetricFamily),
            ("flawscope_late", "Verdicts that came after the deadline.", "late", CounterMetricFamily),
        ):
            family = kind(name, words, labels=["station"])
            for station in status.stations:
                family.add_metric([station.name], getattr(station, field))
            yield family
        ready = GaugeMetricFamily("flawscope_ready", "Whether a station scores parts.", labels=["station"])
        up = GaugeMetricFamily("flawscope_camera_up", "Whether a source works.", labels=["station", "view"])
        for station in status.stations:
            for result in _SWAPS.values():
                self._swaps.labels(station.name, result)  # zero before the first: an alarm on a change needs it
            ready.add_metric([station.name], station.state == "ready")
            for view, reason in station.sources.items():
                up.add_metric([station.name, view], not reason)
        yield from (ready, up)
        yield from self._sinks(status)
        yield from _drift(status)
        yield from _selftests(status)
        yield from _images(status)
        yield from _bundles(status)
        yield from _rollouts(status)
        holds = GaugeMetricFamily("flawscope_account_holds", "Whether parts = accept + reject + fault + open.")
        holds.add_metric([], status.account_holds)
        works = GaugeMetricFamily("flawscope_journal_ok", "Whether the journal is written.")
        works.add_metric([], not status.journal)
        free = GaugeMetricFamily("flawscope_disk_free_bytes", "Free bytes of the disk of the state folder.")
        free.add_metric([], shutil.disk_usage(self._state).free)
        yield from (holds, works, free)

    def describe(self) -> list[Metric]:
        """Return nothing: names are known only with the stations."""
        return []

    def _verdicts(self, status: LineStatus) -> Metric:
        family = CounterMetricFamily(
            "flawscope_parts", "Parts by the verdict that was given out.", labels=["station", "verdict", "reason"]
        )
        with self._lock:
            parts = dict(self._parts)
        for station in status.stations:
            # From the start, as an alarm on a change needs the zero before it.
            for verdict in ("accept", "reject"):
                parts.setdefault((station.name, verdict, ""), 0)
        for labels, count in sorted(parts.items()):
            family.add_metric(list(labels), count)
        return family

    @staticmethod
    def _sinks(status: LineStatus) -> Iterator[Metric]:
        behind = GaugeMetricFamily("flawscope_sink_behind", "Entries that a sink has not been told.", labels=["sink"])
        errors = CounterMetricFamily("flawscope_sink_errors", "Attempts of a sink that failed.", labels=["sink"])
        for sink in status.sinks:
            behind.add_metric([sink.name], sink.behind)
            errors.add_metric([sink.name], sink.errors)
        yield from (behind, errors)

    def _follow(self) -> None:
        journal = self._line.journal
        is_told = False
        while not self._stopping.is_set():
            try:
                if not journal.wait(self._link, _WAIT_S):
                    continue
                for entry in journal.entries(self._link, _BATCH):
                    self.record(entry)
                    self._link = entry["link"]
                is_told = False
            except Exception:  # of a disk that fails, or a row that was changed by hand: metrics must not end
                if not is_told:
                    _log.exception("The journal could not be read for the metrics; it is tried again.")
                is_told = True
                self._stopping.wait(_WAIT_S)


def _images(status: LineStatus) -> Iterator[Metric]:
    if (images := status.images) is None:
        return
    family = CounterMetricFamily("flawscope_images", "Images by what became of them.", labels=["result"])
    for result in ("stored", "left_out", "lost", "deleted"):
        family.add_metric([result], getattr(images, result))
    yield family


def _bundles(status: LineStatus) -> Iterator[Metric]:
    generation = GaugeMetricFamily(
        "flawscope_generation", "Number of the set of bundles and thresholds of a station.", labels=["station"]
    )
    bundle = GaugeMetricFamily(
        "flawscope_bundle", "1 for the bundle by which a view decides.", labels=["station", "view", "bundle"]
    )
    for station in status.stations:
        generation.add_metric([station.name], station.generation)
        for view in station.views:
            if view.digest:
                bundle.add_metric([station.name, view.name, view.digest], 1)
    yield from (generation, bundle)


def _rollouts(status: LineStatus) -> Iterator[Metric]:
    labels = ["station", "view"]
    failed = GaugeMetricFamily(
        "flawscope_rollout_failed", "Whether the release that a view follows was refused or failed.", labels=labels
    )
    pending = GaugeMetricFamily(
        "flawscope_rollout_pending", "Whether the release that a view follows is not in force yet.", labels=labels
    )
    age = GaugeMetricFamily(
        "flawscope_rollout_source_age_seconds", "Seconds since the source of releases last answered.", labels=labels
    )
    for one in status.rollouts:
        names = [one.station, one.view]
        failed.add_metric(names, one.state in ("refused", "failed", "rolled_back"))
        pending.add_metric(names, one.state in ("waiting", "pulling", "swapping"))
        age.add_metric(names, one.age_s)
    yield from (failed, pending, age)


def _selftests(status: LineStatus) -> Iterator[Metric]:
    age = GaugeMetricFamily(
        "flawscope_selftest_age_seconds", "Seconds since a golden image had its stored score.", labels=["bundle"]
    )
    ok = GaugeMetricFamily("flawscope_selftest_ok", "Whether the last self-test held.", labels=["bundle"])
    for one in status.selftests:
        age.add_metric([one.bundle], one.age_s)
        ok.add_metric([one.bundle], not one.problem)
    yield from (age, ok)


def _drift(status: LineStatus) -> Iterator[Metric]:
    labels = ["station", "view", "quantity"]
    drifting = GaugeMetricFamily("flawscope_drift", "Whether a quantity of a view drifts.", labels=labels)
    index = GaugeMetricFamily("flawscope_drift_psi", "Population stability index of the last window.", labels=labels)
    for view in status.drift:
        for one in view.quantities:
            names = [view.station, view.view, one.name]
            drifting.add_metric(names, one.is_drifting)
            index.add_metric(names, one.psi)
    missed = CounterMetricFamily("flawscope_drift_missed", "Images that were not looked at for drift.")
    missed.add_metric([], status.drift_missed)
    yield from (drifting, index, missed)
