"""Which module imports which: no cycle in the whole package, and no private name of another module."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("calibration", "cpp_ext", "export", "runtime", "training", "workflows")
"""Top-level folders beside `core`, which is the package itself."""


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


def find_cycles(edges: list[Edge]) -> list[list[Edge]]:
    """Return one shortest cycle through the first module of every strongly connected part of the graph."""
    imports: dict[str, dict[str, Edge]] = {}
    for edge in edges:
        if edge.source != edge.target or edge.target != "flawscope":
            imports.setdefault(edge.source, {}).setdefault(edge.target, edge)
    cycles: list[list[Edge]] = []
    covered: set[str] = set()
    for start in sorted(imports):
        if start in covered:
            continue
        cycle = shortest_way_back(start, imports)
        if cycle:
            cycles.append(cycle)
            covered.update(edge.source for edge in cycle)
    return cycles


def shortest_way_back(start: str, imports: Mapping[str, Mapping[str, Edge]]) -> list[Edge]:
    """Return the fewest imports that lead from `start` back to it; none where no way leads back."""
    ways: dict[str, list[Edge]] = {start: []}
    queue = [start]
    for module in queue:  # grows while it is walked: breadth first
        for target, edge in imports.get(module, {}).items():
            if target == start:
                return [*ways[module], edge]
            if target not in ways:
                ways[target] = [*ways[module], edge]
                queue.append(target)
    return []


def told(cycle: list[Edge]) -> str:
    return "\n".join(f"  {edge.source} imports {edge.target} ({edge.place})" for edge in cycle)


def is_private(name: str) -> bool:
    return name.startswith("_") and not (name.startswith("__") and name.endswith("__"))


# ---- The package -----------------------------------------------------------------------------------------------------


def test_the_package_has_no_import_cycle() -> None:
    edges = all_edges(ROOT)
    assert len(edges) > 1000, "the graph is that of the whole package"
    cycles = find_cycles(edges)
    assert not cycles, "\n\n".join(["expected no import cycle, got:", *map(told, cycles)])


def test_no_module_imports_a_private_name_of_another() -> None:
    private: list[str] = []
    for name, path in product_modules(ROOT).items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("flawscope"):
                private += [
                    f"{path.relative_to(ROOT)}:{node.lineno}: {name} takes {alias.name} of {node.module}"
                    for alias in node.names
                    if is_private(alias.name)
                ]
    assert not private, "\n".join(["expected public names, got:", *private])


def test_no_module_reads_a_private_attribute_of_another_module() -> None:
    modules = product_modules(ROOT)
    private: list[str] = []
    for path in modules.values():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names = module_names(tree, modules)
        private += [
            f"{path.relative_to(ROOT)}:{node.lineno}: {names[node.value.id]}.{node.attr}"
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id in names
            and is_private(node.attr)
        ]
    assert not private, "\n".join(["expected public names, got:", *private])


def module_names(tree: ast.Module, modules: Mapping[str, Path]) -> dict[str, str]:
    """Return the names by which a file calls other modules of the package -> the module."""
    names: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if (module := f"{node.module}.{alias.name}") in modules:
                    names[alias.asname or alias.name] = module
        elif isinstance(node, ast.Import):
            names |= {alias.asname: alias.name for alias in node.names if alias.asname and alias.name in modules}
    return names
