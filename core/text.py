"""Text from strangers: names of files, folders and defects, which may hold control characters and broken UTF-8.

A terminal obeys control characters: a file name could write the clipboard, or forge the line of another image. Python
keeps a byte of a name that is not UTF-8 as a surrogate (`os.fsdecode`), which no strict encoding takes.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import Any, Literal

import msgspec

# Controls (C0, DEL, C1), marks and overrides of direction, which reorder what is read, separators of lines, surrogates.
_OBEYED = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
NOT_JSON = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What msgspec raises for bytes that are no JSON of the expected form; its own error is only the first."""

_SURROGATE = re.compile("[\ud800-\udfff]")


def printable(text: str) -> str:
    r"""Return a text in one line without control characters and surrogates, each shown as `\xNN` or `\uNNNN`.

    A byte that is not UTF-8 is shown as that byte, `\xNN`. Backslashes stay: what is shown is for reading.
    """
    return _OBEYED.sub(_escaped, text)


def storable(text: str) -> str:
    """Return a text that can be encoded as UTF-8: each surrogate as `printable` shows it, all else as it was."""
    return _SURROGATE.sub(_escaped, text)


def _escaped(match: re.Match[str]) -> str:
    code = ord(match[0])
    if 0xDC80 <= code <= 0xDCFF:  # how os.fsdecode keeps the bytes 80 to FF
        code -= 0xDC00
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def name_bytes(name: str) -> bytes | None:
    """Return the bytes of a file name that is not UTF-8, or None where the text itself says the name."""
    return os.fsencode(name) if _SURROGATE.search(name) else None


def encode_json(
    value: Any, *, order: Literal["deterministic", "sorted"] | None = None, enc_hook: Callable[[Any], Any] | None = None
) -> bytes:
    """Return a value as JSON in UTF-8; text that has no UTF-8 as `storable` writes it.

    Args:
        value: What msgspec can encode.
        order: Order of keys, as in `msgspec.json.encode`.
        enc_hook: Makes values encodable that msgspec does not know.
    """
    try:
        return msgspec.json.encode(value, order=order, enc_hook=enc_hook)
    except UnicodeEncodeError:
        plain = msgspec.to_builtins(value, str_keys=True, order=order, enc_hook=enc_hook)
        return msgspec.json.encode(_storable(plain))


def _storable(plain: Any) -> Any:
    if isinstance(plain, str):
        return storable(plain)
    if isinstance(plain, list | tuple):
        return [_storable(item) for item in plain]
    if isinstance(plain, dict):
        return {_storable(key): _storable(item) for key, item in plain.items()}
    return plain


def printable_json(data: bytes, encoding: str = "utf-8") -> str:
    r"""Return JSON for a terminal: the same values, with control characters inside of texts as `\uNNNN`.

    Line ends and spaces between values stay, so an indented text stays indented.

    Args:
        data: The JSON, in UTF-8.
        encoding: What the terminal can show; letters that it lacks become `\uNNNN` too.
    """
    # JSON escapes the first 32 itself; those that are left lie inside of texts, where \uNNNN means the same.
    text = _OBEYED.sub(lambda match: match[0] if match[0] == "\n" else f"\\u{ord(match[0]):04x}", data.decode())
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        text = re.sub(r"[^\x00-\x7f]", _json_escape, text)
    return text


def _json_escape(match: re.Match[str]) -> str:
    # JSON has four digits; beyond them it takes the two halves of UTF-16.
    halves = match[0].encode("utf-16-be")
    return "".join(f"\\u{halves[place : place + 2].hex()}" for place in range(0, len(halves), 2))
