"""Patterns of paths and URLs: `*`, `?`, `[...]` within a name, and `**` over any number of folders."""

from __future__ import annotations

import re

from flawscope.errors import ArgumentError

_MAGIC = re.compile(r"[*?\[]")


def has_magic(text: str) -> bool:
    """Return whether a text is a pattern."""
    return _MAGIC.search(text) is not None


class Pattern:
    """A pattern; what lies below a folder that it matches counts, too, as in a shell, which would name the folder.

    Args:
        text: The pattern.

    Attributes:
        text: The pattern.
        root: The folder above all that it can match: its parts before the first with a special character; empty for
            the working folder.
        parts: The parts below the root.
        literal: The text before the first special character, which all that it matches begins with.

    Raises:
        ArgumentError: If it is none, as with letters from z to a. A `[` that no `]` ends is that letter.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        scheme, mark, path = text.rpartition("://")
        # Repeated slashes and `./` mean nothing in a path, but they would not match.
        names = [name for name in path.split("/") if name not in ("", ".")]
        first = next((number for number, name in enumerate(names) if has_magic(name)), len(names))
        start = f"{scheme}{mark}" if mark else "/" * path.startswith("/")
        self.root = start + "/".join(names[:first])
        self.parts = names[first:]
        before = _MAGIC.split(self.parts[0])[0] if self.parts else ""
        self.literal = f"{self.root}/{before}" if names[:first] else f"{start}{before}"
        self._fixed = next((number for number, part in enumerate(self.parts) if "**" in part), len(self.parts))
        try:
            self._folders = [re.compile(_translated([part])) for part in self.parts[: self._fixed]]
            self._whole = re.compile(f"{_translated(self.parts)}(?:/.*)?", re.DOTALL)
        except re.error as err:
            raise ArgumentError(f"{text}: expected a pattern, got one that means nothing: {err}. Mend it.") from err

    def matches(self, below: str) -> bool:
        """Return whether a path below the root, or a folder that it lies in, is matched."""
        return self._whole.fullmatch(below) is not None

    def may_match_in(self, folder: str) -> bool:
        """Return whether a path in a folder below the root can be matched; the root itself is empty."""
        names = folder.split("/") if folder else []
        return all(part.fullmatch(name) for part, name in zip(self._folders, names, strict=False))

    def names(self, folder: str) -> bool:
        """Return whether the last part of a folder below the root stands in the pattern, and is not only matched."""
        return folder.rpartition("/")[2] in self.parts


def _translated(parts: list[str]) -> str:
    """Return the regular expression of parts of a pattern."""
    text = ""
    for number, part in enumerate(parts):
        is_last = number == len(parts) - 1
        if part == "**":
            text += ".*" if is_last else "(?:[^/]+/)*"
        else:
            text += _translated_part(part) + ("" if is_last else "/")
    return f"(?s:{text})"


def _translated_part(part: str) -> str:
    text, at = "", 0
    while at < len(part):
        letter = part[at]
        at += 1
        if letter == "*":
            if part[at : at + 1] == "*":
                at += 1
                text += ".*"
            else:
                text += "[^/]*"
        elif letter == "?":
            text += "[^/]"
        elif letter == "[":
            # As in a shell, a `]` right behind the beginning is one of the letters.
            first = at + (part[at : at + 1] in ("!", "^"))
            end = part.find("]", first + 1)
            if end < 0:
                text += r"\["
                continue
            letters = re.sub(r"([\\\[&~|])", r"\\\1", part[first:end])
            letters = f"\\{letters}" if letters.startswith(("^", "]")) else letters
            text += f"[^/{letters}]" if first > at else f"(?!/)[{letters}]"
            at = end + 1
        else:
            text += re.escape(letter)
    return text
