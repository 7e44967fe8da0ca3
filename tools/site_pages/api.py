"""The reference of the Python API: a page for each module with public names, filled by mkdocstrings from docstrings."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator

from site_pages.page import Page, escaped

FOLDER = "reference/python"
MODULES = (
    "flawscope",
    "flawscope.scale",
    "flawscope.errors",
    "flawscope.runtime",
    "flawscope.runtime.client",
    "flawscope.runtime.synthesis",
    "flawscope.bundle",
    "flawscope.datasets",
    "flawscope.datasets.defects",
    "flawscope.datasets.drawing",
    "flawscope.datasets.parts",
    "flawscope.calibration",
    "flawscope.cpp_ext",
)
"""Modules whose public names are shown; a name is shown once, on the page of the first that has it."""


def pages() -> Iterator[Page]:
    """Return a page for each module that has public names of its own."""
    seen: set[str] = set()
    rows = []
    for module in MODULES:
        names = [place for place in _places(module) if place not in seen]
        seen.update(names)
        if not names:
            continue
        short = module.replace(".", "-")
        summary = escaped((inspect.getdoc(importlib.import_module(module)) or "").partition("\n\n")[0])
        blocks = "\n\n".join(f"::: {name}" for name in names)
        yield Page(f"{FOLDER}/{short}.md", f"# `{module}`\n\n{summary}\n\n{blocks}\n")
        listed = ", ".join(f"`{name.rpartition('.')[2]}`" for name in names)
        rows.append(f"- [`{module}`]({short}.md): {listed}")
    text = "\n".join(rows)
    head = (
        "# Public names\n\nThe names that other code may rely on, from their docstrings; what that promises: "
        "[stability](../../stability.md). How to begin: [Python](../../python.md).\n\n"
    )
    yield Page(f"{FOLDER}/index.md", f"{head}{text}\n")


def _places(module: str) -> list[str]:
    """Return where the public names of a module are defined, in the order of `__all__`; constants are left out."""
    found = importlib.import_module(module)
    names = getattr(found, "__all__", None) or [name for name in vars(found) if not name.startswith("_")]
    places = []
    for name in names:
        value = getattr(found, name)
        home = getattr(value, "__module__", "")
        if (inspect.isclass(value) or inspect.isroutine(value)) and home.startswith("flawscope"):
            places.append(f"{home}.{value.__qualname__}")
    return places
