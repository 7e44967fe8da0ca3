"""Make build/typing/flawscope, a tree of links under the import names, for static tools and editors.

mypy, pyright and import-linter cannot run the import hook of an editable install. In this tree the path of every file
is that of its import name. An editable installation makes it (setup.py); run this again after a file or folder was
added directly below `core/`. Below the other rooms new files are seen at once, because each room is one link to a
folder.

Only the standard library may be imported here: setup.py imports this file before anything is installed.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10; pyproject.toml asks for tomli there, to build and to develop
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
ROOMS: tuple[str, ...] = tuple(
    tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["flawscope"]["rooms"]
)
"""Folders beside `core/`, each of them the package `flawscope.NAME`."""
TREE = ROOT / "build" / "typing"
"""The folder that goes on the path of static tools."""


def make_tree(tree: Path = TREE, rooms: Sequence[str] = ROOMS) -> Path:
    """Update a tree of links to `core` and these rooms; return its package `flawscope`.

    Correct links stay, so that an editor or a test that runs meanwhile never finds the tree empty.
    """
    package = tree / "flawscope"
    package.mkdir(parents=True, exist_ok=True)
    places = [path for path in (ROOT / "core").iterdir() if path.name != "__pycache__"]
    places += [ROOT / room for room in rooms]
    # Relative, so that a clone can be moved or mounted elsewhere.
    links = {path.name: os.path.relpath(path, package.resolve()) for path in places}
    for entry in package.iterdir():
        if entry.is_symlink():
            if str(entry.readlink()) != links.get(entry.name):
                entry.unlink()
        elif entry.is_dir():  # a room that a tool has put there itself, or bytecode
            shutil.rmtree(entry)  # after is_symlink: through a link it would delete the sources
        else:
            entry.unlink()
    for name, target in links.items():
        if not (package / name).is_symlink():
            (package / name).symlink_to(target)
    return package


if __name__ == "__main__":
    make_tree()
