"""What a program said that did not do its work: that it cannot work on this machine, or what it failed with."""

from __future__ import annotations

from collections.abc import Sequence


def refusal(text: str, words: Sequence[str]) -> str | None:
    """Return the first line in which a tool of NVIDIA says by one of these words that it cannot work here, or None."""
    # Its own lines alone, which begin so: what it runs may say that it lacks a permission as well.
    own = [line for line in text.splitlines() if line.startswith("==")]
    found = next((line for line in own if any(word.lower() in line.lower() for word in words)), None)
    return None if found is None else found.strip("= ")[:200]


def last_lines(text: str, count: int = 4) -> str:
    """Return the last lines that say something, in one."""
    lines = [line.strip("= ") for line in text.splitlines() if line.strip("= ")]
    return " | ".join(lines[-count:])[-400:] or "it said nothing"
