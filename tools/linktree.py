"""Make build/typing/flawscope, a tree of links under the import names, for static tools.

mypy, pyright and import-linter cannot run the import hook of an editable install. In this tree every file is where
its import name says, including files added after the install.
"""

from __future__ import annotations

import shutil
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("cpp_ext", "runtime", "calibration", "training", "export", "workflows")


def make_tree(tree: Path, rooms: tuple[str, ...] = ROOMS) -> Path:
    """Rebuild a tree of links with `core` and these rooms; return its package `flawscope`."""
    shutil.rmtree(tree, ignore_errors=True)
    package = tree / "flawscope"
    package.mkdir(parents=True)
    for path in (ROOT / "core").iterdir():
        if path.name != "__pycache__":
            (package / path.name).symlink_to(path)
    for room in rooms:
        (package / room).symlink_to(ROOT / room)
    return package


if __name__ == "__main__":
    make_tree(ROOT / "build" / "typing")
