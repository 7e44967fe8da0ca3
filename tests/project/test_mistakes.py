"""The page of mistakes is what the commands say."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from project_paths import ROOT


@pytest.mark.long
def test_the_page_is_what_the_commands_say() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "tools" / "mistakes.py", "--check"], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr


def test_there_are_41_and_none_is_a_traceback() -> None:
    page = (ROOT / "docs" / "mistakes.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) \| .*<br>`flawscope .*` \| (error|fault|note)\b.* \|$", page, re.MULTILINE)
    assert [int(number) for number, _ in rows] == list(range(1, 42))
    assert "Traceback" not in page
