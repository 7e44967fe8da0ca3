"""Rows of the journal and the records that they hold, in both directions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import msgspec

from flawscope.errors import DataError
from flawscope.runtime.line.journal.chain import Kind, canonical
from flawscope.runtime.line.journal.events import EventRecord
from flawscope.runtime.line.parts import PartRecord
from flawscope.text import NOT_JSON, storable

Row = dict[str, Any]
"""Columns that are hashed -> their values, as SQLite keeps them."""


def part_row(part: PartRecord) -> Row:
    """Return the row of a part.

    A score that is no finite number is stored as none, text that has no UTF-8 with escapes.

    Raises:
        TypeError: If a value has not the type that the record says.
        ValueError: Likewise, or for a text that is no number.
        OverflowError: If a whole number has more than 64 bits.
    """
    latency = {stage: float(ms) for stage, ms in part.latency_ms.items() if math.isfinite(ms)}
    return {
        "seq": _whole(part.seq),
        "station": _text(part.station),
        "part_id": _text(part.part_id),
        "utc": _text(part.utc),
        "mono_ns": _whole(part.mono_ns),
        "boot_id": _text(part.boot_id),
        "generation": _whole(part.generation),
        "verdict": _text(part.verdict),
        "reason": _text(part.reason),
        "detail": _text(part.detail),
        "score": _number(part.score),
        "threshold": _number(part.threshold),
        "threshold_revision": None if part.threshold_revision is None else _whole(part.threshold_revision),
        "latency_json": canonical(_plain(latency)).decode(),
        "views_json": canonical(_plain(msgspec.to_builtins(part.views))).decode(),
        "revision": _whole(part.revision),
    }


def event_row(event: EventRecord) -> Row:
    """Return the row of an event; it raises as `part_row`."""
    row = {name: _text(value) for name, value in msgspec.structs.asdict(event).items() if name != "mono_ns"}
    return {**row, "mono_ns": _whole(event.mono_ns)}


def part_of(row: Mapping[str, Any]) -> PartRecord:
    """Return the part of a row.

    Raises:
        DataError: If the row holds no part, as after a change by hand.
    """
    try:
        return msgspec.convert(_part_fields(row), PartRecord)
    except msgspec.ValidationError as err:
        raise _no_part(row, err) from err


def _part_fields(row: Mapping[str, Any]) -> dict[str, Any]:
    fields = {name: value for name, value in row.items() if name in PartRecord.__struct_fields__}
    try:
        fields["latency_ms"] = msgspec.json.decode(row["latency_json"])
        fields["views"] = msgspec.json.decode(row["views_json"])
    except (*NOT_JSON, TypeError) as err:
        raise _no_part(row, err) from err
    return fields


def _no_part(row: Mapping[str, Any], err: Exception) -> DataError:
    return DataError(
        f"part {row.get('seq')} of the journal: expected its record, got something else: {err}. Somebody has changed "
        "the file: verify the journal."
    )


def entry_of(line: str, kind: Kind, row: Mapping[str, Any]) -> dict[str, Any]:
    """Return an entry as sinks get it.

    Args:
        line: Name of the line.
        kind: Kind of the entry.
        row: Its columns, `link` and `hash` among them.

    Returns:
        `line`, `link`, `kind` and `hash`, and the fields of `PartRecord` or `EventRecord`, or of a head: `head_link`,
        `head_hash`, `seq`, `utc`, `key` and `signature`.

    Raises:
        DataError: If the row holds no part, as after a change by hand.
    """
    entry: dict[str, Any] = {"line": line, "link": row["link"], "kind": kind}
    if kind == "part":
        entry.update(_part_fields(row))
    else:
        entry.update({name: value for name, value in row.items() if name not in ("line", "link", "prev_hash", "hash")})
    entry["hash"] = row["hash"]
    return entry


def _whole(value: int) -> int:
    number = int(value)
    if number != value:
        raise ValueError(f"expected a whole number, got {value!r}")
    if not -(1 << 63) <= number < 1 << 63:
        raise OverflowError(f"expected a number of at most 64 bits, got {number}")
    return number


def _text(value: str) -> str:
    if not isinstance(value, str):
        raise TypeError(f"expected a text, got {value!r}")
    return storable(value)


def _number(value: float | None) -> float | None:
    # SQLite keeps no NaN and no negative zero: what is hashed must be what it gives back.
    return float(value) + 0.0 if value is not None and math.isfinite(value) else None


def _plain(value: Any) -> Any:
    """Return built-in values with text that has UTF-8, and finite numbers."""
    if isinstance(value, str):
        return storable(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {storable(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
