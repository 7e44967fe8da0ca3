"""Passwords from files: never from an argument, which everybody on the machine sees."""

from __future__ import annotations

import sys
from pathlib import Path

from flawscope.errors import ArgumentError
from flawscope.open_files import SETTINGS_BYTES, read_regular


def first_line(place: str) -> str:
    """Return the password in a file, its only line; `-` is standard input.

    Raises:
        ArgumentError: If it cannot be read, or is no single line.
    """
    try:
        data = sys.stdin.buffer.read(SETTINGS_BYTES) if place == "-" else read_regular(Path(place), SETTINGS_BYTES)
        lines = data.decode().splitlines()
    except OSError as err:
        raise ArgumentError(f"{place}: expected a file with a password, got: {err.strerror or err}.") from None
    except UnicodeDecodeError:
        # Not `from err`: the error holds the bytes.
        raise ArgumentError(f"{place}: expected a password in UTF-8, got other bytes.") from None
    if len([line for line in lines if line]) != 1 or not lines[0]:
        raise ArgumentError(f"{place}: expected one line with a password, got {len(lines)} lines. Write it alone.")
    return lines[0]
