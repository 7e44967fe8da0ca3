"""Which module imports which: no cycle in the whole package, and no private name of another module.

A cycle means that none of its modules can be read, tested or moved without all the others, and whether an import of one
of them works at all depends on which comes first. Imports inside functions and for type checkers alone hide that; they
count here like any other.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping
from pathlib import Path

from import_graph import Edge, all_edges, import_edges, product_modules
from project_paths import ROOT


def find_cycles(edges: Iterable[Edge]) -> list[list[Edge]]:
    """Return cycles until every module that lies on one is named: for each the shortest one through it."""
    imports: dict[str, dict[str, Edge]] = {}
    for edge in edges:
        imports.setdefault(edge.source, {}).setdefault(edge.target, edge)
    cycles: list[list[Edge]] = []
    named: set[str] = set()
    for start in sorted(imports):
        if start not in named and (cycle := shortest_way_back(start, imports)):
            cycles.append(cycle)
            named.update(edge.source for edge in cycle)
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


OF_LIBRARIES = frozenset(
    {
        "_reset_state",  # accelerate keeps its state for the whole process and offers no other way to begin again
    }
)


def foreign_private_attributes(text: str) -> list[tuple[int, str]]:
    """Return line and text of every private attribute that is read of an object whose class the file does not have.

    What a file sets or defines under the same name is its own: methods that compare two objects of one class may look
    into both.
    """
    tree = ast.parse(text)
    own: set[str] = set(OF_LIBRARIES)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            own.add(node.name)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            own.add(node.attr)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            own.add(node.id)
    return sorted(
        (node.lineno, ast.unparse(node))
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and is_private(node.attr)
        and node.attr not in own
        and not (isinstance(node.value, ast.Name) and node.value.id in ("self", "cls"))
        # Public and documented, in spite of its name.
        and ast.unparse(node) != "os._exit"
    )


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


def test_no_module_reads_a_private_attribute_of_what_another_one_made() -> None:
    private = [
        f"{path.relative_to(ROOT)}:{line}: {text}"
        for path in product_modules(ROOT).values()
        for line, text in foreign_private_attributes(path.read_text(encoding="utf-8"))
    ]
    assert not private, "\n".join(["expected public attributes, got:", *private])


# ---- The checks themselves -------------------------------------------------------------------------------------------


def edges_of(sources: Mapping[str, str]) -> list[Edge]:
    modules = {name: Path() for name in sources}
    return [edge for name, text in sources.items() for edge in import_edges(name, text, f"{name}.py", modules)]


def test_imports_in_functions_and_for_type_checkers_make_a_cycle() -> None:
    cycles = find_cycles(
        edges_of(
            {
                "p": "",
                "p.a": "def work():\n    from p.b import thing\n",
                "p.b": "if TYPE_CHECKING:\n    from p import c\n",
                "p.c": "import p.a\nimport os\n",
                "p.d": "from p.a import work\n",
            }
        )
    )
    assert [told(cycle) for cycle in cycles] == [
        "  p.a imports p.b (p.a.py:2)\n  p.b imports p.c (p.b.py:2)\n  p.c imports p.a (p.c.py:1)"
    ]


def test_a_package_is_imported_where_it_is_named_and_not_on_the_way_to_a_part() -> None:
    table = {"p": "", "p.q": "from p.q.a import work\n", "p.q.a": "from p.q import b\n", "p.q.b": "import p.q.c\n"}
    assert find_cycles(edges_of({**table, "p.q.c": ""})) == []
    (cycle,) = find_cycles(edges_of({**table, "p.q.c": "from p.q import work\n"}))
    assert [edge.source for edge in cycle] == ["p.q", "p.q.a", "p.q.b", "p.q.c"]


def test_private_attributes_are_foreign_unless_the_file_has_them() -> None:
    text = (
        "class A:\n    def __init__(self, other):\n        self._own = other._own + other._theirs\n        self.x = 1\n"
    )
    assert foreign_private_attributes(text) == [(3, "other._theirs")]
    assert foreign_private_attributes("print(a.b()._c, a.__doc__)\n") == [(1, "a.b()._c")]
