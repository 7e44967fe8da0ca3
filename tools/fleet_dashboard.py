"""Write deploy/grafana/dashboards/flawscope-fleet.json, the Grafana dashboard of many lines.

    python tools/fleet_dashboard.py [--check]

With --check nothing is written, and the exit status is 1 if the file is another one.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from linktree import ROOT

FILE = ROOT / "deploy" / "grafana" / "dashboards" / "flawscope-fleet.json"
SCHEMA_VERSION = 39
"""Of Grafana 11; later versions migrate it when they load it."""

_SOURCE = {"type": "prometheus", "uid": "${datasource}"}
_WHERE = 'line=~"$line", station=~"$station"'
_LINE = 'line=~"$line"'
_WIDTH = 24


def thresholds(*steps: tuple[str, float | None]) -> dict[str, Any]:
    """Return colours from values on; the first one is from minus infinity on (None)."""
    return {"mode": "absolute", "steps": [{"color": color, "value": value} for color, value in steps]}


GOOD_IS_ONE = thresholds(("red", None), ("green", 1))
GOOD_IS_ZERO = thresholds(("green", None), ("red", 1))
PLAIN = thresholds(("green", None))


def _look(kind: str, *, stacks: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return how a kind of panel draws: options of its fields, and its own."""
    if kind == "timeseries":
        return {
            "drawStyle": "line",
            "fillOpacity": 20 if stacks else 0,
            "showPoints": "never",
            "stacking": {"mode": "normal" if stacks else "none"},
        }, {
            "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []},
            "tooltip": {"mode": "multi", "sort": "desc"},
        }
    if kind == "stat":
        return {}, {
            "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
            "colorMode": "background",
            "graphMode": "none",
            "textMode": "value_and_name",
            "orientation": "auto",
            "justifyMode": "auto",
        }
    return {}, {"showHeader": True}


def panel(
    kind: str,
    title: str,
    description: str,
    queries: list[tuple[str, str]],
    *,
    unit: str = "short",
    width: int = 12,
    height: int = 8,
    steps: dict[str, Any] = PLAIN,
    stacks: bool = False,
) -> dict[str, Any]:
    """Return a panel without its place.

    Args:
        kind: `timeseries`, `stat` or `table`.
        title: Its title.
        description: What is shown, for whoever asks.
        queries: `(expression, legend)` each.
        unit: Unit of Grafana.
        width: Of 24.
        height: In rows.
        steps: Colours.
        stacks: Whether the lines of a time series are stacked.
    """
    custom, options = _look(kind, stacks=stacks)
    targets = []
    for number, (expression, legend) in enumerate(queries):
        target = {
            "refId": chr(ord("A") + number),
            "datasource": _SOURCE,
            "editorMode": "code",
            "expr": expression,
            "legendFormat": legend,
            "range": kind == "timeseries",
            "instant": kind != "timeseries",
        }
        targets.append(target | ({"format": "table"} if kind == "table" else {}))
    found = {
        "type": kind,
        "title": title,
        "description": description,
        "datasource": _SOURCE,
        "gridPos": {"h": height, "w": width, "x": 0, "y": 0},
        "fieldConfig": {"defaults": {"unit": unit, "custom": custom, "thresholds": steps}, "overrides": []},
        "options": options,
        "targets": targets,
    }
    if kind == "table":
        hidden = {"Time": True, "Value": True, "__name__": True, "instance": True, "job": True}
        found["transformations"] = [{"id": "organize", "options": {"excludeByName": hidden}}]
    return found


def _now() -> list[dict[str, Any]]:
    return [
        panel("stat", "Lines", "1 where a line answers.", [(f'up{{job=~"flawscope-lines.*", {_LINE}}}', "{{line}}")],
              width=12, height=5, steps=GOOD_IS_ONE),
        panel("stat", "Stations that score parts", "1 where a station is ready.",
              [(f"flawscope_ready{{{_WHERE}}}", "{{line}}/{{station}}")], width=12, height=5, steps=GOOD_IS_ONE),
        panel("stat", "Cameras", "1 where the source of a view works.",
              [(f"flawscope_camera_up{{{_WHERE}}}", "{{line}}/{{station}}/{{view}}")], width=12, height=5,
              steps=GOOD_IS_ONE),
        panel("stat", "Account, journal and self-tests", "1 where parts = accept + reject + fault + open, where the "
              "journal is written, and where golden images have their scores.",
              [(f"flawscope_account_holds{{{_LINE}}}", "{{line}} account"),
               (f"flawscope_journal_ok{{{_LINE}}}", "{{line}} journal"),
               (f"min by (line) (flawscope_selftest_ok{{{_LINE}}})", "{{line}} self-test")],
              width=12, height=5, steps=GOOD_IS_ONE),
    ]  # fmt: skip


