"""Metrics agree with the journal: counted once a part, by the verdict that was given out."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from line_view_stand_in import UTC, FakeLine

prometheus = pytest.importorskip("prometheus_client", reason="prometheus_client is not installed (extra `line`)")
from prometheus_client.parser import text_string_to_metric_families  # noqa: E402

from flawscope.runtime.line.clock import SystemClock  # noqa: E402
from flawscope.runtime.line.journal.journal import Journal  # noqa: E402
from flawscope.runtime.line.metrics import LineMetrics  # noqa: E402
from flawscope.runtime.line.outputs.output import Signal  # noqa: E402
from flawscope.runtime.line.parts import PartRecord, ViewRecord  # noqa: E402
from flawscope.runtime.line.rollout.rollout_status import RolloutStatus  # noqa: E402
from flawscope.runtime.line.status import ImagesStatus, LineStatus, ViewStatus  # noqa: E402

WAIT_S = 20.0


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)


def samples(metrics: LineMetrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    text, kind = metrics.text()
    assert kind.startswith("text/plain")
    families = text_string_to_metric_families(text.decode())
    return {(one.name, tuple(sorted(one.labels.items()))): one.value for family in families for one in family.samples}


def sample(metrics: LineMetrics, name: str, **labels: str) -> float:
    found = samples(metrics)
    # What was never counted is not there yet: whoever waits for it must not fail by that.
    return found.get((f"flawscope_{name}", tuple(sorted(labels.items()))), float("nan"))


@pytest.fixture
def line() -> FakeLine:
    line = FakeLine()
    line.add("top")
    return line


@pytest.fixture
def metrics(line: FakeLine, tmp_path: Path) -> Iterator[LineMetrics]:
    metrics = LineMetrics(line, tmp_path)
    metrics.start()
    yield metrics
    metrics.stop()


def record(seq: int, verdict: Any, reason: Any, revision: int = 0) -> PartRecord:
    score = {"accept": 1.0, "reject": 6.0}.get(verdict)
    view = ViewRecord("left", verdict, reason, score=score, threshold=None if score is None else 4.0)
    stages = (
        {"collected": 2.0, "verdict": 40.0}
        if verdict == "fault"
        else {"collected": 2.0, "scored": 30.0, "verdict": 40.0}
    )
    return PartRecord(
        seq, "top", "", UTC, seq, "boot", 1, verdict, reason, latency_ms=stages, views=(view,), revision=revision
    )


def test_after_a_thousand_mixed_parts_every_counter_agrees_with_the_journal(line: FakeLine, tmp_path: Path) -> None:
    journal = Journal.open(tmp_path, "l", SystemClock())
    line.journal = journal  # type: ignore[assignment]
    metrics = LineMetrics(line, tmp_path)
    try:
        metrics.start()
        draw = random.Random(7)
        scored = 0
        for seq in range(1, 1001):
            verdict = draw.choice(["accept", "reject", "fault", "late accept"])
            reason = draw.choice(["overrun", "deadline", "scene"]) if verdict == "fault" else ""
            if verdict == "late accept":
                # On record as an accept, but not in time: given out as a fault, of which there is a second record.
                journal.record(record(seq, "accept", ""))
                verdict, reason = "fault", "deadline"
                part = msgspec.structs.replace(record(seq, "accept", ""), verdict=verdict, reason=reason, revision=1)
                journal.record(part)
                scored += 1
            else:
                journal.record(record(seq, verdict, reason))
                scored += verdict != "fault"
            metrics.signal("top", Signal(seq, "", verdict, reason, None))  # type: ignore[arg-type]
        assert journal.flush(WAIT_S)
        on_record = Counter((part.verdict, part.reason) for part in journal.parts(0, 2000))
        assert sum(on_record.values()) == 1000
        until(lambda: sample(metrics, "latency_seconds_count", station="top", stage="verdict") == 1000)
        assert sample(metrics, "latency_seconds_count", station="top", stage="scored") == scored
        assert sample(metrics, "score_count", station="top", view="left") == scored
        found = {
            (labels["verdict"], labels["reason"]): value
            for (name, pairs), value in samples(metrics).items()
            if name == "flawscope_parts_total" and (labels := dict(pairs))
        }
        assert found == on_record
        by_verdict = {verdict: sum(n for (one, _), n in found.items() if one == verdict) for verdict, _ in found}
        assert by_verdict == {verdict: n for (_, verdict), n in journal.counts().items()}
    finally:
        metrics.stop()
        journal.close()


def test_latencies_are_in_seconds_and_scores_in_shares_of_their_threshold(line: FakeLine, metrics: LineMetrics) -> None:
    line.stations["top"].push({})  # 12 ms, score 2.0 of 4.0
    until(lambda: ("flawscope_score_count", (("station", "top"), ("view", "left"))) in samples(metrics))
    assert sample(metrics, "latency_seconds_sum", station="top", stage="verdict") == pytest.approx(0.012)
    assert sample(metrics, "score_sum", station="top", view="left") == pytest.approx(0.5)
    assert sample(metrics, "score_bucket", station="top", view="left", le="0.5") == 1
    assert sample(metrics, "score_bucket", station="top", view="left", le="0.25") == 0


def test_a_threshold_of_zero_or_below_has_no_shares(line: FakeLine, metrics: LineMetrics) -> None:
    part = record(1, "reject", "")
    views = tuple(ViewRecord("left", "reject", score=1.0, threshold=limit) for limit in (0.0, -3.0))
    line.journal.add(msgspec.structs.replace(part, views=views))
    until(lambda: ("flawscope_latency_seconds_count", (("stage", "verdict"), ("station", "top"))) in samples(metrics))
    assert not any(name.startswith("flawscope_score") for name, _ in samples(metrics))


def test_what_others_count_is_asked_for_at_each_look(line: FakeLine, metrics: LineMetrics, tmp_path: Path) -> None:
    station = line.stations["top"]
    station.sources = {"left": "", "right": "unplugged"}
    station.verdict = None
    station.push({})
    assert sample(metrics, "open_parts", station="top") == 1
    assert sample(metrics, "skipped_total", station="top") == 7
    assert sample(metrics, "late_total", station="top") == 3
    assert sample(metrics, "ready", station="top") == 1
    assert sample(metrics, "camera_up", station="top", view="left") == 1
    assert sample(metrics, "camera_up", station="top", view="right") == 0
    assert sample(metrics, "sink_behind", sink="mqtt") == 2
    assert sample(metrics, "sink_errors_total", sink="mqtt") == 1
    assert sample(metrics, "account_holds") == 1
    assert sample(metrics, "journal_ok") == 1
    assert sample(metrics, "disk_free_bytes") > 0
    station.state = "halted"
    assert sample(metrics, "ready", station="top") == 0


def test_verdicts_are_zero_before_the_first_part(metrics: LineMetrics) -> None:
    for verdict in ("accept", "reject"):
        assert sample(metrics, "parts_total", station="top", verdict=verdict, reason="") == 0


def test_a_journal_that_fails_for_a_while_is_read_afterwards(
    line: FakeLine, metrics: LineMetrics, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(after: int, limit: int) -> Any:
        raise OSError("planted")

    with monkeypatch.context() as patched:
        patched.setattr(line.journal, "entries", fails)
        line.stations["top"].push({})
        until(lambda: "planted" in caplog.text)
    until(lambda: ("flawscope_score_count", (("station", "top"), ("view", "left"))) in samples(metrics))
    assert sample(metrics, "score_count", station="top", view="left") == 1


def test_what_became_of_images(line: FakeLine, metrics: LineMetrics) -> None:
    status = line.status()
    images = ImagesStatus("prune", 4.5, stored=7, left_out=1, lost=2, deleted=30, waiting=3)
    line.status = lambda: msgspec.structs.replace(status, images=images)  # type: ignore[method-assign]
    counted = {result: sample(metrics, "images_total", result=result) for result in ("stored", "left_out", "lost")}
    assert counted == {"stored": 7, "left_out": 1, "lost": 2}
    assert sample(metrics, "images_total", result="deleted") == 30


def test_bundles_and_releases_are_those_of_the_status(line: FakeLine, metrics: LineMetrics) -> None:
    def rollout(view: str, state: str) -> RolloutStatus:
        return RolloutStatus("top", view, "stable", "sha256:1", "ab", state, "", "", 7.5)

    whole = line.status
    views = (ViewStatus("left", "part", "ab" * 32, 4.0, 0), ViewStatus("empty", "", "", None, 0))
    states = {"left": "done", "right": "waiting", "top": "rolled_back", "low": "refused"}

    def status() -> LineStatus:
        found = whole()
        stations = tuple(msgspec.structs.replace(one, views=views, generation=9) for one in found.stations)
        rollouts = tuple(rollout(view, state) for view, state in states.items())
        return msgspec.structs.replace(found, stations=stations, rollouts=rollouts)

    line.status = status  # type: ignore[method-assign]
    assert sample(metrics, "generation", station="top") == 9
    assert sample(metrics, "bundle", station="top", view="left", bundle="ab" * 32) == 1
    assert sum(name == "flawscope_bundle" for name, _ in samples(metrics)) == 1
    for name, found in (("failed", {"top", "low"}), ("pending", {"right"})):
        on = {view for view in states if sample(metrics, f"rollout_{name}", station="top", view=view)}
        assert on == found
    assert sample(metrics, "rollout_source_age_seconds", station="top", view="left") == 7.5
    # From zero on: an alarm on the first one sees a change.
    for result in ("done", "failed", "rolled_back"):
        assert sample(metrics, "swaps_total", station="top", result=result) == 0
