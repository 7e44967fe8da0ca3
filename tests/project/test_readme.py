"""README, tour and installing are real: commands and make targets exist; the README is short, and true when fresh."""

from __future__ import annotations

import ast
import re
import shlex

import pytest
from project_paths import ROOT
from readme_commands import Command, commands_of

import flawscope
from flawscope.cli import run

README = (ROOT / "README.md").read_text(encoding="utf-8")
TOUR = (ROOT / "docs" / "tour.md").read_text(encoding="utf-8")
INSTALL = (ROOT / "docs" / "install.md").read_text(encoding="utf-8")
COMMANDS = [
    *commands_of("README.md", README),
    *commands_of("docs/tour.md", TOUR),
    *commands_of("docs/install.md", INSTALL),
]
OURS = [each for each in COMMANDS if each.kind == "shell" and each.text.startswith("flawscope ")]


def verbs(page: str) -> list[str]:
    return [shlex.split(each.text)[1] for each in OURS if each.page == page]


def test_the_readme_is_short() -> None:
    assert len(README.split()) < 900


def test_the_readme_shows_the_whole_main_job() -> None:
    assert verbs("README.md") == ["pipeline", "score", "line", "doctor", "bench"]
    assert verbs("docs/tour.md") == ["data", "train", "export", "calibrate", "evaluate", "score", *["line"] * 4]


@pytest.mark.parametrize("command", OURS, ids=lambda each: each.text)
def test_a_command_of_the_readme_parses(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*shlex.split(command.text, comments=True)[1:], "--help"]) == 0, capsys.readouterr().err


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\bmake ([\w-]+)", README + INSTALL))))
def test_a_make_target_of_the_readme_exists(target: str) -> None:
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)


def test_the_python_of_the_readme_is_python() -> None:
    scripts = [each.text for each in COMMANDS if each.page == "README.md" and each.kind == "python"]
    (script,) = scripts
    assert len(ast.parse(script).body) <= 7
    names = set(re.findall(r"\bflawscope\.(\w+)", script))
    assert names
    assert names <= set(flawscope.__all__)


def test_nothing_is_left_to_fill_in() -> None:
    assert "@@" not in README


def test_nothing_is_installed_by_name_while_no_index_has_it() -> None:
    assert not re.search(r"pip install \"?flawscope", README)


def test_what_never_ran_on_a_gpu_is_said_once() -> None:
    assert len(re.findall(r"not run|never ran", README)) == 1
    assert "docs/support-matrix.md" in README