def _verdicts() -> list[dict[str, Any]]:
    return [
        panel("timeseries", "Parts by verdict", "Parts a second, by the verdict that was given out.",
              [(f"sum by (line, station, verdict) (rate(flawscope_parts_total{{{_WHERE}}}[$__rate_interval]))",
                "{{line}}/{{station}} {{verdict}}")], unit="ops", stacks=True),
        panel("timeseries", "Faults by reason", "Faults a second. A fault is never an accept.",
              [(f'sum by (line, station, reason) (rate(flawscope_parts_total{{{_WHERE}, verdict="fault"}}'
                "[$__rate_interval]))", "{{line}}/{{station}} {{reason}}")], unit="ops", stacks=True),
        panel("timeseries", "Share of rejects and faults", "Of the parts of an hour.",
              [(f"flawscope:reject_share:rate1h{{{_WHERE}}}", "{{line}}/{{station}} reject"),
               (f"flawscope:fault_share:rate1h{{{_WHERE}}}", "{{line}}/{{station}} fault")], unit="percentunit"),
        panel("timeseries", "Scores as shares of their threshold", "Median; 1 is the threshold.",
              [("histogram_quantile(0.5, sum by (line, station, view, le) "
                f"(rate(flawscope_score_bucket{{{_WHERE}}}[$__rate_interval])))", "{{line}}/{{station}}/{{view}}")],
              unit="none"),
    ]  # fmt: skip


def _times() -> list[dict[str, Any]]:
    def quantile(share: float) -> str:
        rates = f'rate(flawscope_latency_seconds_bucket{{{_WHERE}, stage="verdict"}}[$__rate_interval])'
        return f"histogram_quantile({share}, sum by (line, station, le) ({rates}))"

    return [
        panel("timeseries", "Trigger to verdict", "p50 and p99, by the buckets of the histogram.",
              [(quantile(0.5), "{{line}}/{{station}} p50"), (quantile(0.99), "{{line}}/{{station}} p99")], unit="s"),
        panel("timeseries", "Open, late and skipped", "Parts without a verdict; verdicts after their deadline and "
              "images that were left out, a second.",
              [(f"flawscope_open_parts{{{_WHERE}}}", "{{line}}/{{station}} open"),
               (f"rate(flawscope_late_total{{{_WHERE}}}[$__rate_interval])", "{{line}}/{{station}} late"),
               (f"rate(flawscope_skipped_total{{{_WHERE}}}[$__rate_interval])", "{{line}}/{{station}} skipped")]),
    ]  # fmt: skip


def _bundles() -> list[dict[str, Any]]:
    return [
        panel("table", "Bundles in force", "By what each view decides.",
              [(f"flawscope_bundle{{{_WHERE}}} == 1", "")], height=7),
        panel("timeseries", "Generations", "Number of the set of bundles and thresholds: it grows with each change.",
              [(f"flawscope_generation{{{_WHERE}}}", "{{line}}/{{station}}")], unit="none", height=7),
        panel("timeseries", "Swaps by result", "Bundles that were changed, or not, in an hour.",
              [(f"increase(flawscope_swaps_total{{{_WHERE}}}[1h])", "{{line}}/{{station}} {{result}}")], unit="none",
              width=8),
        panel("stat", "Releases that were not taken", "1 where a release was refused, failed or was taken back.",
              [(f"flawscope_rollout_failed{{{_WHERE}}}", "{{line}}/{{station}}/{{view}}")], width=8,
              steps=GOOD_IS_ZERO),
        panel("timeseries", "Releases on their way", "1 where a release waits, is pulled or swapped in; and hours "
              "since the source of releases last answered.",
              [(f"flawscope_rollout_pending{{{_WHERE}}}", "{{line}}/{{station}}/{{view}}"),
               (f"flawscope_rollout_source_age_seconds{{{_WHERE}}} / 3600", "{{line}}/{{station}}/{{view}} hours")],
              unit="none", width=8),
    ]  # fmt: skip


