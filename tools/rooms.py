"""Write the diagram of rooms and arrows in CONTRIBUTING.md, from the imports in the code.

    python tools/rooms.py [--check] [--count]

A room is a folder with Python files; an arrow says that a file of one room imports from another. With --check nothing
is written, and the exit status is 1 if the diagram is not the code's. With --count only the numbers are printed.
"""

from __future__ import annotations

import argparse
import ast
import sys
from collections import defaultdict
from pathlib import Path

from import_graph import all_edges, product_modules
from linktree import ROOMS, ROOT

PAGE = ROOT / "CONTRIBUTING.md"
BEGIN, END = "<!-- rooms: written by `python tools/rooms.py` -->", "<!-- end of rooms -->"
ORDER = ("workflows", "export", "training", "calibration", "runtime", "cpp_ext", "core")
"""From top to bottom: imports go down."""


def room_of(path: Path) -> str:
    """Return the folder of a product file, as `core/imaging`."""
    return path.parent.relative_to(ROOT).as_posix()


def arrows() -> dict[str, set[str]]:
    """Return room -> the other rooms that its files import from."""
    rooms = {name: room_of(path) for name, path in product_modules(ROOT).items()}
    found: dict[str, set[str]] = {room: set() for room in rooms.values()}
    for edge in all_edges(ROOT):
        source, target = rooms[edge.source], rooms[edge.target]
        if source != target:
            found[source].add(target)
    return found


def summary(room: str) -> str:
    """Return the first line of a room's docstring."""
    text = ast.get_docstring(ast.parse((ROOT / room / "__init__.py").read_text(encoding="utf-8"))) or ""
    return text.splitlines()[0]


def diagram() -> str:
    """Return the diagram as Markdown: top-level rooms with their arrows, then every room with what it imports from."""
    imports = arrows()
    top: dict[str, set[str]] = defaultdict(set)
    for room, targets in imports.items():
        top[room.split("/")[0]] |= {target.split("/")[0] for target in targets} - {room.split("/")[0]}
    lines = [BEGIN, "", "```mermaid", "flowchart TD"]
    lines += [f"    {room} --> {target}" for room in ORDER for target in ORDER if target in top[room]]
    lines += ["```", "", "| room | does | imports from |", "|---|---|---|"]
    for first in ORDER:
        for room in sorted(room for room in imports if room.split("/")[0] == first):
            targets = sorted(imports[room], key=lambda target: (ORDER.index(target.split("/")[0]), target))
            lines.append(f"| `{room}` | {summary(room)} | {', '.join(f'`{target}`' for target in targets) or '–'} |")
    rooms, count = len(imports), sum(map(len, imports.values()))
    return "\n".join([*lines, "", f"{rooms} rooms, {count} arrows.", "", END])


def main() -> None:
    """Write, check or count."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; fail if the diagram is not the code's")
    parser.add_argument("--count", action="store_true", help="print how many rooms and arrows there are")
    options = parser.parse_args()
    assert set(ORDER) == {"core", *ROOMS}, "every room has its place in the diagram"
    if options.count:
        imports = arrows()
        print(f"{len(imports)} rooms, {sum(map(len, imports.values()))} arrows")
        return
    text = PAGE.read_text(encoding="utf-8")
    before, begun, rest = text.partition(BEGIN)
    _, ended, after = rest.partition(END)
    if not begun or not ended:
        sys.exit(f"{PAGE.name}: expected the lines {BEGIN!r} and {END!r}, got none. Write them where it belongs.")
    new = before + diagram() + after
    if options.check:
        if new != text:
            sys.exit(f"{PAGE.name}: its diagram of the rooms is not the code's. Write it with: python tools/rooms.py")
        return
    PAGE.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    main()
