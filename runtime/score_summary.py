"""What `flawscope score` says at the end: counts, times, and how many images lie near their threshold."""

from __future__ import annotations

import statistics
import time
from array import array
from collections import Counter
from collections.abc import Iterator
from datetime import datetime, timezone
from typing import Any

import msgspec

from flawscope import __version__
from flawscope.runtime.inspector import Inspector
from flawscope.runtime.results import Result

NEAR = 0.05
"""An image is near its threshold where its score differs from it by at most this share of it."""
DECISIONS = ("accept", "reject", "fault")


class Slowest(msgspec.Struct, frozen=True):
    """The image that took longest: its name, and milliseconds from reading to decision."""

    image: str
    ms: float


class ScoreReport(msgspec.Struct, frozen=True, kw_only=True):
    """The file `report.json` of `score --out`.

    Attributes:
        images: Images, those that are faults included.
        accept: Images accepted.
        reject: Images rejected.
        fault: Images without a trustworthy answer.
        near_threshold: Images whose score differs from its threshold by at most `NEAR` of it.
        ms_median: Milliseconds an image, from reading to decision; null where none was scored.
        ms_mean: Their mean.
        slowest: The slowest image; null where none was scored.
        seconds: Time of all, without loading the bundle.
        bundle: Name of the bundle.
        digest: Its digest.
        method: Its method.
        precision: Precision of the graphs.
        backend: What ran them.
        path: `graph`, `kernel` or `members`.
        product: Product whose own thresholds held; null for the common ones.
        image_threshold: Threshold on the score; null before calibration.
        pixel_threshold: Threshold on the pixels of the map.
        threshold_revision: Revision of the threshold overlay; 0 for the bundle's own.
        threshold_source: The same in words.
        options: Options that change what is scored, and how.
        command: The command line.
        made: UTC time, ISO 8601.
        flawscope: Version.
    """

    images: int
    accept: int
    reject: int
    fault: int
    near_threshold: int
    ms_median: float | None
    ms_mean: float | None
    slowest: Slowest | None
    seconds: float
    bundle: str
    digest: str
    method: str
    precision: str
    backend: str
    path: str
    product: str | None
    image_threshold: float | None
    pixel_threshold: float | None
    threshold_revision: int
    threshold_source: str
    options: dict[str, Any]
    command: str
    made: str
    flawscope: str


class Summary:
    """Counts the results of a command; it holds none of them.

    Attributes:
        counts: Images by decision.
        near: Images near their threshold.
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.near = 0
        self._took_ms = array("d")
        self._slowest: Slowest | None = None
        self._began = time.perf_counter()

    def add(self, result: Result) -> None:
        """Count a result."""
        self.counts[result.decision] += 1
        if result.ratio is not None and abs(result.ratio - 1.0) <= NEAR:
            self.near += 1
        took_ms = result.timings_ms.get("total")
        if took_ms is None:
            return
        self._took_ms.append(took_ms)
        if self._slowest is None or took_ms > self._slowest.ms:
            self._slowest = Slowest(result.image, took_ms)

    @property
    def images(self) -> int:
        """Images so far."""
        return sum(self.counts.values())

    def lines(self) -> Iterator[str]:
        """Yield it in words, a line at a time."""
        total = ", ".join(f"{self.counts[decision]} {decision}" for decision in DECISIONS)
        yield f"{self.images} image{'' if self.images == 1 else 's'}: {total}"
        if self.near:
            yield f"near: {self.near} within {NEAR:.0%} of the threshold"
        if self._slowest is not None:
            median, seconds = statistics.median(self._took_ms), time.perf_counter() - self._began
            slowest = f"slowest {self._slowest.ms:.1f} ms ({self._slowest.image})"
            yield f"time: {median:.1f} ms an image (median), {slowest}, {seconds:.1f} s in all"

    def report(self, inspector: Inspector, options: dict[str, Any], command: str) -> ScoreReport:
        """Return it as `report.json` has it.

        Args:
            inspector: What scored.
            options: Options that change what is scored, and how.
            command: The command line.
        """
        manifest, thresholds = inspector.manifest, inspector.thresholds
        took = self._took_ms
        return ScoreReport(
            images=self.images,
            accept=self.counts["accept"],
            reject=self.counts["reject"],
            fault=self.counts["fault"],
            near_threshold=self.near,
            ms_median=statistics.median(took) if took else None,
            ms_mean=statistics.fmean(took) if took else None,
            slowest=self._slowest,
            seconds=time.perf_counter() - self._began,
            bundle=manifest.name,
            digest=manifest.digest,
            method=manifest.method,
            precision=inspector.precision,
            backend=inspector.backend,
            path=inspector.path,
            product=inspector.product,
            image_threshold=None if thresholds is None else thresholds.image.value,
            pixel_threshold=None if thresholds is None else thresholds.pixel.value,
            threshold_revision=inspector.in_force.revision,
            threshold_source=inspector.in_force.source,
            options=options,
            command=command,
            made=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            flawscope=__version__,
        )