def _surroundings() -> list[dict[str, Any]]:
    return [
        panel("timeseries", "Drift", "Population stability index of the last window, of quantities that are watched.",
              [(f"flawscope_drift_psi{{{_WHERE}}}", "{{line}}/{{station}}/{{view}} {{quantity}}")], unit="none"),
        panel("stat", "Quantities that drift", "How many of a view.",
              [(f"sum by (line, station, view) (flawscope_drift{{{_WHERE}}})", "{{line}}/{{station}}/{{view}}")],
              steps=GOOD_IS_ZERO),
        panel("timeseries", "Free disk", "Of the disk of the state folder.",
              [(f"flawscope_disk_free_bytes{{{_LINE}}}", "{{line}}")], unit="bytes", width=8),
        panel("timeseries", "Sinks", "Entries that a sink has not been told, and attempts that failed, a second.",
              [(f"flawscope_sink_behind{{{_LINE}}}", "{{line}} {{sink}} behind"),
               (f"rate(flawscope_sink_errors_total{{{_LINE}}}[$__rate_interval])", "{{line}} {{sink}} errors")],
              width=8),
        panel("timeseries", "Images", "Images by what became of them, a second.",
              [(f"rate(flawscope_images_total{{{_LINE}}}[$__rate_interval])", "{{line}} {{result}}")], unit="ops",
              width=8),
    ]  # fmt: skip


def _triton() -> list[dict[str, Any]]:
    return [
        panel("timeseries", "Triton: time in the queue", "Mean of a request, in microseconds.",
              [("flawscope:triton_queue_us:mean2m", "{{instance}} {{model}}")], unit="µs"),
        panel("timeseries", "Triton: requests", "A second, and those that failed.",
              [("sum by (instance, model) (rate(nv_inference_request_success[$__rate_interval]))",
                "{{instance}} {{model}}"),
               ("sum by (instance, model) (rate(nv_inference_request_failure[$__rate_interval]))",
                "{{instance}} {{model}} failed")], unit="ops"),
    ]  # fmt: skip


def _placed(rows: list[tuple[str, list[dict[str, Any]]]]) -> list[dict[str, Any]]:
    """Return all panels with numbers and places: rows below each other, panels from left to right."""
    placed: list[dict[str, Any]] = []
    top = 0
    for title, panels in rows:
        placed.append(
            {
                "id": len(placed) + 1,
                "type": "row",
                "title": title,
                "collapsed": False,
                "gridPos": {"h": 1, "w": _WIDTH, "x": 0, "y": top},
                "panels": [],
            }
        )
        top += 1
        left = height = 0
        for one in panels:
            place = one["gridPos"]
            if left + place["w"] > _WIDTH:
                top, left, height = top + height, 0, 0
            placed.append({"id": len(placed) + 1, **one, "gridPos": place | {"x": left, "y": top}})
            left, height = left + place["w"], max(height, place["h"])
        top += height
    return placed


def _variable(name: str, label: str, query: str) -> dict[str, Any]:
    return {
        "name": name,
        "label": label,
        "type": "query",
        "datasource": _SOURCE,
        "query": {"query": query, "refId": name},
        "refresh": 2,
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": ["All"], "value": ["$__all"]},
        "hide": 0,
        "skipUrlSync": False,
    }


def dashboard() -> dict[str, Any]:
    """Return the dashboard, in Grafana's classic JSON model."""
    source = {
        "name": "datasource",
        "label": "Prometheus",
        "type": "datasource",
        "query": "prometheus",
        "current": {},
        "hide": 0,
        "refresh": 1,
        "multi": False,
        "includeAll": False,
        "skipUrlSync": False,
    }
    variables = [
        source,
        _variable("line", "Line", "label_values(flawscope_ready, line)"),
        _variable("station", "Station", 'label_values(flawscope_ready{line=~"$line"}, station)'),
    ]
    rows = [
        ("Now", _now()),
        ("Verdicts", _verdicts()),
        ("Times", _times()),
        ("Bundles and releases", _bundles()),
        ("Drift, disk, sinks, images", _surroundings()),
        ("Inference servers", _triton()),
    ]
    return {
        "uid": "flawscope-fleet",
        "title": "flawscope: fleet",
        "description": "Lines of flawscope: verdicts, times, bundles and what is around them.",
        "tags": ["flawscope"],
        "schemaVersion": SCHEMA_VERSION,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "timezone": "browser",
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "templating": {"list": variables},
        "annotations": {"list": []},
        "links": [],
        "panels": _placed(rows),
    }


def text() -> str:
    """Return the content of the file."""
    return json.dumps(dashboard(), indent=2, ensure_ascii=False) + "\n"


def main() -> int:
    """Write the file, or compare it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if the file is another one")
    if not parser.parse_args().check:
        FILE.parent.mkdir(parents=True, exist_ok=True)
        FILE.write_text(text(), encoding="utf-8")
        return 0
    if not FILE.is_file() or FILE.read_text(encoding="utf-8") != text():
        print(
            f"{FILE}: expected the dashboard of the tool, got another. Run python tools/fleet_dashboard.py.",
            file=sys.stderr,
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
