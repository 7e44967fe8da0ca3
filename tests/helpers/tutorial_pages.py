"""Tutorials as programs: their commands are run in order, their files are written, and what they print is compared.

A block `console` has lines `$ COMMAND`, each followed by what it printed. `...` stands for anything within a line, and
lines may be left out. Numbers may differ a little, because other processors round otherwise. A block with
`title="NAME"` is a file. Other blocks are for the eye.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import NamedTuple

BLOCK = re.compile(r"^```(\w+)([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
TOLERANCE = 0.15
"""Largest relative difference of a printed number with a decimal point."""


class Step(NamedTuple):
    """A command with what it prints, or a file.

    Attributes:
        command: Words of the command; empty for a file.
        shown: Lines that the page shows, or those of the file.
        file: Name of the file; empty for a command.
        status: Exit status of the command; a comment `# exit status 1` behind it says another than 0.
    """

    command: list[str]
    shown: list[str]
    file: str = ""
    status: int = 0


def steps(page: Path, changes: dict[str, str]) -> list[Step]:
    """Return the steps of a tutorial.

    Args:
        page: Its Markdown.
        changes: Text of the page -> what is taken in its place; each has to occur.
    """
    text = page.read_text(encoding="utf-8")
    for old, new in changes.items():
        assert old in text, f"{page.name}: expected {old!r}, got none"
        text = text.replace(old, new)
    found: list[Step] = []
    for kind, info, body in BLOCK.findall(text):
        if named := re.search(r'title="([^"]+)"', info):
            found.append(Step([], body.splitlines(), named[1]))
        elif kind == "console":
            found += _commands(body)
    return found


def _commands(body: str) -> list[Step]:
    found: list[Step] = []
    for line in body.replace("\\\n", " ").splitlines():
        if not line.startswith("$ "):
            found[-1].shown.append(line)
            continue
        said = re.search(r"# exit status (\d)", line)
        found.append(Step(shlex.split(line[2:], comments=True), [], status=int(said[1]) if said else 0))
    return found


def unmatched(shown: list[str], *streams: str, numbers: bool) -> str:
    """Return the first line of a page that a command did not print, in this order; empty where it printed all.

    Args:
        shown: Lines of the page.
        streams: What the command printed, stdout and stderr: each has its own order.
        numbers: Compare numbers too; without it any number will do, as for a run on smaller parts.
    """
    left = [stream.splitlines() for stream in streams]
    for line in shown:
        if not line.strip(" ."):
            continue
        for lines in left:
            found = next((i for i, other in enumerate(lines) if same_line(line, other, numbers=numbers)), None)
            if found is not None:
                del lines[: found + 1]
                break
        else:
            return line
    return ""


def same_line(shown: str, printed: str, *, numbers: bool) -> bool:
    """Return whether a printed line is the one that the page shows, with any amount of space between words."""
    parts = re.split(r"\s*\.\.\.\s*", shown.strip())
    match = re.fullmatch(".*".join(_pattern(part) for part in parts), printed.strip())
    if match is None or not numbers:
        return match is not None
    wanted = [number for part in parts for number in NUMBER.findall(part)]
    return all(_is_close(want, got) for want, got in zip(wanted, match.groups(), strict=True))


def _pattern(text: str) -> str:
    """Return an expression for a piece of a line, with a group in place of each number."""
    literals = (r"\s+".join(map(re.escape, re.split(r"\s+", piece))) for piece in NUMBER.split(text))
    return f"({NUMBER.pattern})".join(literals)


def _is_close(want: str, got: str) -> bool:
    if "." not in want:
        return want == got
    first, second = float(want.replace(",", "")), float(got.replace(",", ""))
    return abs(first - second) <= TOLERANCE * max(abs(first), 0.1)
