"""A generated page, and the few forms of Markdown that generated pages need."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple


class Page(NamedTuple):
    """A page of the site.

    Attributes:
        path: Where it lies, below the site's folder of pages, ending in `.md`.
        text: Its Markdown.
    """

    path: str
    text: str


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table; cells are Markdown, and line breaks and bars in them are made harmless."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(_cell(text) for text in line)} |" for line in lines)


def code(text: str) -> str:
    """Return text as code within a line; empty for none."""
    return f"`{text}`" if text else ""


def escaped(text: str) -> str:
    """Return plain text in which nothing is taken for HTML or emphasis; spans of code stay."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(part if part.startswith("`") else re.sub(r"([<*_\[\]])", r"\\\1", part) for part in parts)


def _cell(text: str) -> str:
    return re.sub(r"\s*\n\s*", " ", text).replace("|", "&#124;" if "`" not in text else "\\|")
