"""Lists of images: text with a path or URL a line, from a file or from standard input."""

from __future__ import annotations

import codecs
import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from flawscope.errors import ArgumentError
from flawscope.open_files import open_regular

STANDARD_INPUT = "-"
_LONGEST = 1 << 15
"""Bytes of a line; the longest path has 4096."""


def read_lines(name: str) -> Iterator[str]:
    """Yield the lines of a list; ends of Windows, a byte order mark and blank lines do not count.

    Bytes that are not UTF-8 are kept as `os.fsdecode` keeps them: names of files may have any.

    Args:
        name: The file; `-` for standard input.

    Raises:
        ArgumentError: If it cannot be read, is no such text, or has no line.
    """
    shown = "standard input" if name == STANDARD_INPUT else name
    count = number = 0
    with contextlib.ExitStack() as stack:
        file = _opened(name, shown, stack)
        while line := file.readline(_LONGEST + 2):
            number += 1
            if number == 1:
                if line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
                    raise ArgumentError(f"{shown}: expected text in UTF-8, got UTF-16. Save it as UTF-8.")
                line = line.removeprefix(codecs.BOM_UTF8)
            line = line.removesuffix(b"\n").removesuffix(b"\r")
            if len(line) > _LONGEST or b"\0" in line:
                raise ArgumentError(
                    f"{shown}: expected text with a path or URL a line, got {_kind_of(line)} in line {number}. "
                    "Name images, archives and tables without the @ of a list."
                )
            if line.strip():
                count += 1
                yield os.fsdecode(line)
    if not count:
        raise ArgumentError(f"{shown}: expected a path or URL a line, got no line. Write the images into it.")


def _opened(name: str, shown: str, stack: contextlib.ExitStack) -> BinaryIO:
    if name == STANDARD_INPUT:
        if sys.stdin is None:  # whoever started the program closed it
            raise ArgumentError(f"{shown}: expected a list of images, got: it is closed. Name the list as @FILE.")
        return sys.stdin.buffer
    try:
        return stack.enter_context(open_regular(Path(name)))
    except OSError as err:
        raise ArgumentError(
            f"{shown}: expected a list of images, got: {err.strerror or err}. Check its name and permissions."
        ) from err


def _kind_of(line: bytes) -> str:
    return "a null byte" if b"\0" in line else f"more than {_LONGEST:,} bytes"
