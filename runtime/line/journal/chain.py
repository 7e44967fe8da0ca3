"""The chain over all entries of a journal: what is hashed, byte for byte.

It is a public format: `docs/line-journal.md` has a program of a few lines that computes it without flawscope.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Literal

Kind = Literal["part", "event", "head"]


def canonical(value: Any) -> bytes:
    r"""Return a value as JSON, in the one way that is hashed and signed.

    Keys are sorted, there are no spaces, text is ASCII with `\uXXXX` for all else, and numbers are written as Python
    writes them (`repr`). It is what `json.dumps(value, sort_keys=True, separators=(",", ":"))` gives.

    Args:
        value: Built-in values alone; numbers are finite.
    """
    # Not msgspec: it writes 1e16 and Python 1e+16, and whoever checks a journal has Python, but not our msgspec.
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def entry_hash(previous: str, kind: Kind, link: int, record: Mapping[str, Any]) -> str:
    """Return the hash of an entry: SHA-256 of the hash before it, as hex digits, and the entry as canonical JSON.

    Args:
        previous: Hash of the entry before, or of the beginning.
        kind: Kind of the entry.
        link: Its place in the chain.
        record: Columns of its row -> their values, without `link`, `prev_hash` and `hash`.
    """
    return hash_of(previous, entry_of_chain(kind, link, record))


def entry_of_chain(kind: Kind, link: int, record: Mapping[str, Any]) -> bytes:
    """Return an entry as canonical JSON; see `entry_hash`."""
    return canonical({"kind": kind, "link": link, "record": dict(record)})


def hash_of(previous: str, entry: bytes) -> str:
    """Return the hash of an entry that is canonical JSON already; see `entry_hash`."""
    return hashlib.sha256(previous.encode() + entry).hexdigest()


def beginning_hash(beginning: Mapping[str, Any]) -> str:
    """Return what the first entry is chained to: the SHA-256 of what the journal says of itself."""
    return hashlib.sha256(canonical({"journal": dict(beginning)})).hexdigest()
