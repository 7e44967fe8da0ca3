"""Which metrics and labels a PromQL expression names, and which a line has."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import msgspec
from line_view_stand_in import FakeLine

from flawscope.runtime.line.drift.state import QuantityDrift, ViewDrift
from flawscope.runtime.line.metrics import LineMetrics
from flawscope.runtime.line.outputs.output import Signal
from flawscope.runtime.line.rollout.rollout_status import RolloutStatus
from flawscope.runtime.line.selftest_status import SelfTestStatus
from flawscope.runtime.line.status import ImagesStatus, LineStatus, ViewStatus

SCRAPED = {"line", "instance", "job"}
"""Labels that the scrape gives each metric."""

OTHERS: dict[str, set[str]] = {
    "up": set(),
    # Of Triton: docs/user_guide/metrics.md there.
    "nv_inference_request_success": {"model", "version"},
    "nv_inference_request_failure": {"model", "version", "reason"},
    "nv_inference_queue_duration_us": {"model", "version"},
}
"""Metrics of others, with their labels."""

_WORDS = frozenset(
    {"by", "or", "and", "rate", "increase", "sum", "min", "max", "histogram_quantile", "clamp_min", "label_values"}
    | {"without", "on", "ignoring"}
)


class Names(NamedTuple):
    """What an expression names: metrics, and labels in it."""

    metrics: set[str]
    labels: set[str]


def names_in(expression: str) -> Names:
    """Return the metrics and labels of an expression; what is neither a word of PromQL nor a label is a metric."""
    bare = re.sub(r'"[^"]*"', '""', expression)
    labels = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|(?<![<>=])=(?!=))", bare))
    for grouped in re.findall(r"\b(?:by|without|on|ignoring)\s*\(([^)]*)\)", bare):
        labels |= {name.strip() for name in grouped.split(",")}
    rest = re.sub(r"\b(?:by|without|on|ignoring)\s*\([^)]*\)", " ", re.sub(r"\{[^}]*\}|\[[^\]]*\]", " ", bare))
    return Names(set(re.findall(r"(?<![\w.$])[A-Za-z_:][\w:]*", rest)) - _WORDS, labels)


def metrics_of_a_line(state: Path) -> dict[str, set[str]]:
    """Return the names of all metrics of a line, as Prometheus stores them, with their labels."""

    quantity = QuantityDrift("score", False, 0.1, 0.2, 0.0, 3.0, 1.0, 1.0, 0.0, (), ())
    drift = ViewDrift("top", "left", "ab" * 32, "watching", 500, 500, 200, quantities=(quantity,))

    class Whole(FakeLine):
        def status(self) -> LineStatus:
            views = (ViewStatus("left", "part", "ab" * 32, 4.0, 0),)
            status = super().status()
            return msgspec.structs.replace(
                status,
                stations=tuple(
                    msgspec.structs.replace(one, sources={"left": ""}, views=views) for one in status.stations
                ),
                images=ImagesStatus("ok", 9.0, 1, 1, 1, 1, 0),
                selftests=(SelfTestStatus("ab" * 32, 1.0, ""),),
                drift=(drift,),
                rollouts=(RolloutStatus("top", "left", "stable", "", "", "done", "", "", 1.0),),
            )

    line = Whole()
    station = line.add("top")
    metrics = LineMetrics(line, state)
    station.push({})
    metrics.signal("top", Signal(1, "", "accept", "", None))
    for entry in line.journal.entries(0, 10):
        metrics.record(entry)
    found: dict[str, set[str]] = {}
    for _ in range(2):  # what is counted from zero is there at the second look
        for family in metrics.registry.collect():
            for sample in family.samples:
                found.setdefault(sample.name, set()).update(sample.labels)
    return {name: labels for name, labels in found.items() if not name.endswith("_created")}
