"""Commands of Markdown pages, as a reader would paste them: lines of code blocks, Python blocks, and files to write.

In a block with lines `$ COMMAND` these are the commands, and the rest is what they print. In another block a line is a
command when it begins with a known program. A block with `title="NAME"` is a file that the reader writes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

# A line of a block without `$` is a command when it begins with one of these; anything else is what a command printed.
_OTHERS = "pip source . git mkdir cp mv ls cd export echo cat curl unzip for rm"
PROGRAMS = frozenset(["flawscope", "make", "python", "python3", *_OTHERS.split()])
SHELLS = frozenset(["", "bash", "sh", "shell", "console"])
_FENCE = re.compile(r"^(\s*)(```+|~~~+)\s*([\w-]*)(.*)")
_TITLE = re.compile(r'\btitle="([^"]+)"')
_STATUS = re.compile(r"#.*\bexit status (\d+)")
_LEFT_OUT = re.compile(r"^\s*<!--\s*try-readme:\s*(.+?)\s*-->\s*$")


@dataclass(frozen=True)
class Command:
    """One thing to paste.

    Attributes:
        page: Page that it is on.
        line: Line of the page, from 1.
        text: What is pasted: lines of the shell, a whole Python script, or the content of a file.
        kind: `shell`, `python`, or `file`.
        left_out: Why it is not run, from a comment `<!-- try-readme: REASON -->` before its block; empty to run it.
        name: Name of a file; empty for what is no file.
        status: Exit status that the page announces by a comment `# exit status N`.
    """

    page: str
    line: int
    text: str
    kind: str
    left_out: str = ""
    name: str = ""
    status: int = 0


def commands_of(page: str, text: str) -> list[Command]:
    """Return the commands of a page in their order.

    Raises:
        ValueError: A code block has no end.
    """
    found: list[Command] = []
    lines = text.splitlines()
    reason, place = "", 0
    while place < len(lines):
        line = lines[place]
        fence = _FENCE.match(line)
        told = _LEFT_OUT.match(line)
        if told:
            reason, place = told[1], place + 1
        elif fence:
            end = _end_of_fence(lines, place, fence)
            if end is None:
                raise ValueError(
                    f"{page}, line {place + 1}: expected an end of this code block, got the end of the page"
                )
            body = lines[place + 1 : end]
            title = _TITLE.search(fence[4])
            if title:
                found.append(Command(page, place + 2, "\n".join(body) + "\n", "file", reason, title[1]))
            else:
                found += _of_block(page, body, place + 2, fence[3].lower(), reason)
            reason, place = "", end + 1
        elif line.startswith("    ") and (place == 0 or _may_begin(lines[place - 1])):
            end = place
            while end < len(lines) and (lines[end].startswith("    ") or not lines[end].strip()):
                end += 1
            found += _of_block(page, lines[place:end], place + 1, "", reason)
            reason, place = "", end
        else:
            if line.strip():
                reason = ""
            place += 1
    return found


def _may_begin(before: str) -> bool:
    """Return whether an indented line after this one begins a code block: Markdown wants an empty line or a heading."""
    return not before.strip() or before.startswith("#") or bool(_LEFT_OUT.match(before))


def _end_of_fence(lines: list[str], start: int, fence: re.Match[str]) -> int | None:
    for place in range(start + 1, len(lines)):
        if lines[place].strip() == fence[2]:
            return place
    return None


def _of_block(page: str, lines: list[str], first: int, language: str, reason: str) -> list[Command]:
    """Return the commands of one code block; `first` is the number of its first line."""
    if language in ("python", "py"):
        return [Command(page, first, "\n".join(lines) + "\n", "python", reason)]
    if language not in SHELLS:
        return []
    found: list[Command] = []
    prompted = any(line.strip().startswith("$ ") for line in lines)
    place = 0
    while place < len(lines):
        start, line = place, lines[place].strip()
        text = line.removeprefix("$ ")
        place += 1
        if line == text if prompted else text.split(" ", 1)[0] not in PROGRAMS:
            continue
        while text.endswith("\\") and place < len(lines):
            text += "\n" + lines[place].strip()
            place += 1
        said = _STATUS.search(text)
        status = int(said[1]) if said else 0
        found.append(Command(page, first + start, text, "shell", reason, status=status))
    return found
