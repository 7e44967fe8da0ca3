"""A writer of zip files that sets every field by itself, and a strategy of such files with wrong ones (APPNOTE.TXT)."""

from __future__ import annotations

import struct
import zlib
from typing import Any

from hypothesis import strategies as st

from fuzzing.changes import NUMBERS, changed_bytes

_LOCAL = (
    *(("signature", "I"), ("version", "H"), ("flags", "H"), ("method", "H"), ("time", "H"), ("date", "H")),
    *(("crc", "I"), ("packed", "I"), ("size", "I"), ("name_length", "H"), ("extra_length", "H")),
)
_CENTRAL = (
    *(("signature", "I"), ("made_by", "H"), *_LOCAL[1:], ("comment_length", "H"), ("disk", "H")),
    *(("internal", "H"), ("external", "I"), ("offset", "I")),
)
_END = (
    *(("signature", "I"), ("disk", "H"), ("first_disk", "H"), ("here", "H"), ("entries", "H")),
    *(("size", "I"), ("offset", "I"), ("comment_length", "H")),
)
_NAMES = (
    *("", "/", ".", "..", "../x", "/x", "x/", "golden/", "C:\\x", "a\\b", "x\x00y", "manifest.json", "score.onnx"),
    *("SCORE.ONNX", "x" * 300, "\x1b[2J", "golden//0.png", "./score.onnx", "__MACOSX/x", ".DS_Store", "._x"),
)
Record = dict[str, Any]


def write_zip(files: dict[str, bytes]) -> bytes:
    """Return an ordinary zip file without compression."""
    return _assemble(*_records(files), files_data=list(files.values()))


def _records(files: dict[str, bytes]) -> tuple[list[Record], list[Record], Record]:
    """Return the local headers, the central directory and its end, all right; places are filled in when assembled."""
    local, central = [], []
    for name, data in files.items():
        raw = name.encode()
        common: Record = {"version": 20, "flags": 0, "method": 0, "time": 0, "date": 33, "crc": zlib.crc32(data)}
        common |= {"packed": len(data), "size": len(data), "name": raw, "extra": b"", "name_length": len(raw)}
        common["extra_length"] = 0
        local.append({**common, "signature": 0x04034B50})
        more: Record = {"signature": 0x02014B50, "made_by": 788, "comment_length": 0, "disk": 0, "internal": 0}
        central.append({**common, **more, "external": 0o100644 << 16, "offset": None})
    end: Record = {"signature": 0x06054B50, "disk": 0, "first_disk": 0, "here": len(files), "entries": len(files)}
    return local, central, {**end, "size": None, "offset": None, "comment_length": 0}


def _pack(record: Record, layout: tuple[tuple[str, str], ...]) -> bytes:
    limits = {"H": 1 << 16, "I": 1 << 32}
    fields = b"".join(struct.pack(f"<{kind}", int(record[name]) % limits[kind]) for name, kind in layout)
    return fields + record.get("name", b"") + record.get("extra", b"")


def _assemble(local: list[Record], central: list[Record], end: Record, files_data: list[bytes]) -> bytes:
    out = bytearray()
    places = []
    for record, data in zip(local, files_data, strict=True):
        places.append(len(out))
        out += _pack(record, _LOCAL) + data
    start = len(out)
    for index, record in enumerate(central):
        # A doubled entry points to where its original lies.
        place = places[record.get("index", index) % len(places)]
        out += _pack({**record, "offset": place if record["offset"] is None else record["offset"]}, _CENTRAL)
    whole = {**end, "size": len(out) - start if end["size"] is None else end["size"]}
    whole["offset"] = start if end["offset"] is None else end["offset"]
    return bytes(out + _pack(whole, _END) + end.get("comment", b""))


@st.composite
def changed_zip(draw: st.DrawFn, files: dict[str, bytes]) -> bytes:
    """Return a zip file of these files with wrong fields, members that overlap or repeat, and odd names."""
    if draw(st.integers(0, 4)) == 0:
        return draw(changed_bytes(write_zip(files)))
    local, central, end = _records(files)
    data = list(files.values())
    for index, record in enumerate(central):
        record["index"] = index
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, len(data) - 1))
        kind = draw(
            st.sampled_from(("local", "central", "both", "end", "name", "double", "overlap", "lose", "around", "wide"))
        )
        if kind in ("local", "central", "both"):
            names = [name for name, _ in (_LOCAL if kind != "central" else _CENTRAL)]
            name, value = draw(st.sampled_from(names)), draw(_number(len(data[place])))
            for records in {"local": [local], "central": [central], "both": [local, central]}[kind]:
                records[min(place, len(records) - 1)][name] = value
        elif kind == "end":
            end[draw(st.sampled_from([name for name, _ in _END]))] = draw(_number(len(data)))
        elif kind == "name":
            raw = draw(st.sampled_from((*_NAMES, *files))).encode()
            flags = draw(st.sampled_from((0, 0x800, 1, 0x40, 0x2000, 8)))
            for records in draw(st.sampled_from(([local, central], [local], [central]))):
                records[min(place, len(records) - 1)].update(name=raw, name_length=len(raw), flags=flags)
        elif kind == "double":
            central.insert(draw(st.integers(0, len(central))), dict(central[min(place, len(central) - 1)]))
            end["here"] = end["entries"] = len(central)
        elif kind == "overlap":
            record = central[min(place, len(central) - 1)]
            record["offset"] = draw(st.integers(0, sum(map(len, data)) + 500))
            record["packed"] = record["size"] = draw(_number(len(data[place])))
        elif kind == "lose" and len(central) > 1:
            del central[min(place, len(central) - 1)]
            end["here"] = end["entries"] = len(central)
        elif kind == "around":
            piece = draw(st.binary(max_size=80))
            data[place] = piece + data[place] if draw(st.booleans()) else data[place] + piece
        elif kind == "wide":
            # The field of ZIP64: sizes and place in 64 bit, taken where the ordinary fields are all ones.
            extra = struct.pack("<HHQQQ", 1, 24, *(draw(_number(len(data[place]))) % (1 << 64) for _ in range(3)))
            record = central[min(place, len(central) - 1)]
            record.update(extra=extra, extra_length=len(extra), version=45, size=(1 << 32) - 1, packed=(1 << 32) - 1)
    whole = _assemble(local, central, end, data)
    return draw(changed_bytes(whole, most=1)) if draw(st.integers(0, 7)) == 0 else whole


def _number(near: int) -> st.SearchStrategy[int]:
    return st.sampled_from((*NUMBERS, near, near + 1, near - 1, 8, 12, 14, 0o120777 << 16, 0o040755 << 16)).map(abs)
