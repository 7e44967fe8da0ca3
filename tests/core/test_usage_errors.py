"""Mistakes in a command line: what was meant is named."""

from __future__ import annotations

import json

import pytest

from flawscope import methods
from flawscope.cli import run
from flawscope.near_names import did_you_mean, nearest
from flawscope.verbs import VERBS, Alias, Group


def places(rows=VERBS, above=()):
    """Return the words of every verb and group."""
    listed = []
    for name, row in rows.items():
        if not isinstance(row, Alias):
            listed.append((*above, name))
        if isinstance(row, Group):
            listed += places(row.rows, (*above, name))
    return listed


@pytest.mark.parametrize("path", places(), ids=" ".join)
def test_a_slip_of_the_finger_in_any_verb_names_the_verb(path, capsys):
    *above, name = path
    assert run([*above, f"{name}q"]) == 2
    err = capsys.readouterr().err
    assert f"No such command '{name}q'. Did you mean " in err
    assert f"flawscope {' '.join(path)}" in err


@pytest.mark.parametrize("method", [name for name in methods.METHODS if methods.METHODS[name].settings])
def test_a_slip_in_any_method_names_the_method(method, capsys):
    assert run(["train", f"{method}q", "--data", "x", "--out", "y"]) == 2
    assert f"got '{method}q'. Did you mean {method}?" in capsys.readouterr().err
    assert run([method]) == 2
    assert f"Did you mean flawscope train {method}?" in capsys.readouterr().err


@pytest.mark.parametrize("method", [name for name in methods.METHODS if methods.METHODS[name].settings])
def test_help_of_any_method_lists_its_settings_with_defaults(method, capsys):
    from flawscope.config import describe_settings

    assert run(["train", method, "--help"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("Usage: flawscope train [OPTIONS] METHOD\n")
    assert [line.key for line in describe_settings(method) if f" {line.key}={line.default}"[:40] not in shown] == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["verify"], "Did you mean flawscope line audit verify or flawscope bundle verify?"),
        (["xyzzy"], "No such command 'xyzzy'. Expected one of demo, doctor, data, "),
        (["train", "padim", "--dta", "x"], "No such option --dta. Did you mean --data?"),
        (["train", "padim", "--xyzzy", "x"], "No such option --xyzzy. (see flawscope train --help)"),
        (["score", "--quiet", "b", "i"], "--quiet: expected it before the verb, got it behind."),
        (["score", "b", "i", "--backend", "cpuu"], "got 'cpuu'. Did you mean cpu?"),
        (["score", "b", "i", "--backend", "it's"], "--backend: expected one of auto, cpu, "),
        (["train", "padim", "parts", "--out", "run"], "(parts). The dataset goes behind --data."),
    ],
)
def test_a_mistake_is_one_line_that_says_what_was_meant(arguments, message, capsys):
    assert run(arguments) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert message in err


def test_mistakes_are_json_where_that_was_asked_for(capsys):
    assert run(["--log-format", "json", "trian"]) == 2
    told = json.loads(capsys.readouterr().err)
    assert (told["level"], told["status"]) == ("error", 2)
    assert told["message"].startswith("No such command 'trian'. Did you mean flawscope train?")
    assert run(["--log-format", "json"]) == 2
    assert json.loads(capsys.readouterr().err)["message"].startswith("expected a verb, got none.")
    # What one command was told is not told to the next.
    assert run(["trian"]) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_the_environment_may_ask_for_json(capsys, monkeypatch):
    monkeypatch.setenv("FLAWSCOPE_LOG_FORMAT", "json")
    assert run(["trian"]) == 2
    assert json.loads(capsys.readouterr().err)["level"] == "error"


def test_names_are_compared_in_any_case_and_by_their_beginnings():
    assert nearest("PATCHCOR", ["padim", "PatchCore"]) == "PatchCore"
    assert nearest("aut", ["padim", "autoencoder"]) == "autoencoder"
    assert did_you_mean(7, ["padim"]) == ""
