"""Small records in the state folder, as JSON: replaced whole, so that any start finds one of them or none."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import msgspec

from flawscope.errors import StorageError
from flawscope.files import write_bytes
from flawscope.open_files import SETTINGS_BYTES, read_regular
from flawscope.text import NOT_JSON, encode_json

_Record = TypeVar("_Record", bound=msgspec.Struct)


def read_record(path: Path, kind: type[_Record], what: str, then: str) -> _Record | None:
    """Return the record of a file; None where there is none.

    Args:
        path: The file.
        kind: What it holds.
        what: The same in words, for the message.
        then: What happens where it cannot be read, a sentence.

    Raises:
        StorageError: If it is broken or cannot be read.
    """
    try:
        return msgspec.json.decode(read_regular(path, SETTINGS_BYTES), type=kind)
    except FileNotFoundError:
        return None
    except (OSError, *NOT_JSON) as err:
        raise StorageError(f"{path}: expected {what}, got: {err}. {then}") from err


def write_record(path: Path, record: msgspec.Struct) -> None:
    """Replace a file; on the disk before it returns.

    Raises:
        StorageError: If it cannot be written; the one before stays.
    """
    write_bytes(path, msgspec.json.format(encode_json(record), indent=1) + b"\n", durable=True)
