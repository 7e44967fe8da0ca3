"""The README's commands are real: every verb and option it names exists, and its make targets are there."""

from __future__ import annotations

import re
import shlex

import pytest
from project_paths import ROOT

from flawscope.cli import run

README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^    (flawscope .+?)(?:\s+#.*)?$", README, re.MULTILINE)


def test_the_readme_shows_the_whole_main_job():
    assert [shlex.split(line)[1] for line in COMMANDS] == [
        "data",
        "train",
        "export",
        "calibrate",
        "evaluate",
        "score",
        "line",
        "line",
        "line",
        "line",
    ]


@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_of_the_readme_parses(line, capsys):
    assert run([*shlex.split(line)[1:], "--help"]) == 0, capsys.readouterr().err


@pytest.mark.parametrize("target", re.findall(r"^    make (\w+)", README, re.MULTILINE))
def test_a_make_target_of_the_readme_exists(target):
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)


def test_nothing_is_left_to_fill_in():
    assert "@@" not in README
