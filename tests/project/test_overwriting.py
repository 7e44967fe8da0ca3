"""No command replaces what exists unless it is told to: every option that names an output is known here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import click
import pytest

from flawscope import cli
from flawscope.verbs import VERBS, Alias, Group, Row

# Options that name what is written, by the verb.
OUTPUTS = {
    "bench": {"--json", "--plot"},
    "benchmark": {"--out"},
    "bundle bank add": {"--out"},
    "bundle bank prune": {"--out"},
    "bundle bank remove": {"--out"},
    "bundle combine": {"--out"},
    "bundle pack": {"--out"},
    "bundle region": {"--preview"},
    "data demo": {"DIR"},
    "demo": {"--out"},
    "evaluate": {"--json", "--out", "--report"},
    "export": {"--out"},
    "export-triton": {"--out"},
    "line check": {"--images"},
    "line export": {"OUT"},
    "pipeline": {"--out"},
    "sampling": {"--out"},
    "score": {"--csv", "--maps", "--out", "--reconstructions"},
    "synth boxes": {"--out"},
    "synth dataset": {"--out"},
    "synth describe": {"--out"},
    "synth export-adapter": {"--out"},
    "synth generate": {"--out"},
    "synth import": {"--out"},
    "synth masks": {"--out"},
    "synth paste": {"--out"},
    "synth perlin": {"--out"},
    "synth support": {"--out"},
    "train": {"--out"},
}
# Refuses a folder with results unless it goes on with them (--resume latest).
# A key is never replaced; an overlay keeps all its revisions.
OWN_RULES = {"synth judge": {"--out"}, "bundle keygen": {"--out"}, "bundle threshold": {"--threshold-overlay"}}
# Words in the help of an option that names what is written.
_WRITING = ("to write", "Write", "Folder for", "to fill", "to add a model to", "Draw the figures to", "(NAME.flaw)")


def commands(rows: Mapping[str, Row] = VERBS, before: str = "") -> Iterator[tuple[str, click.Command]]:
    for name, row in rows.items():
        if isinstance(row, Group):
            yield from commands(row.rows, f"{before}{name} ")
        elif not isinstance(row, Alias):
            group = cli.root
            if before:
                group = cli.LazyGroup(name=before, rows=rows)
            command = group.get_command(click.Context(group), name)
            assert command is not None
            yield f"{before}{name}", command


COMMANDS = dict(commands())


def test_every_option_that_names_an_output_is_in_the_table() -> None:
    found: dict[str, set[str]] = {}
    for name, command in COMMANDS.items():
        for option in command.params:
            is_path = isinstance(option.type, click.Path)
            if isinstance(option, click.Option) and is_path and any(word in (option.help or "") for word in _WRITING):
                found.setdefault(name, set()).add(option.opts[0])
    # Arguments have no help; the commands that change a bundle keep all that is in it.
    expected = {name: options - {"DIR", "OUT"} for name, options in (OUTPUTS | OWN_RULES).items()}
    assert found == {name: options for name, options in expected.items() if options}


@pytest.mark.parametrize("name", COMMANDS)
def test_who_writes_something_new_can_be_told_to_replace_it(name: str) -> None:
    flags = {flag for option in COMMANDS[name].params for flag in option.opts}
    # Or to replace the signature of another key, or what the user's shell has.
    assert ("--overwrite" in flags) == (name in OUTPUTS or name in ("bundle sign", "completion"))


@pytest.fixture
def taken(tmp_path: Path) -> Path:
    """A folder with one file in it, which belongs to somebody else, and names that are taken."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "mine.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    return tmp_path


# Verb -> arguments of a request that would be done, were its output not taken. OUT is the place.
REQUESTS = {
    "bench": ["BUNDLE", "--json", "file"],
    "bench ": ["BUNDLE", "--plot", "file"],
    "benchmark": ["DATA", "--out", "folder"],
    "bundle bank add": ["BUNDLE", "IMAGE", "--out", "folder"],
    "bundle bank prune": ["BUNDLE", "--rows", "9", "--out", "folder"],
    "bundle bank remove": ["BUNDLE", "--number", "1", "--out", "folder"],
    "bundle pack": ["BUNDLE", "--out", "file"],
    "bundle region": ["BUNDLE", "--on", "IMAGE", "--polygon", "0,0 9,0 9,9", "--preview", "file"],
    "data demo": ["folder", "--kind", "gear", "--size", "64", "--train", "1"],
    "evaluate": ["BUNDLE", "--data", "DATA", "--json", "file"],
    "evaluate ": ["BUNDLE", "--data", "DATA", "--report", "report"],
    "evaluate  ": ["BUNDLE", "--data", "DATA", "--out", "folder"],
    "export": ["RUN", "--out", "folder"],
    "export-triton": ["RUN", "--out", ".", "--model-name", "folder"],
    "pipeline": ["padim", "--data", "DATA", "--out", "pipeline"],
    "score": ["BUNDLE", "DATA/steel/test/good", "--maps", "folder"],
    "score ": ["BUNDLE", "DATA/steel/test/good", "--csv", "file"],
    "score  ": ["BUNDLE", "DATA/steel/test/good", "--out", "folder"],
    "synth masks": ["--ranges", "anogen-mvtec", "--out", "folder"],
    "synth perlin": ["--data", "DATA", "--num", "1", "--out", "folder"],
    "synth support": ["--data", "DATA", "--split", "test", "--out", "folder"],
    "train": ["padim", "--data", "DATA", "--out", "folder"],
}


@pytest.mark.parametrize("name", REQUESTS)
def test_what_is_there_stays_as_it_is(
    name: str,
    taken: Path,
    padim_bundle: Path,
    padim_run: Path,
    tiny_root: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (taken / "report").mkdir()
    (taken / "report" / "report.html").write_text("mine")
    (taken / "pipeline" / "run").mkdir(parents=True)
    (taken / "pipeline" / "run" / "run.json").write_text("{}")
    before = {path: path.read_bytes() for path in taken.rglob("*") if path.is_file()}
    places = {"BUNDLE": str(padim_bundle), "RUN": str(padim_run), "DATA": str(tiny_root)}
    arguments = [
        next((word.replace(key, place) for key, place in places.items() if word.startswith(key)), word)
        for word in REQUESTS[name]
    ]
    monkeypatch.chdir(taken)
    assert cli.run([*name.split(), *arguments]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "expected a new " in printed.err
    assert printed.err.count("\n") == 1
    assert {path: path.read_bytes() for path in taken.rglob("*") if path.is_file()} == before
