"""Where the project and the data shared beside it lie."""

from __future__ import annotations

import os
import runpy
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ROOMS: tuple[str, ...] = runpy.run_path(str(ROOT / "tools" / "linktree.py"))["ROOMS"]
"""Folders beside `core/`, each of them the package `flawscope.NAME`."""
SHARED = ROOT.parent / "shared"
DATA = Path(os.environ.get("FLAWSCOPE_DATA", SHARED / "data"))
"""Real images for tests that measure; they skip where it is absent."""
