"""The navigation of mkdocs.yml, completed: generated folders become lists of pages, and no page is left out."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

REST = "More"
"""Title of the list of pages that mkdocs.yml does not name."""


def complete(nav: list[Any], pages: Iterable[str]) -> list[Any]:
    """Return a navigation whose entries ending in `/` list that folder, followed by the pages that nobody named.

    Pages of single files of the repository (`files/`) are reached by links alone.

    Raises:
        ValueError: If a folder that is named has no page.
    """
    # Without the ending: `export` comes before `export-triton`, a package before its modules.
    known = sorted(pages, key=lambda page: page.removesuffix(".md"))
    full = _expanded(nav, known)
    named = set(_leaves(full))
    rest = [page for page in known if page not in named and not page.startswith("files/")]
    return [*full, {REST: rest}] if rest else full


def _expanded(entry: Any, pages: list[str]) -> Any:
    if isinstance(entry, dict):
        return {title: _expanded(below, pages) for title, below in entry.items()}
    if isinstance(entry, list):
        full: list[Any] = []
        for below in entry:
            found = _expanded(below, pages)
            # A folder among pages is listed among them.
            full += found if isinstance(below, str) and isinstance(found, list) else [found]
        return full
    if not entry.endswith("/"):
        return entry
    index, found = f"{entry}index.md", [page for page in pages if page.startswith(entry)]
    if not found:
        raise ValueError(f"mkdocs.yml: nav: expected a folder with pages, got {entry!r}.")
    return [page for page in (index,) if page in found] + [page for page in found if page != index]


def _leaves(entry: Any) -> Iterable[str]:
    if isinstance(entry, str):
        yield entry
        return
    for below in entry.values() if isinstance(entry, dict) else entry:
        yield from _leaves(below)
