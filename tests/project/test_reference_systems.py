"""The page of reference systems: what it names is there, and every option that is translated is on it."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from typing import NamedTuple

import click
import pytest
from project_paths import ROOT

from flawscope import cli
from flawscope.config import CONFIGS
from flawscope.config.other_names import SYSTEMS
from flawscope.config.setting_parts import places_of

VERDICTS = {"same", "other name", "differs", "said, not used", "refused", "not shipped"}
PAGE = ROOT / "docs" / "reference-systems.md"
# On this page a setting of a method is METHOD.SETTING.
_SETTING = re.compile(rf"({'|'.join(CONFIGS)})\.(\w+)")


class Row(NamedTuple):
    """One line of a table: the system, the option there, what it is here, the verdict, and the tests that try it."""

    system: str
    there: str
    here: str
    verdict: str
    tests: tuple[str, ...]


def rows(text: str) -> Iterator[Row]:
    system = ""
    for line in text.splitlines():
        if line.startswith("## "):
            system = line[3:]
        elif line.startswith("| ") and not line.startswith(("| there ", "|---")):
            there, here, verdict, tests = (cell.strip() for cell in line.strip("|").split(" | "))
            yield Row(system, there, here, verdict, tuple(re.findall(r"`([^`]+)`", tests)))


ROWS = tuple(rows(PAGE.read_text(encoding="utf-8")))


@functools.cache
def names_in(file: str) -> frozenset[str]:
    tree = ast.parse((ROOT / "tests" / file).read_text(encoding="utf-8"))
    return frozenset(node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))


def command_of(words: list[str]) -> tuple[click.Command | None, list[str]]:
    """Return the command that words begin with, and the rest of them; None if they begin with no verb."""
    command: click.Command = cli.root
    context = click.Context(cli.root)
    while words and isinstance(command, click.Group):
        found = command.get_command(context, words[0])
        if found is None:
            break
        command, words = found, words[1:]
    return (None if command is cli.root else command), words


def problems(row: Row) -> Iterator[str]:
    """Yield what is wrong with a row."""
    if row.verdict not in VERDICTS:
        yield f"verdict {row.verdict!r}"
    if not row.tests and row.verdict != "not shipped":
        yield "no test"
    for test in row.tests:
        file, separator, name = test.partition("::")
        if not separator or not (ROOT / "tests" / file).is_file() or name not in names_in(file):
            yield f"no such test: {test}"
    for span in re.findall(r"`([^`]+)`", row.here):
        if match := _SETTING.fullmatch(span):
            if match[2] not in places_of(CONFIGS[match[1]]):
                yield f"no such setting: {span}"
            continue
        command, rest = command_of(span.split())
        if command is None:
            if span.startswith("--"):
                yield f"option without its command: {span}"
            continue
        known = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
        yield from (f"no such option of {span.partition(' --')[0]}: {word}" for word in rest if word not in known)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.system}: {row.there}"[:60])
def test_what_a_row_names_is_there(row: Row) -> None:
    assert list(problems(row)) == []


def test_every_system_is_on_the_page_and_every_translated_option() -> None:
    systems = {row.system for row in ROWS}
    assert systems == {"AnoGen", "MvP-Diff", "QualityInspector UAD", "Diffusion-Based-AD", "DSAD"}
    for system in SYSTEMS:
        named = {span for row in ROWS if row.system == system.name for span in re.findall(r"`([^`]+)`", row.there)}
        assert system.options <= named
    # A renamed option says the setting that the table of the code has.
    for system in SYSTEMS:
        here = {row.there.strip("`"): row.here for row in ROWS if row.system == system.name}
        for name, setting in system.names.items():
            assert f"`{system.methods[0]}.{setting}`" in here[name]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"verdict": "OK"}, "verdict 'OK'"),
        ({"tests": ()}, "no test"),
        ({"tests": ("core/test_cli.py::test_that_is_not_there",)}, "no such test: core/test_cli.py::test_that"),
        ({"tests": ("core/nowhere.py::test_x",)}, "no such test: core/nowhere.py"),
        ({"here": "`synth generate --nonsense`"}, "no such option of synth generate: --nonsense"),
        ({"here": "`padim.nonsense`"}, "no such setting: padim.nonsense"),
        ({"here": "`--data`"}, "option without its command: --data"),
    ],
)
def test_a_row_that_names_what_is_not_there_is_found(change: dict[str, object], problem: str) -> None:
    found = list(problems(ROWS[0]._replace(**change)))
    assert any(text.startswith(problem) for text in found)
