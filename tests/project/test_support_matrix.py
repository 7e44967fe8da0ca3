"""The support matrix is what its tool writes, and names everything that the code has."""

from __future__ import annotations

import subprocess
import sys

from project_paths import ROOT

from flawscope.cpp_ext import native


def test_the_page_is_up_to_date() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "tools" / "support_matrix.py", "--check"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr


def test_every_simd_level_of_this_build_is_on_the_page() -> None:
    page = (ROOT / "docs" / "support-matrix.md").read_text(encoding="utf-8")
    levels = native.MODULE.simd_levels() if native.HAVE_NATIVE else ["scalar"]
    assert [level for level in levels if f"| `{level}` |" not in page] == []
