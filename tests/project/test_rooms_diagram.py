"""The diagram of rooms and arrows in CONTRIBUTING is the code's."""

from __future__ import annotations

import subprocess
import sys

from project_paths import ROOT


def test_the_diagram_is_what_the_command_writes() -> None:
    command = [sys.executable, str(ROOT / "tools" / "rooms.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_a_diagram_that_is_not_the_codes_is_refused(tmp_path, monkeypatch, capsys) -> None:
    import pytest
    import rooms

    page = tmp_path / "CONTRIBUTING.md"
    page.write_text(f"before\n{rooms.BEGIN}\nold\n{rooms.END}\nafter\n", encoding="utf-8")
    monkeypatch.setattr(rooms, "PAGE", page)
    monkeypatch.setattr(sys, "argv", ["rooms.py", "--check"])
    with pytest.raises(SystemExit, match=r"python tools/rooms\.py"):
        rooms.main()
    assert "old" in page.read_text(encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["rooms.py"])
    rooms.main()
    text = page.read_text(encoding="utf-8")
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "workflows --> export" in text
    assert "export --> workflows" not in text
