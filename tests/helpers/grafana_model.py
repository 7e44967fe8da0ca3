"""The parts of Grafana's dashboard model that a dashboard of ours uses, as a JSON schema that refuses everything else.

Written by Grafana's own description of the model (kind `dashboard`, and the panel options of `timeseries`, `stat` and
`table`), whose types, required fields and allowed values it has: no package brings a JSON schema of it.
`grafana_foundation_sdk`, which Grafana makes of that description, reads the same file in another test.
"""

from __future__ import annotations

from typing import Any


def _object(required: str, **properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "required": required.split(),
        "properties": properties,
        "additionalProperties": False,
    }


_TEXT = {"type": "string", "minLength": 1}
_BOOL = {"type": "boolean"}
_SOURCE = _object("type uid", type={"const": "prometheus"}, uid=_TEXT)
_PLACE = _object(
    "h w x y",
    h={"type": "integer", "minimum": 1},
    w={"type": "integer", "minimum": 1, "maximum": 24},
    x={"type": "integer", "minimum": 0, "maximum": 23},
    y={"type": "integer", "minimum": 0},
)
_TARGET = _object(
    "refId datasource expr",
    refId={"type": "string", "pattern": "^[A-Z]$"},
    datasource=_SOURCE,
    editorMode={"enum": ["code", "builder"]},
    expr=_TEXT,
    legendFormat={"type": "string"},
    format={"enum": ["time_series", "table", "heatmap"]},
    range=_BOOL,
    instant=_BOOL,
)
_CUSTOM = _object(
    "",
    drawStyle={"enum": ["line", "bars", "points"]},
    fillOpacity={"type": "number", "minimum": 0, "maximum": 100},
    showPoints={"enum": ["auto", "never", "always"]},
    stacking=_object("mode", mode={"enum": ["none", "normal", "percent"]}, group=_TEXT),
)
_STEP = _object("value color", value={"type": ["number", "null"]}, color=_TEXT)
_FIELDS = _object(
    "defaults overrides",
    defaults=_object(
        "unit",
        unit=_TEXT,
        custom=_CUSTOM,
        thresholds=_object(
            "mode steps",
            mode={"enum": ["absolute", "percentage"]},
            steps={"type": "array", "minItems": 1, "items": _STEP},
        ),
    ),
    overrides={"type": "array", "maxItems": 0},
)
_OPTIONS = {
    "timeseries": _object(
        "legend tooltip",
        legend=_object(
            "displayMode placement showLegend calcs",
            displayMode={"enum": ["list", "table", "hidden"]},
            placement={"enum": ["bottom", "right"]},
            showLegend=_BOOL,
            calcs={"type": "array", "items": _TEXT},
        ),
        tooltip=_object(
            "mode sort", mode={"enum": ["single", "multi", "none"]}, sort={"enum": ["asc", "desc", "none"]}
        ),
    ),
    "stat": _object(
        "reduceOptions colorMode graphMode textMode orientation justifyMode",
        reduceOptions=_object(
            "calcs", calcs={"type": "array", "items": _TEXT}, fields={"type": "string"}, values=_BOOL
        ),
        colorMode={"enum": ["value", "background", "background_solid", "none"]},
        graphMode={"enum": ["none", "line", "area"]},
        textMode={"enum": ["auto", "value", "value_and_name", "name", "none"]},
        orientation={"enum": ["auto", "vertical", "horizontal"]},
        justifyMode={"enum": ["auto", "center"]},
    ),
    "table": _object("showHeader", showHeader=_BOOL),
}
_ROW = _object(
    "id type title collapsed gridPos panels",
    id={"type": "integer", "minimum": 1},
    type={"const": "row"},
    title=_TEXT,
    collapsed=_BOOL,
    gridPos=_PLACE,
    panels={"type": "array", "maxItems": 0},
)


def _panel(kind: str) -> dict[str, Any]:
    return _object(
        "id type title description datasource gridPos fieldConfig options targets",
        id={"type": "integer", "minimum": 1},
        type={"const": kind},
        title=_TEXT,
        description=_TEXT,
        datasource=_SOURCE,
        gridPos=_PLACE,
        fieldConfig=_FIELDS,
        options=_OPTIONS[kind],
        targets={"type": "array", "minItems": 1, "items": _TARGET},
        transformations={"type": "array", "items": _object("id options", id=_TEXT, options={"type": "object"})},
    )


_VARIABLE = _object(
    "name type query",
    name={"type": "string", "pattern": "^[a-z_]+$"},
    label=_TEXT,
    type={"enum": ["query", "datasource"]},
    datasource=_SOURCE,
    query={"anyOf": [_TEXT, _object("query refId", query=_TEXT, refId=_TEXT)]},
    # 1: when the dashboard is loaded; 2: when the time range changes as well.
    refresh={"enum": [0, 1, 2]},
    sort={"enum": list(range(9))},
    multi=_BOOL,
    includeAll=_BOOL,
    allValue=_TEXT,
    current={"type": "object"},
    hide={"enum": [0, 1, 2]},
    skipUrlSync=_BOOL,
)

DASHBOARD: dict[str, Any] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    **_object(
        "uid title schemaVersion panels templating time editable graphTooltip",
        uid={"type": "string", "pattern": "^[A-Za-z0-9_-]{8,40}$"},
        title=_TEXT,
        description=_TEXT,
        tags={"type": "array", "items": _TEXT},
        schemaVersion={"type": "integer", "minimum": 36, "maximum": 42},
        version={"type": "integer", "minimum": 1},
        editable=_BOOL,
        graphTooltip={"enum": [0, 1, 2]},
        timezone={"enum": ["", "utc", "browser"]},
        refresh={"type": "string", "pattern": "^[0-9]+[smh]$"},
        time=_object("from to", **{"from": _TEXT, "to": _TEXT}),
        templating=_object("list", list={"type": "array", "items": _VARIABLE}),
        annotations=_object("list", list={"type": "array", "maxItems": 0}),
        links={"type": "array", "maxItems": 0},
        panels={"type": "array", "items": {"oneOf": [_ROW, *map(_panel, _OPTIONS)]}},
    ),
}
"""Schema of a dashboard."""
