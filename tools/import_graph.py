"""Which module of the product imports which, read from the code: for the tests of its structure and for its diagram."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from linktree import ROOMS


class Edge(NamedTuple):
    """One import: what imports, what is imported, and where that is written."""

    source: str
    target: str
    place: str


def product_modules(root: Path) -> dict[str, Path]:
    """Return the import name of every product file below `root` -> the file."""
    modules: dict[str, Path] = {}
    for folder in ("core", *ROOMS):
        for path in sorted((root / folder).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            if parts[0] == "core":
                parts = parts[1:]
            if parts and parts[-1] == "__init__":
                parts = parts[:-1]
            modules[".".join(("flawscope", *parts))] = path
    return modules


def import_edges(name: str, text: str, place: str, modules: Mapping[str, Path]) -> Iterator[Edge]:
    """Yield the imports of one module among `modules`, wherever they stand in it.

    What an import runs on the way is left out: `import a.b.c` also runs the `__init__` of `a` and of `a.b`, but these
    are packages whose public tables import their parts, so counting them would make a cycle of every package.
    """
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name in modules:
                    yield Edge(name, alias.name, f"{place}:{node.lineno}")
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{place}:{node.lineno}: expected an absolute import"
            for alias in node.names:
                part = f"{node.module}.{alias.name}"
                target = part if part in modules else str(node.module)
                if target in modules:
                    yield Edge(name, target, f"{place}:{node.lineno}")


def all_edges(root: Path) -> list[Edge]:
    """Return every import among the product files."""
    modules = product_modules(root)
    return [
        edge
        for name, path in modules.items()
        for edge in import_edges(name, path.read_text(encoding="utf-8"), str(path.relative_to(root)), modules)
    ]
