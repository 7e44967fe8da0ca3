"""Former names of options and values: they work, are in no help, and stderr says what they are called now."""

from __future__ import annotations

import click
import pytest
from click.shell_completion import ShellComplete

from flawscope.former_names import ChoiceWithFormerNames, CommandWithFormerNames


@click.command(cls=CommandWithFormerNames, former={"--pictures": "--images"})
@click.argument("names", nargs=-1)
@click.option("--images", "drawn", envvar=("TOY_IMAGES", "TOY_PICTURES"))
@click.option("--within", type=ChoiceWithFormerNames(["foreground", "image"], {"picture": "image"}))
def toy(names: tuple[str, ...], drawn: str | None, within: str | None) -> None:
    """Print what came."""
    click.echo(f"{names} {drawn} {within}")


def run(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[str, str]:
    toy.main(list(args), standalone_mode=False)
    shown = capsys.readouterr()
    return shown.out.strip(), shown.err.strip()


@pytest.mark.parametrize("args", [("--pictures", "DIR"), ("--pictures=DIR",)])
def test_a_former_option_does_the_same_and_a_note_names_the_present_one(
    capsys: pytest.CaptureFixture[str], args: tuple[str, ...]
) -> None:
    out, err = run(capsys, "a", *args)
    assert out == "('a',) DIR None"
    assert err == "note: --pictures is now called --images; the old name will go in a later version"
    assert run(capsys, "a", "--images", "DIR") == (out, "")


def test_a_former_value_does_the_same_and_a_note_names_the_present_one(capsys: pytest.CaptureFixture[str]) -> None:
    out, err = run(capsys, "--within", "picture")
    assert out == "() None image"
    assert err.startswith("note: --within picture is now called --within image;")
    assert run(capsys, "--within", "image") == (out, "")


def test_the_variable_of_a_former_option_works(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOY_PICTURES", "DIR")
    assert run(capsys)[0] == "() DIR None"


def test_what_stands_behind_two_dashes_is_a_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "--", "--pictures") == ("('--pictures',) None None", "")


def test_neither_help_nor_completion_nor_errors_know_former_names() -> None:
    assert "picture" not in toy.get_help(click.Context(toy))
    completed = ShellComplete(toy, {}, "toy", "_TOY").get_completions([], "--")
    assert "--pictures" not in [item.value for item in completed]
    values = ShellComplete(toy, {}, "toy", "_TOY").get_completions(["--within"], "")
    assert [item.value for item in values] == ["foreground", "image"]
    with pytest.raises(click.BadParameter) as caught:
        toy.main(["--within", "table"], standalone_mode=False)
    assert "picture" not in caught.value.message
