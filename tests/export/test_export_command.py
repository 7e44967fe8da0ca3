"""`flawscope export` as it is typed, where nothing has to be trained: its options, and those that it has no longer."""

from __future__ import annotations

from pathlib import Path

import click
import pytest

from flawscope import cli
from flawscope.export.explain_command import explain
from flawscope.export.export_command import _FORMER_OPTIONS, export
from flawscope.export.triton_command import export_triton


@pytest.mark.parametrize(
    ("options", "flag", "command"),
    [
        (["--format", "triton"], "--format", "export-triton SOURCE --out REPOSITORY"),
        (["--format=triton", "--device", "gpu"], "--format", "export-triton SOURCE --out REPOSITORY"),
        (["--model-name", "part"], "--model-name", "export-triton SOURCE --out REPOSITORY"),
        (["--explain"], "--explain", "explain SOURCE"),
        (["--explain", "--against", "plain"], "--explain", "explain SOURCE"),
        (["--tolerance", "1"], "--tolerance", "explain SOURCE"),
    ],
)
@pytest.mark.parametrize("out", [[], ["--out", "models"]])
def test_an_option_of_earlier_releases_names_the_verb_that_has_it(
    capsys: pytest.CaptureFixture[str], options: list[str], flag: str, command: str, out: list[str]
) -> None:
    assert cli.run(["export", "bottle.flaw", *out, *options]) == 2
    assert capsys.readouterr() == (
        "",
        f"error: {flag}: expected no such option, got it. Another verb does its work: flawscope {command}.\n",
    )


def test_another_option_that_is_not_there_is_an_ordinary_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["export", "run", "--out", "x.flaw", "--formats", "triton"]) == 2
    assert capsys.readouterr().err.startswith("error: No such option")


def test_a_verb_that_took_options_over_has_them_and_export_has_none_of_them() -> None:
    flags = {
        command.name: {flag for option in command.params for flag in option.opts}
        for command in (export, export_triton, explain)
    }
    for flag, line in _FORMER_OPTIONS.items():
        assert flag not in flags["export"]
        if flag not in ("--format", "--explain"):
            assert flag in flags[line.split()[1]]


@pytest.mark.parametrize("verb", ["export", "export-triton"])
def test_a_place_to_write_to_is_needed(verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run([verb, str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("error: Missing option '--out'")


def test_both_ways_to_a_bundle_offer_the_same_precisions() -> None:
    kinds = [
        next(option.type for option in command.params if option.name == "precisions")
        for command in (export, export_triton)
    ]
    assert all(isinstance(kind, click.Choice) for kind in kinds)
    assert kinds[0].choices == kinds[1].choices
