"""Files of JSON as a person or a full disk may leave them: cut, of another form, without a key, with another value."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

VALUES = (None, "x", -1, 0, 10**30, 1e300, True, [], ["x"], {}, {"x": 1})
"""What stands in the place of a value."""


def damages(whole: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield the name of a damage of an object in JSON, and the file with it; each key is damaged, two levels deep."""
    plain = json.loads(whole)
    yield from {
        "empty": b"",
        "cut": whole[: len(whole) // 2],
        "zeros": bytes(len(whole)),
        "other encoding": whole.decode().encode("utf-16"),
        "deep": b"[" * 100_000,
        "not UTF-8": whole.replace(b"e", b"\xff"),
        "list": b"[]",
        "no keys": b"{}",
        "number": b"17",
    }.items()
    for path in _paths(plain):
        name = ".".join(path)
        yield f"without {name}", _encoded(plain, path, missing=True)
        for value in VALUES:
            yield f"{name} = {value!r}", _encoded(plain, path, value)


def _paths(plain: Any) -> Iterator[tuple[str, ...]]:
    for key, value in plain.items():
        yield (key,)
        if isinstance(value, dict):
            yield from ((key, inner) for inner in value)


def _encoded(plain: Any, path: tuple[str, ...], value: Any = None, *, missing: bool = False) -> bytes:
    copied = json.loads(json.dumps(plain))
    *outer, last = path
    place = copied[outer[0]] if outer else copied
    if missing:
        del place[last]
    else:
        place[last] = value
    return json.dumps(copied).encode()
