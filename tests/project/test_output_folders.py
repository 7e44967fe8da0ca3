"""Folders of tools: what an earlier run left is replaced, what is somebody's never."""

from __future__ import annotations

import sys
from pathlib import Path

import fp16_environment
import output_folder
import pytest
import release
import try_readme


def test_a_folder_of_an_earlier_run_is_emptied(tmp_path: Path) -> None:
    for _ in range(2):
        folder = output_folder.emptied(tmp_path / "out", "made.txt")
        assert [path.name for path in folder.iterdir()] == ["made.txt"]
        (folder / "more").touch()


@pytest.mark.parametrize(
    ("tool", "options"),
    [(release, ["--no-wheel", "--out"]), (try_readme, ["--out"]), (fp16_environment, [])],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_no_tool_removes_a_folder_of_somebody_else(
    tool: object, options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "letter.txt").write_text("dear")
    (tmp_path / "link").symlink_to(tmp_path / "theirs")
    for name in ("theirs", "link", "theirs/letter.txt"):
        monkeypatch.setattr(sys, "argv", ["tool", *options, str(tmp_path / name)])
        with pytest.raises(SystemExit, match=r"expected a (new or empty )?folder"):
            tool.main()  # type: ignore[attr-defined]
    assert (tmp_path / "theirs" / "letter.txt").read_text() == "dear"


def test_what_lies_in_the_build_folder_is_of_tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output_folder, "BUILD", tmp_path)
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "rest").touch()
    assert not (output_folder.emptied(tmp_path / "old", "made.txt") / "rest").exists()
    with pytest.raises(SystemExit, match="with other files"):
        output_folder.emptied(tmp_path, "made.txt")


def test_the_commands_that_remain_name_the_folder_that_was_written(tmp_path: Path) -> None:
    assert "--file build/release/notes.md" in release.remaining("1.2.3", release.ROOT / "build" / "release")
    assert f"-f '{tmp_path}/a b/Dockerfile'" not in (text := release.remaining("1.2.3", tmp_path / "a b"))
    assert f"-f '{tmp_path}/a b'/Dockerfile" in text
