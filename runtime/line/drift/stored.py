"""The reference of a view on the disk: a restart must not take a line that has drifted for the new normal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import msgspec

from flawscope.errors import FlawscopeError
from flawscope.files import storage_errors, write_bytes
from flawscope.open_files import RECORD_BYTES, read_regular
from flawscope.text import NOT_JSON, encode_json

FOLDER = "drift"
"""Folder of the references in the state folder of a line: a file a view, `STATION/VIEW.json`."""


class Reference(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The reference of one view.

    Attributes:
        bundle: Digest of the bundle that it is of.
        revision: Revision of the threshold that it is of: another one accepts other images.
        size: Images that it needs.
        since: When it began, in UTC.
        values: Quantity -> values, in the order in which they came.
    """

    bundle: str
    revision: int
    size: int
    since: str
    values: dict[str, Sequence[float]]

    def __post_init__(self) -> None:
        """Refuse values that are no numbers."""
        if not all(math.isfinite(value) for values in self.values.values() for value in values):
            raise ValueError("expected finite values, got others")


def path_of(state: Path, station: str, view: str) -> Path:
    """Return the file of a view's reference."""
    return state / FOLDER / station / f"{view}.json"


def read_reference(path: Path) -> Reference | None:
    """Return a reference, or None where there is none.

    Raises:
        OSError: If it cannot be read.
        DecodeError: Of msgspec, if it is broken.
    """
    try:
        return msgspec.json.decode(read_regular(path, RECORD_BYTES), type=Reference)
    except FileNotFoundError:
        return None


def write_reference(path: Path, reference: Reference) -> str:
    """Write a reference; returns why it could not be, or an empty text."""
    try:
        with storage_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, encode_json(reference))
    except (FlawscopeError, OSError) as err:
        return str(err)
    return ""


UNREADABLE = (OSError, *NOT_JSON)
"""What `read_reference` raises."""
